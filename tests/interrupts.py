"""What a signal handler may do, at each line or instruction of some code in turn, and at random instants.

`INTERRUPT_ROUNDS` asks for the long form of every test that interrupts: it stops at each line or instruction each time
that it is reached, and at so many random instants. Without it the suite runs a short form.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref

import pytest

import cycles_lite

PACKAGE = os.path.dirname(cycles_lite.__file__) + os.sep

#: The C module's function. Before Python 3.10, the one in `signal` leaves an error in a circle, and as its context the
#: exception that is being handled, with all the frames of its traceback.
_handle_with = getattr(signal, "_signal", signal).signal

_ROUNDS = int(os.environ.get("INTERRUPT_ROUNDS") or 0)
IS_LONG = _ROUNDS > 0

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
needs_tracing = pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or coverage traces already")


def rounds(short):
    """How many random instants a test tries; `short` is the number in the short form."""
    return _ROUNDS or short


class Interrupt(BaseException):
    """As a soft time limit raises it; nothing of the package's own."""


class _Interruption:
    """Raises `error`, or calls `act` instead; `where` is None until then."""

    def __init__(self, error, act):
        self.where = None
        self._error, self._act = error, act

    def _come(self, frame):
        self.where = (frame.f_code.co_filename.replace(PACKAGE, ""), frame.f_lineno, frame.f_code.co_name)
        if self._act is None:
            raise self._error(self.where)
        self._act()


def is_finalizer(frame):
    """Whether this function is a finalizer: Python tells nobody what it raises."""
    return frame.f_code.co_name == "__del__" or frame.f_code is weakref.finalize.__call__.__code__


def in_finalizer(frame):
    """Whether this function runs on behalf of a finalizer."""
    while frame is not None and not is_finalizer(frame):
        frame = frame.f_back
    return frame is not None


class AtLine(_Interruption):
    """Interrupts this thread within the block at the `nth` line, or instruction, or at the first of a given `place`.

    Lines count that are of files whose names begin with one of `files`, in functions whose frame `skips` does not
    want left out. Without `nth` and `place` they are only counted, in `count`, and noted, in `places`. The collector
    rests meanwhile: it would run finalizers of other tests at any line, out of which nothing is raised.
    """

    def __init__(
        self, nth=None, *, place=None, files=PACKAGE, opcodes=False, skips=is_finalizer, error=Interrupt, act=None
    ):
        super().__init__(error, act)
        self.count = 0
        #: Each file and line that was reached, in that order.
        self.places = {}
        self._nth, self._place = nth, place
        self._files, self._opcodes, self._skips = files, opcodes, skips

    def __enter__(self):
        self._outer, self._collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *_):
        sys.settrace(self._outer)
        if self._collects:
            gc.enable()

    def _enter_function(self, frame, event, _):
        name = frame.f_code.co_filename
        if name == __file__ or not name.startswith(self._files) or self._skips(frame):
            return None
        frame.f_trace_opcodes = self._opcodes
        return self._trace

    def _trace(self, frame, event, _):
        if event == ("opcode" if self._opcodes else "line") and self.where is None:
            self.count += 1
            place = (frame.f_code.co_filename, frame.f_lineno)
            self.places[place] = None
            if self.count == self._nth or place == self._place:
                sys.settrace(None)
                self._come(frame)
        return self._trace


class AfterTime(_Interruption):
    """Interrupts from a signal handler so many seconds after the block was entered, or never."""

    def __init__(self, seconds, *, error=Interrupt, act=None):
        super().__init__(error, act)
        #: The seconds that the block took.
        self.took = 0.0
        self._seconds = seconds

    def __enter__(self):
        self._outer = _handle_with(signal.SIGALRM, self._handle)
        self._since = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.took = time.perf_counter() - self._since
        _handle_with(signal.SIGALRM, self._outer)

    def _handle(self, signum, frame):
        if frame.f_code is AfterTime.__enter__.__code__:
            signal.setitimer(signal.ITIMER_REAL, 1e-5)  # it would keep `__exit__` from being called
        elif frame.f_code is not AfterTime.__exit__.__code__:
            self._come(frame)
