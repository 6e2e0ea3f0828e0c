"""Reads: one reservation, lists of reservations, balances (protocol: getReservation, listReservations, getBalances).

A list's parameters are checked first, without the database; then its conditions are joined to a statement, and the
page that comes back tells with a cursor where the next one starts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from typing import Any, Mapping, NamedTuple, Sequence

from ..errors import ValidationError
from ..protocol.checks import INT64_MAX, free_text, shown
from ..protocol.values import SUBJECT_LEVELS, ReservationStatus, SortDirection
from . import instants, rows
from .listing import Bound, Condition, Wanted, find_page, joined
from .operations import expired, owned
from .rows import Json
from .rules import Budget, Refused, balances, invalid
from .scopes import TENANT_PREFIX

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

_STATUSES = [status.value for status in ReservationStatus]
_DIRECTIONS = [direction.value for direction in SortDirection]

#: The three windows: their parameters and the column that each is about.
WINDOWS = (
    ("from", "to", "created_at_ms"),
    ("expires_from", "expires_to", "expires_at_ms"),
    ("finalized_from", "finalized_to", "finalized_at_ms"),
)

#: The parameters for which a blank value counts as unset: the time windows, `limit` and `cursor`. A blank level or key
#: matches nothing, and a blank status or sort is refused.
_UNSET_IF_BLANK = frozenset(["limit", "cursor", *[name for window in WINDOWS for name in window[:2]]])

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

#: The fields that a single reservation always shows, and a list only if `include` names them.
_EVERYTHING = frozenset(["metadata", "committed_metadata"])


# ---- Parameters ----


class Filters(NamedTuple):
    """The parameters of a list. A list of balances has only the first four."""

    tenant: str | None
    segments: list[str]
    limit: int
    cursor: str | None
    idempotency_key: str | None = None
    status: str | None = None
    bounds: Sequence[Bound] = ()
    #: What to sort by; None if the cursor tells it, or the default is meant.
    sort_by: str | None = None
    sort_dir: str | None = None
    include: frozenset[str] = frozenset()


def list_filters(query: Mapping[str, str]) -> Filters:
    """The parameters of `GET /v1/reservations`; unknown ones are ignored."""
    given = _given(query)
    its_own: dict[str, Any] = {
        "idempotency_key": given.get("idempotency_key"),
        "status": _one_of(given, "status", _STATUSES),
        "bounds": [bound for window in WINDOWS for bound in _window(given, *window)],
        "sort_by": _one_of(given, "sort_by", list(SORTS)),
        "sort_dir": _one_of(given, "sort_dir", _DIRECTIONS),
        "include": frozenset([token.strip().lower() for token in given.get("include", "").split(",")]),
    }
    return Filters(*_common(given, SUBJECT_LEVELS[1:]), **its_own)


def balance_filters(query: Mapping[str, str]) -> Filters:
    """The parameters of `GET /v1/balances`, one of which must name a level; unknown ones are ignored."""
    given = _given(query)
    if not any(level in given for level in SUBJECT_LEVELS):
        raise invalid("At least one of {} must be given.".format(", ".join(SUBJECT_LEVELS)))
    return Filters(*_common(given, SUBJECT_LEVELS))


def _given(query: Mapping[str, str]) -> dict[str, str]:
    try:
        given = {name: free_text(name, value, len(value)) for name, value in query.items()}
    except ValidationError as e:
        raise invalid(e.message) from e
    return {name: value for name, value in given.items() if value.strip() or name not in _UNSET_IF_BLANK}


def _common(given: Mapping[str, str], levels: Sequence[str]) -> tuple[str | None, list[str], int, str | None]:
    """The parameters of every list: the tenant, the segments that a row's scope path must have, the limit, the cursor.

    Segments are in lower case as paths are. A blank value matches no path.
    """
    segments = [f"{level}:{given[level].lower()}" for level in levels if level in given]
    limit = given.get("limit", str(DEFAULT_LIMIT))
    if re.match(r"[0-9]{1,9}\Z", limit) is None or not 1 <= int(limit) <= MAX_LIMIT:
        raise invalid(f"limit: {shown(limit)} is not in 1..{MAX_LIMIT}.", parameter="limit")
    return given.get("tenant"), segments, int(limit), given.get("cursor")


def _one_of(given: Mapping[str, str], name: str, known: Sequence[str]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise invalid("{}: {} is not one of {}.".format(name, shown(value), ", ".join(known)), parameter=name)
    return value


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


# ---- Pages ----


def get_reservation(db: sqlite3.Connection, now: int, id: str, owner: str | None) -> Json:
    """All that is known of one reservation; 410 once its hold was freed."""
    found = owned(db, now, id, owner)
    if found.status == ReservationStatus.EXPIRED:
        raise expired(found)
    return rows.summary(db, found, _EVERYTHING)


def list_reservations(db: sqlite3.Connection, now: int, asked: Filters, owner: str | None) -> Json:
    """A page of reservations, of one tenant's where `owner` is given."""
    free: Json = dict.fromkeys(("sort_by", "sort_dir", "include", "limit", "cursor"))
    binding = asked._replace(tenant=owner, **free)._asdict()
    sort_by, sort_dir, position = asked.sort_by or "created_at_ms", asked.sort_dir or SortDirection.DESC.value, None
    if asked.cursor is not None:
        sort_by, sort_dir, position = _place(asked, asked.cursor, binding)
    column = SORTS[sort_by][0]
    order = (column, sort_dir == SortDirection.DESC, position)
    wanted = Wanted(owner, asked.idempotency_key, asked.status, asked.segments, asked.bounds, *order)
    found = find_page(db, now, wanted, asked.limit + 1)
    answer: Json = {"reservations": [rows.summary(db, row, asked.include) for row in found[: asked.limit]]}
    if len(found) > asked.limit:
        last = found[asked.limit - 1]
        answer["next_cursor"] = make_cursor((getattr(last, column), last.id, sort_by, sort_dir), binding)
    answer["has_more"] = len(found) > asked.limit
    return answer


def _place(asked: Filters, cursor: str, binding: Mapping[str, Any]) -> tuple[str, str, Sequence[Any]]:
    """The sort that a cursor carries, which the parameters must not contradict, and the position in it."""
    *position, sort_by, sort_dir = _read_cursor(cursor, binding, 4)
    # The cursor alone tells the column, and so the type that its value must have.
    is_known = sort_by in SORTS and type(position[0]) is SORTS[sort_by][1] and sort_dir in _DIRECTIONS
    if not is_known or asked.sort_by not in (None, sort_by) or asked.sort_dir not in (None, sort_dir):
        raise _unusable()
    return sort_by, sort_dir, position


def get_balances(db: sqlite3.Connection, now: int, asked: Filters, owner: str | None) -> Json:
    """A page of balances in the order of scope and unit; descendants of what the filters name are included."""
    binding = {"tenant": owner, "segments": asked.segments}
    after = None
    if asked.cursor is not None:
        after = _read_cursor(asked.cursor, binding, 2)
        if type(after[0]) is not str:
            raise _unusable()
    found: list[Budget] = []
    for place in _ranges(asked.segments, owner):
        condition, values = joined([*place, *map(_has_segment, asked.segments), *_behind(after)])
        values.append(asked.limit + 1 - len(found))
        found += rows.find_budgets(db, condition + " ORDER BY scope, unit LIMIT ?", values)
    answer: Json = {"balances": balances(found[: asked.limit])}
    if len(found) > asked.limit:
        last = found[asked.limit - 1]
        answer["next_cursor"] = make_cursor((last.scope, last.unit), binding)
    answer["has_more"] = len(found) > asked.limit
    return answer


def _ranges(segments: Sequence[str], owner: str | None) -> list[list[Condition]]:
    """Where in the order of scopes those are that have these segments: at one scope and its descendants, as far as the
    levels from the tenant down are given."""
    given = [TENANT_PREFIX + owner] if owner is not None else []
    given += [segment for segment in segments if segment not in given]
    root = ""
    for level in SUBJECT_LEVELS:
        named = [segment for segment in given if segment.startswith(level + ":")]
        if len(named) != 1:
            break
        root += "/" + named[0] if root else named[0]
    if not root:
        return [[("scope >= ''", [])]]
    return [[("scope = ?", [root])], [("scope > ? AND scope < ?", [root + "/", root + "0"])]]  # "0" is after "/"


def _behind(after: Sequence[str] | None) -> list[Condition]:
    """The condition for the budgets after a place. Its first term is for the index."""
    return [] if after is None else [("scope >= ? AND (scope > ? OR unit > ?)", [after[0], *after])]


def _has_segment(segment: str) -> Condition:
    """The condition for a scope that has a segment. It uses `instr`, because the wildcards of LIKE are legal in scopes.
    No segment has a slash."""
    return ("0", []) if "/" in segment else ("instr('/' || scope || '/', ?) > 0", [f"/{segment}/"])


# ---- Cursors ----
# A cursor tells where a page ended, and is opaque to clients (protocol: Cursor). It is bound to the filters of its
# list: it is refused with others, and if it was changed. Its digest has no secret, so anybody can make a cursor, and
# its content must be checked.

_DIGEST = 16
_SURROGATE = re.compile("[\ud800-\udfff]")


def make_cursor(position: Sequence[Any], binding: Mapping[str, Any]) -> str:
    """The cursor for the place after a row; `position` is a list of strings, the first of which may be an integer."""
    text = json.dumps([*position, _digest(position, binding)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii")


def _read_cursor(cursor: str, binding: Mapping[str, Any], length: int) -> list[Any]:
    """The position in a cursor, a list of `length` values."""
    try:
        data = json.loads(base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode("ascii"))
    except (ValueError, RecursionError):  # binascii's and JSON's errors are ValueErrors
        raise _unusable() from None
    if type(data) is not list or len(data) != length + 1 or not all(map(_is_storable, data)):
        raise _unusable()
    *position, digest = data
    if any(type(value) is not str for value in data[1:]) or digest != _digest(position, binding):
        raise _unusable()
    return position


def _is_storable(value: object) -> bool:
    """Whether a value is an integer or a text that SQLite can store: an int64, or text without lone surrogates."""
    if type(value) is str:
        return _SURROGATE.search(value) is None
    return type(value) is int and abs(value) <= INT64_MAX


def _digest(position: Sequence[Any], binding: Mapping[str, Any]) -> str:
    text = json.dumps([list(position), binding], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGEST]


def _unusable() -> Refused:
    return invalid("The cursor is not one of this list with this sort and these filters.")
