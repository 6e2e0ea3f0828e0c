"""How one call is made: its headers, its attempts, its deadline, its trace."""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from . import __version__
from .errors import ConfigError, CyclesError, ResponseError, TransportError, TransportTimeout
from .protocol import wire
from .protocol.checks import refuse
from .protocol.fields import Text
from .runtime.clock import monotonic
from .runtime.log import log
from .transport.deadline import seconds_left
from .transport.handlers import is_from_handler
from .transport.redaction import redacted, without_frames
from .transport.retry import retry_delay

if TYPE_CHECKING:
    from .config import CyclesConfig
    from .transport.http import Transport

#: A W3C `traceparent`, or what makes one for each request; None sends none.
Traceparent = Union[None, str, Callable[[], Optional[str]]]

_RESERVATION_ID = Text(128)
_TRACEPARENT = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z"


class Sender:
    """Sends a client's calls through a transport, again where `retry` says so."""

    def __init__(self, config: CyclesConfig, transport: Transport, traceparent: Traceparent) -> None:
        if isinstance(traceparent, str) and not re.match(_TRACEPARENT, traceparent):
            raise ConfigError(f"traceparent: {traceparent!r:.80} is not a W3C traceparent")
        self._config = config
        self.transport = transport
        self.traceparent = traceparent
        self._is_closed = False
        #: What wakes those who wait to send again.
        self._bells: dict[Any, None] = {}
        self._public_headers = {
            "Accept": "application/json",
            "User-Agent": "cycles-lite/{} Python/{}.{}.{}".format(__version__, *sys.version_info),
        }
        self._headers = dict(self._public_headers)
        if config.api_key is not None:
            self._headers[wire.API_KEY_HEADER] = config.api_key
        self._sending_headers = {**self._headers, "Content-Type": "application/json"}

    def post(
        self, operation: wire.Operation, data: dict[str, Any], reservation_id: str | None = None, retries: bool = True
    ) -> Any:
        """Send a body: the response in the answer, or the error, which is the caller's to raise."""
        key = data.get("idempotency_key")
        amount = data.get("estimate") or data.get("actual") or {}
        id = _path_id(operation, reservation_id)
        return self._send(operation, id, {}, data, key, amount.get("unit"), retries)

    def get(self, operation: wire.Operation, id: str | None, query: dict[str, str], retries: bool = True) -> Any:
        """Ask: the response in the answer, or the error, which is the caller's to raise."""
        return self._send(operation, _path_id(operation, id), query, None, None, None, retries)

    def close(self) -> None:
        """Let the connections go; reads that wait to be retried give up."""
        self._is_closed = True
        for bell in list(self._bells):
            try:
                bell.release()
            except RuntimeError:  # rung before
                pass
        self.transport.close()

    def _send(
        self,
        operation: wire.Operation,
        id: str | None,
        query: dict[str, str],
        data: dict[str, Any] | None,
        key: Any,
        unit: str | None,
        retries: bool,
    ) -> Any:
        """Raises nothing: each frame from here on holds the API key, and a traceback would lead through them."""
        config = self._config
        headers = self._headers_for(operation, data is not None, key)
        call = wire.Call(
            operation, id, query, data, headers, config.tenant, config.connect_timeout, config.read_timeout
        )
        attempt = 1
        while True:
            sent = monotonic()
            told = self._attempt(call, unit, attempt == 1 and config.retry_enabled)
            if not isinstance(told, CyclesError):
                told.__dict__["attempt_ms"] = (sent * 1000, monotonic() * 1000)
                return told
            delay = retry_delay(config, operation.method == "GET", attempt, told) if retries else None
            if delay is None or not self._wait(delay):
                return without_frames(told)
            # Where one connection led nowhere, the idle ones beside it are not tried.
            call = call._replace(fresh=isinstance(told, TransportError))
            attempt += 1

    def _attempt(self, call: wire.Call, unit: str | None, may_retry: bool) -> Any:
        left = seconds_left()
        if left is not None and left <= 0:
            return TransportTimeout(f"{call.operation.name}: the deadline has passed; nothing was sent")
        answer = self.transport.send(call if left is None else _within(left, call, may_retry))
        return answer if isinstance(answer, CyclesError) else _read(call, answer, unit)

    def _wait(self, delay: float) -> bool:
        """Wait for a retry; False when there is no time for it, or the client is closed meanwhile."""
        left = seconds_left()
        if left is not None and left <= delay:
            return False
        if not delay:
            return True
        # A lock that `close` releases, and not an event: a signal handler may close the client while its own thread is
        # within the wait, and would wait for what that thread holds.
        bell = threading.Lock()
        bell.acquire()
        try:
            self._bells[bell] = None
            return not (self._is_closed or bell.acquire(timeout=delay))
        finally:
            self._bells.pop(bell, None)

    def _headers_for(self, operation: wire.Operation, has_body: bool, key: Any) -> dict[str, str]:
        trace = self._trace() if self.traceparent is not None else None
        if not has_body:
            headers = dict(self._public_headers if operation.public else self._headers)
        else:
            headers = dict(self._sending_headers)
            if isinstance(key, str) and _arrives_unchanged(key):  # optional
                headers[wire.IDEMPOTENCY_KEY_HEADER] = key
        if trace is not None:
            headers["traceparent"] = trace
        return headers

    def _trace(self) -> str | None:
        """The caller's trace. Tracing never stops a call: what its callable gets wrong is logged."""
        value: Any = self.traceparent
        if callable(value):
            try:
                value = value()
            except Exception:
                log().warning("the traceparent callable failed; the request goes without", exc_info=True)
                return None
        if value is None or (isinstance(value, str) and re.match(_TRACEPARENT, value)):
            return value
        log().warning("%.80r is not a W3C traceparent; the request goes without", value)
        return None


def _within(left: float, call: wire.Call, may_retry: bool) -> wire.Call:
    """The call with its timeouts shortened to what the ambient deadline leaves. An old connection gets no more than
    half of that where another attempt can follow: it may lead nowhere, such as after a frozen process has thawed."""
    bound = call.connect_timeout + call.read_timeout
    if left < bound:
        connect = min(call.connect_timeout, left)
        call = call._replace(connect_timeout=connect, read_timeout=left - connect)
    return call._replace(reused_bound=left / 2) if may_retry and left / 2 < bound else call


def _read(call: wire.Call, answer: wire.Answer, unit: str | None) -> Any:
    """The response in an answer, or the error that it is, in which the key is blotted out. Good answers are data, and
    stay as they are."""
    try:
        return wire.read_answer(call.operation, answer, unit)
    except CyclesError as e:
        if is_from_handler(e):
            raise
        shown = redacted(call, answer)
        if shown is answer:
            return e
    try:
        wire.read_answer(call.operation, shown, unit)
    except CyclesError as e:
        e.__context__ = None
        return e
    return ResponseError(f"unusable body of {call.operation.name}", status=answer.status)


def _arrives_unchanged(text: str) -> bool:
    """Whether a header can carry it: visible ASCII, blanks only inside."""
    return text.isascii() and text.isprintable() and text.strip() == text != ""


def _path_id(operation: wire.Operation, value: Any) -> str | None:
    """The id that the operation's path needs."""
    if "{id}" not in operation.path:
        return None
    value = _RESERVATION_ID.check("reservation_id", value)
    if value in (".", ".."):  # quoting leaves them as they are, and in a path they mean a folder
        raise refuse("reservation_id", value, "an id")
    return str(value)


def open_transport(config: CyclesConfig) -> Transport:
    """The transport that a configuration's URL asks for."""
    if config.base_url is None:
        return _NoTransport()
    if config.is_local:
        from .local.authority import LocalTransport  # sqlite3, which only budget files need

        return LocalTransport(config)
    from .transport.http import HttpTransport  # urllib3, which only servers need

    return HttpTransport(config)


class _NoTransport:
    """What a client without an authority (mode `off`) has."""

    def send(self, call: wire.Call) -> wire.Answer | CyclesError:
        return ConfigError(f"{call.operation.name}: base_url is not set, so there is no authority to ask")

    def close(self) -> None:
        """There is nothing to let go."""
