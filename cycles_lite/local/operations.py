"""The operations that change something: reserve and decide, commit, release and extend, and events.

Each runs in a transaction that may write, and goes the same way: give a stored answer again where the key has one;
demand what must be so; let `rules` work out the budgets; write the rows; answer, as decoded JSON. The rows keep the
answer's text, so that nobody who changes what was answered changes what is answered the next time.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from typing import Any, Mapping, Sequence

from ..protocol.checks import INT64_MAX
from ..protocol.models import (
    CommitRequest,
    DecisionRequest,
    EventCreateRequest,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationExtendRequest,
)
from ..protocol.values import Amount
from ..protocol.wire import dumps
from . import rows, rules, scopes, tenants
from .rows import Json, Reservation, Settlement, Slot
from .rules import Budgets, Refusal, Refused

DEFAULT_GRACE_MS = 5000

#: How an evaluation calls what an operation refuses under another name (protocol: DecisionReasonCode).
_REASONS = {"NOT_FOUND": "BUDGET_NOT_FOUND"}


# ---- Reservations being made, and the evaluations that only ask (protocol: createReservation, decide) ----


def reserve(db: sqlite3.Connection, now: int, request: ReservationCreateRequest, tenant: str) -> Json:
    """Hold an estimate in every budgeted scope, or with `dry_run` tell what would happen."""
    payload = request.to_json()
    slot = Slot(tenant, "reserve", "", request.idempotency_key)  # dry runs share it
    replayed = rows.find_reserved(db, slot, payload, now)
    if replayed is not None:
        return replayed
    settings, affected = tenants.settings(db, tenant), scopes.derive(request.subject)
    defaults, encoded_defaults = _defaults(settings)
    if request.dry_run:
        answer = _dry_run(db, settings, tenant, affected, request.estimate)
        rows.keep(db, slot, payload, defaults, dumps(answer), now + rows.KEEP_EVALUATION_MS)
        return answer
    answer, _, held = _allowed(db, settings, tenant, affected, request.estimate)
    terms = {**defaults, **payload}
    expires_at_ms = now + min(terms["ttl_ms"], settings.max_ttl_ms)
    deadline_ms = expires_at_ms + terms["grace_period_ms"]
    answer.update(
        reservation_id="rsv_" + os.urandom(16).hex(),
        reserved=_amount(request.estimate),
        expires_at_ms=expires_at_ms,
        remaining_ttl_ms=expires_at_ms - now,
        scope_path=affected[-1],
        affected_scopes=list(affected),
        balances=balances(held),
    )
    made = Reservation(
        id=answer["reservation_id"],
        tenant=tenant,
        idempotency_key=request.idempotency_key,
        unit=held[0].unit,
        reserved=request.estimate.amount,
        overage_policy=str(terms["overage_policy"]),
        created_at_ms=now,
        expires_at_ms=expires_at_ms,
        deadline_ms=deadline_ms,
        scope_path=affected[-1],
        held=" ".join([budget.scope for budget in held]),
        request=rows.canonical(payload, defaults),
        defaults=encoded_defaults,
        answer=dumps(answer),
        reply_until_ms=max(deadline_ms, now + rows.KEEP_RESERVE_MS),
    )
    rows.save_amounts(db, held)
    rows.add(db, made)
    return answer


@functools.lru_cache(maxsize=128)
def _defaults(settings: tenants.Settings) -> tuple[Mapping[str, Any], str]:
    """What a request leaves to its tenant, also as canonical JSON."""
    defaults = {
        "ttl_ms": settings.default_ttl_ms,
        "grace_period_ms": DEFAULT_GRACE_MS,
        "overage_policy": settings.default_overage_policy,
    }
    return defaults, rows.encode(defaults)


def decide(db: sqlite3.Connection, now: int, request: DecisionRequest, tenant: str) -> Json:
    """Tell what a reservation would be told. Budget-state conditions are a DENY, never an error."""
    payload = request.to_json()
    slot = Slot(tenant, "decide", "", request.idempotency_key)
    replayed = rows.find_reply(db, slot, payload, now)
    if replayed is not None:
        return replayed
    settings, affected = tenants.settings(db, tenant), scopes.derive(request.subject)
    answer, _ = _evaluated(db, settings, tenant, affected, request.estimate)
    rows.keep(db, slot, payload, {}, dumps(answer), now + rows.KEEP_EVALUATION_MS)
    return answer


def _dry_run(
    db: sqlite3.Connection, settings: tenants.Settings, tenant: str, affected: Sequence[str], estimate: Amount
) -> Json:
    """Protocol: DRY-RUN RESPONSE RULES."""
    answer, budgets = _evaluated(db, settings, tenant, affected, estimate)
    answer["scope_path"] = affected[-1]
    if budgets:
        answer.update(reserved=_amount(estimate), balances=balances(budgets))
    return answer


def _evaluated(
    db: sqlite3.Connection, settings: tenants.Settings, tenant: str, affected: Sequence[str], estimate: Amount
) -> tuple[Json, Budgets]:
    """The decision as an answer, and the budgets where it allows. A wrong unit is the request's fault: no decision."""
    budgets: Budgets = ()
    try:
        answer, budgets, _ = _allowed(db, settings, tenant, affected, estimate)
    except Refused as e:
        code = e.refusal.code
        if code == "UNIT_MISMATCH":
            raise
        answer = {"decision": "DENY", "reason_code": _REASONS.get(code, code)}
    answer["affected_scopes"] = list(affected)
    return answer, budgets


def _allowed(
    db: sqlite3.Connection, settings: tenants.Settings, tenant: str, affected: Sequence[str], estimate: Amount
) -> tuple[Json, Budgets, Budgets]:
    """The decision with the caps of the deepest scope's budget, and the budgets before and after it is held.

    Raises `Refused` for whatever does not allow the estimate.
    """
    if settings.status == rules.CLOSED:
        raise Refused(tenants.closed(tenant))
    budgets = _budgets(db, affected, estimate)
    held = rules.hold(budgets, estimate.amount)
    caps = budgets[-1].caps if budgets[-1].scope == affected[-1] else None
    decision: Json = {"decision": "ALLOW"} if caps is None else {"decision": "ALLOW_WITH_CAPS", "caps": caps}
    return decision, budgets, held


def _budgets(db: sqlite3.Connection, affected: Sequence[str], amount: Amount) -> Budgets:
    """The budgets of the affected scopes in an amount's unit. Raises `Refused` where none has one."""
    unit = amount.unit.value
    budgets = rows.budgets_of(db, affected, unit)
    if budgets:
        return budgets
    for scope in affected:
        units = rows.units_of(db, scope)
        if units:
            message = "{} has no budget in {}; it has one in {}.".format(scope, unit, ", ".join(units))
            raise Refused(_mismatch(message, scope, unit, units))
    details = {"scope": affected[-1], "unit": unit}
    raise Refused(Refusal("NOT_FOUND", f"Budget not found for provided scope: {affected[-1]}", details))


def _mismatch(message: str, scope: str, unit: str, expected: Sequence[str]) -> Refusal:
    return Refusal("UNIT_MISMATCH", message, {"scope": scope, "requested_unit": unit, "expected_units": expected})


def balances(budgets: Budgets) -> list[Json]:
    return [budget.to_json() for budget in budgets]


def _amount(amount: Amount) -> Json:
    return {"unit": amount.unit.value, "amount": amount.amount}


# ---- Reservations that end or go on (protocol: commit, release, extend) ----


def owned(db: sqlite3.Connection, now: int, id: str, owner: str | None) -> Reservation:
    """The reservation of an id: 404 before 403. An owner of None may act on every tenant's."""
    found = rows.find(db, id, now)
    if found is None:
        raise Refused(Refusal("NOT_FOUND", "There is no reservation with this id.", {"reservation_id": id}))
    if owner is not None and owner != found.tenant:
        raise Refused(Refusal("FORBIDDEN", "The reservation belongs to another tenant."))
    return found


def commit(db: sqlite3.Connection, now: int, id: str, request: CommitRequest, owner: str | None) -> Json:
    """Settle a reservation with what the action really cost."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = rows.find_settled(db, found, "COMMITTED", payload)
    if replayed is not None:
        return replayed
    _demand_active(db, found)
    unit = request.actual.unit.value
    if unit != found.unit:
        message = f"The reservation is in {found.unit}, not in {unit}."
        raise Refused(_mismatch(message, found.scope_path, unit, [found.unit]))
    budgets = rows.budgets_of(db, found.held_scopes, unit)
    made = rules.charge(budgets, found.reserved, request.actual.amount, found.overage_policy)
    answer: Json = {"status": "COMMITTED", "charged": {"unit": unit, "amount": made.charged}}
    if made.released:
        answer["released"] = {"unit": unit, "amount": made.released}
    answer["balances"] = balances(made.budgets)
    rows.save_amounts(db, made.budgets)
    return _finish(db, now, found._replace(committed=made.charged), payload, answer)


def release(db: sqlite3.Connection, now: int, id: str, request: ReleaseRequest, owner: str | None) -> Json:
    """Give a hold back unused."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = rows.find_settled(db, found, "RELEASED", payload)
    if replayed is not None:
        return replayed
    _demand_active(db, found)
    budgets = rules.free(rows.budgets_of(db, found.held_scopes, found.unit), found.reserved)
    released = {"unit": found.unit, "amount": found.reserved}
    answer = {"status": "RELEASED", "released": released, "balances": balances(budgets)}
    rows.save_amounts(db, budgets)
    return _finish(db, now, found, payload, answer)


def _finish(db: sqlite3.Connection, now: int, found: Reservation, payload: Mapping[str, Any], answer: Json) -> Json:
    """Write the end of a reservation, with the answer to replay."""
    ended = found._replace(status=answer["status"], finalized_at_ms=now, forget_at_ms=now + rows.KEEP_FINISHED_MS)
    metadata = payload.get("metadata")
    settlement = Settlement(
        payload["idempotency_key"],
        rows.fingerprint(payload, {}),
        dumps(answer),
        None if metadata is None else rows.encode(metadata),
    )
    rows.finish(db, ended, settlement)
    return answer


def extend(db: sqlite3.Connection, now: int, id: str, request: ReservationExtendRequest, owner: str | None) -> Json:
    """Move the expiry outward, from where it is."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    slot = Slot(found.tenant, "extend", id, request.idempotency_key)
    replayed = rows.find_reply(db, slot, payload, now)
    if replayed is not None:
        return rows.refreshed(replayed, found, now)
    settings = _demand_active(db, found)
    if now > found.expires_at_ms:
        raise Refused(expired(found))
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
    answer = {
        "status": "ACTIVE",
        "expires_at_ms": extended.expires_at_ms,
        "remaining_ttl_ms": extended.expires_at_ms - now,
        "balances": balances(rows.budgets_of(db, found.held_scopes, found.unit)),
    }
    rows.save_extended(db, extended)
    # A key of an earlier extension must not extend again for as long as the reservation lives.
    rows.keep_longer(db, slot, extended.expires_at_ms)
    rows.keep(db, slot, payload, {}, dumps(answer), extended.expires_at_ms)
    return answer


def _demand_active(db: sqlite3.Connection, found: Reservation) -> tenants.Settings:
    """The settings of a reservation's tenant, which must be open, while the reservation must hold its amount.

    Holds that are due were freed before, so an ACTIVE reservation is within its grace.
    """
    settings = tenants.demand_open(db, found.tenant)
    if found.status == "EXPIRED":
        raise Refused(expired(found))
    if found.status != "ACTIVE":
        message = f"The reservation was {found.status.lower()} before."
        raise Refused(Refusal("RESERVATION_FINALIZED", message, {"reservation_id": found.id, "status": found.status}))
    return settings


def expired(found: Reservation) -> Refusal:
    """The refusal of a reservation that is too old."""
    details = {"reservation_id": found.id, "expires_at_ms": found.expires_at_ms}
    return Refusal("RESERVATION_EXPIRED", "The reservation has expired.", details)


# ---- Events (protocol: createEvent) ----


def record_event(db: sqlite3.Connection, now: int, request: EventCreateRequest, tenant: str) -> Json:
    """Charge spend that no reservation preceded, in every budgeted scope or in none."""
    payload = request.to_json()
    slot = Slot(tenant, "event", "", request.idempotency_key)
    replayed = rows.find_reply(db, slot, payload, now)
    if replayed is not None:
        return replayed
    defaults = {"overage_policy": tenants.demand_open(db, tenant).default_overage_policy}
    budgets = _budgets(db, scopes.derive(request.subject), request.actual)
    made = rules.charge_event(budgets, request.actual.amount, str({**defaults, **payload}["overage_policy"]))
    answer: Json = {"status": "APPLIED", "event_id": "evt_" + os.urandom(16).hex()}
    if made.charged < request.actual.amount:
        answer["charged"] = {**_amount(request.actual), "amount": made.charged}
    answer["balances"] = balances(made.budgets)
    rows.save_amounts(db, made.budgets)
    rows.keep(db, slot, payload, defaults, dumps(answer), now + rows.KEEP_EVENT_MS)
    return answer
