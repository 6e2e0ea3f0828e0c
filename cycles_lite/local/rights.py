"""The right to write: one thread of a process has it, and no interruption can lose or double it.

A signal handler may raise between any two instructions, also within the clean-up that was to follow. So whoever has
the right keeps it in a list, a box: one that is taken from the queue and did not get into a box, or out of a box and
not into the queue, is an object that nobody refers to, which the next one who asks notices and replaces.

These are not the turns of `turns`, whose interruption may hand out one too many: two writers on one connection in
memory would mix their transactions, and so whoever waits here wakes up now and then to look for a right that was lost.
"""

from __future__ import annotations

import queue
import threading
import weakref
from typing import Any, Callable

from ..runtime.clock import monotonic

#: Seconds after which whoever waits looks whether the right was lost.
_LOOK_AGAIN = 0.05


class Right:
    __slots__ = ("__weakref__",)


class Rights:
    """One right, handed over in a `SimpleQueue`, which may be used within a signal handler."""

    def __init__(self) -> None:
        # By its module: gevent puts a queue of its own there.
        self._free: Any = queue.SimpleQueue()
        self._replacing = threading.RLock()  # a signal handler may ask for the right as well
        self._make()

    def take(self, box: list[Right], deadline: float, is_in_vain: Callable[[], bool]) -> bool:
        """Put the right into the box, waited for up to a monotonic time unless that is in vain; whether it was had."""
        wait = 0.0
        while True:
            try:
                box.append(self._free.get(wait > 0, wait))
                return True
            except queue.Empty:
                wait = min(deadline - monotonic(), _LOOK_AGAIN)
            if not self._replaced() and (wait <= 0 or is_in_vain()):
                return False
            wait = max(wait, 0.0)

    def give_back(self, box: list[Right]) -> None:
        """Let the right in a box be taken again."""
        self._free.put(box.pop())

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
        self._free.put(right)
