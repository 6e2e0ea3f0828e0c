"""Telling an exception that a program's signal handler has raised, which may come out of any line, from an error."""

from __future__ import annotations

import os
from typing import Any

try:  # the C module: the one in Python takes long to import, and few programs have imported it
    import _signal as signals  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
except ImportError:
    import signal as signals

#: The folder of the whole package.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

#: Before Python 3.10, the one in `signal` raises and catches an error for each handler, whose context keeps alive the
#: exception that is looked at.
_getsignal: Any = signals.getsignal


def is_from_handler(error: BaseException) -> bool:
    """Whether a signal handler of the program, such as a time limit's, has raised this exception. It says nothing about
    the call that it interrupts, and must reach the program unchanged."""
    strangers = set()
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            strangers.add(code)
        step = step.tb_next
    return bool(strangers) and not strangers.isdisjoint(_handlers())


def _handlers() -> set[Any]:
    """The code of the functions that handle signals."""
    codes = set()
    for handler in filter(callable, map(_getsignal, range(1, signals.NSIG))):
        for function in (handler, getattr(handler, "func", None), type(handler).__call__):
            codes.add(getattr(function, "__code__", None))
    return codes - {None}
