"""What a transport is, and the one over HTTP. The only module that imports urllib3.

urllib3 makes the connections and drives each request, through its public `urlopen`; its own retries and redirects are
off. What it lacks is one bound for a whole attempt: its read timeout starts afresh with each byte that arrives. So the
connections of `connections` know the attempt's deadline, and lower the socket's timeout to what is left of it before
each connect, send and read.
"""

from __future__ import annotations

import http.client
import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from ..errors import ConfigError, CyclesError, ResponseError, TransportError, TransportTimeout, ValidationError
from ..protocol.wire import Answer, Call
from ..runtime.clock import monotonic
from .connections import MAX_ANSWER_BYTES, Attempt, BoundedConnection, Idle, current, known_headers
from .handlers import is_from_handler
from .proxies import find_proxy
from .redaction import redacted_text, tells_key
from .trust import trusting
from .turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Protocol

    from ..config import CyclesConfig

    class Transport(Protocol):
        """Carries one call to an authority and brings its answer. Thread-safe."""

        def send(self, call: Call) -> Answer | CyclesError:
            """One attempt: the answer, which is not judged, or the error where none came. An error is returned and not
            raised, because its traceback would lead through frames that hold the API key."""
            ...

        def close(self) -> None:
            """Let idle connections go. A later call opens new ones."""
            ...


#: Makes urllib3 neither retry nor follow redirects.
_ONCE = urllib3.Retry(False, redirect=False)

_timeout = lru_cache(maxsize=16)(urllib3.Timeout)


class _Bounded(BoundedConnection):
    """Mixed into urllib3's connections, so that the attempt's deadline also bounds connecting."""

    def _new_conn(self: Any) -> socket.socket:
        """Connect to one of the host's addresses. They share the connect timeout; urllib3 gives each all of it."""
        host, port = self.host, self.port
        try:
            addresses = socket.getaddrinfo(self._dns_host, port, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            raise NewConnectionError(self, f"cannot resolve {host}: {e}") from e
        end = monotonic() + min(self.timeout, current.get().left())
        failure: Exception = OSError("no address")
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = None
            try:
                sock = socket.socket(family, kind, protocol)
                sock.settimeout(max(0.001, (end - monotonic()) / (len(addresses) - position)))
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.connect(address)
                sock.settimeout(current.get().left())  # a TLS handshake comes next
                return sock
            except BaseException as e:
                if sock is not None:
                    sock.close()
                if not isinstance(e, OSError):
                    raise
                failure = e
        if isinstance(failure, socket.timeout):
            raise ConnectTimeoutError(self, f"connecting to {host}:{port} timed out") from failure
        raise NewConnectionError(self, f"cannot connect to {host}:{port}: {failure}") from failure


@lru_cache(maxsize=4)
def _bounded(kind: type[Any]) -> type[Any]:
    """The class of a pool's connections: urllib3's own with the deadline mixed in. If a library that records, replays
    or instruments traffic has put its class in the place of urllib3's, it is that class."""
    if kind.__module__ != HTTPConnection.__module__:
        return kind
    if not issubclass(kind, http.client.HTTPConnection):
        version = urllib3.__version__  # type: ignore[attr-defined]
        raise ConfigError(f"urllib3 {version} is a fork that cannot be used (urllib3-future?); install urllib3 itself")
    return type("Bounded" + kind.__name__, (_Bounded, kind), {})


class _HTTPPool(urllib3.HTTPConnectionPool):
    QueueCls: Any = Idle


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    QueueCls: Any = Idle


class _Opened(NamedTuple):
    """A pool of connections to the server."""

    pool: Any
    idle: Idle
    #: One turn for each call that may use the pool at the same time; the pool itself never makes a call wait.
    turns: Turns
    #: What is put before a path: the base URL's own path, and for a forwarding proxy also scheme and host.
    prefix: str


def _surroundings() -> tuple[int, Any, Any]:
    """What a pool is valid for. It belongs to one process, because a forked child must neither use nor close its
    parent's connections; and to the classes of connections that urllib3 makes, which other libraries may replace for a
    while."""
    return os.getpid(), urllib3.HTTPConnectionPool.ConnectionCls, urllib3.HTTPSConnectionPool.ConnectionCls


class HttpTransport:
    """The protocol over HTTP/1.1 with kept-alive connections."""

    def __init__(self, config: CyclesConfig) -> None:
        if not config.base_url:
            raise ConfigError("base_url is not set")
        self._config = config
        self._base = config.base_url
        url = urlsplit(self._base)
        self._scheme, self._host, self._port = url.scheme, url.hostname or "", url.port
        self._path = quote(url.path, safe="/%:@!$&'()*+,;=~-._")
        self._pools: dict[tuple[int, Any, Any], _Opened] = {}
        _bounded(urllib3.HTTPConnectionPool.ConnectionCls)

    def __repr__(self) -> str:
        return f"HttpTransport({self._base!r})"

    def __reduce__(self) -> Any:
        raise TypeError("an HttpTransport has connections and secrets, and does not pickle: make one in each process")

    def send(self, call: Call) -> Answer | CyclesError:
        """One attempt of at most `connect_timeout + read_timeout` seconds; redirects are not followed."""
        try:
            body = call.body
        except (TypeError, ValueError, RecursionError) as e:  # data that the program has changed since it was checked
            if is_from_handler(e):
                raise
            return ValidationError(f"{call.operation.name}: the body is not JSON: {e}")
        attempt = Attempt(call.connect_timeout + call.read_timeout, call.fresh, bool(body), call.reused_bound)
        token = current.set(attempt)
        try:
            return self._in_turn(self._pools.get(_surroundings()) or self._open(), call, body, attempt)
        except Exception as e:  # libraries that replace parts of urllib3 or of sockets may raise anything
            if isinstance(e, (ConfigError, TransportError, ResponseError)):
                return e
            if isinstance(e, CyclesError):
                raise
            reason = _innermost(e, own=False)  # urllib3 wraps a handler's TimeoutError too
            if reason is not None and is_from_handler(reason):
                raise reason from None
            return self._translated(call, attempt, e)
        finally:
            current.reset(token)

    def _in_turn(self, opened: _Opened, call: Call, body: bytes, attempt: Attempt) -> Answer:
        """Wait for a connection's turn, send the request and read the answer, all within the attempt's bound."""
        path = call.operation.path
        if call.id is not None:
            path = path.replace("{id}", quote(call.id, safe=""))
        if call.query:
            path += "?" + urlencode(call.query)
        bound = call.connect_timeout + call.read_timeout
        turn = None
        try:
            turn = opened.turns.take(bound)
            if turn is None:
                why = "all connections are busy (max_connections)"
                raise TransportTimeout(f"{call.operation.name}: no answer from {self._base}: {why}")
            attempt.idle = opened.idle
            response = opened.pool.urlopen(
                call.operation.method,
                opened.prefix + path,
                body=body or None,
                headers=call.headers,
                retries=_ONCE,
                redirect=False,
                assert_same_host=False,
                timeout=_timeout(connect=call.connect_timeout, read=bound),
                decode_content=False,
            )
            content, headers = response.data, attempt.headers
            if len(content) > MAX_ANSWER_BYTES:
                raise ResponseError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes", status=response.status)
            attempt.succeed()
            if headers is None:  # something has put a class of connections in the place of ours
                headers = known_headers(response.headers.items())
            return Answer(response.status, headers, content)
        finally:
            attempt.end()
            if turn is not None:
                turn.give_back()

    def _translated(self, call: Call, attempt: Attempt, e: Exception) -> TransportError:
        reason = _innermost(e)
        timed_out = isinstance(reason, (ConnectTimeoutError, ReadTimeoutError, socket.timeout))
        if isinstance(reason, NewConnectionError):  # urllib3 1.26 counts it among the timeouts
            timed_out = False
        kind = TransportTimeout if timed_out else TransportError
        error = kind(f"{call.operation.name}: no answer from {self._base}: {redacted_text(call, _told(reason))}")
        error.stale = attempt.stale and not call.fresh
        cause = _innermost(e, own=False)
        if cause is not None and not tells_key(call, cause):
            error.__cause__ = cause
        return error

    def _open(self) -> _Opened:
        """This process's pool. Threads that come first together get the same one."""
        key = _surroundings()
        opened = self._pools.setdefault(key, self._new_pool())
        for other in [other for other in list(self._pools) if other != key]:
            old = self._pools.pop(other, None)
            if other[0] != key[0]:
                # A parent's connections must be neither used nor closed here, even by a child that gets its id later.
                _inherited.append(old)
            elif old is not None:
                old.idle.let_go()
        return opened

    def _new_pool(self) -> _Opened:
        pool, prefix = self._make_pool()
        pool.ConnectionCls = _bounded(pool.ConnectionCls)
        return _Opened(pool, pool.pool, Turns(self._config.max_connections), prefix)

    def _make_pool(self) -> tuple[Any, str]:
        options: dict[str, Any] = {"maxsize": self._config.max_connections}
        ca_certs = self._config.ca_certs
        proxy = find_proxy(self._config.proxy, self._scheme, self._host, self._port)
        is_old = urllib3.__version__.startswith("1.")  # type: ignore[attr-defined]
        if self._scheme == "https":
            options["ssl_context"] = trusting(ca_certs, self._host if is_old else "")
        try:
            if proxy is None:
                pool: Any = _HTTPSPool if self._scheme == "https" else _HTTPPool
                return pool(self._host, self._port, **options), self._path
            if proxy.scheme == "https":
                options.setdefault("ssl_context", trusting(ca_certs, proxy.host if is_old else ""))
                options["proxy_ssl_context"] = trusting(ca_certs)
            manager = urllib3.ProxyManager(proxy.url, num_pools=1, proxy_headers=proxy.headers, **options)
            manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
            origin = f"http://{urlsplit(self._base).netloc}" if self._scheme == "http" else ""
            return manager.connection_from_host(self._host, self._port, self._scheme), origin + self._path
        except HTTPError as e:
            raise ConfigError(f"base_url: {self._base!r} cannot be used: {e}") from e

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        for key, opened in list(self._pools.items()):
            if key[0] == os.getpid():
                opened.idle.let_go()


#: The pools of parent processes, which are never used and never collected.
_inherited: list[Any] = []


def _innermost(e: BaseException, own: bool = True) -> Any:
    """The innermost of the errors that urllib3 wraps into each other; without `own`, the first that is not urllib3's,
    and so refers to no pool or connection, or None."""
    while isinstance(e, HTTPError):
        inner: Any = e.args[-1] if e.args else None
        if not isinstance(inner, Exception):
            if own:
                return e
            inner = e.__cause__ or e.__context__
            if inner is None:
                return None
        e = inner
    return e


def _told(e: BaseException) -> str:
    """A cause in one short line, without the addresses of objects (urllib3's) and control characters (a peer's)."""
    if isinstance(e, (ReadTimeoutError, socket.timeout)):
        return "timed out"
    text = str(e.__cause__ or e) if isinstance(e, (NewConnectionError, ConnectTimeoutError)) else str(e)
    if not isinstance(e, (OSError, HTTPError, http.client.HTTPException)) or not text:
        text = f"{type(e).__name__}: {text}".rstrip(": ")
    return text[:200] if text.isprintable() else repr(text[:200])
