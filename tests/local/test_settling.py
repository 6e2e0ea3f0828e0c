"""Commits, releases, extensions and events (protocol: commit, release, extend, createEvent)."""

from __future__ import annotations

import re

import pytest

from cycles_lite.local.authority import Caller

from .helpers import START, tokens

BOT = {"tenant": "acme", "agent": "bot"}


def test_commit_less(bench):
    """Less than was reserved returns the rest, and says so."""
    made = bench.reserve(100)
    answer = bench.commit(made.id, 60)
    balances = answer.data.pop("balances")
    assert answer.data == {"status": "COMMITTED", "charged": tokens(60), "released": tokens(40)}
    assert balances == [one.to_json() for one in bench.authority.budgets()]
    assert bench.amounts() == (940, 0, 60, 0, False)


def test_commit_exactly(bench):
    """Just what was reserved returns nothing, and says nothing of it."""
    made = bench.reserve(100)
    answer = bench.commit(made.id, 100)
    assert "released" not in answer.data
    assert bench.amounts() == (900, 0, 100, 0, False)


@pytest.mark.parametrize(
    ("policy", "limit", "actual", "code", "charged", "after"),
    [
        ("REJECT", 0, 101, "BUDGET_EXCEEDED", None, (900, 100, 0, 0, False)),
        ("ALLOW_IF_AVAILABLE", 0, 1000, None, 1000, (0, 0, 1000, 0, False)),
        ("ALLOW_IF_AVAILABLE", 0, 1001, None, 1000, (0, 0, 1000, 0, True)),
        ("ALLOW_WITH_OVERDRAFT", 50, 1050, None, 1050, (-50, 0, 1000, 50, False)),
        ("ALLOW_WITH_OVERDRAFT", 50, 1051, "OVERDRAFT_LIMIT_EXCEEDED", None, (900, 100, 0, 0, False)),
        ("ALLOW_WITH_OVERDRAFT", 0, 1051, None, 1000, (0, 0, 1000, 0, True)),
    ],
)
def test_commit_more(bench, policy, limit, actual, code, charged, after):
    """More than was reserved follows the policy of the reservation."""
    bench.budget("tenant:acme", 1000, overdraft_limit=limit)
    made = bench.reserve(100, overage_policy=policy)
    answer = bench.commit(made.id, actual)
    if code is None:
        assert (answer.status, answer.data["charged"]) == (200, tokens(charged))
        assert "released" not in answer.data
    else:
        assert (answer.status, answer.error) == (409, code)
        assert answer.data["details"]["requested"] == actual
        assert bench.get(made.id).data["status"] == "ACTIVE"
    assert bench.amounts() == after


def test_commit_touches_what_was_budgeted_at_reserve(bench):
    """A budget that was made meanwhile is left alone; frozen, closed and over limit do not matter."""
    made = bench.reserve(100, BOT)
    bench.budget("tenant:acme/agent:bot", 5)
    bench.authority.freeze("tenant:acme")
    answer = bench.commit(made.id, 100)
    assert [one["scope_path"] for one in answer.data["balances"]] == ["tenant:acme"]
    assert bench.amounts("tenant:acme/agent:bot") == (5, 0, 0, 0, False)


def test_commit_in_another_unit(bench):
    """The reservation's unit is the commit's."""
    made = bench.reserve(100)
    answer = bench.commit(made.id, actual={"unit": "CREDITS", "amount": 1})
    assert (answer.status, answer.error) == (400, "UNIT_MISMATCH")
    assert answer.data["details"]["requested_unit"] == "CREDITS"
    assert answer.data["details"]["expected_units"] == ["TOKENS"]


def test_release(bench):
    """All of a hold comes back."""
    made = bench.reserve(100)
    answer = bench.release(made.id, reason="done")
    balances = answer.data.pop("balances")
    assert answer.data == {"status": "RELEASED", "released": tokens(100)}
    assert balances[0]["remaining"]["amount"] == 1000
    assert bench.amounts() == (1000, 0, 0, 0, False)


@pytest.mark.parametrize("first", ["commit", "release"])
@pytest.mark.parametrize("second", ["commit", "release", "extend"])
def test_finalized(bench, first, second):
    """A reservation ends once: another key finds it finalized, and so does the other operation with the same key."""
    made = bench.reserve(100)
    assert getattr(bench, first)(made.id, idempotency_key="k").status == 200
    for key in ("other", "k" if first != second else "third"):
        answer = getattr(bench, second)(made.id, idempotency_key=key)
        assert (answer.status, answer.error) == (409, "RESERVATION_FINALIZED")


def test_extend(bench):
    """An extension counts from the current expiry, not from now, and changes nothing else."""
    made = bench.reserve(100, ttl_ms=10_000)
    bench.clock.now += 4000
    answer = bench.extend(made.id, 5000)
    balances = answer.data.pop("balances")
    assert answer.data == {"status": "ACTIVE", "expires_at_ms": START + 15_000, "remaining_ttl_ms": 11_000}
    assert balances[0]["reserved"] == tokens(100)
    assert bench.get(made.id).data["expires_at_ms"] == START + 15_000


def test_extensions_run_out(bench):
    """Ten, where the tenant says nothing else."""
    made = bench.reserve(100)
    for _ in range(10):
        assert bench.extend(made.id, 1).status == 200
    answer = bench.extend(made.id, 1)
    assert (answer.status, answer.error) == (409, "MAX_EXTENSIONS_EXCEEDED")
    assert bench.get(made.id).data["expires_at_ms"] == START + 60_010


def test_extension_out_of_time(bench):
    """An expiry that no int64 could hold is a 400."""
    bench.clock.now = 2**63 - 1 - 86_400_000
    made = bench.reserve(100)
    answer = bench.extend(made.id, 86_400_000)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_event(bench):
    """An event charges every budgeted scope; `charged` is only said when it was capped."""
    bench.budget("tenant:acme/agent:bot", 500)
    answer = bench.event(100, BOT)
    assert answer.status == 201
    assert re.match(r"evt_[0-9a-f]{32}\Z", answer.data["event_id"])
    assert answer.data["status"] == "APPLIED"
    assert "charged" not in answer.data
    assert [one["remaining"]["amount"] for one in answer.data["balances"]] == [900, 400]
    capped = bench.event(450, BOT)
    assert capped.data["charged"] == tokens(400)
    assert bench.amounts("tenant:acme/agent:bot") == (0, 0, 500, 0, True)
    assert bench.amounts() == (500, 0, 500, 0, False)


@pytest.mark.parametrize(
    ("policy", "actual", "code", "after"),
    [
        ("REJECT", 1000, None, (0, 0, 1000, 0, False)),
        ("REJECT", 1001, "BUDGET_EXCEEDED", (1000, 0, 0, 0, False)),
        ("ALLOW_WITH_OVERDRAFT", 1010, None, (-10, 0, 1000, 10, False)),
        ("ALLOW_WITH_OVERDRAFT", 1011, "OVERDRAFT_LIMIT_EXCEEDED", (1000, 0, 0, 0, False)),
        ("ALLOW_IF_AVAILABLE", 1011, None, (0, 0, 1000, 0, True)),
    ],
)
def test_event_policies(bench, policy, actual, code, after):
    """The same policies, on the whole amount."""
    bench.budget("tenant:acme", 1000, overdraft_limit=10)
    answer = bench.event(actual, overage_policy=policy)
    assert (answer.status, answer.error) == ((409, code) if code else (201, None))
    assert bench.amounts() == after


def test_event_states(bench):
    """Over limit and debt do not stop an event; frozen and closed do."""
    bench.budget("tenant:acme", 100, overdraft_limit=50)
    assert bench.event(150, overage_policy="ALLOW_WITH_OVERDRAFT").status == 201
    bench.budget("tenant:acme", 100, overdraft_limit=10)
    assert bench.amounts() == (-50, 0, 100, 50, True)
    assert bench.event(1).data["charged"] == tokens(0)
    bench.authority.freeze("tenant:acme")
    assert bench.event(1).error == "BUDGET_FROZEN"
    bench.authority.close("tenant:acme")
    assert bench.event(1).error == "BUDGET_CLOSED"


def test_not_found(bench):
    """An id that never was is a 404, whatever it looks like."""
    for id in ("rsv_" + "0" * 32, "x", "é" * 128, "\0", "\n"):
        for answer in (bench.commit(id), bench.release(id), bench.extend(id), bench.get(id)):
            assert (answer.status, answer.error) == (404, "NOT_FOUND")
    for id in ("", "x" * 129, "\ud800"):
        for answer in (bench.commit(id), bench.release(id), bench.extend(id), bench.get(id)):
            assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_of_another_tenant(bench):
    """A reservation of another tenant is a 403, before anything of its state is told."""
    made = bench.reserve(100)
    other = Caller("other")
    for _ in range(2):
        for name in ("commit", "release", "extend", "get"):
            answer = getattr(bench, name)(made.id, caller=other)
            assert (answer.status, answer.error) == (403, "FORBIDDEN")
        bench.release(made.id)  # the second time it is finalized


def test_commit_metadata(bench):
    """What a commit says is kept with the reservation, beside what the reserve said."""
    made = bench.reserve(100, metadata={"a": [1, 2.5, None, "é"]})
    assert bench.get(made.id).data["metadata"] == {"a": [1, 2.5, None, "é"]}
    bench.commit(made.id, 100, metadata={"b": True}, metrics={"tokens_input": 5, "custom": {"x": 1}})
    shown = bench.get(made.id).data
    assert shown["metadata"] == {"a": [1, 2.5, None, "é"]}
    assert shown["committed_metadata"] == {"b": True}
