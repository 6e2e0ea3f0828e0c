"""A line of waiting threads: who comes first is served first.

Without a line, a thread that takes and gives back in a loop would leave nothing to others. What is waited for is the
user's own (`transport.turns`, `local.connections`); here is only whose turn it is. So the line is a matter of courtesy:
an interruption may leave somebody in it whom nobody removes, and one who has not looked for a while is passed over.

Each waiter sleeps on a lock of its own, its bell, until it is rung or its time is up. A queue with a timeout would not
do: before Python 3.13 `SimpleQueue.get` may wait without end where the time has passed when it loses its item to
another thread. Nothing here is counted and no lock is held over anything, so that a signal handler may wait in the line
that its own thread stands in, and a finalizer may ring.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress

from .clock import monotonic


class Line:
    """Those who wait. Waiters look by themselves every `look_again` seconds, because an interruption may keep a bell
    from being rung; who has not looked for `passed_over` seconds is passed over."""

    def __init__(self, look_again: float, passed_over: float) -> None:
        self.look_again, self._passed_over = look_again, passed_over
        #: In the order of their coming; nearly always there is none. They are referred to weakly: a waiter that was
        #: interrupted before it could leave is gone with its frame.
        self.waiters: list[weakref.ref[Waiter]] = []

    def first(self, beside: Waiter | None = None) -> Waiter | None:
        """Whose turn it is. One that a signal handler of the same thread has interrupted lets the handler's one,
        `beside`, go first, because it cannot go on before."""
        thread = beside.thread if beside is not None else None
        late = monotonic() - self._passed_over
        for waiter in self._alive():
            if waiter is beside or (waiter.thread != thread and waiter.looked > late):
                return waiter
        return None

    def ring(self) -> None:
        """Wake whose turn it is, in a signal handler too if one has interrupted it."""
        first = self.first()
        if first is None:
            return
        for waiter in self._alive():
            if waiter.thread == first.thread:
                with suppress(RuntimeError):  # it was rung before
                    waiter.bell.release()

    def _alive(self) -> list[Waiter]:
        return [waiter for waiter in [reference() for reference in list(self.waiters)] if waiter is not None]


class Waiter:
    """One waiter in a line, for as long as the `with` block runs."""

    __slots__ = ("__weakref__", "_line", "bell", "looked", "thread")

    def __init__(self, line: Line) -> None:
        self._line = line
        #: A lock that the waiter has acquired. It waits to acquire it once more, and is woken by its release. Looked up
        #: in its module, because gevent puts a lock of its own there.
        self.bell = threading.Lock()
        self.bell.acquire()
        self.thread = threading.get_ident()
        #: When it last looked whether it is the first, as a monotonic time.
        self.looked = monotonic()

    def __enter__(self) -> Waiter:
        self._line.waiters.append(weakref.ref(self))
        return self

    def __exit__(self, *_: object) -> None:
        waiters = self._line.waiters
        for reference in list(waiters):
            if reference() in (self, None):  # one that was interrupted could not remove itself
                with suppress(ValueError):  # another thread was faster
                    waiters.remove(reference)
        self._line.ring()

    def is_first(self) -> bool:
        """Whether it is this one's turn."""
        self.looked = monotonic()
        return self._line.first(self) is self

    def wait(self, deadline: float) -> None:
        """Sleep until the bell is rung or it is time to look again, but not past a monotonic time."""
        self.bell.acquire(True, max(0.0, min(deadline - monotonic(), self._line.look_again)))
