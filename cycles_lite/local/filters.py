"""The query parameters of reads, checked (protocol: listReservations, getBalances). Pure.

Of the filters, a blank one counts as unset for the time windows alone: a blank level or key is one that nothing has, a
blank status or sort none that can be meant. A blank `limit` or `cursor` filters nothing, and is unset. Unknown
parameters are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Sequence

from ..errors import ValidationError
from ..protocol.checks import free_text, shown
from ..protocol.values import SUBJECT_LEVELS, ReservationStatus
from . import instants
from .rules import Refusal, Refused

#: What a list may be sorted by, and its column. Each is either text or an integer.
SORTS: Mapping[str, tuple[str, type]] = {
    "reservation_id": ("id", str),
    "tenant": ("tenant", str),
    "scope_path": ("scope_path", str),
    "status": ("status", str),
    "reserved": ("reserved", int),
    "created_at_ms": ("created_at_ms", int),
    "expires_at_ms": ("expires_at_ms", int),
}

#: The three windows: their parameters and the column that each is about.
WINDOWS = (
    ("from", "to", "created_at_ms"),
    ("expires_from", "expires_to", "expires_at_ms"),
    ("finalized_from", "finalized_to", "finalized_at_ms"),
)

#: The ways to sort, and what is usual.
DIRECTIONS = ("asc", "desc")
USUAL_SORT = ("created_at_ms", "desc")

_UNSET_IF_BLANK = frozenset(["limit", "cursor", *[name for window in WINDOWS for name in window[:2]]])

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

_STATUSES = tuple(member.value for member in ReservationStatus)


class Bound(NamedTuple):
    """One end of a time window."""

    column: str
    #: `>=` or `<=`.
    sign: str
    ms: int


class ListFilters(NamedTuple):
    """What a reservation list asks for."""

    tenant: str | None
    segments: list[str]
    idempotency_key: str | None
    status: str | None
    bounds: list[Bound]
    #: How to sort; None where the cursor says so, or else the usual way is meant.
    sort_by: str | None
    sort_dir: str | None
    include: frozenset[str]
    limit: int
    cursor: str | None


class BalanceFilters(NamedTuple):
    """What a balance query asks for."""

    tenant: str | None
    segments: list[str]
    limit: int
    cursor: str | None


def list_filters(query: Mapping[str, str]) -> ListFilters:
    """The parameters of `GET /v1/reservations`."""
    given = _given(query)
    include = frozenset([token.strip().lower() for token in given.get("include", "").split(",")])
    return ListFilters(
        given.get("tenant"),
        _segments(given, SUBJECT_LEVELS[1:]),
        given.get("idempotency_key"),
        _one_of(given, "status", _STATUSES),
        [bound for window in WINDOWS for bound in _window(given, *window)],
        _one_of(given, "sort_by", tuple(SORTS)),
        _one_of(given, "sort_dir", DIRECTIONS),
        include,
        _limit(given),
        given.get("cursor"),
    )


def balance_filters(query: Mapping[str, str]) -> BalanceFilters:
    """The parameters of `GET /v1/balances`, one of which must name a level."""
    given = _given(query)
    if not any(level in given for level in SUBJECT_LEVELS):
        raise invalid("At least one of {} must be given.".format(", ".join(SUBJECT_LEVELS)))
    return BalanceFilters(given.get("tenant"), _segments(given, SUBJECT_LEVELS), _limit(given), given.get("cursor"))


def invalid(message: str, **details: Any) -> Refused:
    return Refused(Refusal("INVALID_REQUEST", message, details))


def _given(query: Mapping[str, str]) -> dict[str, str]:
    try:
        given = {name: free_text(name, value, len(value)) for name, value in query.items()}
    except ValidationError as e:
        raise invalid(e.message) from e
    return {name: value for name, value in given.items() if value.strip() or name not in _UNSET_IF_BLANK}


def _segments(given: Mapping[str, str], levels: Sequence[str]) -> list[str]:
    """The scope segments that a row's path must have, lower-cased like paths. No path has one with a blank value."""
    return [f"{level}:{given[level].lower()}" for level in levels if level in given]


def _one_of(given: Mapping[str, str], name: str, known: Sequence[str]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise invalid("{}: {} is not one of {}.".format(name, shown(value), ", ".join(known)), parameter=name)
    return value


def _limit(given: Mapping[str, str]) -> int:
    text = given.get("limit", str(DEFAULT_LIMIT))
    if re.match(r"[0-9]{1,9}\Z", text) is None or not 1 <= int(text) <= MAX_LIMIT:
        raise invalid(f"limit: {shown(text)} is not in 1..{MAX_LIMIT}.", parameter="limit")
    return int(text)


def _window(given: Mapping[str, str], since: str, until: str, column: str) -> list[Bound]:
    low, high = _instant(given, since), _instant(given, until)
    if low is not None and high is not None and low > high:
        raise invalid(f"{since} is later than {until}.", parameter=since)
    bounds = [] if low is None else [Bound(column, ">=", instants.first_ms(low))]
    return bounds + ([] if high is None else [Bound(column, "<=", instants.last_ms(high))])


def _instant(given: Mapping[str, str], name: str) -> int | None:
    if name not in given:
        return None
    found = instants.nanoseconds(given[name].strip())
    if found is None:
        message = "{}: {} is not an ISO 8601 date-time with an offset, such as 2026-05-21T10:00:00Z."
        raise invalid(message.format(name, shown(given[name])), parameter=name)
    return found
