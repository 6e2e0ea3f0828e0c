"""Keeping a reservation alive while its work runs: `lease` decides when, the worker wakes this up, and this sends.

A failing heartbeat is told to the log and the observer, and never stops the work or its commit.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from ..errors import CyclesError, TransportError
from ..protocol import wire
from ..protocol.fields import new_idempotency_key
from ..protocol.models import ReservationExtendRequest, Response
from ..runtime.clock import monotonic
from ..runtime.log import log
from ..transport.deadline import deadline_in
from . import lease as leases
from .lease import Next, Step
from .worker import Job, worker

if TYPE_CHECKING:
    from ..session import Session

#: Milliseconds by which an attempt is ended before its bound, which leaves time for waking up late and noticing.
_AIM_BELOW_MS = 250


class Heartbeat:
    """The heartbeat of one reservation. It beats while its guard refers to it; the worker's reference is a weak one."""

    __slots__ = ("__weakref__", "_is_stopped", "_job", "_key", "_lease", "_reservation_id", "_session")

    def __init__(self, session: Session, reservation_id: str, ttl_ms: int, created: Response) -> None:
        self._session = session
        self._reservation_id = reservation_id
        self._key: str | None = None
        self._job: Job | None = None
        self._is_stopped = False
        config = session.config
        remaining: int | None = getattr(created, "remaining_ttl_ms", None)
        granted = ttl_ms if remaining is None else min(ttl_ms, remaining)  # a server may grant less than was asked for
        timeout = leases.attempt_timeout_ms(config.connect_timeout * 1000, config.read_timeout * 1000, granted)
        self._lease, step = leases.created(ttl_ms, timeout, remaining, *created.attempt_ms)
        self._follow(step, None)

    def stop(self) -> None:
        """Send no further extension. One that is under way ends by itself."""
        self._is_stopped = True
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def extended(self, response: Any) -> None:
        """Take in an extension that the program made itself."""
        if self._job is None:
            return
        self._job.cancel()
        self._succeeded(response)

    def _succeeded(self, response: Any) -> None:
        self._key = None
        self._lease, step = leases.extended(self._lease, response.remaining_ttl_ms, *response.attempt_ms)
        self._follow(step, None)

    def _failed(self, error: CyclesError) -> None:
        self._lease, step = leases.failed(self._lease, error, monotonic() * 1000)
        self._follow(step, error)

    def _follow(self, step: Step, error: CyclesError | None) -> None:
        """Schedule the next step, and report it if something went wrong."""
        if self._job is not None:
            # It is over or cancelled as a rule. It waits where the program and a beat have each scheduled a next one.
            self._job.cancel()
        if step.next is Next.STOP:
            self._job = None
            disposition = f"no further extension: {step.reason.value if step.reason else 'stopped'}"
        else:
            delay = step.delay_ms / 1000
            beat = _Beat()
            job = Job(delay, beat, delay / 2 if step.next is Next.BEAT else None)
            beat.of = weakref.ref(self, job.go_with)
            self._job = job  # set before the job is posted: a beat that is due at once takes its job from here
            worker.post(job)
            if self._is_stopped:  # the program's thread has finished the guard while this one read an answer
                job.cancel()
            disposition = f"tried again in {step.delay_ms / 1000:.1f} s with the same key"
        if error is not None or step.next is Next.STOP:
            log().warning(
                "the heartbeat of reservation %s failed (%s); the work goes on; %s",
                self._reservation_id,
                error or "no safe schedule",
                disposition,
            )
            self._session.tell("HeartbeatFailed", self._reservation_id, error, disposition)

    def beat(self) -> None:
        """Try to extend, once. Where the program has extended or finished meanwhile, the outcome is ignored."""
        job = self._job
        if job is None:
            return
        if self._key is None:
            self._key = new_idempotency_key()
        lease = self._lease
        request = ReservationExtendRequest(extend_by_ms=lease.ttl_ms, idempotency_key=self._key)
        bound = max(0, (lease.request_timeout_ms or 0) - _AIM_BELOW_MS) / 1000
        try:
            with deadline_in(bound):
                told = self._session.send(
                    wire.EXTEND_RESERVATION, request.to_json(), self._reservation_id, retries=False
                )
        except Exception as e:
            # An error of this library, or of one that instruments the transport, must not end the heartbeat silently.
            told = e if isinstance(e, CyclesError) else TransportError(f"the extension failed: {e!r}")
        if self._job is not job:
            return
        if isinstance(told, CyclesError):
            self._failed(told)
        else:
            self._succeeded(told)


class _Beat:
    """What a heartbeat's job runs. It refers to the heartbeat weakly, and so keeps neither it nor its guard alive."""

    __slots__ = ("of",)

    of: weakref.ref[Heartbeat]

    def __call__(self) -> None:
        alive = self.of()
        if alive is not None:
            alive.beat()
