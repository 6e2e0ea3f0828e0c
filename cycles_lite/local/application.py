"""The embedded authority as a WSGI application: routes, keys, and answers as JSON."""

from __future__ import annotations

import hmac
import re
from http import HTTPStatus
from typing import Any, Callable, Iterable, NamedTuple
from urllib.parse import parse_qsl

from ..errors import ConfigError, TransportError, ValidationError
from ..protocol import wire
from ..protocol.wire import Answer
from ..runtime.log import log
from .admin import ADMIN_ROUTES, answer_admin_call
from .authority import ADMIN_OPERATIONS, ANYONE, NO_KEY, Authority, Caller
from .messages import error_answer, new_answer

#: Larger request bodies are refused; the largest legal ones are far below.
MAX_BODY_BYTES = 1024 * 1024

#: Bodies are read up to this size before they are refused: most clients send all before they look for an answer.
READ_AT_MOST = 8 * MAX_BODY_BYTES

#: Seconds that a request may wait for the budget file, given as the two timeouts that a client has.
_TIMEOUTS = (2.0, 5.0)

_ADMIN_KEY_HEADER = "X-Admin-API-Key"
_ADMIN_KEY = re.compile(r"[\x21-\x7e]+\Z")


class _Request(NamedTuple):
    """A request, as a WSGI environment describes it."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]


class Application:
    """The WSGI application: routes, keys, and answers as JSON. `admin_key` opens the admin calls."""

    def __init__(self, authority: Authority, admin_key: str | None = None) -> None:
        if admin_key is not None and _ADMIN_KEY.match(admin_key) is None:
            raise ConfigError("the admin key is empty, or has other characters than visible ASCII")
        self._authority = authority
        self._admin_key = admin_key

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._answer(environ)
        body = answer.body
        headers = [*titled(answer), ("Content-Length", str(len(body)))]
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def _answer(self, environ: dict[str, Any]) -> Answer:
        headers = headers_of(environ)
        try:
            told = environ.get("CONTENT_LENGTH") or "0"
            if re.match(r"[0-9]{1,18}\Z", told) is None:  # waitress refuses it before, other servers may not
                return error_answer(400, "INVALID_REQUEST", "Content-Length is no number of bytes.", headers)
            length = int(told)
            if length > MAX_BODY_BYTES:
                message = f"The body is larger than {MAX_BODY_BYTES} bytes."
                return error_answer(413, "INVALID_REQUEST", message, headers)
            path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
            query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="replace"))
            body = environ["wsgi.input"].read(length)
            answer = self._route(_Request(environ["REQUEST_METHOD"], path, query, body, headers))
            return answer._replace(content=answer.body)  # what cannot be encoded is a failure of the server, too
        except (TransportError, ConfigError) as e:  # the budget file is locked, broken or gone
            log().error("%s", e.message)  # the message names the file, which a caller must not learn
            message = "The budget file cannot be used at present; the server's log tells why."
        except Exception:
            log().exception("the server failed on %s", environ["REQUEST_METHOD"])
            message = "The server failed; see its log."
        return error_answer(500, "INTERNAL_ERROR", message, headers)

    def _route(self, request: _Request) -> Answer:
        if request.path == "/actuator/health":
            if request.method not in ("GET", "HEAD"):
                return _not_allowed(request, ["GET", "HEAD"])
            return new_answer(200, {"status": "UP"}, request.headers, None)
        if self._admin_key is not None and request.path in ADMIN_ROUTES:
            if request.method != "POST":
                return _not_allowed(request, ["POST"])
            caller = self._caller(request, admin_serves=True)
            if caller is not None and not self._authority.is_proven(caller):
                caller = None
            return answer_admin_call(request.path, self._authority, request.body, request.headers, caller)
        allowed = []
        for pattern, operation in _ROUTES:
            match = pattern.match(request.path)
            if match and operation.method == request.method:
                return self._operate(request, operation, match.groupdict().get("id"))
            if match:
                allowed.append(operation.method)
        if allowed:
            return _not_allowed(request, allowed)
        return error_answer(404, "NOT_FOUND", f"There is nothing at {request.path[:200]}.", request.headers)

    def _operate(self, request: _Request, operation: wire.Operation, id: str | None) -> Answer:
        caller = ANYONE if operation.public else self._caller(request, operation in ADMIN_OPERATIONS)
        if caller is None:
            return error_answer(401, "UNAUTHORIZED", NO_KEY, request.headers)
        try:
            data = wire.read_body(request.body) if operation.request_name else None
        except ValidationError as e:
            if not self._authority.is_proven(caller):
                return error_answer(401, "UNAUTHORIZED", NO_KEY, request.headers)
            return error_answer(400, "INVALID_REQUEST", e.message, request.headers, caller.tenant)
        call = wire.Call(operation, id, request.query, data, request.headers, caller.tenant, *_TIMEOUTS)
        return self._authority.answer(call, caller)

    def _caller(self, request: _Request, admin_serves: bool) -> Caller | None:
        """Who asks, or None: a key that is not known, or none at all. A tenant's key is still to be proven.

        Where the admin's key serves and one is sent as such, that one counts, be it right or wrong, whatever else is
        sent.
        """
        given = request.headers.get(_ADMIN_KEY_HEADER)
        if admin_serves and given is not None and self._admin_key is not None:
            is_admin = hmac.compare_digest(given.encode("utf-8"), self._admin_key.encode("ascii"))
            return Caller(admin=True) if is_admin else None
        key = request.headers.get(wire.API_KEY_HEADER)
        return None if key is None else self._authority.caller(key)


_ROUTES = [
    (re.compile(re.escape(operation.path).replace(re.escape("{id}"), "(?P<id>[^/]+)") + r"\Z"), operation)
    for operation in wire.OPERATIONS
]


def headers_of(environ: dict[str, Any]) -> dict[str, str]:
    """The headers that the authority reads, under the protocol's names."""
    names = (wire.API_KEY_HEADER, _ADMIN_KEY_HEADER, wire.IDEMPOTENCY_KEY_HEADER, "X-Cycles-Trace-Id", "traceparent")
    found = {name: environ.get("HTTP_" + name.upper().replace("-", "_")) for name in names}
    return {name: _utf8(value) for name, value in found.items() if value is not None}


def _utf8(value: str) -> str:
    """The text of a header. WSGI decodes its bytes as Latin-1; an idempotency key in another script is UTF-8."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def titled(answer: Answer) -> list[tuple[str, str]]:
    return [(name.title(), value) for name, value in answer.headers.items()]


def _not_allowed(request: _Request, allowed: list[str]) -> Answer:
    message = f"{request.method[:20]} is not possible here; {', '.join(sorted(allowed))} is."
    answer = error_answer(405, "INVALID_REQUEST", message, request.headers)
    return answer._replace(headers={**answer.headers, "allow": ", ".join(sorted(allowed))})
