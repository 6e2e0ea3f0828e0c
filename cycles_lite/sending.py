"""How one call is made: its headers, its attempts, its deadline, its trace."""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from . import __version__, wire
from .checks import refuse
from .clock import monotonic
from .deadline import seconds_left
from .errors import ConfigError, CyclesError, TransportTimeout
from .fields import Text
from .log import log
from .retry import retry_delay

if TYPE_CHECKING:
    from .config import CyclesConfig
    from .transport import Transport

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
        self._closed = threading.Event()
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
        """Send a body, and read the response in the answer."""
        headers = dict(self._sending_headers)
        key = data.get("idempotency_key")
        if isinstance(key, str) and _arrives_unchanged(key):  # optional
            headers[wire.IDEMPOTENCY_KEY_HEADER] = key
        amount = data.get("estimate") or data.get("actual") or {}
        return self._send(operation, reservation_id, {}, wire.dumps(data), headers, amount.get("unit"), retries)

    def get(self, operation: wire.Operation, id: str | None, query: dict[str, str], retries: bool = True) -> Any:
        """Ask, and read the response in the answer."""
        headers = dict(self._public_headers if operation.public else self._headers)
        return self._send(operation, id, query, b"", headers, None, retries)

    def close(self) -> None:
        """Let the connections go; reads that wait to be retried give up."""
        self._closed.set()
        self.transport.close()

    def _send(
        self,
        operation: wire.Operation,
        id: str | None,
        query: dict[str, str],
        body: bytes,
        headers: dict[str, str],
        unit: str | None,
        retries: bool,
    ) -> Any:
        config = self._config
        if "{id}" in operation.path:
            id = _path_id(id)
        if self.traceparent is not None:
            self._trace(headers)
        call = wire.Call(
            operation, id, query, body, headers, config.tenant, config.connect_timeout, config.read_timeout
        )
        attempt = 1
        while True:
            sent = monotonic()
            try:
                response = wire.read_answer(operation, self.transport.send(_within_deadline(call)), unit)
                response.__dict__["attempt_ms"] = (sent * 1000, monotonic() * 1000)
                return response
            except CyclesError as e:
                delay = retry_delay(config, operation.method == "GET", attempt, e) if retries else None
                if delay is None or not self._wait(delay):
                    raise
                call = call._replace(fresh=getattr(e, "stale", False))
            attempt += 1

    def _wait(self, delay: float) -> bool:
        """Wait for a retry; False when there is no time for it, or the client is closed meanwhile."""
        left = seconds_left()
        if left is not None and left <= delay:
            return False
        return not (delay and self._closed.wait(delay))

    def _trace(self, headers: dict[str, str]) -> None:
        """Add the caller's trace. Tracing never stops a call: what its callable gets wrong is logged."""
        value: Any = self.traceparent
        if callable(value):
            try:
                value = value()
            except Exception:
                log().warning("the traceparent callable failed; the request goes without", exc_info=True)
                return
        if isinstance(value, str) and re.match(_TRACEPARENT, value):
            headers["traceparent"] = value
        elif value is not None:
            log().warning("%.80r is not a W3C traceparent; the request goes without", value)


def _within_deadline(call: wire.Call) -> wire.Call:
    """The call with its timeouts shortened to what the ambient deadline leaves."""
    left = seconds_left()
    if left is None or left >= call.connect_timeout + call.read_timeout:
        return call
    if left <= 0:
        raise TransportTimeout(f"{call.operation.name}: the deadline has passed; nothing was sent")
    connect = min(call.connect_timeout, left)
    return call._replace(connect_timeout=connect, read_timeout=left - connect)


def _arrives_unchanged(text: str) -> bool:
    """Whether a header can carry it: visible ASCII, blanks only inside."""
    return text.isascii() and text.isprintable() and text.strip() == text != ""


def _path_id(value: Any) -> str:
    value = _RESERVATION_ID.check("reservation_id", value)
    if value in (".", ".."):  # quoting leaves them as they are, and in a path they mean a folder
        raise refuse("reservation_id", value, "an id")
    return str(value)


def open_transport(config: CyclesConfig) -> Transport:
    """The transport that a configuration's URL asks for."""
    if config.base_url is None:
        return _NoTransport()
    if config.is_local:
        from .local.transport import LocalTransport  # sqlite3, which only budget files need

        return LocalTransport(config)
    from .transport import HttpTransport  # urllib3, which only servers need

    return HttpTransport(config)


class _NoTransport:
    """What a client without an authority (mode `off`) has."""

    def send(self, call: wire.Call) -> wire.Answer:
        raise ConfigError(f"{call.operation.name}: base_url is not set, so there is no authority to ask")

    def close(self) -> None:
        """There is nothing to let go."""
