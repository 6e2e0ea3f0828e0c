"""Waiting for spend to be settled: a flush, and the interpreter's end, which is a flush of every client."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from threading import get_ident

from ..background.worker import Job, drain, is_drained, left_over, worker
from ..guard import metered
from ..runtime.clock import monotonic
from ..transport.deadline import deadline_in
from .settler import Settler, open_settlers
from .spend import until

#: The longest pause, in seconds, between two looks at whether the spend has been settled.
_GLANCE = 0.02


def flush(settler: Settler, timeout: float) -> int:
    """Try to settle all pending spend that may be sent now, for at most `timeout` seconds. Return how much is left."""
    return Flush(settler, monotonic() + timeout).begin().wait()


class Flush:
    """One flush. It waits, up to a monotonic time, for one attempt for each pending spend that begins after the flush.

    It looks again and again whether that has happened, instead of being told: a condition that tells it would need a
    lock, and a signal handler may flush within a flush.
    """

    def __init__(self, settler: Settler, end: float) -> None:
        self._settler, self._end = settler, end
        #: The number of the attempt that is waited for, by reservation id.
        self._wanted: dict[str, int] = {}
        #: The reservations whose spend was pending when the flush began.
        self._before: set[str] = set()
        self._look: Job | None = None

    def begin(self) -> Flush:
        """Start an attempt for all spend that may be sent now, and a look at the journal."""
        settler = self._settler
        settler.open()
        drain()
        me = get_ident()
        if any(spend.teller == me for spend in list(settler.pending.values())):
            # An observer that flushes when it is told of a failure must not undo the pause before the next attempt.
            self._end = monotonic()
        else:
            # The look starts first: records that it finds at once are then among the pending ones below.
            self._look = settler.look_around(True) if settler.unseen() else None
            pending = list(settler.pending.items())
            self._before = {id for id, _ in pending}
            self._wanted = {id: spend.attempt + 1 for id, spend in pending if spend.runner != me}
        self._hasten()
        return self

    def wait(self) -> int:
        """Wait for these attempts. Return how much is not settled."""
        with deadline_in(max(0.0, self._end - monotonic())):  # where there are no threads, jobs run within this
            pause = 0.001
            while not self._is_through():
                left = self._end - monotonic()
                if left <= 0:
                    break
                time.sleep(min(pause, left))
                pause = min(2 * pause, _GLANCE)
        settler = self._settler
        # Where another thread has closed the client meanwhile, its spend is not pending any more, but on disk.
        unseen = settler.unseen() if self._look is not None or not settler.is_open else 0
        return len(settler.pending) + len(settler.releasing) + len(left_over) + unseen

    def _is_through(self) -> bool:
        """Whether nothing is left to wait for."""
        self._hasten()
        worker.catch_up()
        if self._look is not None and self._look.is_over:
            self._look = None
            pending = list(self._settler.pending.items())
            self._wanted.update((id, 1) for id, spend in pending if spend.is_found and id not in self._before)
        return not (self._wanted or self._look or self._settler.releasing) and is_drained()

    def _hasten(self) -> None:
        """Stop waiting for spend that is settled or was tried, and start attempts for the rest."""
        pending = self._settler.pending
        for id, attempt in list(self._wanted.items()):
            spend = pending.get(id)
            if spend is None or (spend.runner is None and (spend.attempt >= attempt or until(spend.record) > 0)):
                del self._wanted[id]
            elif spend.runner is None and _is_idle(spend.job):
                self._settler.retry_later(spend, 0.0)
            if monotonic() >= self._end:
                return


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
    worker.expect_refusal()
    drain()
    for held in metered.valuerefs():
        guard = held()
        if guard is not None:
            guard.cut_off(waits=False)
    start = monotonic()
    ours = [settler for settler in open_settlers() if settler.pid == os.getpid()]
    flushes = [
        Flush(settler, start + settler.session.config.flush_timeout) for settler in ours if settler.is_waited_for
    ]
    for flush in flushes:
        flush.begin()
    for flush in flushes:
        flush.wait()
