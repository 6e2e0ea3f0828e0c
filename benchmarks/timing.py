"""Timing two pieces of work beside each other."""

from __future__ import annotations

import gc
import time
from statistics import median
from typing import Any, Callable

Clock = Callable[[], float]

#: Seconds of processor time of this process, all threads, user and system.
cpu = time.process_time
wall = time.perf_counter


def microseconds(work: Callable[[], Any], calls: int, clock: Clock = cpu) -> float:
    """What one call costs on average over a block of calls."""
    gc.collect()
    start = clock()
    for _ in range(calls):
        work()
    return (clock() - start) / calls * 1e6


def beside(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Two measurements' medians over some rounds. Each round takes both, and the next one in the other order, so that
    what drifts drifts for both."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        turns = [(found[0], ours), (found[1], peer)]
        for figures, measure in turns if number % 2 == 0 else turns[::-1]:
            figures.append(measure())
    return median(found[0]), median(found[1])


def calls_beside(
    ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, calls: int, clock: Clock = cpu
) -> tuple[float, float]:
    """Microseconds a call of ours and of the peer's, each warmed up before."""
    for work in (ours, peer):
        microseconds(work, max(1, calls // 10), clock)
    return beside(lambda: microseconds(ours, calls, clock), lambda: microseconds(peer, calls, clock), rounds)
