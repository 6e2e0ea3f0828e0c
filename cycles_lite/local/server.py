"""The embedded authority behind HTTP, served by waitress (extra `[server]`)."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Sequence

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import create_server
from waitress.task import ErrorTask, WSGITask

from ..errors import ConfigError
from ..runtime.clock import monotonic
from .application import READ_AT_MOST, UNKNOWN, Application, Listener, headers_of, titled, utf8_path
from .authority import Authority
from .messages import error_answer

#: Seconds from one look at slow connections to the next, where nothing else happens.
_LOOK = 1.0


class _FaultTask(ErrorTask):  # type: ignore[misc]
    """Answers a request that is not proper HTTP, and so does not reach the application."""

    channel: Any

    def execute(self) -> None:
        request: Any = self.request
        error = request.error
        code = "INVALID_REQUEST" if error.code < 500 else "INTERNAL_ERROR"
        headers = headers_of({"HTTP_" + name: value for name, value in request.headers.items()})
        answer = error_answer(error.code, code, f"{error.reason}: {error.body}", headers)
        told = f"{error.code} {error.reason}", titled(answer), answer.body
        error.to_response = lambda ident=None: told  # what waitress asks it for
        # A request that is too broken to be read has neither.
        asked = getattr(request, "command", ""), utf8_path(getattr(request, "path", "")), UNKNOWN
        self.channel.server.tell(asked, answer, 0.0, self.channel.addr[0])
        super().execute()


# ---- Connections ----
# Clients may send slowly, or nothing, or too many may come at once. Waitress reads requests without a thread each, so a
# slow one costs no more than its connection. Those are limited, too: a request has a time to be there whole, and where
# more connections come than are kept, the one goes that has waited for its client the longest, those first on which no
# key was ever proven, but for those that came just now.

#: Connections that are kept. Each may cost a file descriptor or two, of which systems give 1024, or fewer.
MOST = 400

#: Seconds for a request's head and body together, and for a connection without a proven key to ask for anything.
PATIENCE = 20.0


def most_connections() -> int:
    """`MOST`, or what the limit on this process's open files allows for."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files < 0 else max(8, min(MOST, (files - 64) // 2))


class _Task(WSGITask):  # type: ignore[misc]
    """One request and its answer, whose headers show whether a key was proven."""

    channel: Any

    def write(self, data: bytes) -> None:
        """Send the answer's head and body together; waitress sends them one by one, as two packets."""
        with self.channel.together():
            super().write(data)

    def finish(self) -> None:
        super().finish()
        if any(name.lower() == "x-cycles-tenant" for name, _ in self.response_headers):
            self.channel.is_proven = True
        self.channel.waits_since = monotonic()


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Reads requests. A URL that Python cannot split, such as `http://[`, is a client's fault, and is answered;
    waitress would close the connection, with a traceback in the log."""

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:
            raise ParsingError("Bad URI") from None


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that knows since when its client lets it wait."""

    parser_class = _Parser
    task_class = _Task
    error_task_class = _FaultTask

    def __init__(self, *given: Any, **options: Any) -> None:
        #: Whether a request with a valid key has come on this connection.
        self.is_proven = False
        #: Since when the server waits for this client: for its next request, or for the rest of one.
        self.waits_since = monotonic()
        #: When the client last took a part of an answer, as a monotonic time.
        self.took_last = self.waits_since
        #: What a worker has written while it is collected.
        self._parts: list[bytes] | None = None
        super().__init__(*given, **options)

    def received(self, data: bytes) -> Any:
        """Take the bytes that came. The time for a request runs from its first byte."""
        was_idle = self.request is None
        taken = super().received(data)
        if was_idle and self.request is not None and self.is_proven:
            self.waits_since = monotonic()
        return taken

    def writable(self) -> bool:
        """Whether the loop shall wait until the client takes more of an answer, and send it then.

        Waitress says yes as soon as there is something to send. But while a request is at work its worker sends, and
        holds the lock that the loop would need. A worker that is within `send` has let go of the interpreter: the loop
        takes it, polls, is told at once that the socket takes data, cannot have the lock, and polls again. So it spins
        until the worker gets the interpreter back, and with many clients there always is such a worker. The loop is
        needed where the worker cannot go on alone: from the high watermark on it waits to be told that the loop has
        sent enough. What is left when a request ends is sent after the worker has pulled the trigger.
        """
        is_served = self.requests and not self.will_close and self.total_outbufs_len < self.adj.outbuf_high_watermark
        return not is_served and bool(super().writable())

    def handle_write(self) -> None:
        """Send what is left of answers. Waitress does so without the lock where no request is at work, but a worker
        that has just ended one may be asking for the next one's body, and the same bytes would be sent twice."""
        with self.outbuf_lock:
            super().handle_write()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collect what is written meanwhile, and write it as one."""
        parts: list[bytes] = []
        self._parts = parts
        try:
            yield
        finally:
            self._parts = None
        self.write_soon(b"".join(parts))

    def write_soon(self, data: Any) -> int:
        """Send as much as the client takes now, and keep the rest for later. Waits where too much is kept."""
        if self._parts is None:
            return int(super().write_soon(data))
        self._parts.append(data)
        return len(data)

    @property
    def holds_its_worker(self) -> bool:
        """Whether a thread can do nothing else until the client has taken more of what was answered."""
        return bool(self.requests) and self.total_outbufs_len > self.adj.outbuf_high_watermark

    def wake_worker(self) -> None:
        """Let a thread that waits for the client look again whether it has to."""
        with self.outbuf_lock:
            self.outbuf_lock.notify_all()

    def send(self, *given: Any, **options: Any) -> int:
        """Send a part of an answer, and note whether the client took any of it."""
        sent = int(super().send(*given, **options))
        if sent:
            self.took_last = monotonic()
        return sent


def _channels(sockets: Mapping[int, Any]) -> list[Channel]:
    return [one for one in list(sockets.values()) if isinstance(one, Channel)]


def let_go(sockets: Mapping[int, Any], most: int) -> None:
    """Close the connections that waited too long, and those over the limit. Only for the thread that serves sockets."""
    now = monotonic()
    channels = _channels(sockets)
    # Those with no request at work: their clients have to say or to take something before anything happens.
    waiting = sorted((one for one in channels if not one.requests), key=lambda one: one.waits_since)
    strangers = [one for one in waiting if not one.is_proven]
    # The last that came have had no time yet to prove a key. Where all the others have, one of those must go: else
    # clients that keep their connections and say nothing would keep everybody else out.
    newcomers = strangers[-max(1, most // 10) :]
    old = strangers[: -len(newcomers) or None]
    excess = len(channels) - most
    for number, channel in enumerate([*old, *(one for one in waiting if one.is_proven), *newcomers]):
        is_late = now - channel.waits_since > PATIENCE and not (channel.is_proven and channel.request is None)
        if number < excess or is_late:
            channel.handle_close()
    for channel in channels:
        if channel.holds_its_worker and now - channel.took_last > PATIENCE:
            channel.handle_close()


# ---- The server ----


class Server:
    """An authority at an address. Port 0 picks a free one; `url` tells which. `listeners` are told of each exchange.
    `public_metrics` opens the metrics to those without the admin key; `page` says whether there is the page at `/`."""

    def __init__(
        self,
        authority: Authority,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        admin_key: str | None = None,
        listeners: Sequence[Listener] = (),
        public_metrics: bool = False,
        page: bool = True,
    ) -> None:
        application = Application(authority, admin_key, listeners, public_metrics, page)
        self._socket = _listen(host, port)
        self._map: dict[Any, Any] = {}
        self._ending = self._closed = False
        self._server: Any = create_server(
            application,
            sockets=[self._socket],
            map=self._map,
            threads=8,
            ident=None,
            connection_limit=2 * MOST,  # never reached: who was here longest goes, and newcomers do not wait
            max_request_body_size=READ_AT_MOST,
            clear_untrusted_proxy_headers=True,  # the default of waitress 3; waitress 2.1 warns if it is not given
        )
        self._server.channel_class = Channel
        self._server.tell = application.tell  # for `_FaultTask`
        address = self._socket.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        #: An API key for clients of this server, if the one who started it has made one.
        self.api_key: str | None = None
        #: The URL that clients take as `base_url`.
        self.url = f"http://{shown}:{address[1]}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self) -> None:
        """Serve until `stop()`, Ctrl-C or `SystemExit`; requests at work are finished."""
        most, next_look = most_connections(), 0.0
        try:
            while not self._ending:
                # The wait is a second at the most, because a signal that comes just before it does not interrupt it.
                wasyncore.loop(timeout=_LOOK, use_poll=True, map=self._map, count=1)
                if len(self._server.active_channels) > most or monotonic() >= next_look:
                    next_look = monotonic() + _LOOK
                    let_go(self._map, most)
        except (KeyboardInterrupt, SystemExit):  # the operator's way to stop it, as good as `stop`
            pass

    def stop(self) -> None:
        """Let `run()` return, from any thread or signal handler."""
        self._ending = True
        if not self._closed:  # after closing, another file may have the trigger's descriptor
            self._server.pull_trigger()

    @contextmanager
    def in_background(self) -> Iterator[Server]:
        """Serve from a thread for as long as the context lasts."""
        thread = threading.Thread(target=self.run, name="cycles-lite-server")
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join()

    def close(self) -> None:
        """Stop listening, close the connections, and end the threads."""
        self._closed = True
        # No loop sends any more, so no worker may wait until it has: neither those that wait already, nor others.
        self._server.adj.outbuf_high_watermark = sys.maxsize
        for channel in _channels(self._map):
            channel.wake_worker()
        self._server.task_dispatcher.shutdown()
        for channel in _channels(self._map):
            channel.handle_close()
        wasyncore.close_all(self._map)
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    """One listening socket, on the first address that the host has."""
    if not 0 <= port <= 65535:  # the resolver would take a larger number too, and turn it into another port
        raise ConfigError(f"cannot listen on {host}:{port}: a port is in 0..65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            # On Windows SO_REUSEADDR would let another server take the same port; this other option keeps it from that.
            option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
            listening.setsockopt(socket.SOL_SOCKET, option, 1)
            listening.bind(address)
            listening.listen(1024)  # where two sockets could be bound to one port, the second fails here
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, UnicodeError) as e:  # a UnicodeError means that the host's name is impossible
        raise ConfigError(f"cannot listen on {host}:{port}: {getattr(e, 'strerror', None) or e}") from e
