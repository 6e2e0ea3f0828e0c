"""Budgets by the day, the week, the month or hours: boundaries, what a budget is after one, and who closes a period."""

from __future__ import annotations

import calendar
import datetime
import itertools
import struct

import pytest
from hypothesis import example, given, settings, strategies as st

from cycles_lite.errors import TransportError, TransportTimeout, ValidationError
from cycles_lite.local import instants, ledger, periods, rules
from cycles_lite.local.authority import Caller
from cycles_lite.local.failures import UnreadableError
from cycles_lite.local.rules import Budget
from cycles_lite.protocol.values import Amount
from cycles_lite.runtime.clock import monotonic

from .helpers import READERS, START, Bench
from .processes import finish, start

MAX = 2**63 - 1
HOUR = 3600 * 1000
DAY = 24 * HOUR
EPOCH = datetime.datetime(1970, 1, 1)


def ms(text):
    """Milliseconds since 1970; with no offset, of UTC."""
    text += "T00:00" if len(text) == 10 else ""
    return instants.nanoseconds(text if "+" in text or text[16:].count("-") else text + "Z") // 10**6


# ---- Boundaries ----

GRIDS = [
    # period, anchor, an instant, the boundary at or before it, the next one
    ("day", "2026-11-01T00:00Z", "2026-11-15T12:00", "2026-11-15", "2026-11-16"),
    ("day", "2026-11-01T00:00Z", "2026-11-15", "2026-11-15", "2026-11-16"),
    ("day", "2026-11-01T00:00Z", "2026-11-14T23:59:59.999", "2026-11-14", "2026-11-15"),
    ("day", "2026-11-01T06:30+01:00", "2026-11-15", "2026-11-14T05:30", "2026-11-15T05:30"),
    ("day", "2030-01-01T00:00Z", "2026-11-15T01:00", "2026-11-15", "2026-11-16"),
    ("week", "2026-11-02T00:00Z", "2026-11-15T12:00", "2026-11-09", "2026-11-16"),
    ("week", "2026-11-02T00:00-05:00", "2026-11-16T04:59", "2026-11-09T05:00", "2026-11-16T05:00"),
    ("12h", "2026-11-01T03:00Z", "2026-11-15T12:00", "2026-11-15T03:00", "2026-11-15T15:00"),
    ("5h", "2026-11-01T00:00Z", "2026-10-31T23:59", "2026-10-31T19:00", "2026-11-01"),
    ("8784h", "2024-01-01T00:00Z", "2024-12-31T23:00", "2024-01-01", "2025-01-01"),
    ("month", "2026-11-01T00:00Z", "2026-11-15T12:00", "2026-11-01", "2026-12-01"),
    ("month", "2026-11-15T00:00+01:00", "2026-11-14T23:00", "2026-11-14T23:00", "2026-12-14T23:00"),
    ("month", "2026-11-15T00:00+01:00", "2026-11-14T22:59", "2026-10-14T23:00", "2026-11-14T23:00"),
    ("month", "2026-01-31T00:00Z", "2026-02-15", "2026-01-31", "2026-02-28"),
    ("month", "2026-01-31T00:00Z", "2026-03-01", "2026-02-28", "2026-03-31"),
    ("month", "2026-01-31T00:00Z", "2026-04-30", "2026-04-30", "2026-05-31"),
    ("month", "2026-01-30T12:00Z", "2028-02-29T11:59", "2028-01-30T12:00", "2028-02-29T12:00"),
    ("month", "2024-02-29T00:00Z", "2025-03-01", "2025-02-28", "2025-03-29"),
    ("month", "2024-02-29T00:00Z", "1900-02-28T12:00", "1900-02-28", "1900-03-29"),
    ("month", "2024-02-29T00:00Z", "2000-02-28T12:00", "2000-01-29", "2000-02-29"),
    # The first of May where the anchor is, while it is still April in UTC; February has no 31st there either.
    ("month", "2026-05-01T00:30+14:00", "2026-04-30T10:29", "2026-03-31T10:30", "2026-04-30T10:30"),
    ("month", "2026-03-31T23:30-12:00", "2026-03-01T11:30", "2026-03-01T11:30", "2026-04-01T11:30"),
    ("month", "0001-01-31T00:00Z", "9999-12-31T12:00", "9999-12-31", "9999-12-31"),
]


@pytest.mark.parametrize(("period", "anchor", "instant", "before", "after"), GRIDS)
def test_boundaries(period, anchor, instant, before, after):
    grid = periods.grid(period, anchor)
    number = grid.number(ms(instant))
    expected = ms(after) + (31 * DAY if after == before else 0)  # January 10000 has no text
    assert (grid.boundary(number), grid.boundary(number + 1)) == (ms(before), expected)


def months(anchor, offset, count):
    """A tiny model of the boundaries from an anchor on, by Python's calendar; in milliseconds."""
    local = anchor + datetime.timedelta(minutes=offset)
    year, month = local.year, local.month
    for _ in range(count):
        day = min(local.day, calendar.monthrange(year, month)[1])
        yield (local.replace(year=year, month=month, day=day) - datetime.timedelta(minutes=offset) - EPOCH)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)


OFFSETS = st.integers(-23 * 60 - 59, 23 * 60 + 59)


@given(st.datetimes(EPOCH, datetime.datetime(2100, 1, 1)), OFFSETS, st.integers(0, 40), st.integers(0, 31 * DAY))
def test_months_against_the_calendar(anchor, offset, number, behind):
    """Each boundary is where the calendar has it, and each instant is in the period that the boundaries make."""
    anchor = anchor.replace(microsecond=0)
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    text = periods.read_anchor(anchor.replace(tzinfo=datetime.timezone.utc).astimezone(zone))
    grid = periods.grid("month", text)
    expected = [span // datetime.timedelta(milliseconds=1) for span in months(anchor, offset, 42)]
    assert [grid.boundary(n) for n in range(42)] == expected
    instant = min(expected[number] + behind, expected[number + 1] - 1)
    assert grid.number(instant) == number


ANCHORS = st.builds(
    lambda local, offset: periods.read_anchor(
        local.replace(tzinfo=datetime.timezone(datetime.timedelta(minutes=offset)))
    ),
    st.datetimes(),
    OFFSETS,
)
PERIODS = st.sampled_from(["day", "week", "month", "1h", "7h", "8784h"])
INSTANTS = st.one_of(st.integers(-(10**14), 10**15), st.integers(-MAX - 1, MAX))


@given(PERIODS, ANCHORS, INSTANTS)
@example("month", "0001-01-31T00:00:00+00:00", MAX)
@example("month", "9999-12-31T00:00:00-23:59", -MAX - 1)
@example("8784h", "9999-12-31T00:00:00+00:00", -MAX - 1)
def test_every_instant_is_in_one_period(period, anchor, instant):
    """Any int64 is: the calendar goes on beyond Python's, and the ends of int64 are the last boundaries."""
    grid = periods.grid(period, anchor)
    number = grid.number(instant)
    before, after = grid.boundary(number), grid.boundary(number + 1)
    assert before <= instant < after or after == MAX == instant
    assert -MAX - 1 <= before < after <= MAX or after == MAX
    if -MAX <= before < after < MAX:
        assert grid.number(before) == number
        assert grid.number(before - 1) == number - 1
        assert grid.number(after) == number + 1


@given(ANCHORS)
def test_an_anchor_is_read_again_as_it_was(anchor):
    assert periods.read_anchor(anchor) == anchor


@pytest.mark.parametrize(
    ("period", "anchor"),
    [
        ("day", "2023-11-14T00:00:00+00:00"),
        ("12h", "2023-11-14T00:00:00+00:00"),
        ("week", "2023-11-13T00:00:00+00:00"),
        ("month", "2023-11-01T00:00:00+00:00"),
    ],
)
def test_where_periods_begin_when_nobody_says_so(period, anchor):
    """At the start of this day, Monday or month of UTC: 2023-11-14 was a Tuesday. A clock may be anywhere."""
    assert periods.default_anchor(period, START) == anchor
    for now in (-MAX - 1, MAX):
        periods.grid(period, periods.default_anchor(period, now))


# ---- What operators say ----


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("day", "day"),
        ("week", "week"),
        ("month", "month"),
        ("never", "never"),
        (1, "1h"),
        (8784, "8784h"),
        ("12h", "12h"),
    ],
)
def test_a_period_is_read(given, read):
    assert periods.read_period(given) == read


@pytest.mark.parametrize(
    "given",
    ["", "year", "Month", "0h", "012h", "8785h", "12", "12 h", "h", "12h\n", 0, -1, 8785, True, 1.5, b"day", []],
)
def test_what_is_no_period(given):
    with pytest.raises(ValidationError, match="period"):
        periods.read_period(given)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("2026-11-15T00:00+01:00", "2026-11-15T00:00:00+01:00"),
        ("2026-11-15T00:00:00.0019Z", "2026-11-15T00:00:00.001+00:00"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 678, datetime.timezone.utc), "2026-01-02T03:04:05+00:00"),
    ],
)
def test_a_start_is_read(given, read):
    assert periods.read_anchor(given) == read


@pytest.mark.parametrize(
    "given",
    [
        "2026-11-15",
        "2026-11-15T00:00",
        "2026-02-29T00:00Z",
        datetime.datetime(2026, 1, 1),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(seconds=3208))),
        datetime.date(2026, 1, 1),
        1,
        None,
    ],
)
def test_what_is_no_start(given):
    """Above all, one that does not say in which offset it is."""
    with pytest.raises(ValidationError, match=r"starts: .* an offset"):
        periods.read_anchor(given)


# ---- What a budget is after a boundary ----


def monthly(allocated=20, policy="NONE", granted=None, **fields):
    made = Budget("tenant:acme", "TOKENS", allocated, rollover_policy=policy, **fields)
    made = periods.begun(made, ms("2026-11-15"), "month", "2026-11-01T00:00:00+00:00", -MAX)
    return made._replace(granted=allocated if granted is None else granted)


ROLLS = [
    # policy, granted, allocated, spent, reserved, debt; allocated afterwards
    ("NONE", 20, 20, 5, 0, 0, 20),
    ("NONE", 20, 25, 25, 0, 0, 25),
    ("CARRY_FORWARD", 20, 20, 5, 0, 0, 35),
    ("CARRY_FORWARD", 20, 35, 5, 0, 0, 50),
    ("CARRY_FORWARD", 20, 20, 20, 0, 5, 20),
    ("CARRY_FORWARD", 20, 20, 5, 10, 0, 25),
    ("CARRY_FORWARD", 20, 20, 0, 0, 5, 35),
    ("CARRY_FORWARD", 20, 3, 0, 0, 0, 23),
    ("CARRY_FORWARD", MAX, MAX, 0, 0, 0, MAX),
    ("CARRY_FORWARD", 0, MAX, 0, MAX, MAX, MAX - 1),
    ("CAP_AT_ALLOCATED", 20, 20, 5, 0, 0, 35),
    ("CAP_AT_ALLOCATED", 20, 40, 5, 0, 0, 40),
    ("CAP_AT_ALLOCATED", 20, 20, 30, 0, 0, 20),
    ("CAP_AT_ALLOCATED", 0, 40, 5, 0, 0, 0),
]


@pytest.mark.parametrize(("policy", "granted", "allocated", "spent", "reserved", "debt", "then"), ROLLS)
def test_what_is_allocated_next(policy, granted, allocated, spent, reserved, debt, then):
    budget = monthly(allocated, policy, granted, spent=spent, reserved=reserved, debt=debt, is_over_limit=True)
    closed, made = periods.rolled(budget, ms("2026-12-01"))
    assert closed == (*budget[:2], ms("2026-11-01"), ms("2026-12-01"), allocated, spent, debt)
    assert made == budget._replace(
        allocated=then,
        spent=0,
        is_over_limit=debt > 0,
        period_start_ms=ms("2026-12-01"),
        period_end_ms=ms("2027-01-01"),
    )


AMOUNTS = st.one_of(st.integers(0, 100), st.integers(0, MAX), st.just(MAX))


@given(
    st.builds(monthly, AMOUNTS, st.sampled_from(periods.ROLLOVER_POLICIES), AMOUNTS, spent=AMOUNTS, reserved=AMOUNTS)
    .flatmap(
        lambda one: st.builds(lambda debt, limit: one._replace(debt=debt, overdraft_limit=limit), AMOUNTS, AMOUNTS)
    )
    .filter(rules.is_legal)
)
def test_a_budget_stays_legal(budget):
    """Whatever it was; nothing is made of nothing, and what is held and owed stays."""
    _, made = periods.rolled(budget, ms("2026-12-15"))
    assert rules.is_legal(made)
    assert (made.spent, made.reserved, made.debt) == (0, budget.reserved, budget.debt)
    assert made.is_over_limit == (budget.debt > budget.overdraft_limit)
    assert made.allocated <= max(budget.allocated, budget.granted + max(0, budget.remaining))
    assert periods.fault(made, made.period_start_ms) is None


def test_what_sets_the_allocation():
    """Without a period nothing is remembered; with one, what is allocated now is what the next one begins with."""
    assert periods.allocation_set(Budget("tenant:acme", "TOKENS", 5)).granted is None
    assert periods.allocation_set(monthly(20)._replace(allocated=5)).granted == 5


# ---- Who closes a period ----

#: START is in this hour, and 13 min 20 s in it.
HOUR_OF_START = START // HOUR * HOUR


@pytest.fixture
def hourly():
    """An authority whose budget of 1000 TOKENS is for an hour."""
    with Bench() as bench:
        bench.budget(period=1)
        yield bench
        assert bench.authority.check() == []


def told(bench):
    """The closed periods without their scope and unit; times in hours since START's."""
    return [
        ((a - HOUR_OF_START) / HOUR, (b - HOUR_OF_START) / HOUR, *rest)
        for _, _, a, b, *rest in bench.authority.history()
    ]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_period_is_closed_by_whoever_comes(url, kind, reader):
    """Any operation does so, readers and refused ones too; at the boundary, and not before."""
    with Bench(url if kind == "file" else "sqlite://") as bench:
        bench.budget(period=1)
        made = bench.reserve(1, ttl_ms=DAY)
        bench.event(7)
        for now, spent in ((HOUR_OF_START + HOUR - 1, 7), (HOUR_OF_START + HOUR, 0)):
            bench.clock.now = now
            READERS[reader](bench, made)
            with bench.authority._ledger.reading() as (db, _):
                assert db.execute("SELECT spent FROM budgets").fetchone() == (spent,)
        assert told(bench) == [(0, 1, 1000, 7, 0)]


def test_the_whole_budget_is_there_again(hourly):
    """A commit counts in the period in which it is made, whenever it was reserved; what is held stays held."""
    made = hourly.reserve(600)
    assert hourly.reserve(600).error == "BUDGET_EXCEEDED"
    hourly.clock.now = HOUR_OF_START + HOUR - 1
    made = hourly.reserve(100)
    hourly.event(50)
    hourly.clock.now += 1
    assert hourly.amounts()[:3] == (900, 100, 0)
    hourly.commit(made.id, 80)
    assert hourly.amounts()[:3] == (920, 0, 80)
    assert told(hourly) == [(0, 1, 1000, 50, 0)]
    assert hourly.balances().data["balances"][0]["allocated"]["amount"] == 1000


def test_boundaries_that_passed_at_once(hourly):
    """They are closed one by one, in their order."""
    hourly.budget(amount=20, rollover_policy="CARRY_FORWARD")
    hourly.event(5)
    hourly.clock.now += 3 * HOUR
    assert hourly.authority.budgets()[0].allocated == 20 + 15 + 20 + 20
    assert told(hourly) == [(0, 1, 20, 5, 0), (1, 2, 35, 0, 0), (2, 3, 55, 0, 0)]


@pytest.mark.parametrize("at_once", [1, 3, 200])
def test_holds_and_boundaries_come_in_the_order_of_time(hourly, monkeypatch, at_once):
    """A hold that ends before a boundary is left to the next period; one that ends later is still held there."""
    monkeypatch.setattr(ledger, "CATCH_UP_AT_ONCE", at_once)
    hourly.budget(amount=20, rollover_policy="CARRY_FORWARD")
    to_boundary = HOUR_OF_START + HOUR - START
    hourly.reserve(1, ttl_ms=to_boundary - 1, grace_period_ms=0)  # its last instant is the last of the hour
    hourly.reserve(2, ttl_ms=to_boundary, grace_period_ms=0)
    hourly.reserve(4, ttl_ms=to_boundary + HOUR // 2, grace_period_ms=0)
    hourly.clock.now += 2 * HOUR
    assert hourly.amounts()[:3] == (20 + 20 + (20 - 6) - 0, 0, 0)
    assert told(hourly) == [(0, 1, 20, 0, 0), (1, 2, 34, 0, 0)]


def test_a_debt_is_not_forgiven(hourly):
    """It stays, and so does the mark of a budget that owes more than it may; one that only had capped is free again."""
    hourly.budget(amount=20, overdraft_limit=10)
    hourly.budget("tenant:other", 20, period=1)
    hourly.event(28, overage_policy="ALLOW_WITH_OVERDRAFT")
    hourly.budget(amount=20, overdraft_limit=5)
    hourly.event(28, {"tenant": "other"}, caller=Caller("other"))
    assert [hourly.amounts(scope)[3:] for scope in ("tenant:acme", "tenant:other")] == [(8, True), (0, True)]
    hourly.clock.now += HOUR
    assert [hourly.amounts(scope)[3:] for scope in ("tenant:acme", "tenant:other")] == [(8, True), (0, False)]
    assert told(hourly) == [(0, 1, 20, 20, 8), (0, 1, 20, 20, 0)]
    assert hourly.reserve(1).error == "OVERDRAFT_LIMIT_EXCEEDED"


def test_a_clock_that_goes_back(hourly):
    """It never opens a period again, and closes none a second time."""
    hourly.event(5)
    hourly.clock.now += 2 * HOUR
    hourly.event(6)
    for now in (START, START + HOUR, HOUR_OF_START + 3 * HOUR - 1, START - DAY):
        hourly.clock.now = now
        hourly.event(1)
    assert hourly.amounts()[2] == 10
    hourly.clock.now = START + 3 * HOUR
    hourly.authority.budgets()
    assert told(hourly) == [(0, 1, 1000, 5, 0), (1, 2, 1000, 0, 0), (2, 3, 1000, 10, 0)]


def test_a_clock_that_is_years_ahead(hourly, monkeypatch):
    """Few enough rows are written, and the last ones as always; nothing is spent that was not."""
    monkeypatch.setattr(periods, "MOST_BEHIND", 50)
    hourly.event(5)
    hourly.clock.now += 100_000 * HOUR
    assert hourly.amounts()[:3] == (1000, 0, 0)
    assert told(hourly) == [
        (0, 1, 1000, 5, 0),
        (1, 99_950, 1000, 0, 0),
        *[(n, n + 1, 1000, 0, 0) for n in range(99_950, 100_000)],
    ]


def test_a_budget_that_waits_for_a_clock_that_was_ahead(hourly):
    """The same period goes on. Another one starts now, and what was spent before it counts in it again."""
    hourly.event(5)
    hourly.clock.now += 2 * HOUR
    hourly.event(6)
    hourly.clock.now += 1000 * HOUR
    hourly.event(7)
    hourly.clock.now = START + HOUR
    assert hourly.budget(period=1).period_start_ms == HOUR_OF_START + 1002 * HOUR
    assert hourly.authority.set_budget("tenant:acme", Amount.tokens(9), period="never").spent == 7
    assert len(told(hourly)) == 1002
    begun = hourly.budget(period=1)
    assert (begun.period_start_ms, begun.period_end_ms, begun.spent) == (
        HOUR_OF_START + HOUR,
        HOUR_OF_START + 2 * HOUR,
        13,
    )
    assert told(hourly) == [(0, 1, 1000, 5, 0)]


def test_the_last_instant_that_there_is(hourly, monkeypatch):
    """Nothing is written, whatever a clock says that has come to the end of int64; and nothing is lost."""
    monkeypatch.setattr(periods, "MOST_BEHIND", 5)
    hourly.event(5)
    before = hourly.authority.budgets()
    hourly.clock.now = MAX
    with pytest.raises(TransportError):
        hourly.authority.budgets()
    hourly.clock.now = START
    assert hourly.authority.budgets() == before
    assert told(hourly) == []


def test_closing_many_periods_is_bounded(url, monkeypatch):
    """Where more have ended than can be closed in a call's time, what was closed stays so, and later calls go on."""
    monkeypatch.setattr(ledger, "CATCH_UP_AT_ONCE", 2)
    with Bench(url) as bench:
        bench.budget(period=1)
        bench.event(5)
        bench.clock.now += 40 * HOUR
        clock = bench.authority._ledger.clock

        def slow():
            until = monotonic() + 0.01
            while monotonic() < until:
                pass
            return clock()

        bench.authority._ledger.clock = slow
        calls = 0
        while True:
            calls += 1
            try:
                with bench.authority._ledger.reading(0.05):
                    break
            except TransportTimeout:
                assert calls < 40
        assert calls > 1
        bench.authority._ledger.clock = clock
        assert [row[:2] for row in told(bench)] == [(n, n + 1) for n in range(40)]
        assert sum(row[3] for row in told(bench)) == 5


def test_the_question_does_not_look_at_every_budget(bench):
    """Thousands of periods that go on cost what one does."""

    def steps():
        count = itertools.count()
        with bench.authority._ledger.reading() as (db, now):
            db.set_progress_handler(lambda: next(count) < 0, 1)
            db.execute(ledger._ANY_DUE, (now, now)).fetchone()
            db.set_progress_handler(None, 1)
        return next(count)

    before = steps()
    for number in range(300):
        bench.budget(f"tenant:acme/agent:a{number}", 1, period="month")
    assert steps() < before + 10


# ---- Setting up ----


def test_a_period_goes_on_when_it_is_set_again(hourly):
    """The same call changes nothing; what was carried over stays, until another amount is set."""
    same = {"period": "month", "starts": "2023-10-31T00:00+02:00", "rollover_policy": "CARRY_FORWARD"}
    hourly.budget(amount=20, **same)
    hourly.event(5)
    hourly.clock.now = ms("2023-12-05")
    before = hourly.authority.budgets()[0]
    assert (before.allocated, before.granted, before.spent) == (35, 20, 0)
    assert (before.period_start_ms, before.period_end_ms) == (ms("2023-11-29T22:00"), ms("2023-12-30T22:00"))
    hourly.event(1)
    for again in (same, {}, {"period": "month"}, {**same, "starts": "2023-10-30T22:00:00-00:00"}):
        made = hourly.budget(amount=20, **again)
        is_same = "00-" not in again.get("starts", "")  # the last one is the same instant, but another day of the month
        expected = (35, before.period_start_ms) if is_same else (20, ms("2023-11-30T22:00"))
        assert (made.allocated, made.period_start_ms, made.spent) == (*expected, 1)
    assert hourly.budget(amount=21).allocated == 21
    assert hourly.budget(amount=21, rollover_policy="NONE").allocated == 21
    assert [row[2:] for row in told(hourly)] == [(20, 5, 0)]


def test_another_period_starts_at_the_last_boundary(hourly):
    """What was spent stays spent, and what is closed already is not in two periods."""
    hourly.event(5)
    day = hourly.budget(period="day")
    assert (day.period_start_ms, day.period_end_ms, day.spent) == (START // DAY * DAY, START // DAY * DAY + DAY, 5)
    hourly.budget(period=1)
    hourly.clock.now += HOUR
    hourly.event(6)
    day = hourly.budget(period="day")
    assert (day.period_start_ms, day.period_end_ms, day.spent) == (HOUR_OF_START + HOUR, START // DAY * DAY + DAY, 6)
    anchored = hourly.budget(starts=datetime.datetime.fromtimestamp(START / 1000, datetime.timezone.utc))
    assert (anchored.period, anchored.period_end_ms, anchored.spent) == ("day", START + DAY, 6)
    hourly.clock.now += DAY
    hourly.authority.budgets()
    assert [row[:2] + row[3:] for row in told(hourly)] == [
        (0, 1, 5, 0),
        (1, (START + DAY - HOUR_OF_START) / HOUR, 6, 0),
    ]


def test_never_takes_the_period_away(hourly):
    """Then the budget is spent once, and what was closed is still told."""
    hourly.event(5)
    hourly.clock.now += HOUR
    made = hourly.budget(amount=30, period="never")
    assert made == Budget("tenant:acme", "TOKENS", 30)
    hourly.clock.now += DAY
    assert hourly.authority.budgets() == [made]
    assert told(hourly) == [(0, 1, 1000, 5, 0)]


def test_add_budget_with_a_period(hourly):
    """It is that of the first call."""
    add = hourly.authority.add_budget
    assert not add("tenant:acme", Amount.tokens(1), period="day")
    assert add("tenant:new", Amount.tokens(1), period="day", rollover_policy="CAP_AT_ALLOCATED")
    assert [(one.period, one.rollover_policy) for one in hourly.authority.budgets()] == [
        ("1h", "NONE"),
        ("day", "CAP_AT_ALLOCATED"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": "2026-11-15T00:00Z"}, "has none"),
        ({"rollover_policy": "NONE"}, "has none"),
        ({"period": "never", "starts": "2026-11-15T00:00Z"}, "has none"),
        ({"period": "year"}, "period: 'year'"),
        ({"period": "day", "starts": "2026-11-15"}, "starts: '2026-11-15' is not a date-time with an offset"),
        (
            {"period": "day", "rollover_policy": "none"},
            "rollover_policy: 'none' is not one of NONE, CARRY_FORWARD, CAP",
        ),
    ],
)
def test_what_is_refused(bench, options, message):
    before = bench.authority.budgets()
    for call in (bench.authority.set_budget, bench.authority.add_budget):
        with pytest.raises(ValidationError, match=message):
            call("tenant:acme" if call == bench.authority.set_budget else "tenant:new", Amount.tokens(1), **options)
    assert bench.authority.budgets() == before


def test_history(bench):
    """Of a scope, of a tenant and what is below, of a unit; the oldest first."""
    for scope in ("tenant:acme", "tenant:acme/agent:b", "tenant:acme-2", "tenant:beta"):
        bench.budget(scope, 5, period=1)
    bench.authority.set_budget("tenant:acme", Amount.credits(5), period=1)
    bench.clock.now += 2 * HOUR
    history = bench.authority.history
    assert len(history()) == 10
    assert [one.end_ms for one in history()] == [HOUR_OF_START + HOUR] * 5 + [HOUR_OF_START + 2 * HOUR] * 5
    assert {one.scope for one in history(tenant="acme")} == {"tenant:acme", "tenant:acme/agent:b"}
    assert [one.unit for one in history("Tenant:acme")] == ["CREDITS", "TOKENS"] * 2
    assert [one[2] for one in history("tenant:acme", "TOKENS")] == [HOUR_OF_START, HOUR_OF_START + HOUR]
    assert history("tenant:acme", tenant="beta") == history("tenant:nobody") == history(unit="RISK_POINTS") == []
    for wrong in ({"scope": "acme"}, {"unit": "EUROS"}, {"tenant": "A"}):
        with pytest.raises(ValidationError):
            history(**wrong)


# ---- What should not be ----

DAMAGE = {
    "UPDATE budgets SET period_start_ms = period_end_ms": "cannot be",
    "UPDATE budgets SET period_end_ms = period_end_ms + 1": "cannot be",
    "UPDATE budgets SET period_end_ms = NULL": "cannot be",
    "UPDATE budgets SET period_start_ms = 0": "cannot be",
    "UPDATE budgets SET period = 'year'": "cannot be",
    "UPDATE budgets SET anchor = 'now'": "cannot be",
    "UPDATE budgets SET granted = 'x'": "cannot be",
    "UPDATE budgets SET rollover_policy = 'ALL'": "cannot be",
    "UPDATE budgets SET period = NULL": "no period",
    "UPDATE periods SET start_ms = end_ms": "closed period",
    "UPDATE periods SET spent = -1": "closed period",
    "UPDATE periods SET start_ms = start_ms - 1 WHERE end_ms = (SELECT max(end_ms) FROM periods)": "overlaps",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_finds_what_is_wrong(bench, damage):
    bench.budget(period=1)
    bench.clock.now += 2 * HOUR
    assert bench.authority.check() == []
    with bench.authority._ledger.writing() as (db, _):
        before = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in ("budgets", "periods")}
        db.execute(damage)
    found = bench.authority.check()
    assert found
    assert DAMAGE[damage] in found[0]
    with bench.authority._ledger.writing() as (db, _):
        for table, rows in before.items():
            db.execute(f"DELETE FROM {table}")
            db.executemany("INSERT INTO {} VALUES ({})".format(table, ",".join("?" * len(rows[0]))), rows)


@pytest.mark.parametrize(
    "damage",
    [
        "period = 'year'",
        "period = NULL",
        "anchor = 'now'",
        "anchor = NULL",
        "period_start_ms = NULL",
        "rollover_policy = ''",
    ],
)
def test_a_period_that_cannot_be_read(url, damage):
    """It is an error of the file, and nothing is closed or spent."""
    with Bench(url) as bench:
        bench.budget(period=1)
        with bench.authority._ledger.writing() as (db, _):
            db.execute("UPDATE budgets SET " + damage)
        bench.clock.now += HOUR
        with pytest.raises(UnreadableError, match="cannot be read"):
            bench.authority.budgets()
        bench.clock.now -= HOUR
        assert bench.authority.history() == []
        assert bench.authority.budgets()[0].period_end_ms == HOUR_OF_START + HOUR


def test_a_closed_period_that_cannot_be_read(hourly):
    hourly.clock.now += HOUR
    hourly.authority.budgets()
    with hourly.authority._ledger.writing() as (db, _):
        db.execute("UPDATE periods SET spent = 'x'")
    with pytest.raises(UnreadableError, match="no closed period"):
        hourly.authority.history()
    with hourly.authority._ledger.writing() as (db, _):
        db.execute("UPDATE periods SET spent = 0")


# ---- Many at the boundary ----

SPEND = """
import mmap, struct, sys
from cycles_lite.local.authority import Authority
from cycles_lite.protocol import wire

path, clock_path, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(clock_path, "rb") as file:
    shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
asked = {
    "subject": {"tenant": "acme", "agent": "bot%d" % (number % 2)},
    "action": {"kind": "k", "name": "n"},
    "ttl_ms": 86400000,
}
keys = iter(range(10**6))
committed = 0

def call(operation, body, id=None):
    body = {"idempotency_key": "%d-%d" % (number, next(keys)), **body}
    answer = authority.answer(wire.Call(operation, id, {}, body, {}, None, 30.0, 30.0))
    assert answer.status == 200, answer.data
    return answer.data

def clock():
    return struct.unpack("<q", shared[:8])[0]

with Authority("sqlite://" + path, create=False, timeout=60.0, clock=clock) as authority:
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, "stop\\n"):
        for n in range(int(line)):
            made = call(wire.CREATE_RESERVATION, {**asked, "estimate": {"unit": "TOKENS", "amount": 5}})
            actual = 5 + n % 2
            call(wire.COMMIT_RESERVATION, {"actual": {"unit": "TOKENS", "amount": actual}}, made["reservation_id"])
            committed += actual
        print("done", flush=True)
print(committed, flush=True)
"""

PROCESSES, BOUNDARIES = 8, 20


@pytest.fixture
def spenders(url, path, tmp_path):
    """Processes that spend in a file on a clock of the test's, and what sets the clock."""
    shared = str(tmp_path / "clock")
    with open(shared, "wb") as file:
        file.write(struct.pack("<q", START))

    def tell(now):
        with open(shared, "r+b") as file:
            file.write(struct.pack("<q", now))

    with Bench(url) as bench:
        processes = [start(SPEND, path, shared, number) for number in range(PROCESSES)]
        yield bench, processes, tell
    for process in processes:
        process.kill()
        process.communicate()


def test_many_processes_at_the_boundary(spenders):
    """Each boundary is passed once, while everybody spends, and all that was committed is in one period or another."""
    bench, processes, tell = spenders
    bench.budget(amount=10**6, period=1, rollover_policy="CARRY_FORWARD")
    bench.budget("tenant:acme/agent:bot1", 10**6, period=1)
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for number in range(1, BOUNDARIES + 1):
        for process in processes:
            process.stdin.write(b"2\n")
            process.stdin.flush()
        assert processes[number % PROCESSES].stdout.readline() == b"done\n"
        tell(START + number * HOUR)  # the others are somewhere in the midst of their work
        for process in processes:
            assert process is processes[number % PROCESSES] or process.stdout.readline() == b"done\n"
    committed = [int(finish(process, b"stop\n")) for process in processes]
    bench.clock.now = START + BOUNDARIES * HOUR
    for budget, spent in zip(bench.authority.budgets(), (sum(committed), sum(committed[1::2]))):
        closed = bench.authority.history(budget.scope)
        assert [one.start_ms for one in closed] == [HOUR_OF_START + n * HOUR for n in range(BOUNDARIES)]
        assert [one.end_ms for one in closed] == [HOUR_OF_START + n * HOUR for n in range(1, BOUNDARIES + 1)]
        assert sum(one.spent for one in closed) + budget.spent == spent > 0
        assert budget.reserved == 0
    assert bench.authority.check() == []


@settings(max_examples=20)
@given(
    st.sampled_from(periods.ROLLOVER_POLICIES),
    st.lists(
        st.tuples(st.integers(0, 5 * HOUR), st.integers(0, 40), st.sampled_from(["event", "hold", "back"])), max_size=15
    ),
)
def test_random_histories(policy, steps):
    """Against a tiny model: whoever comes, and whenever; a clock that goes back changes nothing."""
    with Bench(validates=False) as bench:
        bench.budget(amount=50, period=1, rollover_policy=policy)
        allocated, spent, held, now, rows = 50, 0, [], START, []
        for ahead, amount, what in steps:
            bench.clock.now = now = now + ahead
            while (len(rows) + 1) * HOUR + HOUR_OF_START <= now:
                end = (len(rows) + 1) * HOUR + HOUR_OF_START
                held = [one for one in held if one[0] >= end]
                left = max(0, allocated - spent - sum(one[1] for one in held))
                rows.append((len(rows), len(rows) + 1, allocated, spent, 0))
                carried = {"NONE": 0, "CARRY_FORWARD": left, "CAP_AT_ALLOCATED": min(left, 50)}[policy]
                allocated, spent = 50 + carried, 0
            held = [one for one in held if one[0] >= now]
            remaining = allocated - spent - sum(one[1] for one in held)
            if what == "event":
                assert (bench.event(amount, overage_policy="REJECT").status == 201) == (amount <= remaining)
                spent += amount if amount <= remaining else 0
            elif what == "hold":
                made = bench.reserve(amount, ttl_ms=HOUR, grace_period_ms=0)
                assert (made.status == 200) == (amount <= remaining)
                held += [(now + HOUR, amount)] if made.status == 200 else []
            else:
                bench.clock.now = now - HOUR
                bench.balances()
                bench.clock.now = now
            budget = bench.authority.budgets()[0]
            assert (budget.allocated, budget.spent, budget.reserved) == (allocated, spent, sum(one[1] for one in held))
            assert told(bench) == rows
        assert bench.authority.check() == []
