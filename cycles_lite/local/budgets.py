"""What operators do with budgets, which the protocol leaves to them (protocol: NON-GOALS); and the ledger verified."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Iterator

from ..errors import ValidationError
from ..protocol.checks import is_a, refuse
from ..protocol.fields import OneOf
from ..protocol.values import Amount, Caps, Unit
from . import rows, rules, scopes
from .rules import ACTIVE, CLOSED, FROZEN, Budget
from .schema import RESERVATIONS

if TYPE_CHECKING:
    from .ledger import Ledger

_UNIT = OneOf(Unit)
_HOLDS = f"SELECT unit, reserved, held FROM {RESERVATIONS} INDEXED BY reservations_due WHERE status = 'ACTIVE'"

#: Seconds that the ledger may be checked for. Others can write meanwhile.
_PATIENCE = 600.0


class BudgetMethods:
    """The methods of `Authority` for budgets. Each opens its own transaction, and raises `ValidationError` for values
    that are illegal and budgets that do not exist."""

    _ledger: Ledger

    def set_budget(
        self, scope: str, amount: Amount, *, overdraft_limit: int | Amount | None = None, caps: Caps | None = None
    ) -> Budget:
        """Allocate an amount to a scope such as `tenant:acme/agent:bot`, whether or not it has a budget in that unit.

        `overdraft_limit` is in the same unit; omitted, it and the caps stay as they are, at first 0 and none. An
        empty `Caps()` takes the caps away. Raises `ValidationError`.
        """
        scope, unit = place(scope, amount)
        with self._ledger.writing() as (db, _):
            return _set(db, scope, unit, amount.amount, overdraft_limit, caps)

    def add_budget(
        self, scope: str, amount: Amount, *, overdraft_limit: int | Amount | None = None, caps: Caps | None = None
    ) -> bool:
        """Like `set_budget`, but leaves an existing budget as it is. Return whether one was made."""
        scope, unit = place(scope, amount)
        with self._ledger.writing() as (db, _):
            if _find(db, scope, unit):
                return False
            _set(db, scope, unit, amount.amount, overdraft_limit, caps)
            return True

    def freeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Let a scope's budget, or with no unit all its budgets, take no new reservation or event for now."""
        return self._set_status(scope, unit, FROZEN)

    def unfreeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Let a scope's frozen budget, or with no unit all of them, take reservations and events again."""
        return self._set_status(scope, unit, ACTIVE)

    def close(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Close a scope's budget, or with no unit all its budgets, for good. (`shutdown` closes the file.)"""
        return self._set_status(scope, unit, CLOSED)

    def budgets(self) -> list[Budget]:
        """Every budget, in the order of scope and unit."""
        with self._ledger.reading() as (db, _):
            return _all(db)

    def check(self) -> list[str]:
        """Verify the ledger's invariants over the whole file, for ten minutes at the most. Return a sentence for each
        violation."""
        with self._ledger.reading(patience=_PATIENCE) as (db, _):
            damage = [line for (line,) in db.execute("PRAGMA quick_check").fetchall() if line != "ok"]
            return [f"SQLite: {line}" for line in damage] or list(_violations(db))

    def _set_status(self, scope: str, unit: str | Unit | None, status: str) -> list[Budget]:
        """Give a scope's budgets another status. Closed ones stay as they are, and to close them again is no error."""
        scope = scopes.budget_scope(scope)
        wanted = None if unit is None else _UNIT.check("unit", unit).value
        with self._ledger.writing() as (db, _):
            found = known(db, scope, wanted)
            changing = [one for one in found if one.status in (ACTIVE, FROZEN) or one.status == status]
            if not changing:
                _demand_not_closed(found[0])
            made = [budget._replace(status=status) for budget in changing]
            for budget in made:
                rows.save_budget(db, budget)
            return made


def place(scope: object, amount: Any) -> tuple[str, str]:
    """The canonical scope and the unit of a budget."""
    scope = scopes.budget_scope(scope)
    if is_a(amount, Amount):
        return scope, amount.unit.value
    raise refuse("amount", amount, "an Amount")


def _set(
    db: sqlite3.Connection, scope: str, unit: str, amount: int, limit: int | Amount | None, caps: Caps | None
) -> Budget:
    """Make a budget, or set the allocation of one; None leaves limit and caps as they are."""
    (found,) = _find(db, scope, unit) or [Budget(scope, unit, 0)]
    _demand_not_closed(found)
    made = rules.allocate(found, amount, _limit(limit, unit))
    if caps is not None:
        if not is_a(caps, Caps):
            raise refuse("caps", caps, "a Caps")
        made = made._replace(caps=caps.to_json() or None)
    rows.save_budget(db, made)
    return made


def _limit(value: Any, unit: str) -> int | None:
    """An overdraft limit as a number of a budget's unit, in which it must be."""
    if value is None:
        return None
    if not is_a(value, Amount):
        return Amount(Unit(unit), value).amount
    if value.unit.value != unit:
        raise refuse("overdraft_limit", value.unit.value, "the budget's unit, " + unit)
    return value.amount


def _find(db: sqlite3.Connection, scope: str, unit: str | None) -> list[Budget]:
    """A scope's budget in one unit, or with None its budgets in all of them."""
    return rows.find_budgets(db, "scope = ? AND unit = ifnull(?, unit) ORDER BY unit", (scope, unit))


def known(db: sqlite3.Connection, scope: str, unit: str | None) -> list[Budget]:
    """As `_find`; raises a `ValidationError` if there is none."""
    found = _find(db, scope, unit)
    if not found:
        raise ValidationError("scope {}: it has no budget{}".format(scope, "" if unit is None else " in " + unit))
    return found


def _demand_not_closed(found: Budget) -> None:
    """Refuse to change a budget that is closed."""
    if found.status == CLOSED:
        raise ValidationError(f"budget {found.scope} ({found.unit}) is closed, and that is final")


def _all(db: sqlite3.Connection) -> list[Budget]:
    """Every budget, in the order of scope and unit."""
    return rows.find_budgets(db, "1 ORDER BY scope, unit", ())


# ---- The ledger's invariants ----


def _violations(db: sqlite3.Connection) -> Iterator[str]:
    """A sentence for each violation, in the budgets and in what reservations hold of them."""
    held: dict[tuple[str, str], int] = {}
    for unit, reserved, scope_paths in db.execute(_HOLDS).fetchall():
        for scope in scope_paths.split():
            held[scope, unit] = held.get((scope, unit), 0) + reserved
    for budget in _all(db):
        name = f"budget {budget.scope} ({budget.unit})"
        sum_of_holds = held.pop((budget.scope, budget.unit), 0)
        if budget.reserved != sum_of_holds:
            yield f"{name}: reserved is {budget.reserved}, its reservations hold {sum_of_holds}"
        if not rules.is_legal(budget):
            yield f"{name}: an amount is out of range: {budget}"
        if budget.debt > budget.overdraft_limit and not budget.is_over_limit:
            yield f"{name}: the debt is over the overdraft limit, and it is not marked"
        if budget.status not in (ACTIVE, FROZEN, CLOSED):
            yield f"{name}: its status is {budget.status!r}"
        try:
            scopes.budget_scope(budget.scope)
        except ValidationError as e:
            yield f"{name}: {e}"
    for scope, unit in sorted(held):
        yield f"budget {scope} ({unit}): reservations hold {held[scope, unit]} of it, and it is not there"
