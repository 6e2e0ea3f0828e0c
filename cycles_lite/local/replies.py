"""Idempotency: what was answered to which key (protocol: IDEMPOTENCY; design: section 9).

Only successes are kept. The payloads compared are the requests after defaults; as a tenant's settings may change
between a request and its replay, the defaults of the first time are kept with the answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import Any, Mapping, NamedTuple

from ..protocol.wire import dumps
from . import reservation_rows
from .rules import Refusal, Refused

_HOUR_MS = 3600 * 1000

#: How long answers are kept, in milliseconds.
KEEP_RESERVE_MS = 24 * _HOUR_MS  # or the reservation's lifetime, if that is longer
KEEP_EVALUATION_MS = 24 * _HOUR_MS
KEEP_EVENT_MS = 7 * 24 * _HOUR_MS

#: JSON in its one canonical form.
encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

_FIND = (
    "SELECT payload, defaults, answer, expires_at_ms FROM replies"
    " WHERE tenant = ? AND operation = ? AND target = ? AND idempotency_key = ?"
)
_ADD = (
    "INSERT OR REPLACE INTO replies"
    " (tenant, operation, target, idempotency_key, payload, defaults, answer, expires_at_ms) VALUES (?,?,?,?,?,?,?,?)"
)
_KEEP_LONGER = "UPDATE replies SET expires_at_ms = ? WHERE tenant = ? AND operation = ? AND target = ?"


class Slot(NamedTuple):
    """What a key is unique in."""

    tenant: str
    operation: str
    #: The reservation's id for an extension; "" elsewhere.
    target: str
    idempotency_key: str


def canonical(payload: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The canonical JSON of a request after defaults, its idempotency key apart."""
    whole = {**defaults, **payload}
    del whole["idempotency_key"]
    return encode(whole)


def fingerprint(payload: Mapping[str, Any], defaults: Mapping[str, Any]) -> bytes:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(payload, defaults).encode("ascii")).digest()


def demand_same(kept: object, given: object, key: str) -> None:
    """Refuse a key that was used with another payload."""
    if kept != given:
        message = "This idempotency key was used before with another payload."
        raise Refused(Refusal("IDEMPOTENCY_MISMATCH", message, {"idempotency_key": key}))


def find(db: sqlite3.Connection, slot: Slot, payload: Mapping[str, Any], now: int) -> bytes | None:
    """The answer kept for a key. Raises `Refused` when the payload was another."""
    row = db.execute(_FIND, slot).fetchone()
    if row is None or now > row[3]:
        return None
    demand_same(row[0], fingerprint(payload, json.loads(row[1])), slot.idempotency_key)
    answer: bytes = row[2]
    if not slot.target:
        return answer
    return _refreshed(answer, reservation_rows.is_active(db, slot.target), now)


def find_reserved(db: sqlite3.Connection, slot: Slot, payload: Mapping[str, Any], now: int) -> bytes | None:
    """The answer kept for a key to reserve with: a reservation's, or a dry run's."""
    found = reservation_rows.find_reply(db, slot.tenant, slot.idempotency_key, now)
    if found is None:
        return find(db, slot, payload, now)
    status, reply = found
    demand_same(reply.request, canonical(payload, json.loads(reply.defaults)), slot.idempotency_key)
    return _refreshed(reply.answer, status == "ACTIVE", now)


def _refreshed(answer: bytes, is_active: bool, now: int) -> bytes:
    """The answer with `remaining_ttl_ms` as of now: 0 once the hold is gone."""
    data: dict[str, Any] = json.loads(answer.decode("ascii"))
    data["remaining_ttl_ms"] = max(0, data["expires_at_ms"] - now) if is_active else 0
    return dumps(data)


def keep(
    db: sqlite3.Connection,
    slot: Slot,
    payload: Mapping[str, Any],
    defaults: Mapping[str, Any],
    answer: bytes,
    until: int,
) -> None:
    """Keep the answer to a key up to a time in milliseconds."""
    db.execute(_ADD, (*slot, fingerprint(payload, defaults), encode(defaults), answer, until))


def keep_longer(db: sqlite3.Connection, slot: Slot, until: int) -> None:
    """Let the answers of one target live as long as its newest."""
    db.execute(_KEEP_LONGER, (until, *slot[:3]))
