"""Reservations being settled or extended, and events (protocol: commit, release, extend, createEvent)."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Mapping

from ..protocol.checks import INT64_MAX
from ..protocol.models import CommitRequest, EventCreateRequest, ReleaseRequest, ReservationExtendRequest
from ..protocol.wire import dumps
from . import budget_rows, replies, reservation_rows, rules, scopes, tenants
from .replies import Slot
from .reservation_rows import Reservation, Settlement
from .reserving import balances, missing_budget
from .rules import Charge, Refusal, Refused


def owned(db: sqlite3.Connection, now: int, id: str, owner: str | None) -> Reservation:
    """The reservation of an id: 404 before 403. An owner of None may act on every tenant's."""
    found = reservation_rows.find(db, id, now)
    if found is None:
        raise Refused(Refusal("NOT_FOUND", "There is no reservation with this id.", {"reservation_id": id}))
    if owner is not None and owner != found.tenant:
        raise Refused(Refusal("FORBIDDEN", "The reservation belongs to another tenant."))
    return found


def commit(db: sqlite3.Connection, now: int, id: str, request: CommitRequest, owner: str | None) -> bytes:
    """Settle a reservation with what the action really cost."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = _replayed(db, found, "COMMITTED", payload)
    if replayed is not None:
        return replayed
    tenants.demand_open(db, found.tenant)
    _demand_unfinished(found)
    if request.actual.unit.value != found.unit:
        raise Refused(_wrong_unit(found, request.actual.unit.value))
    budgets = budget_rows.budgets_of(db, found.held_scopes, found.unit)
    made = _demanded(rules.charge(budgets, found.reserved, request.actual.amount, found.overage_policy))
    answer: dict[str, Any] = {"status": "COMMITTED", "charged": {"unit": found.unit, "amount": made.charged}}
    if made.released:
        answer["released"] = {"unit": found.unit, "amount": made.released}
    answer["balances"] = balances(made.budgets)
    budget_rows.save_amounts(db, made.budgets)
    return _settle(db, now, found._replace(status="COMMITTED", committed=made.charged), payload, answer)


def release(db: sqlite3.Connection, now: int, id: str, request: ReleaseRequest, owner: str | None) -> bytes:
    """Give a hold back unused."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = _replayed(db, found, "RELEASED", payload)
    if replayed is not None:
        return replayed
    tenants.demand_open(db, found.tenant)
    _demand_unfinished(found)
    budgets = rules.free(budget_rows.budgets_of(db, found.held_scopes, found.unit), found.reserved)
    answer = {
        "status": "RELEASED",
        "released": {"unit": found.unit, "amount": found.reserved},
        "balances": balances(budgets),
    }
    budget_rows.save_amounts(db, budgets)
    return _settle(db, now, found._replace(status="RELEASED"), payload, answer)


def extend(db: sqlite3.Connection, now: int, id: str, request: ReservationExtendRequest, owner: str | None) -> bytes:
    """Move the expiry outward, from where it is."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    slot = Slot(found.tenant, "extend", id, request.idempotency_key)
    replayed = replies.find(db, slot, payload, now)
    if replayed is not None:
        return replayed
    settings = tenants.demand_open(db, found.tenant)
    _demand_unfinished(found)
    if now > found.expires_at_ms:
        raise Refused(_expired(found))
    if found.extensions >= settings.max_extensions:
        message = f"The reservation was extended {found.extensions} times, which is all that its tenant allows."
        raise Refused(Refusal("MAX_EXTENSIONS_EXCEEDED", message, {"max_extensions": settings.max_extensions}))
    extended = found._replace(
        expires_at_ms=found.expires_at_ms + request.extend_by_ms,
        deadline_ms=found.deadline_ms + request.extend_by_ms,
        extensions=found.extensions + 1,
    )
    if extended.deadline_ms > INT64_MAX:
        raise Refused(Refusal("INVALID_REQUEST", "The new expiry would leave the range of times."))
    answer = dumps(
        {
            "status": "ACTIVE",
            "expires_at_ms": extended.expires_at_ms,
            "remaining_ttl_ms": extended.expires_at_ms - now,
            "balances": balances(budget_rows.budgets_of(db, found.held_scopes, found.unit)),
        }
    )
    reservation_rows.save_extended(db, extended)
    # A key of an earlier extension must not extend again for as long as the reservation lives.
    replies.keep_longer(db, slot, extended.expires_at_ms)
    replies.keep(db, slot, payload, {}, answer, extended.expires_at_ms)
    return answer


def record_event(db: sqlite3.Connection, now: int, request: EventCreateRequest, tenant: str) -> bytes:
    """Charge spend that no reservation preceded, in every budgeted scope or in none."""
    payload = request.to_json()
    slot = Slot(tenant, "event", "", request.idempotency_key)
    replayed = replies.find(db, slot, payload, now)
    if replayed is not None:
        return replayed
    settings = tenants.demand_open(db, tenant)
    defaults = {"overage_policy": settings.default_overage_policy}
    unit, actual = request.actual.unit.value, request.actual.amount
    affected = scopes.derive(request.subject)
    budgets = budget_rows.budgets_of(db, affected, unit)
    if not budgets:
        raise Refused(missing_budget(db, affected, unit))
    policy = str(payload.get("overage_policy", settings.default_overage_policy))
    made = _demanded(rules.charge_event(budgets, actual, policy))
    answer: dict[str, Any] = {"status": "APPLIED", "event_id": "evt_" + os.urandom(16).hex()}
    if made.charged < actual:
        answer["charged"] = {"unit": unit, "amount": made.charged}
    answer["balances"] = balances(made.budgets)
    encoded = dumps(answer)
    budget_rows.save_amounts(db, made.budgets)
    replies.keep(db, slot, payload, defaults, encoded, now + replies.KEEP_EVENT_MS)
    return encoded


def _replayed(db: sqlite3.Connection, found: Reservation, status: str, payload: Mapping[str, Any]) -> bytes | None:
    """The answer of the settlement that ended a reservation, if this is the same one."""
    settlement = reservation_rows.find_settlement(db, found) if found.status == status else None
    if settlement is None or settlement.idempotency_key != payload["idempotency_key"]:
        return None
    replies.demand_same(settlement.payload, replies.fingerprint(payload, {}), settlement.idempotency_key)
    return settlement.answer


def _demand_unfinished(found: Reservation) -> None:
    """Holds that are due were freed before, so an ACTIVE reservation is within its grace."""
    if found.status == "EXPIRED":
        raise Refused(_expired(found))
    if found.status != "ACTIVE":
        message = f"The reservation was {found.status.lower()} before."
        raise Refused(Refusal("RESERVATION_FINALIZED", message, {"reservation_id": found.id, "status": found.status}))


def _expired(found: Reservation) -> Refusal:
    details = {"reservation_id": found.id, "expires_at_ms": found.expires_at_ms}
    return Refusal("RESERVATION_EXPIRED", "The reservation has expired.", details)


def _wrong_unit(found: Reservation, unit: str) -> Refusal:
    message = f"The reservation is in {found.unit}, not in {unit}."
    details = {"scope": found.scope_path, "requested_unit": unit, "expected_units": [found.unit]}
    return Refusal("UNIT_MISMATCH", message, details)


def _demanded(made: Charge | Refusal) -> Charge:
    if isinstance(made, Refusal):
        raise Refused(made)
    return made


def _settle(
    db: sqlite3.Connection, now: int, ended: Reservation, payload: Mapping[str, Any], answer: Mapping[str, Any]
) -> bytes:
    """Write the end of a reservation, with the answer to replay."""
    encoded = dumps(answer)
    metadata = payload.get("metadata")
    settlement = Settlement(
        payload["idempotency_key"],
        replies.fingerprint(payload, {}),
        encoded,
        None if metadata is None else replies.encode(metadata),
    )
    ended = ended._replace(finalized_at_ms=now, forget_at_ms=now + reservation_rows.KEEP_FINISHED_MS)
    reservation_rows.finish(db, ended, settlement)
    return encoded
