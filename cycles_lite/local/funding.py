"""Budgets being funded, which happens once for each idempotency key, and budgets being deleted."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple

from ..errors import ValidationError
from ..protocol.checks import free_text, is_a, refuse, words
from ..protocol.fields import OneOf
from ..protocol.values import Amount, Unit
from . import periods, replies, rows, rules, scopes
from .budgets import known, place
from .operations import budgets_in
from .replies import Once
from .rules import Budget, Funding, Refused
from .schema import RESERVATIONS

if TYPE_CHECKING:
    from .ledger import Ledger

_OPERATION, _UNIT = OneOf(Funding), OneOf(Unit)

#: Which live reservations hold an amount of a budget, given its unit and its scope between blanks.
_HOLDERS = f"WHERE {rows.LIVE} AND unit = ? AND instr(' ' || held || ' ', ?) > 0"
_COUNT = f"SELECT count(*), min(created_at_ms) FROM {RESERVATIONS} INDEXED BY reservations_due {_HOLDERS}"
_LET_GO = (
    f"UPDATE {RESERVATIONS} INDEXED BY reservations_due SET held = trim(replace(' ' || held || ' ', ?, ' ')) {_HOLDERS}"
)
_DELETE = "DELETE FROM budgets WHERE scope = ? AND unit = ?"


class Funded(NamedTuple):
    """What a funding operation did."""

    operation: str
    before: Budget
    after: Budget
    #: When it happened, in milliseconds since 1970.
    at_ms: int


class FundingRefused(ValidationError):
    """A budget is not as an operation needs it, or an idempotency key was used for another one. Nothing was changed."""

    def __init__(
        self, message: str = "", code: str = "INVALID_REQUEST", details: Mapping[str, Any] | None = None, *known: Any
    ) -> None:
        super().__init__(message, *known)
        #: NOT_FOUND, UNIT_MISMATCH, BUDGET_CLOSED, BUDGET_EXCEEDED or IDEMPOTENCY_MISMATCH.
        self.code = code
        #: What the refusal is about: scope, unit, what was requested, what remains.
        self.details = dict(details or {})
        self._keep(code, self.details or None)


class Holds(NamedTuple):
    """A budget, and the live reservations that hold what is reserved of it."""

    budget: Budget
    reservations: int
    #: When the oldest was made, in milliseconds since 1970; None where there is none.
    oldest_ms: int | None


class FundingMethods:
    """The methods of `Authority` for what budgets have to spend. Each opens its own transaction, and raises
    `ValidationError` for values that are illegal and budgets that do not exist."""

    _ledger: Ledger

    def fund(
        self,
        scope: str,
        amount: Amount,
        operation: str = "CREDIT",
        *,
        spent: Amount | None = None,
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Budget:
        """Change what a budget has to spend, and return it as it is then. A frozen one stays frozen.

        CREDIT adds the amount, and repays debt first. DEBIT takes it away, but no more than remains. RESET makes it the
        allocation. REPAY_DEBT lessens the debt by it, and adds what exceeds the debt. RESET_SPENT makes it the
        allocation and begins to count anew: `spent`, by default nothing, is what counts as spent. What is reserved
        stays in all of them, and so does debt but in CREDIT and REPAY_DEBT.

        An operation with an `idempotency_key` (1..256 characters, the tenant's own) happens once: for 30 days the same
        one again is answered with the same budget. The file keeps `reason` (up to 512 characters) with the key. Raises
        `FundingRefused`, a `ValidationError` whose `code` tells what the budget or the key does not allow.
        """
        return self.funded(scope, amount, operation, spent, idempotency_key, reason).after

    def funded(
        self,
        scope: str,
        amount: Amount,
        operation: str,
        spent: Amount | None,
        idempotency_key: str | None,
        reason: str | None = None,
    ) -> Funded:
        """As `fund`, but tell the budget before it, too."""
        scope, unit = place(scope, amount)
        made = _OPERATION.check("operation", operation)
        payload: dict[str, Any] = {"operation": made.value, "scope": scope, "amount": amount.to_json()}
        if spent is not None:
            payload["spent"] = _spent(made, spent, unit).to_json()
        if reason is not None:
            payload["reason"] = free_text("reason", reason, 512)
        if idempotency_key is not None:
            payload["idempotency_key"] = words("idempotency_key", idempotency_key, 256)
        try:
            with self._ledger.writing() as (db, now):
                return _fund(db, now, payload, scope, amount, made, spent)
        except Refused as e:
            raise FundingRefused(e.message, e.code, e.details) from None

    def holds(self, scope: str, unit: str | Unit | None = None) -> list[Holds]:
        """A scope's budget, or with no unit all its budgets, each with the live reservations that hold some of it."""
        scope, wanted = _wanted(scope, unit)
        with self._ledger.reading() as (db, _):
            return [_holds(db, budget) for budget in known(db, scope, wanted)]

    def delete_budget(self, scope: str, unit: str | Unit | None = None, *, force: bool = False) -> list[Budget]:
        """Delete a scope's budget, or with no unit all its budgets, and return what they were.

        One that live reservations hold is only deleted with `force`. They go on without it: what they are committed
        with is charged to the other budgets that they hold, or to none. The budget's closed periods are kept.
        """
        scope, wanted = _wanted(scope, unit)
        with self._ledger.writing() as (db, _):
            found = known(db, scope, wanted)
            for budget, count, _ in [] if force else [_holds(db, one) for one in found]:
                if count:
                    live = "1 live reservation holds" if count == 1 else f"{count} live reservations hold"
                    amount = Amount(Unit(budget.unit), budget.reserved)
                    raise ValidationError(
                        f"budget {scope} ({budget.unit}): {live} {amount} of it; deleted only by force"
                    )
            for budget in found:
                between = f" {scope} "
                db.execute(_LET_GO, (between, budget.unit, between))
                db.execute(_DELETE, (scope, budget.unit))
            return found


def _wanted(scope: object, unit: object) -> tuple[str, str | None]:
    """A scope and a unit that were asked for, in canonical form."""
    return scopes.budget_scope(scope), None if unit is None else _UNIT.check("unit", unit).value


def _spent(operation: Funding, spent: Any, unit: str) -> Amount:
    """What counts as spent after RESET_SPENT; no other operation has that."""
    if not is_a(spent, Amount):
        raise refuse("spent", spent, "an Amount")
    if operation is not Funding.RESET_SPENT:
        raise ValidationError(f"spent: {operation} has none, only RESET_SPENT")
    if spent.unit != unit:
        raise FundingRefused(f"spent: it is in {spent.unit}, and the amount in {unit}", "UNIT_MISMATCH")
    return spent


def _fund(
    db: sqlite3.Connection,
    now: int,
    payload: Mapping[str, Any],
    scope: str,
    amount: Amount,
    operation: Funding,
    spent: Amount | None,
) -> Funded:
    """Write the budget and the answer for the key, or give the answer that is there. Raises `Refused`."""
    once = Once(db, now, scopes.owner(scope), "fund", dict(payload)) if "idempotency_key" in payload else None
    replayed = None if once is None else once.replayed()
    if replayed is not None:
        before, after = (Budget(*replayed[name]) for name in ("before", "after"))
        return Funded(operation, before, after, replayed["at_ms"])
    (before,) = budgets_in(db, (scope,), amount)
    after = rules.fund(before, operation, amount.amount, 0 if spent is None else spent.amount)
    if operation in (Funding.RESET, Funding.RESET_SPENT):
        after = periods.allocation_set(after)
    rows.save_budget(db, after)
    if once is not None:
        answer = {"before": list(before), "after": list(after), "at_ms": now, "reason": payload.get("reason")}
        once.keep(answer, now + replies.KEEP_FUNDING_MS)
    return Funded(operation, before, after, now)


def _holds(db: sqlite3.Connection, budget: Budget) -> Holds:
    """A budget with its live reservations."""
    return Holds(budget, *db.execute(_COUNT, (budget.unit, f" {budget.scope} ")).fetchone())
