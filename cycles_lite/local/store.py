"""SQLite for the ledger: transactions over a file or memory, for many threads and processes at once.

It knows nothing about budgets. Connections are `connections`' affair; here they are begun, committed and rolled back,
and whoever has to wait for a lock waits here.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
import weakref
from functools import partial

from ..clock import monotonic
from ..errors import ConfigError, TransportError
from . import files, location, schema
from .connections import INHERITED, Pool, new_pool, open_file
from .failures import is_busy, not_in_time, translated

#: Seconds between two tries for the write lock, at most: SQLite has no queue to wait in.
_PAUSE = 0.004


class Store:
    """A budget file, or memory, and its transactions.

    `timeout` is in seconds: a lock that is not had in time raises `TransportTimeout`, with nothing written. All that
    SQLite reports is raised as a `TransportError`.
    """

    def __init__(self, url: str, *, create: bool = True, timeout: float = 7.0) -> None:
        where = location.parse(url)
        self.url = where.url
        #: How messages call it.
        self.name = where.path or "in memory"
        self._timeout = timeout
        self._is_memory = where.path is None
        if where.path is None:
            self._pools = {os.getpid(): _memory_pool()}
        else:
            files.prepare(where.path, create, timeout)
            journal = "DELETE" if location.is_on_network(where.path) else "WAL"
            self._open = partial(open_file, where.path, journal, where.synchronous)
            self._pools = {os.getpid(): new_pool(self._open)}
        # A store that is dropped without `close` takes its connections along, in the process that dropped it.
        weakref.finalize(self, _abandon, self._pools).atexit = False

    def write(self, timeout: float | None = None) -> Transaction:
        """A transaction that may write."""
        return Transaction(self._pool(), self.name, self._seconds(timeout), writes=True)

    def read(self, timeout: float | None = None) -> Transaction:
        """A transaction that only reads: one snapshot, also while others write."""
        # In memory there is one connection, so reading waits for its turn as writing does.
        return Transaction(self._pool(), self.name, self._seconds(timeout), writes=self._is_memory)

    def close(self) -> None:
        """Close this process's connections, those in use when their transaction ends.

        A file can still be used afterwards, with a connection per transaction; memory is gone.
        """
        pool = self._pools.get(os.getpid())
        if pool is not None:
            pool.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else min(timeout, self._timeout)

    def _pool(self) -> Pool:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            if self._is_memory:
                raise ConfigError("sqlite:// is memory of one process and does not survive a fork; use a file")
            INHERITED.extend(self._pools.values())
            pool = self._pools.setdefault(pid, new_pool(self._open))
        return pool


def _memory_pool() -> Pool:
    def gone(deadline: float) -> sqlite3.Connection:
        raise TransportError("the budgets in memory are gone: they were closed")

    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    schema.create(db)
    return Pool(gone, db)


def _abandon(pools: dict[int, Pool]) -> None:
    for pid, pool in pools.items():
        if pid == os.getpid():
            pool.close()
        else:
            INHERITED.append(pool)


class Transaction:
    """Begun when entered, committed when left, rolled back on any exception. SQLite's errors become ours."""

    __slots__ = ("_db", "_deadline", "_name", "_pool", "_seconds", "_writes")

    def __init__(self, pool: Pool, name: str, seconds: float, writes: bool) -> None:
        self._pool, self._name, self._seconds, self._writes = pool, name, seconds, writes

    def __enter__(self) -> sqlite3.Connection:
        self._deadline = monotonic() + self._seconds
        try:
            self._db = self._begin_writing() if self._writes else self._begin_reading()
        except sqlite3.Error as e:
            raise self._translated(e) from e
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is None:
                error = self._commit()
            if error is not None:
                _roll_back(self._db)
        finally:
            self._pool.give_back(self._db, _is_sound(error))
            if self._writes:
                self._pool.writer.release()
        if isinstance(error, sqlite3.Error):
            raise self._translated(error) from error

    def _begin_writing(self) -> sqlite3.Connection:
        """A connection with the write lock, and the pool's `writer` had.

        Nothing is held during the pause: other threads get their try, and a gevent hub cannot lock itself up.
        """
        writer = self._pool.writer
        while True:
            if not writer.acquire(timeout=max(0.0, self._deadline - monotonic())):
                raise not_in_time(self._name, self._seconds)
            try:
                return self._begin("BEGIN IMMEDIATE")
            except BaseException as e:
                writer.release()
                if not (isinstance(e, sqlite3.Error) and is_busy(e)) or monotonic() >= self._deadline:
                    raise
            time.sleep(_PAUSE * random.random())

    def _begin_reading(self) -> sqlite3.Connection:
        db = self._begin("BEGIN")
        try:
            # Takes the read lock here, where waiting is possible; afterwards nothing can be busy.
            files.execute(db, "SELECT 1 FROM sqlite_master LIMIT 1", self._deadline)
        except BaseException:
            self._pool.give_back(db, is_sound=False)
            raise
        return db

    def _begin(self, statement: str) -> sqlite3.Connection:
        db = self._pool.take(self._deadline)
        try:
            db.execute(statement)
        except BaseException as e:
            _roll_back(db)
            self._pool.give_back(db, isinstance(e, sqlite3.Error) and is_busy(e))
            raise
        return db

    def _commit(self) -> sqlite3.Error | None:
        try:
            files.execute(self._db, "COMMIT", self._deadline)
        except sqlite3.Error as e:
            return e
        return None

    def _translated(self, error: sqlite3.Error) -> TransportError:
        return not_in_time(self._name, self._seconds) if is_busy(error) else translated(error, self._name)


def _is_sound(error: BaseException | None) -> bool:
    """Whether a connection may be used again after a transaction that ended like this."""
    return not isinstance(error, sqlite3.Error) or is_busy(error)


def _roll_back(db: sqlite3.Connection) -> None:
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")
    except sqlite3.Error:
        pass  # what broke the transaction is reported; the connection is closed for it, which rolls back too
