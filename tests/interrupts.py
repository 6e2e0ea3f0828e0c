"""Exceptions that a signal handler raises: at each line of the package in turn, and at random instants."""

from __future__ import annotations

import os
import signal
import sys
import time

import cycles_lite

_PACKAGE = os.path.dirname(cycles_lite.__file__) + os.sep

#: Rounds at random instants; a long run has 3000.
ROUNDS = int(os.environ.get("INTERRUPT_ROUNDS", "60"))


class Interrupt(BaseException):
    """As a soft time limit raises it; nothing of the package's own."""


class AtLine:
    """Raises `Interrupt` at the `nth` line of the package that this thread comes to within the block."""

    def __init__(self, nth):
        self._nth = nth
        #: Lines that were come to.
        self.seen = 0
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
            self.seen += 1
            if self.seen == self._nth:
                self.where = (frame.f_code.co_filename[len(_PACKAGE) :], frame.f_lineno, frame.f_code.co_name)
                sys.settrace(None)
                raise Interrupt(self.where)
        return self._trace


class AfterTime:
    """Raises `Interrupt` from a signal handler so many seconds after the block was entered, or never."""

    def __init__(self, seconds):
        self._seconds = seconds
        self.where = None
        #: How long the block took.
        self.took = 0.0

    def __enter__(self):
        self._outer = signal.signal(signal.SIGALRM, self._handle)
        self._start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.took = time.perf_counter() - self._start
        signal.signal(signal.SIGALRM, self._outer)

    def _handle(self, signum, frame):
        if frame.f_code not in (AfterTime.__enter__.__code__, AfterTime.__exit__.__code__):
            self.where = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
            raise Interrupt(self.where)
