"""An ambient deadline: a bound on everything that is called within it, such as what is left of a Lambda's time."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any

from ..runtime.clock import monotonic


class deadline_in:  # it reads as what it does: `with deadline_in(2.0):`
    """Bound every call inside to `seconds` from now; an earlier deadline around it stays in force.

    The context variable refers to this object weakly. An exception that a signal handler raises while the block is
    being entered or left may keep `__exit__` from resetting the variable; with a strong reference in it, every later
    call would meet the old deadline.
    """

    __slots__ = ("__weakref__", "_seconds", "_token", "end")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        around = _entry()
        here = monotonic() + self._seconds
        outer = around and around[0]()
        #: The deadline, as a monotonic time in seconds.
        self.end: float = here if outer is None else min(here, outer.end)
        self._token = ambient.set((weakref.ref(self), around))

    def __exit__(self, *_: object) -> None:
        ambient.reset(self._token)


#: The innermost deadline, and the variable's value before it. Where this is None, nothing bounds a call.
ambient: ContextVar[tuple[weakref.ref[deadline_in], Any] | None] = ContextVar("cycles_lite_deadline", default=None)


def _entry() -> tuple[weakref.ref[deadline_in], Any] | None:
    """The entry of the innermost deadline that is still referred to."""
    entry = ambient.get()
    while entry is not None and entry[0]() is None:
        entry = entry[1]
    return entry


def seconds_left() -> float | None:
    """Seconds until the deadline, negative when it has passed; None where there is none."""
    entry = _entry()
    innermost = entry and entry[0]()
    return None if innermost is None else innermost.end - monotonic()


def has_time() -> bool:
    """Whether the ambient deadline leaves any time."""
    left = seconds_left()
    return left is None or left > 0
