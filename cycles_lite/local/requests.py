"""What a request must be before it reaches the ledger (design: section 9, Validation): 400, then 403."""

from __future__ import annotations

from typing import Any, Mapping

from ..errors import ValidationError
from ..protocol.checks import free_text, shown
from ..protocol.models import DecisionRequest, EventCreateRequest, ReservationCreateRequest
from ..protocol.values import Subject
from ..protocol.wire import IDEMPOTENCY_KEY_HEADER, Call
from ..transport.handlers import is_from_handler
from . import scopes
from .rules import Refusal, Refused, invalid

#: The requests that name a subject.
_WITH_SUBJECT = (ReservationCreateRequest, DecisionRequest, EventCreateRequest)

#: The longest id in a path (protocol: ReservationId).
_LONGEST_ID = 128


def body(call: Call) -> Any:
    """The request in a call's body, proven legal, with its key the same as the header's."""
    model = call.operation.request
    assert model is not None  # the dispatch table pairs operations with what they take
    try:
        request: Any = model.parse(call.data)
    except ValidationError as e:
        if is_from_handler(e):
            raise
        raise invalid(e.message) from e
    if isinstance(request, _WITH_SUBJECT):
        _demand_legal(request)
    header = find_header(call.headers, IDEMPOTENCY_KEY_HEADER.lower())
    if header is not None and header != request.idempotency_key:
        raise invalid(f"{IDEMPOTENCY_KEY_HEADER} and the body's idempotency_key differ.")
    return request


def path_id(call: Call) -> str:
    """The reservation's id in a call's path."""
    if not call.id:
        raise invalid("The path names no reservation.")
    try:
        return free_text("reservation_id", call.id, _LONGEST_ID)
    except ValidationError as e:
        raise invalid(e.message) from e


def find_header(headers: Mapping[str, str], name: str) -> str | None:
    """A header by its lower-case name."""
    for given, value in headers.items():
        if given.lower() == name:
            return value
    return None


def subject_tenant(subject: Subject | None, tenant: str | None) -> str:
    """The tenant that a request acts for: the caller's, which the subject must not contradict, else the subject's.

    A subject without a tenant names no scope that could have a budget, so that it needs no refusal of its own.
    """
    named = None if subject is None else subject.tenant
    if tenant is not None and named not in (None, tenant):
        raise forbidden(named)
    effective = named if tenant is None else tenant
    if effective is not None and not scopes.is_tenant_id(effective):
        raise invalid(f"tenant: {shown(effective)} is not 3 to 64 of the characters a-z, 0-9 and -.")
    return effective or ""


def query_tenant(named: str | None, tenant: str | None) -> str | None:
    """The tenant that a read is limited to; None for all. A blank one is nobody's, and has nothing."""
    if tenant is not None and named not in (None, tenant) and named.strip():
        raise forbidden(named)
    return tenant if named is None else named


def forbidden(named: str | None) -> Refused:
    return Refused(Refusal("FORBIDDEN", f"You may not act for tenant {shown(named)}.", {"tenant": named}))


def _demand_legal(request: Any) -> None:
    level = scopes.illegal_level(request.subject)
    if level is not None:
        value = getattr(request.subject, level)
        raise invalid(f"subject.{level}: {shown(value)} has other characters than a-z, A-Z, 0-9, _, . and -.")
    for name in ("kind", "name"):
        if not getattr(request.action, name).strip():
            raise invalid(f"action.{name}: it is blank.")
