"""Spend on its way to being settled: what is known of it in this process. Its record is what is on disk."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple

from ..errors import ValidationError
from ..protocol.models import CommitRequest
from ..protocol.values import Amount, CommitOveragePolicy, CyclesMetrics
from ..runtime.clock import now_ms
from ..runtime.log import log
from .journal import COMMIT, EVENT, Journal, Record, normalised
from .meaning import LONGEST_WAIT

if TYPE_CHECKING:
    from ..background.worker import Job
    from ..client import CyclesClient
    from ..guard import ReservationGuard
    from ..protocol.models import ReservationCreateRequest

#: What `commit` is told: an amount, and what stands beside it.
Told = Tuple[Amount, Optional[CyclesMetrics], Optional[Mapping[str, Any]]]

#: The policy of events that stand in for a commit: a tenant's default may be to reject, and the spend is real.
_EVENT_POLICY = CommitOveragePolicy.ALLOW_IF_AVAILABLE.value


class Spend:
    """Spend of one reservation; first its guard's, then the settler's."""

    __slots__ = (
        "attempt",
        "is_done",
        "is_found",
        "is_kept",
        "is_written",
        "job",
        "journal",
        "record",
        "runner",
        "teller",
    )

    record: Record

    def __init__(self, record: Record | None = None) -> None:
        if record is not None:
            self.record = record
        #: From here on the settler answers for it.
        self.is_kept = False
        #: It was settled, or reported as refused.
        self.is_done = False
        #: The record is on disk, in `journal`.
        self.is_written = False
        #: The record was found there: others may have found it too.
        self.is_found = False
        self.journal: Journal | None = None
        #: Attempts that were begun.
        self.attempt = 0
        #: The thread that is at it, and the one that is telling the observer of its failure.
        self.runner: int | None = None
        self.teller: int | None = None
        #: The next attempt in the background.
        self.job: Job | None = None


def record_of(
    client: CyclesClient,
    request: ReservationCreateRequest,
    reservation_id: str | None,
    actual: Amount,
    metrics: CyclesMetrics | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Record:
    """Spend as the journal keeps it: the commit, and the event that may have to stand in for it. What is told beside
    the amount never keeps it from being settled: what cannot be sent is left out."""
    commit, faults = CommitRequest.of_spend(actual, metrics=metrics, metadata=metadata)
    for fault in faults:
        log().error("the commit of %s goes without what cannot be sent: %s", actual, fault)
    body = commit.to_json()
    if reservation_id is not None:
        recovery = {"recovered_reservation_id": reservation_id, "recovery_reason": "reservation_expired"}
    else:
        recovery = {"recovery_reason": "reserve_unavailable"}
    event = {
        **body,  # actual, metrics and key
        "subject": client.subject_of(request),
        "action": request.action.to_json(),
        "overage_policy": _EVENT_POLICY,
        "metadata": {**(commit.metadata or {}), **recovery},
    }
    return Record(
        reservation_id=reservation_id or f"degraded:{commit.idempotency_key}",
        base_url=normalised(client.config.base_url or ""),
        mode=COMMIT if reservation_id is not None else EVENT,
        commit_body=body if reservation_id is not None else None,
        event_fallback_body=event,
        recorded_at_ms=now_ms(),
    )


def interrupted_commit(guard: ReservationGuard, exception: BaseException | None) -> Told | None:
    """What `commit` was told, where a signal handler raised this exception at the very first of its instructions: then
    its own frame alone knows."""
    if exception is None:
        return None
    for frame, _ in traceback.walk_tb(exception.__traceback__):
        told = frame.f_locals if frame.f_code is type(guard).commit.__code__ else {}
        if told.get("self") is guard and guard.can_cost(told["actual"]):
            return told["actual"], told["metrics"], told["metadata"]
    return None


def amount_of(body: dict[str, Any]) -> Amount | None:
    """The amount in a settlement's body; None for one that another SDK wrote in a way of its own."""
    try:
        return Amount.parse(body.get("actual"), "actual")
    except ValidationError:
        return None


def until(record: Record) -> float:
    """Seconds until a record may be sent, an hour at the most."""
    if record.not_before_ms is None:
        return 0.0
    return min(max(0.0, (record.not_before_ms - now_ms()) / 1000), LONGEST_WAIT)
