"""CR-DURABLE-001: first commit is journaled before it leaves the process."""

from __future__ import annotations

import pytest
from faults import intact, swallowed_answer, swallowed_request
from stage import Stage, key_of, kinds_and_keys

from cycles_lite.settlement.journal import file_name

pytestmark = pytest.mark.scenario("CR-DURABLE-001")


@pytest.fixture(scope="module", params=(swallowed_request, swallowed_answer), ids=lambda fault: fault.__name__)
def played(request, tmp_path_factory):
    """The process is killed while its commit is under way: before the server has it, and after."""
    with Stage(tmp_path_factory.mktemp("durable-001")) as stage:
        stage.faults["/commit"] = [stage.looking_first(request.param), intact]
        killed = stage.actor("commit 42")
        stage.reservation_id = killed.hears("reserved")
        stage.wait_for_look()
        killed.kill()
        stage.after_kill = stage.records()
        stage.spent_before = stage.spent()
        stage.pending = stage.actor("flush").hears("pending")
        yield stage


def test_journal_write_precedes_first_settlement_request(played):
    """The whole record was on disk when the first byte of the request had come."""
    (name, record), *others = played.at_request.items()
    first = played.sent("/commit")[0]
    assert others == []
    assert name == file_name(played.reservation_id)
    assert record["reservation_id"] == played.reservation_id
    assert record["mode"] == "commit"
    assert record["commit_body"] == first.json
    assert record["commit_body"]["actual"] == {"unit": "TOKENS", "amount": 42}
    assert record["event_fallback_body"]["idempotency_key"] == key_of(first)


def test_unresolved_record_survives_restart(played):
    assert played.after_kill == played.at_request


def test_successful_replay_removes_record(played):
    assert played.pending == "0"
    assert played.files() == []


def test_settlement_occurs_at_most_once(played):
    assert played.spent_before in (0, 42)
    assert played.spent() == 42
    (row,) = played.reservations().values()
    assert (row.status, row.committed.amount) == ("COMMITTED", 42)


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.settlements()) == ["commit", "commit same key"]
    first, second = played.sent("/commit")
    assert first.json == second.json
