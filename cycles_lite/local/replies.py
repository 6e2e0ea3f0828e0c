"""Replies: the stored answers for idempotency keys (protocol: IDEMPOTENCY).

Only successes are stored. A replay must have the payload of the first request, which is compared with the tenant's
defaults filled in; as these may change, those of the first request are stored with the answer.

The answers that move a reservation are stored as what they are made of, as a fifth of the text: `created` and `settled`
make them for the first time and again for each replay. Version 1 of the tables had their whole JSON.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import Any, Callable, Mapping, Sequence

from ..protocol.values import ReservationStatus
from ..protocol.wire import dumps
from . import rows, rules, scopes
from .rows import Json, Reservation, encode
from .rules import Budget, Refused
from .schema import RESERVATIONS

_HOUR_MS = 3600 * 1000

#: How long replies are kept, in milliseconds. Those of settlements are kept as long as their reservations.
KEEP_RESERVE_MS = 24 * _HOUR_MS  # or the reservation's lifetime, if that is longer
KEEP_EVALUATION_MS = 24 * _HOUR_MS
KEEP_EVENT_MS = 7 * 24 * _HOUR_MS
KEEP_FUNDING_MS = 30 * 24 * _HOUR_MS

#: The defaults of an operation that has none in the tenant's settings.
NO_DEFAULTS: Json = {}

#: Decodes a stored answer.
_decoded: Callable[[bytes], Any] = json.loads


# ---- Payloads ----


def _fingerprint(payload: Json, defaults: Json) -> bytes:
    """SHA-256 of the canonical JSON of a request after defaults, its idempotency key apart."""
    whole = {**defaults, **payload}
    del whole["idempotency_key"]
    return _sha256(encode(whole))


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("ascii")).digest()


def _demand_same(kept: object, given: object, key: str) -> None:
    """Refuse a key that was used with another payload."""
    if kept != given:
        message = "This idempotency key was used before with another payload."
        raise Refused("IDEMPOTENCY_MISMATCH", message, {"idempotency_key": key})


# ---- Answers that are stored as what they are made of ----


def _amounts(budgets: Sequence[Budget]) -> list[Sequence[Any]]:
    """The fields of budgets that their balances tell, without those at the end that say nothing."""
    return [b[:8] if b.debt or b.overdraft_limit or b.is_over_limit else b[:5] for b in budgets]


def _balances(kept: Sequence[Sequence[Any]]) -> list[Json]:
    return rules.balances([Budget(*fields) for fields in kept])


def created(of: Reservation, expires_at_ms: int, caps: Mapping[str, Any] | None, shown: list[Json], now: int) -> Json:
    """The answer to the request that has made a reservation. The expiry is the first one, `shown` are the balances."""
    answer: Json = {"decision": "ALLOW"} if caps is None else {"decision": "ALLOW_WITH_CAPS", "caps": caps}
    answer["reservation_id"] = of.id
    answer["reserved"] = {"unit": of.unit, "amount": of.reserved}
    answer["expires_at_ms"] = expires_at_ms
    answer["remaining_ttl_ms"] = max(0, expires_at_ms - now) if of.status == ReservationStatus.ACTIVE else 0
    answer["scope_path"] = of.scope_path
    answer["affected_scopes"] = list(scopes.prefixes(of.scope_path))
    answer["balances"] = shown
    return answer


def settled(status: str, unit: str, charged: int | None, released: int | None, shown: list[Json]) -> Json:
    """The answer to a commit or release. `shown` are the balances."""
    answer: Json = {"status": status}
    if charged is not None:
        answer["charged"] = {"unit": unit, "amount": charged}
    if released is not None:
        answer["released"] = {"unit": unit, "amount": released}
    answer["balances"] = shown
    return answer


# ---- Replies of their own: dry runs, decisions, events, extensions; and those of reserving ----

_FIND_REPLY = (
    "SELECT payload, defaults, answer FROM replies"
    " WHERE tenant = ? AND operation = ? AND target = ? AND idempotency_key = ? AND expires_at_ms >= ?"
)
_ADD_REPLY = (
    "INSERT OR REPLACE INTO replies"
    " (tenant, operation, target, idempotency_key, payload, defaults, answer, expires_at_ms) VALUES (?,?,?,?,?,?,?,?)"
)
_KEEP_LONGER = "UPDATE replies SET expires_at_ms = ? WHERE tenant = ? AND operation = ? AND target = ?"
_ADD_PROMISE = "INSERT OR REPLACE INTO promises (until_ms, number, payload, defaults, answer) VALUES (?,?,?,?,?)"
_FIND_PROMISE = "SELECT payload, defaults, answer FROM promises WHERE until_ms = ? AND number = ?"
_OLD_PROMISE = f"SELECT request, defaults, answer FROM {RESERVATIONS} WHERE number = ? AND answer <> x''"


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
        return None if row is None else self._same(*row)

    def reserved(self) -> Json | None:
        """The answer kept for a key to reserve with: a reservation's, or a dry run's."""
        made = rows.find_by_key(self._db, self._slot[0], self._slot[3], self._now)
        kept = None if made is None else self._promise(made)
        if made is None or kept is None:
            return self.replayed()
        answer = self._same(*kept)
        if isinstance(answer, dict):
            return refreshed(answer, made, self._now)
        expires_at_ms, caps, amounts = answer
        return created(made, expires_at_ms, caps, _balances(amounts), self._now)

    def _promise(self, of: Reservation) -> tuple[bytes, str, bytes] | None:
        """The payload, the defaults and the answer that a reservation was made with. They are gone where the clock was
        ahead for a while."""
        found: tuple[bytes, str, bytes] | None
        found = self._db.execute(_FIND_PROMISE, (of.reply_until_ms, of.number)).fetchone()
        if found is None:
            old = self._db.execute(_OLD_PROMISE, (of.number,)).fetchone()
            found = None if old is None else (_sha256(old[0]), old[1], old[2])
        return found

    def _same(self, payload: bytes, defaults: str, answer: bytes) -> Any:
        """What is stored, decoded, if it is for the same payload."""
        _demand_same(payload, _fingerprint(self._payload, json.loads(defaults)), self._slot[3])
        return _decoded(answer)

    def keep(self, answer: Json, until: int, defaults: Json = NO_DEFAULTS) -> Json:
        """Store the answer until a time in milliseconds since 1970, and return it."""
        kept = (_fingerprint(self._payload, defaults), encode(defaults), dumps(answer), until)
        self._db.execute(_ADD_REPLY, (*self._slot, *kept))
        return answer

    def keep_reserved(
        self, made: Reservation, defaults: tuple[Json, str], caps: Mapping[str, Any] | None, held: Sequence[Budget]
    ) -> Json:
        """Write a new reservation, store the answer, and return it. `defaults` are the tenant's, also as text."""
        number = rows.add(self._db, made)
        kept = dumps([made.expires_at_ms, caps, _amounts(held)])
        promise = (made.reply_until_ms, number, _fingerprint(self._payload, defaults[0]), defaults[1], kept)
        self._db.execute(_ADD_PROMISE, promise)
        return created(made, made.expires_at_ms, caps, rules.balances(held), self._now)

    def keep_others(self, until: int) -> None:
        """Keep the other answers of the target for as long as the newest."""
        self._db.execute(_KEEP_LONGER, (until, *self._slot[:3]))


def refreshed(answer: Json, of: Reservation, now: int) -> Json:
    """A stored answer with a new `remaining_ttl_ms`, which is 0 once the reservation has ended."""
    answer["remaining_ttl_ms"] = max(0, answer["expires_at_ms"] - now) if of.status == ReservationStatus.ACTIVE else 0
    return answer


# ---- Replies of settlements ----

_ADD_SETTLEMENT = "INSERT INTO settlements (number, idempotency_key, payload, answer, metadata) VALUES (?,?,?,?,?)"
_FIND_SETTLEMENT = "SELECT idempotency_key, payload, answer FROM settlements WHERE number = ?"


def finish(
    db: sqlite3.Connection,
    now: int,
    of: Reservation,
    payload: Json,
    status: str,
    charged: int | None,
    released: int | None,
    budgets: Sequence[Budget],
) -> Json:
    """Write how a reservation ended, store the answer for replays, and return it."""
    rows.save_finished(db, now, of, status, charged)
    metadata = encode(payload["metadata"]) if "metadata" in payload else None
    kept = dumps([charged, released, _amounts(budgets)])
    db.execute(_ADD_SETTLEMENT, (of.number, payload["idempotency_key"], _fingerprint(payload, {}), kept, metadata))
    return settled(status, of.unit, charged, released, rules.balances(budgets))


def find_settled(db: sqlite3.Connection, of: Reservation, status: str, payload: Json) -> Json | None:
    """The answer of the settlement that ended a reservation with this status, if its key is the same."""
    found = db.execute(_FIND_SETTLEMENT, (of.number,)).fetchone() if of.status == status else None
    if found is None or found[0] != payload["idempotency_key"]:
        return None
    _demand_same(found[1], _fingerprint(payload, {}), found[0])
    kept = _decoded(found[2])
    if isinstance(kept, dict):
        return kept
    charged, released, amounts = kept
    return settled(status, of.unit, charged, released, _balances(amounts))
