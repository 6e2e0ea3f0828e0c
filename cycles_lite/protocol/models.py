"""The protocol's requests and responses as frozen dataclasses (protocol: `components.schemas`).

Constructors raise `ValidationError` for what the protocol refuses. Objects read from an answer carry what a newer
server added: unknown fields in `extra`, unknown enumeration values as plain strings.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Mapping

from ..errors import ValidationError
from .fields import (
    BOOLEAN,
    COUNT,
    JSON,
    SERVER_TEXT,
    SIGNED,
    FreeText,
    Integer,
    Key,
    ListOf,
    Model,
    Object,
    OneOf,
    Quantity,
    Text,
    field,
    new_idempotency_key,
)
from .values import (
    Action,
    Amount,
    Caps,
    CommitOveragePolicy,
    CyclesEvidenceRef,
    CyclesMetrics,
    Decision,
    Levels,
    ReservationStatus,
    SignedAmount,
    SortDirection,
    Subject,
)

_DECISION = OneOf(Decision)
_POLICY = OneOf(CommitOveragePolicy)
_STATUS = OneOf(ReservationStatus)
_KEY = Key(256)
_REASON = FreeText(128)
_SCOPES = ListOf(SERVER_TEXT)
_ACTION = Object(Action)
_AMOUNT = Quantity(Amount)
_METRICS = Object(CyclesMetrics)
_CAPS = Object(Caps)
_EVIDENCE = Object(CyclesEvidenceRef)


# ---- Requests ----
# An idempotency key is made when the request is, so that sending the same object twice is a replay.


class DecisionRequest(Model):
    """Ask what a reservation would be told, without one. The subject's missing levels come from the configuration."""

    action: Action = field(_ACTION)
    estimate: Amount = field(_AMOUNT)
    subject: Subject | None = field(Object(Subject), default=None, on_the_wire=True)
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)


class ReservationCreateRequest(Model):
    """Hold an estimate before an action.

    `ttl_ms` is 1000..86400000 (the server's default is 60000), `grace_period_ms` 0..60000 (5000): commits are accepted
    until both have passed. What is left out is the server's default. With `dry_run` nothing is held.
    """

    action: Action = field(_ACTION)
    estimate: Amount = field(_AMOUNT)
    subject: Subject | None = field(Object(Subject), default=None, on_the_wire=True)
    ttl_ms: int | None = field(Integer(1000, 86_400_000), default=None)
    grace_period_ms: int | None = field(Integer(0, 60_000), default=None)
    overage_policy: CommitOveragePolicy | None = field(_POLICY, default=None)
    dry_run: bool = field(BOOLEAN, default=False)
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)


class CommitRequest(Model):
    """Settle a reservation with what the action really cost, in the reservation's unit."""

    actual: Amount = field(_AMOUNT)
    metrics: CyclesMetrics | None = field(_METRICS, default=None)
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)

    @classmethod
    def of_spend(cls, actual: Amount, **decoration: Any) -> tuple[CommitRequest, list[ValidationError]]:
        """A request for spend that must be settled, whatever its metrics and metadata are. Those that cannot be sent
        are left out, and the errors about them are returned beside the request."""
        faults: list[ValidationError] = []
        try:
            return cls(actual=actual, **decoration), faults
        except ValidationError:
            for entry in cls.layout():
                if entry.name in decoration:
                    try:
                        decoration[entry.name] = entry.check(decoration[entry.name])
                    except ValidationError as e:
                        faults.append(e)
                        del decoration[entry.name]
        return cls(actual=actual, **decoration), faults


class ReleaseRequest(Model):
    """Give a reservation back unused; `reason` is at most 256 characters."""

    reason: str | None = field(FreeText(256), default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)


class ReservationExtendRequest(Model):
    """Move a reservation's expiry outward by 1..86400000 ms, counted from the current expiry and not from now."""

    extend_by_ms: int = field(Integer(1, 86_400_000))
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)


class EventCreateRequest(Model):
    """Record spend that no reservation preceded. `client_time_ms` is advisory."""

    action: Action = field(_ACTION)
    actual: Amount = field(_AMOUNT)
    subject: Subject | None = field(Object(Subject), default=None, on_the_wire=True)
    overage_policy: CommitOveragePolicy | None = field(_POLICY, default=None)
    metrics: CyclesMetrics | None = field(_METRICS, default=None)
    client_time_ms: int | None = field(COUNT, default=None)
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    idempotency_key: str = field(_KEY, default_factory=new_idempotency_key)


_LIMIT = Integer(1, 200)
_INSTANT = FreeText(64)


class ReservationListRequest(Levels):
    """Filters of a reservation list (protocol: `GET /v1/reservations`).

    The windows are ISO 8601 date-times with an offset, both ends included, blank where unset: `from_`/`to` on
    creation, `expires_*` on expiry, `finalized_*` on commit or release. `include` names heavy fields to send along:
    metadata, committed_metadata, evidence. `limit` is 1..200 a page.
    """

    idempotency_key: str | None = field(_KEY, default=None)
    status: ReservationStatus | None = field(_STATUS, default=None)
    from_: str | None = field(FreeText(64), default=None, json_name="from")
    to: str | None = field(_INSTANT, default=None)
    expires_from: str | None = field(_INSTANT, default=None)
    expires_to: str | None = field(_INSTANT, default=None)
    finalized_from: str | None = field(_INSTANT, default=None)
    finalized_to: str | None = field(_INSTANT, default=None)
    sort_by: str | None = field(Text(64), default=None)
    sort_dir: SortDirection | None = field(OneOf(SortDirection), default=None)
    include: tuple[str, ...] | None = field(ListOf(Text(64)), default=None)
    limit: int | None = field(_LIMIT, default=None)
    cursor: str | None = field(SERVER_TEXT, default=None)


class BalanceRequest(Levels):
    """Filters of a balance query; the authority needs at least one level. `limit` is 1..200 a page."""

    include_children: bool = field(BOOLEAN, default=False)
    limit: int | None = field(_LIMIT, default=None)
    cursor: str | None = field(SERVER_TEXT, default=None)


# ---- Responses ----


class Response(Model):
    """The base of all responses, with the headers of the answer and what they say."""

    #: The answer's headers, names in lower case.
    headers: ClassVar[Mapping[str, str]] = {}
    #: The answer that it was read from; None for a response that was made otherwise.
    answer: ClassVar[Any] = None
    #: When the attempt was sent and when its answer had come, in monotonic milliseconds; None where that is unknown.
    attempt_ms: ClassVar[tuple[float | None, float | None]] = (None, None)

    @property
    def body(self) -> bytes:
        """The answer's bytes, as they came."""
        return self.answer.body if self.answer is not None else b""

    @property
    def request_id(self) -> str | None:
        """The server's id for this HTTP request (`X-Request-Id`)."""
        return self.headers.get("x-request-id")

    @property
    def trace_id(self) -> str | None:
        """The trace that this request belongs to (`X-Cycles-Trace-Id`)."""
        return self.headers.get("x-cycles-trace-id")

    @property
    def rate_limit_remaining(self) -> int | None:
        """Requests left in the current window; -1 means unlimited (`X-RateLimit-Remaining`)."""
        return _header_integer(self.headers.get("x-ratelimit-remaining"))

    @property
    def rate_limit_reset(self) -> int | None:
        """When the window ends, in seconds since the epoch (`X-RateLimit-Reset`)."""
        return _header_integer(self.headers.get("x-ratelimit-reset"))


def _header_integer(value: str | None) -> int | None:
    return int(value) if value and re.match(r"-?[0-9]{1,18}\Z", value) else None


class _Decided(Response):
    """An answer that allows or denies."""

    decision: Decision

    @property
    def is_allowed(self) -> bool:
        """Whether the work may run. A decision that this version does not know allows nothing."""
        return self.decision is Decision.ALLOW or self.decision is Decision.ALLOW_WITH_CAPS


class Balance(Model):
    """The state of one budget: `remaining` = allocated - spent - reserved - debt, negative in overdraft."""

    scope: str = field(SERVER_TEXT)
    scope_path: str = field(SERVER_TEXT)
    remaining: SignedAmount = field(Quantity(SignedAmount))
    reserved: Amount | None = field(_AMOUNT, default=None)
    spent: Amount | None = field(_AMOUNT, default=None)
    debt: Amount | None = field(_AMOUNT, default=None)
    allocated: Amount | None = field(_AMOUNT, default=None)
    overdraft_limit: Amount | None = field(_AMOUNT, default=None)
    is_over_limit: bool = field(BOOLEAN, default=False)

    @property
    def fraction_left(self) -> float | None:
        """What remains as a part of what was allocated, negative in overdraft; None where nothing was allocated, or
        the server does not tell how much."""
        return self.remaining.amount / self.allocated.amount if self.allocated and self.allocated.amount else None


_BALANCES = ListOf(Object(Balance))


class DecisionResponse(_Decided):
    """The answer to `decide`; DENY is an answer here, not an error."""

    decision: Decision = field(_DECISION)
    caps: Caps | None = field(_CAPS, default=None)
    reason_code: str | None = field(_REASON, default=None)
    retry_after_ms: int | None = field(COUNT, default=None)
    affected_scopes: tuple[str, ...] = field(_SCOPES, default=())
    cycles_evidence: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)


class ReservationCreateResponse(_Decided):
    """The answer to a reservation. Times are server time in milliseconds since the epoch."""

    decision: Decision = field(_DECISION)
    affected_scopes: tuple[str, ...] = field(_SCOPES)
    reservation_id: str | None = field(SERVER_TEXT, default=None)
    reserved: Amount | None = field(_AMOUNT, default=None)
    expires_at_ms: int | None = field(COUNT, default=None)
    remaining_ttl_ms: int | None = field(COUNT, default=None)
    scope_path: str | None = field(SERVER_TEXT, default=None)
    caps: Caps | None = field(_CAPS, default=None)
    balances: tuple[Balance, ...] = field(_BALANCES, default=())
    reason_code: str | None = field(_REASON, default=None)
    retry_after_ms: int | None = field(COUNT, default=None)
    cycles_evidence: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)


class CommitResponse(Response):
    """A settled reservation. `charged` may be less than the actual cost, where the policy capped it."""

    status: str = field(SERVER_TEXT)
    charged: Amount = field(_AMOUNT)
    released: Amount | None = field(_AMOUNT, default=None)
    balances: tuple[Balance, ...] = field(_BALANCES, default=())
    cycles_evidence: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)


class ReleaseResponse(Response):
    """A reservation given back."""

    status: str = field(SERVER_TEXT)
    released: Amount = field(_AMOUNT)
    balances: tuple[Balance, ...] = field(_BALANCES, default=())
    cycles_evidence: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)


class ReservationExtendResponse(Response):
    """A reservation that lives longer."""

    status: str = field(SERVER_TEXT)
    expires_at_ms: int = field(COUNT)
    remaining_ttl_ms: int | None = field(COUNT, default=None)
    balances: tuple[Balance, ...] = field(_BALANCES, default=())


class EventCreateResponse(Response):
    """Recorded spend; `charged` is there when the policy capped it."""

    status: str = field(SERVER_TEXT)
    event_id: str = field(SERVER_TEXT)
    charged: Amount | None = field(_AMOUNT, default=None)
    balances: tuple[Balance, ...] = field(_BALANCES, default=())


class ReservationEvidence(Model):
    """The evidence of a reservation's operations."""

    reserve: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)
    commit: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)
    release: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)


class ReservationSummary(Model):
    """One reservation in a list. Metadata and evidence are there only where `include` asked for them."""

    reservation_id: str = field(SERVER_TEXT)
    status: ReservationStatus = field(_STATUS)
    subject: Subject = field(Object(Subject))
    action: Action = field(_ACTION)
    reserved: Amount = field(_AMOUNT)
    created_at_ms: int = field(COUNT)
    expires_at_ms: int = field(COUNT)
    scope_path: str = field(SERVER_TEXT)
    affected_scopes: tuple[str, ...] = field(_SCOPES)
    idempotency_key: str | None = field(_KEY, default=None)
    committed: Amount | None = field(_AMOUNT, default=None)
    finalized_at_ms: int | None = field(COUNT, default=None)
    metadata: Mapping[str, Any] | None = field(JSON, default=None)
    committed_metadata: Mapping[str, Any] | None = field(JSON, default=None)
    evidence: ReservationEvidence | None = field(Object(ReservationEvidence), default=None)


class ReservationDetail(ReservationSummary, Response):
    """One reservation by its id, with everything that is known of it."""


class ReservationListResponse(Response):
    """A page of reservations; `next_cursor` leads to the next where `has_more`."""

    reservations: tuple[ReservationSummary, ...] = field(ListOf(Object(ReservationSummary)))
    next_cursor: str | None = field(SERVER_TEXT, default=None)
    has_more: bool = field(BOOLEAN, default=False)


class BalanceResponse(Response):
    """A page of balances; `next_cursor` leads to the next where `has_more`."""

    balances: tuple[Balance, ...] = field(_BALANCES)
    next_cursor: str | None = field(SERVER_TEXT, default=None)
    has_more: bool = field(BOOLEAN, default=False)


class CyclesEvidenceEnvelope(Response):
    """A signed statement of what the authority answered (verified by other tools: nothing is checked here)."""

    schema_version: str = field(SERVER_TEXT)
    artifact_type: str = field(SERVER_TEXT)
    server_id: str = field(SERVER_TEXT)
    signer_did: str = field(SERVER_TEXT)
    issued_at_ms: int = field(SIGNED)
    payload: Mapping[str, Any] = field(JSON)
    evidence_id: str = field(SERVER_TEXT)
    signature: str = field(SERVER_TEXT)
    trace_id: str | None = field(SERVER_TEXT, default=None)  # pyright: ignore[reportIncompatibleMethodOverride]


class CyclesEvidenceJwk(Model):
    """One Ed25519 public key, valid from `cycles_nbf_ms` (included) to `cycles_exp_ms` (excluded)."""

    kty: str = field(SERVER_TEXT)
    crv: str = field(SERVER_TEXT)
    x: str = field(SERVER_TEXT)
    kid: str = field(SERVER_TEXT)
    cycles_nbf_ms: int = field(SIGNED)
    alg: str | None = field(SERVER_TEXT, default=None)
    cycles_exp_ms: int | None = field(SIGNED, default=None)
    status: str | None = field(SERVER_TEXT, default=None)


class CyclesEvidenceJwks(Response):
    """The keys that evidence is signed with."""

    keys: tuple[CyclesEvidenceJwk, ...] = field(ListOf(Object(CyclesEvidenceJwk)))


class ErrorResponse(Model):
    """The body of an error answer."""

    error: str = field(SERVER_TEXT)
    message: str = field(SERVER_TEXT)
    request_id: str | None = field(SERVER_TEXT, default=None)
    trace_id: str | None = field(SERVER_TEXT, default=None)
    details: Mapping[str, Any] | None = field(JSON, default=None)
    cycles_evidence: CyclesEvidenceRef | None = field(_EVIDENCE, default=None)
