"""The small, blocking Python client of Cycles, the budget authority for agents, and an authority in one file.

    client = CyclesClient.from_env()
    with client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o")) as guard:
        guard.commit(Amount.tokens(742))

Work      with_cycles, @cycles, CyclesClient.reserve and its ReservationGuard, current_guard, Settlement
Protocol  CyclesClient's other methods; each takes a request (CommitRequest) and returns an answer (CommitResponse)
Values    Amount, Unit, Subject, Action, Caps, CyclesMetrics, CommitOveragePolicy, Balance
Settings  CyclesConfig, or a variable CYCLES_<NAME> for each of its fields
Errors    CyclesError; BudgetDenied (the work has not run), SettlementRejectedError (it has), TransportError, ...

Beside these: cycles_lite.wsgi, .aws_lambda, .events (what an observer is told), .observers (which count), .testing (and
a pytest plugin), .local (the embedded authority). In a shell: cycles-lite --help, and cycles-lite check.

The documentation is in docs/ of the source; docs/quickstart.rst is where to begin, docs/api.rst has every name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Type checkers see no name that a function makes up, so the public names stand here twice: in these imports for them,
# and in `_NAMES` for the program. A test compares the two.
if TYPE_CHECKING:
    from .client import CyclesClient as CyclesClient
    from .config import CyclesConfig as CyclesConfig
    from .errors import (
        ApiError as ApiError,
        AuthenticationError as AuthenticationError,
        BudgetClosedError as BudgetClosedError,
        BudgetDenied as BudgetDenied,
        BudgetExceededError as BudgetExceededError,
        BudgetFrozenError as BudgetFrozenError,
        ConfigError as ConfigError,
        CyclesError as CyclesError,
        DebtOutstandingError as DebtOutstandingError,
        ErrorCode as ErrorCode,
        ForbiddenError as ForbiddenError,
        GuardFinalizedError as GuardFinalizedError,
        IdempotencyMismatchError as IdempotencyMismatchError,
        InvalidRequestError as InvalidRequestError,
        MaxExtensionsExceededError as MaxExtensionsExceededError,
        NotFoundError as NotFoundError,
        OverdraftLimitExceededError as OverdraftLimitExceededError,
        RateLimitedError as RateLimitedError,
        ReservationExpiredError as ReservationExpiredError,
        ReservationFinalizedError as ReservationFinalizedError,
        ResponseError as ResponseError,
        ServerError as ServerError,
        SettlementRejectedError as SettlementRejectedError,
        TenantClosedError as TenantClosedError,
        TransportError as TransportError,
        TransportTimeout as TransportTimeout,
        UnitMismatchError as UnitMismatchError,
        ValidationError as ValidationError,
    )
    from .guard import ReservationGuard as ReservationGuard
    from .guards.current import current_guard as current_guard
    from .lifecycle import cycles as cycles, set_default_client as set_default_client, with_cycles as with_cycles
    from .protocol.models import (
        Balance as Balance,
        BalanceRequest as BalanceRequest,
        BalanceResponse as BalanceResponse,
        CommitRequest as CommitRequest,
        CommitResponse as CommitResponse,
        CyclesEvidenceEnvelope as CyclesEvidenceEnvelope,
        CyclesEvidenceJwk as CyclesEvidenceJwk,
        CyclesEvidenceJwks as CyclesEvidenceJwks,
        DecisionRequest as DecisionRequest,
        DecisionResponse as DecisionResponse,
        ErrorResponse as ErrorResponse,
        EventCreateRequest as EventCreateRequest,
        EventCreateResponse as EventCreateResponse,
        ReleaseRequest as ReleaseRequest,
        ReleaseResponse as ReleaseResponse,
        ReservationCreateRequest as ReservationCreateRequest,
        ReservationCreateResponse as ReservationCreateResponse,
        ReservationDetail as ReservationDetail,
        ReservationEvidence as ReservationEvidence,
        ReservationExtendRequest as ReservationExtendRequest,
        ReservationExtendResponse as ReservationExtendResponse,
        ReservationListRequest as ReservationListRequest,
        ReservationListResponse as ReservationListResponse,
        ReservationSummary as ReservationSummary,
    )
    from .protocol.values import (
        Action as Action,
        Amount as Amount,
        Caps as Caps,
        CommitOveragePolicy as CommitOveragePolicy,
        CyclesEvidenceRef as CyclesEvidenceRef,
        CyclesMetrics as CyclesMetrics,
        Decision as Decision,
        ReservationStatus as ReservationStatus,
        SignedAmount as SignedAmount,
        SortDirection as SortDirection,
        Subject as Subject,
        Unit as Unit,
    )
    from .settlement.meaning import Settlement as Settlement, SettlementStatus as SettlementStatus

__version__ = "0.1.0"

#: The public names by module. A module is loaded when a name of it is first used (PEP 562): importing is cheap.
_NAMES = {
    "client": "CyclesClient",
    "guard": "ReservationGuard",
    "guards.current": "current_guard",
    "lifecycle": "cycles set_default_client with_cycles",
    "settlement.meaning": "Settlement SettlementStatus",
    "config": "CyclesConfig",
    "errors": """
        ApiError AuthenticationError BudgetClosedError BudgetDenied BudgetExceededError BudgetFrozenError
        ConfigError CyclesError DebtOutstandingError ErrorCode ForbiddenError GuardFinalizedError
        IdempotencyMismatchError InvalidRequestError MaxExtensionsExceededError NotFoundError
        OverdraftLimitExceededError RateLimitedError ReservationExpiredError ReservationFinalizedError
        ResponseError ServerError SettlementRejectedError TenantClosedError TransportError TransportTimeout
        UnitMismatchError ValidationError
    """,
    "protocol.models": """
        Balance BalanceRequest BalanceResponse CommitRequest CommitResponse CyclesEvidenceEnvelope
        CyclesEvidenceJwk CyclesEvidenceJwks DecisionRequest DecisionResponse ErrorResponse
        EventCreateRequest EventCreateResponse ReleaseRequest ReleaseResponse ReservationCreateRequest
        ReservationCreateResponse ReservationDetail ReservationEvidence ReservationExtendRequest
        ReservationExtendResponse ReservationListRequest ReservationListResponse ReservationSummary
    """,
    "protocol.values": """
        Action Amount Caps CommitOveragePolicy CyclesEvidenceRef CyclesMetrics Decision
        ReservationStatus SignedAmount SortDirection Subject Unit
    """,
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)

#: Names of the official SDK that do not exist here, and what to use instead.
_ELSEWHERE = {
    "AsyncCyclesClient": "CyclesClient, which is blocking (for asyncio there is the official SDK, runcycles)",
    "AsyncStreamReservation": "CyclesClient.reserve, which is blocking (for asyncio there is runcycles)",
    "CommitStatus": "the plain text in CommitResponse.status",
    "CyclesContext": "ReservationGuard",
    "CyclesProtocolError": "ApiError (CyclesError is the root of all)",
    "CyclesResponse": "each operation's own answer, such as CommitResponse; what is no success raises a CyclesError",
    "CyclesTransportError": "TransportError",
    "DryRunResult": "ReservationCreateResponse",
    "EventStatus": "the plain text in EventCreateResponse.status",
    "ExtendStatus": "the plain text in ReservationExtendResponse.status",
    "ReleaseStatus": "the plain text in ReleaseResponse.status",
    "StreamReservation": "CyclesClient.reserve and ReservationGuard.stream",
    "StreamUsage": "ReservationGuard.spend",
    "get_cycles_context": "current_guard",
    "set_default_config": "set_default_client(CyclesClient(config))",
    "stream_reservation": "CyclesClient.reserve and ReservationGuard.stream",
}

if not TYPE_CHECKING:  # because of a `__getattr__`, a type checker would believe that the module has every name

    def __getattr__(name):
        if name not in _HOME:
            raise _missing(name)
        from importlib import import_module

        value = getattr(import_module("." + _HOME[name], __name__), name)
        globals()[name] = value
        return value


def _missing(name: str) -> Exception:
    """The error for a name that does not exist. Only `__getattr__` calls this, which looks at who has called that."""
    if name not in _ELSEWHERE:
        return AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sys

    message = f"{__name__} has no {name}: use {_ELSEWHERE[name]}"
    # `from cycles_lite import name` would replace the message of an AttributeError, so it gets an ImportError.
    if sys._getframe(2).f_code.co_filename == "<frozen importlib._bootstrap>":
        return ImportError(message, name=name)
    return AttributeError(message)


def __dir__() -> list[str]:
    return list(__all__)
