"""The connections of one process to one budget file: who may use them, and what becomes of them at a fork.

SQLite remembers the locks of a process by file. A forked child inherits this memory, but not the locks: a connection
that it opens would rely on locks that nobody holds. So before a fork the transactions at work are waited for, and all
connections are closed. A child may inherit a connection nevertheless, where the fork ran no hooks or a transaction did
not end. It never uses or closes such a connection, because closing it could remove the WAL that its parent uses; so a
reference to it is kept for good.

A signal handler may raise between any two instructions, so nothing here is counted, and no lock is held but
for making a lost right again. A transaction keeps its connection and its right to write in lists of one item, called
boxes. An item moves from box to box by one expression, `there.append(here.pop())`. If that is interrupted between the
two steps, nobody refers to the item any more: a connection is then closed, and a right is replaced.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Callable, Mapping, NamedTuple, Optional, Tuple, TypeVar

from ..errors import TransportError
from ..runtime.clock import monotonic
from ..runtime.line import Line, Waiter
from . import schema
from .failures import is_busy

if TYPE_CHECKING:
    from .ledger import Transaction

T = TypeVar("T", "Connection", "Transaction")

#: Seconds that a fork waits for transactions at work, and between two looks at them.
_FORK_PATIENCE = 10.0
_FORK_PAUSE = 0.002

#: How many instructions SQLite runs between two looks at the time: some of its rows, and less than a millisecond where
#: no disk is waited for.
_INSTRUCTIONS = 10_000
NEVER = math.inf

#: The connections that this process has inherited by a fork, and must neither use nor close.
INHERITED: list[object] = []

#: The transactions that have not ended and the connections that are not closed, by `id`. Each adds itself.
live: dict[int, weakref.ref[Transaction]] = {}
_open: dict[int, weakref.ref[Connection]] = {}

#: Has an entry for each fork that is under way.
_forking: list[object] = []
#: The thread that forked last, or is about to.
_forker: int | None = None

#: Device and inode; None where there is no file.
Inode = Optional[Tuple[int, int]]


class Place(NamedTuple):
    """The file that a connection has open. No other file can get its inode while it is open."""

    path: str
    #: The path without links, as SQLite names the journal.
    real: str
    inode: Inode
    #: Those of the files that SQLite keeps beside it: the write-ahead log and its index.
    wal: Inode
    shm: Inode


def inode(path: str) -> Inode:
    """Which file a path leads to."""
    found = stamp(path)
    return found[:2] if found else None


def stamp(path: str) -> tuple[int, int, int] | None:
    """Device, inode, and the inode's last change; that tells whether a name has led elsewhere and back meanwhile."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


class Connection:
    """A connection that closes when nobody refers to it any more, but never in a forked child.

    An `sqlite3.Connection` refers to itself, so that one that is lost would hold its locks until the garbage collector
    finds it.
    """

    #: The process that opened it.
    pid = 0
    #: Whether it is open. It is not once it was closed, by its user or before a fork.
    is_open = False
    #: The file that it has open, once that is certain; None in memory.
    place: Place | None = None

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.pid = os.getpid()
        self.is_open = True
        #: When SQLite gives up the statement at work, as a monotonic time. It is an error then.
        self.gives_up = [NEVER]
        db.set_progress_handler(_is_late(self.gives_up), _INSTRUCTIONS)
        _open[id(self)] = weakref.ref(self)

    def close(self) -> None:
        self.is_open = False  # this comes first, so that nobody uses a connection whose closing was interrupted
        self.db.close()
        _open.pop(id(self), None)

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.close()
        elif self.pid:
            INHERITED.append(self.db)


def _is_late(gives_up: list[float]) -> Callable[[], bool]:
    """A function that tells whether the time in a list has passed.

    Python swallows whatever is raised within SQLite's call of it, a signal handler's exception too. So it is made of
    functions in C, among which no signal handler runs.
    """
    times = map(gives_up.__getitem__, itertools.repeat(0))
    return map(operator.lt, times, iter(monotonic, None)).__next__


def open_connections() -> list[Connection]:
    """This process's connections to budget files."""
    return [one for one in _still_there(_open) if one.place is not None]


def live_transactions() -> list[Transaction]:
    """This process's transactions that have not ended."""
    return _still_there(live)


def _still_there(references: Mapping[int, weakref.ref[T]]) -> list[T]:
    pid = os.getpid()
    found = [reference() for reference in list(references.values())]
    return [one for one in found if one is not None and one.pid == pid]


def execute(
    db: sqlite3.Connection, statement: str, deadline: float, is_in_vain: Callable[[], bool] = lambda: False
) -> None:
    """Run a statement, again and again while somebody else holds the lock, until a monotonic time. `is_in_vain` tells
    that waiting cannot help."""
    while True:
        try:
            db.execute(statement).fetchall()
            return
        except sqlite3.OperationalError as e:
            if not is_busy(e) or monotonic() >= deadline or is_in_vain():
                raise


# ---- The right to write ----


class Right:
    """What a thread has while it writes; the object itself is all that there is to it."""

    __slots__ = ("__weakref__",)


class Rights:
    """The right to write: one thread of a process has it, and no interruption can lose or double it.

    A deque hands it over, each operation of which is atomic, so that signal handlers may use it too. An interruption
    may come when a right has left the deque and is not yet in a box, or the other way round: nobody refers to the
    object then. Whoever waits looks now and then whether that has happened, and makes another. (PyPy finds that out at
    its next collection.)

    The turns of `transport.turns` would not do. They come back by themselves, but an interruption may hand out one too
    many, and two writers on one connection in memory would mix their transactions.
    """

    #: Seconds between two looks of a waiting thread at whether the right was lost, and after which one who has not
    #: looked is passed over.
    LOOK_AGAIN, PASSED_OVER = 0.05, 1.0

    def __init__(self) -> None:
        self.line = Line(self.LOOK_AGAIN, self.PASSED_OVER)
        self._free: deque[Right] = deque()
        self._replacing = threading.RLock()  # a signal handler may ask for the right as well
        self._make()

    def take(self, box: list[Right], deadline: float, is_in_vain: Callable[[], bool]) -> bool:
        """Wait for the right until a monotonic time, and put it into the box. False if it did not come in time, or
        `is_in_vain` tells that it cannot come."""
        if not self.line.waiters and self._is_in(box):
            return True
        with Waiter(self.line) as mine:
            while True:
                if mine.is_first() and self._is_in(box):
                    return True
                if not self._replaced() and (monotonic() >= deadline or is_in_vain()):
                    return False
                mine.wait(deadline)

    def give_back(self, box: list[Right]) -> None:
        """Let the right in a box be taken again."""
        self._free.append(box.pop())
        if self.line.waiters:
            self.line.ring()

    def _is_in(self, box: list[Right]) -> bool:
        """Put the right into the box if it is free; whether it was."""
        try:
            box.append(self._free.popleft())
        except IndexError:
            return False
        return True

    def _replaced(self) -> bool:
        if self._seen() is not None:
            return False
        with self._replacing:
            if self._seen() is None:
                self._make()
        return True

    def _make(self) -> None:
        right = Right()
        self._seen = weakref.ref(right)
        self._free.append(right)


# ---- Pools ----


class Pool:
    """One process's connections to a file, of which the idle ones are in a stack.

    `open` makes a connection, and tries to until a monotonic time.
    """

    def __init__(self, open: Callable[[float], Connection]) -> None:
        self.pid = os.getpid()
        #: The right to write. Threads of one process wait for it in a fair order, and not for the file's lock.
        self.rights = Rights()
        self._open = open
        self._idle: list[Connection] = []
        self._is_closed = False
        weakref.finalize(self, _close_left, self._idle, self.pid)

    def take(self, transaction: Transaction, deadline: float) -> bool:
        """Put a connection into the empty box of a transaction. False if a fork does not end in time."""
        # The order matters: either the fork sees the transaction at work, or this sees that a fork is under way.
        transaction.is_at_work = True
        while _forking:
            transaction.is_at_work = False
            if _forker == threading.get_ident() or monotonic() >= deadline:  # the forking thread cannot wait
                return False
            time.sleep(_FORK_PAUSE)
            transaction.is_at_work = True
        self._take(transaction.connection, deadline)
        return True

    def _take(self, box: list[Connection], deadline: float) -> None:
        while self._idle:
            try:
                box.append(self._idle.pop())
            except IndexError:  # another thread had it
                break
            if box[-1].is_open:
                return
            box.pop()
        box.append(self._open(deadline))

    def end(self, transaction: Transaction, is_sound: bool = True) -> None:
        """Take back all that a transaction has, and roll back what it did not commit. A second call does nothing."""
        if transaction.connection and self.pid != os.getpid():
            INHERITED.append(transaction.connection.pop())
        elif transaction.connection:
            self._give_back(transaction.connection, is_sound)
        transaction.is_at_work = False
        if transaction.right:
            self.rights.give_back(transaction.right)
        live.pop(id(transaction), None)

    def _give_back(self, box: list[Connection], is_sound: bool) -> None:
        """Keep a connection for the next transaction, unless SQLite failed on it or the pool was closed."""
        box[-1].gives_up[0] = NEVER
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
    """The pool of a ledger in memory. Its one connection belongs to whoever has the right to write, and no error closes
    it."""

    def __init__(self) -> None:
        super().__init__(_gone)
        made = Connection(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
        schema.create(made.db)
        self._only: Connection | None = made

    def _take(self, box: list[Connection], deadline: float) -> None:
        box.append(self._only or _gone(deadline))
        box[-1].gives_up[0] = NEVER
        _roll_back(box[-1].db)  # an interrupted transaction may have left changes behind

    def _give_back(self, box: list[Connection], is_sound: bool) -> None:
        box[-1].gives_up[0] = NEVER
        _roll_back(box[-1].db)
        box.pop()

    def close(self) -> None:
        self._only = None  # a transaction that has the connection keeps it alive until it ends


def _gone(deadline: float) -> Connection:
    raise TransportError("the budgets in memory are gone: they were closed")


def _roll_back(db: sqlite3.Connection) -> bool:
    """Undo what was not committed. Return whether that was possible."""
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")
    except sqlite3.Error:
        return False  # the error that broke the transaction is reported, and closing the connection rolls back too
    return True


def _close_left(idle: list[Connection], pid: int) -> None:
    """Close idle connections. A finalizer does so for a pool that is collected or lives until the interpreter's end. In
    a forked child nothing is closed."""
    while idle and os.getpid() == pid:
        try:
            idle.pop().close()
        except IndexError:  # another thread had it
            return


# ---- Forks ----


def _before_fork() -> None:
    """Close every connection, even if a signal handler raises meanwhile, because the fork goes on."""
    try:
        _wait_for_others()
    finally:
        in_use = [one for transaction in live_transactions() for one in transaction.connection]
        for one in open_connections():
            if one not in in_use:
                one.close()


def _wait_for_others() -> None:
    """Wait for the transactions at work, except for those of this thread, whose signal handler has called `fork`."""
    global _forker
    _forker = me = threading.get_ident()
    deadline = monotonic() + _FORK_PATIENCE
    while monotonic() < deadline and any(one.is_at_work and one.thread != me for one in live_transactions()):
        time.sleep(_FORK_PAUSE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
    # Functions that are registered last run first before a fork, so this one runs before `_before_fork`. It is written
    # in C, so that no interruption keeps `_forking` from being set or cleared.
    os.register_at_fork(
        before=functools.partial(_forking.append, None), after_in_parent=_forking.pop, after_in_child=_forking.clear
    )
