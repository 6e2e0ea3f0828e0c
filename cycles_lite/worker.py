"""The background worker: heartbeats and retries of every client in this process.

Threads are few and start late. One of them, the leader, waits for the next job that is due; the one that takes a job
gives the lead to another, so that a request that hangs holds up nobody. Jobs are posted without a lock: the leader
looks into the post at least every second, so a job that is due later wakes nobody, and one that is cancelled before
then never costs more than its post.

Where no thread is to be had (limits of the process, uWSGI without threads, the interpreter's end) jobs run inline when
the library is next called.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import weakref
from collections import deque
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Callable

from .clock import monotonic
from .log import log

#: Threads at the most, in one process.
MAX_THREADS = 7

#: Seconds between looks into the post.
_LOOK = 1.0

#: Seconds without any job after which a thread ends.
_LINGER = 30.0


class Job:
    """Something to do at a time, once at the most, from any thread. It must not raise."""

    __slots__ = ("__weakref__", "_waiting", "due", "earliest")

    def __init__(self, due: float, earliest: float, run: Callable[[], None]) -> None:
        #: In seconds of `clock.monotonic()`.
        self.due = due
        #: From when it may be run where many wait.
        self.earliest = earliest
        #: One entry until the job is taken or cancelled. Popping it is atomic: exactly one of the two happens.
        self._waiting = [run]

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Callable[[], None] | None:
        """What to run; None where the job was taken or cancelled before."""
        try:
            return self._waiting.pop()
        except IndexError:
            return None

    def cancel(self) -> bool:
        """Let it not run any more. False where it was taken before."""
        return self.take() is not None


class Worker:
    """The one of this process; see `worker`."""

    def __init__(self) -> None:
        self._after_fork()

    def _after_fork(self) -> None:
        """Nothing of the parent's: neither its jobs nor its threads nor its locks."""
        self._pid = os.getpid()
        self._post: deque[Job] = deque()
        self._heap: list[tuple[float, int, Job]] = []
        self._order = count()
        #: Guards the heap and the counts below; never held while a job runs or anything is waited for.
        self._lock = threading.Lock()
        self._lead = threading.Lock()
        self._wake = threading.Event()
        self._threads = 0
        self._waiting = 0
        self._running = 0
        #: Seconds that a job takes: a guess at first, then a moving average.
        self._pace = 0.05
        #: Threads of the program that run jobs inline.
        self._inline: set[int] = set()
        self._is_refused = False
        self._has_told = False
        self._is_leaving = False

    def schedule(self, delay: float, run: Callable[[], None], at_least: float | None = None) -> Job:
        """Run something `delay` seconds from now; where so much waits that it would be late, earlier, but not before
        `at_least` seconds have passed."""
        self._check_process()
        now = monotonic()
        job = Job(now + delay, now + (delay if at_least is None else at_least), run)
        self._is_leaving = False
        self._post.append(job)
        if not self._waiting:
            self._start_thread()
        elif delay < _LOOK:
            self._wake.set()
        return job

    def leave(self) -> None:
        """Let the threads end as soon as there is nothing more to do."""
        self._is_leaving = True
        self._wake.set()

    def catch_up(self) -> None:
        """Take up what finalizers left; and where jobs do not run by themselves, run those that are due."""
        self._check_process()
        _drain()
        me = threading.get_ident()
        # Where some threads are to be had, a caller is spared what the network does. And a job that runs inline may
        # come back here: what else is due follows after it.
        if not self._is_refused or self._threads or me in self._inline:
            return
        self._inline.add(me)
        try:
            while self._run_inline():
                pass
        finally:
            self._inline.discard(me)

    def _run_inline(self) -> bool:
        """Run one job that is due. Says whether there was one."""
        with self._lock:
            self._collect()
            job = self._pop_due(monotonic())
        if job is not None:
            _run(job)
        return job is not None

    def expect_refusal(self) -> None:
        """At the interpreter's end, Python 3.12 and later start no thread; that is nothing to warn of."""
        self._has_told = True

    def is_busy(self) -> bool:
        """Whether something is due or being done."""
        with self._lock:
            self._collect()
            due = bool(self._heap) and self._heap[0][0] <= monotonic()
        return due or self._running > 0

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._after_fork()

    # ---- Threads ----

    def _start_thread(self) -> None:
        with self._lock:
            if self._threads >= MAX_THREADS or self._waiting:
                return
            if not self._threads:  # nobody waits for these, and gevent may have patched threading since they were made
                self._lead, self._wake = threading.Lock(), threading.Event()
            self._threads += 1
            self._waiting += 1
        try:
            if _threads_never_run():
                raise RuntimeError("uWSGI runs without --enable-threads")
            threading.Thread(target=self._serve, name="cycles-lite-worker", daemon=True).start()
        except RuntimeError as e:
            with self._lock:
                self._threads -= 1
                self._waiting -= 1
            self._refused(e)
        else:
            self._is_refused = False

    def _refused(self, e: RuntimeError) -> None:
        self._is_refused = True
        if not self._has_told:
            self._has_told = True
            log().warning("no background thread is to be had (%s): heartbeats and retries run inline", e)

    def _serve(self) -> None:
        while True:
            job = self._next_job()
            if job is None:
                return
            start = monotonic()
            try:
                _run(job)
            except BaseException:  # an observer that calls sys.exit(): no reason for the next job to wait for ever
                log().exception("a background job of cycles_lite wanted to end the thread")
            with self._lock:
                self._running -= 1
                self._waiting += 1
                self._pace += (monotonic() - start - self._pace) / 16

    def _next_job(self) -> Job | None:
        """Wait for the lead, then for a job; None when this thread should end."""
        job, lead = None, self._lead
        leads = lead.acquire(timeout=_LINGER)
        try:
            job = self._wait_for_job() if leads else None
        finally:
            with self._lock:
                self._waiting -= 1
                is_last = self._waiting == 0
                if job is None:
                    self._threads -= 1
            if leads:
                lead.release()
        if is_last and (job is not None or self._post or self._heap):  # posted while this thread decided to end
            self._start_thread()
        return job

    def _wait_for_job(self) -> Job | None:
        idle_since = monotonic()
        while True:
            self._wake.clear()
            _drain()
            with self._lock:
                self._collect()
                now = monotonic()
                job = self._pop_due(now)
                if job is not None:
                    self._running += 1  # here, so that at no time it counts neither as due nor as running
                    return job
                due = self._next_due()
            if due is None and (self._is_leaving or now - idle_since > _LINGER):
                return None
            if due is not None:
                idle_since = now
            self._wake.wait(_LOOK if due is None else min(_LOOK, due - now))

    def _collect(self) -> None:
        """Sort the post in, without what was cancelled meanwhile."""
        while self._post:
            job = self._post.popleft()
            if job.is_waiting:
                heapq.heappush(self._heap, (job.due, next(self._order), job))
        if self._is_leaving:
            self._heap = [entry for entry in self._heap if entry[2].is_waiting]
            heapq.heapify(self._heap)

    def _next_due(self) -> float | None:
        """When the first job is to be run: the earlier, the longer all threads take for what waits, so that ten
        thousand guards that were made together are not all due together when it is too late for most."""
        if not self._heap:
            return None
        due, _, job = self._heap[0]
        return max(job.earliest, due - len(self._heap) * self._pace / MAX_THREADS)

    def _pop_due(self, now: float) -> Job | None:
        while True:
            due = self._next_due()
            if due is None or (due > now and self._heap[0][2].is_waiting):
                return None
            job = heapq.heappop(self._heap)[2]
            if job.is_waiting:
                return job


#: What finalizers have left to do. They run while any lock may be held, so all that they do is to put it here.
left_over: SimpleQueue[Callable[[], None]] = SimpleQueue()

#: Guards that have metered something, by their `id`: they hand it over at the interpreter's end. Not a set, which may
#: not be copied while another thread adds to it.
metered: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

worker = Worker()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker._after_fork)


def _drain() -> None:
    """Schedule what finalizers left."""
    while True:
        try:
            work = left_over.get_nowait()
        except Empty:
            return
        worker.schedule(0.0, work)


def _run(job: Job) -> None:
    run = job.take()
    if run is None:
        return
    try:
        run()
    except Exception:
        log().exception("a background job of cycles_lite failed")


def _threads_never_run() -> bool:
    """uWSGI starts threads and never runs them, unless it is told to."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return False
    options = getattr(uwsgi, "opt", {})
    return not any(options.get(name) for name in ("enable-threads", b"enable-threads", "threads", b"threads"))
