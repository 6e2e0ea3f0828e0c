"""The embedded authority as a WSGI application: routes, keys, and answers as JSON."""

from __future__ import annotations

import hmac
import re
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Callable, Iterable, NamedTuple, Sequence
from urllib.parse import parse_qsl

from ..errors import ConfigError, TransportError, ValidationError
from ..protocol import wire
from ..protocol.wire import Answer
from ..runtime.clock import monotonic
from ..runtime.log import log
from .admin import ADMIN_ROUTES, answer_admin_call
from .authority import ADMIN_OPERATIONS, ANYONE, NO_KEY, Authority, Caller
from .extension import GET_PERIODS, Denials
from .messages import error_answer, new_answer
from .page import Page

if TYPE_CHECKING:
    from .metrics import Metrics

#: Larger request bodies are refused; the largest legal ones are far below.
MAX_BODY_BYTES = 1024 * 1024

#: Bodies are read up to this size before they are refused: most clients send all before they look for an answer.
READ_AT_MOST = 8 * MAX_BODY_BYTES

#: Seconds that a request may wait for the budget file, given as the two timeouts that a client has.
_TIMEOUTS = (2.0, 5.0)

#: The word, in an `Exchange`, for requests that no route takes.
UNKNOWN = "unknown"

_ADMIN_KEY_HEADER = "X-Admin-API-Key"
#: The headers that are read, with their names in a WSGI environment.
_HEADERS = {
    name: "HTTP_" + name.upper().replace("-", "_")
    for name in (
        *(wire.API_KEY_HEADER, _ADMIN_KEY_HEADER, wire.IDEMPOTENCY_KEY_HEADER),
        *("X-Cycles-Trace-Id", "traceparent", "Authorization", "Accept"),
    )
}
_NO_METRICS = "The metrics need prometheus-client: pip install 'cycles_lite[server]'"
_ADMIN_KEY = re.compile(r"[\x21-\x7e]+\Z")


class Exchange(NamedTuple):
    """A request and its answer, as listeners are told of them. What a client chose to send is in `method` and `path`;
    no field has a key."""

    method: str
    #: The path without the query, unquoted.
    path: str
    #: The protocol's operation, or a word for another route such as `admin` or `health`; `unknown` where there is none
    #: for this path and method.
    operation: str
    status: int
    #: The code of an error.
    code: str | None
    #: What it took until the answer was made. Sending it is not included.
    seconds: float
    #: The length of the answer's body.
    bytes: int
    #: The address that the request came from.
    client: str
    #: The tenant whose key was proven.
    tenant: str | None
    request_id: str


#: What is told of each exchange, before the answer is sent. An error that it raises is logged and harms nothing.
Listener = Callable[[Exchange], object]


class _Request(NamedTuple):
    """A request, as a WSGI environment describes it."""

    method: str
    path: str
    #: The id in the path of those operations that have one.
    id: str | None
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]


_Handler = Callable[[_Request], Answer]


class _Route(NamedTuple):
    """What answers requests for a path."""

    path: re.Pattern[str]
    methods: Sequence[str]
    #: The word for it in an `Exchange`.
    operation: str
    answer: _Handler


def _route(path: str, methods: Sequence[str], operation: str, answer: _Handler) -> _Route:
    """A route for a path, in which `{id}` stands for any segment."""
    pattern = re.escape(path).replace(re.escape("{id}"), "(?P<id>[^/]+)")
    return _Route(re.compile(pattern + r"\Z"), methods, operation, answer)


class Application:
    """The WSGI application: routes, keys, and answers as JSON. `admin_key` opens the admin calls and the metrics;
    with `public_metrics` these need no key. The metrics need prometheus-client, without which they are a 404; a
    `ConfigError` if they are to be public. `page` says whether there is the page at `/` to look at budgets."""

    def __init__(
        self,
        authority: Authority,
        admin_key: str | None = None,
        listeners: Sequence[Listener] = (),
        public_metrics: bool = False,
        page: bool = True,
    ) -> None:
        if admin_key is not None and _ADMIN_KEY.match(admin_key) is None:
            raise ConfigError("the admin key is empty, or has other characters than visible ASCII")
        self._authority = authority
        self._admin_key = admin_key
        self._listeners = listeners
        self._routes = [
            _route(one.path, [one.method], one.name, partial(self._operate, one)) for one in wire.OPERATIONS
        ]
        self._routes += [_route("/actuator/health", ["GET", "HEAD"], "health", _health)]
        self._denials = Denials()
        self._routes += [_route(GET_PERIODS.path, [GET_PERIODS.method], GET_PERIODS.name, self._tell_periods)]
        if page:
            self._routes += [_route("/", ["GET", "HEAD"], "page", partial(_document, Page()))]
        if public_metrics or admin_key is not None:
            self._metrics = _metrics(authority)
            self._are_metrics_public = public_metrics
            if self._metrics is not None:
                self._listeners = [*listeners, self._metrics.count]
            elif public_metrics:
                raise ConfigError(_NO_METRICS)
            self._routes += [_route("/metrics", ["GET"], "metrics", self._tell_metrics)]
        if admin_key is not None:
            self._routes += [_route(path, ["POST"], "admin", self._administer) for path in ADMIN_ROUTES]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        started = monotonic() if self._listeners else 0.0
        operation, answer = self._answer(environ)
        body = answer.body
        headers = [*titled(answer), ("Content-Length", str(len(body)))]
        if self._listeners:
            asked = environ["REQUEST_METHOD"], utf8_path(environ.get("PATH_INFO", "")), operation
            self.tell(asked, answer, monotonic() - started, environ.get("REMOTE_ADDR", ""))
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def tell(self, asked: tuple[str, str, str], answer: Answer, seconds: float, client: str) -> None:
        """Tell the listeners of an answer, before it is sent: whoever has had it finds it counted. `asked` are the
        exchange's first three fields."""
        code = answer.data.get("error") if answer.status >= 400 else None
        tenant, request_id = answer.headers.get("x-cycles-tenant"), answer.headers["x-request-id"]
        told = Exchange(*asked, answer.status, code, seconds, len(answer.body), client, tenant, request_id)
        for listener in self._listeners:
            try:
                listener(told)
            except Exception:
                log().exception("a listener failed on an exchange (%s)", request_id)

    def _answer(self, environ: dict[str, Any]) -> tuple[str, Answer]:
        """The answer, and the word for what has answered."""
        headers, operation = headers_of(environ), UNKNOWN
        try:
            told = environ.get("CONTENT_LENGTH") or "0"
            if re.match(r"[0-9]{1,18}\Z", told) is None:  # waitress refuses it before, other servers may not
                return UNKNOWN, error_answer(400, "INVALID_REQUEST", "Content-Length is no number of bytes.", headers)
            length = int(told)
            if length > MAX_BODY_BYTES:
                message = f"The body is larger than {MAX_BODY_BYTES} bytes."
                return UNKNOWN, error_answer(413, "INVALID_REQUEST", message, headers)
            method, path = environ["REQUEST_METHOD"], utf8_path(environ.get("PATH_INFO", ""))
            operation, handler, id = self._find(method, path)
            query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="replace"))
            answer = handler(_Request(method, path, id, query, environ["wsgi.input"].read(length), headers))
            # What cannot be encoded is a failure of the server, too.
            return operation, answer._replace(content=answer.body)
        except (TransportError, ConfigError) as e:  # the budget file is locked, broken or gone
            log().error("%s", e.message)  # the message names the file, which a caller must not learn
            message = "The budget file cannot be used at present; the server's log tells why."
        except Exception:
            log().exception("the server failed on %s", environ["REQUEST_METHOD"])
            message = "The server failed; see its log."
        return operation, error_answer(500, "INTERNAL_ERROR", message, headers)

    def _find(self, method: str, path: str) -> tuple[str, _Handler, str | None]:
        """Who answers a request, under which word, and the id in the path."""
        allowed: set[str] = set()
        for route in self._routes:
            match = route.path.match(path)
            if match and method in route.methods:
                return route.operation, route.answer, match.groupdict().get("id")
            if match:
                allowed.update(route.methods)
        return UNKNOWN, partial(_not_allowed, sorted(allowed)) if allowed else _not_found, None

    def _administer(self, request: _Request) -> Answer:
        caller = self._caller(request, admin_serves=True)
        if caller is not None and not self._authority.is_proven(caller):
            caller = None
        return answer_admin_call(request.path, self._authority, request.body, request.headers, caller, request.query)

    def _tell_metrics(self, request: _Request) -> Answer:
        given = request.headers.get(_ADMIN_KEY_HEADER, _bearer(request.headers))
        if not self._are_metrics_public and not self._is_admins(given):
            message = f"The admin key in {_ADMIN_KEY_HEADER}, or as a bearer token, is needed."
            return error_answer(401, "UNAUTHORIZED", message, request.headers)
        if self._metrics is None:
            return error_answer(404, "NOT_FOUND", _NO_METRICS, request.headers)
        content_type, text = self._metrics.exposition(request.headers.get("Accept", ""))
        answer = new_answer(200, {}, request.headers, None)
        return answer._replace(content=text, headers={**answer.headers, "content-type": content_type})

    def _operate(self, operation: wire.Operation, request: _Request) -> Answer:
        caller = ANYONE if operation.public else self._caller(request, operation in ADMIN_OPERATIONS)
        if caller is None:
            return error_answer(401, "UNAUTHORIZED", NO_KEY, request.headers)
        try:
            data = wire.read_body(request.body) if operation.request_name else None
        except ValidationError as e:
            if not self._authority.is_proven(caller):
                return error_answer(401, "UNAUTHORIZED", NO_KEY, request.headers)
            return error_answer(400, "INVALID_REQUEST", e.message, request.headers, caller.tenant)
        call = wire.Call(operation, request.id, request.query, data, request.headers, caller.tenant, *_TIMEOUTS)
        answer = self._authority.answer(call, caller)
        self._denials.note(caller.tenant, operation, answer)
        return answer

    def _tell_periods(self, request: _Request) -> Answer:
        answer = self._operate(GET_PERIODS, request)
        if answer.status != GET_PERIODS.status:
            return answer
        return answer._replace(content={**answer.data, **self._denials.of(answer.headers["x-cycles-tenant"])})

    def _caller(self, request: _Request, admin_serves: bool) -> Caller | None:
        """Who asks, or None: a key that is not known, or none at all. A tenant's key is still to be proven.

        Where the admin's key serves and one is sent as such, that one counts, be it right or wrong, whatever else is
        sent.
        """
        given = request.headers.get(_ADMIN_KEY_HEADER)
        if admin_serves and given is not None and self._admin_key is not None:
            return Caller(admin=True) if self._is_admins(given) else None
        key = request.headers.get(wire.API_KEY_HEADER)
        return None if key is None else self._authority.caller(key)

    def _is_admins(self, key: str) -> bool:
        return self._admin_key is not None and hmac.compare_digest(key.encode("utf-8"), self._admin_key.encode("ascii"))


def headers_of(environ: dict[str, Any]) -> dict[str, str]:
    """The headers that the authority reads, under the protocol's names."""
    found = {name: environ.get(variable) for name, variable in _HEADERS.items()}
    return {name: _utf8(value) for name, value in found.items() if value is not None}


def _bearer(headers: dict[str, str]) -> str:
    """The token that `Authorization` has, the one header that Prometheus can send a key in."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _metrics(authority: Authority) -> Metrics | None:
    """The metrics of a server; None where prometheus-client is missing."""
    try:
        from .metrics import Metrics  # which takes long to import
    except ModuleNotFoundError as e:
        if e.name != "prometheus_client":
            raise
        return None
    return Metrics(authority)


def utf8_path(path: str) -> str:
    """An unquoted path as text. WSGI decodes its bytes as Latin-1."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def _utf8(value: str) -> str:
    """The text of a header. WSGI decodes its bytes as Latin-1; an idempotency key in another script is UTF-8."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def titled(answer: Answer) -> list[tuple[str, str]]:
    return [(name.title(), value) for name, value in answer.headers.items()]


def _document(page: Page, request: _Request) -> Answer:
    return page.document(request.headers)


def _health(request: _Request) -> Answer:
    return new_answer(200, {"status": "UP"}, request.headers, None)


def _not_found(request: _Request) -> Answer:
    return error_answer(404, "NOT_FOUND", f"There is nothing at {request.path[:200]}.", request.headers)


def _not_allowed(allowed: list[str], request: _Request) -> Answer:
    message = f"{request.method[:20]} is not possible here; {', '.join(allowed)} is."
    answer = error_answer(405, "INVALID_REQUEST", message, request.headers)
    return answer._replace(headers={**answer.headers, "allow": ", ".join(allowed)})
