"""CR-CORE-004: protocol-invalid settlement success remains ambiguous."""

from __future__ import annotations

import pytest
from peers import answer, committed, tokens
from stage import ACTION, Stage, key_of, kinds_and_keys

from cycles_lite import Amount, SettlementStatus

pytestmark = pytest.mark.scenario("CR-CORE-004")

#: What says 2xx and proves nothing: no answer to a commit as the protocol's document has it.
UNPROVEN = {
    "another status word": answer(committed(status="RELEASED")),
    "lower case": answer(committed(status="committed")),
    "no status": answer({"charged": tokens(42)}),
    "no charged": answer({"status": "COMMITTED"}),
    "charged is null": answer(committed(charged=None)),
    "charged is a number": answer(committed(charged=42)),
    "charged is text": answer(committed(charged=tokens("42"))),
    "charged is a float": answer(committed(charged=tokens(42.0))),
    "charged is a bool": answer(committed(charged=tokens(True))),
    "charged is negative": answer(committed(charged=tokens(-1))),
    "charged is past int64": answer(committed(charged=tokens(2**63))),
    "charged in an unknown unit": answer(committed(charged={"unit": "DOGE", "amount": 42})),
    "released is null": answer(committed(released=None)),
    "released in an unknown unit": answer(committed(released={"unit": "DOGE", "amount": 58})),
    "empty": answer(body=b""),
    "an empty object": answer({}),
    "a list": answer([committed()]),
    "a page": answer(body=b"<html>Welcome to the Wi-Fi</html>"),
    "cut JSON": answer(body=b'{"status":"COMMITTED","charged":{"unit":"TOKENS","amount":4'),
    "not UTF-8": answer(body=b'{"status":"COMMITTED","charged":{"unit":"TOKENS","amount":42},"x":"\xff"}'),
    "201": answer(committed(), 201),
    "202": answer(committed(), 202),
    "204": answer(status=204),
    "206": answer(committed(), 206),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with Stage(tmp_path_factory.mktemp("core-004")) as stage:
        yield stage


@pytest.fixture(params=UNPROVEN)
def unproven(request):
    """A fault: the server settles the commit, and something on the way answers for it."""

    def fault(passage, line):
        passage.forward()
        line.send(UNPROVEN[request.param])

    return fault


def test_only_schema_valid_expected_status_is_terminal_success(stage, unproven):
    """What is not proven is asked for again, and the proven answer ends it."""
    before, seen = stage.spent(), len(stage.settlements())
    stage.faults["/commit"] = [unproven]
    with stage.client() as client, client.reserve(Amount.tokens(100), ACTION) as guard:
        settlement = guard.commit(Amount.tokens(42))
    assert kinds_and_keys(stage.settlements()[seen:]) == ["commit", "commit same key"]
    assert (settlement.status, settlement.charged) == (SettlementStatus.COMMITTED, Amount.tokens(42))
    assert stage.spent() - before == 42
    assert stage.files() == []


def test_ambiguous_success_retains_original_idempotency_key(stage, unproven):
    """However often: the record stays on disk with the key that was sent, and is no success to the caller."""
    before, seen = stage.spent(), len(stage.settlements())
    stage.faults["/commit"] = [unproven] * 2
    slow = {"retry_initial_delay": 60.0, "retry_max_delay": 60.0}
    with stage.client(**slow) as client:
        with client.reserve(Amount.tokens(100), ACTION) as guard:
            settlement = guard.commit(Amount.tokens(42))
        (record,) = stage.records().values()
        first, second = stage.settlements()[seen:]
        assert (settlement.status, settlement.charged) == (SettlementStatus.PENDING, None)
        assert record["commit_body"] == first.json == second.json
        assert client.flush(30.0) == 0
    assert {key_of(request) for request in stage.settlements()[seen:]} == {key_of(first)}
    assert stage.spent() - before == 42
    assert stage.files() == []
