"""One attempt's bound as a whole, and http.client's reader made to keep it; an answer is read whole or not at all."""

from __future__ import annotations

import http.client
import io
import socket
from contextvars import ContextVar
from typing import Any

from .clock import monotonic
from .errors import ResponseError

#: Larger answers are refused: the largest legal page is far below.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: How much of a body without a length is asked for at once: http.client of Python 3.7 to 3.9 fills a buffer that large.
_PIECE = 64 * 1024

#: The headers of an answer that the protocol defines.
_HEADERS = frozenset(
    (
        "x-request-id",
        "x-cycles-trace-id",
        "x-cycles-tenant",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "retry-after",
        "date",  # for `cycles-lite check` alone: lease arithmetic must not use it
    )
)


class Attempt:
    """What the connections must know of the attempt that they serve, and what they tell of its answer."""

    __slots__ = ("body", "deadline", "fresh", "headers", "stale")

    def __init__(self, deadline: float, fresh: bool, body: bytes = b"") -> None:
        self.deadline = deadline
        #: What follows the request's head.
        self.body = body
        #: Do not reuse a connection.
        self.fresh = fresh
        #: A reused connection turned out to be closed by the peer.
        self.stale = False
        #: Those of the answer that the protocol defines, names in lower case.
        self.headers: dict[str, str] = {}

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed."""
        seconds = self.deadline - monotonic()
        if seconds <= 0:
            raise socket.timeout("timed out")
        return seconds


#: The attempt that is under way. A context variable and not a thread's: greenlets share threads.
current: ContextVar[Attempt] = ContextVar("cycles_lite_attempt")


class BoundedReader(io.RawIOBase):
    """A socket's reader that never waits past the deadline, however slowly the bytes drip."""

    def __init__(self, raw: Any, sock: socket.socket, attempt: Attempt) -> None:
        self._raw, self._sock, self._of = raw, sock, attempt
        #: The peer hung up.
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._sock.settimeout(self._of.left())
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """An answer that is read within its attempt, and whose head is whole."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._sock = sock
        super().__init__(self, *args, **kwargs)  # type: ignore[arg-type]  # which asks it for no more than this:

    def makefile(self, mode: str) -> Any:
        """The file that http.client reads from."""
        raw = self._sock.makefile("rb", buffering=0)
        self._reader = BoundedReader(raw, self._sock, current.get())
        return io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader.ended:  # which http.client takes for the headers' end
            raise http.client.HTTPException("the connection was closed within the headers")
        if self.msg.defects or self.msg.get_payload():
            # What follows such a line is lost, such as the body's length; and urllib3 would log it, whatever it holds.
            raise http.client.HTTPException("there is a line among the headers that is none")
        headers: dict[str, str] = {}
        lengths = set()
        for name, value in self.msg.raw_items():
            name = name.lower()
            if name in _HEADERS:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            elif name == "content-length":
                lengths.add(value)
        if len(lengths) > 1:  # http.client believes the first; what follows that would be the next answer
            raise http.client.HTTPException("there are two lengths among the headers")
        current.get().headers = headers

    def _read_status(self) -> Any:
        """http.client skips no interim answer but 100 (RFC 9110, 15.2). Another must not be taken for the answer: the
        real one would then be read as that of the next request."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 100 <= status < 200 else status, reason


def read_body(response: Any, expected: int | None) -> bytes:
    """The whole body, or an error: never part of it. `expected` is its length, where the head tells it."""
    if expected is not None:
        if expected > MAX_ANSWER_BYTES:
            raise _too_large(response)
        body: bytes = response.read()
        if len(body) != expected:
            raise http.client.IncompleteRead(body, expected - len(body))
        return body
    pieces: list[bytes] = []
    size, piece = 0, b""
    while not pieces or len(piece) == _PIECE:  # a shorter one is the last
        piece = response.read(_PIECE)
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise _too_large(response)
    return b"".join(pieces)


def _too_large(response: Any) -> ResponseError:
    return ResponseError(
        f"the answer is larger than {MAX_ANSWER_BYTES} bytes",
        status=response.status,
        request_id=response.headers.get("x-request-id"),
        trace_id=response.headers.get("x-cycles-trace-id"),
    )
