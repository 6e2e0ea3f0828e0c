"""Whether this process is about to end, as far as that can be seen without signal handlers of our own."""

from __future__ import annotations

import sys
import threading
from types import MethodType

#: Has an entry once the library's own part of the interpreter's end has begun.
_begun: list[None] = []


def begin() -> None:
    """Note that the interpreter has called what was to be called at its end."""
    _begun.append(None)


def is_under_way() -> bool:
    """Whether the interpreter is ending, or a host such as gunicorn has told its worker to end."""
    return bool(_begun) or sys.is_finalizing() or _threads_are_joined() or _is_told_to_end()


def _threads_are_joined() -> bool:
    """Whether the interpreter waits for its threads, which comes before everything else at its end."""
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()


def _is_told_to_end() -> bool:
    """Whether the host's handler of SIGTERM belongs to something that says it is not `alive` any more. That is what a
    worker of gunicorn says once it was told to end, or has served its last request."""
    import signal  # only what has failed needs to know

    try:
        handler = signal.getsignal(signal.SIGTERM)
        return isinstance(handler, MethodType) and getattr(handler.__self__, "alive", True) is False
    except Exception:  # a program's own object may raise whatever it likes; spend is being settled here
        return False
