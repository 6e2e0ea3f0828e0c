"""Spend on its way to being settled: what is known of it in this process. Its record is what is on disk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple

from ..errors import ValidationError
from ..protocol.models import CommitRequest
from ..protocol.values import Action, Amount, CommitOveragePolicy, CyclesMetrics
from ..runtime.clock import now_ms
from ..runtime.log import log
from .journal import COMMIT, EVENT, Journal, Record
from .meaning import LONGEST_WAIT

if TYPE_CHECKING:
    from ..background.worker import Job

#: The arguments of `commit`: amount, metrics and metadata.
Told = Tuple[Amount, Optional[CyclesMetrics], Optional[Mapping[str, Any]]]

#: How many entries of a meter are summed up at once.
_FOLD = 256

#: The policy of events that stand in for a commit: a tenant's default may be to reject, and the spend is real.
_EVENT_POLICY = CommitOveragePolicy.ALLOW_IF_AVAILABLE.value


class Meter:
    """A sum of whole numbers, to which threads and signal handlers add without losing anything.

    `sum += n` is several instructions; what is added between them is lost, and a lock around them would be met a second
    time by a signal handler that adds too. Appending to a list is one instruction. So the meter is a list whose sum is
    what it shows. Where the list has grown long, one thread at a time replaces its first entries by their sum, which is
    one instruction too; should an interruption keep that from ever being done again, the list grows and the sum stays
    right.
    """

    __slots__ = ("_entries", "_may_fold")

    def __init__(self) -> None:
        self._entries: list[int] = []
        #: One entry, which is popped by the thread that sums up, and put back. Popping is atomic.
        self._may_fold = [True]

    @property
    def total(self) -> int:
        """What was added up to now."""
        return sum(self._entries)

    def add(self, n: int) -> None:
        """Add to the sum."""
        self._entries.append(n)
        if len(self._entries) <= _FOLD:
            return
        try:
            self._may_fold.pop()
        except IndexError:  # another thread is summing up, or the code that this signal handler has interrupted
            return
        self._entries[:_FOLD] = [sum(self._entries[:_FOLD])]
        self._may_fold.append(True)


class Spend:
    """Spend of one reservation. It belongs to the guard until `is_kept`, then to the settler."""

    #: What is known of it, as it is on disk.
    record: Record
    #: What its file is named by: the reservation's id; or, where other spend of that waits, the record's `other_place`.
    place = ""
    #: Whether the settler has it, and will settle it or report it as refused.
    is_kept = False
    #: Whether it was settled or reported as refused.
    is_done = False
    #: Whether the record is on disk, in `journal`.
    is_written = False
    #: Whether the record was found in the journal, where other processes may find it too.
    is_found = False
    #: Where the record is kept; None where there is no journal.
    journal: Journal | None = None
    #: How many attempts were begun, and the number of the last one among all of its settler's.
    attempt = 0
    number = 0
    #: When its last attempt ended, if nothing was heard for a while: a monotonic time, else long ago.
    silent_at = -math.inf
    #: The thread that is settling it.
    runner: int | None = None
    #: The next attempt in the background.
    job: Job | None = None


def record_of(base_url: str, reservation_id: str | None, subject: Any, action: Action, told: Told) -> Record:
    """The record of spend: the body of the commit, and that of the event that may have to replace it. Metrics and
    metadata that cannot be sent are left out, because they must not keep the amount from being settled."""
    actual, metrics, metadata = told
    commit, faults = CommitRequest.of_spend(actual, metrics=metrics, metadata=metadata)
    for fault in faults:
        log().error("the commit of %s goes without what cannot be sent: %s", actual, fault)
    body = commit.to_json()
    is_held = reservation_id is not None
    recovery: dict[str, Any] = {"recovery_reason": "reserve_unavailable"}
    if is_held:
        recovery = {"recovered_reservation_id": reservation_id, "recovery_reason": "reservation_expired"}
    event = {
        **body,  # actual, metrics and key
        "subject": subject,
        "action": action.to_json(),
        "overage_policy": _EVENT_POLICY,
        "metadata": {**(commit.metadata or {}), **recovery},
    }
    return Record(
        reservation_id=reservation_id or f"degraded:{commit.idempotency_key}",
        base_url=base_url,
        mode=COMMIT if is_held else EVENT,
        commit_body=body if is_held else None,
        event_fallback_body=event,
        recorded_at_ms=now_ms(),
    )


def amount_of(body: dict[str, Any]) -> Amount | None:
    """The amount in a settlement's body; None where another SDK wrote one that this library cannot read."""
    try:
        return Amount.parse(body.get("actual"), "actual")
    except ValidationError:
        return None


def until(record: Record) -> float:
    """Seconds until a record may be sent, an hour at the most."""
    if record.not_before_ms is None:
        return 0.0
    return min(max(0.0, (record.not_before_ms - now_ms()) / 1000), LONGEST_WAIT)
