"""An ambient deadline: a bound on everything that is called within it, such as what is left of a Lambda's time."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

from .clock import monotonic

_deadline: ContextVar[float | None] = ContextVar("cycles_lite_deadline", default=None)


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Bound every call inside to `seconds` from now; an earlier deadline around it stays in force."""
    outer = _deadline.get()
    here = monotonic() + seconds
    token = _deadline.set(here if outer is None else min(here, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float | None:
    """Seconds until the deadline, negative when it has passed; None where there is none."""
    end = _deadline.get()
    return None if end is None else end - monotonic()


def has_time() -> bool:
    """Whether the ambient deadline leaves any."""
    left = seconds_left()
    return left is None or left > 0
