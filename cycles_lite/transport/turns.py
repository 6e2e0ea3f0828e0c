"""Turns at something that only so many may use at once, which no interruption can lose.

A signal handler may raise at any instruction: between a lock's `acquire` and the line that remembers it, or within the
`finally` that was to release it; the lock is then held for good. So a turn is an object. Whoever refers to it may use
the thing, and `give_back` ends that. Where an exception comes in between, nobody refers to the object any more, it is
collected, and its finalizer gives the turn back. Free turns are in a deque, each operation of which is atomic, so that
signal handlers and finalizers may take and give back too.

The right to write of `local.connections` is another thing: there must never be two of it, so that those who wait have
to look now and then whether it was lost. Here one connection too many does no harm, and hundreds of threads may sleep.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Callable

from ..runtime.clock import monotonic
from ..runtime.line import Line, Waiter

#: Seconds between two looks of one who waits, and after which one who has not looked is passed over. Both are for
#: waiters that were interrupted; all others are woken.
_LOOK_AGAIN, _PASSED_OVER = 1.0, 5.0


class Turn:
    """The right to use something until it is given back, or nobody refers to it any more."""

    __slots__ = ("_of",)

    def __init__(self, of: Callable[[], Turns | None]) -> None:
        #: A weak reference to the turns that this is one of; None once it has been given back.
        self._of: Callable[[], Turns | None] | None = of

    def give_back(self) -> None:
        """End this turn. A second call does nothing."""
        of = self._of
        if of is None:
            return
        turns = of()
        if turns is not None:
            # The order matters: an interruption between these lines leaves one turn too many, and never one too few.
            turns.free.append(Turn(of))
        self._of = None
        if turns is not None and turns.line.waiters:
            turns.line.ring()

    __del__ = give_back


class Turns:
    """`count` turns, handed out to those who wait in the order in which they came."""

    def __init__(self, count: int) -> None:
        #: The turns that nobody has.
        self.free: deque[Turn] = deque()
        #: Those who wait for one.
        self.line = Line(_LOOK_AGAIN, _PASSED_OVER)
        of = weakref.ref(self)
        for _ in range(count):
            self.free.append(Turn(of))

    def take(self, timeout: float) -> Turn | None:
        """A turn, which is waited for up to `timeout` seconds; None where none became free in time."""
        turn = None if self.line.waiters else self._free_one()
        if turn is not None or timeout <= 0:
            return turn
        deadline = monotonic() + timeout
        with Waiter(self.line) as waiter:
            while True:
                turn = self._free_one() if waiter.is_first() else None
                if turn is not None or monotonic() >= deadline:
                    return turn
                waiter.wait(deadline)

    def _free_one(self) -> Turn | None:
        try:
            return self.free.pop()
        except IndexError:
            return None
