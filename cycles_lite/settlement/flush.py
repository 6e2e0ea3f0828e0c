"""Waiting for spend to be settled: a flush, and the interpreter's end, which is a flush of every client."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections import deque
from threading import get_ident

from ..background.worker import Job, drain, is_drained, left_over, worker
from ..guard import metered
from ..runtime import shutdown
from ..runtime.clock import monotonic
from ..transport.deadline import deadline_in
from .settler import Settler, open_settlers
from .spend import Spend, until

#: The longest pause, in seconds, between two looks at whether the spend has been settled.
_GLANCE = 0.02

#: For so many seconds after an attempt has met with silence the interpreter's end expects nothing else of another one.
_JUST_NOW = 10.0


def flush(settler: Settler, timeout: float) -> int:
    """Try to settle all pending spend that may be sent now, for at most `timeout` seconds. Return how much is left.

    To count what this process does not hold, the names in the journal's folder are read after that time.
    """
    return Flush(settler, monotonic() + timeout).begin().wait().count()


class Flush:
    """One flush. It waits, up to a monotonic time, for one attempt for each pending spend that begins after the flush,
    what is found on disk meanwhile included.

    It looks again and again whether that has happened, instead of being told: a condition that tells it would need a
    lock, and a signal handler may flush within a flush. However much is pending, it is never far from its deadline: it
    goes on from one spend to the next only after it has looked at the time.
    """

    def __init__(self, settler: Settler, end: float, is_last: bool = False) -> None:
        self._settler, self._end = settler, end
        #: Whether the process ends. What an authority has left unanswered just now is not asked again then.
        self._is_last = is_last
        #: The number from which on attempts have begun after this flush.
        self._number = 0
        #: The reservations whose spend is to be tried, or is being tried.
        self._wanted: deque[str] = deque()
        #: The number of the look that is waited for, and whether it has begun before this flush.
        self._look = 0
        self._joins = False

    def begin(self) -> Flush:
        """Start an attempt for all spend that may be sent now, and a look at the journal."""
        settler = self._settler
        settler.open()
        drain()
        if settler.is_telling:
            # An observer that flushes when it is told of a failure must not undo the pause before the next attempt.
            self._end = monotonic()
            return self
        self._number = next(settler.numbers)
        finder = settler.finder
        self._joins = finder.is_looking
        if self._joins or settler.has_unseen():
            self._look = finder.look_around()
        self._wanted.extend(list(settler.pending))
        self._hasten()
        return self

    def wait(self) -> Flush:
        """Wait for these attempts."""
        with deadline_in(max(0.0, self._end - monotonic())):  # where there are no threads, jobs run within this
            pause = 0.001
            while True:
                left = self._end - monotonic()
                if left <= 0 or self._is_through():
                    break
                time.sleep(min(pause, left))
                if not worker.is_inline:  # what is to do is done by others, who need no company
                    pause = min(2 * pause, _GLANCE)
        return self

    def count(self) -> int:
        """How much is not settled, on disk too.

        Other threads go on meanwhile. So what moves is looked for where it comes from before where it goes to: what a
        finalizer has left, or a file that a look finds, is pending next.
        """
        settler = self._settler
        left = len(left_over)
        # Where another thread has closed the client meanwhile, its spend is not pending any more, but on disk.
        reads = self._look or settler.finder.has_left or not settler.is_open
        held = list(settler.pending)
        return left + len(held) + len(settler.releasing) + (settler.unseen(held) if reads else 0)

    def _is_through(self) -> bool:
        """Whether nothing is left to wait for."""
        self._hasten()
        worker.catch_up()
        finder = self._settler.finder
        if self._look and (finder.looks >= self._look or not self._settler.is_open):
            # A look that had begun before may have passed by records that this flush is to try.
            goes_on = self._joins and self._settler.is_open and self._settler.has_unseen()
            self._look = finder.look_around() if goes_on else 0
            self._joins = False
        is_waiting = self._wanted or self._look or self._settler.releasing
        return not (is_waiting or any(map(self._is_awaited, list(finder.found.values())))) and is_drained()

    def _hasten(self) -> None:
        """Stop waiting for spend that is settled or was tried, and start attempts for the rest."""
        pending, wanted = self._settler.pending, self._wanted
        for _ in range(len(wanted)):
            spend = pending.get(wanted[0])
            if spend is None or not self._is_awaited(spend):
                wanted.popleft()
            else:
                wanted.rotate(-1)
                if spend.runner is None and _is_idle(spend.job):
                    self._settler.retry_later(spend, 0.0)
            if monotonic() >= self._end:
                return

    def _is_awaited(self, spend: Spend) -> bool:
        """Whether an attempt that began after the flush is to come, or is under way in another thread."""
        if spend.runner is not None:
            return spend.runner != get_ident()
        is_in_vain = self._is_last and spend.is_written and monotonic() - spend.silent_at < _JUST_NOW
        return spend.number < self._number and not is_in_vain and not until(spend.record)


def _is_idle(job: Job | None) -> bool:
    """Whether no attempt is due or being made. A job that was to come later is cancelled, so that one can come now."""
    if job is None or job.is_over:
        return True
    return job.due > monotonic() and job.cancel()


# What is registered last is run first. `weakref.finalize` registers itself when it is first used; it closes connections
# at exit, and must not do so before the flush below, which is therefore registered after it.
weakref.finalize(metered, int).detach()


@atexit.register
def _at_exit() -> None:
    """Wait for pending spend at the interpreter's end, for all clients at once, each as long as its `flush_timeout`.
    All records are written before anything is sent. Spend that closed clients have left on disk is not waited for."""
    shutdown.begin()
    worker.expect_refusal()
    drain()
    for held in metered.valuerefs():
        guard = held()
        if guard is not None:
            guard.cut_off(waits=False)
    start = monotonic()
    ours = [settler for settler in open_settlers() if settler.pid == os.getpid()]
    flushes = [
        Flush(settler, start + settler.session.config.flush_timeout, is_last=True)
        for settler in ours
        if settler.is_waited_for
    ]
    for flush in flushes:
        flush.begin()
    for flush in flushes:
        flush.wait()
