"""Requests as they come and answers as they leave.

A request is proven legal before it reaches the ledger; an illegal one is answered with 400. Each answer carries its own
request id and a trace id, and an error is the protocol's `ErrorResponse`.
"""

from __future__ import annotations

import os
import re
from typing import Any, Mapping

from ..errors import ValidationError, known_code
from ..protocol.checks import free_text, shown
from ..protocol.fields import Model
from ..protocol.values import SUBJECT_LEVELS
from ..protocol.wire import IDEMPOTENCY_KEY_HEADER, Answer, Call
from ..transport.handlers import is_from_handler
from . import scopes
from .rules import Refused, invalid

#: The longest id in a path (protocol: ReservationId).
_LONGEST_ID = 128

#: The status of a code that is the official admin server's and not the protocol's; those have theirs in `errors`.
_STATUSES_BESIDE = {"TENANT_NOT_FOUND": 404}

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}\Z")


# ---- Requests ----


def read_request(model: type[Model], call: Call) -> Any:
    """The request in a call's body, with legal values and the same idempotency key as the header, if that has one."""
    try:
        request: Any = model.parse(call.data)
    except ValidationError as e:
        if is_from_handler(e):
            raise
        raise invalid(e.message) from e
    key = _header(call.headers, IDEMPOTENCY_KEY_HEADER)
    if key not in (None, request.idempotency_key):
        raise invalid(f"{IDEMPOTENCY_KEY_HEADER} and the body's idempotency_key differ.")
    if "subject" in request.__dict__:
        _demand_legal(request)
    return request


def _demand_legal(request: Any) -> None:
    """Refuse levels without a stable scope, and actions with a blank kind or name (protocol: `Subject`, `Action`)."""
    for level in SUBJECT_LEVELS:
        value = getattr(request.subject, level)
        if value is not None and scopes.is_value(value) is None:
            raise invalid(f"subject.{level}: {shown(value)} has other characters than a-z, A-Z, 0-9, _, . and -.")
    for name in ("kind", "name"):
        if not getattr(request.action, name).strip():
            raise invalid(f"action.{name}: it is blank.")


def path_id(call: Call) -> str:
    """The reservation's id in a call's path."""
    if not call.id:
        raise invalid("The path names no reservation.")
    try:
        return free_text("reservation_id", call.id, _LONGEST_ID)
    except ValidationError as e:
        raise invalid(e.message) from e


# ---- Answers ----


def new_answer(status: int, data: Mapping[str, Any], headers: Mapping[str, str], tenant: str | None) -> Answer:
    """An answer to a request with these headers. With its ids it tells which request it answers, and the trace that
    the request named, or else a new one (protocol: CORRELATION AND TRACING)."""
    answered = {
        "content-type": "application/json",
        "x-request-id": "req_" + os.urandom(12).hex(),
        "x-cycles-trace-id": _trace_id(headers),
        "x-ratelimit-remaining": "-1",  # unlimited
        "x-ratelimit-reset": "0",
    }
    if tenant:
        answered["x-cycles-tenant"] = tenant
    return Answer(status, answered, data)


def error_answer(
    status: int, code: str, message: str, headers: Mapping[str, str], tenant: str | None = None, details: Any = None
) -> Answer:
    """A refusal of a request with these headers, as the protocol's `ErrorResponse`."""
    body: dict[str, Any] = {"error": code, "message": message}
    answer = new_answer(status, body, headers, tenant)
    body["request_id"], body["trace_id"] = answer.headers["x-request-id"], answer.headers["x-cycles-trace-id"]
    if details:
        body["details"] = details
    return answer


def refusal_answer(refusal: Refused, headers: Mapping[str, str], tenant: str | None) -> Answer:
    """A refusal with the status that its code has."""
    status = _STATUSES_BESIDE.get(refusal.code, known_code(refusal.code).status)
    return error_answer(status, refusal.code, refusal.message, headers, tenant, refusal.details)


def _trace_id(headers: Mapping[str, str]) -> str:
    """The trace that a request's headers name. A malformed name counts as none, and so does one of zeros alone."""
    parent = _TRACEPARENT.match(_header(headers, "traceparent") or "")
    if parent is not None:
        return parent.group(1)
    named = _header(headers, "X-Cycles-Trace-Id")
    return named if named is not None and _TRACE_ID.match(named) else _new_trace_id()


def _new_trace_id() -> str:
    """A new trace's id, which is never all zeros."""
    made = os.urandom(16).hex()
    return made if _TRACE_ID.match(made) else _new_trace_id()


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """A header, whatever the case of its name. Most have the usual one, or are not there."""
    if name in headers:
        return headers[name]
    name = name.lower()
    if name not in map(str.lower, headers):
        return None
    return next(value for other, value in headers.items() if other.lower() == name)
