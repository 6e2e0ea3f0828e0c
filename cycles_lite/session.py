"""What a client, its guards, their settlement and their heartbeats share: the session.

It holds the configuration, the transport, the observer and the subject that requests do not name themselves. It makes
a call: its headers, its trace, its deadline, its attempts. Clients that `with_options` derives have sessions of their
own on one transport.

A call's errors are values until `response_in` raises them. Everything below `Session.send` holds the
API key in its frames, and error trackers send the variables of every frame that a traceback leads through.
"""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Union

from . import __version__
from .errors import ConfigError, CyclesError, ResponseError, TransportError, TransportTimeout, ValidationError
from .protocol import wire
from .protocol.checks import is_a, refuse, shown, text
from .runtime.clock import monotonic
from .runtime.log import log
from .transport.deadline import ambient, seconds_left
from .transport.handlers import is_from_handler
from .transport.redaction import redacted, without_frames, without_key
from .transport.retry import retry_delay

if TYPE_CHECKING:
    from .config import CyclesConfig
    from .events import Observer
    from .protocol.models import Balance, ReservationCreateResponse
    from .transport.http import Transport

#: A W3C `traceparent`, or a callable that makes one for each request; with None the header is not sent.
Traceparent = Union[None, str, Callable[[], Optional[str]]]

_TRACEPARENT = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z"

_NO_QUERY: Mapping[str, str] = {}

#: Nearly every id is plain, and needs no closer look.
_is_plain_id = re.compile(r"[A-Za-z0-9_-]{1,128}\Z").match

#: The most budgets of which it is remembered that they run low.
_MOST_LOW = 1000

_USER_AGENT = "cycles-lite/{} Python/{}.{}.{}".format(__version__, *sys.version_info)


class Session:
    """Sends calls through a transport, again where `retry` says so, and is where the observer is told of events."""

    #: The settler of this session's guards; `settlement.settler.settler_of` makes it for the first of them.
    settler: Any = None

    def __init__(
        self,
        config: CyclesConfig,
        transport: Transport | None = None,
        traceparent: Traceparent = None,
        observer: Observer | None = None,
    ) -> None:
        if is_a(traceparent, str) and not re.match(_TRACEPARENT, traceparent):
            raise ConfigError(f"traceparent: {traceparent!r:.80} is not a W3C traceparent")
        self.config = config
        self.transport = _open_transport(config) if transport is None else transport
        self.traceparent = traceparent
        self.observer = observer
        if observer is not None:
            from . import events  # only observers need it; and here, so that no import can fail where spend is settled

            self._events = events
        #: The levels of a subject that the configuration fills in.
        self._subject = config.subject_defaults()
        #: The budgets that the observer was told to run low. Clients on one authority share it.
        self.low = LowBudgets()
        self._is_closed = False
        #: A lock for each thread that waits before it sends again; releasing the lock wakes the thread.
        self._bells: dict[Any, None] = {}

    def tell(self, event: str, *facts: Any) -> None:
        """Tell the observer, where there is one, of an event: the name of its class in `events`, and its fields. An
        error that the observer raises is logged and stops nothing."""
        if self.observer is None:
            return
        try:
            self.observer(getattr(self._events, event)(*facts))
        except Exception:
            log().exception("the observer failed on %s", event)

    def watch(self, response: Any) -> None:
        """Tell the observer, where there is one, of the budgets that an answer's balances show to run low."""
        line = self.config.warn_below
        if self.observer is None or line is None:
            return
        for balance in getattr(response, "balances", ()):
            if self.low.has_news(balance, line, *response.attempt_ms):
                self.tell("RunningLow", balance, balance.fraction_left)

    def body_of(self, request: Any) -> dict[str, Any]:
        """The JSON object that a request sends, its subject's missing levels filled from the configuration."""
        data: dict[str, Any] = request.to_json()
        if hasattr(request, "subject"):
            data["subject"] = {**self._subject, **data.get("subject", {})}
            if not data["subject"]:
                raise ValidationError("subject: neither the request nor the configuration names one")
        return data

    def send(
        self,
        operation: wire.Operation,
        data: dict[str, Any] | None = None,
        id: str | None = None,
        query: Mapping[str, str] = _NO_QUERY,
        retries: bool = True,
    ) -> Any:
        """Make a call. Return the response, or the error that came instead, which the caller raises."""
        config, unit = self.config, None
        if "{id}" not in operation.path:
            id = None
        elif type(id) is not str or not _is_plain_id(id):
            try:
                id = text("reservation_id", id, 128)
                if id in (".", ".."):  # quoting does not change these, and in a path they mean a folder
                    raise refuse("reservation_id", id, "an id")
            except ValidationError as e:
                return without_frames(e)
        headers = {"Accept": "application/json", "User-Agent": _USER_AGENT}
        if data is not None:
            headers["Content-Type"] = "application/json"
            # The key's header is optional, and carries visible ASCII, with blanks only inside.
            key = data.get("idempotency_key")
            if isinstance(key, str) and key.isascii() and key.isprintable() and key.strip() == key != "":
                headers[wire.IDEMPOTENCY_KEY_HEADER] = key
            unit = (data.get("estimate") or data.get("actual") or {}).get("unit")
        trace = self._trace() if self.traceparent is not None else None
        if trace is not None:
            headers["traceparent"] = trace
        if config.api_key is not None and not operation.public:
            headers[wire.API_KEY_HEADER] = config.api_key
        call = wire.Call(
            operation, id, query, data, headers, config.tenant, config.connect_timeout, config.read_timeout
        )
        attempt = 1
        while True:
            told = self._attempt(call, unit, attempt == 1 and config.retry_enabled)
            if not isinstance(told, CyclesError):
                return told
            delay = retry_delay(config, operation.method == "GET", attempt, told) if retries else None
            if delay is None or not self._wait(delay):
                return without_frames(told)
            # After a connection has failed, the next attempt opens a new one: the idle ones may be dead too.
            call = call._replace(fresh=isinstance(told, TransportError))
            attempt += 1

    def denied(self, response: ReservationCreateResponse) -> CyclesError:
        """The `BudgetDenied` for an answer that allows nothing. It is a success, which tells all that the server sent;
        as an error it must not tell the API key, which the server may have echoed."""
        answer = wire.Answer(wire.CREATE_RESERVATION.status, response.headers, response.body)
        blotted = without_key(self.config.api_key, answer)
        if blotted is answer:
            return wire.denied(response)
        try:
            return wire.denied(wire.read_answer(wire.CREATE_RESERVATION, blotted))
        except CyclesError as e:  # the key was where no text is
            return without_frames(e)

    def close(self) -> None:
        """Close the connections. Calls that wait to be sent again give up."""
        self._is_closed = True
        for bell in list(self._bells):
            try:
                bell.release()
            except RuntimeError:  # another thread has released it
                pass
        self.transport.close()

    def _attempt(self, call: wire.Call, unit: str | None, may_retry: bool) -> Any:
        """One attempt within the ambient deadline: the response, or the error."""
        left = seconds_left() if ambient.get() is not None else None
        if left is not None:
            if left <= 0:
                return TransportTimeout(f"{call.operation.name}: the deadline has passed; nothing was sent")
            call = _within(left, call, may_retry)
        sent = monotonic()
        answer = self.transport.send(call)
        if isinstance(answer, CyclesError):
            return answer
        try:
            return wire.read_answer(call.operation, answer, unit, (sent * 1000, monotonic() * 1000))
        except CyclesError as e:
            if is_from_handler(e):
                raise
            # A server may echo the API key in an error, so it is blotted out there. A success is data, and is left as
            # it is.
            blotted = redacted(call, answer)
            if blotted is answer:
                return e
        try:
            wire.read_answer(call.operation, blotted, unit)
        except CyclesError as e:
            e.__context__ = None
            return e
        return ResponseError(f"unusable body of {call.operation.name}", status=answer.status)

    def _wait(self, delay: float) -> bool:
        """Wait before sending again; False when there is no time for it, or the session is closed meanwhile."""
        left = seconds_left()
        if left is not None and left <= delay:
            return False
        if not delay:
            return True
        # The wait is for a lock that `close` releases, and not for a `threading.Event`: a signal handler may close the
        # client while its own thread is within the wait, and would wait for the event's inner lock for ever.
        bell = threading.Lock()
        bell.acquire()
        try:
            self._bells[bell] = None
            return not (self._is_closed or bell.acquire(timeout=delay))
        finally:
            self._bells.pop(bell, None)

    def _trace(self) -> str | None:
        """The caller's trace. Tracing never stops a call: an error of the callable is logged, and no trace is sent."""
        value: Any = self.traceparent
        if callable(value):
            try:
                value = value()
            except Exception:
                log().warning("the traceparent callable failed; the request goes without", exc_info=True)
                return None
        if value is None or (is_a(value, str) and re.match(_TRACEPARENT, value)):
            return value
        log().warning("%s is not a W3C traceparent; the request goes without", shown(value))
        return None


class LowBudgets:
    """The budgets that an observer was told to run low: each once in a period, and again after it was lifted."""

    def __init__(self) -> None:
        #: By scope, unit and line: what was allocated, used and spent when last seen, and when that answer had come.
        self._told: dict[Any, list[Any]] = {}

    def has_news(self, balance: Balance, line: float, sent_ms: Any, came_ms: Any) -> bool:
        """Whether a balance is below the line, and that is to be told. The times are its answer's."""
        fraction = balance.fraction_left
        if fraction is None or balance.allocated is None:
            return False
        allocated, spent = balance.allocated.amount, balance.spent.amount if balance.spent is not None else None
        used = allocated - balance.remaining.amount - (balance.reserved.amount if balance.reserved else 0)
        key, seen = (balance.scope_path, balance.remaining.unit, line), [allocated, used, spent, came_ms]
        told = self._told.get(key)
        # An answer to a call that was made before is of the time before, and its thread comes late.
        if told is not None and sent_ms >= told[3]:
            # Holds come and go with every call: only what was used tells of more funds. Nothing but a new period, or an
            # operator, makes less of what was spent.
            is_lifted = fraction >= line and (allocated != told[0] or used < told[1])
            if not is_lifted and (spent is None or told[2] is None or spent >= told[2]):
                told[:] = seen
                return False
            if self._told.get(key) is told:
                self._told.pop(key, None)
        if fraction >= line or self._told.setdefault(key, seen) is not seen:  # of several threads, one tells it
            return False
        for oldest in list(self._told)[:-_MOST_LOW]:
            self._told.pop(oldest, None)
        return True


def response_in(told: Any) -> Any:
    """Return the response, or raise the error that came instead: here, where no frame holds the API key."""
    if not isinstance(told, CyclesError):
        return told
    try:
        raise told
    finally:
        del told  # else this frame and the error's traceback would keep each other alive, and every guard on the way


def _within(left: float, call: wire.Call, may_retry: bool) -> wire.Call:
    """The call with its timeouts shortened to what the ambient deadline leaves. Where another attempt can follow, an
    attempt on an old connection gets half of that time: the server may have forgotten the connection, for example
    while this process was frozen."""
    bound = call.connect_timeout + call.read_timeout
    if left < bound:
        connect = min(call.connect_timeout, left)
        call = call._replace(connect_timeout=connect, read_timeout=left - connect)
    return call._replace(reused_bound=left / 2) if may_retry and left / 2 < bound else call


def _open_transport(config: CyclesConfig) -> Transport:
    """The transport that a configuration's URL asks for."""
    if config.base_url is None:
        return _NoTransport()
    if config.is_local:
        from .local.authority import LocalTransport  # sqlite3, which only budget files need

        return LocalTransport(config)
    from .transport.http import HttpTransport  # urllib3, which only servers need

    return HttpTransport(config)


class _NoTransport:
    """The transport of a client that has no authority to ask (mode `off`)."""

    def send(self, call: wire.Call) -> wire.Answer | CyclesError:
        return ConfigError(f"{call.operation.name}: base_url is not set, so there is no authority to ask")

    def close(self) -> None:
        """Do nothing: there are no connections."""
