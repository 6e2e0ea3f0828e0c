"""The guard: one reservation around one piece of work, settled once whatever happens.

    state      commit             release            leaving the `with` block                  garbage-collected
    ---------  -----------------  -----------------  ----------------------------------------  --------------------
    ACTIVE     settles: FINISHED  releases:          metered spend is committed, else it is    as leaving, in the
                                  FINISHED           released: FINISHED                        background
    FINISHED   GuardFinalized-    GuardFinalized-    nothing                                   nothing
               Error              Error

A guard belongs to the process that made it: in a forked child it is FINISHED.

What stands behind a guard is one of three, and decides what settling means: a reservation (a commit), the authority's
silence where `on_unavailable="allow"` let the work through (an event), or nothing (modes `shadow` and `off`).
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import contextmanager
from contextvars import ContextVar, Token
from enum import Enum
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from . import events, wire
from .checks import INT64_MAX, integer, refuse
from .clock import now_ms
from .errors import BudgetDenied, CyclesError, GuardFinalizedError, ResponseError, ServerError, TransportError
from .heartbeat import Heartbeat
from .journal import COMMIT, EVENT, Record, normalised
from .log import log
from .models import (
    Balance,
    CommitRequest,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationCreateResponse,
    ReservationExtendRequest,
    ReservationExtendResponse,
)
from .settlement import Settlement, SettlementStatus
from .values import Amount, Caps, CommitOveragePolicy, CyclesMetrics, Decision
from .worker import left_over, metered, worker

if TYPE_CHECKING:
    from types import TracebackType

    from .client import CyclesClient

#: The policy of events that stand in for a commit: a tenant's default may be to reject, and the spend is real.
_EVENT_POLICY = CommitOveragePolicy.ALLOW_IF_AVAILABLE.value

_current: ContextVar[ReservationGuard | None] = ContextVar("cycles_lite_guard", default=None)


def current_guard() -> ReservationGuard | None:
    """The innermost guard whose `with` block, wrapped call or decorated function runs here; None outside of any."""
    return _current.get()


@contextmanager
def inside(guard: ReservationGuard) -> Iterator[None]:
    """Make a guard the current one, without ending it."""
    token = _current.set(guard)
    try:
        yield
    finally:
        _leave(token)


def _leave(token: Token[ReservationGuard | None] | None) -> None:
    """Make the guard around this one current again."""
    if token is None:
        return
    try:
        _current.reset(token)
    except ValueError:  # entered in another context, as by a generator that is closed elsewhere: nothing to restore
        return


class _Backing(Enum):
    """What stands behind a guard."""

    RESERVATION = "a reservation"
    EVENT = "an event to come"
    NOTHING = "nothing"


def reserve(client: CyclesClient, request: ReservationCreateRequest) -> ReservationGuard:
    """A guard on a new reservation, as the client's mode says. Raises `BudgetDenied` and every other refusal."""
    if client.config.mode == "off":
        return ReservationGuard(client, request, _Backing.NOTHING, None)
    client.settler.open()
    if client.config.mode == "shadow":
        return ReservationGuard(client, request, _Backing.NOTHING, _ask(client, request))
    try:
        response = client.create_reservation(request)
        if not response.is_allowed or not response.reservation_id:
            raise wire.denied(response)
    except BudgetDenied as e:
        client.observe(events.Denied(request.estimate, request.action, e, False))
        raise
    except (TransportError, ResponseError, ServerError) as e:
        if client.config.on_unavailable != "allow":
            raise
        log().warning("the authority cannot be asked (%s): the work runs, and its spend is recorded afterwards", e)
        client.observe(events.Degraded(request.estimate, request.action, e))
        return ReservationGuard(client, request, _Backing.EVENT, None)
    client.observe(events.Reserved(response.reservation_id, request.estimate, request.action, response))
    return ReservationGuard(client, request, _Backing.RESERVATION, response)


def _ask(client: CyclesClient, request: ReservationCreateRequest) -> ReservationCreateResponse | None:
    """Shadow mode: what the authority would have said, for the log. Nothing that it says stops the work."""
    try:
        response = client.create_reservation(request)
        if not response.is_allowed:
            raise wire.denied(response)
        return response
    except BudgetDenied as e:
        log().warning("shadow mode: %s of %s would have been denied: %s", request.action.kind, request.estimate, e)
        client.observe(events.Denied(request.estimate, request.action, e, True))
    except CyclesError as e:
        log().warning("shadow mode: the authority could not be asked about %s: %s", request.action.kind, e)
        client.observe(events.Degraded(request.estimate, request.action, e))
    return None


class ReservationGuard:
    """One reservation around one piece of work; made by `CyclesClient.reserve`, best used as a context manager.

    Safe to use from several threads: exactly one commit or release goes through.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_backing",
        "_client",
        "_heartbeat",
        "_lock",
        "_meter",
        "_pid",
        "_request",
        "_token",
        "_unfinished",
        "reservation_id",
    )

    #: The reservation's id; None where nothing is reserved.
    reservation_id: str | None

    def __init__(
        self,
        client: CyclesClient,
        request: ReservationCreateRequest,
        backing: _Backing,
        response: ReservationCreateResponse | None,
    ) -> None:
        self._client, self._request, self._backing = client, request, backing
        self.reservation_id = response.reservation_id if response else None
        #: The answer's bytes alone, because programs have thousands of guards, and seldom ask them for more.
        self._answer = response.body if response else None
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the meter
        self._meter = 0
        #: One entry while ACTIVE. Popping it is atomic: whoever gets it finishes the guard.
        self._unfinished = [True]
        self._token: Token[ReservationGuard | None] | None = None
        self._heartbeat: Heartbeat | None = None
        if response is not None and response.reservation_id and client.config.heartbeat:
            self._heartbeat = Heartbeat(client, response.reservation_id, request.ttl_ms or 60_000, response)

    def __repr__(self) -> str:
        state = "active" if self.is_active else "finished"
        return f"<ReservationGuard {self.reservation_id or self._backing.value}, {self._request.estimate}, {state}>"

    # ---- What was granted ----

    @property
    def _granted(self) -> ReservationCreateResponse | None:
        return ReservationCreateResponse.from_json(wire.loads(self._answer)) if self._answer else None

    @property
    def decision(self) -> Decision | None:
        """ALLOW or ALLOW_WITH_CAPS; in shadow mode None where the work would have been denied or nobody could say."""
        granted = self._granted
        return granted.decision if granted else None

    @property
    def caps(self) -> Caps | None:
        """The limits that the work should keep to, with ALLOW_WITH_CAPS."""
        granted = self._granted
        return granted.caps if granted else None

    @property
    def is_capped(self) -> bool:
        return self.decision is Decision.ALLOW_WITH_CAPS

    @property
    def degraded(self) -> bool:
        """Whether the work runs without a reservation, because the authority could not be asked."""
        return self._backing is _Backing.EVENT

    @property
    def affected_scopes(self) -> tuple[str, ...]:
        granted = self._granted
        return granted.affected_scopes if granted else ()

    @property
    def scope_path(self) -> str | None:
        granted = self._granted
        return granted.scope_path if granted else None

    @property
    def estimate(self) -> Amount:
        """What was asked for."""
        return self._request.estimate

    @property
    def reserved(self) -> Amount:
        """What is held: the estimate."""
        granted = self._granted
        return (granted.reserved if granted else None) or self._request.estimate

    @property
    def balances(self) -> tuple[Balance, ...]:
        """The budgets right after the reservation, where the server told them."""
        granted = self._granted
        return granted.balances if granted else ()

    @property
    def expires_at_ms(self) -> int | None:
        """When the reservation was to expire at first, in the server's milliseconds since the epoch."""
        granted = self._granted
        return granted.expires_at_ms if granted else None

    @property
    def is_active(self) -> bool:
        """Whether it still can be committed or released here."""
        return bool(self._unfinished) and self._pid == os.getpid()

    # ---- While the work runs ----

    @property
    def spent(self) -> int:
        """What the meter shows, in the estimate's unit."""
        return self._meter

    def spend(self, n: int) -> int:
        """Add 0..2^63-1 to the running meter, in the estimate's unit, and return its sum.

        What is metered is committed when the guard is left without a commit, also by an exception.
        """
        n = integer("n", n, 0, INT64_MAX)
        with self._lock:
            if not self._meter:
                metered[id(self)] = self
            self._meter = integer("spent", self._meter + n, 0, INT64_MAX)
        worker.catch_up()
        return self._meter

    def extend(self, extend_by_ms: int) -> ReservationExtendResponse | None:
        """Move the expiry outward by 1..86400000 ms from where it is; the heartbeat takes it into account.

        Returns None where nothing is reserved. Raises as `CyclesClient.extend_reservation` does.
        """
        request = ReservationExtendRequest(extend_by_ms=extend_by_ms)
        if not self.is_active:
            raise self._finalized("extended")
        if self.reservation_id is None:
            return None
        response = self._client.extend_reservation(self.reservation_id, request)
        if self._heartbeat is not None:
            self._heartbeat.extended(response)
        return response

    # ---- The end ----

    def commit(
        self,
        actual: Amount,
        *,
        metrics: CyclesMetrics | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Settlement:
        """Settle with what the work really cost, in the estimate's unit.

        From here on the amount is settled once or reported as refused: PENDING means that it is kept and retried.
        Raises `GuardFinalizedError` for a second end and the authority's own refusal (`SettlementRejectedError`,
        `NotFoundError`, …) where that is final.
        """
        if not isinstance(actual, Amount) or actual.unit != self._request.estimate.unit:
            raise refuse("actual", actual, f"an Amount in {self._request.estimate.unit}, the reservation's unit")
        request = CommitRequest(actual=actual, metrics=metrics, metadata=metadata)
        if self._backing is _Backing.NOTHING:
            self._finish("committed")
            return Settlement(SettlementStatus.SKIPPED)
        record = self._record(request)  # first: what fails here leaves the guard as it is
        self._finish("committed")
        return self._client.settler.settle(record)

    def release(self, reason: str) -> None:
        """Give the reservation back unused. A failure is logged: what is not released expires."""
        request = ReleaseRequest(reason=_shortened(reason))
        self._finish("released")
        if self._backing is not _Backing.RESERVATION or self.reservation_id is None:
            return
        try:
            self._client.release_reservation(self.reservation_id, request)
        except CyclesError as e:
            log().warning("reservation %s was not released and will expire: %s", self.reservation_id, e)
        else:
            self._client.observe(events.Released(self.reservation_id, reason))

    def _finish(self, how: str) -> None:
        """ACTIVE to FINISHED, for one caller."""
        try:
            if self._pid != os.getpid():
                raise IndexError
            self._unfinished.pop()
        except IndexError:
            raise self._finalized(how) from None
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _finalized(self, how: str) -> GuardFinalizedError:
        why = "it is finished" if self._pid == os.getpid() else f"it belongs to process {self._pid}"
        return GuardFinalizedError(f"guard {self.reservation_id or ''} cannot be {how}: {why}")

    def _record(self, commit: CommitRequest) -> Record:
        """The spend as the journal keeps it: the commit, and the event that may have to stand in for it."""
        body = commit.to_json()
        id = self.reservation_id
        if id is not None:
            recovery = {"recovered_reservation_id": id, "recovery_reason": "reservation_expired"}
        else:
            recovery = {"recovery_reason": "reserve_unavailable"}
        event = {
            **body,  # actual, metrics and key
            "subject": self._client.subject_of(self._request),
            "action": self._request.action.to_json(),
            "overage_policy": _EVENT_POLICY,
            "metadata": {**(commit.metadata or {}), **recovery},
        }
        return Record(
            reservation_id=id or f"degraded:{commit.idempotency_key}",
            base_url=normalised(self._client.config.base_url or ""),
            mode=COMMIT if id is not None else EVENT,
            commit_body=body if id is not None else None,
            event_fallback_body=event,
            recorded_at_ms=now_ms(),
        )

    # ---- As a context manager ----

    def __enter__(self) -> ReservationGuard:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _leave(self._token)
        self._token = None
        if self.is_active:
            self._end_unsettled(exception)

    def fail(self, error: BaseException) -> None:
        """End as leaving the `with` block by this exception does."""
        if self.is_active:
            self._end_unsettled(error)

    def _end_unsettled(self, exception: BaseException | None) -> None:
        """Leave without a commit: by the meter, or with nothing. An exception that is on its way wins over ours."""
        if sys.is_finalizing():  # nothing can be sent any more; the meter was handed over before
            return
        try:
            if self._meter:
                self.commit(Amount(self._request.estimate.unit, self._meter))
                return
            if exception is None:
                log().warning("guard %s was left without a commit; it is released", self.reservation_id or "")
            self.release("no commit" if exception is None else type(exception).__name__)
        except GuardFinalizedError:  # another thread was first
            return
        except CyclesError as e:
            if exception is None:
                raise
            log().error("spend of reservation %s was not settled: %s", self.reservation_id, e)

    def __del__(self) -> None:
        # Finalizers run at any moment, while any lock may be held: this one only leaves a note, which keeps the guard
        # alive until it is settled. Python runs a finalizer once (PEP 442).
        try:
            is_abandoned = self.is_active and self._backing is not _Backing.NOTHING
        except AttributeError:  # the constructor did not get that far
            return
        if is_abandoned:
            left_over.put(self._settle_abandoned)
            warnings.warn(f"{self!r} was never finished", ResourceWarning, stacklevel=2, source=self)

    def hand_over(self) -> None:
        """At the interpreter's end: commit the meter in the background. A guard without one is left to expire, because
        its work may still commit, in a thread or an exit handler."""
        if self._meter and self.is_active:
            left_over.put(self._settle_abandoned)

    def _settle_abandoned(self) -> None:
        self._end_unsettled(Abandoned("a guard was collected unfinished"))


class Abandoned(Exception):
    """What ends a guard that was garbage-collected: the reason of its release."""


def _shortened(reason: str) -> str:
    """A reason within the protocol's 256 characters."""
    if not isinstance(reason, str):
        raise refuse("reason", reason, "a string")
    return reason if len(reason) <= 256 else reason[:253] + "..."
