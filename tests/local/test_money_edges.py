"""Where money could be lost, doubled or refused: what several rules together come to, and the ends of ranges."""

from __future__ import annotations

import datetime

import pytest

from cycles_lite.local import budgets, funding, ledger, periods, reads, schema
from cycles_lite.protocol.values import Amount


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:30:00-01:00"])
def test_an_anchor_that_is_no_date_in_utc(bench, text):
    """It is one where it was said, and the periods are counted from it as from any other."""
    assert periods.read_anchor(text) == text
    made = bench.budget(period="day", starts=datetime.datetime.fromisoformat(text))
    assert made.anchor == text
    assert made.period_start_ms <= bench.clock.now < made.period_end_ms
    assert bench.authority.check() == []


@pytest.mark.parametrize("policy", periods.ROLLOVER_POLICIES)
def test_a_policy_that_is_new_keeps_nothing(bench, policy):
    """What was credited or debited before is no carried amount: the budget has what the operator says."""
    for operation, amount in (("DEBIT", 15), ("CREDIT", 15)):
        bench.budget(amount=20, period="day", rollover_policy="NONE")
        bench.authority.fund("tenant:acme", Amount.tokens(amount), operation)
        assert bench.budget(amount=20, rollover_policy=policy).allocated == 20


def plans(db, statements):
    return [row[-1] for one in statements for row in db.execute("EXPLAIN QUERY PLAN " + one, [1] * one.count("?"))]


def test_what_sqlite_3_8_needs(bench):
    """It finds a partial index by a bound on its column, and for the last table of a compound statement alone; without
    one, `INDEXED BY` is an error, and each transaction would look at every row."""
    with bench.authority._ledger.reading() as (db, _):
        for plan in plans(db, [budgets._HOLDS, funding._COUNT, funding._LET_GO]):
            assert plan.startswith("SEARCH")
            assert "reservations_due (deadline_ms>?)" in plan
        partial = db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'").fetchall()
        last = ledger._ANY_DUE.rindex("FROM ")
        assert [schema.RESERVATIONS in part for part in (ledger._ANY_DUE[:last], ledger._ANY_DUE[last:])] == [
            False,
            True,
        ]
        assert not any(name.startswith("budgets") for (name,) in partial)
        assert [plan for plan in plans(db, [ledger._ANY_DUE]) if "SCAN" in plan] == []
        asked: list[str] = []
        db.set_trace_callback(lambda one: asked.append(one))
        for status in ("ACTIVE", "EXPIRED"):
            reads.list_reservations(
                db, bench.clock.now, reads.list_filters({"status": status, "sort_by": "reserved"}), "acme"
            )
        db.set_trace_callback(None)
        with_index = [one for one in asked if "INDEXED BY" in one]
        assert with_index
        assert not any("(SELECT" in one for one in with_index)
