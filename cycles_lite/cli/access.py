"""The access log of `cycles-lite serve`: a line on standard error for each request that was answered.

The fields are, with a space between them: the time in UTC, the client's address, method, path, status, error code,
milliseconds until the answer was made, bytes of its body, tenant, and the request's id; `-` stands for what is not
there. There is no query and no header, so no key.

Whoever reads standard error may be slow, or gone. No thread that serves waits for that one: a thread of the log's own
writes, a limited number of lines waits for it, and those beyond are counted in place of being written. What the program
logs goes the same way, because a thread that waits to log an error serves nobody, and the server could not even end.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator
from urllib.parse import quote

if TYPE_CHECKING:
    from ..local.application import Exchange

#: Lines that may wait, and those that are written at once.
_MOST, _TOGETHER = 10_000, 100

#: Characters of a method and of a path that are shown.
_METHOD, _PATH = 20, 500

#: Seconds that the end of the server waits for the last lines.
_PATIENCE = 1.0


class AccessLog:
    """A listener of a server, which writes until `close`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: Lines that were not written, because too many waited. Many threads count, and one tells.
        self._lost = 0
        self._counting = threading.Lock()
        self._stream = sys.stderr
        try:
            # As a file: a thread within a stream's `write` would hold the stream's lock when the process ends.
            self._file: int | None = sys.stderr.fileno()
        except OSError:  # it is a stream of another program's making
            self._file = None
        self._thread = threading.Thread(target=self._run, name="cycles-lite-access-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> AccessLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, exchange: Exchange) -> None:
        self._put((time.time(), exchange))

    def _put(self, told: Any) -> None:
        if self._queue.qsize() < _MOST:
            self._queue.put(told)
        else:
            with self._counting:
                self._lost += 1

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write what is logged meanwhile, too; not where another program has said where that goes."""
        root, handler = logging.getLogger(), _Handler(self._put)
        if not root.handlers:
            root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)

    def close(self) -> None:
        """Write what waits, if standard error takes it soon."""
        self._queue.put(None)
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while True:
            found = [self._queue.get()]
            while len(found) < _TOGETHER and not self._queue.empty():
                found.append(self._queue.get())
            lines = [told if isinstance(told, str) else line_of(*told) for told in found if told is not None]
            with self._counting:
                lost, self._lost = self._lost, 0
            if lost:
                lines.append(f"cycles-lite: {lost} lines are not told here, because standard error was too slow\n")
            self._write("".join(lines))
            if None in found:
                return

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        data = text.encode(encoding, "backslashreplace")
        try:
            if self._file is None:
                self._stream.write(text)
            while data and self._file is not None:
                data = data[os.write(self._file, data) :]
        except OSError:  # closed or full: there is no other place to say it
            pass


class _Handler(logging.Handler):
    """Gives what is logged to a function, as text."""

    def __init__(self, put: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record) + "\n")
        except Exception:  # the message does not fit what it is to be filled with
            self.handleError(record)


def line_of(at: float, exchange: Exchange) -> str:
    """The line for an exchange that was answered at a time in seconds since 1970."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
    asked = _quoted(exchange.method[:_METHOD]), _quoted(exchange.path[:_PATH])
    took, tenant = f"{exchange.seconds * 1000:.1f}", exchange.tenant or "-"
    answered = exchange.status, exchange.code or "-", took, exchange.bytes, tenant, exchange.request_id
    return " ".join(map(str, (moment, exchange.client or "-", *asked, *answered))) + "\n"


def _quoted(text: str) -> str:
    """What a client chose, without spaces, line ends, control characters, or anything beyond ASCII."""
    return quote(text, safe="/:@!$&'()*+,;=", errors="replace") or "-"
