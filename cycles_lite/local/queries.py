"""Reads: one reservation, lists of reservations, balances (protocol: getReservation, listReservations, getBalances)."""

from __future__ import annotations

import sqlite3
from typing import Any, Mapping, Sequence

from ..protocol.wire import dumps
from . import budget_rows, cursors, reservation_rows, scopes
from .filters import DIRECTIONS, SORTS, USUAL_SORT, BalanceFilters, ListFilters
from .rules import Refusal, Refused
from .settling import owned

_EVERYTHING = frozenset(["metadata", "committed_metadata"])

#: Whole segments, by instr and not by LIKE, whose wildcards are legal in scopes.
_HAS_SEGMENT = "instr('/' || {} || '/', ?) > 0"


def get_reservation(db: sqlite3.Connection, now: int, id: str, owner: str | None) -> bytes:
    """All that is known of one reservation; 410 once its hold was freed."""
    found = owned(db, now, id, owner)
    if found.status == "EXPIRED":
        details = {"reservation_id": id, "expires_at_ms": found.expires_at_ms}
        raise Refused(Refusal("RESERVATION_EXPIRED", "The reservation has expired.", details))
    (listed,) = reservation_rows.find_listed(db, "id = ?", "id", (id, 1))
    return dumps(reservation_rows.summary(listed, _EVERYTHING))


def list_reservations(db: sqlite3.Connection, now: int, asked: ListFilters, owner: str | None) -> bytes:
    """A page of reservations, of one tenant's where `owner` is given."""
    where: list[tuple[str, Sequence[Any]]] = [("(forget_at_ms IS NULL OR forget_at_ms >= ?)", (now,))]
    if owner is not None:
        where.append(("tenant = ?", (owner,)))
    if asked.idempotency_key is not None:
        where.append(("idempotency_key = ? AND ?", (asked.idempotency_key, bool(asked.idempotency_key.strip()))))
    if asked.status is not None:
        where.append(("status = ?", (asked.status,)))
    where += _with_segments("scope_path", asked.segments)
    where += [(f"{bound.column} {bound.sign} ?", (bound.ms,)) for bound in asked.bounds]
    free: dict[str, Any] = dict.fromkeys(("sort_by", "sort_dir", "include", "limit", "cursor"))
    binding = asked._replace(tenant=owner, **free)._asdict()
    sort = (asked.sort_by or USUAL_SORT[0], asked.sort_dir or USUAL_SORT[1])
    if asked.cursor is not None:
        sort, position = _place(asked, binding)
        where.append(_after(*sort, position))
    column = SORTS[sort[0]][0]
    found = reservation_rows.find_listed(db, *_joined(where, f"{column} {sort[1]}, id", asked.limit + 1))
    page = found[: asked.limit]
    answer: dict[str, Any] = {"reservations": [reservation_rows.summary(row, asked.include) for row in page]}
    if len(found) > asked.limit:
        last = page[-1].reservation
        answer["next_cursor"] = cursors.make((getattr(last, column), last.id, *sort), binding)
    answer["has_more"] = len(found) > asked.limit
    return dumps(answer)


def _place(asked: ListFilters, binding: Mapping[str, Any]) -> tuple[tuple[str, str], Sequence[Any]]:
    """The sort that a cursor carries, which the parameters must not contradict, and the position in it."""
    cursor = asked.cursor or ""
    for kind in (int, str):  # the column has one of these types, and only the cursor tells which column it is
        try:
            *position, sort_by, sort_dir = cursors.read(cursor, binding, (kind, str, str, str))
        except Refused:
            continue
        is_known = sort_by in SORTS and SORTS[sort_by][1] is kind and sort_dir in DIRECTIONS
        if is_known and asked.sort_by in (None, sort_by) and asked.sort_dir in (None, sort_dir):
            return (sort_by, sort_dir), position
    raise cursors.unusable()


def get_balances(db: sqlite3.Connection, now: int, asked: BalanceFilters, owner: str | None) -> bytes:
    """A page of balances in the order of scope and unit; descendants of what the filters name are included."""
    where = _with_segments("scope", asked.segments)
    if owner is not None:
        root = scopes.TENANT_PREFIX + owner
        where.append(("(scope = ? OR (scope > ? AND scope < ?))", (root, root + "/", root + "0")))  # "0" is after "/"
    binding = {"tenant": owner, "segments": asked.segments}
    if asked.cursor is not None:
        scope, unit = cursors.read(asked.cursor, binding, (str, str))
        where.append(("(scope > ? OR (scope = ? AND unit > ?))", (scope, scope, unit)))
    condition, _, values = _joined(where, "", asked.limit + 1)
    found = budget_rows.find_budgets(db, condition + " ORDER BY scope, unit LIMIT ?", values)
    page = found[: asked.limit]
    answer: dict[str, Any] = {"balances": [budget.to_json() for budget in page]}
    if len(found) > asked.limit:
        answer["next_cursor"] = cursors.make((page[-1].scope, page[-1].unit), binding)
    answer["has_more"] = len(found) > asked.limit
    return dumps(answer)


def _with_segments(column: str, segments: Sequence[str]) -> list[tuple[str, Sequence[Any]]]:
    """Conditions for every segment. One with a slash in it is none, and matches nothing."""
    matching = _HAS_SEGMENT.format(column)
    return [("0", ()) if "/" in segment else (matching, (f"/{segment}/",)) for segment in segments]


def _after(sort_by: str, sort_dir: str, position: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """The rows behind a position; ties go by id, ascending. The first term lets SQLite start at the place."""
    column, (value, id) = SORTS[sort_by][0], position
    sign = "<" if sort_dir == "desc" else ">"
    if column == "id":
        return f"id {sign} ?", (id,)
    return f"{column} {sign}= ? AND ({column} {sign} ? OR id > ?)", (value, value, id)


def _joined(where: Sequence[tuple[str, Sequence[Any]]], order: str, limit: int) -> tuple[str, str, list[Any]]:
    values = [value for _, given in where for value in given]
    return " AND ".join([condition for condition, _ in where]), order, [*values, limit]
