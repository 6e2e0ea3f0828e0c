"""One attempt's bound as a whole, and http.client's reader made to keep it; an answer is read whole or not at all."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from contextvars import ContextVar
from typing import Any, Iterable

from ..errors import ResponseError
from ..runtime.clock import monotonic

#: Larger answers are refused: the largest legal page is far below.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: How much of a body without a length is asked for at once: http.client of Python 3.7 to 3.9 fills a buffer that large.
_PIECE = 64 * 1024


#: The headers of an answer that the protocol defines, and what tells where it ends.
_KNOWN = frozenset(
    (
        "x-request-id",
        "x-cycles-trace-id",
        "x-cycles-tenant",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "retry-after",
        "date",  # for `cycles-lite check` alone: lease arithmetic must not use it
        "content-length",
    )
)


def known_headers(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers that the protocol defines, names in lower case; values that differ are joined by commas."""
    headers: dict[str, str] = {}
    for name, value in items:
        name = name.lower()
        if name in _KNOWN:
            headers[name] = f"{headers[name]}, {value}" if headers.get(name, value) != value else value
    return headers


class Attempt:
    """What the connections must know of the attempt that they serve, and what they tell of it."""

    __slots__ = (
        "_sooner",
        "_whole",
        "connection",
        "deadline",
        "fresh",
        "has_body",
        "headers",
        "home",
        "idle",
        "reader",
        "reused",
        "stale",
    )

    def __init__(
        self, bound: float, fresh: bool = False, has_body: bool = False, reused_bound: float | None = None
    ) -> None:
        now = monotonic()
        self._whole = self.deadline = now + bound
        self._sooner = self._whole if reused_bound is None else now + reused_bound
        #: Whether it must not reuse a connection.
        self.fresh = fresh
        #: Whether something follows the request's head.
        self.has_body = has_body
        #: Whether it is sent on a connection that has served before.
        self.reused = False
        #: Whether a reused connection turned out to be closed by the peer.
        self.stale = False
        #: The answer's headers, where a connection of our own class brought it.
        self.headers: dict[str, str] | None = None
        #: The idle connections that it may use, the stack of them that its connection came from, and that connection
        #: once urllib3 has done with it.
        self.idle: Any = None
        self.home: Any = None
        self.connection: Any = None
        #: The reader of the answer that is under way: a socket that was closed stays open until its reader is, too.
        self.reader: BoundedReader | None = None

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed."""
        seconds = self.deadline - monotonic()
        if seconds <= 0:
            raise socket.timeout("timed out")
        return seconds

    def reuse(self) -> None:
        """An old connection is tried, which may lead nowhere by now."""
        self.reused, self.deadline = True, self._sooner

    def renew(self) -> None:
        """A new connection is made."""
        self.reused, self.deadline = False, self._whole

    def failed(self, e: OSError) -> None:
        """Note what an error says about the connection."""
        self.stale = self.reused and _hung_up(e)


def _hung_up(e: OSError) -> bool:
    """Whether the peer closed the connection; http.client's RemoteDisconnected is a ConnectionError."""
    if isinstance(e, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return True
    return "unexpected eof" in str(e)  # of OpenSSL 3, which Python before 3.10 has no class for


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
    """An answer that is read within its attempt, whose head is whole, and whose body is neither cut nor too large."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._sock, self._attempt = sock, current.get()
        super().__init__(self, *args, **kwargs)  # type: ignore[arg-type]  # which asks it for no more than this:

    def makefile(self, mode: str) -> Any:
        """The file that http.client reads from."""
        raw = self._sock.makefile("rb", 0)
        self._reader = self._attempt.reader = BoundedReader(raw, self._sock, self._attempt)
        return io.BufferedReader(self._reader)

    def begin(self) -> None:
        try:
            super().begin()
        except OSError as e:
            self._attempt.failed(e)
            raise
        if self._reader.ended:  # which http.client takes for the headers' end
            raise http.client.HTTPException("the connection was closed within the headers")
        if self.msg.defects or self.msg.get_payload():
            # What follows such a line is lost, such as the body's length; and urllib3 would log it, whatever it holds.
            raise http.client.HTTPException("there is a line among the headers that is none")
        headers = known_headers(self.msg.raw_items())
        if len(set(headers.pop("content-length", "").replace(" ", "").split(","))) > 1:
            # http.client believes the first length, and would take what follows for the next answer
            raise http.client.HTTPException("there are two lengths among the headers")
        self._attempt.headers = headers
        if self.length is not None and self.length > MAX_ANSWER_BYTES:
            raise self._too_large()

    def _read_status(self) -> Any:
        """http.client skips no interim answer but 100 (RFC 9110, 15.2). Another must not be taken for the answer: the
        real one would then be read as that of the next request."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 100 <= status < 200 else status, reason

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None or self.length is not None:
            return super().read(amt)  # all that the head announced, or an error
        pieces: list[bytes] = []
        size, piece = 0, b""
        while not pieces or len(piece) == _PIECE:  # a shorter one is the last
            piece = super().read(_PIECE)
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise self._too_large()
        return b"".join(pieces)

    def _too_large(self) -> ResponseError:
        return ResponseError(
            f"the answer is larger than {MAX_ANSWER_BYTES} bytes",
            status=self.status,
            request_id=self.headers.get("x-request-id"),
            trace_id=self.headers.get("x-cycles-trace-id"),
        )
