"""Turns at something that only so many may use at once, which no interruption can lose.

A signal handler may raise at any instruction: between a lock's `acquire` and the line that remembers it, or within the
`finally` that was to release it; the lock is then held for good. So a turn is an object. Whoever refers to it may use
the thing, and `give_back` ends that. Where an exception comes in between, nobody refers to the object any more, it is
collected, and its finalizer gives the turn back. Turns are handed over by a queue that may be used within a signal
handler and a finalizer.

The right to write of `local.connections` is another thing: there must never be two of it, so that those who wait have
to look now and then whether it was lost. Here one connection too many does no harm, and hundreds of threads may sleep.
"""

from __future__ import annotations

import queue
import weakref
from typing import Any

from ..runtime.queues import new_queue


class Turn:
    """The right to use something until it is given back, or nobody refers to it any more."""

    __slots__ = ("_free",)

    def __init__(self, free: Any) -> None:
        #: A weak reference to the queue of free turns; None once this turn has been given back.
        self._free = free

    def give_back(self) -> None:
        """End this turn. A second call does nothing."""
        if self._free is None:
            return
        free = self._free()
        if free is not None:
            # The order matters: an interruption between these lines leaves one turn too many, and never one too few.
            free.put(Turn(self._free))
        self._free = None

    __del__ = give_back


class Turns:
    """`count` turns, handed out to whoever waits."""

    def __init__(self, count: int) -> None:
        self._free: Any = new_queue()
        free = weakref.ref(self._free)
        for _ in range(count):
            self._free.put(Turn(free))

    def take(self, timeout: float) -> Turn | None:
        """A turn, which is waited for up to `timeout` seconds; None where none became free in time."""
        try:
            turn: Turn = self._free.get(True, timeout) if timeout > 0 else self._free.get(False)
        except queue.Empty:
            return None
        return turn
