"""How a page of reservations is found, however many there are.

Where a filter leaves few rows, these are found by the filter's index and sorted. Else many rows match, and a walk in
the order of the list meets enough of them soon. Only where several filters match many rows each, but hardly any
together, is there more to read, and the transaction's deadline ends that.

Every index begins with the tenant, so that a list over all tenants is put together from theirs, as one in the order of
the status is from the statuses'. Statements name their index: SQLite keeps no statistics here, and would guess.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Iterator, List, NamedTuple, Sequence, Tuple

from ..protocol.values import ReservationStatus
from . import rows
from .rows import Reservation
from .schema import RESERVATIONS

#: The most rows that are found and sorted, rather than walked over in order.
FEW = 2000

#: The most scope paths of a tenant that are looked through for those with a segment.
MOST_PATHS = 1000

#: The most of them that one statement names; SQLite allows 999 values.
_PATHS_AT_ONCE = 500

#: The indexes that are in the order of a column, for one tenant.
_IN_ORDER = {
    "created_at_ms": "reservations_by_creation",
    "expires_at_ms": "reservations_by_expiry",
    "reserved": "reservations_by_amount",
    "scope_path": "reservations_by_path",
}

#: What is after `WHERE`, and its values.
Condition = Tuple[str, List[Any]]


class Bound(NamedTuple):
    """One end of a range that a column's values must be in."""

    column: str
    #: `>=`, `>`, `<=` or `<`.
    sign: str
    value: Any


class Wanted(NamedTuple):
    """Which reservations a list is about, of one tenant or of all, in which order, and after which of them."""

    tenant: str | None
    idempotency_key: str | None
    status: str | None
    segments: Sequence[str]
    bounds: Sequence[Bound]
    column: str
    is_descending: bool
    #: The value and the id of the last row before.
    after: Sequence[Any] | None


class _Slice(NamedTuple):
    """The part of a list that has one tenant, and perhaps one status."""

    tenant: str
    status: str | None
    column: str
    is_descending: bool
    after: Sequence[Any] | None
    key: str | None
    bounds: Sequence[Bound]
    paths: Sequence[str] | None
    segments: Sequence[str]


def find_page(db: sqlite3.Connection, now: int, wanted: Wanted, count: int) -> list[Reservation]:
    """The first rows of a list, in the order of a column, and those that are equal in the order of their ids."""
    found: list[Reservation] = []
    for group in _groups(db, wanted):
        part: list[Reservation] = []
        for one in group:
            part = _sorted(part + _find(db, now, one, count), one)[:count]
        found += part
        if len(found) >= count:
            break
    return found[:count]


def _groups(db: sqlite3.Connection, wanted: Wanted) -> Iterator[Iterator[_Slice]]:
    """The slices of a list, in groups that follow each other; the rows of one group mix."""
    tenants = [wanted.tenant] if wanted.tenant is not None else _distinct(db, "tenant", "reservations_by_creation")
    statuses = [wanted.status] if wanted.status is not None else sorted(status.value for status in ReservationStatus)
    if wanted.column not in ("tenant", "status"):
        yield (_slice(db, wanted, tenant, wanted.status) for tenant in tenants)
        return
    by_status = wanted.column == "status"
    for value in sorted(statuses if by_status else tenants, reverse=wanted.is_descending):
        after = None
        if wanted.after is not None:
            if value != wanted.after[0] and (value < wanted.after[0]) is not wanted.is_descending:
                continue
            after = [wanted.after[1]] * 2 if value == wanted.after[0] else None
        inner = wanted._replace(column="id", is_descending=False, after=after)
        if by_status:
            yield (_slice(db, inner, tenant, value) for tenant in tenants)
        else:
            yield iter([_slice(db, inner, value, wanted.status)])


def _distinct(
    db: sqlite3.Connection, column: str, index: str, where: str = "", values: Sequence[Any] = ()
) -> list[Any]:
    """The values of a column, of which an index finds each with one look."""
    find = f"SELECT min({column}) FROM {RESERVATIONS} INDEXED BY {index} WHERE {where}{column} > ?"
    found: list[Any] = []
    last: str | None = ""
    while len(found) <= MOST_PATHS or not where:
        (last,) = db.execute(find, (*values, last)).fetchone()
        if last is None:
            break
        found.append(last)
    return found


def _slice(db: sqlite3.Connection, wanted: Wanted, tenant: str, status: str | None) -> _Slice:
    paths = None
    if any("/" in segment for segment in wanted.segments):  # no path has such a segment
        paths = []
    elif wanted.segments:
        known = _distinct(db, "scope_path", "reservations_by_path", "tenant = ? AND ", (tenant,))
        if len(known) <= MOST_PATHS:
            paths = [path for path in known if set(wanted.segments) <= set(path.split("/"))]
    order = (wanted.column, wanted.is_descending, wanted.after)
    return _Slice(tenant, status, *order, wanted.idempotency_key, wanted.bounds, paths, wanted.segments)


def _sorted(found: list[Reservation], by: _Slice) -> list[Reservation]:
    found.sort(key=lambda row: row.id)
    found.sort(key=lambda row: getattr(row, by.column), reverse=by.is_descending)  # this keeps the order of equal ones
    return found


# ---- One slice ----


def _find(db: sqlite3.Connection, now: int, one: _Slice, count: int) -> list[Reservation]:
    if one.paths is not None and not one.paths:
        return []
    filters = _filters(one, now)
    for index, condition in _narrow(one, now):
        if _are_few(db, index, condition):
            direction = "DESC" if one.is_descending else "ASC"
            where, values = joined([condition, *filters, *_after(one)])
            how = f"INDEXED BY {index} WHERE {where} ORDER BY {one.column} {direction}, id LIMIT ?"
            return rows.find_all(db, how, [*values, count])
    return _walked_by_id(db, one, filters, count) if one.column == "id" else _walked(db, now, one, count)


def _filters(one: _Slice, now: int, without: str | None = None) -> list[Condition]:
    """The conditions for the rows of a slice, but for its place in the list, and for the range of one column."""
    filters: list[Condition] = [("(forget_at_ms IS NULL OR forget_at_ms >= ?)", [now])]
    if one.status is not None:
        filters.append((f"status = '{ReservationStatus(one.status).value}'", []))  # partial indexes need it in the text
    if one.key is not None:
        filters.append(("idempotency_key = ? AND ?", [one.key, bool(one.key.strip())]))
    if one.paths is not None and len(one.paths) <= _PATHS_AT_ONCE:
        filters.append(_among(one.paths))
    else:  # not LIKE, because its wildcards are legal in scopes
        filters += [("instr('/' || scope_path || '/', ?) > 0", [f"/{segment}/"]) for segment in one.segments]
    return filters + [_within(bound) for bound in one.bounds if bound.column != without]


def _within(bound: Bound) -> Condition:
    return f"{bound.column} {bound.sign} ?", [bound.value]


def _among(paths: Sequence[str]) -> Condition:
    return "scope_path IN ({})".format(",".join("?" * len(paths))), list(paths)


def _narrow(one: _Slice, now: int) -> Iterator[tuple[str, Condition]]:
    """The indexes that may find few rows, each with the condition that is for it."""
    its_own: Condition = ("tenant = ?", [one.tenant])
    if one.key is not None:
        yield "reservations_by_key", joined([its_own, ("idempotency_key = ?", [one.key])])
    if one.status == ReservationStatus.ACTIVE:  # holds that are due were freed before
        yield "reservations_due", ("status = 'ACTIVE' AND deadline_ms >= ? AND tenant = ?", [now, one.tenant])
    elif one.status is not None and one.column != "created_at_ms":
        yield f"reservations_{one.status}", (f"tenant = ? AND status = '{one.status}'", [one.tenant])
    if one.paths is not None and len(one.paths) <= _PATHS_AT_ONCE:
        yield "reservations_by_path", joined([its_own, _among(one.paths)])
    for column in ("created_at_ms", "expires_at_ms"):
        bounds = [_within(bound) for bound in one.bounds if bound.column == column]
        if bounds and one.column != column:
            yield _IN_ORDER[column], joined([its_own, *bounds])
    if one.column == "id":
        yield "reservations_by_creation", its_own


def _are_few(db: sqlite3.Connection, index: str, condition: Condition) -> bool:
    where, values = condition
    # A statement that counts them would be around this one, and there SQLite 3.8 does not find a partial index.
    one_more = f"SELECT 1 FROM {RESERVATIONS} INDEXED BY {index} WHERE {where} LIMIT 1 OFFSET {FEW}"
    return db.execute(one_more, values).fetchone() is None


def _after(one: _Slice) -> list[Condition]:
    """The condition for the rows after the slice's place."""
    if one.after is None:
        return []
    value, id = one.after
    sign = "<" if one.is_descending else ">"
    if one.column == "id":
        return [(f"id {sign} ?", [id])]
    return [(f"({one.column} {sign} ? OR ({one.column} = ? AND id > ?))", [value, value, id])]


def _walked_by_id(db: sqlite3.Connection, one: _Slice, filters: list[Condition], count: int) -> list[Reservation]:
    """The first rows in the order of ids, which are unique; the plus keeps SQLite from another index."""
    where, values = joined([("id >= ''", []), ("+tenant = ?", [one.tenant]), *filters, *_after(one)])
    direction = "DESC" if one.is_descending else "ASC"
    return rows.find_all(db, f"WHERE {where} ORDER BY id {direction} LIMIT ?", [*values, count])


def _walked(db: sqlite3.Connection, now: int, one: _Slice, count: int) -> list[Reservation]:
    """The first rows in the order of a column. No index has ids in ascending order for both directions of the column,
    so that rows with equal values are read on their own where they are not all wanted: at the beginning, and at the
    end."""
    found: list[Reservation] = []
    past: list[Bound] = []
    filters = _filters(one, now)
    if one.after is not None:
        value, id = one.after
        found = _equal(db, one, [*filters, ("id > ?", [id])], value, count)
        past = [Bound(one.column, "<" if one.is_descending else ">", value)]
    missing = count - len(found)
    if not missing:
        return found
    its_own: Condition = ("tenant = ?", [one.tenant])
    where, values = joined([its_own, *_filters(one, now, one.column), *map(_within, _tightest(one, past))])
    direction = "DESC" if one.is_descending else "ASC"
    how = f"INDEXED BY {_in_order(one)} WHERE {where} ORDER BY {one.column} {direction} LIMIT ?"
    more = rows.find_all(db, how, [*values, missing])
    if len(more) == missing:
        last = getattr(more[-1], one.column)
        more = [row for row in more if getattr(row, one.column) != last]
        more += _equal(db, one, filters, last, missing - len(more))
    return found + _sorted(more, one)


def _equal(db: sqlite3.Connection, one: _Slice, filters: list[Condition], value: Any, count: int) -> list[Reservation]:
    """The first rows with a value, in the order of their ids."""
    where, values = joined([("tenant = ?", [one.tenant]), (f"{one.column} = ?", [value]), *filters])
    how = f"INDEXED BY {_in_order(one)} WHERE {where} ORDER BY id LIMIT ?"
    return rows.find_all(db, how, [*values, count])


def _in_order(one: _Slice) -> str:
    """The index to walk by."""
    if one.column == "created_at_ms" and one.status not in (None, ReservationStatus.ACTIVE):
        return f"reservations_{one.status}"
    return _IN_ORDER[one.column]


def _tightest(one: _Slice, past: Sequence[Bound]) -> list[Bound]:
    """The range of the column to walk by. SQLite begins with one bound, and this gives it the best."""
    bounds = [bound for bound in one.bounds if bound.column == one.column] + list(past)
    if one.column == "created_at_ms":  # what expires by a time was made by then
        bounds += [bound._replace(column="created_at_ms") for bound in _ends(one.bounds, "expires_at_ms", "<")]
    low = max(_ends(bounds, one.column, ">"), key=lambda bound: (bound.value, bound.sign == ">"), default=None)
    high = min(_ends(bounds, one.column, "<"), key=lambda bound: (bound.value, bound.sign == "<="), default=None)
    return [bound for bound in (low, high) if bound is not None]


def _ends(bounds: Sequence[Bound], column: str, sign: str) -> list[Bound]:
    return [bound for bound in bounds if bound.column == column and bound.sign[0] == sign]


def joined(conditions: Sequence[Condition]) -> Condition:
    return " AND ".join([text for text, _ in conditions]), [value for _, values in conditions for value in values]
