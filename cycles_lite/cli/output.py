"""What a command leaves behind for whoever started it: its exit status, and its output on the standard streams.

No name, no full disk and no closed end of a pipe becomes a traceback. While a command runs, `sys.stdout` and
`sys.stderr` show escaped what their encodings cannot carry. Where standard output takes nothing, `NoOutput` is raised,
which is no `OSError`, so that nobody mistakes it for another file's. What standard error does not take is lost, because
there is no other place to say it.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import textwrap
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping

from .terminal import printable

DONE, WRONG, FAILED, LOW = 0, 1, 2, 3
UNAVAILABLE, UNKNOWN, NO_OUTPUT, DENIED, MISCONFIGURED = 69, 70, 74, 75, 78  # of <sysexits.h>
NOT_EXECUTABLE, NOT_FOUND, KILLED, INTERRUPTED = 126, 127, 128, 130  # of shells; a signal's number is added to 128

#: The exit statuses of every command but `run`. `--help` shows these tables, and so does the documentation.
COMMON = {
    f"{DONE}": "done; also where the reader of the output has had enough, such as head",
    f"{WRONG}": "check, demo, journal replay and retry: something is wrong, or left to settle",
    f"{FAILED}": "the arguments cannot be used, or what they ask for cannot be done",
    f"{LOW}": "check and balances: less is left of a budget than --warn-below says",
    f"{NO_OUTPUT}": "standard output is closed or full",
    f"{KILLED}+N": "watch: signal N ended it",
    f"{INTERRUPTED}": "Ctrl-C; serve ends with 0",
}

#: The exit statuses of `run`, beside those of the command that it runs.
OF_RUN = {
    "any": "the command's own: 0 is committed, all else is released",
    f"{FAILED}": "the arguments cannot be used, or there is no such budget; nothing ran",
    f"{UNAVAILABLE}": "the authority cannot be reached, or gives no usable answer; nothing ran",
    f"{UNKNOWN}": "how the command ended is unknown; released",
    f"{DENIED}": "the budget says no; nothing ran",
    f"{MISCONFIGURED}": "the configuration or the API key is wrong; nothing ran",
    f"{NOT_EXECUTABLE}": "the command cannot be executed; released",
    f"{NOT_FOUND}": "the command is not found; released",
    f"{KILLED}+N": "signal N ended the command, or came before it ran; released",
}


class Help(argparse.HelpFormatter):
    """Help whose table of exit statuses stays one, on a terminal of any width. Elsewhere its rows are whole."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=shutil.get_terminal_size().columns - 2)  # Python 3.7 does not ask the terminal

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.split("\n")
        if len(lines) == 1:
            return super()._fill_text(text, width, indent)
        if not sys.stdout.isatty():
            return text
        return "\n".join(textwrap.fill(line, width, subsequent_indent=" " * 10) for line in lines)


def epilog(statuses: Mapping[str, str]) -> dict[str, Any]:
    """What lets a parser's `--help` show a table of exit statuses below everything else."""
    rows = [f"  {status:<7} {meaning}" for status, meaning in statuses.items()]
    return {"epilog": "\n".join(["exit status:", *rows]), "formatter_class": Help}


def common(*also: object) -> dict[str, str]:
    """The exit statuses of any command, and more of those in `COMMON`."""
    shown = {str(status) for status in (DONE, FAILED, NO_OUTPUT, INTERRUPTED, *also)}
    return {status: meaning for status, meaning in COMMON.items() if status in shown}


class NoOutput(Exception):
    """Standard output is closed, full, or read by nobody any more: its cause tells which."""


def tell(message: object) -> None:
    """One line on standard error, about an error or anything else."""
    text = reason(message) if isinstance(message, OSError) else str(message)
    print("cycles-lite: " + printable(" ".join(text.split())), file=sys.stderr, flush=True)


def reason(error: OSError) -> str:
    """What failed, also where that is the folder which relative names are looked up in."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder is gone, and with it what relative paths name; change to another one"
    return str(error)


def is_read(stream: Any) -> bool:
    """Whether somebody can still read a stream, as far as the system tells. Who waits for news before it writes would
    not hear of it otherwise, and `watch | head -1` would not end."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (AttributeError, OSError):  # Windows has no poll, and a stream of another program's making no file
        return True


@contextmanager
def safe_streams() -> Iterator[None]:
    """Let standard output and standard error be safe to write to."""
    originals = sys.stdout, sys.stderr
    if sys.stdin is None:
        _stand_in()
    out: Any = _Stream(sys.stdout, is_needed=True)
    err: Any = _Stream(sys.stderr, is_needed=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = originals
        err.flush()
        out.let_go()
        err.let_go()


def _stand_in() -> int:
    """Open a file in the place of a closed standard stream. It gets the lowest free number, which is that stream's, and
    which the next file or connection would get otherwise. Writing to it fails, and a command that is started finds it
    closed."""
    return os.open(os.devnull, os.O_RDONLY)


class _Stream:
    """A standard stream that writes escaped what it cannot encode, and whose failures are told or forgotten."""

    def __init__(self, stream: Any, is_needed: bool) -> None:
        #: The stream that this one stands for; a stand-in where the system gave none.
        self._stream = open(_stand_in(), "w", encoding="ascii", closefd=False) if stream is None else stream  # noqa: SIM115
        #: Whether a failure is raised, as `NoOutput`.
        self._is_needed = is_needed
        #: Whether anything has failed.
        self._is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._attempt(self._stream.write, text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._attempt(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as e:
            self._is_broken = True
            if self._is_needed:
                raise NoOutput(f"standard output cannot be written: {e.strerror or e}") from e

    def let_go(self) -> None:
        """Let what still waits in the buffer go nowhere once writing has failed: when the interpreter ends it would be
        written again, fail again, and change the exit status."""
        if not self._is_broken:
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except OSError:  # such as a stream of another program's making, which has no file
            return
