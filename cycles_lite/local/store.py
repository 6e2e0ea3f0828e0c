"""SQLite for the ledger: transactions over a file or memory, for many threads and processes at once.

It knows nothing about budgets. Connections are `connections`' affair; here they are begun, committed and rolled back,
and whoever has to wait for a lock waits here.
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
from ..runtime.clock import monotonic
from . import connections, files, location, places
from .connections import INHERITED, Connection, Memory, Pool
from .failures import is_busy, not_in_time, translated
from .rights import Right

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
        self.name = location.printable(where.path) if where.path else "in memory"
        self.timeout = timeout
        self.is_memory = where.path is None
        if where.path is None:
            self._pools: dict[int, Pool] = {os.getpid(): Memory()}
        else:
            files.prepare(where.path, create, timeout)
            journal = "DELETE" if location.is_on_network(where.path) else "WAL"
            self._open = partial(files.open_file, where.path, journal, where.synchronous)
            self._pools = {os.getpid(): Pool(self._open)}

    def __reduce__(self) -> Any:
        raise TypeError("a Store has connections to its file, and does not pickle: make one in each process")

    def write(self, timeout: float | None = None) -> Transaction:
        """A transaction that may write."""
        return Transaction(self, timeout, writes=True)

    def read(self, timeout: float | None = None) -> Transaction:
        """A transaction that only reads: one snapshot, also while others write."""
        return Transaction(self, timeout, writes=False)

    def close(self) -> None:
        """Close this process's connections, those in use when their transaction ends.

        A file can still be used afterwards, with a connection per transaction; memory is gone.
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


class Transaction:
    """Begun when entered, committed when left, rolled back on any exception. SQLite's errors become ours.

    It owns what it takes, the connection and the right to write, and no interruption keeps it from giving them back,
    although one may come where no `try` can help: before the first instruction of a method `__exit__`, or after the
    last one of `__enter__`. The traceback keeps the frames of these methods, and so their `self`, for as long as
    somebody keeps the exception. So here the `with` statement itself has the only reference to the transaction, beside
    those of frames that are within a `try` that ends it. When the statement is left in whatever way, its reference
    goes, and what the transaction still owned is given back with the object. For that reason the object must not be
    assigned to a variable before it is entered, where it is to survive interruptions.
    """

    def __init__(self, store: Store, timeout: float | None, writes: bool) -> None:
        self._pool, self._name = store.pool(), store.name
        self._seconds = store.timeout if timeout is None else min(timeout, store.timeout)
        # In memory there is one connection, so reading waits for its turn as writing does.
        self.writes = writes or store.is_memory
        self.pid = self._pool.pid
        self.thread = threading.get_ident()
        #: The connection, while it has one.
        self.connection: list[Connection] = []
        self._right: list[Right] = []
        #: Whether a fork must wait for it.
        self.is_at_work = False

    @property
    def __enter__(self) -> Callable[[], Any]:
        return partial(_run, weakref.ref(self), type(self).begin)

    @property
    def __exit__(self) -> Callable[..., None]:
        leave = partial(_run, weakref.ref(self), type(self).finish)
        vars(leave)["transaction"] = self  # an attribute, and no argument, which a frame would keep
        return leave

    def begin(self) -> Any:
        """What the `with` statement calls first; what it is to give its block."""
        self._deadline = monotonic() + self._seconds
        connections.enter(self)
        if self.writes:
            self._begin_writing()
        else:
            self._begin_reading()
        place = self._place()
        if place is not None:
            self._demand_same(place)
        return self.connection[-1].db

    def finish(self, kind: object = None, error: BaseException | None = None, traceback: object = None) -> None:
        """What the `with` statement calls last: commit, or hand the block's error to whoever ends the transaction."""
        if isinstance(error, sqlite3.Error):
            raise error
        if error is None:
            self._commit()
        self.end()

    def end(self, is_sound: bool = True) -> None:
        """Give everything back; what was not committed is rolled back. To do so twice is nothing."""
        if self.connection and self.pid != os.getpid():
            INHERITED.append(self.connection.pop())
        elif self.connection:
            self._pool.give_back(self.connection, is_sound)
        self.is_at_work = False
        if self._right:
            self._pool.rights.give_back(self._right)
        connections.leave(self)

    def _begin_writing(self) -> None:
        """Nothing is held during the pause: other threads get their try, and a gevent hub cannot lock itself up."""
        while True:
            if not self._pool.rights.take(self._right, self._deadline, self._waits_for_itself):
                raise not_in_time(self._name, self._seconds)
            try:
                self._connect()
                self.connection[-1].db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                if not is_busy(e) or monotonic() >= self._deadline or self._waits_for_itself():
                    raise
            self.end()
            connections.enter(self)
            time.sleep(_PAUSE * random.random())

    def _begin_reading(self) -> None:
        self._connect()
        db = self.connection[-1].db
        db.execute("BEGIN")
        # Takes the read lock here, where waiting is possible; afterwards nothing can be busy.
        files.execute(db, "SELECT 1 FROM sqlite_master LIMIT 1", self._deadline, self._waits_for_itself)

    def _connect(self) -> None:
        # In this order: either a fork sees that this is at work, or this sees that a fork is under way.
        self.is_at_work = True
        while connections.forking:
            self.is_at_work = False
            if connections.is_forker() or monotonic() >= self._deadline:
                raise not_in_time(self._name, self._seconds)
            time.sleep(_PAUSE)
            self.is_at_work = True
        self._pool.take(self.connection, self._deadline)

    def _demand_same(self, place: places.Place) -> None:
        try:
            places.demand_same(place, self._deadline)
        except TransportTimeout:
            raise
        except TransportError:
            if places.inode(place.path) is not None:  # what is only away may come back, and then its WAL is needed
                self.connection.pop().close()
                self._pool.close_idle()
            raise

    def _commit(self) -> None:
        if self.pid != os.getpid():
            raise TransportError("a transaction does not survive a fork; nothing was written")
        files.execute(self.connection[-1].db, "COMMIT", self._deadline, self._waits_for_itself)

    def _waits_for_itself(self) -> bool:
        """Whether it waits for a transaction of this very thread, which a signal handler has interrupted."""
        mine = [one for one in connections.live_transactions() if one.thread == self.thread and one is not self]
        return any(self._is_held_up_by(one) for one in mine)

    def _is_held_up_by(self, other: Transaction) -> bool:
        mine, its = self._place(), other._place()
        if other._pool is not self._pool and (mine is None or its is None or mine.inode != its.inode):
            return False
        # Readers only hold writers up where there is no WAL.
        return bool(other._right) or (self.writes and its is not None and its.wal is None)

    def _place(self) -> places.Place | None:
        return self.connection[-1].place if self.connection else None

    def translated(self, error: sqlite3.Error) -> TransportError:
        """The error to raise for one of SQLite's."""
        return not_in_time(self._name, self._seconds) if is_busy(error) else translated(error, self._name)


def _run(owner: weakref.ref[Transaction], step: Callable[..., Any], *args: Any) -> Any:
    """Do one half of a transaction, and end the transaction if that fails. `owner` is dead only after its end.

    This frame refers to the transaction only where its `finally` is sure to run. The second one is for a signal handler
    that raises within the first.
    """
    transaction = None
    try:
        try:
            transaction = owner()
            made = step(transaction, *args)
            transaction = None
            return made
        except sqlite3.Error as e:
            assert transaction is not None
            transaction.end(is_busy(e))
            raise transaction.translated(e) from e
        finally:
            if transaction is not None:
                transaction.end()
    finally:
        if transaction is not None:
            transaction.end()
