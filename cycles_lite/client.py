"""The programmatic client: the protocol's operations, one method each."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TYPE_CHECKING, Any, Iterator, Mapping, NoReturn, cast

from .config import CyclesConfig
from .errors import ApiError, ConfigError, CyclesError, ResponseError, ValidationError
from .protocol import wire
from .protocol.checks import is_a, refuse
from .protocol.fields import Model
from .protocol.values import SUBJECT_LEVELS
from .runtime.clock import monotonic
from .session import Session, response_in

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .events import Observer
    from .guard import ReservationGuard
    from .protocol import models
    from .protocol.keywords import BalanceFilters, ReservationFilters, Settings
    from .protocol.values import Action, Amount, CommitOveragePolicy, Subject
    from .session import Traceparent
    from .settlement.flush import Flush
    from .transport.http import Transport

#: The settings that a transport is made of. Clients that agree in them share one.
_CONNECTION_SETTINGS = ("base_url", "ca_certs", "proxy", "max_connections")


class CyclesClient:
    """A client of one authority. Thread-safe; make one and keep it.

    Every method raises a `CyclesError`: `ValidationError` before anything is sent, `TransportError` or `ResponseError`
    where the outcome is unknown, `ApiError` where the authority refused. What may have been carried out is sent once
    more with the same idempotency key; reads are retried as the configuration says (see `cycles_lite.transport.retry`).
    """

    def __init__(
        self,
        config: CyclesConfig,
        *,
        traceparent: Traceparent = None,
        observer: Observer | None = None,
        transport: Transport | None = None,
    ) -> None:
        if not is_a(config, CyclesConfig):
            raise ConfigError(_misplaced(config))
        _prepare()
        #: What this client shares with its guards, their settlement and their heartbeats.
        self._session = Session(config, transport, traceparent, observer)

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
        """The settings that this client was made with."""
        return self._session.config

    def __repr__(self) -> str:
        return f"CyclesClient({self.config!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a CyclesClient has connections and secrets, and can be neither pickled nor copied: make one in each "
            "process, from the same settings (CyclesClient.from_env()); with_options() gives a second one here"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            instead = ": use `reserve`, and its guard's `stream`" if name == "stream_reservation" else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{instead}")

    def with_options(self, *misplaced: NoReturn, **changes: Unpack[Settings]) -> CyclesClient:
        """A client with other settings, such as another tenant's key, that shares this one's connections."""
        if misplaced:
            raise ConfigError("with_options: settings have names: write with_options(tenant=...)")
        ours = self._session
        config = ours.config.replace(**changes)
        shares = all(getattr(config, name) == getattr(ours.config, name) for name in _CONNECTION_SETTINGS)
        transport = ours.transport if shares else None
        client = CyclesClient(config, traceparent=ours.traceparent, observer=ours.observer, transport=transport)
        if shares:
            client._session.low = ours.low
        return client

    def warm_up(self) -> bool:
        """Connect before the first call, to save it the time. Return whether the authority answered; raise nothing."""
        told = self._session.send(wire.GET_EVIDENCE_KEYS, retries=False)
        if getattr(told, "stale", False):  # the server had closed an idle connection; the next attempt makes a new one
            return self.warm_up()
        return isinstance(told, ApiError) or not isinstance(told, CyclesError)

    def flush(self, timeout: float | None = None) -> int:
        """Settle what is pending, for at most `timeout` seconds (default: the configuration's `flush_timeout`).

        Returns how much is left: what is retried, what other threads are settling, what collected guards left, and what
        is on disk and was not read yet. To count that, the names in the journal's folder are read after this time.
        """
        flush = self._flush(self.config.flush_timeout if timeout is None else timeout)
        return 0 if flush is None else flush.count()

    def _flush(self, timeout: float) -> Flush | None:
        """Flush, and count nothing: there may be much to count. None where nothing is ever pending."""
        if self.config.mode == "off":
            return None
        from .settlement.flush import Flush  # only guards need it
        from .settlement.settler import settler_of

        return Flush(settler_of(self._session), monotonic() + timeout).begin().wait()

    def close(self) -> None:
        """Flush, then close the connections. Reads that wait to be retried give up. Later calls open new connections,
        so that closing too early loses no settlement."""
        if self._session.settler is not None:
            self._session.settler.is_ending = True
            self._flush(self.config.flush_timeout)
            self._session.settler.close()
        self._session.close()

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

        request = ReservationCreateRequest(
            action=action,
            estimate=estimate,
            subject=subject,
            ttl_ms=ttl_ms,
            grace_period_ms=grace_period_ms,
            overage_policy=overage_policy,
            dry_run=self.config.mode == "shadow",
            metadata=metadata,
            **({} if idempotency_key is None else {"idempotency_key": idempotency_key}),  # the request makes one
        )
        return reserve(self._session, request)

    # ---- Operations ----

    def create_reservation(self, request: models.ReservationCreateRequest) -> models.ReservationCreateResponse:
        """Hold an estimate (protocol: `POST /v1/reservations`). Returns the answer, a dry run's DENY included; a
        denied live reservation is a 409 and raises a `BudgetDenied`."""
        return cast("models.ReservationCreateResponse", self._post(wire.CREATE_RESERVATION, request))

    def commit_reservation(self, reservation_id: str, request: models.CommitRequest) -> models.CommitResponse:
        """Settle a reservation with its actual cost (protocol: `POST /v1/reservations/{id}/commit`). A refusal for
        the budget's state is a `SettlementRejectedError`."""
        return cast("models.CommitResponse", self._post(wire.COMMIT_RESERVATION, request, reservation_id))

    def release_reservation(self, reservation_id: str, request: models.ReleaseRequest) -> models.ReleaseResponse:
        """Give a reservation back unused (protocol: `POST /v1/reservations/{id}/release`)."""
        return cast("models.ReleaseResponse", self._post(wire.RELEASE_RESERVATION, request, reservation_id))

    def extend_reservation(
        self, reservation_id: str, request: models.ReservationExtendRequest
    ) -> models.ReservationExtendResponse:
        """Move a reservation's expiry outward (protocol: `POST /v1/reservations/{id}/extend`)."""
        return cast("models.ReservationExtendResponse", self._post(wire.EXTEND_RESERVATION, request, reservation_id))

    def decide(self, request: models.DecisionRequest) -> models.DecisionResponse:
        """Ask what a reservation would be told (protocol: `POST /v1/decide`). Returns the answer, DENY included."""
        return cast("models.DecisionResponse", self._post(wire.DECIDE, request))

    def create_event(self, request: models.EventCreateRequest) -> models.EventCreateResponse:
        """Record spend without a reservation (protocol: `POST /v1/events`)."""
        return cast("models.EventCreateResponse", self._post(wire.CREATE_EVENT, request))

    def list_reservations(
        self, request: models.ReservationListRequest | None = None, **filters: Unpack[ReservationFilters]
    ) -> models.ReservationListResponse:
        """One page of reservations (protocol: `GET /v1/reservations`). `filters` are the request's fields."""
        query = self._query("ReservationListRequest", request, filters)
        return cast("models.ReservationListResponse", self._get(wire.LIST_RESERVATIONS, query=query))

    def get_reservation(self, reservation_id: str) -> models.ReservationDetail:
        """One reservation (protocol: `GET /v1/reservations/{id}`); an expired one is a `ReservationExpiredError`."""
        return cast("models.ReservationDetail", self._get(wire.GET_RESERVATION, reservation_id))

    def get_balances(
        self, request: models.BalanceRequest | None = None, **filters: Unpack[BalanceFilters]
    ) -> models.BalanceResponse:
        """One page of balances (protocol: `GET /v1/balances`). `filters` are the request's fields; where they name no
        level, the configuration's tenant is asked for."""
        query = self._query("BalanceRequest", request, filters)
        return cast("models.BalanceResponse", self._get(wire.GET_BALANCES, query=query))

    def get_evidence(self, evidence_id: str) -> models.CyclesEvidenceEnvelope:
        """A signed evidence envelope by its 64 hexadecimal digits (protocol: `GET /v1/evidence/{id}`). No key is
        sent. The signature is not verified here; `body` holds the envelope's bytes."""
        if not wire.is_evidence_id(evidence_id):
            raise refuse("evidence_id", evidence_id, "64 lower-case hexadecimal digits")
        return cast("models.CyclesEvidenceEnvelope", self._get(wire.GET_EVIDENCE, evidence_id))

    def get_evidence_keys(self) -> models.CyclesEvidenceJwks:
        """The keys that evidence is signed with (protocol: `GET /v1/.well-known/cycles-jwks.json`). No key is sent."""
        return cast("models.CyclesEvidenceJwks", self._get(wire.GET_EVIDENCE_KEYS))

    def iter_reservations(
        self, request: models.ReservationListRequest | None = None, **filters: Unpack[ReservationFilters]
    ) -> Iterator[models.ReservationSummary]:
        """Every matching reservation, page after page."""
        query = self._query("ReservationListRequest", request, filters)
        for page in self._pages(wire.LIST_RESERVATIONS, query):
            yield from page.reservations

    def iter_balances(
        self, request: models.BalanceRequest | None = None, **filters: Unpack[BalanceFilters]
    ) -> Iterator[models.Balance]:
        """Every matching balance, page after page."""
        for page in self._pages(wire.GET_BALANCES, self._query("BalanceRequest", request, filters)):
            yield from page.balances

    # ---- Sending ----

    def _post(self, operation: wire.Operation, request: Any, reservation_id: str | None = None) -> Any:
        wanted = operation.request
        if wanted is None or not is_a(request, wanted):
            raise refuse("request", request, "a " + (wanted.__name__ if wanted else "request"))
        session = self._session
        response = response_in(session.send(operation, session.body_of(request), reservation_id))
        if session.observer is not None:
            session.watch(response)
        return response

    def _get(self, operation: wire.Operation, id: str | None = None, query: Mapping[str, str] | None = None) -> Any:
        return response_in(self._session.send(operation, None, id, query or {}))

    def _pages(self, operation: wire.Operation, query: Mapping[str, str]) -> Iterator[Any]:
        seen = {query.get("cursor")}
        while True:
            page = self._get(operation, query=query)
            yield page
            if not page.next_cursor:
                return
            if page.next_cursor in seen:
                raise ResponseError(f"{operation.name}: the next page's cursor leads nowhere new", status=200)
            seen.add(page.next_cursor)
            query = {**query, "cursor": page.next_cursor}

    def _query(self, name: str, request: Model | None, filters: Mapping[str, Any]) -> dict[str, str]:
        """The query of a request as it was given, or of one of the model with this name and these fields. The
        configuration's tenant is asked for where it names none; and balances are always somebody's."""
        from .protocol import models

        kind = getattr(models, name)
        if request is None:
            unknown = sorted(set(filters) - {entry.name for entry in kind.layout()})
            if unknown:
                raise ValidationError(f"{unknown[0]} is not a field of {name}")
        elif filters or not is_a(request, kind):
            raise refuse("request", request, f"a {name}, or its fields as keywords")
        query = wire.query(kind(**filters) if request is None else request)
        if self.config.tenant:
            query.setdefault("tenant", self.config.tenant)
        if kind is models.BalanceRequest and not any(level in query for level in SUBJECT_LEVELS):
            raise ValidationError("balances: at least one of {} is needed".format(", ".join(SUBJECT_LEVELS)))
        return query


def _misplaced(config: object) -> str:
    """What to write in the place of this configuration. Its value is not shown, because a key may be in it."""
    given = f"the class {config.__name__}" if is_a(config, type) else f"a value of type {type(config).__name__}"
    return (
        f"CyclesClient: {given} is not a configuration: write CyclesClient(CyclesConfig(base_url=...)), or "
        "CyclesClient.from_env()"
    )


#: The modules that calls import late, and for which a child would wait if another thread was just importing them.
_LATE = ("protocol.models", "guards.asking", "settlement.flush")

#: Whether this process has made a client.
_is_prepared = False


def _prepare() -> None:
    """Import what must not be imported by `_finish_imports`, because it has hooks of its own that run at a fork."""
    global _is_prepared
    import logging  # noqa: F401  # which HTTP needs in any case

    _is_prepared = True


def _finish_imports() -> None:
    """Run before a fork: import what is imported late, and wait for what another thread is importing right now. The
    child does not have that thread, and would wait for it for ever."""
    package = __name__.rpartition(".")[0] + "."
    loaded = [name for name in list(sys.modules) if name.startswith(package)]
    late = [package + name for name in _LATE] if _is_prepared else []
    for name in [*late, *loaded]:
        try:
            __import__(name)
        except ImportError:  # the thread that imports it is told
            continue
    codecs.lookup("idna")  # `getaddrinfo` would import this codec at its first use, perhaps in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish_imports)
