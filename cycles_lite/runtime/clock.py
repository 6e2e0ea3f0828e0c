"""The two clocks: a monotonic one, for deadlines, and the wall clock, for records.

Libraries for tests, such as freezegun, freeze `time.monotonic`, and a deadline by a frozen clock never passes. So the
system's monotonic clock is read directly where that is possible.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Callable

#: Seconds of a clock that never goes back and that nothing freezes.
monotonic: Callable[[], float] = time.monotonic  # on Windows
if hasattr(time, "clock_gettime"):
    monotonic = partial(time.clock_gettime, time.CLOCK_MONOTONIC)


def now_ms() -> int:
    """Milliseconds since 1970: times in records must mean something to the next process."""
    return int(time.time() * 1000)
