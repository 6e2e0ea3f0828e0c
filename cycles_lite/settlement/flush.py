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

#: The longest pause between two glances at what is waited for, in seconds.
_GLANCE = 0.02


def flush(settler: Settler, timeout: float) -> int:
    """Try whatever waits and may be sent now, for at most `timeout` seconds; says how much is not settled."""
    return Flush(settler, monotonic() + timeout).begin().wait()


class Flush:
    """One flush: an attempt for each spend that began after the flush did, up to a monotonic time.

    It looks, instead of being told: what tells would need a lock, and a signal handler may flush within a flush.
    """

    def __init__(self, settler: Settler, end: float) -> None:
        self._settler, self._end = settler, end
        #: The number of the attempt that is waited for, by reservation id.
        self._wanted: dict[str, int] = {}
        #: The ids of what was pending when the flush began.
        self._before: set[str] = set()
        self._look: Job | None = None

    def begin(self) -> Flush:
        """Have everything tried that may be sent now, and the journal looked at."""
        settler = self._settler
        settler.open()
        drain()
        me = get_ident()
        if any(spend.teller == me for spend in list(settler.pending.values())):
            # An observer that flushes when it is told of a failure must not undo the pause before the next attempt.
            self._end = monotonic()
        else:
            # The look is begun first, so that what it has taken up by then is already among the pending.
            self._look = settler.look_around(True) if settler.unseen() else None
            pending = list(settler.pending.items())
            self._before = {id for id, _ in pending}
            self._wanted = {id: spend.attempt + 1 for id, spend in pending if spend.runner != me}
        self._hasten()
        return self

    def wait(self) -> int:
        """Wait for what was begun; says how much is not settled."""
        with deadline_in(max(0.0, self._end - monotonic())):  # where there are no threads, jobs run within this
            pause = 0.001
            while not self._is_through():
                left = self._end - monotonic()
                if left <= 0:
                    break
                time.sleep(min(pause, left))
                pause = min(2 * pause, _GLANCE)
        settler = self._settler
        # When another thread closes the client meanwhile, what it forgets is on disk, and counts there.
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
        """Wait no more for what is settled or has been tried; have the rest tried now."""
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
    """The interpreter's end waits for pending spend as long as its client's `flush_timeout` says, and no longer: for
    all clients at once, and not for what closed ones have left on disk. Every record comes first, then sending."""
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
