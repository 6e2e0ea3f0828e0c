"""The operations that change something: reserve and decide, commit, release and extend, and events.

Each runs in a transaction that may write, and takes the same steps: return the stored answer if the idempotency key has
one; demand what must be so; let `rules` work out the budgets; write the rows; return the answer, as decoded JSON. What
is stored is text, so that a caller who changes the returned object does not change the stored answer.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from operator import attrgetter
from typing import Any, Mapping, Sequence

from ..protocol import models
from ..protocol.checks import INT64_MAX
from ..protocol.values import Amount, ReservationStatus
from . import replies, rows, rules, scopes, tenants
from .replies import Once
from .rows import Json, Reservation
from .rules import Budgets, Refused
from .tenants import Settings

DEFAULT_GRACE_MS = 5000

_COMMITTED = ReservationStatus.COMMITTED.value
_RELEASED = ReservationStatus.RELEASED.value

#: What lists and a single reservation show of the request.
_SHOWN = ("action", "metadata", "subject")

#: The reason codes of `decide` that differ from the error codes of other operations (protocol: DecisionReasonCode).
_REASONS = {"NOT_FOUND": "BUDGET_NOT_FOUND"}


# ---- Reservations being made, and the evaluations that only ask (protocol: createReservation, decide) ----


def reserve(db: sqlite3.Connection, now: int, request: models.ReservationCreateRequest, tenant: str) -> Json:
    """Hold an estimate in every budgeted scope, or with `dry_run` tell what would happen."""
    payload = request.to_json()
    once = Once(db, now, tenant, "reserve", payload)  # a dry run and a reservation share their keys
    replayed = once.reserved()
    if replayed is not None:
        return replayed
    settings, affected = tenants.settings(db, tenant), scopes.derive(request.subject)
    defaults, encoded_defaults = _defaults(settings)
    if request.dry_run:
        answer = _evaluated(db, settings, tenant, affected, request.estimate, is_dry_run=True)
        return once.keep(answer, now + replies.KEEP_EVALUATION_MS, defaults)
    _, held, caps = _allowed(db, settings, tenant, affected, request.estimate)
    terms = {**defaults, **payload}
    expires_at_ms = now + min(terms["ttl_ms"], settings.max_ttl_ms)
    deadline_ms = expires_at_ms + terms["grace_period_ms"]
    made = Reservation(
        id="rsv_" + os.urandom(16).hex(),
        tenant=tenant,
        idempotency_key=payload["idempotency_key"],
        unit=held[0].unit,
        reserved=request.estimate.amount,
        overage_policy=str(terms["overage_policy"]),
        created_at_ms=now,
        expires_at_ms=expires_at_ms,
        deadline_ms=deadline_ms,
        scope_path=affected[-1],
        held=" ".join(map(attrgetter("scope"), held)),
        request=rows.encode({name: payload[name] for name in _SHOWN if name in payload}),
        reply_until_ms=max(deadline_ms, now + replies.KEEP_RESERVE_MS),
    )
    rows.save_amounts(db, held)
    return once.keep_reserved(made, (defaults, encoded_defaults), caps, held)


@functools.lru_cache(maxsize=128)
def _defaults(settings: Settings) -> tuple[Json, str]:
    """The values of the tenant that a request has left out, as a mapping and as canonical JSON."""
    defaults = {
        "ttl_ms": settings.default_ttl_ms,
        "grace_period_ms": DEFAULT_GRACE_MS,
        "overage_policy": settings.default_overage_policy,
    }
    return defaults, rows.encode(defaults)


def decide(db: sqlite3.Connection, now: int, request: models.DecisionRequest, tenant: str) -> Json:
    """Tell what a reservation would be told. Budget-state conditions are a DENY, never an error."""
    once = Once(db, now, tenant, "decide", request.to_json())
    replayed = once.replayed()
    if replayed is not None:
        return replayed
    settings, affected = tenants.settings(db, tenant), scopes.derive(request.subject)
    answer = _evaluated(db, settings, tenant, affected, request.estimate, is_dry_run=False)
    return once.keep(answer, now + replies.KEEP_EVALUATION_MS)


def _evaluated(
    db: sqlite3.Connection, settings: Settings, tenant: str, affected: Sequence[str], estimate: Amount, is_dry_run: bool
) -> Json:
    """The answer to a request that only asks. A wrong unit is the request's fault, and is refused."""
    answer: Json
    budgets: Budgets = ()
    try:
        budgets, _, caps = _allowed(db, settings, tenant, affected, estimate)
        answer = {"decision": "ALLOW"} if caps is None else {"decision": "ALLOW_WITH_CAPS", "caps": caps}
    except Refused as e:
        code = e.code
        if code == "UNIT_MISMATCH":
            raise
        answer = {"decision": "DENY", "reason_code": _REASONS.get(code, code)}
    answer["affected_scopes"] = list(affected)
    if is_dry_run:  # protocol: DRY-RUN RESPONSE RULES
        answer["scope_path"] = affected[-1]
        if budgets:
            answer["reserved"] = {"unit": budgets[0].unit, "amount": estimate.amount}
            answer["balances"] = rules.balances(budgets)
    return answer


def _allowed(
    db: sqlite3.Connection, settings: Settings, tenant: str, affected: Sequence[str], estimate: Amount
) -> tuple[Budgets, Budgets, Mapping[str, Any] | None]:
    """The budgets before and after an estimate is held, and the caps of the deepest scope's budget.

    Raises `Refused` for whatever does not allow the estimate.
    """
    if settings.status == rules.CLOSED:
        raise tenants.closed(tenant)
    budgets = budgets_in(db, affected, estimate)
    held = rules.hold(budgets, estimate.amount)
    return budgets, held, budgets[-1].caps if budgets[-1].scope == affected[-1] else None


def budgets_in(db: sqlite3.Connection, affected: Sequence[str], amount: Amount) -> Budgets:
    """The budgets of the affected scopes in an amount's unit. Raises `Refused` where none has one."""
    unit = amount.unit.value
    budgets = rows.budgets_of(db, affected, unit)
    if budgets:
        return budgets
    for scope in affected:
        units = [budget.unit for budget in rows.find_budgets(db, "scope = ? ORDER BY unit", (scope,))]
        if units:
            message = "{} has no budget in {}; it has one in {}.".format(scope, unit, ", ".join(units))
            raise _mismatch(message, scope, unit, units)
    details = {"scope": affected[-1], "unit": unit}
    raise Refused("NOT_FOUND", f"Budget not found for provided scope: {affected[-1]}", details)


def _mismatch(message: str, scope: str, unit: str, expected: Sequence[str]) -> Refused:
    return Refused("UNIT_MISMATCH", message, {"scope": scope, "requested_unit": unit, "expected_units": expected})


# ---- Reservations that end or go on (protocol: commit, release, extend) ----


def owned(db: sqlite3.Connection, now: int, id: str, owner: str | None) -> Reservation:
    """The reservation of an id. If there is none, that is refused (404) before another tenant's is (403). An owner of
    None may act on every tenant's."""
    found = rows.find(db, id, now)
    if found is None:
        raise Refused("NOT_FOUND", "There is no reservation with this id.", {"reservation_id": id})
    if owner is not None and owner != found.tenant:
        raise Refused("FORBIDDEN", "The reservation belongs to another tenant.")
    return found


def commit(db: sqlite3.Connection, now: int, id: str, request: models.CommitRequest, owner: str | None) -> Json:
    """Settle a reservation with what the action really cost."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = replies.find_settled(db, found, _COMMITTED, payload)
    if replayed is not None:
        return replayed
    _demand_active(db, found)
    unit = request.actual.unit.value
    if unit != found.unit:
        message = f"The reservation is in {found.unit}, not in {unit}."
        raise _mismatch(message, found.scope_path, unit, [found.unit])
    budgets = rows.budgets_of(db, found.held_scopes, unit)
    made = rules.charge(budgets, found.reserved, request.actual.amount, found.overage_policy)
    rows.save_amounts(db, made.budgets)
    how = (_COMMITTED, made.charged, made.released or None, made.budgets)
    return replies.finish(db, now, found, payload, *how)


def release(db: sqlite3.Connection, now: int, id: str, request: models.ReleaseRequest, owner: str | None) -> Json:
    """Give a hold back unused."""
    found = owned(db, now, id, owner)
    payload = request.to_json()
    replayed = replies.find_settled(db, found, _RELEASED, payload)
    if replayed is not None:
        return replayed
    _demand_active(db, found)
    budgets = rules.free(rows.budgets_of(db, found.held_scopes, found.unit), found.reserved)
    rows.save_amounts(db, budgets)
    return replies.finish(db, now, found, payload, _RELEASED, None, found.reserved, budgets)


def extend(
    db: sqlite3.Connection, now: int, id: str, request: models.ReservationExtendRequest, owner: str | None
) -> Json:
    """Move the expiry outward, from where it is."""
    found = owned(db, now, id, owner)
    once = Once(db, now, found.tenant, "extend", request.to_json(), id)
    replayed = once.replayed()
    if replayed is not None:
        return replies.refreshed(replayed, found, now)
    settings = _demand_active(db, found)
    if now > found.expires_at_ms:
        raise expired(found)
    if found.extensions >= settings.max_extensions:
        message = f"The reservation was extended {found.extensions} times, which is all that its tenant allows."
        raise Refused("MAX_EXTENSIONS_EXCEEDED", message, {"max_extensions": settings.max_extensions})
    extended = found._replace(
        expires_at_ms=found.expires_at_ms + request.extend_by_ms,
        deadline_ms=found.deadline_ms + request.extend_by_ms,
        extensions=found.extensions + 1,
    )
    if extended.deadline_ms > INT64_MAX:
        raise Refused("INVALID_REQUEST", "The new expiry would leave the range of times.")
    answer = {
        "status": ReservationStatus.ACTIVE.value,
        "expires_at_ms": extended.expires_at_ms,
        "remaining_ttl_ms": extended.expires_at_ms - now,
        "balances": rules.balances(rows.budgets_of(db, found.held_scopes, found.unit)),
    }
    rows.save_extended(db, extended)
    # A key of an earlier extension must not extend again for as long as the reservation lives.
    once.keep_others(extended.expires_at_ms)
    return once.keep(answer, extended.expires_at_ms)


def _demand_active(db: sqlite3.Connection, found: Reservation) -> Settings:
    """The settings of a reservation's tenant, which must be open, while the reservation must hold its amount.

    Holds that are due were freed before, so an ACTIVE reservation is within its grace.
    """
    settings = tenants.demand_open(db, found.tenant)
    if found.status == ReservationStatus.EXPIRED:
        raise expired(found)
    if found.status != ReservationStatus.ACTIVE:
        message = f"The reservation was {found.status.lower()} before."
        raise Refused("RESERVATION_FINALIZED", message, {"reservation_id": found.id, "status": found.status})
    return settings


def expired(found: Reservation) -> Refused:
    """The refusal of a reservation that is too old."""
    details = {"reservation_id": found.id, "expires_at_ms": found.expires_at_ms}
    return Refused("RESERVATION_EXPIRED", "The reservation has expired.", details)


# ---- Events (protocol: createEvent) ----


def record_event(db: sqlite3.Connection, now: int, request: models.EventCreateRequest, tenant: str) -> Json:
    """Charge spend that no reservation preceded, in every budgeted scope or in none."""
    payload = request.to_json()
    once = Once(db, now, tenant, "event", payload)
    replayed = once.replayed()
    if replayed is not None:
        return replayed
    defaults = {"overage_policy": tenants.demand_open(db, tenant).default_overage_policy}
    budgets = budgets_in(db, scopes.derive(request.subject), request.actual)
    made = rules.charge_event(budgets, request.actual.amount, str({**defaults, **payload}["overage_policy"]))
    answer: Json = {"status": "APPLIED", "event_id": "evt_" + os.urandom(16).hex()}
    if made.charged < request.actual.amount:
        answer["charged"] = {"unit": request.actual.unit.value, "amount": made.charged}
    answer["balances"] = rules.balances(made.budgets)
    rows.save_amounts(db, made.budgets)
    return once.keep(answer, now + replies.KEEP_EVENT_MS, defaults)
