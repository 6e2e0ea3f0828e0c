"""What a transport is, and the one over HTTP. The only module that imports urllib3.

urllib3 keeps the connections; its own retries and redirects are off. What it lacks is one bound for a whole attempt:
its read timeout starts afresh with each byte that arrives. So the connections here know the attempt's deadline and
lower the socket's timeout to what is left of it before each connect, send and read.
"""

from __future__ import annotations

import http.client
import os
import queue
import socket
import ssl
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Callable, Mapping
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    NewConnectionError,
    PoolError,
    ReadTimeoutError,
)
from urllib3.util.ssl_ import is_ipaddress

from .attempt import Attempt, BoundedResponse, current, read_body
from .clock import monotonic
from .errors import ConfigError, TransportError, TransportTimeout
from .proxies import from_environment, read_proxy
from .redaction import redacted, redacted_text, tells_key
from .wire import Answer, Call

if TYPE_CHECKING:
    from typing_extensions import Protocol

    from .config import CyclesConfig

    class Transport(Protocol):
        """Carries one call to an authority and brings its answer. Thread-safe."""

        def send(self, call: Call) -> Answer:
            """One attempt. Raises `TransportError` where no answer came; never judges the answer."""
            ...

        def close(self) -> None:
            """Let idle connections go. A later call opens new ones."""
            ...

    _Mixed = HTTPConnection
    _MixedPool = urllib3.HTTPConnectionPool
else:
    _Mixed = _MixedPool = object

#: Neither retries nor redirects.
_ONCE = urllib3.Retry(False, redirect=False)

_timeout = lru_cache(maxsize=16)(urllib3.Timeout)


class _Bounded(_Mixed):
    """Mixed into urllib3's connections: the attempt's deadline, and noticing that a reused connection was dead."""

    sock: Any
    #: The proxy's answer to CONNECT is one of these too.
    response_class: Any = BoundedResponse
    #: The pool's era that this connection is of.
    era = 0
    _served = False
    _body = b""

    def _new_conn(self) -> socket.socket:
        """urllib3 gives each of a host's addresses the whole connect timeout; here they share it."""
        host, port = self._dns_host, self.port
        timeout: Any = self.timeout
        connection: Any = self
        try:
            addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            raise NewConnectionError(connection, f"cannot resolve {host}: {e}") from e
        end = monotonic() + min(timeout, current.get().left())
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
            raise ConnectTimeoutError(connection, f"connecting to {host}:{port} timed out") from failure
        raise NewConnectionError(connection, f"cannot connect to {host}:{port}: {failure}") from failure

    def connect(self) -> None:
        self._served = False
        super().connect()

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        self._body = current.get().body
        super().endheaders(*args, **kwargs)

    def send(self, data: Any) -> None:
        body, self._body = self._body, b""  # the head comes first, and takes the body along in one packet
        if body:
            data += body
        attempt = current.get()
        if self.sock is not None:
            self.sock.settimeout(attempt.left())
        try:
            super().send(data)
        except OSError as e:
            attempt.stale = self._served and _hung_up(e)
            raise

    def getresponse(self) -> Any:
        return self._received(super().getresponse)

    def _received(self, receive: Callable[[], Any]) -> Any:
        try:
            response = receive()
        except OSError as e:
            current.get().stale = self._served and _hung_up(e)
            raise
        self._served = True
        return response

    def exchange(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """A request and its answer, where the connection is open, by http.client alone: what urllib3 does beyond that
        is for connections that have yet to be made, and would be a quarter of a call's cost."""
        http.client.HTTPConnection.request(self, method, target, None, headers)
        response = self._received(lambda: http.client.HTTPConnection.getresponse(self))
        return response.status, read_body(response, response.length)


def _hung_up(e: OSError) -> bool:
    """Whether the peer closed the connection; http.client's RemoteDisconnected is a ConnectionError."""
    if isinstance(e, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return True
    return "unexpected eof" in str(e)  # of OpenSSL 3, which Python before 3.10 has no class for


class _HTTPConnection(_Bounded, HTTPConnection):
    pass


class _HTTPSConnection(_Bounded, HTTPSConnection):
    pass


class _Places(queue.LifoQueue):  # type: ignore[type-arg]
    """A pool's places: connections that are idle, and None where one may be opened."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self._pid = os.getpid()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            # urllib3's finalizers empty each pool like this, at exit too: before the last settlements have been sent.
            raise queue.Empty
        return super().get(block, timeout)

    def let_go(self) -> None:
        """Close the connections that are here now."""
        if self._pid != os.getpid():
            # A parent process's, which may be locked for ever here. What is closed is this process's share of it.
            _close(list(self.queue))
            return
        places: list[Any] = []
        try:
            while True:
                places.append(super().get(block=False))
        except queue.Empty:
            pass
        _close(places)
        try:
            for _ in places:
                self.put(None, block=False)
        except queue.Full:  # calls have given theirs back meanwhile
            pass


def _close(places: list[Any]) -> None:
    for conn in places:
        if conn is not None:
            conn.close()


class _Pool(_MixedPool):
    """Mixed into urllib3's pools: fresh connections, and letting idle ones go without ending the pool."""

    QueueCls: Any = _Places
    _era = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        places: Any = self.pool
        weakref.finalize(self, places.let_go)

    def exchange(self, timeout: float, method: str, target: str, headers: Mapping[str, str]) -> Any:
        """The status and body of an answer to a request on an open connection; None where none is idle."""
        conn: Any = self._get_conn(timeout)
        try:
            return None if conn.sock is None else conn.exchange(method, target, headers)
        except BaseException:
            conn.close()
            raise
        finally:
            self._put_conn(conn)

    def _get_conn(self, timeout: Any = None) -> Any:
        conn: Any = super()._get_conn(timeout)
        if current.get().fresh and conn.sock is not None:
            conn.close()
            conn = self._new_conn()
        return conn

    def _new_conn(self) -> Any:
        conn: Any = super()._new_conn()
        conn.era = self._era
        return conn

    def _put_conn(self, conn: Any) -> None:
        if conn is not None and conn.era != self._era:
            conn.close()
        try:
            super()._put_conn(conn)
        except PoolError:
            # urllib3 gives back a place that a call never had, if that call was interrupted while it waited for one;
            # the pool is then full for the next, who is not to blame.
            pass

    def let_go(self) -> None:
        """Close what is idle now, and what is in use when it comes back. Calls that wait for a place are not hurt, as
        they would be by the pool's own `close`."""
        self._era += 1
        places: Any = self.pool
        places.let_go()


class _HTTPPool(_Pool, urllib3.HTTPConnectionPool):
    ConnectionCls: type[Any] = _HTTPConnection


class _HTTPSPool(_Pool, urllib3.HTTPSConnectionPool):
    ConnectionCls: type[Any] = _HTTPSConnection


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
        self._prefix = self._path
        #: By process id: a forked child neither uses nor closes its parent's connections.
        self._pools: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"HttpTransport({self._base!r})"

    def __reduce__(self) -> Any:
        raise TypeError("an HttpTransport has connections and secrets, and does not pickle: make one in each process")

    def send(self, call: Call) -> Answer:
        """One attempt of at most `connect_timeout + read_timeout` seconds; redirects are not followed."""
        pool = self._pools.get(os.getpid()) or self._open()
        bound = call.connect_timeout + call.read_timeout
        attempt = Attempt(monotonic() + bound, call.fresh, call.body)
        token = current.set(attempt)
        error: TransportError | None = None
        try:
            status, body = self._exchange(pool, call, bound)
            return redacted(call, Answer(status, attempt.headers, body))
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as e:
            error = self._translated(call, attempt, e)
        finally:
            current.reset(token)
        try:
            raise error  # here, so that what it is not to be chained to is not its context either
        finally:
            error = None  # else its traceback and this frame would hold each other

    def _exchange(self, pool: Any, call: Call, bound: float) -> tuple[int, bytes]:
        method, target, headers = call.operation.method, self._target(call), call.headers
        if call.body:
            headers = {**headers, "Content-Length": str(len(call.body))}
        if pool.proxy is None:
            heard: tuple[int, bytes] | None = pool.exchange(bound, method, target, headers)
            if heard is not None:
                return heard
        response = pool.urlopen(
            method,
            target,
            None,  # the connection sends the body together with the head
            headers,
            retries=_ONCE,
            redirect=False,
            assert_same_host=False,
            timeout=_timeout(connect=call.connect_timeout, read=bound),
            pool_timeout=bound,
            preload_content=False,
            decode_content=False,
        )
        try:
            return response.status, read_body(response, response.length_remaining)
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()

    def _target(self, call: Call) -> str:
        path = call.operation.path
        if call.id is not None:
            path = path.replace("{id}", quote(call.id, safe=""))
        target = self._prefix + path
        return target + "?" + urlencode(call.query) if call.query else target

    def _translated(self, call: Call, attempt: Attempt, e: Exception) -> TransportError:
        cause = _innermost(e)
        timed_out = isinstance(cause, (ConnectTimeoutError, ReadTimeoutError, EmptyPoolError, socket.timeout))
        if isinstance(cause, NewConnectionError):  # urllib3 1.26 counts it among the timeouts
            timed_out = False
        kind = TransportTimeout if timed_out else TransportError
        error = kind(f"{call.operation.name}: no answer from {self._base}: {redacted_text(call, _reason(cause))}")
        error.stale = attempt.stale and not call.fresh
        if not tells_key(call, e):
            error.__cause__ = e
        return error

    def _open(self) -> Any:
        """This process's pool. Threads that come first together get the same one."""
        pid = os.getpid()
        pool = self._pools.setdefault(pid, self._new_pool())
        for other in [other for other in list(self._pools) if other != pid]:
            # A parent's connections stay referenced and unused, whatever process gets its id one day.
            _inherited.append(self._pools.pop(other, None))
        return pool

    def _new_pool(self) -> Any:
        options: dict[str, Any] = {"maxsize": self._config.max_connections, "block": True}
        ca_certs = self._config.ca_certs
        proxy = read_proxy(self._config.proxy or from_environment(self._scheme, self._host, self._port))
        if self._scheme == "https":
            options["ssl_context"] = _tls(ca_certs, self._host)
        try:
            if proxy is None:
                kind: Any = _HTTPSPool if self._scheme == "https" else _HTTPPool
                return kind(self._host, self._port, **options)
            if self._scheme == "http":  # a forwarding proxy is asked for the whole URL
                self._prefix = f"{self._scheme}://{urlsplit(self._base).netloc}{self._path}"
            if proxy.scheme == "https":
                options.setdefault("ssl_context", _tls(ca_certs, proxy.host))
                options["proxy_ssl_context"] = _tls(ca_certs)
            manager = urllib3.ProxyManager(proxy.url, num_pools=1, proxy_headers=proxy.headers, **options)
            manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
            return manager.connection_from_host(self._host, self._port, self._scheme)
        except HTTPError as e:
            raise ConfigError(f"base_url: {self._base!r} cannot be used: {e}") from e

    def close(self) -> None:
        """Let the connections go; a later call opens new ones."""
        pool = self._pools.get(os.getpid())
        if pool is not None:
            pool.let_go()


#: Pools of parent processes: never used, never collected.
_inherited: list[Any] = []


def _innermost(e: BaseException) -> BaseException:
    """The error that urllib3 wrapped, and wrapped again."""
    while len(e.args) > 1 and isinstance(e.args[-1], Exception):
        e = e.args[-1]
    return e


def _reason(e: BaseException) -> str:
    """An innermost cause in a short line: urllib3 puts addresses of objects into its texts, peers what they like."""
    if isinstance(e, EmptyPoolError):
        return "all connections are busy (max_connections)"
    if isinstance(e, ReadTimeoutError):
        return "timed out"
    text = str(e.__cause__ or e) if isinstance(e, (NewConnectionError, ConnectTimeoutError)) else str(e)
    text = text or type(e).__name__
    return text[:200] if text.isprintable() else repr(text[:200])


def _tls(ca_certs: str | None, host: str = "") -> ssl.SSLContext:
    """A context that verifies, with the certificates that the user names (SSL_CERT_FILE is OpenSSL's own)."""
    trusted = ca_certs or os.environ.get("REQUESTS_CA_BUNDLE") or None
    try:
        if trusted and os.path.isdir(trusted):
            context = ssl.create_default_context(capath=trusted)
        else:
            context = ssl.create_default_context(cafile=trusted)
    except OSError as e:
        raise ConfigError(f"ca_certs: {trusted!r} cannot be used: {e}") from e
    if is_ipaddress(host) and urllib3.__version__.startswith("1."):  # type: ignore[attr-defined]
        # urllib3 1.26 does not tell OpenSSL which address to look for in the certificate, but looks for it itself.
        context.check_hostname = False
    return context
