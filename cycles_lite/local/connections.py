"""The connections of one process to one budget file, and what becomes of them at a fork.

SQLite keeps book of a process's locks by file, and a forked child inherits the book but not the locks: a connection
that it opened then would believe in locks that nobody holds. So before a fork all connections are closed, once the
transactions at work have ended. What a child inherits all the same (a fork that runs no hooks, a transaction that did
not end) it never touches: closing it could remove the WAL under the parent, so it stays referenced for good.

An exception from a signal handler may come between any two instructions, so nothing here is counted and no lock is
held. Connections move between lists by one expression, `there.append(here.pop())`: one that is interrupted on its way
is an object that nobody refers to, and closes.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Callable

from ..errors import TransportError
from ..runtime.clock import monotonic
from . import schema
from .rights import Rights

if TYPE_CHECKING:
    from .places import Place
    from .store import Transaction

#: Seconds that a fork waits for transactions at work, and between two looks at them.
_FORK_PATIENCE = 10.0
_FORK_PAUSE = 0.002

#: What forked children inherited.
INHERITED: list[object] = []

#: The transactions of this process, and its connections to files, by id.
_live: dict[int, weakref.ref[Transaction]] = {}
_open: dict[int, weakref.ref[Connection]] = {}

#: Has an entry for each fork that is under way.
forking: list[object] = []
_forker: int | None = None


class Connection:
    """A connection that closes when nobody refers to it any more, but never in a forked child.

    SQLite's own refers to itself, so that one that is lost would hold its locks until garbage is collected.
    """

    #: The process that opened it.
    pid = 0
    #: False once it was closed, here or for a fork.
    is_open = False
    #: The file that it has open; None in memory.
    place: Place | None = None

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.pid = os.getpid()
        self.is_open = True

    def close(self) -> None:
        self.is_open = False  # first: whoever finds it idle must not use what an interruption left half closed
        self.db.close()
        _open.pop(id(self), None)

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.close()
        elif self.pid:
            INHERITED.append(self.db)


def at_place(made: Connection, place: Place) -> None:
    """Remember which file a new connection has open."""
    made.place = place
    _open[id(made)] = weakref.ref(made)


def open_connections() -> list[Connection]:
    """This process's connections to files."""
    pid = os.getpid()
    found = [reference() for reference in list(_open.values())]
    return [one for one in found if one is not None and one.pid == pid]


def enter(transaction: Transaction) -> None:
    """Let a transaction be among `live_transactions`, until `leave` or until it is collected."""
    _live[id(transaction)] = weakref.ref(transaction)


def leave(transaction: Transaction) -> None:
    _live.pop(id(transaction), None)


def live_transactions() -> list[Transaction]:
    """This process's transactions that did not end."""
    pid = os.getpid()
    found = [reference() for reference in list(_live.values())]
    return [transaction for transaction in found if transaction is not None and transaction.pid == pid]


class Pool:
    """One process's connections to a file, idle ones in a stack. `open` makes one, up to a monotonic time."""

    def __init__(self, open: Callable[[float], Connection]) -> None:
        self.pid = os.getpid()
        #: Had by the thread that writes: threads of one process queue here, fairly, instead of at the file.
        self.rights = Rights()
        self._open = open
        self._idle: list[Connection] = []
        self._is_closed = False
        weakref.finalize(self, _close_left, self._idle, self.pid)

    def take(self, box: list[Connection], deadline: float) -> None:
        """Put an idle connection, or a new one, into an empty box."""
        while self._idle:
            try:
                box.append(self._idle.pop())
            except IndexError:  # another thread had it
                break
            if box[-1].is_open:
                return
            box.pop()
        box.append(self._open(deadline))

    def give_back(self, box: list[Connection], is_sound: bool) -> None:
        """Keep a connection for the next transaction, unless SQLite failed on it or the pool was closed."""
        if is_sound and not self._is_closed and _roll_back(box[-1].db):
            self._idle.append(box.pop())
            if self._is_closed:
                self.close_idle()
        else:
            box.pop().close()

    def close(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._is_closed = True
        self.close_idle()

    def close_idle(self) -> None:
        _close_left(self._idle, self.pid)


class Memory(Pool):
    """A ledger in memory: one connection, had by whoever has the right, and never closed for an error."""

    def __init__(self) -> None:
        super().__init__(_gone)
        made = Connection(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
        schema.create(made.db)
        self._only: Connection | None = made

    def take(self, box: list[Connection], deadline: float) -> None:
        if self._only is None:
            _gone(deadline)
        else:
            box.append(self._only)
            _roll_back(self._only.db)  # what an interrupted transaction may have left

    def give_back(self, box: list[Connection], is_sound: bool) -> None:
        _roll_back(box[-1].db)
        box.pop()

    def close(self) -> None:
        self._only = None  # closes when the transaction that has it ends


def _gone(deadline: float) -> Connection:
    raise TransportError("the budgets in memory are gone: they were closed")


def _roll_back(db: sqlite3.Connection) -> bool:
    """Undo what was not committed; whether that was possible."""
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")
    except sqlite3.Error:
        return False  # what broke the transaction is reported; to close the connection rolls back too
    return True


def _close_left(idle: list[Connection], pid: int) -> None:
    """Close what is idle, also of a pool that is collected or sees the interpreter end; never in a forked child."""
    while idle and os.getpid() == pid:
        try:
            idle.pop().close()
        except IndexError:  # another thread had it
            return


# ---- Forks ----


def is_forker() -> bool:
    """Whether this very thread is about to fork, so that it must not wait for the fork."""
    return _forker == threading.get_ident()


def _before_fork() -> None:
    """Close every connection, also where a signal handler raises meanwhile: the fork goes on then."""
    try:
        _wait_for_others()
    finally:
        _close_unused()


def _wait_for_others() -> None:
    """Wait for transactions at work, but not for an own one, around a signal handler that forks."""
    global _forker
    _forker = me = threading.get_ident()
    deadline = monotonic() + _FORK_PATIENCE
    while monotonic() < deadline and any(one.is_at_work and one.thread != me for one in live_transactions()):
        time.sleep(_FORK_PAUSE)


def _close_unused() -> None:
    in_use = [one for transaction in live_transactions() for one in transaction.connection]
    for one in open_connections():
        if one not in in_use:
            one.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
    # This runs before `_before_fork`, because what registers last runs first. It is C alone, so that no interruption
    # keeps `forking` from being set or cleared.
    os.register_at_fork(
        before=functools.partial(forking.append, None), after_in_parent=forking.pop, after_in_child=forking.clear
    )
