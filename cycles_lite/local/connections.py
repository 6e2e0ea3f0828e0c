"""The connections of one process to one budget file, and what becomes of them at a fork.

SQLite keeps book of a process's locks by file, and a forked child inherits the book but not the locks: a connection
that it opened then would believe in locks that nobody holds. So before a fork all connections are closed, once the
transactions at work have ended. What a child inherits all the same (a fork that runs no hooks, a transaction that did
not end) it never touches: closing it could remove the WAL under the parent, so it stays referenced for good.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from typing import Callable

from ..clock import monotonic
from ..errors import TransportError
from . import files, schema
from .failures import is_busy

#: Pages of 4 KiB that the WAL grows to before they are copied to the file: fewer copies, fewer waits for the disk.
_CHECKPOINT_PAGES = 4000

#: Seconds that a fork waits for transactions at work.
_FORK_PATIENCE = 10.0

#: What forked children inherited.
INHERITED: list[Pool] = []


def open_file(path: str, journal: str, synchronous: str, deadline: float) -> sqlite3.Connection:
    """A connection to a budget file that is there, tried up to a monotonic time while others lock it."""
    while True:
        try:
            return _open(path, journal, synchronous, deadline)
        except sqlite3.OperationalError as e:
            if not is_busy(e) or monotonic() >= deadline:
                raise


def _open(path: str, journal: str, synchronous: str, deadline: float) -> sqlite3.Connection:
    db = files.connect(path)
    try:
        if schema.identity(db) != (schema.APPLICATION_ID, schema.VERSION):
            raise TransportError(f"the budget file {path} was replaced by another file")
        _set_journal(db, journal, deadline)
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
        db.execute("PRAGMA synchronous = " + synchronous)
    except BaseException:
        db.close()
        raise
    return db


def _set_journal(db: sqlite3.Connection, journal: str, deadline: float) -> None:
    """The journal that suits the disk. Other users of the file may hold it back: then the present one serves."""
    try:
        files.execute(db, "PRAGMA journal_mode = " + journal, min(deadline, monotonic() + 1.0))
    except sqlite3.OperationalError as e:
        if not is_busy(e):
            raise


class Pool:
    """One process's connections, idle ones in a stack.

    `open` makes one, up to a monotonic time. With `memory` there is one connection, which is never closed for an error.
    """

    def __init__(self, open: Callable[[float], sqlite3.Connection], memory: sqlite3.Connection | None = None) -> None:
        self._open = open
        self._idle = [] if memory is None else [memory]
        self._keeps_all = memory is not None
        self._in_use = 0
        self._is_closed = False
        self._is_forking = False
        self._changed = threading.Condition(threading.Lock())
        #: Had by the thread that writes: threads of one process queue here, fairly, instead of at the file.
        self.writer = threading.Lock()
        weakref.finalize(self, _close_left, self._idle, os.getpid())

    def take(self, deadline: float) -> sqlite3.Connection:
        """An idle connection, or a new one."""
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            self._in_use += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._open(deadline)
        except BaseException:
            self._leave()
            raise

    def give_back(self, db: sqlite3.Connection, is_sound: bool = True) -> None:
        """Keep a connection for the next transaction, unless SQLite failed on it or the pool was closed."""
        if (is_sound or self._keeps_all) and not self._is_closed:
            self._idle.append(db)
        else:
            db.close()
        self._leave()

    def close(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._is_closed = True
        self._close_idle()

    def close_for_fork(self) -> None:
        """Close every connection, those in use when they are given back, and let none be taken."""
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: not self._in_use, _FORK_PATIENCE)
            self._close_idle()

    def reopen(self) -> None:
        """Let connections be taken again."""
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._in_use -= 1
            if self._is_closed:
                self._close_idle()
            if self._is_forking:
                self._changed.notify_all()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _close_left(idle: list[sqlite3.Connection], pid: int) -> None:
    """Close what a collected pool, or one at the interpreter's end, leaves open; but not in a forked child."""
    if os.getpid() == pid:
        while idle:
            idle.pop().close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_pools_lock = threading.Lock()


def new_pool(open: Callable[[float], sqlite3.Connection]) -> Pool:
    """A pool of connections to a file, which forks are held up for."""
    made = Pool(open)
    with _pools_lock:
        _pools.add(made)
    return made


def _all_pools() -> list[Pool]:
    with _pools_lock:
        return list(_pools)


def _before_fork() -> None:
    for pool in _all_pools():
        pool.close_for_fork()


def _after_fork_in_parent() -> None:
    for pool in _all_pools():
        pool.reopen()


def _after_fork_in_child() -> None:
    global _pools, _pools_lock  # other threads may have held the lock, and these pools are the parent's
    _pools, _pools_lock = weakref.WeakSet(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
