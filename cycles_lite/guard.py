"""The guard: one reservation around one piece of work, settled once whatever happens.

    state      commit             release            leaving the `with` block                  garbage-collected
    ---------  -----------------  -----------------  ----------------------------------------  --------------------
    ACTIVE     settles: FINISHED  releases:          metered spend is committed, else it is    as leaving, in the
                                  FINISHED           released: FINISHED                        background
    FINISHED   GuardFinalized-    GuardFinalized-    nothing                                   nothing
               Error              Error

A guard belongs to the process that made it: in a forked child it is FINISHED. On a finished guard `spend`, `extend` and
a second `with` raise `GuardFinalizedError` too, because spend that it is told of then would be lost.

A signal handler may raise at any instruction. `_take` claims the guard for whoever ends it. Until `Spend.is_kept` is
set, an exception gives the claim back, and the guard is active again; from then on the settler settles the spend.

What settling means depends on what stands behind the guard: with a reservation it is a commit; where the authority did
not answer and `on_unavailable="allow"` let the work run, it is an event; in the modes `shadow` and `off` it is nothing.
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from enum import Enum
from typing import TYPE_CHECKING, Any, Iterable, Mapping, NoReturn, TypeVar

from .background.heartbeat import Heartbeat
from .background.worker import left_over, worker
from .errors import CyclesError, GuardFinalizedError
from .guards.current import enter, leave
from .guards.interrupted import interrupted_commit
from .protocol import wire
from .protocol.checks import INT64_MAX, integer, is_a, refuse
from .protocol.models import (
    Balance,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationCreateResponse,
    ReservationExtendRequest,
    ReservationExtendResponse,
)
from .protocol.values import Amount, Caps, CyclesMetrics, Decision
from .runtime.log import log
from .session import response_in
from .settlement.meaning import Settlement, SettlementStatus
from .settlement.settler import Settler, settler_of
from .settlement.spend import Meter, Spend, record_of

if TYPE_CHECKING:
    from types import TracebackType

    from .guards.current import GuardToken
    from .guards.generators import GuardedStream
    from .session import Session
    from .settlement.spend import Told

T = TypeVar("T")

#: The guards that have metered something, or whose commit was interrupted, by their `id`. They are cut off at the
#: interpreter's end. A set could not be copied while another thread adds to it.
metered: weakref.WeakValueDictionary[int, ReservationGuard] = weakref.WeakValueDictionary()


class Backing(Enum):
    """What stands behind a guard."""

    RESERVATION = "a reservation"
    EVENT = "an event to come"
    NOTHING = "nothing"


class ReservationGuard:
    """One reservation around one piece of work; made by `CyclesClient.reserve`, best used as a context manager.

    Safe to use from several threads: exactly one commit or release goes through.
    """

    __slots__ = (
        "__weakref__",
        "_action",
        "_answer",
        "_backing",
        "_end_of",
        "_estimate",
        "_heartbeat",
        "_is_cut_off",
        "_is_streamed",
        "_meter",
        "_owed",
        "_pid",
        "_session",
        "_subject",
        "_token",
        "reservation_id",
    )

    #: The reservation's id; None where nothing is reserved.
    reservation_id: str | None

    def __init__(
        self,
        session: Session,
        request: ReservationCreateRequest,
        backing: Backing,
        subject: Mapping[str, Any] | None = None,
        response: ReservationCreateResponse | None = None,
    ) -> None:
        """`subject` is the request's as it was sent; where nothing stands behind the guard, there is none."""
        self._session, self._backing, self._subject = session, backing, subject
        self._action = request.action
        self._estimate = request.estimate
        self.reservation_id = response.reservation_id if response else None
        #: The answer as bytes, which take less memory than models do: programs may have thousands of guards.
        self._answer = response.body if response else None
        self._pid = os.getpid()
        self._meter = Meter()
        #: The spend or the release that has ended this guard; empty while it is active. `setdefault` lets one win.
        self._end_of: dict[str, object] = {}
        #: Whether the library itself has ended the guard, though its work goes on.
        self._is_cut_off = False
        #: Whether an iterator has the guard, so that leaving the `with` block does not end it.
        self._is_streamed = False
        self._token: GuardToken | None = None
        #: What `commit` was told, where an interruption ended it before the spend was kept.
        self._owed: Told | None = None
        self._heartbeat: Heartbeat | None = None
        if response is not None and response.reservation_id and session.config.heartbeat:
            self._heartbeat = Heartbeat(session, response.reservation_id, request.ttl_ms or 60_000, response)

    def __repr__(self) -> str:
        state = "active" if self.is_active else "finished"
        return f"<ReservationGuard {self.reservation_id or self._backing.value}, {self.estimate}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"guard {self.reservation_id or ''} settles in the process that made it, and can be neither pickled nor "
            "copied: settle here what the other process returns, or give it the reservation_id, and have its own "
            "client call commit_reservation()"
        )

    # ---- What was granted ----

    @property
    def _granted(self) -> ReservationCreateResponse | None:
        return ReservationCreateResponse.from_json(wire.loads(self._answer)) if self._answer else None

    @property
    def decision(self) -> Decision | None:
        """ALLOW or ALLOW_WITH_CAPS; in shadow mode None where the work would have been denied or nobody could say."""
        return getattr(self._granted, "decision", None)

    @property
    def caps(self) -> Caps | None:
        """The limits that the work should keep to, with ALLOW_WITH_CAPS."""
        return getattr(self._granted, "caps", None)

    @property
    def is_capped(self) -> bool:
        """Whether `caps` limit the work."""
        return self.decision is Decision.ALLOW_WITH_CAPS

    @property
    def degraded(self) -> bool:
        """Whether the work runs without a reservation, because the authority could not be asked."""
        return self._backing is Backing.EVENT

    @property
    def affected_scopes(self) -> tuple[str, ...]:
        """The scopes that the reservation concerns, such as `tenant:acme/agent:bot`, the widest first."""
        return getattr(self._granted, "affected_scopes", ())

    @property
    def scope_path(self) -> str | None:
        """The deepest of the affected scopes."""
        return getattr(self._granted, "scope_path", None)

    @property
    def estimate(self) -> Amount:
        """What was asked for."""
        return self._estimate

    @property
    def reserved(self) -> Amount:
        """The amount that is held, which is the estimate."""
        return getattr(self._granted, "reserved", None) or self.estimate

    @property
    def balances(self) -> tuple[Balance, ...]:
        """The budgets right after the reservation, where the server told them."""
        return getattr(self._granted, "balances", ())

    @property
    def expires_at_ms(self) -> int | None:
        """When the reservation was to expire at first, in the server's milliseconds since the epoch."""
        return getattr(self._granted, "expires_at_ms", None)

    @property
    def is_active(self) -> bool:
        """Whether this guard can still be committed or released, in this process."""
        return not self._end_of and self._pid == os.getpid()

    # ---- While the work runs ----

    @property
    def spent(self) -> int:
        """What the meter shows, in the estimate's unit."""
        return self._meter.total

    def spend(self, n: int) -> int:
        """Add 0..2^63-1 to the running meter, in the estimate's unit, and return its sum.

        What is metered is committed when the guard is left without a commit, also by an exception. Raises
        `GuardFinalizedError` on a finished guard: that spend is not settled by it.
        """
        n = integer("n", n, 0, INT64_MAX)
        integer("spent", self._meter.total + n, 0, INT64_MAX)
        if self._takes(n):
            metered[id(self)] = self
            self._meter.add(n)
            self._takes(n)  # whoever ends the guard from here on counts this; who has just ended it may not have
            worker.catch_up()
        return self._meter.total

    def _takes(self, n: int) -> bool:
        """Whether spend still counts. Spend on a guard that the library itself has ended is reported, because the work
        is not to blame for it; on any other finished guard it is an error."""
        if self.is_active:
            return True
        if not self._is_cut_off:
            raise self._finalized("spent on")
        unit = self.estimate.unit
        log().error("guard %s was ended by the library before %d %s were spent on it", self.reservation_id, n, unit)
        self._session.tell("SpentTooLate", self.reservation_id, Amount(unit, n))
        return False

    def _demand_active(self, what: str) -> None:
        if not self.is_active:
            raise self._finalized(what)

    def extend(self, extend_by_ms: int) -> ReservationExtendResponse | None:
        """Move the expiry outward by 1..86400000 ms from where it is; the heartbeat takes it into account.

        Returns None where nothing is reserved. Raises as `CyclesClient.extend_reservation` does.
        """
        request = ReservationExtendRequest(extend_by_ms=extend_by_ms)
        self._demand_active("extended")
        if self.reservation_id is None:
            return None
        response: ReservationExtendResponse = response_in(
            self._session.send(wire.EXTEND_RESERVATION, request.to_json(), self.reservation_id)
        )
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
        try:
            if not self.can_cost(actual):
                raise refuse("actual", actual, f"an Amount in {self.estimate.unit}, the reservation's unit")
            return self._settle((actual, metrics, metadata))
        except BaseException:  # where it was interrupted, a guard that is still active ends with this amount
            if self.can_cost(actual):
                self._owed = (actual, metrics, metadata)
                metered[id(self)] = self
            raise

    def can_cost(self, actual: object) -> bool:
        """Whether a value is an amount that can be committed on this reservation."""
        return (type(actual) is Amount or is_a(actual, Amount)) and actual.unit == self.estimate.unit

    def _settle(self, told: Told | None, waits: bool = True) -> Settlement:
        """Go from ACTIVE to FINISHED with what `commit` was told, or else with what the meter shows. It `waits` for the
        answer, or leaves the sending to the background."""
        spend = Spend()
        try:
            self._take("committed", spend)
            if self._backing is Backing.NOTHING:
                spend.is_kept = spend.is_done = True
                return Settlement(SettlementStatus.SKIPPED)
            if told is None:
                told = (Amount(self.estimate.unit, min(self._meter.total, INT64_MAX)), None, None)
            settler: Settler = self._session.settler or settler_of(self._session)
            spend.record = record_of(settler.base_url, self.reservation_id, self._subject, self._action, told)
            settler.accept(spend)
            if self._heartbeat is not None:
                self._heartbeat.stop()
            if waits:
                return settler.settle(spend)
            settler.resume(spend)
            return Settlement(SettlementStatus.PENDING)
        except BaseException:
            if not spend.is_kept:
                self._give_back(spend)
            elif not spend.is_done:
                if self._heartbeat is not None:
                    self._heartbeat.stop()
                settler_of(self._session).resume(spend)
            raise

    def release(self, reason: str) -> None:
        """Give the reservation back unused; a reason is cut to the protocol's 256 characters. A failure is logged: what
        is not released expires. Where an earlier guard on it has told spend that still waits, it is not given back."""
        if not is_a(reason, str):
            raise refuse("reason", reason, "a string")
        request = ReleaseRequest(reason=reason if len(reason) <= 256 else reason[:253] + "...")
        try:
            self._take("released", request)
            if self._heartbeat is not None:
                self._heartbeat.stop()
            if self.reservation_id is not None and settler_of(self._session).has(self.reservation_id):
                log().warning("reservation %s is not released: spend of it is not settled yet", self.reservation_id)
            elif self._backing is Backing.RESERVATION and self.reservation_id is not None:
                told = self._session.send(wire.RELEASE_RESERVATION, request.to_json(), self.reservation_id)
                if isinstance(told, CyclesError):
                    log().warning("reservation %s was not released and will expire: %s", self.reservation_id, told)
                else:
                    self._session.tell("Released", self.reservation_id, request.reason or "")
                    self._session.watch(told)
        except BaseException:  # it was interrupted: leaving the block, or being collected, releases it after all
            self._give_back(request)
            raise

    def _take(self, how: str, end: object) -> None:
        """Let `end` be what ends the guard. One caller succeeds, and for all others the guard is finished."""
        if self._pid != os.getpid() or self._end_of.setdefault("end", end) is not end:
            raise self._finalized(how)

    def _give_back(self, end: object) -> None:
        if self._end_of.get("end") is end:
            del self._end_of["end"]

    def _finalized(self, how: str) -> GuardFinalizedError:
        why = "it is finished" if self._pid == os.getpid() else f"it belongs to process {self._pid}"
        return GuardFinalizedError(f"guard {self.reservation_id or ''} cannot be {how}: {why}")

    # ---- As a context manager ----

    def __enter__(self) -> ReservationGuard:
        self._demand_active("entered")
        self._token = enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, where: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        leave(token)
        if exception is not None or not self._is_streamed:
            self.end(exception)

    def stream(self, iterable: Iterable[T]) -> GuardedStream[T]:
        """Hand the guard to an iterator, such as a streaming response's: leaving the `with` block does not end it any
        more, unless by an exception. It is current inside each step, and exhaustion, `close()`, an exception or
        collection settle it, as leaving the block would."""
        from .guards.generators import GuardedStream  # only streams need it

        self._demand_active("streamed")
        stream = GuardedStream(self, iterable)
        self._is_streamed = True
        return stream

    def end(self, exception: BaseException | None) -> None:
        """End as leaving the `with` block does: what was metered is committed, else the reservation is released. The
        exception that ends the work, where there is one, wins over an error of ours."""
        # An interpreter that ends cannot send; its end has committed what was metered before.
        if not self.is_active or sys.is_finalizing():
            return
        try:
            owed = self._owed or interrupted_commit(self, exception)
            if owed or self._meter.total:
                self._settle(owed)
                return
            if exception is None:
                log().warning("guard %s was left without a commit; it is released", self.reservation_id or "")
            self.release("no commit" if exception is None else type(exception).__name__)
        except GuardFinalizedError:  # another thread has ended it first
            return
        except CyclesError as e:
            if exception is None:
                raise
            log().error("spend of reservation %s was not settled: %s", self.reservation_id, e)

    def commit_later(self, actual: Amount | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Commit an amount in the background, or what was metered where none is given. It is on record when this
        returns."""
        try:
            self._settle((actual, None, metadata) if actual is not None else self._owed, waits=False)
        except GuardFinalizedError:
            return

    def cut_off(self, waits: bool = True) -> Settlement | None:
        """End this guard although its work goes on, because there is no more time. What was metered is committed, and
        spend that comes later is reported and raises nothing. A guard that has metered nothing stays active, so that
        its work may still commit, or else expires.

        Where it does not wait, as at the interpreter's end, the record is written now, and sent afterwards.
        """
        if not (self._owed or self._meter.total) or not self.is_active:
            return None
        self._is_cut_off = True
        try:
            return self._settle(self._owed, waits)
        except GuardFinalizedError:  # the work has ended it first
            self._is_cut_off = False
            return None
        except CyclesError as e:
            log().error("spend of reservation %s was not settled: %s", self.reservation_id, e)
            return None

    def __del__(self) -> None:
        # A finalizer may run at any moment, while any lock is held. So this one only puts a method of the guard into a
        # deque, which keeps the guard alive until the worker has settled it. Python runs a finalizer once (PEP 442).
        try:
            is_abandoned = self.is_active and self._backing is not Backing.NOTHING
        except AttributeError:  # the constructor did not get that far
            return
        if is_abandoned:
            left_over.append(self.settle_abandoned)
            warnings.warn(f"{self!r} was never finished", ResourceWarning, stacklevel=2, source=self)

    def settle_abandoned(self) -> None:
        """Settle a guard that was collected unfinished. What was metered is on record when this returns, and is sent in
        the background; without any, the reservation is released there."""
        if self._owed or self._meter.total:
            self.commit_later()
        elif self.is_active:
            settler = settler_of(self._session)
            settler.release(self, lambda: self.end(Abandoned("a guard was collected unfinished")))


class Abandoned(Exception):
    """The exception that ends a guard which was garbage-collected; its name is the reason of the release."""
