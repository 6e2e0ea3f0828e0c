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
from typing import TYPE_CHECKING, Any, Iterable

from ..errors import ResponseError
from ..runtime.clock import monotonic, now_ms

if TYPE_CHECKING:
    _Mixed = http.client.HTTPConnection
else:
    _Mixed = object

#: Larger answers are refused: the largest legal page is far below.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: Seconds after which an idle connection is not used again. Balancers and NAT gateways forget a connection after 60 to
#: 350 seconds, and a request on a forgotten one may never be answered; a process that was frozen has such connections.
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
    """One attempt: what the connection that serves it must know, and what the connection reports back."""

    def __init__(self, bound: float, fresh: bool, has_body: bool, reused_bound: float | None) -> None:
        now = monotonic()
        self._whole = self.deadline = now + bound
        self._sooner = self._whole if reused_bound is None else now + reused_bound
        #: Whether this attempt must use a new connection.
        self.fresh = fresh
        #: Whether the request has a body.
        self.has_body = has_body
        #: Whether the connection of this attempt has served another one before.
        self.reused = False
        #: Whether a reused connection turned out to be closed by the peer.
        self.stale = False
        #: The answer's headers, if the connection was of our own class; else urllib3's response has them.
        self.headers: dict[str, str] | None = None
        #: The pool's idle connections; the stack of them that this attempt's connection came from; and the connection,
        #: once urllib3 has given it back.
        self.idle: Idle | None = None
        self.home: Any = None
        self.connection: Any = None
        #: The reader of the answer. It must be closed too, because a closed socket stays open while a reader has it.
        self.reader: BoundedReader | None = None

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed."""
        seconds = self.deadline - monotonic()
        if seconds <= 0:
            raise socket.timeout("timed out")
        return seconds

    def reuse(self) -> None:
        """Note that an old connection is used. The shorter deadline counts, because it may be dead by now."""
        self.reused, self.deadline = True, self._sooner

    def renew(self) -> None:
        """Note that a new connection is made. The whole attempt's deadline counts."""
        self.reused, self.deadline = False, self._whole

    def failed(self, e: OSError) -> None:
        """Note what an error says about the connection: whether the peer closed one that was reused. http.client's
        RemoteDisconnected is a ConnectionError; Python before 3.10 has no class for OpenSSL 3's "unexpected eof"."""
        hung_up = isinstance(e, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))
        self.stale = self.reused and (hung_up or "unexpected eof" in str(e))

    def succeed(self) -> None:
        """Keep the connection for another request, because the answer was read whole; unless the idle ones were closed
        since it was taken. A connection of another class is left to `end`, which closes it."""
        connection, idle = self.connection, self.idle
        if isinstance(connection, BoundedConnection):
            self.connection = None
            if connection.sock is not None and idle is not None and self.home is idle.stack:
                self.home.append((connection, monotonic(), now_ms()))
            else:
                connection.close()
        self.reader = None

    def end(self) -> None:
        """Close what was not kept, the reader too: http.client of Python 3.8 leaves it open if a proxy refuses."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.reader is not None:
            self.reader.close()


#: The attempt that is under way. It is in a context variable and not a thread-local one: greenlets share threads.
current: ContextVar[Attempt] = ContextVar("cycles_lite_attempt")


class Idle:
    """A stack of open connections, with those methods of `queue.LifoQueue` that urllib3's pools call.

    urllib3's own queue is Python code around a lock. An exception that a signal handler raises within it leaves the
    lock held, and one between taking a connection and giving it back costs the pool a place for good. Here every step
    is one operation of a deque, which happens as a whole or not at all. `turns` bounds how many connections are in
    use.
    """

    def __init__(self, maxsize: int = 0) -> None:
        #: The connections, each with the time at which it became idle, by two clocks: the monotonic one, and the wall
        #: clock, which goes on while the machine sleeps.
        self.stack: deque[tuple[Any, float, float]] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The connection that was used last, if it is not too old. Raises `queue.Empty` where there is none, or the
        attempt wants a new one; urllib3 opens one then."""
        attempt = self._user()
        stack = self.stack
        if attempt is not None:
            attempt.home = stack
        while stack:
            try:
                connection, since, since_ms = stack.pop()
            except IndexError:  # another thread was faster
                break
            if attempt is None:  # a pool that is being closed takes all connections out, to close them
                return connection
            if not attempt.fresh and monotonic() - since < MAX_IDLE and now_ms() - since_ms < MAX_IDLE * 1000:
                attempt.reuse()
                return connection
            connection.close()
            if attempt.fresh:  # this attempt opens a new connection, and has closed an idle one in exchange
                break
        raise queue.Empty

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take a connection that urllib3 gives back. It is idle again only if the attempt succeeds (`succeed`)."""
        attempt = self._user()
        if attempt is not None:
            attempt.connection = connection
        elif connection is not None:
            connection.close()

    def _user(self) -> Attempt | None:
        """The attempt that urllib3 calls this for; None where a pool is collected while an attempt of another runs."""
        attempt = current.get(None)
        return attempt if attempt is not None and attempt.idle is self else None

    def let_go(self) -> None:
        """Close what is idle now. A connection in use is closed when it comes back, by its stack being an old one."""
        stack, self.stack = self.stack, deque()
        while stack:
            try:
                stack.pop()[0].close()
            except IndexError:
                break

    def qsize(self) -> int:
        """How many connections are idle. urllib3 shows this number in its warnings."""
        return len(self.stack)

    def empty(self) -> bool:
        """Whether nothing is idle. vcrpy calls this when it replaces the connections by its own."""
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
        """The file that http.client reads from. It asks its socket for nothing else."""
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
            # http.client drops the headers after such a line, perhaps the length; and urllib3 would log the line.
            raise http.client.HTTPException("there is a line among the headers that is none")
        headers = known_headers(self.msg.raw_items())
        if len(set(headers.pop("content-length", "").replace(" ", "").split(","))) > 1:
            # http.client takes the first of them, and would read the rest of the body as the next answer
            raise http.client.HTTPException("there are two lengths among the headers")
        self._attempt.headers = headers
        if self.length is not None and self.length > MAX_ANSWER_BYTES:
            raise self._too_large()

    def _read_status(self) -> Any:
        """Tell http.client that every interim answer (1xx; RFC 9110, 15.2) is a 100, the only one that it skips. It
        would take another for the answer, and the real answer for that of the next request."""
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
    """Mixed into urllib3's connections, to keep the attempt's deadline and notice that a reused connection was dead."""

    sock: Any
    #: The class of answers, that of a proxy to CONNECT included.
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
        """Close the socket: a call that was interrupted anywhere leaves its connection to the collector."""
        sock = self.__dict__.get("sock")
        if sock is not None:
            sock.close()
