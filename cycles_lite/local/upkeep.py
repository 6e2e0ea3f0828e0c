"""Lazy upkeep: holds are freed and old records pruned by whoever comes along; there is no thread for it."""

from __future__ import annotations

import sqlite3

from . import budget_rows, reservation_rows, rules

#: Holds freed in one transaction, and records pruned in one step: others wait meanwhile.
FREE_AT_ONCE = 200
PRUNE_AT_ONCE = 200

#: Writes of one process from one pruning step to the next; each adds at most two records.
PRUNE_EVERY = 100

_ANY_DUE = "SELECT 1 FROM reservations WHERE status = 'ACTIVE' AND deadline_ms < ? LIMIT 1"
_DUE = (
    "SELECT id, unit, reserved, held, deadline_ms FROM reservations"
    " WHERE status = 'ACTIVE' AND deadline_ms < ? ORDER BY deadline_ms LIMIT ?"
)
_EXPIRE = "UPDATE reservations SET status = 'EXPIRED', forget_at_ms = ? WHERE id = ?"

# They age in about the order they were made in, so that looking at the oldest finds them without an index.
_OLD_RESERVATIONS = (
    "SELECT number FROM (SELECT number, forget_at_ms FROM reservations ORDER BY number LIMIT ?) WHERE forget_at_ms < ?"
)
_FORGET = ("DELETE FROM reservations WHERE number = ?", "DELETE FROM settlements WHERE number = ?")
_OLD_REPLIES = "SELECT tenant, operation, target, idempotency_key FROM replies WHERE expires_at_ms < ? LIMIT ?"
_FORGET_REPLY = "DELETE FROM replies WHERE tenant = ? AND operation = ? AND target = ? AND idempotency_key = ?"


def any_due(db: sqlite3.Connection, now: int) -> bool:
    """Whether a hold is past its reservation's expiry plus grace."""
    return db.execute(_ANY_DUE, (now,)).fetchone() is not None


def free_due(db: sqlite3.Connection, now: int) -> bool:
    """Free a batch of holds that are due; whether there was any."""
    if not any_due(db, now):
        return False
    due = db.execute(_DUE, (now, FREE_AT_ONCE)).fetchall()
    freed: dict[tuple[str, str], int] = {}
    for _, unit, reserved, held, _ in due:
        for scope in held.split(" "):
            freed[scope, unit] = freed.get((scope, unit), 0) + reserved
    for (scope, unit), amount in freed.items():
        budget_rows.save_amounts(db, rules.free(budget_rows.budgets_of(db, (scope,), unit), amount))
    db.executemany(_EXPIRE, [(deadline + reservation_rows.KEEP_FINISHED_MS, id) for id, _, _, _, deadline in due])
    return True


def prune(db: sqlite3.Connection, now: int) -> None:
    """Drop a bounded number of finished reservations and answers that are kept no longer."""
    numbers = db.execute(_OLD_RESERVATIONS, (PRUNE_AT_ONCE, now)).fetchall()
    for statement in _FORGET:
        db.executemany(statement, numbers)
    db.executemany(_FORGET_REPLY, db.execute(_OLD_REPLIES, (now, PRUNE_AT_ONCE)).fetchall())
