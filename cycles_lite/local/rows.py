"""Rows of budgets, reservations, settlements and replies as values, and the statements that read and write them.

A reply is the stored answer for an idempotency key (protocol: IDEMPOTENCY). Only successes are stored, as text. A
replay must have the payload of the first request, which is compared with the tenant's defaults filled in; as these may
change, those of the first request are stored with the answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import Any, Callable, Collection, Dict, Iterable, NamedTuple, Sequence

from ..protocol.values import ReservationStatus
from ..protocol.wire import dumps
from . import scopes
from .rules import Budget, Budgets, Refused

_HOUR_MS = 3600 * 1000

#: How long things are kept, in milliseconds (design: section 9, Idempotency).
KEEP_FINISHED_MS = 30 * 24 * _HOUR_MS
KEEP_RESERVE_MS = 24 * _HOUR_MS  # or the reservation's lifetime, if that is longer
KEEP_EVALUATION_MS = 24 * _HOUR_MS
KEEP_EVENT_MS = 7 * 24 * _HOUR_MS

#: Encodes JSON in its one canonical form.
encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

#: Decoded JSON, as operations answer it.
Json = Dict[str, Any]

#: The defaults of an operation that has none in the tenant's settings.
NO_DEFAULTS: Json = {}


class Reservation(NamedTuple):
    """A row of `reservations`; see `schema`."""

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
    defaults: str
    answer: bytes
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
        return self.held.split(" ")


# ---- Budgets ----

#: The levels of a subject, and so the most scopes that one operation affects.
_DEEPEST = 6

_BUDGET = "scope, unit, allocated, spent, reserved, debt, overdraft_limit, is_over_limit, status, caps"

#: One statement per number of scopes, so that sqlite3 finds it compiled.
_BUDGETS_OF = [
    "SELECT {} FROM budgets WHERE unit = ? AND scope IN ({}) ORDER BY scope".format(_BUDGET, ",".join("?" * count))
    for count in range(_DEEPEST + 1)
]
_SAVE_AMOUNTS = (
    "UPDATE budgets SET allocated = ?, spent = ?, reserved = ?, debt = ?, is_over_limit = ?"
    " WHERE scope = ? AND unit = ?"
)
_SAVE_BUDGET = f"INSERT OR REPLACE INTO budgets ({_BUDGET}) VALUES (?,?,?,?,?,?,?,?,?,?)"


def _budget(row: Sequence[Any]) -> Budget:
    """The budget in a row of `_BUDGET`'s columns."""
    caps = row[9]
    return Budget._make((*row[:7], bool(row[7]), row[8], None if caps is None else json.loads(caps)))


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
    db.execute(_SAVE_BUDGET, (*made[:9], caps))


# ---- Reservations ----

_COLUMNS = ", ".join(Reservation._fields)
_ADD = "INSERT INTO reservations ({}) VALUES ({})".format(_COLUMNS, ",".join("?" * len(Reservation._fields)))
_FIND = f"SELECT {_COLUMNS} FROM reservations WHERE id = ? AND (forget_at_ms IS NULL OR forget_at_ms >= ?)"
_FIND_BY_KEY = (
    f"SELECT {_COLUMNS} FROM reservations"
    " WHERE tenant = ? AND idempotency_key = ? AND reply_until_ms >= ? ORDER BY number DESC LIMIT 1"
)
_LIST = f"SELECT {_COLUMNS} FROM reservations WHERE {{}} ORDER BY {{}} LIMIT ?"
_FINISH = "UPDATE reservations SET status = ?, committed = ?, finalized_at_ms = ?, forget_at_ms = ? WHERE number = ?"
_EXTEND = "UPDATE reservations SET expires_at_ms = ?, deadline_ms = ?, extensions = ? WHERE number = ?"
_ADD_SETTLEMENT = "INSERT INTO settlements (number, idempotency_key, payload, answer, metadata) VALUES (?,?,?,?,?)"
_FIND_SETTLEMENT = "SELECT idempotency_key, payload, answer, metadata FROM settlements WHERE number = ?"


def add(db: sqlite3.Connection, made: Reservation) -> None:
    """Write a new reservation."""
    db.execute(_ADD, made)


def find(db: sqlite3.Connection, id: str, now: int) -> Reservation | None:
    """The reservation of an id, unless the time to keep it is over."""
    row = db.execute(_FIND, (id, now)).fetchone()
    return None if row is None else Reservation._make(row)


def find_all(db: sqlite3.Connection, where: str, order: str, values: Sequence[Any]) -> list[Reservation]:
    """Reservations by a condition and an order. The last of the values is the most to find."""
    return [Reservation._make(row) for row in db.execute(_LIST.format(where, order), values).fetchall()]


def finish(
    db: sqlite3.Connection, now: int, of: Reservation, committed: int | None, payload: Json, answer: Json
) -> Json:
    """Write how a reservation ended, store the answer for replays, and return it."""
    db.execute(_FINISH, (answer["status"], committed, now, now + KEEP_FINISHED_MS, of.number))
    metadata = encode(payload["metadata"]) if "metadata" in payload else None
    settlement = (of.number, payload["idempotency_key"], _fingerprint(payload, {}), dumps(answer), metadata)
    db.execute(_ADD_SETTLEMENT, settlement)
    return answer


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
        settlement = db.execute(_FIND_SETTLEMENT, (of.number,)).fetchone()
        if settlement is not None and settlement[3] is not None:
            shown["committed_metadata"] = json.loads(settlement[3])
    return shown


# ---- Replies ----

_FIND_REPLY = (
    "SELECT payload, defaults, answer FROM replies"
    " WHERE tenant = ? AND operation = ? AND target = ? AND idempotency_key = ? AND expires_at_ms >= ?"
)
_ADD_REPLY = (
    "INSERT OR REPLACE INTO replies"
    " (tenant, operation, target, idempotency_key, payload, defaults, answer, expires_at_ms) VALUES (?,?,?,?,?,?,?,?)"
)
_KEEP_LONGER = "UPDATE replies SET expires_at_ms = ? WHERE tenant = ? AND operation = ? AND target = ?"


def canonical(payload: Json, defaults: Json) -> str:
    """The canonical JSON of a request after defaults, its idempotency key apart."""
    whole = {**defaults, **payload}
    del whole["idempotency_key"]
    return encode(whole)


def _fingerprint(payload: Json, defaults: Json) -> bytes:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(payload, defaults).encode("ascii")).digest()


def _demand_same(kept: object, given: object, key: str) -> None:
    """Refuse a key that was used with another payload."""
    if kept != given:
        message = "This idempotency key was used before with another payload."
        raise Refused("IDEMPOTENCY_MISMATCH", message, {"idempotency_key": key})


#: Decodes a stored answer.
_decoded: Callable[[bytes], Json] = json.loads


class Once:
    """One idempotency key in use: it finds the stored answer for the key, and stores a new one.

    A key is unique within a tenant and an operation, and for an extension within its `target`, the reservation.
    """

    def __init__(
        self, db: sqlite3.Connection, now: int, tenant: str, operation: str, payload: Json, target: str = ""
    ) -> None:
        self._db, self._now, self._payload = db, now, payload
        self._slot = (tenant, operation, target, payload["idempotency_key"])

    def replayed(self) -> Json | None:
        """The answer that is stored for the key. Raises `Refused` if the key was used with another payload."""
        row = self._db.execute(_FIND_REPLY, (*self._slot, self._now)).fetchone()
        if row is None:
            return None
        _demand_same(row[0], _fingerprint(self._payload, json.loads(row[1])), self._slot[3])
        return _decoded(row[2])

    def reserved(self) -> Json | None:
        """The answer kept for a key to reserve with: a reservation's, or a dry run's."""
        row = self._db.execute(_FIND_BY_KEY, (self._slot[0], self._slot[3], self._now)).fetchone()
        if row is None:
            return self.replayed()
        made = Reservation._make(row)
        _demand_same(made.request, canonical(self._payload, json.loads(made.defaults)), self._slot[3])
        return refreshed(_decoded(made.answer), made, self._now)

    def keep(self, answer: Json, until: int, defaults: Json = NO_DEFAULTS) -> Json:
        """Store the answer until a time in milliseconds since 1970, and return it."""
        kept = (_fingerprint(self._payload, defaults), encode(defaults), dumps(answer), until)
        self._db.execute(_ADD_REPLY, (*self._slot, *kept))
        return answer

    def keep_others(self, until: int) -> None:
        """Keep the other answers of the target for as long as the newest."""
        self._db.execute(_KEEP_LONGER, (until, *self._slot[:3]))


def find_settled(db: sqlite3.Connection, of: Reservation, status: str, payload: Json) -> Json | None:
    """The answer of the settlement that ended a reservation with this status, if its key is the same."""
    found = db.execute(_FIND_SETTLEMENT, (of.number,)).fetchone() if of.status == status else None
    if found is None or found[0] != payload["idempotency_key"]:
        return None
    _demand_same(found[1], _fingerprint(payload, {}), found[0])
    return _decoded(found[2])


def refreshed(answer: Json, of: Reservation, now: int) -> Json:
    """A stored answer with a new `remaining_ttl_ms`, which is 0 once the reservation has ended."""
    answer["remaining_ttl_ms"] = max(0, answer["expires_at_ms"] - now) if of.status == ReservationStatus.ACTIVE else 0
    return answer
