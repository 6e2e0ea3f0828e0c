"""When a reservation is extended next: the arithmetic of the heartbeat, pure.

The protocol's HEARTBEAT GUIDANCE (`/v1/reservations/{reservation_id}/extend`), its PRIMARY ALGORITHM:

    lead_floor   = max(0, remaining_ttl_ms - rtt)
    budget       = max(bound on one attempt, 1 s, 2 x maximum observed rtt)
    margin       = max(1 s, 2 x maximum observed rtt)
    next_delay   = max(0, lead_floor - 2 x budget - margin)           a failed attempt and its retry still fit
    retry_window = max(0, lead_floor - elapsed) - budget - margin     a retry still fits; below 0 none does

==========================  =======================================  ==========================================
what came back              last success had `remaining_ttl_ms`      it had none
==========================  =======================================  ==========================================
success                     BEAT after next_delay;                   BEAT after min(ttl/2, 30 s)
                            STOP at the second in a row that is 0
no answer, a broken one,    RETRY after                              RETRY at the next beat of that cadence
5xx                         min(30 s, lead/4, retry_window)
429                         RETRY after Retry-After                  RETRY then, not before Retry-After
                            if that is within retry_window
a permanent code            STOP                                     STOP
any other refusal           STOP                                     STOP
==========================  =======================================  ==========================================

Each success is judged by itself: a server that begins or ceases to send `remaining_ttl_ms` changes the column.
Times are milliseconds of one monotonic clock, best unrounded: `_up` rounds what passes between two of them, and
timeouts. So budgets, margins and elapsed times are rounded up, therefore leads down, and delays are whole from there.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

from ..errors import ApiError, CyclesError, ResponseError, TransportError, known_code

_LEAST_BUDGET_MS = 1000
_LEAST_MARGIN_MS = 1000
_LONGEST_RETRY_MS = 30_000
_LONGEST_CADENCE_MS = 30_000
#: Half of the shortest legal TTL, so that no other value makes the cadence a busy loop.
_SHORTEST_CADENCE_MS = 500


class Failure(Enum):
    """What an error means for a heartbeat."""

    #: The extension may have happened; with the same key it happens once.
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    #: The reservation takes no extension any more.
    PERMANENT = "permanent"
    #: The request or the key is not accepted; an unchanged request must not go out again.
    REFUSED = "refused"


class Next(Enum):
    """What a heartbeat does next."""

    #: Extend by the requested TTL, with a fresh idempotency key.
    BEAT = "beat"
    #: Send the failed extension again, with its own idempotency key.
    RETRY = "retry"
    STOP = "stop"


class Stop(Enum):
    """Why a heartbeat ends, in words for a log line; the error beside it tells the code."""

    PERMANENT = "the reservation can be extended no further"
    REFUSED = "the extension was refused"
    TOO_SHORT = "the lease is shorter than its retry-safety budget"
    NO_SAFE_RETRY = "no complete retry is sure to fit into what is left of the lease"
    THROTTLED = "throttled, with no retry that is both allowed and sure to fit into the lease"
    NO_PROGRESS = "the clock did not advance since the previous failure"


_FINAL = {Failure.PERMANENT: Stop.PERMANENT, Failure.REFUSED: Stop.REFUSED}


class Step(NamedTuple):
    """What comes next. The delay counts from the answer's receipt, or from the failure."""

    next: Next
    delay_ms: int = 0
    #: Why there is no next attempt; with STOP, and only there.
    reason: Stop | None = None


class Lease(NamedTuple):
    """What a heartbeat remembers between two attempts. Immutable: each answer makes the next one."""

    #: The requested TTL, by which each beat extends.
    ttl_ms: int
    #: The bound on one complete attempt; None means unknown, which counts as infinite.
    request_timeout_ms: int | None
    max_rtt_ms: int = 0
    #: At the last success, a lower bound on what remained; None where the answer had no `remaining_ttl_ms`.
    lead_floor_ms: int | None = None
    #: When that success was received.
    established_ms: float | None = None
    #: Whether that success gave a next_delay of 0.
    was_zero: bool = False
    #: The time from that success to the last failure; None where no attempt has failed since.
    failed_after_ms: int | None = None


def attempt_timeout_ms(connect_ms: float, read_ms: float, ttl_ms: float) -> int:
    """The bound on one extend attempt: where round trips are short, every TTL over 4 s leaves a positive delay."""
    return math.ceil(min(connect_ms + read_ms, max(_LEAST_BUDGET_MS, ttl_ms / 4)))


def classify(error: CyclesError) -> Failure:
    """What an extension's error means. The status goes first: codes are an open set, also beside a 5xx."""
    if isinstance(error, (TransportError, ResponseError)):
        return Failure.TRANSIENT
    if not isinstance(error, ApiError):
        return Failure.REFUSED  # our own check refused it: nothing was sent, and the same again would be refused
    if error.status >= 500:
        return Failure.TRANSIENT
    if known_code(error.code).ends_lease or error.status == 410:
        return Failure.PERMANENT
    return Failure.THROTTLED if error.status == 429 else Failure.REFUSED


def created(
    ttl_ms: int,
    request_timeout_ms: float | None,
    remaining_ttl_ms: int | None,
    sent_ms: float | None,
    received_ms: float | None,
) -> tuple[Lease, Step]:
    """The lease of a reservation that was just created; the times are those of the attempt that was answered.

    `request_timeout_ms` bounds a whole extend attempt until its failure is known. What enforces it should aim a little
    lower: after a failure that takes it all and a hair, retry_window is below 0, and there is no retry.
    """
    return extended(Lease(ttl_ms, _up(request_timeout_ms)), remaining_ttl_ms, sent_ms, received_ms)


def extended(
    lease: Lease, remaining_ttl_ms: int | None, sent_ms: float | None, received_ms: float | None
) -> tuple[Lease, Step]:
    """The lease after a valid success. It depends on this answer alone, and on the longest round trip so far."""
    rtt = _between(sent_ms, received_ms)
    max_rtt = max(lease.max_rtt_ms, rtt or 0)
    lease = lease._replace(max_rtt_ms=max_rtt, established_ms=received_ms, failed_after_ms=None)
    if remaining_ttl_ms is None:
        return lease._replace(lead_floor_ms=None, was_zero=False), Step(Next.BEAT, _cadence(lease))
    # Without attempt timing "the client MUST set lead_floor and next_delay to 0", and not fall back to the cadence.
    lead_floor = 0 if rtt is None else max(0, remaining_ttl_ms - rtt)
    delay = max(0, _spare(lease, lead_floor, attempts=2))
    # One immediate beat may establish a longer lead; "if that success also produces next_delay = 0, the client MUST
    # stop". The creation counts as a success, and a failure in between changes nothing.
    too_short = delay == 0 and lease.was_zero
    lease = lease._replace(lead_floor_ms=lead_floor, was_zero=delay == 0)
    return lease, Step(Next.STOP, reason=Stop.TOO_SHORT) if too_short else Step(Next.BEAT, delay)


def failed(lease: Lease, error: CyclesError, now_ms: float | None) -> tuple[Lease, Step]:
    """The lease after an extension that failed or whose answer proves nothing; `now_ms` is when that was known."""
    failure = classify(error)
    if failure in _FINAL:
        return lease, Step(Next.STOP, reason=_FINAL[failure])
    elapsed = _between(lease.established_ms, now_ms)
    asked = None if error.retry_after is None else _up(1000 * error.retry_after)
    if lease.lead_floor_ms is not None:
        return _recover(lease, failure, elapsed, asked)
    cadence = _cadence(lease)
    delay = cadence - (elapsed or 0) % cadence
    return lease, Step(Next.RETRY, max(delay, asked or 0) if failure is Failure.THROTTLED else delay)


def _recover(lease: Lease, failure: Failure, elapsed: int | None, asked: int | None) -> tuple[Lease, Step]:
    """The retry that "On an EXTEND transient failure" allows, from the last success and the time since then."""
    if elapsed is None:  # "Unknown timing MUST NOT be treated as zero elapsed time."
        return lease, Step(Next.STOP, reason=Stop.NO_SAFE_RETRY)
    lead = max(0, (lease.lead_floor_ms or 0) - elapsed)
    window = _spare(lease, lead, attempts=1)
    if window < 0:
        return lease, Step(Next.STOP, reason=Stop.NO_SAFE_RETRY)
    # Between two successes the window shrinks by what elapses and by nothing else, so this one guard is both of the
    # protocol's: no retry without progress, and no second one at a window of 0.
    if lease.failed_after_ms is not None and elapsed <= lease.failed_after_ms:
        return lease, Step(Next.STOP, reason=Stop.NO_PROGRESS)
    delay = min(_LONGEST_RETRY_MS, lead // 4, window)
    if failure is Failure.THROTTLED:
        if asked is None or asked > window:
            return lease, Step(Next.STOP, reason=Stop.THROTTLED)
        delay = asked
    return lease._replace(failed_after_ms=elapsed), Step(Next.RETRY, delay)


def _spare(lease: Lease, lead: int, attempts: int) -> int:
    """What a lead has left beside complete attempts and the safety margin; negative where it has too little."""
    if lease.request_timeout_ms is None:
        return -1  # the budget is infinite, and any negative number says that nothing is left
    budget = max(lease.request_timeout_ms, _LEAST_BUDGET_MS, 2 * lease.max_rtt_ms)
    return lead - attempts * budget - max(_LEAST_MARGIN_MS, 2 * lease.max_rtt_ms)


def _cadence(lease: Lease) -> int:
    return max(_SHORTEST_CADENCE_MS, min(lease.ttl_ms // 2, _LONGEST_CADENCE_MS))


def _between(start_ms: float | None, end_ms: float | None) -> int | None:
    return None if start_ms is None or end_ms is None else _up(end_ms - start_ms)


def _up(span_ms: float | None) -> int | None:
    """A span, rounded up to whole milliseconds; None where it is unknown. Negative and infinite spans are unknown."""
    return math.ceil(span_ms) if span_ms is not None and 0 <= span_ms < math.inf else None
