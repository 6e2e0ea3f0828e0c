"""The programmatic client: the protocol's operations, one method each."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TYPE_CHECKING, Any, Iterator, Mapping, NoReturn

from .config import CyclesConfig
from .errors import ApiError, ConfigError, CyclesError, ResponseError, ValidationError
from .protocol import wire
from .protocol.checks import refuse
from .protocol.fields import Model
from .protocol.values import SUBJECT_LEVELS
from .runtime.log import log
from .session import Sender, open_transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .events import Event, Observer
    from .guard import ReservationGuard
    from .protocol.keywords import BalanceFilters, ReservationFilters, Settings
    from .protocol.models import (
        Balance,
        BalanceRequest,
        BalanceResponse,
        CommitRequest,
        CommitResponse,
        CyclesEvidenceEnvelope,
        CyclesEvidenceJwks,
        DecisionRequest,
        DecisionResponse,
        EventCreateRequest,
        EventCreateResponse,
        ReleaseRequest,
        ReleaseResponse,
        ReservationCreateRequest,
        ReservationCreateResponse,
        ReservationDetail,
        ReservationExtendRequest,
        ReservationExtendResponse,
        ReservationListRequest,
        ReservationListResponse,
        ReservationSummary,
    )
    from .protocol.values import Action, Amount, CommitOveragePolicy, Subject
    from .session import Traceparent
    from .settlement.settler import Settler
    from .transport.http import Transport

#: Settings that a transport is made of: clients that agree in them share one.
_CONNECTION_SETTINGS = ("base_url", "ca_certs", "proxy", "max_connections")


class CyclesClient:
    """A client of one authority. Thread-safe; make one and keep it.

    Every method raises a `CyclesError`: `ValidationError` before anything is sent, `TransportError` or `ResponseError`
    where the outcome is unknown, `ApiError` where the authority refused. What may have been carried out is sent once
    more with the same idempotency key; reads are retried as the configuration says (see `cycles_lite.transport.retry`).
    """

    _settler: Settler | None = None

    def __init__(
        self,
        config: CyclesConfig,
        *,
        traceparent: Traceparent = None,
        observer: Observer | None = None,
        transport: Transport | None = None,
    ) -> None:
        if not isinstance(config, CyclesConfig):
            raise ConfigError(_misplaced(config))
        _prepare()
        self._config = config
        self._sender = Sender(config, open_transport(config) if transport is None else transport, traceparent)
        self._observer = observer
        self._subject: dict[str, str] = config.subject_defaults()

    @classmethod
    def from_env(
        cls,
        prefix: str = "CYCLES_",
        *,
        traceparent: Traceparent = None,
        observer: Observer | None = None,
        **changes: Unpack[Settings],
    ) -> CyclesClient:
        """A client configured by the environment (see `CyclesConfig.from_env`)."""
        return cls(CyclesConfig.from_env(prefix, **changes), traceparent=traceparent, observer=observer)

    @property
    def config(self) -> CyclesConfig:
        return self._config

    def __repr__(self) -> str:
        return f"CyclesClient({self._config!r})"

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            instead = ": use `reserve`, and its guard's `stream`" if name == "stream_reservation" else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{instead}")

    def with_options(self, *misplaced: NoReturn, **changes: Unpack[Settings]) -> CyclesClient:
        """A client with other settings, such as another tenant's key, that shares this one's connections."""
        if misplaced:
            raise ConfigError("with_options: settings have names: write with_options(tenant=...)")
        config = self._config.replace(**changes)
        shares = all(getattr(config, name) == getattr(self._config, name) for name in _CONNECTION_SETTINGS)
        transport = self._sender.transport if shares else None
        return CyclesClient(config, traceparent=self._sender.traceparent, observer=self._observer, transport=transport)

    def warm_up(self) -> bool:
        """Connect ahead of the first call, for a cold start. Says whether the authority answered; raises nothing."""
        told = self._sender.get(wire.GET_EVIDENCE_KEYS, None, {}, retries=False)
        if getattr(told, "stale", False):  # an idle connection that was closed meanwhile
            return self.warm_up()
        return isinstance(told, ApiError) or not isinstance(told, CyclesError)

    def flush(self, timeout: float | None = None) -> int:
        """Settle what is pending, for at most `timeout` seconds (default `flush_timeout`); says how much is left:
        what is retried, what other threads are at, and what collected guards left."""
        if self._config.mode == "off":
            return 0
        from .settlement.flush import flush  # only guards need it

        return flush(self.settler, self._config.flush_timeout if timeout is None else timeout)

    def close(self) -> None:
        """Flush, and let the connections go. Reads that wait to be retried give up; later calls connect anew, so that
        no settlement is lost to an early close."""
        if self._settler is not None:
            self.flush()
            self._settler.close()
        self._sender.close()

    def __enter__(self) -> CyclesClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reserve(
        self,
        estimate: Amount,
        action: Action,
        *,
        subject: Subject | None = None,
        ttl_ms: int = 60_000,
        grace_period_ms: int | None = None,
        overage_policy: CommitOveragePolicy | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> ReservationGuard:
        """Reserve an estimate and guard it: `with client.reserve(...) as guard: ...; guard.commit(actual)`.

        The reservation lives `ttl_ms` (1000..86400000) and is extended while the guard does. Raises `BudgetDenied`
        where the work must not run. Modes and `on_unavailable` are the configuration's.
        """
        from .guards.asking import reserve  # only guards need it
        from .protocol.models import ReservationCreateRequest

        named: Any = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
        request = ReservationCreateRequest(
            action=action,
            estimate=estimate,
            subject=subject,
            ttl_ms=ttl_ms,
            grace_period_ms=grace_period_ms,
            overage_policy=overage_policy,
            dry_run=self._config.mode == "shadow",
            metadata=metadata,
            **named,
        )
        return reserve(self, request)

    # ---- Operations ----

    def create_reservation(self, request: ReservationCreateRequest) -> ReservationCreateResponse:
        """Hold an estimate (protocol: `POST /v1/reservations`). Returns the answer, a dry run's DENY included; a
        denied live reservation is a 409 and raises a `BudgetDenied`."""
        response: ReservationCreateResponse = self._post(wire.CREATE_RESERVATION, request)
        return response

    def commit_reservation(self, reservation_id: str, request: CommitRequest) -> CommitResponse:
        """Settle a reservation with its actual cost (protocol: `POST /v1/reservations/{id}/commit`). A refusal for
        the budget's state is a `SettlementRejectedError`."""
        response: CommitResponse = self._post(wire.COMMIT_RESERVATION, request, reservation_id)
        return response

    def release_reservation(self, reservation_id: str, request: ReleaseRequest) -> ReleaseResponse:
        """Give a reservation back unused (protocol: `POST /v1/reservations/{id}/release`)."""
        response: ReleaseResponse = self._post(wire.RELEASE_RESERVATION, request, reservation_id)
        return response

    def extend_reservation(self, reservation_id: str, request: ReservationExtendRequest) -> ReservationExtendResponse:
        """Move a reservation's expiry outward (protocol: `POST /v1/reservations/{id}/extend`)."""
        response: ReservationExtendResponse = self._post(wire.EXTEND_RESERVATION, request, reservation_id)
        return response

    def decide(self, request: DecisionRequest) -> DecisionResponse:
        """Ask what a reservation would be told (protocol: `POST /v1/decide`). Returns the answer, DENY included."""
        response: DecisionResponse = self._post(wire.DECIDE, request)
        return response

    def create_event(self, request: EventCreateRequest) -> EventCreateResponse:
        """Record spend without a reservation (protocol: `POST /v1/events`)."""
        response: EventCreateResponse = self._post(wire.CREATE_EVENT, request)
        return response

    def list_reservations(
        self, request: ReservationListRequest | None = None, **filters: Unpack[ReservationFilters]
    ) -> ReservationListResponse:
        """One page of reservations (protocol: `GET /v1/reservations`). `filters` are the request's fields."""
        response: ReservationListResponse = self._get(
            wire.LIST_RESERVATIONS, filters=_request("ReservationListRequest", request, filters)
        )
        return response

    def get_reservation(self, reservation_id: str) -> ReservationDetail:
        """One reservation (protocol: `GET /v1/reservations/{id}`); an expired one is a `ReservationExpiredError`."""
        response: ReservationDetail = self._get(wire.GET_RESERVATION, reservation_id)
        return response

    def get_balances(self, request: BalanceRequest | None = None, **filters: Unpack[BalanceFilters]) -> BalanceResponse:
        """One page of balances (protocol: `GET /v1/balances`). `filters` are the request's fields; where they name no
        level, the configuration's tenant is asked for."""
        response: BalanceResponse = self._get(wire.GET_BALANCES, filters=self._of_somebody(request, filters))
        return response

    def get_evidence(self, evidence_id: str) -> CyclesEvidenceEnvelope:
        """A signed evidence envelope by its 64 hexadecimal digits (protocol: `GET /v1/evidence/{id}`). No key is
        sent. The signature is not verified here; `body` holds the envelope's bytes."""
        if not wire.is_evidence_id(evidence_id):
            raise refuse("evidence_id", evidence_id, "64 lower-case hexadecimal digits")
        response: CyclesEvidenceEnvelope = self._get(wire.GET_EVIDENCE, evidence_id)
        return response

    def get_evidence_keys(self) -> CyclesEvidenceJwks:
        """The keys that evidence is signed with (protocol: `GET /v1/.well-known/cycles-jwks.json`). No key is sent."""
        response: CyclesEvidenceJwks = self._get(wire.GET_EVIDENCE_KEYS)
        return response

    def iter_reservations(
        self, request: ReservationListRequest | None = None, **filters: Unpack[ReservationFilters]
    ) -> Iterator[ReservationSummary]:
        """Every matching reservation, page after page."""
        wanted = _request("ReservationListRequest", request, filters)
        for page in self._pages(wire.LIST_RESERVATIONS, wanted):
            yield from page.reservations

    def iter_balances(
        self, request: BalanceRequest | None = None, **filters: Unpack[BalanceFilters]
    ) -> Iterator[Balance]:
        """Every matching balance, page after page."""
        for page in self._pages(wire.GET_BALANCES, self._of_somebody(request, filters)):
            yield from page.balances

    # ---- Sending ----

    def _of_somebody(self, request: BalanceRequest | None, filters: Mapping[str, Any]) -> BalanceRequest:
        wanted: BalanceRequest = _request("BalanceRequest", request, filters)
        if not any(getattr(wanted, level) for level in SUBJECT_LEVELS) and not self._config.tenant:
            raise ValidationError("balances: at least one of {} is needed".format(", ".join(SUBJECT_LEVELS)))
        return wanted

    def _pages(self, operation: wire.Operation, wanted: Model) -> Iterator[Any]:
        cursor: str | None = None
        seen = {getattr(wanted, "cursor", None)}
        while True:
            page = self._get(operation, filters=wanted, cursor=cursor)
            yield page
            cursor = page.next_cursor
            if not cursor:
                return
            if cursor in seen:
                raise ResponseError(f"{operation.name}: the next page's cursor leads nowhere new", status=200)
            seen.add(cursor)

    def _post(
        self, operation: wire.Operation, request: Any, reservation_id: str | None = None, retries: bool = True
    ) -> Any:
        wanted = operation.request
        if wanted is None or not isinstance(request, wanted):
            raise refuse("request", request, "a " + (wanted.__name__ if wanted else "request"))
        return _told(self._sender.post(operation, self.body_of(request), reservation_id, retries))

    def body_of(self, request: Any) -> dict[str, Any]:
        """The JSON object that a request sends, its subject's missing levels filled from the configuration."""
        data: dict[str, Any] = request.to_json()
        if hasattr(request, "subject"):
            data["subject"] = self.subject_of(request)
        return data

    def subject_of(self, request: Any) -> dict[str, Any]:
        """The request's subject as it is sent: its missing levels filled from the configuration."""
        subject = request.subject
        merged = {**self._subject, **(subject.to_json() if subject is not None else {})}
        if not merged:
            raise ValidationError("subject: neither the request nor the configuration names one")
        return merged

    # ---- For guards, settlement and heartbeats ----

    def send_once(self, operation: wire.Operation, body: dict[str, Any], reservation_id: str | None = None) -> Any:
        """One attempt with a body that was made before, by this or another process: the response or the error. An error
        is not raised, because what a signal handler raises meanwhile is no answer."""
        try:
            return self._sender.post(operation, body, reservation_id, retries=False)
        except (ConfigError, ValidationError) as e:  # it cannot even be sent
            return e

    def extend_once(self, reservation_id: str, request: ReservationExtendRequest) -> ReservationExtendResponse:
        """One attempt to extend; the heartbeat decides on another, and tells of this one's failure."""
        response: ReservationExtendResponse = self._post(
            wire.EXTEND_RESERVATION, request, reservation_id, retries=False
        )
        return response

    @property
    def settler(self) -> Settler:
        """What settles this client's spend."""
        if self._settler is None:
            from .settlement import flush  # noqa: F401  # which also sees to the interpreter's end
            from .settlement.settler import Settler  # only guards need it

            self.__dict__.setdefault("_settler", Settler(self))  # atomic: one for all threads
        settler: Settler = self.__dict__["_settler"]
        return settler

    @property
    def is_observed(self) -> bool:
        return self._observer is not None

    def observe(self, event: Event) -> None:
        """Tell the observer; what it gets wrong is logged and stops nothing."""
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Exception:
            log().exception("the observer failed on %s", type(event).__name__)

    def _get(
        self,
        operation: wire.Operation,
        id: str | None = None,
        filters: Model | None = None,
        cursor: str | None = None,
    ) -> Any:
        query = wire.query(filters) if filters is not None else {}
        if filters is not None and self._config.tenant:
            query.setdefault("tenant", self._config.tenant)
        if cursor is not None:
            query["cursor"] = cursor
        return _told(self._sender.get(operation, id, query))


def _told(told: Any) -> Any:
    """The response, or else the error that came instead, raised here: no frame from here on up holds the API key."""
    if not isinstance(told, CyclesError):
        return told
    try:
        raise told
    finally:
        del told  # else this frame and the error's traceback would keep each other, and guards on their way, alive


def _misplaced(config: object) -> str:
    """What to write instead. The value is not shown, because a key may be in it."""
    given = f"the class {config.__name__}" if isinstance(config, type) else f"a value of type {type(config).__name__}"
    return (
        f"CyclesClient: {given} is not a configuration: write CyclesClient(CyclesConfig(base_url=...)), or "
        "CyclesClient.from_env()"
    )


def _request(name: str, request: Model | None, filters: Mapping[str, Any]) -> Any:
    """The request, or the one of that name with these fields."""
    from .protocol import models

    kind = getattr(models, name)
    if request is None:
        unknown = sorted(set(filters) - {entry.name for entry in kind.layout()})
        if unknown:
            raise ValidationError(f"{unknown[0]} is not a field of {name}")
        return kind(**filters)
    if filters or not isinstance(request, kind):
        raise refuse("request", request, f"a {name}, or its fields as keywords")
    return request


#: What calls import late, and would have a child wait for if another thread was just importing it.
_LATE = ("models", "asking", "flush")

#: Whether there has been a client.
_is_prepared = False


def _prepare() -> None:
    """With the first client: import what must not be imported within a fork, because it has hooks there of its own."""
    global _is_prepared
    import logging  # noqa: F401  # which HTTP needs in any case

    _is_prepared = True


def _finish_imports() -> None:
    """Before a fork: import what is imported when it is first needed, and wait for what another thread is importing
    right now. A child would wait for that thread for ever."""
    package = __name__.rpartition(".")[0] + "."
    loaded = [name for name in list(sys.modules) if name.startswith(package)]
    late = [package + name for name in _LATE] if _is_prepared else []
    for name in [*late, *loaded]:
        try:
            __import__(name)
        except ImportError:  # which that thread is told
            continue
    codecs.lookup("idna")  # which `getaddrinfo` imports at its first use


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish_imports)
