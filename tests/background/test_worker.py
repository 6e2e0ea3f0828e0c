"""The worker: few threads, started late, and no job lost between them."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from implementation import collect_on_pypy
from interrupts import AtLine, Interrupt

from cycles_lite.background import worker as workers
from cycles_lite.background.worker import MAX_THREADS, Job, Worker

SOON = 30.0  # seconds to wait at the most for what should come at once


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.leave()
    wait_until(lambda: not made._threads or made._ring())


@pytest.fixture
def one_thread(monkeypatch):
    """Jobs are begun in their order, but a second thread might be done with the next one before the first has begun."""
    monkeypatch.setattr(workers, "MAX_THREADS", 1)


def wait_until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def each_line(step, prepare=lambda: None):
    """Call it again and again, interrupted at another of its lines each time; yields where."""
    nth, at = 0, None
    while at is None or at.where is not None:
        nth += 1
        prepare()
        at = AtLine(nth)
        try:
            with at:
                step()
        except Interrupt:
            pass
        collect_on_pypy()
        yield at.where


def test_a_job_runs_once_when_it_is_due(worker):
    ran = threading.Event()
    runs = []
    worker.schedule(0.0, lambda: (runs.append(threading.current_thread()), ran.set()))
    assert ran.wait(SOON)
    assert len(runs) == 1
    assert runs[0].daemon
    assert runs[0].name == "cycles-lite-worker"


def test_jobs_run_in_the_order_in_which_they_are_due(worker, one_thread):
    order, done = [], threading.Event()
    late = Job(0.0, lambda: (order.append("late"), done.set()))
    soon, now = Job(0.0, lambda: order.append("soon")), Job(0.0, lambda: order.append("now"))
    soon.due, late.due = now.due + 0.05, now.due + 0.1
    with worker._lead:  # no thread looks before all are there
        for job in (late, now, soon):
            job.earliest = job.due
            worker.post(job)
    assert done.wait(SOON)
    assert order == ["now", "soon", "late"]


def test_a_cancelled_job_does_not_run(worker, one_thread):
    ran, done = [], threading.Event()
    with worker._lead:
        job = worker.schedule(0.0, lambda: ran.append(1))
        assert job.cancel()
        worker.schedule(0.0, done.set)
    assert done.wait(SOON)
    assert ran == []


def test_a_cancelled_job_lets_go_of_what_it_held(worker):
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    job = worker.schedule(3600.0, lambda held=held: None)
    job.cancel()
    del held
    gc.collect()
    assert gone() is None


def test_a_job_that_fails_is_logged_and_the_next_one_runs(worker, caplog):
    done = threading.Event()
    worker.schedule(0.0, lambda: 1 / 0)
    worker.schedule(0.01, done.set)
    assert done.wait(SOON)
    wait_until(lambda: "a background job of cycles_lite failed" in caplog.text)  # another thread may tell of it


def test_a_job_that_hangs_holds_up_no_other(worker):
    hanging, release, done = threading.Event(), threading.Event(), threading.Event()
    worker.schedule(0.0, lambda: (hanging.set(), release.wait(SOON)))
    assert hanging.wait(SOON)
    worker.schedule(0.0, done.set)
    try:
        assert done.wait(SOON)
    finally:
        release.set()


def test_threads_are_few_however_many_jobs_hang(worker):
    release, at_work, lock, done = threading.Event(), [], threading.Lock(), threading.Semaphore(0)

    def hang():
        with lock:
            at_work.append(threading.current_thread())
        release.wait(SOON)
        done.release()

    for _ in range(50):
        worker.schedule(0.0, hang)
    wait_until(lambda: len(at_work) == MAX_THREADS)
    assert len(worker._threads) <= MAX_THREADS
    release.set()
    for _ in range(50):
        assert done.acquire(timeout=SOON)
    assert len(set(at_work)) <= MAX_THREADS


def test_no_thread_starts_before_there_is_a_job():
    assert Worker()._threads == set()


def test_a_later_job_wakes_nobody(worker):
    """The leader looks into the post by itself; only what is due before its next look rings the bell."""
    done = threading.Event()
    worker.schedule(0.0, done.set)
    assert done.wait(SOON)
    wait_until(lambda: worker._sleeps_until)
    job = worker.schedule(45.0, lambda: None)
    assert worker._bell.locked()
    job.cancel()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wherever_ringing_is_interrupted_the_next_ring_wakes_the_leader():
    """Else the job that it is for would wait until the leader looks by itself, which may take half a minute."""
    made = []

    def prepare():
        made.append(Worker())
        made[-1]._bell.acquire(False)  # the leader sleeps

    for where in each_line(lambda: made[-1]._ring(), prepare):
        made[-1]._ring()
        assert made[-1]._bell.acquire(False), where


def test_a_short_sleep_ends_however_busy_the_machine_is(worker):
    """Thousands of times, because a wait that does not end is one of a thread that is stopped at a certain moment."""
    worker.schedule(0.0, lambda: None)
    for _ in range(3000):
        done = threading.Event()
        worker.schedule(1e-5, done.set)
        assert done.wait(SOON)


def test_where_many_wait_the_first_is_begun_so_early_that_the_last_is_in_time(worker):
    """By what a job takes, and not before the time that it names. A job that names none is never early."""
    start = time.monotonic()

    def later(delay, at_least=None):
        job = Job(delay, lambda: None, at_least)
        worker._post.append(job)  # there is to be no thread
        return job

    jobs = [later(3600.0, at_least=1800.0) for _ in range(100 * MAX_THREADS)]

    def first_in(seconds_a_job):
        with worker._lead:
            worker._collect()
        worker._pace = seconds_a_job
        return worker._next_due() - start

    assert first_in(0.0) == pytest.approx(3600, abs=60)
    assert first_in(5.0) == pytest.approx(3600 - 100 * 5, abs=60)
    assert first_in(1000.0) == pytest.approx(1800, abs=60)
    jobs += [later(3000.0)]
    assert first_in(1000.0) == pytest.approx(3000, abs=60)
    for job in jobs:
        job.cancel()


def test_refused_threads_are_told_once_and_jobs_run_inline(worker, monkeypatch, caplog):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    ran = []
    worker.schedule(0.0, lambda: ran.append(1))
    worker.schedule(0.0, lambda: ran.append(2))
    worker.schedule(3600.0, lambda: ran.append(3))  # not due
    worker.catch_up()
    assert ran == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "no background thread is to be had (can't start new thread): heartbeats and retries run inline"
    ]


def test_uwsgi_without_threads_is_noticed(worker, monkeypatch, caplog):
    class Uwsgi:
        opt = {"http": b":8000"}

    monkeypatch.setitem(workers.sys.modules, "uwsgi", Uwsgi)
    worker.schedule(0.0, lambda: None)
    assert "uWSGI runs without --enable-threads" in caplog.text
    Uwsgi.opt["enable-threads"] = True
    assert not workers._threads_never_run()


def test_what_finalizers_leave_is_done(worker):
    done = threading.Event()
    workers.left_over.append(done.set)
    worker.catch_up()
    assert done.is_set()
    assert not workers.left_over


def test_what_an_interruption_keeps_from_being_done_is_done_next_time(worker):
    done = []

    def interrupted_at_first():
        done.append("begun")
        if len(done) == 1:
            raise KeyboardInterrupt

    workers.left_over.append(interrupted_at_first)
    with pytest.raises(KeyboardInterrupt):
        worker.catch_up()
    worker.catch_up()
    assert done == ["begun", "begun"]
    assert not workers.left_over


def test_what_is_due_at_once_finds_that_it_was_posted(worker):
    """Whoever looks at its own job within it, as a heartbeat does, finds it."""
    found, done = [], threading.Event()
    job = Job(0.0, lambda: (found.append(job), done.set()))
    worker.post(job)
    assert done.wait(SOON)
    assert found == [job]


def test_cancelled_jobs_do_not_stay_behind_one_that_waits(worker):
    waits = worker.schedule(3600.0, lambda: None)
    for _ in range(5000):
        worker.schedule(1800.0, lambda: None).cancel()
    done = threading.Event()
    worker.schedule(0.0, done.set)
    assert done.wait(SOON)
    for _ in range(5000):  # cancelled after they were sorted in
        worker.schedule(1800.0, lambda: None)
    worker._ring()  # by itself it would look in half a minute
    wait_until(lambda: len(worker._heap) >= 5001)
    for _, _, job in list(worker._heap):
        if job is not waits:
            job.cancel()
    done.clear()
    worker.schedule(0.0, done.set)
    assert done.wait(SOON)
    wait_until(lambda: len(worker._heap) <= 64)  # they go after that job, before the thread sleeps again
    waits.cancel()


def test_threads_that_overlap_have_one_lead(worker):
    """A thread that ends may find that it is needed, after another one was started."""
    lead = worker._lead
    for _ in range(2):
        done = threading.Event()
        worker.schedule(0.0, done.set)
        assert done.wait(SOON)
        worker.leave()
        wait_until(lambda: not worker._threads)
        assert worker._lead is lead


def test_a_guest_neither_starts_a_thread_nor_keeps_one(worker):
    guest = Job(0.0, lambda: None)
    guest.is_guest = True
    worker.post(guest)
    assert worker._threads == set()
    done = threading.Event()
    worker.schedule(0.0, done.set)
    assert done.wait(SOON)
    later = Job(3600.0, lambda: None)
    later.is_guest = True
    worker.post(later)
    worker.leave()
    wait_until(lambda: not worker._threads)
    assert worker._threads == set()
    assert later.is_waiting


def test_many_guests_have_a_thread_look_through_them(worker):
    """As those of clients that were made for one request each, and are gone."""
    for _ in range(1000):
        guest = Job(3600.0, lambda: None)
        guest.is_guest = True
        guest.cancel()
        worker.post(guest)
    wait_until(lambda: len(worker._post) + len(worker._heap) <= 200)


def test_a_guest_that_is_due_is_run_when_the_library_is_next_called(worker):
    done = threading.Event()
    guest = Job(0.0, done.set)
    guest.is_guest = True
    worker.post(guest)
    worker.catch_up()
    assert done.wait(SOON)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
def test_wherever_draining_is_interrupted_it_goes_on(worker):
    done = []

    def step():
        workers.left_over.append(lambda: done.append(1))
        workers.drain()

    for where in each_line(step):
        workers.drain()
        assert not workers.left_over, where
    assert len(done) > 5


def test_wherever_a_post_is_interrupted_the_next_one_has_a_thread():
    posted = []

    def step():
        posted[-1].post(Job(0.0, lambda: None))

    for where in each_line(step, lambda: posted.append(Worker())):
        made, done = posted[-1], threading.Event()
        made.schedule(0.0, done.set)
        assert done.wait(SOON), where
        made.leave()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wherever_an_inline_run_is_interrupted_the_next_one_runs(worker, monkeypatch, caplog):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []

    def step():
        worker.post(Job(0.0, lambda: None))
        worker.catch_up()

    for where in each_line(step):
        del done[:]
        worker.schedule(0.0, lambda: done.append(1))
        worker.catch_up()
        assert done, where


def test_what_a_finalizer_left_ends_no_thread_of_the_worker(worker, caplog):
    ended = [1]

    def leave():
        if ended:
            ended.pop()
            raise SystemExit("an observer's")

    threads = []
    worker.schedule(0.0, lambda: threads.append(threading.get_ident()))
    workers.left_over.append(leave)
    later = threading.Event()
    worker.schedule(0.1, later.set)
    assert later.wait(SOON)
    assert "wanted to end the thread" in caplog.text
    wait_until(lambda: not workers.left_over)  # it is done again when a thread looks around next
