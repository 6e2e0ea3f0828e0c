"""Answers as they leave the authority: status, correlation headers, and errors as the protocol's ErrorResponse."""

from __future__ import annotations

import os
import re
from typing import Any, Mapping, NamedTuple

from ..errors import known_code
from ..protocol.wire import Answer, dumps
from .requests import find_header
from .rules import Refusal

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\Z")
_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


class Correlation(NamedTuple):
    """The ids that an answer carries (protocol: CORRELATION AND TRACING)."""

    request_id: str
    trace_id: str


def correlate(headers: Mapping[str, str]) -> Correlation:
    """New ids for a request, except where it names its trace; a malformed name counts as none."""
    fresh = os.urandom(28).hex()
    return Correlation("req_" + fresh[32:], _given_trace(headers) or _nonzero(fresh[:32]))


def success(status: int, body: bytes, ids: Correlation, tenant: str | None) -> Answer:
    return Answer(status, _headers(ids, tenant), body)


def new_answer(status: int, data: Mapping[str, Any], headers: Mapping[str, str], tenant: str | None) -> Answer:
    """An answer to a request with these headers, for what is served beside the protocol."""
    return success(status, dumps(data), correlate(headers), tenant)


def error_answer(status: int, code: str, message: str, headers: Mapping[str, str]) -> Answer:
    """A refusal of a request with these headers, for what is refused before the protocol."""
    return error(Refusal(code, message), correlate(headers), None)._replace(status=status)


def error(refusal: Refusal, ids: Correlation, tenant: str | None) -> Answer:
    """A refusal as an `ErrorResponse`."""
    body: dict[str, Any] = {
        "error": refusal.code,
        "message": refusal.message,
        "request_id": ids.request_id,
        "trace_id": ids.trace_id,
    }
    if refusal.details:
        body["details"] = refusal.details
    return Answer(known_code(refusal.code).status, _headers(ids, tenant), dumps(body))


def _headers(ids: Correlation, tenant: str | None) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "x-request-id": ids.request_id,
        "x-cycles-trace-id": ids.trace_id,
        "x-ratelimit-remaining": "-1",  # unlimited
        "x-ratelimit-reset": "0",
    }
    if tenant:
        headers["x-cycles-tenant"] = tenant
    return headers


def _given_trace(headers: Mapping[str, str]) -> str | None:
    parent = _TRACEPARENT.match(find_header(headers, "traceparent") or "")
    if parent is not None and parent.group(1) != _NO_TRACE and parent.group(2) != _NO_SPAN:
        return parent.group(1)
    flat = find_header(headers, "x-cycles-trace-id") or ""
    return flat if _TRACE_ID.match(flat) is not None and flat != _NO_TRACE else None


def _nonzero(trace_id: str) -> str:
    while trace_id == _NO_TRACE:
        trace_id = os.urandom(16).hex()
    return trace_id
