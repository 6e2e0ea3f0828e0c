"""The keyword arguments of some functions, for type checkers, which find misspelt names and words with these."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from typing import Union

    from typing_extensions import Literal, TypedDict

    from .values import ReservationStatus, SortDirection

    Mode = Literal["enforce", "shadow", "off"]
    OnUnavailable = Literal["raise", "allow"]
    Path = Union[str, "os.PathLike[str]", None]

    class _Levels(TypedDict, total=False):
        tenant: str | None
        workspace: str | None
        app: str | None
        workflow: str | None
        agent: str | None
        toolset: str | None

    class Settings(_Levels, total=False):
        """The fields of a `CyclesConfig`."""

        base_url: str | None
        api_key: str | None
        connect_timeout: float
        read_timeout: float
        retry_enabled: bool
        retry_max_attempts: int
        retry_initial_delay: float
        retry_multiplier: float
        retry_max_delay: float
        flush_timeout: float
        journal_enabled: bool
        journal_dir: Path
        journal_fsync: bool
        heartbeat: bool
        mode: Mode
        on_unavailable: OnUnavailable
        max_connections: int
        warn_below: float | None
        ca_certs: Path
        proxy: str | None

    class _Page(_Levels, total=False):
        limit: int | None
        cursor: str | None

    class BalanceFilters(_Page, total=False):
        """The fields of a `BalanceRequest`."""

        include_children: bool

    class ReservationFilters(_Page, total=False):
        """The fields of a `ReservationListRequest`."""

        idempotency_key: str | None
        status: ReservationStatus | Literal["ACTIVE", "COMMITTED", "RELEASED", "EXPIRED"] | None
        from_: str | None
        to: str | None
        expires_from: str | None
        expires_to: str | None
        finalized_from: str | None
        finalized_to: str | None
        sort_by: str | None
        sort_dir: SortDirection | Literal["asc", "desc"] | None
        include: list[str] | tuple[str, ...] | None
