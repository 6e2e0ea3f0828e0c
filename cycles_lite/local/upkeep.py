"""Lazy upkeep: holds are freed and old records pruned by whoever comes along; there is no thread for it."""

from __future__ import annotations

import random
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

_ROWS = "SELECT number, forget_at_ms < ? FROM reservations WHERE number > ? ORDER BY number LIMIT ?"
_LAST = "SELECT max(number) FROM reservations"
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


def prune(db: sqlite3.Connection, now: int, position: int | None) -> int:
    """Drop a bounded number of finished reservations and answers that are kept no longer.

    Reservations age in about the order they were made in, so most are found among the oldest, without an index. Those
    that a jump of the clock made old late may stand before others that are due: what is left of a step goes on from
    `position`, where the last one ended, or from anywhere; where this one ended is returned.
    """
    old = [number for number, is_due in db.execute(_ROWS, (now, -1, PRUNE_AT_ONCE)).fetchall() if is_due]
    if position is None:  # a process that ends soon would always look at the same ones
        position = random.randrange((db.execute(_LAST).fetchone()[0] or 0) + 1)
    rest = PRUNE_AT_ONCE - len(old)
    rows = db.execute(_ROWS, (now, position, rest)).fetchall()
    numbers = {(number,) for number in (*old, *[number for number, is_due in rows if is_due])}
    for statement in _FORGET:
        db.executemany(statement, numbers)
    db.executemany(_FORGET_REPLY, db.execute(_OLD_REPLIES, (now, PRUNE_AT_ONCE)).fetchall())
    if not rest:
        return position
    return rows[-1][0] if len(rows) == rest else 0
