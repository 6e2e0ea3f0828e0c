"""Rows of budgets and reservations as values, and the statements that read and write them."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Collection, Dict, Iterable, NamedTuple, Sequence

from ..protocol.values import ReservationStatus
from . import scopes
from .periods import ClosedPeriod
from .rules import Budget, Budgets
from .schema import RESERVATIONS

#: How long a finished reservation is kept, in milliseconds.
KEEP_FINISHED_MS = 30 * 24 * 3600 * 1000

#: Encodes JSON in its one canonical form.
encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

#: Decoded JSON, as operations answer it.
Json = Dict[str, Any]


class Reservation(NamedTuple):
    """A reservation's row; see `schema`."""

    id: str
    tenant: str
    idempotency_key: str
    unit: str
    reserved: int
    overage_policy: str
    created_at_ms: int
    expires_at_ms: int
    deadline_ms: int
    scope_path: str
    held: str
    request: str
    reply_until_ms: int
    status: str = ReservationStatus.ACTIVE.value
    extensions: int = 0
    committed: int | None = None
    finalized_at_ms: int | None = None
    forget_at_ms: int | None = None
    number: int | None = None

    @property
    def held_scopes(self) -> list[str]:
        """The scopes that were budgeted when the reservation was made."""
        return self.held.split()


# ---- Budgets ----

#: The levels of a subject, and so the most scopes that one operation affects.
_DEEPEST = 6

#: The columns are the fields, in their order.
_BUDGET = ", ".join(Budget._fields)

#: One statement per number of scopes, so that sqlite3 finds it compiled.
_BUDGETS_OF = [
    "SELECT {} FROM budgets WHERE unit = ? AND scope IN ({}) ORDER BY scope".format(_BUDGET, ",".join("?" * count))
    for count in range(_DEEPEST + 1)
]
_SAVE_AMOUNTS = (
    "UPDATE budgets SET allocated = ?, spent = ?, reserved = ?, debt = ?, is_over_limit = ?"
    " WHERE scope = ? AND unit = ?"
)
_SAVE_BUDGET = "INSERT OR REPLACE INTO budgets ({}) VALUES ({})".format(_BUDGET, ",".join("?" * len(Budget._fields)))


def _budget(row: Sequence[Any]) -> Budget:
    """The budget in a row of `_BUDGET`'s columns."""
    caps = row[9]
    return Budget._make((*row[:7], bool(row[7]), row[8], None if caps is None else json.loads(caps), *row[10:]))


def budgets_of(db: sqlite3.Connection, affected: Sequence[str], unit: str) -> Budgets:
    """The budgets of those scopes that have one in a unit, in canonical order: a prefix sorts before what it begins."""
    return tuple([_budget(row) for row in db.execute(_BUDGETS_OF[len(affected)], (unit, *affected)).fetchall()])


def find_budgets(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Budget]:
    """Budgets by a condition, which says their order too."""
    statement = f"SELECT {_BUDGET} FROM budgets WHERE {where}"
    return [_budget(row) for row in db.execute(statement, values).fetchall()]


def save_amounts(db: sqlite3.Connection, changed: Iterable[Budget]) -> None:
    """Write the amounts of budgets, which operations change. Only operators change limits, status and caps."""
    db.executemany(
        _SAVE_AMOUNTS, [(b.allocated, b.spent, b.reserved, b.debt, b.is_over_limit, b.scope, b.unit) for b in changed]
    )


def save_budget(db: sqlite3.Connection, made: Budget) -> None:
    """Write all columns of a budget."""
    caps = None if made.caps is None else json.dumps(made.caps, separators=(",", ":"))
    db.execute(_SAVE_BUDGET, (*made[:9], caps, *made[10:]))


# ---- Closed periods ----

_CLOSED = ", ".join(ClosedPeriod._fields)
_ADD_CLOSED = "INSERT INTO periods ({}) VALUES ({})".format(_CLOSED, ",".join("?" * len(ClosedPeriod._fields)))

_DROP_CLOSED = "DELETE FROM periods WHERE scope = ? AND unit = ? AND end_ms = ?"


def find_closed(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[ClosedPeriod]:
    """Closed periods by a condition, the oldest first."""
    statement = f"SELECT {_CLOSED} FROM periods WHERE {where} ORDER BY end_ms, scope, unit"
    found = [ClosedPeriod._make(row) for row in db.execute(statement, values).fetchall()]
    for one in found:
        if set(map(type, one[2:])) != {int}:
            raise TypeError(f"{one} is no closed period")
    return found


def add_closed(db: sqlite3.Connection, closed: ClosedPeriod) -> None:
    """Write a closed period."""
    db.execute(_ADD_CLOSED, closed)


def drop_closed(db: sqlite3.Connection, closed: Iterable[ClosedPeriod]) -> None:
    """Delete closed periods."""
    db.executemany(_DROP_CLOSED, [(one.scope, one.unit, one.end_ms) for one in closed])


# ---- Reservations ----

#: The condition for the live reservations. SQLite 3.8 uses an index only with a bound on its column, whatever that is.
LIVE = "status = 'ACTIVE' AND deadline_ms >= -9223372036854775807"

_COLUMNS = ", ".join(Reservation._fields)
_ADD = "INSERT INTO {} ({}, defaults, answer) VALUES ({}, '', x'')".format(
    RESERVATIONS, _COLUMNS, ",".join("?" * len(Reservation._fields))
)
_FIND = f"SELECT {_COLUMNS} FROM {RESERVATIONS} WHERE id = ? AND (forget_at_ms IS NULL OR forget_at_ms >= ?)"
_FIND_BY_KEY = (
    f"SELECT {_COLUMNS} FROM {RESERVATIONS}"
    " WHERE tenant = ? AND idempotency_key = ? AND reply_until_ms >= ? ORDER BY number DESC LIMIT 1"
)
_FINISH = f"UPDATE {RESERVATIONS} SET status = ?, committed = ?, finalized_at_ms = ?, forget_at_ms = ? WHERE number = ?"
_EXTEND = f"UPDATE {RESERVATIONS} SET expires_at_ms = ?, deadline_ms = ?, extensions = ? WHERE number = ?"
_FIND_METADATA = "SELECT metadata FROM settlements WHERE number = ?"


def add(db: sqlite3.Connection, made: Reservation) -> int | None:
    """Write a new reservation, and return its number."""
    return db.execute(_ADD, made).lastrowid


def find(db: sqlite3.Connection, id: str, now: int) -> Reservation | None:
    """The reservation of an id, unless the time to keep it is over."""
    row = db.execute(_FIND, (id, now)).fetchone()
    return None if row is None else Reservation._make(row)


def find_by_key(db: sqlite3.Connection, tenant: str, key: str, now: int) -> Reservation | None:
    """The last reservation that was made with an idempotency key, if the key is kept that long."""
    row = db.execute(_FIND_BY_KEY, (tenant, key, now)).fetchone()
    return None if row is None else Reservation._make(row)


def find_all(db: sqlite3.Connection, how: str, values: Sequence[Any]) -> list[Reservation]:
    """Reservations by what follows the table in a statement."""
    statement = f"SELECT {_COLUMNS} FROM {RESERVATIONS} {how}"
    return [Reservation._make(row) for row in db.execute(statement, values).fetchall()]


def save_finished(db: sqlite3.Connection, now: int, of: Reservation, status: str, committed: int | None) -> None:
    """Write how a reservation ended."""
    db.execute(_FINISH, (status, committed, now, now + KEEP_FINISHED_MS, of.number))


def save_extended(db: sqlite3.Connection, extended: Reservation) -> None:
    """Write a new expiry."""
    db.execute(_EXTEND, (extended.expires_at_ms, extended.deadline_ms, extended.extensions, extended.number))


def summary(db: sqlite3.Connection, of: Reservation, include: Collection[str]) -> Json:
    """A reservation as the protocol's `ReservationSummary`; `include` names the heavy fields to show."""
    request = json.loads(of.request)
    shown: Json = {
        "reservation_id": of.id,
        "status": of.status,
        "idempotency_key": of.idempotency_key,
        "subject": request["subject"],
        "action": request["action"],
        "reserved": {"unit": of.unit, "amount": of.reserved},
        "created_at_ms": of.created_at_ms,
        "expires_at_ms": of.expires_at_ms,
        "scope_path": of.scope_path,
        "affected_scopes": list(scopes.prefixes(of.scope_path)),
    }
    if of.committed is not None:
        shown["committed"] = {"unit": of.unit, "amount": of.committed}
    if of.finalized_at_ms is not None:
        shown["finalized_at_ms"] = of.finalized_at_ms
    if "metadata" in include and "metadata" in request:
        shown["metadata"] = request["metadata"]
    if "committed_metadata" in include and of.status == ReservationStatus.COMMITTED:
        settlement = db.execute(_FIND_METADATA, (of.number,)).fetchone()
        if settlement is not None and settlement[0] is not None:
            shown["committed_metadata"] = json.loads(settlement[0])
    return shown
