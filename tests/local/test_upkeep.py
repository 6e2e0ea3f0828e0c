"""Expiry and pruning, done lazily by whoever comes along."""

from __future__ import annotations

import pytest

from cycles_lite.local import ledger
from cycles_lite.local.schema import RESERVATIONS
from cycles_lite.protocol.values import Amount

from .helpers import READERS, START, Bench
from .processes import finish, start

DAY = 24 * 3600 * 1000


@pytest.fixture
def made(bench):
    """A reservation of 100 that expires after 10 s and is held for 5 s more."""
    return bench.reserve(100, ttl_ms=10_000)


AT_EXPIRY = START + 10_000
AT_DEADLINE = START + 15_000

STATES = [
    # now, extend, commit, release, get
    (AT_EXPIRY, 200, 200, 200, 200),
    (AT_EXPIRY + 1, 410, 200, 200, 200),
    (AT_DEADLINE, 410, 200, 200, 200),
    (AT_DEADLINE + 1, 410, 410, 410, 410),
    (AT_DEADLINE + 29 * DAY, 410, 410, 410, 410),
    (AT_DEADLINE + 30 * DAY + 1, 404, 404, 404, 404),
]


@pytest.mark.parametrize(("now", "extend", "commit", "release", "get"), STATES)
def test_what_is_still_accepted(bench, made, now, extend, commit, release, get):
    """Extensions until expiry; settlements until expiry plus grace; a GET is 200 ACTIVE until then, 410 after."""
    bench.clock.now = now
    shown = bench.get(made.id)
    assert shown.status == get
    assert shown.data.get("status", "ACTIVE") == "ACTIVE"
    assert bench.extend(made.id, 1).status == extend
    bench.clock.now = now
    assert (bench.commit if now % 2 else bench.release)(made.id).status == (commit if now % 2 else release)
    for answer in (shown, bench.get(made.id)):
        if answer.status == 410:
            assert answer.error == "RESERVATION_EXPIRED"


@pytest.mark.parametrize("reader", READERS)
def test_holds_are_freed_by_whoever_comes(bench, made, reader):
    """Any operation frees what is due, readers and refused ones too; none frees it before."""
    bench.clock.now = AT_DEADLINE
    READERS[reader](bench, made)
    assert _reserved(bench) == 100
    bench.clock.now += 1
    READERS[reader](bench, made)
    assert _reserved(bench) == 0


def _reserved(bench):
    with bench.authority._ledger.reading() as (db, _):
        return db.execute("SELECT reserved FROM budgets").fetchone()[0]


def test_freed_budget_can_be_reserved_at_once(bench, made):
    """The reservation that finds a due hold may have its amount."""
    assert bench.reserve(901).error == "BUDGET_EXCEEDED"
    bench.clock.now = AT_DEADLINE + 1
    assert bench.reserve(1000).status == 200


def test_extension_moves_the_deadline(bench, made):
    """The grace comes after the new expiry."""
    bench.extend(made.id, 20_000)
    bench.clock.now = AT_DEADLINE + 20_000
    assert bench.get(made.id).status == 200
    bench.clock.now += 1
    assert bench.get(made.id).status == 410


def test_no_grace(bench):
    """A grace of 0 ends with the expiry."""
    made = bench.reserve(100, ttl_ms=10_000, grace_period_ms=0)
    bench.clock.now = AT_EXPIRY
    assert bench.get(made.id).status == 200
    bench.clock.now += 1
    assert bench.commit(made.id).error == "RESERVATION_EXPIRED"


def test_expired_ones_are_listed(bench, made):
    """A list shows them as EXPIRED, without an end."""
    bench.clock.now = AT_DEADLINE + 1
    (row,) = bench.list(status="EXPIRED").data["reservations"]
    assert row["status"] == "EXPIRED"
    assert "finalized_at_ms" not in row
    assert bench.listed(status="ACTIVE") == []


def test_many_are_freed(bench, monkeypatch):
    """More than one batch is freed at once, in every scope and unit."""
    monkeypatch.setattr(ledger, "CATCH_UP_AT_ONCE", 7)
    bench.budget("tenant:acme/agent:bot", 1000)
    for _ in range(20):
        bench.reserve(1, ttl_ms=1000)
        bench.reserve(2, {"tenant": "acme", "agent": "bot"}, ttl_ms=1000)
    kept = bench.reserve(3, {"tenant": "acme", "agent": "bot"})
    assert bench.amounts()[1] == 63
    bench.clock.now += 6001
    assert bench.reserve(937).status == 200
    assert bench.amounts()[1] == 940
    assert bench.amounts("tenant:acme/agent:bot")[1] == 3
    assert bench.listed(status="ACTIVE", agent="bot") == [kept.id]


def test_pruning(bench, monkeypatch):
    """Old answers and finished reservations go away in bounded steps; what lives stays."""
    for _ in range(30):
        bench.event(1)
        bench.decide(1)
        bench.commit(bench.reserve(1).id, 1)
        bench.reserve(1)
    assert _rows(bench) == {RESERVATIONS: 60, "settlements": 30, "promises": 60, "replies": 60}
    bench.clock.now += 31 * DAY
    monkeypatch.setattr(ledger, "PRUNE_AT_ONCE", 25)
    live = bench.reserve(1, ttl_ms=DAY)
    assert _rows(bench)[RESERVATIONS] == 61
    bench.clock.now += ledger.PRUNE_EVERY_MS
    for left in (36, 11, 1, 1):
        assert bench.decide(5000).status == 200
        assert _rows(bench)[RESERVATIONS] == left
    assert _rows(bench) == {RESERVATIONS: 1, "settlements": 0, "promises": 1, "replies": 4}
    assert bench.get(live.id).status == 200


def test_what_only_a_replay_needs_goes_after_a_day(bench):
    """The answer to a reservation is dropped with its key; the reservation tells all else for its 30 days."""
    made = bench.reserve(10, metadata={"m": 1})
    bench.commit(made.id, 7, metadata={"c": 2})
    before = bench.get(made.id).data
    bench.clock.now += 2 * DAY
    _pruned(bench)
    assert (_rows(bench)[RESERVATIONS], _rows(bench)["promises"]) == (1, 0)
    assert bench.get(made.id).data == before
    bench.clock.now += 27 * DAY
    _pruned(bench)
    assert bench.get(made.id).data == before
    assert bench.list(include="metadata,committed_metadata").data["reservations"] == [before]


def test_a_clock_that_is_ahead_for_a_moment_drops_nothing(bench):
    """As of a machine that has just started. Back again, what was charged is not charged once more, nor held."""
    charged = bench.event(7, idempotency_key="e")
    paid = bench.reserve(10)
    bench.commit(paid.id, 5, idempotency_key="c")
    held = bench.reserve(10, idempotency_key="k", ttl_ms=DAY)
    while bench.get(held.id).data["expires_at_ms"] < START + 9 * DAY:
        bench.extend(held.id, DAY)
    before, amounts = _rows(bench), bench.amounts()
    for ahead in (8 * DAY, 8 * DAY):
        bench.clock.now += ahead
        for _ in range(3):
            bench.authority.fund("tenant:acme", Amount.tokens(0))
            bench.clock.now += 1
        bench.clock.now = START + 1
        bench.authority.fund("tenant:acme", Amount.tokens(0))
    assert _rows(bench) == before
    assert bench.event(7, idempotency_key="e").data == charged.data
    assert bench.commit(paid.id, 5, idempotency_key="c").data["charged"]["amount"] == 5
    assert bench.reserve(10, idempotency_key="k", ttl_ms=DAY).id == held.id
    assert bench.amounts() == amounts


def test_a_key_whose_answer_went_while_the_clock_was_ahead(bench):
    """A clock that was ahead for two days made keys old; back again, they are forgotten, and nothing breaks."""
    first = bench.reserve(10, idempotency_key="k")
    bench.clock.now += 2 * DAY
    _pruned(bench)
    bench.clock.now = START
    second = bench.reserve(10, idempotency_key="k")
    assert second.status == 200
    assert second.id != first.id
    assert bench.reserve(10, idempotency_key="k").data == second.data


def test_pruning_after_the_clock_was_ahead(bench, monkeypatch):
    """Rows that a clock ten years ahead has made do not keep the others from going, wherever they stand."""
    monkeypatch.setattr(ledger, "PRUNE_AT_ONCE", 10)
    ahead = 3650 * DAY

    def commit(count):
        for _ in range(count):
            bench.commit(bench.reserve(1, ttl_ms=1000, grace_period_ms=0).id, 1)

    commit(3)
    for _ in range(2):
        bench.clock.now += ahead
        commit(25)
        bench.clock.now -= ahead
        commit(25)
    for wait, left in ((31 * DAY, 50), (ahead, 0)):
        bench.clock.now += wait
        _pruned(bench, 12)
        assert _rows(bench)[RESERVATIONS] == _rows(bench)["settlements"] == left


def test_a_number_that_is_used_again(bench):
    """A reservation that was dropped while the clock was behind leaves its answer, which the next one replaces."""
    bench.decide(1)
    first = bench.reserve(10, idempotency_key="k")
    bench.clock.now -= 40 * DAY
    bench.release(first.id)
    bench.clock.now = START - ledger.PRUNE_EVERY_MS
    bench.decide(1)
    bench.clock.now = START
    bench.decide(1)
    assert (_rows(bench)[RESERVATIONS], _rows(bench)["promises"]) == (0, 1)
    second = bench.reserve(20, idempotency_key="k")
    assert second.id != first.id
    assert bench.reserve(20, idempotency_key="k").data == second.data


def test_steps_of_pruning_are_a_while_apart(bench, monkeypatch):
    """Once all is gone, the next step is a while later, and drops what was old before that."""
    steps = []
    prune = ledger.prune
    monkeypatch.setattr(ledger, "prune", lambda db, now: steps.append(now) or prune(db, now))
    for wait in (0, 1, ledger.PRUNE_EVERY_MS - 2, 1, 5):
        bench.clock.now += wait
        bench.decide(1)
    assert steps == [START]


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_pruning_goes_on_after_the_clock_has_jumped(url, jump):
    """The file's last step may be far ahead, or far back: the next process prunes, and then waits."""
    with Bench(url) as first:
        first.budget()
        first.clock.now += jump
        first.decide(1)
    for _ in range(2):
        with Bench(url) as later:
            later.decide(1)
            with later.authority._ledger.reading() as (db, _):
                assert db.execute("SELECT done_at_ms FROM upkeep").fetchone() == (START,)


def test_short_processes_prune_too(url, monkeypatch):
    """Each with two writes, as a cron job has, for two months: the file keeps one month of them, and a few replies."""
    monkeypatch.setattr(ledger, "PRUNE_AT_ONCE", 3)
    for turn in range(120):
        with Bench(url) as short:
            if not turn:
                short.budget(amount=10**9)
            short.clock.now += turn * DAY // 2
            short.commit(short.reserve(1).id, 1)
            if turn % 10 == 9:
                found = _rows(short)
                assert found["promises"] == 4
                assert found[RESERVATIONS] == found["settlements"] == min(turn + 1, 62)


def test_short_processes_catch_up(url, monkeypatch):
    """What was left behind for years goes with the next few writes, of whichever processes."""
    monkeypatch.setattr(ledger, "PRUNE_AT_ONCE", 5)
    with Bench(url) as first:
        first.budget(amount=10**9)
        for _ in range(40):
            first.commit(first.reserve(1).id, 1)
    for turn in range(10):
        with Bench(url) as short:
            short.clock.now += 500 * DAY + ledger.PRUNE_EVERY_MS * bool(turn)
            short.decide(1)
            assert _rows(short)[RESERVATIONS] == max(0, 40 - 5 * turn)


ONE_WRITE = """
import sys
from cycles_lite.local.authority import Authority
from cycles_lite.protocol.values import Amount
now = int(sys.argv[2])
with Authority("sqlite://" + sys.argv[1], clock=lambda: now) as authority:
    authority.fund("tenant:acme", Amount.tokens(1))
"""


def test_real_processes_of_one_write_prune(url, path):
    """Each sees what was old at the last step of any other, and nothing comes before its time."""
    with Bench(url) as first:
        first.budget()
        for _ in range(4):
            first.decide(1)
    due, wait = START + DAY + 1, ledger.PRUNE_EVERY_MS
    for now, left in ((due - 1, 4), (due, 4), (due - 1 + wait, 4), (due + 2 * wait, 0)):
        finish(start(ONE_WRITE, path, now))
        with Bench(url) as bench:
            assert _rows(bench)["replies"] == left


def _pruned(bench, steps=1):
    """Let what is old by now be dropped, in so many steps."""
    bench.decide(1)
    bench.clock.now += ledger.PRUNE_EVERY_MS
    for _ in range(steps):
        bench.decide(1)


def _rows(bench):
    with bench.authority._ledger.reading() as (db, _):
        return {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in (RESERVATIONS, "settlements", "promises", "replies")
        }
