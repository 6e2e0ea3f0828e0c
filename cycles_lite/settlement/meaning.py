"""What an answer to a commit or an event means for the spend that it was to settle: a table, and pure functions.

An answer that proves the operation's success settles the spend, and its record is removed. Every other answer is an
error here, and means one of these:

===============================================================  ========  ===========================================
the answer                                                       meaning   what happens
===============================================================  ========  ===========================================
410, or RESERVATION_EXPIRED, to a commit                         EXPIRED   the record becomes an event's, on disk first
none, a timeout, 5xx, an unproven 2xx; INTERNAL_ERROR or         UNKNOWN   the same key again: once now, then later
LIMIT_EXCEEDED under another status
429                                                              WAIT      not before Retry-After, an hour at the most
401, 403, a 4xx without a known code; BUDGET_FROZEN to an event  HELD      kept, and tried every ten minutes
a 4xx with a code that is final for the operation                REJECTED  reported with all that is known, set aside
===============================================================  ========  ===========================================

Whatever happens, the spend is settled once or reported as refused, and never released.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from .. import errors
from ..errors import ApiError, ConfigError, CyclesError, ValidationError, known_code
from ..protocol.models import Balance, CommitResponse, EventCreateResponse
from ..protocol.values import Amount
from ..runtime.words import WordEnum
from ..transport.retry import backoff
from .journal import COMMIT, EVENT, Record


class Meaning(Enum):
    """What an error means for the spend, as the table above has it; the values are words for the log."""

    EXPIRED = "the hold is gone, the spend is real"
    UNKNOWN = "whether it was settled is unknown"
    WAIT = "the server throttles"
    HELD = "the spend is real; the key, a proxy or the moment is wrong"
    REJECTED = "the authority refused it for good"


def meaning_of(mode: str, error: CyclesError) -> Meaning:
    """What an error in answer to a settlement means. `wire.read_answer` has told success from error before."""
    if isinstance(error, (ConfigError, ValidationError)):  # a record that cannot even be sent
        return Meaning.HELD
    if not isinstance(error, ApiError) or error.status >= 500:
        return Meaning.UNKNOWN
    row = known_code(error.code)
    if mode == COMMIT and (error.status == 410 or row.kind is errors.ReservationExpiredError):
        return Meaning.EXPIRED
    if error.status == 429:
        return Meaning.WAIT
    if row.kind is errors.ServerError or row.kind is errors.RateLimitedError:
        return Meaning.UNKNOWN
    if error.status in (401, 403) or mode not in row.final_for:
        return Meaning.HELD
    return Meaning.REJECTED


class SettlementStatus(WordEnum):
    """What became of spend that was handed over."""

    #: The commit went through.
    COMMITTED = "COMMITTED"
    #: An event holds it: the reservation had expired, or there never was one.
    RECORDED = "RECORDED"
    #: It is kept, on disk where the journal is on, and retried until it is settled or refused.
    PENDING = "PENDING"
    #: Nothing was sent: modes `shadow` and `off`.
    SKIPPED = "SKIPPED"


class Settlement(NamedTuple):
    """How a guard's spend was settled."""

    #: What became of it.
    status: SettlementStatus
    #: What the authority charged; less than the actual amount where the policy capped it. None while PENDING.
    charged: Amount | None = None
    #: What went back to the budgets.
    released: Amount | None = None
    #: The budgets right after it, where the server told them.
    balances: tuple[Balance, ...] = ()
    #: The authority's whole answer; None while PENDING or SKIPPED.
    response: CommitResponse | EventCreateResponse | None = None


#: Seconds between attempts once quick retries have not helped.
SLOW_RETRY = 600.0

#: Seconds that a server may ask to wait at the most; a mangled header must not park spend for days.
LONGEST_WAIT = 3600.0


def retry_in(config: Any, meaning: Meaning, attempt: int, retry_after: float | None) -> float:
    """Seconds from a failed attempt to the next one in the background."""
    if meaning is Meaning.WAIT:
        # A Retry-After below one second counts once only; a server that always says 0 must not cause a busy loop.
        if retry_after is None or (retry_after < 1.0 and attempt > 1):
            return backoff(config, attempt)
        return min(retry_after, LONGEST_WAIT)
    if meaning is Meaning.HELD or attempt >= config.retry_max_attempts or not config.retry_enabled:
        return SLOW_RETRY
    return backoff(config, attempt)


_DAY_MS = 24 * 3600 * 1000

#: How long the reference server remembers keys: an older record could be settled a second time.
_REMEMBERED_MS = {COMMIT: 30 * _DAY_MS, EVENT: 7 * _DAY_MS}


#: An instant in September 2020, before this project began: a clock that shows an earlier one has not been set yet.
_CLOCK_IS_SET_MS = 1_600_000_000_000


def is_too_old(record: Record, now: int) -> bool:
    """Whether sending the record could charge twice, because the authority may have forgotten its key.

    If one of the two times comes from a clock that was not set yet, the age says nothing and the record is not too old.
    """
    if min(record.recorded_at_ms, now) < _CLOCK_IS_SET_MS:
        return False
    return now - record.recorded_at_ms > _REMEMBERED_MS[record.mode]
