"""WSGI: a reservation around every request, and one table for what errors become in HTTP.

    application = CyclesMiddleware(application, client, estimate=Amount.tokens(500), action=Action("http.post", "chat"))

The reservation is settled when the response's body is closed, whoever closes it. Inside the application the guard is
`environ["cycles.guard"]` and `current_guard()`.
"""

from __future__ import annotations

import json
import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, Sequence

from . import errors
from .errors import CyclesError, ValidationError
from .guard import ReservationGuard
from .guards.asking import demand
from .guards.costs import settle_by_estimate, settle_call
from .guards.current import inside
from .guards.generators import goes_on
from .protocol.checks import is_a, refuse, shown, texts
from .protocol.values import Subject
from .runtime.log import log

if TYPE_CHECKING:
    from typing import Dict, List, Tuple

    from .client import CyclesClient

    #: Status line, headers and body.
    Answer = Tuple[str, List[Tuple[str, str]], bytes]
    Environ = Dict[str, Any]
    StartResponse = Callable[..., Any]
    Application = Callable[[Environ, StartResponse], Iterable[bytes]]

#: Where the application finds its guard in the environment.
GUARD_KEY = "cycles.guard"

#: The Retry-After of an exceeded budget, in seconds, where the authority names none.
_DEFAULT_RETRY_AFTER = 60

#: What a tenant from a request may be; it is hostile input.
_TENANT = re.compile(r"[a-zA-Z0-9_.-]{1,128}\Z")

_STATUS_LINE = re.compile(r"[2-5][0-9][0-9] .")

#: What an error becomes in HTTP: the status, the code and the seconds for Retry-After of the first row whose class it
#: is an instance of. Without seconds there is a Retry-After only where the authority named a time.
HTTP_ERRORS: Sequence[tuple[type[BaseException], int, str, int | None]] = (
    (errors.BudgetExceededError, 429, "BUDGET_EXCEEDED", _DEFAULT_RETRY_AFTER),
    (errors.DebtOutstandingError, 503, "DEBT_OUTSTANDING", None),
    (errors.OverdraftLimitExceededError, 503, "OVERDRAFT_LIMIT_EXCEEDED", None),
    (errors.BudgetFrozenError, 503, "BUDGET_FROZEN", None),
    (errors.RateLimitedError, 503, "UNAVAILABLE", None),
    (errors.TransportError, 503, "UNAVAILABLE", None),
    (errors.ResponseError, 503, "UNAVAILABLE", None),
    (errors.ServerError, 503, "UNAVAILABLE", None),
)

_MESSAGES = {
    "BUDGET_EXCEEDED": "The budget for this is used up.",
    "DEBT_OUTSTANDING": "The budget for this is in debt.",
    "OVERDRAFT_LIMIT_EXCEEDED": "The budget for this is over its limit.",
    "BUDGET_FROZEN": "The budget for this is frozen.",
    "UNAVAILABLE": "The budget authority cannot be asked right now.",
    "INTERNAL_ERROR": "This request could not be budgeted.",
    "INVALID_TENANT": "The tenant of this request is missing or malformed.",
}


def http_error(exc: BaseException) -> Answer:
    """What an exception of this library becomes in an HTTP answer: status line, headers, JSON body.

    An exceeded budget is a 429 with Retry-After; debt, overdraft and frozen budgets and an authority that cannot be
    reached are a 503; everything else is a 500. The body names a code, and nothing of scopes, amounts or keys.
    """
    for kind, status, code, wait in HTTP_ERRORS:
        if isinstance(exc, kind):
            return _answer(status, code, _seconds(exc, wait))
    return _answer(500, "INTERNAL_ERROR", None)


def _seconds(exc: BaseException, default: int | None) -> int | None:
    asked = getattr(exc, "retry_after", None)
    return default if asked is None else math.ceil(asked)


def _answer(status: int, code: str, wait: int | None) -> Answer:
    body = json.dumps({"error": code, "message": _MESSAGES[code]}).encode("ascii")
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if wait is not None:
        headers.append(("Retry-After", str(wait)))
    return f"{status} {HTTPStatus(status).phrase}", headers, body


class CyclesMiddleware:
    """Guards every request to a WSGI application; see the module.

    `estimate`, `action`, `subject` and `actual` are constants or callables of the environment; `estimate` and `actual`
    give Amounts. Without `actual`, what was metered is committed, else the estimate. A request whose application raises
    is released, or its meter committed.

    `tenant_header` names a header, or is a callable of the environment, that tells each request's tenant: missing or
    malformed, the answer is a 400 and nothing is sent. `client_for(tenant)` gives the client with that tenant's key, or
    None where there is none: a `ValidationError`, which is answered as below.
    Paths in `exclude`, and those below them, are not guarded.

    What keeps a request from being reserved is logged and answered as `http_error` says, unless `on_error(exc,
    environ)` gives another answer (status line, headers, body); None leaves it at that one.
    """

    def __init__(
        self,
        app: Application,
        client: CyclesClient | None = None,
        *,
        estimate: Any,
        action: Any,
        subject: Any = None,
        actual: Any = None,
        tenant_header: str | Callable[[Environ], str | None] | None = None,
        client_for: Callable[[str], CyclesClient | None] | None = None,
        exclude: Sequence[str] = (),
        ttl_ms: int = 60_000,
        on_error: Callable[[CyclesError, Environ], Answer | None] | None = None,
    ) -> None:
        if client is None and client_for is None:
            raise ValidationError("client: a client is needed, or client_for")
        if client_for is not None and tenant_header is None:
            raise ValidationError("client_for: tenant_header must tell the tenant")
        if not (tenant_header is None or callable(tenant_header) or is_a(tenant_header, str)):
            raise refuse("tenant_header", tenant_header, "the name of a header, or a callable of the environment")
        demand(estimate, action, subject, "the environment")
        self._app, self._client, self._client_for = app, client, client_for
        self._estimate, self._action, self._subject, self._actual = estimate, action, subject, actual
        self._tenant_header, self._ttl_ms, self._on_error = tenant_header, ttl_ms, on_error
        self._exclude = tuple(path.rstrip("/") for path in texts("exclude", exclude))

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if any(path == excluded or path.startswith(excluded + "/") for excluded in self._exclude):
            return self._app(environ, start_response)
        tenant = self._tenant(environ)
        if tenant is _MALFORMED:
            status, headers, body = _answer(400, "INVALID_TENANT", None)
        else:
            try:
                guard = self._reserve(environ, tenant)
            except CyclesError as e:
                status, headers, body = self._refusal(e, environ)
            else:
                return self._guarded(environ, start_response, guard)
        start_response(status, headers)
        return [body]

    def _tenant(self, environ: Environ) -> str | None:
        """The request's tenant, None where none is asked for."""
        header = self._tenant_header
        if header is None:
            return None
        given = header(environ) if callable(header) else environ.get("HTTP_" + header.upper().replace("-", "_"))
        if isinstance(given, str) and _TENANT.match(given):
            return given
        log().warning("%s is answered 400: its tenant is %s", _request(environ), shown(given))
        return _MALFORMED

    def _refusal(self, error: CyclesError, environ: Environ) -> Answer:
        """The answer in the place of the application's. The refusal is logged."""
        say = log().warning if isinstance(error, errors.BudgetDenied) else log().error
        say("%s is not let through (request id %s): %s", _request(environ), error.request_id, error)
        try:
            other = self._on_error(error, environ) if self._on_error is not None else None
            return http_error(error) if other is None else _checked(other)
        except Exception:
            log().exception("on_error failed for %s", _request(environ))
            return http_error(error)

    def _reserve(self, environ: Environ, tenant: str | None) -> ReservationGuard:
        client = self._client_for(tenant) if self._client_for is not None and tenant else self._client
        if client is None:
            raise ValidationError("client: there is none for this tenant")
        return client.reserve(
            _value(self._estimate, environ),
            _value(self._action, environ),
            subject=_subject(_value(self._subject, environ), tenant),
            ttl_ms=self._ttl_ms,
        )

    def _guarded(self, environ: Environ, start_response: StartResponse, guard: ReservationGuard) -> Iterable[bytes]:
        environ[GUARD_KEY] = guard
        try:
            with inside(guard):
                body = self._app(environ, start_response)
        except BaseException as e:
            guard.end(e)
            raise
        return _Body(body, guard, environ, self._actual)


#: Stands for a tenant that is missing or malformed: no request can name this one.
_MALFORMED = "\0"


def _request(environ: Environ) -> str:
    """A request as the log names it; its method and path are hostile input."""
    return "{} {}".format(*(shown(environ.get(name)) for name in ("REQUEST_METHOD", "PATH_INFO")))


def _checked(answer: Any) -> Answer:
    """The answer that `on_error` gave; raises for one that a server could not send."""
    status, headers, body = answer
    lines = [status, *(text for header in headers for text in header)]
    if not (all(isinstance(text, str) and text.isprintable() for text in lines) and isinstance(body, bytes)):
        raise TypeError(f"{shown(answer)} is not a status line, a list of pairs of strings, and bytes")
    if not _STATUS_LINE.match(status):
        raise ValueError(f"{shown(status)} is not a status line such as '402 Payment Required'")
    return status, [(name, value) for name, value in headers], body


def _value(given: Any, environ: Mapping[str, Any]) -> Any:
    return given(environ) if callable(given) else given


def _subject(subject: Subject | None, tenant: str | None) -> Subject | None:
    if tenant is None:
        return subject
    return Subject(**{**(subject.to_json() if subject else {}), "tenant": tenant})


class _Body:
    """The application's body; whoever closes it settles the request, once."""

    def __init__(self, body: Iterable[bytes], guard: ReservationGuard, environ: Environ, actual: Any) -> None:
        self._body, self._guard, self._environ, self._actual = body, guard, environ, actual
        self._steps: Iterator[bytes] | None = None
        self._is_whole = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            with inside(self._guard):
                if self._steps is None:
                    self._steps = iter(self._body)
                return next(self._steps)
        except StopIteration:
            self._is_whole = True
            raise
        except BaseException as e:
            if not goes_on(self._steps):
                self._guard.end(e)
            raise

    def close(self) -> None:
        """Close the application's body, then settle; PEP 3333 has servers call this however the request ends."""
        try:
            with inside(self._guard):
                close = getattr(self._body, "close", None)
                if close is not None:
                    close()
        except BaseException as e:
            if not (isinstance(e, ValueError) and goes_on(self._steps)):  # else another thread is within a step
                self._guard.end(e)
            raise
        if not self._guard.is_active:
            return
        if self._actual is None and not self._is_whole:
            settle_by_estimate(self._guard)  # the client hung up, or the answer had no body to send
        else:
            settle_call(self._guard, self._actual, self._environ)
