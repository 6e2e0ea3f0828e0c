"""Budgets by the day, the week, the month or a number of hours: when a period ends, and what a budget is then. Pure.

Periods are counted from an anchor, which has an offset, before it as well as after it. The offset is fixed: there is no
summer time.

    period     a boundary is
    day        every 24 hours
    week       every 7 days
    month      in each month at the anchor's day and time, on the last day of a month that has no such day
    12h        every 12 hours; any number from 1 to 8784

A boundary belongs to the period that it begins. There `spent` becomes 0, `reserved` and `debt` stay, and a budget is
over its limit if its debt is. `granted` is the allocation that an operator has set, and `remaining` what the protocol
calls so, just before the boundary:

    rollover_policy     allocated afterwards
    NONE                what it was, with whatever was credited or debited
    CARRY_FORWARD       granted, and what remained of it if anything did
    CAP_AT_ALLOCATED    the same, but no more is carried over than was granted
"""

from __future__ import annotations

import datetime
import functools
import re
from typing import Any, NamedTuple

from ..protocol.checks import INT64_MAX, INT64_MIN, integer, is_a, plain_text, refuse
from . import instants
from .rules import Budget

_HOUR_MS = 3600 * 1000
_DAY_MS = 24 * _HOUR_MS

#: The word that takes a budget's period away.
NEVER = "never"
MONTH = "month"
_HOURS = {"day": 24, "week": 7 * 24, MONTH: 0}
_MOST_HOURS = 8784
_NUMBER_OF_HOURS = re.compile(r"([1-9][0-9]{0,3})h\Z")

NONE = "NONE"
CARRY_FORWARD = "CARRY_FORWARD"
CAP_AT_ALLOCATED = "CAP_AT_ALLOCATED"
ROLLOVER_POLICIES = (NONE, CARRY_FORWARD, CAP_AT_ALLOCATED)

#: How many boundaries that have passed at once are closed one by one. If there are more, as on a clock that is years
#: ahead, all before these are one long period, so that no clock can fill a disk.
MOST_BEHIND = 10_000


class ClosedPeriod(NamedTuple):
    """A budget at the end of a period. Times are in milliseconds since 1970, amounts in the unit."""

    scope: str
    unit: str
    start_ms: int
    #: The boundary, which is the next period's.
    end_ms: int
    allocated: int
    spent: int
    debt: int


# ---- Boundaries ----

_EPOCH = datetime.date(1970, 1, 1).toordinal()
#: The calendar repeats itself after so many years and days.
_CYCLE = (400, 146_097)


class Grid(NamedTuple):
    """The boundaries of a budget's periods, numbered from the anchor, which is number 0."""

    anchor_ms: int
    offset_ms: int
    #: The hours of a period; 0 for months.
    hours: int

    def boundary(self, number: int) -> int:
        """A boundary in milliseconds since 1970, or the end of int64 that it lies behind."""
        if self.hours:
            made = self.anchor_ms + number * self.hours * _HOUR_MS
        else:
            days, time = divmod(self.anchor_ms + self.offset_ms, _DAY_MS)
            month, day = _month(days)
            days = min(_first_day(month + number) + day, _first_day(month + number + 1)) - 1
            made = days * _DAY_MS + time - self.offset_ms
        return max(INT64_MIN, min(made, INT64_MAX))

    def number(self, ms: int) -> int:
        """The number of the last boundary at or before a time."""
        if self.hours:
            return (ms - self.anchor_ms) // (self.hours * _HOUR_MS)
        month, anchors_month = [_month((time + self.offset_ms) // _DAY_MS)[0] for time in (ms, self.anchor_ms)]
        number = month - anchors_month
        return number if self.boundary(number) <= ms else number - 1


@functools.lru_cache(maxsize=128)
def grid(period: str | None, anchor: str | None) -> Grid:
    """The boundaries of a period, counted from an anchor. Raises `ValueError` for what is in no row of ours."""
    found, hours = instants.with_offset(anchor or ""), _HOURS.get(period or "")
    if hours is None:
        match = _NUMBER_OF_HOURS.match(period or "")
        hours = int(match.group(1)) if match else INT64_MAX
    if found is None or hours > _MOST_HOURS:
        raise ValueError(f"{period!r} from {anchor!r} is no period")
    return Grid(instants.last_ms(found[0]), found[1] * 60_000, hours)


def _month(days: int) -> tuple[int, int]:
    """The month in which a day since 1970 is, counted from January of the year 0, and the day in it.

    Python's dates end with the year 9999; this does not.
    """
    cycles, rest = divmod(days, _CYCLE[1])
    day = datetime.date.fromordinal(_EPOCH + rest)
    return (day.year + cycles * _CYCLE[0]) * 12 + day.month - 1, day.day


def _first_day(month: int) -> int:
    """The first day of a month, in days since 1970."""
    year, month = divmod(month, 12)
    cycles, rest = divmod(year - 1970, _CYCLE[0])
    return datetime.date(1970 + rest, month + 1, 1).toordinal() - _EPOCH + cycles * _CYCLE[1]


# ---- What operators say ----


def read_period(value: Any) -> str:
    """A period as budgets have it, or `NEVER`. Raises `ValidationError`."""
    if not is_a(value, str):
        return f"{integer('period', value, 1, _MOST_HOURS)}h"
    word = plain_text(value)
    match = _NUMBER_OF_HOURS.match(word)
    if word in _HOURS or word == NEVER or (match is not None and int(match.group(1)) <= _MOST_HOURS):
        return word
    raise refuse("period", word, f"day, week, month, never, or hours from 1h to {_MOST_HOURS}h")


def read_anchor(starts: Any) -> str:
    """An anchor in canonical form, to the millisecond. Raises `ValidationError`.

    >>> read_anchor("2026-11-15T00:00+01")
    '2026-11-15T00:00:00+01:00'
    """
    text = starts.isoformat() if is_a(starts, datetime.datetime) else starts
    found = instants.with_offset(text) if is_a(text, str) else None
    if found is None:
        raise refuse("starts", starts, "a date-time with an offset, such as 2026-11-15T00:00+01:00")
    return _anchor(instants.last_ms(found[0]), found[1])


def default_anchor(period: str, now: int) -> str:
    """The start of the current month, Monday or day of UTC."""
    unit = period if period in _HOURS else "day"
    of_utc = grid(unit, "1970-01-05T00:00Z" if unit == "week" else "1970-01-01T00:00Z")
    return _anchor(max(_FIRST_MS, min(of_utc.boundary(of_utc.number(now)), _LAST_MS)), 0)


#: The first and the last day that an anchor's date can tell; a clock may be anywhere.
_FIRST_MS = (1 - _EPOCH) * _DAY_MS
_LAST_MS = (datetime.date.max.toordinal() - _EPOCH) * _DAY_MS


def _anchor(ms: int, offset_minutes: int) -> str:
    east = datetime.timedelta(minutes=offset_minutes)
    # The sum comes first: at the ends of the calendar the time there is a date, and that of UTC is none.
    local = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone(east)) + (datetime.timedelta(milliseconds=ms) + east)
    return local.isoformat(timespec="milliseconds" if ms % 1000 else "seconds")


# ---- Budgets ----


def begun(budget: Budget, now: int, period: str, anchor: str, closed_until: int) -> Budget:
    """The budget with another period, which began at the last boundary, but not before what is closed already."""
    boundaries = grid(period, anchor)
    number = boundaries.number(now)
    start, end = max(boundaries.boundary(number), closed_until), boundaries.boundary(number + 1)
    return budget._replace(period=period, anchor=anchor, period_start_ms=start, period_end_ms=end)


def ended(budget: Budget) -> Budget:
    """The budget without a period."""
    return budget._replace(
        period=None, period_start_ms=None, period_end_ms=None, rollover_policy=NONE, anchor=None, granted=None
    )


def allocation_set(budget: Budget) -> Budget:
    """The budget whose allocation an operator has just set, so that the coming periods begin with it.

    That is what `set_budget` does, and a RESET or a RESET_SPENT with an amount. A CREDIT or a DEBIT does not: with NONE
    the allocation stays as it is anyway, and else what remains of it is carried over.
    """
    return budget if budget.period is None else budget._replace(granted=budget.allocated)


def rolled(budget: Budget, now: int) -> tuple[ClosedPeriod, Budget]:
    """The period of a budget that has ended by now, and the budget in the next one. Raises `ValueError` or `TypeError`
    for what is in no row of ours."""
    boundaries, start, end = grid(budget.period, budget.anchor), budget.period_start_ms, budget.period_end_ms
    if start is None or end is None:
        raise ValueError(f"{budget} has no period")
    following = max(boundaries.number(end) + 1, boundaries.number(now) - MOST_BEHIND)
    closed = ClosedPeriod(budget.scope, budget.unit, start, end, budget.allocated, budget.spent, budget.debt)
    made = budget._replace(
        allocated=_next_allocation(budget),
        spent=0,
        is_over_limit=budget.debt > budget.overdraft_limit,
        period_start_ms=end,
        period_end_ms=boundaries.boundary(following),
    )
    return closed, made


def _next_allocation(budget: Budget) -> int:
    """What is allocated after a boundary; it and what remains of it stay in int64."""
    if budget.rollover_policy == NONE:
        return budget.allocated
    granted = budget.granted
    if granted is None or budget.rollover_policy not in ROLLOVER_POLICIES:
        raise ValueError(f"{budget} does not say what is carried over")
    carried = max(0, budget.remaining)
    if budget.rollover_policy == CAP_AT_ALLOCATED:
        carried = min(carried, granted)
    return max(INT64_MIN + budget.reserved + budget.debt, min(granted + carried, INT64_MAX))


# ---- What `check` verifies ----


def is_legal(closed: ClosedPeriod) -> bool:
    """Whether a closed period has a length, and its amounts are in 0..2^63-1."""
    return closed.start_ms < closed.end_ms and min(closed[4:]) >= 0


def fault(budget: Budget, closed_until: int) -> str | None:
    """What is wrong with a budget's period, which must not begin before the last closed one has ended, or None."""
    if budget.period is None:
        return None if budget == ended(budget) else f"it has no period, but what belongs to one: {budget}"
    start: Any = budget.period_start_ms
    end: Any = budget.period_end_ms
    granted: Any = budget.granted
    try:
        boundaries = grid(budget.period, budget.anchor)
        is_sound = closed_until <= start < end == boundaries.boundary(boundaries.number(end)) and granted >= 0
    except (TypeError, ValueError):
        is_sound = False
    return None if is_sound and budget.rollover_policy in ROLLOVER_POLICIES else f"its period cannot be: {budget}"
