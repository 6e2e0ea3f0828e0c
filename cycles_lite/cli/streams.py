"""Standard streams that turn no name, no full disk and no closed end into a traceback.

While a command runs, `sys.stdout` and `sys.stderr` show escaped what their encodings cannot carry. Where standard
output takes nothing, `NoOutput` is raised, which is no `OSError`, so that nobody mistakes it for another file's. What
standard error does not take is lost, because there is no other place to say it.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator


class NoOutput(Exception):
    """Standard output is closed, full, or read by nobody any more: its cause tells which."""


def tell(message: object) -> None:
    """One line on standard error, about an error or anything else."""
    text = reason(message) if isinstance(message, OSError) else str(message)
    print("cycles-lite: " + " ".join(text.split()), file=sys.stderr, flush=True)


def reason(error: OSError) -> str:
    """What failed, also where that is the folder which relative names are looked up in."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder is gone, and with it what relative paths name; change to another one"
    return str(error)


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
    """A file for a closed standard stream. It gets the lowest free number, which is that stream's, and which the next
    file or connection would get otherwise. Writing to it fails, and a command that is started finds it closed."""
    return os.open(os.devnull, os.O_RDONLY)


class _Stream:
    def __init__(self, stream: Any, is_needed: bool) -> None:
        if stream is None:
            stream = open(_stand_in(), "w", encoding="ascii", closefd=False)  # noqa: SIM115
        self._stream = stream
        self._is_needed = is_needed
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
        """Where writing failed, what waits in the buffer must not fail again when the interpreter ends, because that
        would be another exit status."""
        if not self._is_broken:
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except OSError:  # no stream of the system's
            return
