"""The embedded authority: it finds out who asks and for whom, and lets an operation on the ledger answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple, Optional, Tuple

from ..errors import ConfigError, CyclesError, TransportError
from ..protocol import models, wire
from ..protocol.checks import shown
from ..protocol.wire import Answer, Call
from ..runtime.clock import now_ms
from ..runtime.log import log
from ..transport.handlers import is_from_handler
from . import messages, operations, reads, scopes
from .budgets import BudgetMethods
from .extension import GET_PERIODS, get_periods
from .failures import UnreadableError
from .funding import FundingMethods
from .ledger import Ledger
from .rules import Refused, invalid
from .tenants import TenantMethods, owner, sha256

if TYPE_CHECKING:
    import sqlite3

    from ..config import CyclesConfig
    from ..protocol.fields import Model


class Caller(NamedTuple):
    """Who makes a request, as the transport has established it.

    With a tenant, everything is limited to it. With none, as for the owner of the file, the requests themselves say
    for whom they act. `admin` marks an operator's key, which serves `ADMIN_OPERATIONS` alone. `key` is the SHA-256 of a
    secret that was the tenant's when it was looked up: whether it still is, the file is asked when the request is
    answered.
    """

    tenant: str | None = None
    admin: bool = False
    key: bytes | None = None

    def acting_for(self, named: str | None) -> str:
        """The tenant that a request acts for: the caller's, which its subject must not contradict, else the subject's.

        A subject without a tenant names no scope that could have a budget, so that it needs no refusal of its own.
        """
        if self.tenant is not None and named not in (None, self.tenant):
            raise _forbidden(named)
        tenant = named if self.tenant is None else self.tenant
        if tenant is not None and not scopes.is_tenant_id(tenant):
            raise invalid(f"tenant: {shown(tenant)} is not 3 to 64 of the characters a-z, 0-9 and -.")
        return tenant or ""

    def reading_of(self, named: str | None) -> str | None:
        """The tenant that a read is limited to; None for all tenants. A blank tenant exists nowhere and has nothing.

        An operator, who acts for no tenant, must name one.
        """
        if self.admin and not (named or "").strip():
            raise invalid("tenant query parameter is required when using admin key authentication")
        if self.tenant is not None and named not in (None, self.tenant) and named.strip():
            raise _forbidden(named)
        return self.tenant if named is None else named


#: The caller that is anybody who may use the file; over HTTP, the caller of an operation that needs no key.
ANYONE = Caller()

#: What an operator's key serves (protocol: `security` of these operations, AdminKeyAuth).
ADMIN_OPERATIONS = (wire.LIST_RESERVATIONS, wire.GET_RESERVATION, wire.RELEASE_RESERVATION)


#: What is said to those without a valid key.
NO_KEY = "A valid key in X-Cycles-API-Key is needed."

#: The most keys whose tenants are remembered.
_MOST_OWNERS = 10_000


class Authority(BudgetMethods, FundingMethods, TenantMethods):
    """A budget ledger in one SQLite file, and the authority over it.

    `url` is `sqlite:///absolute/path`, `sqlite:relative/path` or `sqlite://` (memory of this process); with
    `?synchronous=full` commits also survive a power cut. `create` says whether a missing file is made. `clock` gives
    milliseconds since 1970. If a lock cannot be had within `timeout` seconds, `TransportTimeout` is raised and nothing
    is written; any other error of SQLite is a `TransportError`, and an unusable file is a `ConfigError`.

    Safe for threads, for many processes on one file, and after a fork. Use it as a context manager or call `shutdown`.
    """

    def __init__(
        self, url: str, *, create: bool = True, clock: Callable[[], int] = now_ms, timeout: float = 7.0
    ) -> None:
        self._ledger = Ledger(url, create=create, timeout=timeout, clock=clock)
        #: The URL of the file, from any folder; clients take it as `base_url`.
        self.url = self._ledger.url
        # By the SHA-256 of their secrets, the tenants of keys when they were last looked up. This is no more than a
        # guess, because another process may have ended a key since: `answer` asks the file for each request.
        self._owners: dict[bytes, str] = {}

    def __repr__(self) -> str:
        return f"<Authority {self.url}>"

    def __reduce__(self) -> Any:
        raise TypeError("an Authority has connections to its file, and does not pickle: make one in each process")

    def __enter__(self) -> Authority:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Close the file in this process. (`close` closes a budget.)"""
        self._ledger.close()

    def caller(self, secret: str) -> Caller | None:
        """Who has a key, as far as this process knows: None for one that is unknown, revoked or expired.

        `answer` proves it again, in the very transaction of the operation. So a key is refused from the moment on when
        any process has revoked it, and one that is known already costs a statement instead of a transaction.
        """
        key = sha256(secret)
        tenant = self._owners.get(key)
        if tenant is None:
            tenant = self.authenticate(secret)
            if tenant is None:
                return None
            if len(self._owners) >= _MOST_OWNERS:
                self._owners.clear()
            self._owners[key] = tenant
        return Caller(tenant, key=key)

    def is_proven(self, caller: Caller) -> bool:
        """Whether a caller's key is still the tenant's. For those who are refused before an operation asks."""
        if caller.key is None:
            return True
        with self._ledger.reading() as (db, now):
            return self._owns(db, now, caller)

    def _owns(self, db: sqlite3.Connection, now: int, caller: Caller) -> bool:
        """`is_proven`, within a transaction. A key that is over is forgotten."""
        if caller.key is None or owner(db, now, caller.key) == caller.tenant:
            return True
        self._owners.pop(caller.key, None)
        return False

    def answer(self, call: Call, caller: Caller = ANYONE) -> Answer:
        """Answer one request of the protocol or its `extension`. A faulty one and a refusal get answers, and so does a
        bug here (500).

        Raises `TransportError` when the file cannot be used; the server answers 500 then, and the transport in process
        returns the error. Waits for locks no longer than the sum of the call's timeouts, or the authority's own timeout
        if the call has none.
        """
        operation, tenant = call.operation, None if caller.key else caller.tenant
        try:
            if caller.admin and not (operation.public or operation in ADMIN_OPERATIONS):
                raise Refused("UNAUTHORIZED", "This operation needs a tenant's API key.")
            handler = _HANDLERS[operation]
            prepared, for_whom = self._prepared(handler, call, caller)
            transaction = self._ledger.writing if handler.writes else self._ledger.reading
            with transaction(call.connect_timeout + call.read_timeout or None) as (db, now):
                if not self._owns(db, now, caller):
                    raise Refused("UNAUTHORIZED", NO_KEY)
                tenant = caller.tenant
                data = handler.operate(db, now, *prepared)
            tenant = for_whom
            return messages.new_answer(operation.status, data, call.headers, tenant)
        except Refused as e:
            return messages.refusal_answer(e, call.headers, None if e.code == "UNAUTHORIZED" else caller.tenant)
        except Exception as e:
            of_the_file = isinstance(e, (TransportError, ConfigError)) and not isinstance(e, UnreadableError)
            if is_from_handler(e) or of_the_file:
                raise
            crash = Refused("INTERNAL_ERROR", "The authority failed; see its log.")
            answer = messages.refusal_answer(crash, call.headers, tenant)
            known = (operation.name, answer.headers["x-request-id"])
            log().error("the embedded authority failed on %s (%s)", *known, exc_info=e)
            return answer

    def _prepared(self, handler: _Handler, call: Call, caller: Caller) -> _Prepared:
        """What a handler makes of a call. Why it refuses one is told to those with a valid key alone."""
        try:
            return handler.prepare(call, caller)
        except Refused:
            if not self.is_proven(caller):
                raise Refused("UNAUTHORIZED", NO_KEY) from None
            raise


def _forbidden(named: str | None) -> Refused:
    return Refused("FORBIDDEN", f"You may not act for tenant {shown(named)}.", {"tenant": named})


# ---- How each operation is answered ----

#: What an operation takes, and the tenant that its answer is for.
_Prepared = Tuple[Tuple[Any, ...], Optional[str]]


class _Handler(NamedTuple):
    """How one operation is answered: its arguments are read from the call and proven legal, then it runs in a
    transaction."""

    prepare: Callable[[Call, Caller], _Prepared]
    #: Given the database, the time and what was prepared, returns decoded JSON.
    operate: Callable[..., Any]
    writes: bool = False


def _for_subject(model: type[Model], operate: Callable[..., Any]) -> _Handler:
    """The handler of an operation whose body names a subject."""

    def prepare(call: Call, caller: Caller) -> _Prepared:
        request = messages.read_request(model, call)
        tenant = caller.acting_for(request.subject.tenant)
        return (request, tenant), tenant

    return _Handler(prepare, operate, writes=True)


def _on_reservation(model: type[Model], operate: Callable[..., Any]) -> _Handler:
    """The handler of an operation that changes a reservation."""

    def prepare(call: Call, caller: Caller) -> _Prepared:
        return (messages.path_id(call), messages.read_request(model, call), caller.tenant), caller.tenant

    return _Handler(prepare, operate, writes=True)


def _page(filters: Callable[[Mapping[str, str]], Any], operate: Callable[..., Any]) -> _Handler:
    """The handler of an operation that reads a page of the rows that the query's filters match."""

    def prepare(call: Call, caller: Caller) -> _Prepared:
        asked = filters(call.query)
        return (asked, caller.reading_of(asked.tenant)), caller.tenant

    return _Handler(prepare, operate)


def _whose(call: Call, caller: Caller) -> _Prepared:
    return (caller.reading_of(call.query.get("tenant")),), caller.tenant


def _reservation_id(call: Call, caller: Caller) -> _Prepared:
    return (messages.path_id(call), caller.tenant), caller.tenant


def _evidence(call: Call, caller: Caller) -> _Prepared:
    if not wire.is_evidence_id(call.id):
        raise invalid("An evidence id is 64 lower-case hexadecimal digits.")
    raise Refused("NOT_FOUND", "There is no evidence with this id: this authority signs none.")


def _no_keys(*_: Any) -> None:
    """Refuse to give keys. The refusal comes within a transaction, because `warm_up` calls this operation to open the
    file."""
    raise Refused("NOT_FOUND", "This authority signs nothing, so it has no keys to publish.")


_HANDLERS = {
    wire.CREATE_RESERVATION: _for_subject(models.ReservationCreateRequest, operations.reserve),
    wire.DECIDE: _for_subject(models.DecisionRequest, operations.decide),
    wire.CREATE_EVENT: _for_subject(models.EventCreateRequest, operations.record_event),
    wire.COMMIT_RESERVATION: _on_reservation(models.CommitRequest, operations.commit),
    wire.RELEASE_RESERVATION: _on_reservation(models.ReleaseRequest, operations.release),
    wire.EXTEND_RESERVATION: _on_reservation(models.ReservationExtendRequest, operations.extend),
    wire.GET_RESERVATION: _Handler(_reservation_id, reads.get_reservation),
    wire.LIST_RESERVATIONS: _page(reads.list_filters, reads.list_reservations),
    wire.GET_BALANCES: _page(reads.balance_filters, reads.get_balances),
    GET_PERIODS: _Handler(_whose, get_periods),
    wire.GET_EVIDENCE: _Handler(_evidence, _no_keys),
    wire.GET_EVIDENCE_KEYS: _Handler(lambda call, caller: ((), None), _no_keys),
}


class LocalTransport:
    """The transport of clients whose URL is a `sqlite:` one. It asks the authority on an existing file, without a
    server or a socket; the file's permissions are the authentication.

    The caller's tenant is that of the call's configuration; without one, each request's subject names the tenant. Where
    there is no answer, an error is returned: a `ConfigError` for an unusable file, else a `TransportError`.
    """

    def __init__(self, config: CyclesConfig) -> None:
        if config.base_url is None:
            raise ConfigError("base_url is not set")
        self._authority = Authority(config.base_url, create=False)

    def __repr__(self) -> str:
        return f"<LocalTransport to {self._authority.url}>"

    def send(self, call: Call) -> Answer | CyclesError:
        """The authority's answer to one call, within the sum of the call's timeouts."""
        try:
            return self._authority.answer(call, Caller(call.tenant))
        except CyclesError as e:
            if is_from_handler(e):
                raise
            return e

    def close(self) -> None:
        """Close idle connections to the file. A later call opens new ones."""
        self._authority.shutdown()
