"""The errors of cycles_lite.

Three questions decide the class: was anything sent (`ConfigError`, `ValidationError`: no), is there a usable
answer (`TransportError`, `ResponseError`: no, so the outcome is unknown), and what did the authority say
(`ApiError` and below).

`type(e)(*e.args)` is the same error again, and `e.args` are JSON: that is how pickles, Celery's result backends and
others rebuild errors. So each constructor takes what it knows by position as well, in this order:

    ApiError       message status code details evidence note retry_after request_id trace_id
    ResponseError  message status retry_after request_id trace_id
    the others     message retry_after request_id trace_id

Values at the end that are None are left out of `args`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, NoReturn

from .runtime.log import escaped
from .runtime.words import WordEnum

if TYPE_CHECKING:
    from . import CyclesEvidenceRef


class CyclesError(Exception):
    """The root of everything that cycles_lite raises on its own account."""

    #: Whether the same call, with the same idempotency key, may succeed later.
    is_retryable: bool = False

    def __init__(
        self,
        message: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        #: What went wrong, in words.
        self.message = message
        #: Seconds that the authority asked to wait, from the body's `retry_after_ms` or the `Retry-After` header.
        self.retry_after = retry_after
        #: The server's id for this HTTP request (`X-Request-Id`).
        self.request_id = request_id
        #: The trace that the request belongs to (`X-Cycles-Trace-Id`).
        self.trace_id = trace_id
        self._keep()

    def _keep(self, *known: Any) -> None:
        """Fill `args`: the message, then the values that only this class has, then those of every class."""
        args = [self.message, *known, self.retry_after, self.request_id, self.trace_id]
        while len(args) > 1 and args[-1] is None:
            args.pop()
        self.args = tuple(args)

    def __str__(self) -> str:
        return str(self.message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    if not TYPE_CHECKING:  # a type checker would believe that every attribute exists

        def __getattr__(self, name: str) -> NoReturn:
            instead = f": use {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{instead}")


#: Attributes of the official SDK's errors that have another name here.
_ELSEWHERE = {
    "error_code": "`code`",
    "reason_code": "`code`",
    "retry_after_ms": "`retry_after`, which is in seconds",
    "cause": "`__cause__`",
    "is_budget_exceeded": "`isinstance(e, BudgetExceededError)`, or `code`",
    "is_overdraft_limit_exceeded": "`isinstance(e, OverdraftLimitExceededError)`, or `code`",
    "is_debt_outstanding": "`isinstance(e, DebtOutstandingError)`, or `code`",
    "is_tenant_closed": "`isinstance(e, TenantClosedError)`, or `code`",
    "is_reservation_expired": "`isinstance(e, ReservationExpiredError)`",
    "is_reservation_finalized": "`isinstance(e, ReservationFinalizedError)`",
    "is_idempotency_mismatch": "`isinstance(e, IdempotencyMismatchError)`",
    "is_unit_mismatch": "`isinstance(e, UnitMismatchError)`",
}


class ConfigError(CyclesError, ValueError):
    """The configuration cannot be used. Nothing was sent."""


class ValidationError(CyclesError, ValueError):
    """A value that the protocol refuses. Nothing was sent."""


class GuardFinalizedError(CyclesError, RuntimeError):
    """A guard was used after its end: committed, released, extended, entered or spent on. Nothing was sent."""


class TransportError(CyclesError):
    """There is no usable answer: whether the authority acted on the request is unknown."""

    is_retryable = True

    #: A kept-alive connection was closed by the peer before the answer: a fresh one may serve at once.
    stale: bool = False


class TransportTimeout(TransportError):
    """The answer did not come in time."""


class ResponseError(CyclesError):
    """An answer came that is not the protocol's: whether the authority acted on the request is unknown."""

    is_retryable = True

    def __init__(self, message: str = "", status: int = 0, *known: Any, **named: Any) -> None:
        super().__init__(message, *known, **named)
        #: The HTTP status of the answer.
        self.status = status or 0
        self._keep(status or None)


class ApiError(CyclesError):
    """The authority said no (protocol: `ErrorResponse`).

    An error code that this version does not know becomes this class itself, because codes are an open set.
    """

    def __init__(
        self,
        message: str = "",
        status: int = 0,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        evidence: CyclesEvidenceRef | Mapping[str, Any] | None = None,
        note: str = "",
        *known: Any,
        **named: Any,
    ) -> None:
        super().__init__(message, *known, **named)
        #: The HTTP status; 200 where an answer said `decision: DENY`.
        self.status = status or 0
        #: The protocol's error or reason code; None when the answer named none.
        self.code = code
        #: The answer's `details`, or an empty mapping.
        self.details: dict[str, Any] = dict(details) if isinstance(details, Mapping) else {}
        #: The signed evidence of this refusal, where the server issues it.
        self.evidence = _evidence(evidence)
        self._note = note or ""
        told = self.evidence.to_json() if self.evidence else None
        self._keep(status or None, code, self.details or None, told, note or None)

    def __str__(self) -> str:
        text = "{} ({})".format(self.code or "refused", self.status) + (f": {self.message}" if self.message else "")
        facts = [f"{name}={self.details[name]}" for name in _SHOWN_DETAILS if name in self.details]
        if self._note:
            facts.append(self._note)
        if self.request_id:
            facts.append("request_id=" + self.request_id)
        text = f"{text} [{', '.join(facts)}]" if facts else text
        return escaped(text)  # a server's words are in it


def _evidence(told: CyclesEvidenceRef | Mapping[str, Any] | None) -> CyclesEvidenceRef | None:
    """The reference, also from its JSON, as an error's `args` hold it; None where it is none, because an error must not
    fail to be made."""
    if not told:
        return None
    from . import CyclesEvidenceRef  # by its public name: an error that is made again may be all that a program loads

    try:
        return told if isinstance(told, CyclesEvidenceRef) else CyclesEvidenceRef.from_json(told)
    except ValidationError:
        return None


#: Which of the details a message shows, in this order.
_SHOWN_DETAILS = ("scope", "unit", "requested", "remaining", "requested_unit", "expected_units")


class BudgetDenied(ApiError):
    """The work must not run. Raised for a reservation alone, also when the answer is `decision: DENY`."""

    @property
    def is_retryable(self) -> bool:  # type: ignore[override]
        """Whether the authority said when to ask again (`retry_after`)."""
        return self.retry_after is not None


class BudgetExceededError(BudgetDenied):
    """Too little remains in one of the affected scopes."""


class OverdraftLimitExceededError(BudgetDenied):
    """A scope is over its overdraft limit and takes no new reservation until it is funded."""


class DebtOutstandingError(BudgetDenied):
    """A scope has debt and no overdraft limit to carry it."""


class BudgetFrozenError(BudgetDenied):
    """An operator froze a budget."""


class BudgetClosedError(BudgetDenied):
    """A budget is closed for good."""


class TenantClosedError(BudgetDenied):
    """The tenant is closed."""


class SettlementRejectedError(ApiError):
    """A commit or an event was refused for its budget's or tenant's state. The work *has* run.

    Never a `BudgetDenied`: code that falls back on a denial must not do the work a second time.
    """


class ReservationExpiredError(ApiError):
    """The reservation's lifetime, and for settlements its grace period, has passed."""


class ReservationFinalizedError(ApiError):
    """The reservation was committed or released before."""


class MaxExtensionsExceededError(ApiError):
    """The authority extends this reservation no further."""


class InvalidRequestError(ApiError):
    """The authority refused the request's form."""


class UnitMismatchError(ApiError):
    """The amount is in another unit than the budget or the reservation."""


class IdempotencyMismatchError(ApiError):
    """The idempotency key was used before with another payload."""


class NotFoundError(ApiError):
    """There is no such reservation, budget or evidence."""


class AuthenticationError(ApiError):
    """The API key is missing, unknown, revoked or expired (401)."""


class ForbiddenError(ApiError):
    """The API key belongs to another tenant, or may not do this (403)."""


class RateLimitedError(ApiError):
    """The server throttles; see `retry_after` (429)."""

    is_retryable = True


class ServerError(ApiError):
    """The server failed; whether it acted on the request is unknown (5xx)."""

    is_retryable = True


class Code(NamedTuple):
    """What one of the protocol's error codes means, wherever it is met."""

    #: The class of the error, on every operation; but a denial is one before the work alone (see `error_class`).
    kind: type[ApiError]
    #: The HTTP status that the embedded authority sends with it.
    status: int = 409
    #: The settlements that it refuses for good, so that sending the same one again is of no use: "commit", "event".
    #: Under every other code the spend is kept and tried again (see `settlement.meaning`).
    final_for: tuple[str, ...] = ()
    #: No extension of the reservation can succeed after it: its heartbeat stops (see `background.lease`).
    ends_lease: bool = False

    @property
    def denies(self) -> bool:
        """Whether it denies a reservation for the state of a budget or tenant. A commit or an event that it refuses is
        a `SettlementRejectedError`, because the work has run."""
        return issubclass(self.kind, BudgetDenied)


_BOTH = ("commit", "event")


class ErrorCode(WordEnum):
    """The codes that this version knows, one row for each, in the protocol's order; the set is open.

    A frozen budget refuses a commit for good, but not an event, which an unfrozen budget will take. An expired
    reservation is no refusal of its commit: the spend becomes an event. Errors about the key or the server's state
    (401, 403, 429, 5xx) say nothing about the spend, so they are final for none.
    """

    INVALID_REQUEST = "INVALID_REQUEST", Code(InvalidRequestError, 400, final_for=_BOTH)
    UNAUTHORIZED = "UNAUTHORIZED", Code(AuthenticationError, 401)
    FORBIDDEN = "FORBIDDEN", Code(ForbiddenError, 403)
    NOT_FOUND = "NOT_FOUND", Code(NotFoundError, 404, final_for=_BOTH, ends_lease=True)
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED", Code(BudgetExceededError, final_for=_BOTH)
    BUDGET_FROZEN = "BUDGET_FROZEN", Code(BudgetFrozenError, final_for=("commit",))
    BUDGET_CLOSED = "BUDGET_CLOSED", Code(BudgetClosedError, final_for=_BOTH)
    RESERVATION_EXPIRED = "RESERVATION_EXPIRED", Code(ReservationExpiredError, 410, ends_lease=True)
    RESERVATION_FINALIZED = "RESERVATION_FINALIZED", Code(ReservationFinalizedError, 409, ("commit",), ends_lease=True)
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH", Code(IdempotencyMismatchError, final_for=_BOTH)
    UNIT_MISMATCH = "UNIT_MISMATCH", Code(UnitMismatchError, 400, final_for=_BOTH)
    OVERDRAFT_LIMIT_EXCEEDED = "OVERDRAFT_LIMIT_EXCEEDED", Code(OverdraftLimitExceededError, final_for=_BOTH)
    DEBT_OUTSTANDING = "DEBT_OUTSTANDING", Code(DebtOutstandingError, final_for=_BOTH)
    MAX_EXTENSIONS_EXCEEDED = "MAX_EXTENSIONS_EXCEEDED", Code(MaxExtensionsExceededError, ends_lease=True)
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED", Code(RateLimitedError, 429)
    TENANT_CLOSED = "TENANT_CLOSED", Code(TenantClosedError, final_for=_BOTH, ends_lease=True)
    INTERNAL_ERROR = "INTERNAL_ERROR", Code(ServerError, 500)

    _value_: str
    #: What the code means.
    row: Code

    def __new__(cls, word: str, row: Code) -> ErrorCode:
        member = str.__new__(cls, word)
        member._value_, member.row = word, row
        return member


#: The rows by their codes: whatever asks what a code means looks here.
CODES: dict[str, Code] = {code.value: code.row for code in ErrorCode}

#: What a code means that this version does not know: a refusal that denies, settles and ends nothing.
_UNKNOWN = Code(ApiError)

#: The statuses that decide the class alone, whatever code a proxy or a newer server puts beside them.
_BY_STATUS = {row.status: row.kind for row in CODES.values() if row.status in (401, 403, 410, 429)}


def known_code(code: str | None) -> Code:
    """The row of a code; for one that is not in the table, a row that says so."""
    return CODES.get(code or "", _UNKNOWN)


def error_class(status: int, code: str | None, *, reserves: bool, settles: bool) -> type[ApiError]:
    """The class for an error answer: first by what the status alone decides, then by the code. `reserves` and `settles`
    say what the operation does: before the work a denial is a `BudgetDenied`, after it a `SettlementRejectedError`, and
    on any other operation a plain refusal."""
    if status >= 500:
        return ServerError
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    row = known_code(code)
    if row.denies and not reserves:
        return SettlementRejectedError if settles else ApiError
    return row.kind
