"""Exceptions that a signal handler raises: at each line of the package in turn, and at random instants."""

from __future__ import annotations

import os
import signal
import sys

import cycles_lite

_PACKAGE = os.path.dirname(cycles_lite.__file__) + os.sep

#: Rounds at random instants; a long run has 3000.
ROUNDS = int(os.environ.get("INTERRUPT_ROUNDS", "60"))


class Interrupt(BaseException):
    """As a soft time limit raises it; nothing of the package's own."""


class AtLine:
    """Raises `Interrupt`, or another error, at the `nth` line of the package that this thread comes to within the
    block."""

    def __init__(self, nth, error=Interrupt):
        self._left, self._error = nth, error
        self.where = None

    def __enter__(self):
        self._outer = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._outer)

    def _trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(_PACKAGE) or frame.f_code.co_name == "__del__":
            return None  # what a finalizer raises reaches nobody
        if event == "line" and self.where is None:
            self._left -= 1
            if self._left == 0:
                self.where = (frame.f_code.co_filename[len(_PACKAGE) :], frame.f_lineno, frame.f_code.co_name)
                sys.settrace(None)
                raise self._error(self.where)
        return self._trace


class AfterTime:
    """Raises `Interrupt` from a signal handler so many seconds after the block was entered, or never."""

    def __init__(self, seconds):
        self._seconds = seconds
        self.where = None

    def __enter__(self):
        self._outer = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._outer)

    def _handle(self, signum, frame):
        if frame.f_code is not AfterTime.__exit__.__code__:
            self.where = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
            raise Interrupt(self.where)
