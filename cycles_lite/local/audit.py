"""The ledger's invariants, verified over a whole file."""

from __future__ import annotations

import sqlite3
from typing import Iterator

from ..errors import ValidationError
from . import provisioning, rules, scopes

_HOLDS = "SELECT unit, reserved, held FROM reservations WHERE status = 'ACTIVE'"
_STATUSES = (rules.ACTIVE, rules.FROZEN, rules.CLOSED)


def violations(db: sqlite3.Connection) -> list[str]:
    """What is wrong, one sentence each; empty when all is well."""
    damage = [row[0] for row in db.execute("PRAGMA quick_check").fetchall() if row[0] != "ok"]
    return [f"SQLite: {line}" for line in damage] or list(_budget_violations(db))


def _budget_violations(db: sqlite3.Connection) -> Iterator[str]:
    held = _holds(db)
    for budget in provisioning.budgets(db):
        name = f"budget {budget.scope} ({budget.unit})"
        sum_of_holds = held.pop((budget.scope, budget.unit), 0)
        if budget.reserved != sum_of_holds:
            yield f"{name}: reserved is {budget.reserved}, its reservations hold {sum_of_holds}"
        if not rules.is_legal(budget):
            yield f"{name}: an amount is out of range: {budget}"
        if budget.debt > budget.overdraft_limit and not budget.is_over_limit:
            yield f"{name}: the debt is over the overdraft limit, and it is not marked"
        if budget.status not in _STATUSES:
            yield f"{name}: its status is {budget.status!r}"
        try:
            scopes.budget_scope(budget.scope)
        except ValidationError as e:
            yield f"{name}: {e}"
    for scope, unit in sorted(held):
        yield f"budget {scope} ({unit}): reservations hold {held[scope, unit]} of it, and it is not there"


def _holds(db: sqlite3.Connection) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for unit, reserved, held in db.execute(_HOLDS).fetchall():
        for scope in held.split(" "):
            found[scope, unit] = found.get((scope, unit), 0) + reserved
    return found
