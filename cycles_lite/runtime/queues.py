"""A queue that signal handlers and finalizers may use at any instant, in every Python."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from typing import Any

from .clock import monotonic


def new_queue() -> Any:
    """A `queue.SimpleQueue`, or what has the same `put` and `get`.

    The one of CPython is a single step in C. That of PyPy is written in Python over a lock: it stays locked for good
    where a signal handler raises within it, or uses the same queue again.
    """
    # Looked up in its module each time, because gevent puts a queue of its own there.
    return Queue() if sys.implementation.name == "pypy" else queue.SimpleQueue()


class Queue:
    """Items that are handed over first in, first out. Nothing here holds a lock.

    Who waits does so at a bell, which is a lock of his own that he has acquired, and acquires once more. An
    interruption may keep a bell from being rung, or take a ring away; so everyone who waits also looks by himself.
    """

    #: Seconds between two looks.
    LOOK_AGAIN = 0.05

    def __init__(self) -> None:
        # The methods of a deque are single steps.
        self._items: deque[Any] = deque()
        self._bells: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        try:
            self._bells.popleft().release()
        except (IndexError, RuntimeError):  # nobody waits, or an interruption has left a bell that was rung
            return

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The item that came first. Raises `queue.Empty` where there is none at once, or within `timeout` seconds."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                left = self.LOOK_AGAIN if end is None else min(self.LOOK_AGAIN, end - monotonic())
            if not block or left <= 0:
                raise queue.Empty
            self._wait(left)

    def _wait(self, seconds: float) -> None:
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        try:
            if not self._items:  # one may have come before the bell was there
                bell.acquire(True, seconds)
        finally:
            try:
                self._bells.remove(bell)
            except ValueError:  # it was rung
                pass
