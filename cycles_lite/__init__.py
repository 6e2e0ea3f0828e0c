"""cycles_lite: the small, blocking Python client for Cycles, the budget authority for agents and automation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import (
        CyclesClient as CyclesClient,
    )
    from .config import (
        CyclesConfig as CyclesConfig,
    )
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
    from .guard import ReservationGuard as ReservationGuard, current_guard as current_guard
    from .lifecycle import cycles as cycles, set_default_client as set_default_client, with_cycles as with_cycles
    from .models import (
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
    from .settlement import Settlement as Settlement, SettlementStatus as SettlementStatus
    from .values import (
        Action as Action,
        Amount as Amount,
        Caps as Caps,
        CommitOveragePolicy as CommitOveragePolicy,
        CyclesEvidenceRef as CyclesEvidenceRef,
        CyclesMetrics as CyclesMetrics,
        Decision as Decision,
        ErrorCode as ErrorCode,
        ReservationStatus as ReservationStatus,
        SignedAmount as SignedAmount,
        SortDirection as SortDirection,
        Subject as Subject,
        Unit as Unit,
    )

__version__ = "0.1.0"

#: The public names by module. A module is loaded when a name of it is first used (PEP 562): importing is cheap.
_NAMES = {
    "client": "CyclesClient",
    "guard": "ReservationGuard current_guard",
    "lifecycle": "cycles set_default_client with_cycles",
    "settlement": "Settlement SettlementStatus",
    "config": "CyclesConfig",
    "errors": """
        ApiError AuthenticationError BudgetClosedError BudgetDenied BudgetExceededError BudgetFrozenError
        ConfigError CyclesError DebtOutstandingError ForbiddenError GuardFinalizedError
        IdempotencyMismatchError InvalidRequestError MaxExtensionsExceededError NotFoundError
        OverdraftLimitExceededError RateLimitedError ReservationExpiredError ReservationFinalizedError
        ResponseError ServerError SettlementRejectedError TenantClosedError TransportError TransportTimeout
        UnitMismatchError ValidationError
    """,
    "models": """
        Balance BalanceRequest BalanceResponse CommitRequest CommitResponse CyclesEvidenceEnvelope
        CyclesEvidenceJwk CyclesEvidenceJwks DecisionRequest DecisionResponse ErrorResponse
        EventCreateRequest EventCreateResponse ReleaseRequest ReleaseResponse ReservationCreateRequest
        ReservationCreateResponse ReservationDetail ReservationEvidence ReservationExtendRequest
        ReservationExtendResponse ReservationListRequest ReservationListResponse ReservationSummary
    """,
    "values": """
        Action Amount Caps CommitOveragePolicy CyclesEvidenceRef CyclesMetrics Decision ErrorCode
        ReservationStatus SignedAmount SortDirection Subject Unit
    """,
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("." + _HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
