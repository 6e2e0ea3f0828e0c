"""Rows of `budgets` as values, and the statements that read and write them."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Iterable, Sequence

from .rules import Budget, Budgets

#: The levels of a subject, and so the most scopes that one operation affects.
_DEEPEST = 6

_BUDGET = "scope, unit, allocated, spent, reserved, debt, overdraft_limit, is_over_limit, status, caps"

#: One statement per number of scopes, so that sqlite3 finds it compiled.
_BUDGETS_OF = [
    "SELECT {} FROM budgets WHERE unit = ? AND scope IN ({}) ORDER BY scope".format(_BUDGET, ",".join("?" * count))
    for count in range(_DEEPEST + 1)
]
_UNITS_OF = "SELECT unit FROM budgets WHERE scope = ? ORDER BY unit"
_SAVE_AMOUNTS = (
    "UPDATE budgets SET allocated = ?, spent = ?, reserved = ?, debt = ?, is_over_limit = ?"
    " WHERE scope = ? AND unit = ?"
)
_SAVE_BUDGET = f"INSERT OR REPLACE INTO budgets ({_BUDGET}) VALUES (?,?,?,?,?,?,?,?,?,?)"


def budget(row: Sequence[Any]) -> Budget:
    """The budget in a row of `_BUDGET`'s columns."""
    caps = row[9]
    return Budget._make((*row[:7], bool(row[7]), row[8], None if caps is None else json.loads(caps)))


def budgets_of(db: sqlite3.Connection, affected: Sequence[str], unit: str) -> Budgets:
    """The budgets of those scopes that have one in a unit, in canonical order: a prefix sorts before what it begins."""
    return tuple([budget(row) for row in db.execute(_BUDGETS_OF[len(affected)], (unit, *affected)).fetchall()])


def units_of(db: sqlite3.Connection, scope: str) -> list[str]:
    """The units that a scope has budgets in."""
    return [unit for (unit,) in db.execute(_UNITS_OF, (scope,)).fetchall()]


def find_budgets(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Budget]:
    """Budgets by a condition, in the order of scope and unit."""
    statement = f"SELECT {_BUDGET} FROM budgets WHERE {where}"
    return [budget(row) for row in db.execute(statement, values).fetchall()]


def save_amounts(db: sqlite3.Connection, changed: Iterable[Budget]) -> None:
    """Write what operations change; limits, status and caps are only ever provisioned."""
    db.executemany(
        _SAVE_AMOUNTS, [(b.allocated, b.spent, b.reserved, b.debt, b.is_over_limit, b.scope, b.unit) for b in changed]
    )


def save_budget(db: sqlite3.Connection, made: Budget) -> None:
    """Write a budget whole."""
    caps = None if made.caps is None else json.dumps(made.caps, separators=(",", ":"))
    db.execute(_SAVE_BUDGET, (*made[:9], caps))
