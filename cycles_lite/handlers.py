"""Telling what a program's signal handler raised from what went wrong: it may come out of any line."""

from __future__ import annotations

import signal


def is_from_handler(error: BaseException) -> bool:
    """Whether an exception came out of a signal handler of the program: a time limit, say. It is nobody's answer, and
    goes on its way."""
    codes = set()
    for handler in filter(callable, map(signal.getsignal, range(1, signal.NSIG))):
        for function in (handler, getattr(handler, "func", None), type(handler).__call__):
            codes.add(getattr(function, "__code__", None))
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code not in codes:
        step = step.tb_next
    return step is not None
