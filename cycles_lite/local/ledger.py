"""The ledger's transactions, over a file or memory, for many threads and processes at once.

`with ledger.writing() as (db, now)` is what every operation runs in: the time is read under the lock, and before that
holds that are due are freed and periods that have ended are closed. There is no thread for that, nor for dropping old
records: whoever comes along does it.
`connections` hands out the connections; here transactions are begun on them, committed and rolled back, and whoever
has to wait for a lock of another process waits here.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from functools import partial
from typing import Any, Callable

from ..errors import ConfigError, TransportError, TransportTimeout
from ..runtime.clock import monotonic, now_ms
from . import connections, files, location, periods, rows, rules
from .connections import INHERITED, NEVER, Connection, Memory, Pool, Right
from .failures import is_busy, is_late, is_of_file, not_in_time, translated
from .schema import RESERVATIONS

#: The most seconds between two tries for the write lock, because SQLite has no queue to wait in.
_PAUSE = 0.004

#: Seconds that the statements of a transaction have at the least, also where the lock was had at the last moment.
_PATIENCE = 0.25

#: After how many holds and periods a transaction leaves what else is due to the next one, and how many records of a
#: kind are pruned in one step, because others wait. A write adds fewer records, so that steps at each write catch up
#: with whatever was left.
CATCH_UP_AT_ONCE = 200
PRUNE_AT_ONCE = 100

#: Milliseconds from a step of pruning that found no more to the next, which drops what was old at the one before.
PRUNE_EVERY_MS = 600_000


class Ledger:
    """Budgets and reservations in a file, or in memory, and their transactions.

    `clock` gives milliseconds since 1970. `timeout` is in seconds: if a lock cannot be had in time, or the statements
    take longer, `TransportTimeout` is raised and nothing is written. Every error of SQLite is raised as a
    `TransportError`.
    """

    def __init__(
        self, url: str, *, create: bool = True, timeout: float = 7.0, clock: Callable[[], int] = now_ms
    ) -> None:
        where = location.parse(url)
        self.url = where.url
        #: What messages call this store.
        self.name = location.printable(where.path) if where.path else "in memory"
        self.timeout, self.clock = timeout, clock
        self.is_memory = where.path is None
        #: When all was pruned, as far as this process knows.
        self._pruned_ms: int | None = None
        if where.path is None:
            self._pools: dict[int, Pool] = {os.getpid(): Memory()}
        else:
            files.prepare(where.path, create, timeout)
            journal = "DELETE" if location.is_on_network(where.path) else "WAL"
            self._open = partial(files.open_file, where.path, journal, where.synchronous)
            self._pools = {os.getpid(): Pool(self._open)}

    def __reduce__(self) -> Any:
        raise TypeError("a Ledger has connections to its file, and does not pickle: make one in each process")

    def writing(self, timeout: float | None = None) -> Transaction:
        """A transaction that may write, begun within `timeout` seconds. An exception of the block rolls it back.

        Due holds are freed and ended periods closed in transactions of their own before it, so that rolling back does
        not bring them back.
        """
        return Transaction(self, timeout, True)

    def reading(self, timeout: float | None = None, patience: float = _PATIENCE) -> Transaction:
        """A transaction that only reads: one snapshot, also while others write. What is due is done before, as for
        `writing`.

        `patience` gives its statements so many seconds, even if that is more than the timeout.
        """
        return Transaction(self, timeout, False, patience)

    def close(self) -> None:
        """Close this process's connections; those in use are closed when their transactions end.

        A file can still be used afterwards, with a new connection for each transaction. Memory is gone.
        """
        pool = self._pools.get(os.getpid())
        if pool is not None:
            pool.close()

    def pool(self) -> Pool:
        """This process's connections."""
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            if self.is_memory:
                raise ConfigError("sqlite:// is memory of one process and does not survive a fork; use a file")
            INHERITED.extend(self._pools.values())
            pool = self._pools.setdefault(pid, Pool(self._open))
        return pool

    def prune_now_and_then(self, db: sqlite3.Connection, now: int) -> None:
        """Drop some records that were old already when this was last done, by this process or another, unless that was
        a short while ago.

        The file remembers the time, for processes that end after a write or two. A time that is still to come is of a
        clock that was ahead, and counts for nothing. So nothing is dropped by a clock that is ahead for a moment: an
        event whose answer was gone would be charged again by its retry.
        """
        if _is_recent(self._pruned_ms, now):
            return
        row = db.execute(_PRUNED).fetchone()
        if row is not None and _is_recent(row[0], now):
            self._pruned_ms = row[0]
        elif row is None or row[0] > now or prune(db, row[0]):
            db.execute(_SAVE_PRUNED, (now,))
            self._pruned_ms = now


def _is_recent(then_ms: int | None, now: int) -> bool:
    return then_ms is not None and 0 <= now - then_ms < PRUNE_EVERY_MS


# ---- Transactions ----


class Transaction:
    """A transaction that begins when it is entered, is committed when it is left, and rolled back by an exception.

    `with ledger.writing() as (db, now)` gives the database, and the time in milliseconds since 1970.

    It owns a connection and perhaps the right to write, and gives them back whatever interruption comes. One may come
    where no `try` helps: before the first instruction of `__exit__`, or after the last one of `__enter__`. Then only
    the collector can help, and the object must be collected at once. But if these were ordinary methods, the traceback
    would keep their frames, and so `self`, for as long as somebody keeps the exception. So `__enter__` and `__exit__`
    are properties that give functions without such a reference. The `with` statement alone refers to the transaction,
    and frames within a `try` that ends it. When the statement is left in any way its reference goes, the object is
    collected, and what it owned is given back. So the object must not be assigned to a variable before it is entered.
    """

    def __init__(self, ledger: Ledger, timeout: float | None, may_write: bool, patience: float = _PATIENCE) -> None:
        self._ledger, self.pool, self._name = ledger, ledger.pool(), ledger.name
        self._seconds = ledger.timeout if timeout is None else min(timeout, ledger.timeout)
        self._patience = patience
        self._prunes = may_write
        # A ledger in memory has one connection, so a reader waits for the right to write, too.
        self.writes = may_write or ledger.is_memory
        self.pid = self.pool.pid
        self.thread = threading.get_ident()
        #: The connection and the right to write, while it has them.
        self.connection: list[Connection] = []
        self.right: list[Right] = []
        #: Whether a fork must wait until this transaction has ended.
        self.is_at_work = False

    @property
    def __enter__(self) -> Callable[[], tuple[sqlite3.Connection, int]]:
        return partial(_run, weakref.ref(self), Transaction.begin)

    @property
    def __exit__(self) -> Callable[..., None]:
        leave = partial(_run, weakref.ref(self), Transaction.finish)
        vars(leave)["transaction"] = self  # an attribute, because a frame of `_run` would keep an argument
        return leave

    def begin(self) -> tuple[sqlite3.Connection, int]:
        """What the `with` statement calls first: begin, once more for each batch of what was due."""
        self._deadline = monotonic() + self._seconds
        is_behind = False
        while True:
            db = self._begin()
            self._now = now = self._ledger.clock()  # read once the lock is held, because waiting for it may take long
            if db.execute(_ANY_DUE, (now, now)).fetchone() is None:
                return db, now
            if is_behind and monotonic() >= self._deadline:
                message = "the budget file {} has many holds to free or periods to close; the next call goes on"
                raise TransportTimeout(message.format(self._name))
            is_behind = True
            if self.writes:
                catch_up(db, now)
                self._commit(db)
                self.pool.end(self)
            else:
                self.pool.end(self)
                with self._ledger.writing(max(0.0, self._deadline - monotonic())):
                    pass

    def finish(self, error: BaseException | None) -> None:
        """Commit and end, or raise the block's error if it is the file's; the `with` statement calls this last."""
        if error is not None and is_of_file(error):
            raise error
        if error is None:
            db = self.connection[-1].db
            self.connection[-1].gives_up[0] = NEVER  # pruning is bounded, and must not undo what was done
            if self._prunes and self.pid == os.getpid():
                self._ledger.prune_now_and_then(db, self._now)
            self._commit(db)
        self.pool.end(self)

    def translated(self, error: Exception) -> TransportError:
        """The error to raise for one of the file's."""
        return (
            self._not_in_time()
            if isinstance(error, sqlite3.Error) and is_busy(error)
            else translated(error, self._name)
        )

    def _not_in_time(self) -> TransportTimeout:
        return not_in_time(self._name, self._seconds)

    def _begin(self) -> sqlite3.Connection:
        """Take the right to write, a connection and SQLite's lock, in this order, and look at the file once more."""
        while True:
            connections.live[id(self)] = weakref.ref(self)
            if self.writes and not self.pool.rights.take(self.right, self._deadline, self._waits_for_itself):
                raise self._not_in_time()
            try:
                if not self.pool.take(self, self._deadline):
                    raise self._not_in_time()
                db = self.connection[-1].db  # a frame that has the connection itself would keep it from being closed
                db.execute("BEGIN IMMEDIATE" if self.writes else "BEGIN")
                break
            except sqlite3.OperationalError as e:
                if not self.writes or not is_busy(e) or monotonic() >= self._deadline or self._waits_for_itself():
                    raise
            # The connection and the right are given back while this waits, so that other threads, or greenlets of this
            # thread, can go on.
            self.pool.end(self)
            time.sleep(_PAUSE * random.random())
        if not self.writes:
            # This takes the read lock now, while waiting is possible; afterwards nothing can be busy.
            statement = "SELECT 1 FROM sqlite_master LIMIT 1"
            connections.execute(db, statement, self._deadline, self._waits_for_itself)
        place = self.connection[-1].place
        if place is not None and connections.inode(place.path) != place.inode:
            self._refuse_lost(place)
        # From here on statements end at the deadline, but for `COMMIT`: SQLite may say so of one that it has done.
        self.connection[-1].gives_up[0] = max(self._deadline, monotonic() + self._patience)
        return db

    def _commit(self, db: sqlite3.Connection) -> None:
        if self.pid != os.getpid():
            raise TransportError("a transaction does not survive a fork; nothing was written")
        self.connection[-1].gives_up[0] = NEVER
        connections.execute(db, "COMMIT", self._deadline, self._waits_for_itself)

    def _refuse_lost(self, place: connections.Place) -> None:
        """Raise where the path leads to another file than the connection has open, or to none."""
        try:
            files.demand_same(place, self._deadline)
        except TransportTimeout:
            raise
        except TransportError:
            # A file that is only away may come back, and then what its WAL has is needed.
            if connections.inode(place.path) is not None:
                self.connection.pop().close()
                self.pool.close_idle()
            raise

    def _waits_for_itself(self) -> bool:
        """Whether it waits for a transaction that it has interrupted: both are this thread's, this one a handler's."""
        mine = [one for one in connections.live_transactions() if one.thread == self.thread and one is not self]
        return any(self._is_held_up_by(one) for one in mine)

    def _is_held_up_by(self, other: Transaction) -> bool:
        mine, its = self._place(), other._place()
        if other.pool is not self.pool and (mine is None or its is None or mine.inode != its.inode):
            return False
        # A reader keeps a writer waiting only where there is no WAL.
        return bool(other.right) or (self.writes and its is not None and its.wal is None)

    def _place(self) -> connections.Place | None:
        return self.connection[-1].place if self.connection else None


def _run(owner: weakref.ref[Transaction], step: Callable[..., Any], *raised: Any) -> Any:
    """Begin or finish a transaction, which `owner` refers to, and end it if that fails.

    `raised` are the error's type, the error and its traceback, as `__exit__` gets them. This frame refers to the
    transaction only within `try`, whose `finally` ends it. There are two of these, because a signal handler may raise
    within the first `finally`.
    """
    transaction = None
    try:
        try:
            transaction = owner()
            made = step(transaction, *raised[1:2])
            transaction = None
            return made
        except Exception as e:
            if transaction is None or not is_of_file(e):
                raise
            transaction.pool.end(transaction, isinstance(e, sqlite3.Error) and (is_busy(e) or is_late(e)))
            raise transaction.translated(e) from e
        finally:
            if transaction is not None:
                transaction.pool.end(transaction)
    finally:
        if transaction is not None:
            transaction.pool.end(transaction)


# ---- Upkeep ----

# The order matters to SQLite 3.8, see `schema`.
_ANY_DUE = (
    "SELECT 1 FROM budgets WHERE period_end_ms <= ?"
    f" UNION ALL SELECT 1 FROM {RESERVATIONS} WHERE status = 'ACTIVE' AND deadline_ms < ? LIMIT 1"
)
_FIRST_END = "SELECT min(period_end_ms) FROM budgets WHERE period_end_ms <= ?"
_DUE = (
    f"SELECT number, unit, reserved, held, deadline_ms FROM {RESERVATIONS}"
    " WHERE status = 'ACTIVE' AND deadline_ms < ? ORDER BY deadline_ms LIMIT ?"
)
_EXPIRE = f"UPDATE {RESERVATIONS} SET status = 'EXPIRED', forget_at_ms = ? WHERE number = ?"

#: What is kept no longer, for each kind of records: how some are found, and how each is dropped.
_OLD = (
    (
        f"SELECT number FROM {RESERVATIONS} WHERE forget_at_ms < ? ORDER BY forget_at_ms LIMIT ?",
        (f"DELETE FROM {RESERVATIONS} WHERE number = ?", "DELETE FROM settlements WHERE number = ?"),
    ),
    (
        "SELECT until_ms, number FROM promises WHERE until_ms < ? ORDER BY until_ms LIMIT ?",
        ("DELETE FROM promises WHERE until_ms = ? AND number = ?",),
    ),
    (
        "SELECT tenant, operation, target, idempotency_key FROM replies WHERE expires_at_ms < ? LIMIT ?",
        ("DELETE FROM replies WHERE tenant = ? AND operation = ? AND target = ? AND idempotency_key = ?",),
    ),
)
_PRUNED = "SELECT done_at_ms FROM upkeep WHERE what = 'prune'"
_SAVE_PRUNED = "INSERT OR REPLACE INTO upkeep (what, done_at_ms) VALUES ('prune', ?)"


def catch_up(db: sqlite3.Connection, now: int) -> None:
    """Free a batch of due holds and close a batch of ended periods, in the order of time, as if somebody had come along
    at each of these instants.

    So a hold that was due before a boundary is part of what remains there, for the next period to get, and one that was
    due later is still held there. Each boundary is that of the row, which the lock keeps for this transaction: whoever
    comes next finds the next one. The end of a period only grows, so a clock that goes back ends none again.
    """
    left = CATCH_UP_AT_ONCE
    while left > 0:
        (end,) = db.execute(_FIRST_END, (now,)).fetchone()
        done = free_due(db, now if end is None else end, left)
        if not done:
            if end is None:
                return
            done = _close_periods(db, end, now, left)
        left -= done


def _close_periods(db: sqlite3.Connection, end: int, now: int, most: int) -> int:
    """Close periods that end at an instant. Return how many those were."""
    budgets = rows.find_budgets(db, "period_end_ms = ? LIMIT ?", (end, most))
    for closed, begun in [periods.rolled(budget, now) for budget in budgets]:
        rows.add_closed(db, closed)
        rows.save_budget(db, begun)
    return len(budgets)


def free_due(db: sqlite3.Connection, now: int, most: int) -> int:
    """Free holds that are past their reservation's expiry plus grace. Return how many those were."""
    due = db.execute(_DUE, (now, most)).fetchall()
    freed: dict[tuple[str, str], int] = {}
    for _, unit, reserved, held, _ in due:
        for scope in held.split():
            freed[scope, unit] = freed.get((scope, unit), 0) + reserved
    for (scope, unit), amount in freed.items():
        rows.save_amounts(db, rules.free(rows.budgets_of(db, (scope,), unit), amount))
    expired = [(deadline + rows.KEEP_FINISHED_MS, number) for number, _, _, _, deadline in due]
    db.executemany(_EXPIRE, expired)
    return len(due)


def prune(db: sqlite3.Connection, now: int) -> bool:
    """Drop a bounded number of records that are kept no longer: finished reservations and answers. Return whether that
    were all."""
    is_done = True
    for find, drops in _OLD:
        found = db.execute(find, (now, PRUNE_AT_ONCE)).fetchall()
        for drop in drops:
            db.executemany(drop, found)
        is_done = is_done and len(found) < PRUNE_AT_ONCE
    return is_done
