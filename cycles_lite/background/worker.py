"""The background worker: heartbeats and retries of every client in this process.

Threads are few and start late. One of them, the leader, waits for the next job that is due; the one that takes a job
gives the lead to another, so that a request that hangs holds up nobody. Jobs are posted without a lock: the leader
takes new jobs out of the deque `_post` each time it wakes, and is woken only for a job that is due before it would wake
by itself. So a job that is cancelled before then costs nothing more.

Where no thread can be started (limits of the process, uWSGI without threads, the interpreter's end), jobs that are due
run within the program's next call of this library.

A signal handler may use the library, or raise, while the main thread is anywhere in here. So what the program's threads
run waits for no lock: they append to a deque, ring a bell, and start a thread. The heap is the leader's alone, and
threads of the worker get no signals.

The bell is a lock that the leader holds, and waits to acquire once more; to release it is one operation that never
waits, and a second release is an error that says that it has rung. A `SimpleQueue` would not do: before Python 3.13 a
`get` with a short timeout may wait without end, where the thread is stopped for longer than that within it.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import weakref
from collections import deque
from itertools import chain, count
from types import SimpleNamespace
from typing import Any, Callable

from ..runtime.clock import monotonic
from ..runtime.log import log
from ..transport.turns import Turns

#: The most threads that there are in one process.
MAX_THREADS = 7

#: With more guests in the post than this a thread is started, because many of them may have been cancelled by now.
_CROWD = 64

#: The leader looks into the post each so many seconds: the second while the next job is far off, else the first.
_LOOK, _LONG_LOOK = 1.0, 30.0

#: A thread ends after so many seconds without a job.
_LINGER = 30.0

#: A thread that was started and has not shown itself for so many seconds is given up: another one may be started.
_PATIENCE = 5.0


class Job:
    """Something to do at a time, once at the most, from any thread. It must not raise."""

    __slots__ = ("__weakref__", "_waiting", "due", "earliest", "is_guest", "is_over")

    def __init__(self, delay: float, run: Callable[[], None], at_least: float | None = None) -> None:
        now = monotonic()
        #: When it is to be run, in seconds of `clock.monotonic()`.
        self.due = now + delay
        #: When it may be run at the earliest, where so many jobs wait that it would be late otherwise.
        self.earliest = now + (delay if at_least is None else at_least)
        #: Whether it is a guest: it starts no thread, and keeps none from ending.
        self.is_guest = False
        #: Whether it has been run to its end.
        self.is_over = False
        #: One entry until the job is taken or cancelled. Popping it is atomic: exactly one of the two happens.
        self._waiting = [run]

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def cancel(self) -> bool:
        """Keep it from being run. False where a thread has taken it before."""
        try:
            self._waiting.pop()
        except IndexError:
            return False
        return True

    def go_with(self, _: object) -> None:
        """Cancel it: the callback of a weak reference to what the job was for, which is gone now."""
        self.cancel()

    def run(self) -> None:
        """Run the job, unless another thread has taken it or somebody has cancelled it."""
        try:
            try:
                run = self._waiting.pop()
            except IndexError:
                return
            run()
        except Exception:
            log().exception("a background job of cycles_lite failed")
        finally:
            self.is_over = True


def _new_bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


class Worker:
    """The threads of this process and the jobs that wait for them. There is one: `worker`."""

    def __init__(self) -> None:
        self._after_fork()

    def _after_fork(self) -> None:
        """Begin anew: a forked child has none of its parent's jobs, threads and locks."""
        self._pid = os.getpid()
        _draining.turns, _draining.by = Turns(1), None
        self._post: deque[Job] = deque()
        self._heap: list[tuple[float, int, Job]] = []
        self._order = count()
        #: With more entries than this the heap is looked through for cancelled jobs.
        self._roomy = 64
        #: The lock that the leader has. Only threads of the worker take it, which get no signals.
        self._lead = threading.Lock()
        self._bell = _new_bell()
        #: Until when the leader sleeps.
        self._sleeps_until = 0.0
        #: The worker's threads, and those of them that wait for the lead or for a job. Each thread adds itself.
        self._threads: set[int] = set()
        self._waiting: set[int] = set()
        #: When the thread was started that has not begun to run yet; 0 where there is none.
        self._started = 0.0
        #: Seconds that a job takes: a guess at first, then a moving average.
        self._pace = 0.05
        #: The threads of the program that run jobs inline. Each keeps its entry alive while it does so: however that
        #: ends, the entry is gone afterwards.
        self._inline: weakref.WeakValueDictionary[int, Job] = weakref.WeakValueDictionary()
        self._is_refused = False
        self._has_told = False
        self._is_leaving = False

    def schedule(self, delay: float, run: Callable[[], None], at_least: float | None = None) -> Job:
        """Run something `delay` seconds from now. Where so many jobs wait that it would be late it is run earlier, but
        not before `at_least` seconds have passed."""
        job = Job(delay, run, at_least)
        self.post(job)
        return job

    def post(self, job: Job) -> None:
        """Have a job run when it is due, by a thread that is there or by a new one."""
        self._check_process()
        if not job.is_guest:
            self._is_leaving = False
        self._post.append(job)
        if not self._waiting:
            if not job.is_guest or len(self._post) > _CROWD:
                self._start_thread()
        elif job.due < self._sleeps_until:
            self._ring()

    def leave(self) -> None:
        """Let the threads end as soon as there is nothing more to do."""
        self._is_leaving = True
        self._ring()

    def catch_up(self) -> None:
        """Do what finalizers left. Where no thread can be had, run the jobs that are due; where there is none because
        nothing but guests wait, start one for a guest that is overdue."""
        self._check_process()
        drain()
        me = threading.get_ident()
        # Where there are threads, the caller need not wait for the network. And a job that is run inline may call this
        # method again: what else is due is run after it, not within it.
        if self._threads or me in self._inline:
            return
        if self._is_refused:
            mark = self._inline[me] = Job(0.0, self.leave)
            try:
                self._run_inline()
            finally:  # where an interruption keeps this from being done, the mark goes with this frame
                self._inline.pop(me, None)
            del mark
        elif self._has_overdue_guest():
            self._start_thread()

    def _has_overdue_guest(self) -> bool:
        """Whether the first job, which as a guest has started no thread, is due by now."""
        try:
            first = self._post[0] if self._post else self._heap[0][2]
        except IndexError:  # there is no job, or a thread has just taken it
            return False
        return first.due <= monotonic()

    def _run_inline(self) -> None:
        """Run the jobs in the post that are due. What they post is left to the next call, at once as it may be due:
        one that waits for the network each time and posts the next one would keep the program for ever. Guests that a
        thread sorted into the heap before it ended are not run here."""
        now = monotonic()
        due = [job for job in list(self._post) if job.due <= now or not job.is_waiting]
        for job in sorted(due, key=lambda job: job.due):
            job.run()
            try:
                self._post.remove(job)
            except ValueError:  # another thread, or a signal handler, has run it too
                continue

    @property
    def is_inline(self) -> bool:
        """Whether jobs run within the program's calls, because no thread is to be had."""
        return self._is_refused and not self._threads

    def expect_refusal(self) -> None:
        """Warn no more of a refused thread: at the interpreter's end, Python 3.12 and later start none."""
        self._has_told = True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._after_fork()

    def _ring(self) -> None:
        """Wake the leader, or keep it from falling asleep."""
        try:
            self._bell.release()
        except RuntimeError:  # it has rung, and the leader has not looked into the post since
            return

    # ---- Threads ----

    def _start_thread(self) -> None:
        now = monotonic()
        if len(self._threads) >= MAX_THREADS or now - self._started < _PATIENCE:
            return
        lead = threading.Lock()
        if not self._threads and type(lead) is not type(self._lead):  # gevent has patched their module since
            # Else they stay: a thread that has just decided to end may find that it is needed, and go on with the old.
            self._lead, self._bell = lead, _new_bell()
        try:
            self._started = now
            if _threads_never_run():
                raise RuntimeError("uWSGI runs without --enable-threads")
            if sys.is_finalizing():  # before Python 3.12 the start of a thread would wait for it for ever
                raise RuntimeError("the interpreter is ending")
            threading.Thread(target=self._serve, name="cycles-lite-worker", daemon=True).start()
        except RuntimeError as e:
            self._started = 0.0
            self._is_refused = True
            if not self._has_told:
                self._has_told = True
                log().warning("no background thread is to be had (%s): heartbeats and retries run inline", e)
        except BaseException:  # an interruption: if the thread was started nevertheless, it shows itself
            self._started = 0.0
            raise
        else:
            self._is_refused = False

    def _serve(self) -> None:
        me = threading.get_ident()
        self._waiting.add(me)
        self._threads.add(me)
        self._started = 0.0
        try:
            while True:
                job = self._next_job(me)
                if job is None:
                    return
                start = monotonic()
                try:
                    job.run()
                except BaseException:  # an observer has called sys.exit(): this thread goes on with the next job
                    log().exception("a background job of cycles_lite wanted to end the thread")
                self._waiting.add(me)
                self._pace += (monotonic() - start - self._pace) / 16
        finally:
            self._waiting.discard(me)
            self._threads.discard(me)

    def _next_job(self, me: int) -> Job | None:
        """Wait for the lead, then for a job; None when this thread should end."""
        while True:
            lead = self._lead
            leads = lead.acquire(timeout=_LINGER)
            try:
                job = self._wait_for_job() if leads else None
            finally:
                self._waiting.discard(me)
                if leads:
                    lead.release()
            if job is None:
                self._threads.discard(me)
            if self._waiting or not self._is_needed():
                return job
            if job is not None:  # it may take long, so another thread is to wait for the next one
                self._start_thread()
                return job
            self._threads.add(me)  # a job was posted while this thread decided to end
            self._waiting.add(me)

    def _wait_for_job(self) -> Job | None:
        idle_since = monotonic()
        while True:
            try:
                drain()
            except BaseException:  # an observer has called sys.exit(), as in `_serve`
                log().exception("what a finalizer of cycles_lite left wanted to end the thread")
            self._collect()
            now = monotonic()
            job = self._pop_due(now)
            if job is not None:
                return job
            due = self._next_due()
            if self._is_leaving and not self._is_needed():
                return None
            if due is None and now - idle_since > _LINGER:
                return None
            if due is not None:
                idle_since = now
            self._sleep(now, due)

    def _is_needed(self) -> bool:
        """Whether there is a job that somebody has to wait for."""
        jobs = chain(list(self._post), (entry[2] for entry in list(self._heap)))
        return any(job.is_waiting and not job.is_guest for job in jobs)

    def _sleep(self, now: float, due: float | None) -> None:
        """Sleep until a job is due, somebody rings, or it is time to look into the post."""
        look = _LOOK if due is None or due - now < 2 * _LONG_LOOK else _LONG_LOOK
        self._sleeps_until = now + look if due is None else min(now + look, due)
        try:
            if not self._post:  # whoever has posted since may have seen the old time of waking up, and not rung
                self._bell.acquire(True, max(0.0, self._sleeps_until - now))
        finally:
            self._sleeps_until = 0.0

    def _collect(self) -> None:
        """Sort what is in the post into the heap, without what was cancelled meanwhile."""
        while self._post:
            job = self._post.popleft()
            if job.is_waiting:
                heapq.heappush(self._heap, (job.due, next(self._order), job))
        if self._is_leaving or len(self._heap) > self._roomy:
            self._heap = [entry for entry in self._heap if entry[2].is_waiting]
            heapq.heapify(self._heap)
            self._roomy = max(64, 2 * len(self._heap))

    def _next_due(self) -> float | None:
        """When the first job is to be run. The longer all threads take for what waits, the earlier this is: of ten
        thousand guards that were made together, most would be extended too late if all were due together."""
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


#: What finalizers have left to do. They run while any lock may be held, so putting it here is all that they do. It is a
#: deque, from which a note is taken away when it has been done: an interruption in between loses nothing.
left_over: deque[Callable[[], None]] = deque()

#: Who does what is left over. `turns` has the one turn at it, which no interruption can lose; `by` is the thread that
#: has the turn.
_draining: Any = SimpleNamespace()

worker = Worker()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker._after_fork)


def drain() -> None:
    """Do what finalizers left, unless another thread does so, or the code that this signal handler has interrupted."""
    turn = _draining.turns.take(0) if left_over else None
    if turn is None:
        return
    try:
        _draining.by = threading.get_ident()
        while left_over:
            try:
                left_over[0]()
            except Exception:
                log().exception("what a finalizer of cycles_lite left failed")
            left_over.popleft()  # at the end, so that an interruption before leaves it to be done again
    finally:
        _draining.by = None
        turn.give_back()


def is_drained() -> bool:
    """Whether finalizers have left nothing, or this very thread is doing it and cannot wait for itself."""
    return not left_over or _draining.by == threading.get_ident()


def _threads_never_run() -> bool:
    """Whether this is uWSGI without `--enable-threads`: it starts threads and never runs them."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return False
    options = getattr(uwsgi, "opt", {})
    return not any(options.get(name) for name in ("enable-threads", b"enable-threads", "threads", b"threads"))
