"""Reservations being made, and the evaluations that only ask (protocol: createReservation, decide)."""

from __future__ import annotations

import functools
import os
import sqlite3
from typing import Any, Mapping, NamedTuple, Sequence

from ..protocol.models import DecisionRequest, ReservationCreateRequest
from ..protocol.values import Amount
from ..protocol.wire import dumps
from . import budget_rows, replies, reservation_rows, rules, scopes, tenants
from .replies import Slot
from .reservation_rows import Reply, Reservation
from .rules import Budgets, Refusal, Refused

DEFAULT_GRACE_MS = 5000


class Verdict(NamedTuple):
    """An evaluation that ended well: the budgets to debit, and the caps of the deepest scope's."""

    budgets: Budgets
    caps: Mapping[str, Any] | None


def reserve(db: sqlite3.Connection, now: int, request: ReservationCreateRequest, tenant: str) -> bytes:
    """Hold an estimate in every budgeted scope, or with `dry_run` tell what would happen."""
    payload = request.to_json()
    slot = Slot(tenant, "reserve", "", request.idempotency_key)  # dry runs share it
    replayed = replies.find_reserved(db, slot, payload, now)
    if replayed is not None:
        return replayed
    settings = tenants.settings(db, tenant)
    defaults, encoded_defaults = _defaults(settings)
    affected = scopes.derive(request.subject)
    verdict = _judge(db, settings, tenant, affected, request.estimate)
    if request.dry_run:
        answer = dumps(_dry_run(verdict, affected, payload["estimate"]))
        replies.keep(db, slot, payload, defaults, answer, now + replies.KEEP_EVALUATION_MS)
        return answer
    if isinstance(verdict, Refusal):
        raise Refused(verdict)
    terms = {**defaults, **payload}
    terms["ttl_ms"] = min(terms["ttl_ms"], settings.max_ttl_ms)
    made = _reservation(terms, tenant, affected, verdict.budgets, now)
    held = rules.hold(verdict.budgets, made.reserved)
    answer = dumps(_created(made, affected, verdict, held, now))
    until = max(made.deadline_ms, now + replies.KEEP_RESERVE_MS)
    budget_rows.save_amounts(db, held)
    reservation_rows.add(db, made, Reply(replies.canonical(payload, defaults), encoded_defaults, answer, until))
    return answer


@functools.lru_cache(maxsize=128)
def _defaults(settings: tenants.Settings) -> tuple[Mapping[str, Any], str]:
    """What a request leaves to its tenant, also as canonical JSON."""
    defaults = {
        "ttl_ms": settings.default_ttl_ms,
        "grace_period_ms": DEFAULT_GRACE_MS,
        "overage_policy": settings.default_overage_policy,
    }
    return defaults, replies.encode(defaults)


def decide(db: sqlite3.Connection, now: int, request: DecisionRequest, tenant: str) -> bytes:
    """Tell what a reservation would be told. Budget-state conditions are a DENY, never an error."""
    payload = request.to_json()
    slot = Slot(tenant, "decide", "", request.idempotency_key)
    replayed = replies.find(db, slot, payload, now)
    if replayed is not None:
        return replayed
    affected = scopes.derive(request.subject)
    verdict = _judge(db, tenants.settings(db, tenant), tenant, affected, request.estimate)
    answer = dumps({**_decision(verdict), "affected_scopes": affected})
    replies.keep(db, slot, payload, {}, answer, now + replies.KEEP_EVALUATION_MS)
    return answer


def missing_budget(db: sqlite3.Connection, affected: Sequence[str], unit: str) -> Refusal:
    """The refusal where no affected scope has a budget in a unit: a wrong unit, or no budget at all."""
    for scope in affected:
        units = budget_rows.units_of(db, scope)
        if units:
            message = "{} has no budget in {}; it has one in {}.".format(scope, unit, ", ".join(units))
            return Refusal("UNIT_MISMATCH", message, {"scope": scope, "requested_unit": unit, "expected_units": units})
    deepest = affected[-1]
    return Refusal("NOT_FOUND", f"Budget not found for provided scope: {deepest}", {"scope": deepest, "unit": unit})


def _judge(
    db: sqlite3.Connection,
    settings: tenants.Settings,
    tenant: str,
    affected: Sequence[str],
    estimate: Amount,
) -> Verdict | Refusal:
    if settings.is_closed:
        return tenants.closed(tenant)
    unit = estimate.unit.value
    budgets = budget_rows.budgets_of(db, affected, unit)
    if not budgets:
        return missing_budget(db, affected, unit)
    refusal = rules.refuse_reserve(budgets, estimate.amount)
    if refusal is not None:
        return refusal
    return Verdict(budgets, budgets[-1].caps if budgets[-1].scope == affected[-1] else None)


#: How an evaluation calls what an operation refuses under another name (protocol: DecisionReasonCode).
_REASONS = {"NOT_FOUND": "BUDGET_NOT_FOUND"}


def _decision(verdict: Verdict | Refusal) -> dict[str, Any]:
    """The decision with its caps or its reason. A wrong unit is the request's fault and no decision."""
    if isinstance(verdict, Refusal):
        if verdict.code == "UNIT_MISMATCH":
            raise Refused(verdict)
        return {"decision": "DENY", "reason_code": _REASONS.get(verdict.code, verdict.code)}
    if verdict.caps is not None:
        return {"decision": "ALLOW_WITH_CAPS", "caps": verdict.caps}
    return {"decision": "ALLOW"}


def _dry_run(verdict: Verdict | Refusal, affected: Sequence[str], estimate: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol: DRY-RUN RESPONSE RULES."""
    answer = {**_decision(verdict), "affected_scopes": affected, "scope_path": affected[-1]}
    if isinstance(verdict, Verdict):
        answer.update(reserved=estimate, balances=balances(verdict.budgets))
    return answer


def balances(budgets: Budgets) -> list[dict[str, Any]]:
    return [budget.to_json() for budget in budgets]


def _reservation(
    terms: Mapping[str, Any], tenant: str, affected: Sequence[str], budgets: Budgets, now: int
) -> Reservation:
    """The row for a request, defaults applied."""
    expires_at_ms = now + terms["ttl_ms"]
    return Reservation(
        number=None,
        id="rsv_" + os.urandom(16).hex(),
        tenant=tenant,
        idempotency_key=terms["idempotency_key"],
        status="ACTIVE",
        unit=budgets[0].unit,
        reserved=terms["estimate"]["amount"],
        committed=None,
        overage_policy=str(terms["overage_policy"]),
        created_at_ms=now,
        expires_at_ms=expires_at_ms,
        deadline_ms=expires_at_ms + terms["grace_period_ms"],
        finalized_at_ms=None,
        forget_at_ms=None,
        extensions=0,
        scope_path=affected[-1],
        held=" ".join([budget.scope for budget in budgets]),
    )


def _created(made: Reservation, affected: Sequence[str], verdict: Verdict, held: Budgets, now: int) -> dict[str, Any]:
    return {
        **_decision(verdict),
        "reservation_id": made.id,
        "reserved": {"unit": made.unit, "amount": made.reserved},
        "expires_at_ms": made.expires_at_ms,
        "remaining_ttl_ms": made.expires_at_ms - now,
        "scope_path": made.scope_path,
        "affected_scopes": affected,
        "balances": balances(held),
    }
