"""Turns at something that only so many may use at once, which no interruption can lose.

A signal handler may raise at any instruction: between a lock's `acquire` and the line that remembers it, or within the
`finally` that was to release it; the lock is then held for good. A turn is an object instead. Whoever has it uses the
thing, `give_back` ends that, and where an exception came in between, the object that nobody holds any more is collected
and comes back by itself. A `SimpleQueue` hands turns over: it may be used within a signal handler and a finalizer.

These are not the rights of `local.connections`, where there is never one too many but those who wait have to look for
what was lost: one connection too many does no harm, and the hundreds of threads that may wait for one should sleep.
"""

from __future__ import annotations

import queue
import weakref
from typing import Any


class Turn:
    """The right to use something until it is given back, or nobody refers to it any more."""

    __slots__ = ("_free",)

    def __init__(self, free: Any) -> None:
        #: A weak reference to the queue; None once the turn has been given back.
        self._free = free

    def give_back(self) -> None:
        """End this turn. Doing so twice is nothing."""
        if self._free is None:
            return
        free = self._free()
        if free is not None:
            # In this order: an interruption in between hands out a turn too many, and never one too few.
            free.put(Turn(self._free))
        self._free = None

    __del__ = give_back


class Turns:
    """`count` turns, handed out to whoever waits."""

    def __init__(self, count: int) -> None:
        # Looked up in its module, because gevent puts a queue of its own there.
        self._free: Any = queue.SimpleQueue()
        free = weakref.ref(self._free)
        for _ in range(count):
            self._free.put(Turn(free))

    def take(self, timeout: float) -> Turn | None:
        """A turn, waited for up to so many seconds; None where there was none."""
        try:
            turn: Turn = self._free.get(True, timeout) if timeout > 0 else self._free.get(False)
        except queue.Empty:
            return None
        return turn
