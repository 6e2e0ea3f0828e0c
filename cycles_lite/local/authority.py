"""The protocol over the ledger: who asks, for whom, and what is answered; and the provisioning of a budget file."""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

from ..errors import ConfigError, TransportError
from ..protocol import wire
from ..protocol.values import Amount, Caps, Unit
from ..protocol.wire import Answer, Call
from ..runtime.clock import now_ms
from ..transport.handlers import is_from_handler
from . import answers, audit, directory, operations, provisioning, reads, requests, rules
from .answers import error_answer, new_answer
from .directory import ApiKey, Tenant, TenantSettings
from .ledger import Ledger
from .rules import Budget, Refusal, Refused

__all__ = ["ANYONE", "Authority", "Caller", "error_answer", "new_answer"]

_EVIDENCE_ID = re.compile(r"[0-9a-f]{64}\Z")


class Caller(NamedTuple):
    """Who makes a request, as the transport has established it.

    With a tenant, everything is limited to it. With none, as for the owner of the file, the requests themselves say
    for whom they act. `admin` marks an operator's key, which serves three operations alone (protocol: AdminKeyAuth).
    """

    tenant: str | None = None
    admin: bool = False


#: Whoever may use the file; also who needs no key for what is public.
ANYONE = Caller()


class Authority:
    """A budget ledger in one SQLite file, and the authority over it.

    `url` is `sqlite:///absolute/path`, `sqlite:relative/path` or `sqlite://` (memory of this process); with
    `?synchronous=full` commits also survive a power cut. `create` says whether a missing file is made. `clock` gives
    milliseconds since 1970. A lock that is not had within `timeout` seconds is a `TransportTimeout` with nothing
    written; whatever else SQLite reports is a `TransportError`, and an unusable file a `ConfigError`.

    Safe for threads, for many processes on one file, and after a fork. Use it as a context manager or call `shutdown`.
    """

    def __init__(
        self, url: str, *, create: bool = True, clock: Callable[[], int] = now_ms, timeout: float = 7.0
    ) -> None:
        self._ledger = Ledger(url, create=create, timeout=timeout, clock=clock)
        #: The URL of the file, from any folder; clients take it as `base_url`.
        self.url = self._ledger.url

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

    # ---- The protocol ----

    def answer(self, call: Call, caller: Caller = ANYONE) -> Answer:
        """Answer one request of the protocol. Its own faults and refusals are answers, and so is a crash of ours (500).

        Raises `TransportError` when the file cannot be used: over HTTP that is a 500 too, in process it is the
        transport's own kind of failure. Waits for locks no longer than the call's timeouts together.
        """
        ids = answers.correlate(call.headers)
        tenant = caller.tenant
        try:
            if caller.admin and not (call.operation.public or call.operation.name in _ADMIN_OPERATIONS):
                raise Refused(Refusal("UNAUTHORIZED", "This operation needs a tenant's API key."))
            body, tenant = _HANDLERS[call.operation.name](self._ledger, call, caller)
            return answers.success(call.operation.status, body, ids, tenant)
        except Refused as e:
            return answers.error(e.refusal, ids, tenant)
        except Exception as e:
            if is_from_handler(e) or isinstance(e, (TransportError, ConfigError)):
                raise
            _log_crash(e, call.operation.name, ids.request_id)
            return answers.error(Refusal("INTERNAL_ERROR", "The authority failed; see its log."), ids, tenant)

    def authenticate(self, secret: str) -> str | None:
        """The tenant that a key's secret belongs to; None for one that is unknown, revoked or expired."""
        with self._ledger.reading() as (db, now):
            return directory.authenticate(db, now, secret)

    # ---- Budgets ----

    def set_budget(
        self,
        scope: str,
        amount: Amount,
        *,
        overdraft_limit: int | Amount | None = None,
        caps: Caps | None = None,
    ) -> Budget:
        """Allocate an amount to a scope such as `tenant:acme/agent:bot`, whether or not it has a budget in that unit.

        `overdraft_limit` is in the same unit; omitted, it and the caps stay as they are, at first 0 and none. An
        empty `Caps()` takes the caps away. Raises `ValidationError`.
        """
        with self._ledger.writing() as (db, _):
            return provisioning.set_budget(db, scope, amount, overdraft_limit, caps)

    def add_budget(
        self,
        scope: str,
        amount: Amount,
        *,
        overdraft_limit: int | Amount | None = None,
        caps: Caps | None = None,
    ) -> bool:
        """Like `set_budget`, but an existing budget is left as it is; whether one was made."""
        with self._ledger.writing() as (db, _):
            return provisioning.add_budget(db, scope, amount, overdraft_limit, caps)

    def fund(self, scope: str, amount: Amount) -> Budget:
        """Add an amount to a budget; debt is repaid first. Raises `ValidationError`, also where there is no budget."""
        with self._ledger.writing() as (db, _):
            return provisioning.fund(db, scope, amount)

    def freeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Let a scope's budget, or with no unit all its budgets, take no new reservation or event for now."""
        return self._set_status(scope, unit, rules.FROZEN)

    def unfreeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Take a freeze back."""
        return self._set_status(scope, unit, rules.ACTIVE)

    def close(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Close a scope's budget, or with no unit all its budgets, for good. (`shutdown` closes the file.)"""
        return self._set_status(scope, unit, rules.CLOSED)

    def budgets(self) -> list[Budget]:
        """Every budget, in the order of scope and unit."""
        with self._ledger.reading() as (db, _):
            return provisioning.budgets(db)

    def check(self) -> list[str]:
        """Verify the ledger's invariants over the whole file; what is wrong, a sentence each."""
        with self._ledger.reading() as (db, _):
            return audit.violations(db)

    def _set_status(self, scope: str, unit: str | Unit | None, status: str) -> list[Budget]:
        with self._ledger.writing() as (db, _):
            return provisioning.set_status(db, scope, unit, status)

    # ---- Tenants and keys ----

    def create_tenant(
        self,
        tenant_id: str,
        name: str | None = None,
        *,
        default_ttl_ms: int | None = None,
        max_ttl_ms: int | None = None,
        default_overage_policy: str | None = None,
        max_extensions: int | None = None,
    ) -> Tenant:
        """Give a tenant (`[a-z0-9-]{3,64}`) a record, with settings other than 60000, 3600000, ALLOW_IF_AVAILABLE, 10.

        The same tenant again is returned as it is; another name or other settings raise `directory.AlreadyExists`, a
        `ValidationError`.
        """
        settings = TenantSettings(default_ttl_ms, max_ttl_ms, default_overage_policy, max_extensions)
        with self._ledger.writing() as (db, now):
            return directory.create_tenant(db, now, tenant_id, name, settings)

    def tenant(self, tenant_id: str) -> Tenant | None:
        """A tenant's record; None where it has none, which does not keep it from having budgets."""
        with self._ledger.reading() as (db, _):
            return directory.tenant(db, tenant_id)

    def close_tenant(self, tenant_id: str) -> Tenant:
        """Close a tenant for good: nothing is reserved, settled or recorded for it any more. Its keys are revoked."""
        with self._ledger.writing() as (db, now):
            return directory.close_tenant(db, now, tenant_id)

    def create_key(
        self,
        tenant_id: str,
        *,
        secret: str | None = None,
        name: str | None = None,
        permissions: Sequence[str] = (),
        expires_at_ms: int | None = None,
    ) -> ApiKey:
        """Make an API key. Its `key_secret` is only in this answer: the file keeps a SHA-256 of it.

        A `secret` of your own (visible ASCII) that is already this tenant's key is returned as that key.
        """
        with self._ledger.writing() as (db, now):
            return directory.create_key(db, now, tenant_id, secret, name, permissions, expires_at_ms)

    def revoke_key(self, key_id: str) -> ApiKey:
        """End a key. Raises `ValidationError` where there is none with this id."""
        with self._ledger.writing() as (db, now):
            return directory.revoke_key(db, now, key_id)

    def keys(self) -> list[ApiKey]:
        """Every key, the oldest first, without their secrets."""
        with self._ledger.reading() as (db, _):
            return directory.keys(db)


def _log_crash(crash: Exception, operation: str, request_id: str) -> None:
    import logging  # only when something is to be said

    message = "the embedded authority failed on %s (%s)"
    logging.getLogger("cycles_lite").error(message, operation, request_id, exc_info=crash)


# ---- One handler per operation: the answer's body, and the tenant that it was for ----

_Handled = Tuple[Any, Optional[str]]
_Handler = Callable[[Ledger, Call, Caller], _Handled]


def _for_subject(operate: Callable[..., Any]) -> _Handler:
    """A handler for an operation whose body names a subject."""

    def handle(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
        request = requests.body(call)
        tenant = requests.subject_tenant(request.subject, caller.tenant)
        with ledger.writing(_timeout(call)) as (db, now):
            return operate(db, now, request, tenant), tenant

    return handle


def _on_reservation(operate: Callable[..., Any]) -> _Handler:
    """A handler for an operation that changes a reservation."""

    def handle(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
        id, request, owner = requests.path_id(call), requests.body(call), caller.tenant
        with ledger.writing(_timeout(call)) as (db, now):
            return operate(db, now, id, request, owner), owner

    return handle


def _get_reservation(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
    id, owner = requests.path_id(call), caller.tenant
    with ledger.reading(_timeout(call)) as (db, now):
        return reads.get_reservation(db, now, id, owner), owner


def _list_reservations(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
    asked = reads.list_filters(call.query)
    if caller.admin and not (asked.tenant or "").strip():
        raise rules.invalid("tenant query parameter is required when using admin key authentication")
    owner = requests.query_tenant(asked.tenant, caller.tenant)
    with ledger.reading(_timeout(call)) as (db, now):
        body = reads.list_reservations(db, now, asked, owner)
    return body, caller.tenant


def _get_balances(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
    asked = reads.balance_filters(call.query)
    owner = requests.query_tenant(asked.tenant, caller.tenant)
    with ledger.reading(_timeout(call)) as (db, now):
        return reads.get_balances(db, now, asked, owner), caller.tenant


def _get_evidence(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
    if _EVIDENCE_ID.match(call.id or "") is None:
        raise rules.invalid("An evidence id is 64 lower-case hexadecimal digits.")
    raise Refused(Refusal("NOT_FOUND", "There is no evidence with this id: this authority signs none."))


def _get_evidence_keys(ledger: Ledger, call: Call, caller: Caller) -> _Handled:
    with ledger.reading(_timeout(call)):  # clients warm up with this: open the file
        pass
    raise Refused(Refusal("NOT_FOUND", "This authority signs nothing, so it has no keys to publish."))


def _timeout(call: Call) -> float | None:
    """Seconds that the caller waits; 0, as from the server, leaves it to the authority."""
    return call.connect_timeout + call.read_timeout or None


_HANDLERS: dict[str, _Handler] = {
    wire.CREATE_RESERVATION.name: _for_subject(operations.reserve),
    wire.DECIDE.name: _for_subject(operations.decide),
    wire.CREATE_EVENT.name: _for_subject(operations.record_event),
    wire.COMMIT_RESERVATION.name: _on_reservation(operations.commit),
    wire.RELEASE_RESERVATION.name: _on_reservation(operations.release),
    wire.EXTEND_RESERVATION.name: _on_reservation(operations.extend),
    wire.GET_RESERVATION.name: _get_reservation,
    wire.LIST_RESERVATIONS.name: _list_reservations,
    wire.GET_BALANCES.name: _get_balances,
    wire.GET_EVIDENCE.name: _get_evidence,
    wire.GET_EVIDENCE_KEYS.name: _get_evidence_keys,
}

#: What an operator's key serves (protocol: `security` of these operations).
_ADMIN_OPERATIONS = frozenset(
    operation.name for operation in (wire.LIST_RESERVATIONS, wire.GET_RESERVATION, wire.RELEASE_RESERVATION)
)
