"""Rows of `reservations` and `settlements` as values, and the statements that read and write them."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Collection, NamedTuple, Sequence

from . import scopes

#: Finished reservations are kept for 30 days (design: section 9, Idempotency).
KEEP_FINISHED_MS = 30 * 24 * 3600 * 1000


class Reservation(NamedTuple):
    """What operations need of a row of `reservations`; see `schema`."""

    number: int | None
    id: str
    tenant: str
    idempotency_key: str
    status: str
    unit: str
    reserved: int
    committed: int | None
    overage_policy: str
    created_at_ms: int
    expires_at_ms: int
    deadline_ms: int
    finalized_at_ms: int | None
    forget_at_ms: int | None
    extensions: int
    scope_path: str
    held: str

    @property
    def held_scopes(self) -> list[str]:
        """The scopes that were budgeted when the reservation was made."""
        return self.held.split(" ")


class Reply(NamedTuple):
    """How a reservation was asked for and answered."""

    request: str
    defaults: str
    answer: bytes
    reply_until_ms: int


class Settlement(NamedTuple):
    """A row of `settlements`."""

    idempotency_key: str
    payload: bytes
    answer: bytes
    metadata: str | None


class Listed(NamedTuple):
    """A reservation with all that is shown of it."""

    reservation: Reservation
    request: str
    committed_metadata: str | None


_COLUMNS = ", ".join(Reservation._fields)
_COUNT = len(Reservation._fields)
_REPLY = ", ".join(Reply._fields)
_ADD = "INSERT INTO reservations ({}, {}) VALUES ({})".format(
    _COLUMNS, _REPLY, ",".join("?" * (_COUNT + len(Reply._fields)))
)
_FIND = f"SELECT {_COLUMNS} FROM reservations WHERE id = ?"
_FIND_REPLY = (
    f"SELECT status, {_REPLY} FROM reservations"
    " WHERE tenant = ? AND idempotency_key = ? AND reply_until_ms >= ? ORDER BY number DESC LIMIT 1"
)
_IS_ACTIVE = "SELECT status = 'ACTIVE' FROM reservations WHERE id = ?"
_FINISH = "UPDATE reservations SET status = ?, committed = ?, finalized_at_ms = ?, forget_at_ms = ? WHERE number = ?"
_EXTEND = "UPDATE reservations SET expires_at_ms = ?, deadline_ms = ?, extensions = ? WHERE number = ?"
_SETTLEMENT = ", ".join(Settlement._fields)
_ADD_SETTLEMENT = f"INSERT INTO settlements (number, {_SETTLEMENT}) VALUES (?,?,?,?,?)"
_FIND_SETTLEMENT = f"SELECT {_SETTLEMENT} FROM settlements WHERE number = ?"
_LIST = f"SELECT {_COLUMNS}, request FROM reservations WHERE {{}} ORDER BY {{}} LIMIT ?"


def add(db: sqlite3.Connection, made: Reservation, reply: Reply) -> None:
    """Write a new reservation."""
    db.execute(_ADD, (*made, *reply))


def find(db: sqlite3.Connection, id: str, now: int) -> Reservation | None:
    """The reservation of an id, unless it is to be forgotten."""
    row = db.execute(_FIND, (id,)).fetchone()
    found = None if row is None else Reservation._make(row)
    if found is None or (found.forget_at_ms is not None and now > found.forget_at_ms):
        return None
    return found


def find_reply(db: sqlite3.Connection, tenant: str, key: str, now: int) -> tuple[str, Reply] | None:
    """The status of the reservation that a tenant's key made, and its reply if it is still to be replayed."""
    row = db.execute(_FIND_REPLY, (tenant, key, now)).fetchone()
    return None if row is None else (row[0], Reply._make(row[1:]))


def is_active(db: sqlite3.Connection, id: str) -> bool:
    """Whether a reservation still holds its amount."""
    row = db.execute(_IS_ACTIVE, (id,)).fetchone()
    return row is not None and bool(row[0])


def finish(db: sqlite3.Connection, ended: Reservation, settlement: Settlement) -> None:
    """Write how a reservation ended."""
    db.execute(_FINISH, (ended.status, ended.committed, ended.finalized_at_ms, ended.forget_at_ms, ended.number))
    db.execute(_ADD_SETTLEMENT, (ended.number, *settlement))


def find_settlement(db: sqlite3.Connection, of: Reservation) -> Settlement | None:
    """How a reservation was committed or released."""
    row = db.execute(_FIND_SETTLEMENT, (of.number,)).fetchone()
    return None if row is None else Settlement._make(row)


def save_extended(db: sqlite3.Connection, extended: Reservation) -> None:
    """Write a new expiry."""
    db.execute(_EXTEND, (extended.expires_at_ms, extended.deadline_ms, extended.extensions, extended.number))


def find_listed(db: sqlite3.Connection, where: str, order: str, values: Sequence[Any]) -> list[Listed]:
    """Reservations by a condition and an order, with the most to find as the last value."""
    found = []
    for row in db.execute(_LIST.format(where, order), values).fetchall():
        reservation = Reservation._make(row[:_COUNT])
        settlement = find_settlement(db, reservation) if reservation.status == "COMMITTED" else None
        found.append(Listed(reservation, row[_COUNT], settlement.metadata if settlement else None))
    return found


def summary(listed: Listed, include: Collection[str]) -> dict[str, Any]:
    """A reservation as the protocol's `ReservationSummary`; `include` names the heavy fields to show."""
    of, request = listed.reservation, json.loads(listed.request)
    shown: dict[str, Any] = {
        "reservation_id": of.id,
        "status": of.status,
        "idempotency_key": of.idempotency_key,
        "subject": request["subject"],
        "action": request["action"],
        "reserved": {"unit": of.unit, "amount": of.reserved},
        "created_at_ms": of.created_at_ms,
        "expires_at_ms": of.expires_at_ms,
        "scope_path": of.scope_path,
        "affected_scopes": scopes.prefixes(of.scope_path),
    }
    if of.committed is not None:
        shown["committed"] = {"unit": of.unit, "amount": of.committed}
    if of.finalized_at_ms is not None:
        shown["finalized_at_ms"] = of.finalized_at_ms
    if "metadata" in include and "metadata" in request:
        shown["metadata"] = request["metadata"]
    if "committed_metadata" in include and listed.committed_metadata is not None:
        shown["committed_metadata"] = json.loads(listed.committed_metadata)
    return shown
