"""When a call is sent again: a pure function and the table behind it.

==========================================  ======================  =========================
what came back                              reads                   everything else
==========================================  ======================  =========================
a reused connection was found closed        at once, once           at once, once
no answer, a broken one, 5xx                after a growing delay   at once, once, same key
429                                         after Retry-After       raised: the caller decides
any other answer                            raised                  raised
==========================================  ======================  =========================

A second send of a request that may have been carried out is safe because it is the same request: its idempotency key
makes it a replay (protocol: IDEMPOTENCY).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CyclesError, RateLimitedError, ResponseError, ServerError, TransportError

if TYPE_CHECKING:
    from ..config import CyclesConfig

_AMBIGUOUS = (TransportError, ResponseError, ServerError)


def retry_delay(config: CyclesConfig, is_read: bool, attempt: int, error: CyclesError) -> float | None:
    """Seconds to wait before attempt number `attempt + 1`, or None to raise the error."""
    if attempt == 1 and getattr(error, "stale", False):
        return 0.0
    if not config.retry_enabled:
        return None
    if not is_read:
        return 0.0 if attempt == 1 and isinstance(error, _AMBIGUOUS) else None
    if attempt >= config.retry_max_attempts or not isinstance(error, (*_AMBIGUOUS, RateLimitedError)):
        return None
    asked = error.retry_after or 0.0
    if asked > config.retry_max_delay:
        return None
    return max(asked, backoff(config, attempt))


def backoff(config: CyclesConfig, attempt: int) -> float:
    """The delay after the given attempt: growing by the multiplier, up to the maximum."""
    delay = config.retry_initial_delay
    for _ in range(attempt - 1):
        delay = min(delay * config.retry_multiplier, config.retry_max_delay)
    return min(delay, config.retry_max_delay)
