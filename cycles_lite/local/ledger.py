"""The ledger: the budget rules over SQLite, one transaction per operation.

The operations are in `reserving`, `settling`, `queries` and `provisioning`; each takes an open transaction and the
time. Here is what they have in common: the time is read under the lock, and holds that are due are freed first.
"""

from __future__ import annotations

import random
import sqlite3
from typing import Callable, ContextManager, Tuple

from . import upkeep
from .store import Store, Transaction

#: What an operation works with: the database, in a transaction, and the time in milliseconds since 1970.
Work = ContextManager[Tuple[sqlite3.Connection, int]]


class Ledger:
    """Budgets and reservations in a store. `clock` gives milliseconds since 1970."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self.store = store
        self.clock = clock
        # The count starts anywhere: a process may end before it has made as many writes as lie between two prunings.
        self._writes = random.randrange(upkeep.PRUNE_EVERY)
        self._pruned_to: int | None = None

    def writing(self, timeout: float | None = None) -> Work:
        """A transaction for an operation that may write, within `timeout` seconds. What the block raises rolls it back.

        Holds are freed in transactions of their own, so that a refusal does not undo it.
        """
        return _Dated(self, timeout, writes=True)

    def reading(self, timeout: float | None = None) -> Work:
        """A transaction for an operation that only reads; holds that are due are freed in one before it."""
        return _Dated(self, timeout, writes=False)

    def prune_now_and_then(self, db: sqlite3.Connection, now: int) -> None:
        """Count a write, and drop old records with every so many."""
        self._writes += 1  # a lost count between threads only delays a step
        if self._writes % upkeep.PRUNE_EVERY == 0:
            self._pruned_to = upkeep.prune(db, now, self._pruned_to)


class _Dated(Transaction):
    """A transaction of the ledger, with the time at which it happens."""

    def __init__(self, ledger: Ledger, timeout: float | None, writes: bool) -> None:
        super().__init__(ledger.store, timeout, writes)
        self._ledger, self._timeout, self._prunes = ledger, timeout, writes

    def begin(self) -> tuple[sqlite3.Connection, int]:
        while True:
            db = super().begin()
            self._now = now = self._ledger.clock()  # under the lock: whoever waited for it must not act on the past
            if not upkeep.any_due(db, now):
                return db, now
            if self.writes:
                upkeep.free_due(db, now)
                super().finish()
            else:
                self.end()
                with self._ledger.writing(self._timeout):
                    pass

    def finish(self, kind: object = None, error: BaseException | None = None, traceback: object = None) -> None:
        if error is None and self._prunes:
            self._ledger.prune_now_and_then(self.connection[-1].db, self._now)
        super().finish(kind, error, traceback)
