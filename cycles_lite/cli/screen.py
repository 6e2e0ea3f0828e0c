"""A terminal as one screen that is drawn again and again, and the signals that end a command which does so."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import Iterator, Sequence

from ..runtime import system

#: The other screen of the terminal, so that the user's own comes back in the end; no cursor; and no line goes on in the
#: next one, even if the terminal takes a character for wider than it is.
_BEGIN, _END = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"

_CLEAR, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[2J", "\x1b[K", "\x1b[J"


class Screen:
    """Standard output as a screen, for as long as the `with` block runs."""

    def __init__(self) -> None:
        self._lines: Sequence[str] = ()
        self._size: object = None

    def __enter__(self) -> Screen:
        self._write(_BEGIN)
        return self

    def __exit__(self, *exception: object) -> None:
        self._write(_END)

    def show(self, lines: Sequence[str], size: object) -> None:
        """Draw those lines that are others than before. Where the size is another one, all are: the terminal may have
        moved them."""
        text = "" if size == self._size else _CLEAR
        before = self._lines if size == self._size else ()
        for number, line in enumerate(lines):
            if number >= len(before) or line != before[number]:
                text += f"\x1b[{number + 1}H{_CLEAR_LINE}{line}"
        if len(lines) < len(before):
            text += f"\x1b[{len(lines) + 1}H{_CLEAR_BELOW}"
        if text:
            self._write(text)
        self._lines, self._size = lines, size

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that ask for an end, in the order of their coming. Their handlers raise nothing, so that a terminal
    is always set back; whoever loops looks at this list. Those that were ignored from the start stay so."""
    came: list[int] = []
    before = {}
    try:
        for name in ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda signum, frame: came.append(signum))
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keys() -> Iterator[system.Keys]:
    """The keys of the terminal that is standard input, as `system.keys`; where it is none, what is only waits."""
    if sys.stdin is not None and sys.stdin.isatty():
        with system.keys(sys.stdin.fileno()) as pressed:
            yield pressed
    else:
        yield system.no_keys
