"""Which guard is the current one: a context variable, because threads, greenlets and contexts each have their own.

The variable refers to the guard weakly, and to its own value before. An exception that a signal handler raises while a
block is being left may keep `leave` from being called; the guard in the variable must then neither stay alive nor hide
the guard around it.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Iterator, Optional, Tuple

if TYPE_CHECKING:
    from ..guard import ReservationGuard

    GuardToken = Token[Optional[Tuple[Any, Any]]]

#: The current guard, and what this variable held before it.
_current: ContextVar[tuple[weakref.ref[ReservationGuard], Any] | None] = ContextVar("cycles_lite_guard", default=None)


def current_guard() -> ReservationGuard | None:
    """The innermost guard whose `with` block, wrapped call or decorated function runs here; None outside of any."""
    entry = _current.get()
    while entry is not None:
        held, entry = entry
        guard = held()
        if guard is not None:
            return guard
    return None


def enter(guard: ReservationGuard) -> GuardToken:
    """Make a guard the current one, until `leave`."""
    return _current.set((weakref.ref(guard), _current.get()))


def leave(token: GuardToken | None) -> None:
    """Make the guard around this one current again."""
    if token is None:
        return
    try:
        _current.reset(token)
    except ValueError:
        # It was entered in another context, as by a generator that is closed here: there is nothing to restore.
        return


@contextmanager
def inside(guard: ReservationGuard) -> Iterator[None]:
    """Make a guard the current one, without ending it."""
    token = enter(guard)
    try:
        yield
    finally:
        leave(token)
