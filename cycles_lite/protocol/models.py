"""The protocol's requests and responses as frozen dataclasses (protocol: `components.schemas`).

Constructors raise `ValidationError` for what the protocol refuses. Objects read from an answer carry what a newer
server added: unknown fields in `extra`, unknown enumeration values as plain strings.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any, ClassVar, Mapping

from ..errors import ValidationError
from .checks import new_idempotency_key
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
    Text,
    model,
    of,
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

_DECISION = of(OneOf(Decision))
_POLICY = of(OneOf(CommitOveragePolicy))
_STATUS = of(OneOf(ReservationStatus))
_KEY = of(Key(256))
_SERVER_TEXT = of(SERVER_TEXT)
_REASON = of(FreeText(128))
_METADATA = of(JSON)
_SCOPES = of(ListOf(SERVER_TEXT))
_COUNT = of(COUNT)
_SUBJECT = of(Object(Subject), on_the_wire=True)
_ACTION = of(Object(Action))
_AMOUNT = of(Object(Amount))
_METRICS = of(Object(CyclesMetrics))
_CAPS = of(Object(Caps))
_EVIDENCE = of(Object(CyclesEvidenceRef))


# ---- Requests ----
# An idempotency key is made when the request is, so that sending the same object twice is a replay.


@model
class DecisionRequest(Model):
    """Ask what a reservation would be told, without one. The subject's missing levels come from the configuration."""

    action: Action = field(metadata=_ACTION)
    estimate: Amount = field(metadata=_AMOUNT)
    subject: Subject | None = field(default=None, metadata=_SUBJECT)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)


@model
class ReservationCreateRequest(Model):
    """Hold an estimate before an action.

    `ttl_ms` is 1000..86400000 (the server's default is 60000), `grace_period_ms` 0..60000 (5000): commits are accepted
    until both have passed. What is left out is the server's default. With `dry_run` nothing is held.
    """

    action: Action = field(metadata=_ACTION)
    estimate: Amount = field(metadata=_AMOUNT)
    subject: Subject | None = field(default=None, metadata=_SUBJECT)
    ttl_ms: int | None = field(default=None, metadata=of(Integer(1000, 86_400_000)))
    grace_period_ms: int | None = field(default=None, metadata=of(Integer(0, 60_000)))
    overage_policy: CommitOveragePolicy | None = field(default=None, metadata=_POLICY)
    dry_run: bool = field(default=False, metadata=of(BOOLEAN))
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)


@model
class CommitRequest(Model):
    """Settle a reservation with what the action really cost, in the reservation's unit."""

    actual: Amount = field(metadata=_AMOUNT)
    metrics: CyclesMetrics | None = field(default=None, metadata=_METRICS)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)

    @classmethod
    def of_spend(cls, actual: Amount, **decoration: Any) -> tuple[CommitRequest, list[ValidationError]]:
        """A request for spend that must be settled, whatever its metrics and metadata are: those that cannot be sent
        are left out, and what was wrong with them is told."""
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


@model
class ReleaseRequest(Model):
    """Give a reservation back unused; `reason` is at most 256 characters."""

    reason: str | None = field(default=None, metadata=of(FreeText(256)))
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)


@model
class ReservationExtendRequest(Model):
    """Move a reservation's expiry outward by 1..86400000 ms, counted from the current expiry and not from now."""

    extend_by_ms: int = field(metadata=of(Integer(1, 86_400_000)))
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)


@model
class EventCreateRequest(Model):
    """Record spend that no reservation preceded. `client_time_ms` is advisory."""

    action: Action = field(metadata=_ACTION)
    actual: Amount = field(metadata=_AMOUNT)
    subject: Subject | None = field(default=None, metadata=_SUBJECT)
    overage_policy: CommitOveragePolicy | None = field(default=None, metadata=_POLICY)
    metrics: CyclesMetrics | None = field(default=None, metadata=_METRICS)
    client_time_ms: int | None = field(default=None, metadata=_COUNT)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    idempotency_key: str = field(default_factory=new_idempotency_key, metadata=_KEY)


_LIMIT = of(Integer(1, 200))
_INSTANT = of(FreeText(64))


@model
class ReservationListRequest(Levels):
    """Filters of a reservation list (protocol: `GET /v1/reservations`).

    The windows are ISO 8601 date-times with an offset, both ends included, blank where unset: `from_`/`to` on
    creation, `expires_*` on expiry, `finalized_*` on commit or release. `include` names heavy fields to send along:
    metadata, committed_metadata, evidence. `limit` is 1..200 a page.
    """

    idempotency_key: str | None = field(default=None, metadata=_KEY)
    status: ReservationStatus | None = field(default=None, metadata=_STATUS)
    from_: str | None = field(default=None, metadata=of(FreeText(64), "from"))
    to: str | None = field(default=None, metadata=_INSTANT)
    expires_from: str | None = field(default=None, metadata=_INSTANT)
    expires_to: str | None = field(default=None, metadata=_INSTANT)
    finalized_from: str | None = field(default=None, metadata=_INSTANT)
    finalized_to: str | None = field(default=None, metadata=_INSTANT)
    sort_by: str | None = field(default=None, metadata=of(Text(64)))
    sort_dir: SortDirection | None = field(default=None, metadata=of(OneOf(SortDirection)))
    include: tuple[str, ...] | None = field(default=None, metadata=of(ListOf(Text(64))))
    limit: int | None = field(default=None, metadata=_LIMIT)
    cursor: str | None = field(default=None, metadata=_SERVER_TEXT)


@model
class BalanceRequest(Levels):
    """Filters of a balance query; the authority needs at least one level. `limit` is 1..200 a page."""

    include_children: bool = field(default=False, metadata=of(BOOLEAN))
    limit: int | None = field(default=None, metadata=_LIMIT)
    cursor: str | None = field(default=None, metadata=_SERVER_TEXT)


# ---- Responses ----


class Response(Model):
    """What every answer carries beside its body: the headers, and what they say."""

    #: The answer's headers, names in lower case.
    headers: ClassVar[Mapping[str, str]] = {}
    #: The answer's bytes, as they came.
    body: ClassVar[bytes] = b""
    #: When the attempt that was answered was sent, and when its answer was there: monotonic milliseconds, if known.
    attempt_ms: ClassVar[tuple[float | None, float | None]] = (None, None)

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


@model
class Balance(Model):
    """The state of one budget: `remaining` = allocated - spent - reserved - debt, negative in overdraft."""

    scope: str = field(metadata=_SERVER_TEXT)
    scope_path: str = field(metadata=_SERVER_TEXT)
    remaining: SignedAmount = field(metadata=of(Object(SignedAmount)))
    reserved: Amount | None = field(default=None, metadata=_AMOUNT)
    spent: Amount | None = field(default=None, metadata=_AMOUNT)
    debt: Amount | None = field(default=None, metadata=_AMOUNT)
    allocated: Amount | None = field(default=None, metadata=_AMOUNT)
    overdraft_limit: Amount | None = field(default=None, metadata=_AMOUNT)
    is_over_limit: bool = field(default=False, metadata=of(BOOLEAN))


_BALANCES = of(ListOf(Object(Balance)))


@model
class DecisionResponse(_Decided):
    """The answer to `decide`; DENY is an answer here, not an error."""

    decision: Decision = field(metadata=_DECISION)
    caps: Caps | None = field(default=None, metadata=_CAPS)
    reason_code: str | None = field(default=None, metadata=_REASON)
    retry_after_ms: int | None = field(default=None, metadata=_COUNT)
    affected_scopes: tuple[str, ...] = field(default=(), metadata=_SCOPES)
    cycles_evidence: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)


@model
class ReservationCreateResponse(_Decided):
    """The answer to a reservation. Times are server time in milliseconds since the epoch."""

    decision: Decision = field(metadata=_DECISION)
    affected_scopes: tuple[str, ...] = field(metadata=_SCOPES)
    reservation_id: str | None = field(default=None, metadata=_SERVER_TEXT)
    reserved: Amount | None = field(default=None, metadata=_AMOUNT)
    expires_at_ms: int | None = field(default=None, metadata=_COUNT)
    remaining_ttl_ms: int | None = field(default=None, metadata=_COUNT)
    scope_path: str | None = field(default=None, metadata=_SERVER_TEXT)
    caps: Caps | None = field(default=None, metadata=_CAPS)
    balances: tuple[Balance, ...] = field(default=(), metadata=_BALANCES)
    reason_code: str | None = field(default=None, metadata=_REASON)
    retry_after_ms: int | None = field(default=None, metadata=_COUNT)
    cycles_evidence: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)


@model
class CommitResponse(Response):
    """A settled reservation. `charged` may be less than the actual cost, where the policy capped it."""

    status: str = field(metadata=_SERVER_TEXT)
    charged: Amount = field(metadata=_AMOUNT)
    released: Amount | None = field(default=None, metadata=_AMOUNT)
    balances: tuple[Balance, ...] = field(default=(), metadata=_BALANCES)
    cycles_evidence: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)


@model
class ReleaseResponse(Response):
    """A reservation given back."""

    status: str = field(metadata=_SERVER_TEXT)
    released: Amount = field(metadata=_AMOUNT)
    balances: tuple[Balance, ...] = field(default=(), metadata=_BALANCES)
    cycles_evidence: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)


@model
class ReservationExtendResponse(Response):
    """A reservation that lives longer."""

    status: str = field(metadata=_SERVER_TEXT)
    expires_at_ms: int = field(metadata=_COUNT)
    remaining_ttl_ms: int | None = field(default=None, metadata=_COUNT)
    balances: tuple[Balance, ...] = field(default=(), metadata=_BALANCES)


@model
class EventCreateResponse(Response):
    """Recorded spend; `charged` is there when the policy capped it."""

    status: str = field(metadata=_SERVER_TEXT)
    event_id: str = field(metadata=_SERVER_TEXT)
    charged: Amount | None = field(default=None, metadata=_AMOUNT)
    balances: tuple[Balance, ...] = field(default=(), metadata=_BALANCES)


@model
class ReservationEvidence(Model):
    """The evidence of a reservation's operations."""

    reserve: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)
    commit: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)
    release: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)


@model
class ReservationSummary(Model):
    """One reservation in a list. Metadata and evidence are there only where `include` asked for them."""

    reservation_id: str = field(metadata=_SERVER_TEXT)
    status: ReservationStatus = field(metadata=_STATUS)
    subject: Subject = field(metadata=of(Object(Subject)))
    action: Action = field(metadata=_ACTION)
    reserved: Amount = field(metadata=_AMOUNT)
    created_at_ms: int = field(metadata=_COUNT)
    expires_at_ms: int = field(metadata=_COUNT)
    scope_path: str = field(metadata=_SERVER_TEXT)
    affected_scopes: tuple[str, ...] = field(metadata=_SCOPES)
    idempotency_key: str | None = field(default=None, metadata=_KEY)
    committed: Amount | None = field(default=None, metadata=_AMOUNT)
    finalized_at_ms: int | None = field(default=None, metadata=_COUNT)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    committed_metadata: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    evidence: ReservationEvidence | None = field(default=None, metadata=of(Object(ReservationEvidence)))


@model
class ReservationDetail(ReservationSummary, Response):
    """One reservation by its id, with everything that is known of it."""


@model
class ReservationListResponse(Response):
    """A page of reservations; `next_cursor` leads to the next where `has_more`."""

    reservations: tuple[ReservationSummary, ...] = field(metadata=of(ListOf(Object(ReservationSummary))))
    next_cursor: str | None = field(default=None, metadata=_SERVER_TEXT)
    has_more: bool = field(default=False, metadata=of(BOOLEAN))


@model
class BalanceResponse(Response):
    """A page of balances; `next_cursor` leads to the next where `has_more`."""

    balances: tuple[Balance, ...] = field(metadata=_BALANCES)
    next_cursor: str | None = field(default=None, metadata=_SERVER_TEXT)
    has_more: bool = field(default=False, metadata=of(BOOLEAN))


@model
class CyclesEvidenceEnvelope(Response):
    """A signed statement of what the authority answered (verified by other tools: nothing is checked here)."""

    schema_version: str = field(metadata=_SERVER_TEXT)
    artifact_type: str = field(metadata=_SERVER_TEXT)
    server_id: str = field(metadata=_SERVER_TEXT)
    signer_did: str = field(metadata=_SERVER_TEXT)
    issued_at_ms: int = field(metadata=of(SIGNED))
    payload: Mapping[str, Any] = field(metadata=_METADATA)
    evidence_id: str = field(metadata=_SERVER_TEXT)
    signature: str = field(metadata=_SERVER_TEXT)
    trace_id: str | None = field(default=None, metadata=_SERVER_TEXT)  # pyright: ignore[reportIncompatibleMethodOverride]


@model
class CyclesEvidenceJwk(Model):
    """One Ed25519 public key, valid from `cycles_nbf_ms` (included) to `cycles_exp_ms` (excluded)."""

    kty: str = field(metadata=_SERVER_TEXT)
    crv: str = field(metadata=_SERVER_TEXT)
    x: str = field(metadata=_SERVER_TEXT)
    kid: str = field(metadata=_SERVER_TEXT)
    cycles_nbf_ms: int = field(metadata=of(SIGNED))
    alg: str | None = field(default=None, metadata=_SERVER_TEXT)
    cycles_exp_ms: int | None = field(default=None, metadata=of(SIGNED))
    status: str | None = field(default=None, metadata=_SERVER_TEXT)


@model
class CyclesEvidenceJwks(Response):
    """The keys that evidence is signed with."""

    keys: tuple[CyclesEvidenceJwk, ...] = field(metadata=of(ListOf(Object(CyclesEvidenceJwk))))


@model
class ErrorResponse(Model):
    """The body of an error answer."""

    error: str = field(metadata=_SERVER_TEXT)
    message: str = field(metadata=_SERVER_TEXT)
    request_id: str | None = field(default=None, metadata=_SERVER_TEXT)
    trace_id: str | None = field(default=None, metadata=_SERVER_TEXT)
    details: Mapping[str, Any] | None = field(default=None, metadata=_METADATA)
    cycles_evidence: CyclesEvidenceRef | None = field(default=None, metadata=_EVIDENCE)
