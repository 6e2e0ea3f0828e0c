"""One attempt and the connections that serve it: bounded as a whole, read whole or not at all, kept if all went well.

An attempt is in a context variable while it lasts, and what http.client and urllib3 call here finds it there: the
socket's timeout is lowered to what is left of the attempt before each send and read; the head and body of the answer
prove that it is whole; and the connection goes back to the idle ones only after that. urllib3's own classes, mixed with
these, are made in `http`, which alone imports it.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import ssl
from collections import deque
from contextvars import ContextVar
from time import time as world_time
from typing import TYPE_CHECKING, Any, Iterable

from ..errors import ResponseError
from ..runtime.clock import monotonic

if TYPE_CHECKING:
    _Mixed = http.client.HTTPConnection
else:
    _Mixed = object

#: Larger answers are refused: the largest legal page is far below.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: Seconds that a connection may have been idle. Balancers and NAT gateways forget it after 60 to 350 seconds, and a
#: request on one that was forgotten, or that slept with a frozen process, may never be answered.
MAX_IDLE = 50.0

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

    def __init__(self, bound: float, fresh: bool, has_body: bool, reused_bound: float | None) -> None:
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
        self.idle: Idle | None = None
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
        """Note what an error says about the connection: whether the peer closed one that was reused. http.client's
        RemoteDisconnected is a ConnectionError; Python before 3.10 has no class for OpenSSL 3's "unexpected eof"."""
        hung_up = isinstance(e, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))
        self.stale = self.reused and (hung_up or "unexpected eof" in str(e))

    def succeed(self) -> None:
        """The answer was read whole: its connection waits for another request, unless the idle ones were let go since
        it was taken. One that is not of our own class is closed by `end`, like all that an interruption leaves here."""
        connection, idle = self.connection, self.idle
        if isinstance(connection, BoundedConnection):
            self.connection = None
            if connection.sock is not None and idle is not None and self.home is idle.stack:
                self.home.append((connection, monotonic(), world_time()))
            else:
                connection.close()
        self.reader = None

    def end(self) -> None:
        """Close what has not been kept. http.client of Python 3.8 leaves its reader open where a proxy refuses."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.reader is not None:
            self.reader.close()


#: The attempt that is under way. A context variable and not a thread's: greenlets share threads.
current: ContextVar[Attempt] = ContextVar("cycles_lite_attempt")


class Idle:
    """A stack of open connections, with as much of `queue.LifoQueue` as urllib3's pools call.

    urllib3's own queue is Python code around a lock. An exception that a signal handler raises within it leaves the
    lock held, and one between taking a connection and giving it back costs the pool a place for good. Here every step
    is one operation of a deque, which happens as a whole or not at all; how many connections are in use is bounded
    elsewhere (see `turns`).
    """

    def __init__(self, maxsize: int = 0) -> None:
        #: Connections, each with the time at which it came, by two clocks: the one that only goes forward, and that of
        #: the world, which goes on while the machine sleeps.
        self.stack: deque[tuple[Any, float, float]] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The connection that was used last. None that is too old, and none at all for an attempt that wants a new
        one: `queue.Empty` makes urllib3 open it."""
        attempt = self._user()
        stack = self.stack
        if attempt is not None:
            attempt.home = stack
        while stack:
            try:
                connection, since, since_in_world = stack.pop()
            except IndexError:  # another thread was faster
                break
            if attempt is None:  # a pool that ends takes all of them, and closes them
                return connection
            if not attempt.fresh and monotonic() - since < MAX_IDLE and world_time() - since_in_world < MAX_IDLE:
                attempt.reuse()
                return connection
            connection.close()
            if attempt.fresh:  # it opens one new connection, and closes one idle one for that
                break
        raise queue.Empty

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take what urllib3 has done with. It waits here again only if the attempt succeeds (see `Attempt.succeed`)."""
        attempt = self._user()
        if attempt is not None:
            attempt.connection = connection
        elif connection is not None:
            connection.close()

    def _user(self) -> Attempt | None:
        """The attempt that this call is for: the one under way, unless another pool is collected in the midst of it."""
        attempt = current.get(None)
        return attempt if attempt is not None and attempt.idle is self else None

    def let_go(self) -> None:
        """Close what is idle now; what is in use is closed when it comes back, because the stack is another then."""
        stack, self.stack = self.stack, deque()
        while stack:
            try:
                stack.pop()[0].close()
            except IndexError:
                break

    def qsize(self) -> int:
        """urllib3 shows it in its warnings."""
        return len(self.stack)

    def empty(self) -> bool:
        """vcrpy asks when it puts its own connections in."""
        return not self.stack


class BoundedReader(io.RawIOBase):
    """A socket's reader that never waits past the deadline, however slowly the bytes drip."""

    def __init__(self, raw: Any, sock: socket.socket, attempt: Attempt) -> None:
        self._raw, self._sock, self._of = raw, sock, attempt
        #: Whether the peer has hung up.
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
        super().__init__(self, *args, **kwargs)  # type: ignore[arg-type]  # it takes this for the socket

    def makefile(self, mode: str) -> Any:
        """The file that http.client reads from: all that it asks its socket for."""
        raw = self._sock.makefile("rb", 0)
        self._reader = self._attempt.reader = BoundedReader(raw, self._sock, self._attempt)
        return io.BufferedReader(self._reader)

    def begin(self) -> None:
        """Read the head, and refuse one that is cut off, or that does not tell one length of the body."""
        try:
            super().begin()
        except OSError as e:
            self._attempt.failed(e)
            raise
        if self._reader.ended:  # http.client takes the end of the connection for that of the headers
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
        """The body: all that the head announced, or else all until the end, but never more than is legal."""
        if amt is not None or self.length is not None:
            return super().read(amt)
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


class BoundedConnection(_Mixed):
    """Mixed into urllib3's connections: the attempt's deadline, and noticing that a reused connection was dead."""

    sock: Any
    #: The proxy's answer to CONNECT is one of these too.
    response_class: Any = BoundedResponse
    _at_head = False
    _head = b""

    def connect(self) -> None:
        """Open the connection: this attempt has a new one, and the whole of its time."""
        current.get().renew()
        super().connect()

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Send the head, which `send` holds back where a body follows: both leave in one packet."""
        self._at_head = current.get().has_body
        super().endheaders(*args, **kwargs)

    def send(self, data: Any) -> None:
        """Send bytes, within what is left of the attempt."""
        if self._at_head:
            self._at_head, self._head = False, data
            return
        if self._head:
            data, self._head = self._head + data, b""
        attempt = current.get()
        if self.sock is not None:
            self.sock.settimeout(attempt.left())
        try:
            super().send(data)
        except OSError as e:
            attempt.failed(e)
            raise

    def __del__(self) -> None:
        """An interrupted call drops its connection wherever it stands."""
        sock = self.__dict__.get("sock")
        if sock is not None:
            sock.close()
