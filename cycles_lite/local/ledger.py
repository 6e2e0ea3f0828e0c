"""The ledger: the budget rules over SQLite, one transaction per operation.

The operations are in `reserving`, `settling`, `queries` and `provisioning`; each takes an open transaction and the
time. Here is what they have in common: the time is read under the lock, and holds that are due are freed first.
"""

from __future__ import annotations

import random
import sqlite3
from typing import Callable, TypeVar

from . import upkeep
from .store import Store

R = TypeVar("R")

#: An operation: a transaction, and the time in milliseconds.
Work = Callable[[sqlite3.Connection, int], R]


class Ledger:
    """Budgets and reservations in a store. `clock` gives milliseconds since 1970."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self.store = store
        self._clock = clock
        # The count starts anywhere: a process may end before it has made as many writes as lie between two prunings.
        self._writes = random.randrange(upkeep.PRUNE_EVERY)
        self._pruned_to: int | None = None

    def change(self, work: Work[R], timeout: float | None = None) -> R:
        """Run an operation that may write. What it raises rolls it back.

        Holds are freed in transactions of their own, so that a refusal does not undo it.
        """
        while True:
            transaction = self.store.write(timeout)
            try:
                with transaction as db:
                    now = self._clock()  # under the lock: whoever waited for it must not act on the past
                    if not upkeep.free_due(db, now):
                        made = work(db, now)
                        self._prune_now_and_then(db, now)
                        return made
            finally:
                transaction.end()  # a signal handler may have raised where the `with` statement gives back

    def look(self, work: Work[R], timeout: float | None = None) -> R:
        """Run an operation that only reads, writing first only if holds are due."""
        while True:
            transaction = self.store.read(timeout)
            try:
                with transaction as db:
                    now = self._clock()
                    if not upkeep.any_due(db, now):
                        return work(db, now)
            finally:
                transaction.end()
            self.change(lambda db, now: None, timeout)

    def _prune_now_and_then(self, db: sqlite3.Connection, now: int) -> None:
        self._writes += 1  # a lost count between threads only delays a step
        if self._writes % upkeep.PRUNE_EVERY == 0:
            self._pruned_to = upkeep.prune(db, now, self._pruned_to)
