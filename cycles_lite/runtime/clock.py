"""The two clocks: one that only goes forward, for deadlines, and the one of the world, for records.

Tests freeze `time.monotonic` (freezegun does), and a bound that is counted by a frozen clock never ends. What the
system calls its monotonic clock is read directly where there is such a call, so that no library puts its own there.
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
