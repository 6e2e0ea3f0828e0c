"""Budgets being set up and funded: what the protocol leaves to operators (protocol: NON-GOALS)."""

from __future__ import annotations

import sqlite3
from typing import Mapping, Sequence

from ..errors import ValidationError
from ..protocol.checks import refuse
from ..protocol.values import Amount, Caps, Unit
from . import budget_rows, rules, scopes
from .rules import Budget


def set_budget(
    db: sqlite3.Connection,
    scope: str,
    amount: Amount,
    overdraft_limit: int | Amount | None,
    caps: Caps | None,
) -> Budget:
    """Make a budget, or set the allocation of one; None leaves limit and caps as they are."""
    scope, amount = scopes.budget_scope(scope), _amount(amount)
    unit = amount.unit.value
    found = _find(db, scope, unit) or Budget(scope, unit, 0)
    _demand_not_closed(found)
    made = rules.allocate(found, amount.amount, _limit(overdraft_limit, unit))
    if caps is not None:
        if not isinstance(caps, Caps):
            raise refuse("caps", caps, "a Caps")
        made = made._replace(caps=caps.to_json() or None)
    budget_rows.save_budget(db, made)
    return made


def add_budget(
    db: sqlite3.Connection, scope: str, amount: Amount, overdraft_limit: int | Amount | None, caps: Caps | None
) -> bool:
    """Make a budget unless there is one; whether it was made."""
    if _find(db, scopes.budget_scope(scope), _amount(amount).unit.value) is not None:
        return False
    set_budget(db, scope, amount, overdraft_limit, caps)
    return True


def fund(db: sqlite3.Connection, scope: str, amount: Amount) -> Budget:
    """Add to a budget; debt is repaid first."""
    scope, amount = scopes.budget_scope(scope), _amount(amount)
    found = _known(db, scope, amount.unit.value)[0]
    _demand_not_closed(found)
    made = rules.fund(found, amount.amount)
    budget_rows.save_budget(db, made)
    return made


#: What each change of status may start from; from its own end it does nothing.
_STATUS_CHANGES: Mapping[str, Sequence[str]] = {
    rules.FROZEN: (rules.ACTIVE, rules.FROZEN),
    rules.ACTIVE: (rules.ACTIVE, rules.FROZEN),
    rules.CLOSED: (rules.ACTIVE, rules.FROZEN, rules.CLOSED),
}


def set_status(db: sqlite3.Connection, scope: str, unit: str | Unit | None, status: str) -> list[Budget]:
    """Freeze, unfreeze or close a scope's budget in one unit, or with None all of them that may still change."""
    scope = scopes.budget_scope(scope)
    found = _known(db, scope, None if unit is None else _unit(unit))
    changing = [budget for budget in found if budget.status in _STATUS_CHANGES[status]]
    if not changing:
        _demand_not_closed(found[0])
    made = [budget._replace(status=status) for budget in changing]
    for budget in made:
        budget_rows.save_budget(db, budget)
    return made


def budgets(db: sqlite3.Connection) -> list[Budget]:
    """Every budget, in the order of scope and unit."""
    return budget_rows.find_budgets(db, "1 ORDER BY scope, unit", ())


def _find(db: sqlite3.Connection, scope: str, unit: str) -> Budget | None:
    found = budget_rows.budgets_of(db, (scope,), unit)
    return found[0] if found else None


def _known(db: sqlite3.Connection, scope: str, unit: str | None) -> list[Budget]:
    units = budget_rows.units_of(db, scope) if unit is None else [unit]
    found = [budget for budget in (_find(db, scope, one) for one in units) if budget is not None]
    if not found:
        raise ValidationError("scope {}: it has no budget{}".format(scope, "" if unit is None else " in " + unit))
    return found


def _demand_not_closed(found: Budget) -> None:
    if found.status == rules.CLOSED:
        raise ValidationError(f"budget {found.scope} ({found.unit}) is closed, and that is final")


def _amount(value: object) -> Amount:
    if isinstance(value, Amount):
        return value
    raise refuse("amount", value, "an Amount")


def _unit(value: object) -> str:
    try:
        return Unit(value).value
    except ValueError:
        raise refuse("unit", value, "one of " + ", ".join([unit.value for unit in Unit])) from None


def _limit(value: int | Amount | None, unit: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, Amount):
        return Amount(Unit(unit), value).amount
    if value.unit.value != unit:
        raise refuse("overdraft_limit", value.unit.value, "the budget's unit, " + unit)
    return value.amount
