"""Exceptions from signal handlers at any instruction: no lock stays held, and operations happen whole or not at all.

In the long form they come between any two instructions, and not only between lines.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import sqlite3
import sys
import threading
import time

import pytest
from implementation import collect_on_pypy, needs_cpython
from interrupts import IS_LONG, PACKAGE, AfterTime, AtLine, Interrupt, in_finalizer, needs_timers, rounds

from cycles_lite.errors import TransportTimeout
from cycles_lite.local import Authority, connections, ledger, location
from cycles_lite.protocol.values import Amount

from .helpers import Bench, connections_to, new_key
from .processes import PATIENCE, start

#: An exception that comes within a finalizer is told to nobody, and files that it keeps Python from closing are named.
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(autouse=True)
def nothing_for_the_next_test():
    """What an interruption has left to the collector goes while its warnings are expected."""
    yield
    gc.collect()


#: Seconds in which what nobody holds up must be done; the store's own patience is far longer.
SOON = 60.0


class Operation:
    """One request, always the same, so that a second time is a replay."""

    def __init__(self, bench):
        self.bench, self.key = bench, new_key()

    def prepare(self):
        return self

    def reserved(self):
        self.id = self.bench.reserve(10).id
        return self


class Reserve(Operation):
    def __call__(self):
        return self.bench.reserve(10, idempotency_key=self.key)


class Commit(Operation):
    prepare = Operation.reserved

    def __call__(self):
        return self.bench.commit(self.id, 7, idempotency_key=self.key)


class Release(Operation):
    prepare = Operation.reserved

    def __call__(self):
        return self.bench.release(self.id, idempotency_key=self.key)


class Extend(Operation):
    prepare = Operation.reserved

    def __call__(self):
        return self.bench.extend(self.id, 500, idempotency_key=self.key)


class Event(Operation):
    def __call__(self):
        return self.bench.event(3, idempotency_key=self.key)


class Fund(Operation):
    def __call__(self):
        budget = self.bench.authority.fund("tenant:acme", Amount.tokens(5), idempotency_key=self.key)
        return self.bench.balances() if budget.allocated else None


class Balances(Operation):
    def __call__(self):
        return self.bench.balances()


OPERATIONS = [Reserve, Commit, Release, Extend, Event, Fund, Balances]


@pytest.fixture(params=["file", "memory"])
def bench(request, url):
    """An authority that waits long for a lock, so that a lock that stays held shows."""
    made = Bench("sqlite://" if request.param == "memory" else url, validates=False, timeout=PATIENCE)
    made.budget(amount=10**9)
    made.is_file = request.param == "file"
    yield made
    made.authority.shutdown()


def lines_of(work, opcodes=False):
    """The numbers of the lines, or instructions, of some work."""
    with AtLine(opcodes=opcodes, skips=in_finalizer) as counting:
        work()
    return range(1, counting.count + 1)


def interrupted_at(nth, work, opcodes=False):
    """What came out of some work that was interrupted there, or None."""
    try:
        with AtLine(nth, opcodes=opcodes, skips=in_finalizer):
            work()
    except Interrupt as e:
        return e
    return None


def in_another_thread(work):
    """The seconds that some work takes in a thread of its own."""
    failed = []

    def run():
        try:
            work()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run)
    before = time.monotonic()
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failed == []
    return time.monotonic() - before


def demand_free(bench, operation, before):
    """Nobody holds anything; the operation happened whole or not at all, and a second time it is done once."""
    collect_on_pypy()
    assert connections.live_transactions() == []
    started = time.monotonic()
    after = bench.amounts()
    if bench.is_file:  # as another process would: with no patience at all
        other = sqlite3.connect(bench.authority._ledger.name, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()
    assert operation().status in (200, 201)
    done = bench.amounts()
    assert after in (before, done)
    assert in_another_thread(lambda: bench.event(0)) < SOON
    assert time.monotonic() - started < SOON
    return done


def demand_exact(bench, operation_class, before, done):
    """The balances are those of one operation."""
    remaining, reserved, spent = (now - was for now, was in zip(done[:3], before[:3]))
    expected = {
        Reserve: (-10, 10, 0),
        Commit: (3, -10, 7),
        Release: (10, -10, 0),
        Extend: (0, 0, 0),
        Event: (-3, 0, 3),
        Fund: (5, 0, 0),
        Balances: (0, 0, 0),
    }
    assert (remaining, reserved, spent) == expected[operation_class]


@pytest.mark.parametrize("operation_class", OPERATIONS)
@pytest.mark.parametrize("keeps", [False, pytest.param(True, marks=needs_cpython)], ids=["dropped", "kept"])
def test_an_exception_at_each_line(bench, operation_class, keeps):
    """Also where the traceback is kept, as a debugger or an error tracker does."""
    numbers = lines_of(operation_class(bench).prepare(), IS_LONG)
    assert len(numbers) > 50
    kept = []
    for number in numbers:
        operation = operation_class(bench).prepare()
        before = bench.amounts()
        raised = interrupted_at(number, operation, IS_LONG)
        if keeps:
            kept.append(raised)
        del raised
        done = demand_free(bench, operation, before)
        demand_exact(bench, operation_class, before, done)
    assert bench.authority.check() == []


@needs_cpython
@pytest.mark.parametrize("writes", [True, False], ids=["writing", "reading"])
def test_an_exception_at_each_instruction_of_a_transaction(bench, writes):
    """Of the `with` statement itself too, before its block and after it, while every traceback is kept."""
    ledger = bench.authority._ledger

    def work():
        with (ledger.writing if writes else ledger.reading)() as (db, _):
            db.execute("SELECT 1")

    # From Python 3.12 on, tracing tells of few instructions; lines are told there.
    where = {"opcodes": sys.version_info < (3, 12), "skips": in_finalizer, "files": (PACKAGE, __file__)}
    with AtLine(**where) as counting:
        work()
    assert counting.count > (300 if where["opcodes"] else 60)
    kept = []
    for number in range(1, counting.count + 1):
        try:
            with AtLine(number, **where):
                work()
        except Interrupt as e:
            kept.append(e)
        assert connections.live_transactions() == []
        with ledger.writing(timeout=0) as (db, _):  # has no time to wait for anything
            db.execute("UPDATE budgets SET spent = spent")
    assert len(kept) == counting.count


def test_an_exception_at_each_line_of_upkeep(bench, monkeypatch):
    """Holds that are freed and rows that are pruned on the way."""
    monkeypatch.setattr(ledger, "PRUNE_EVERY_MS", 0)

    def due():
        operation = Event(bench)
        bench.reserve(10, ttl_ms=1000, grace_period_ms=0)
        bench.clock.now += 2000
        return operation

    for number in lines_of(due()):
        operation = due()
        interrupted_at(number, operation)
        demand_free(bench, operation, bench.amounts())
        assert bench.amounts()[1] == 0
    assert bench.authority.check() == []


def test_an_exception_at_each_line_of_a_boundary(bench):
    """A period is closed whole or not at all, and once."""
    hour = 3_600_000
    bench.budget(amount=10**9, period=1, rollover_policy="CARRY_FORWARD")

    def due():
        operation = Event(bench)
        bench.event(5)
        bench.reserve(10, ttl_ms=1000, grace_period_ms=0)
        bench.clock.now += hour
        return operation

    due()()
    numbers = lines_of(due(), IS_LONG)[:: 1 if IS_LONG else 3]
    for number in numbers:
        operation = due()
        interrupted_at(number, operation, IS_LONG)
        demand_free(bench, operation, bench.amounts())
        assert bench.amounts()[1:3] == (0, 3)
    closed = bench.authority.history()
    assert [one.end_ms - one.start_ms for one in closed] == [hour] * (len(numbers) + 2)
    assert [one.spent for one in closed] == [5] + [3 + 5] * (len(numbers) + 1)
    assert bench.authority.check() == []


def test_an_exception_at_each_line_of_opening_and_closing(url, path, tmp_path):
    """A file is made whole or not at all, without leaving a draft; connections are opened and closed."""

    def work():
        authority = Authority(url)
        authority.set_budget("tenant:acme", Amount.tokens(5))
        authority.shutdown()

    for number in lines_of(work):
        for name in os.listdir(str(tmp_path)):
            os.remove(str(tmp_path / name))
        interrupted_at(number, work)
        if connections_to(path):  # an error on the way may have left a circle
            gc.collect()
        assert set(os.listdir(str(tmp_path))) <= {"budgets.db"}
        assert connections.live_transactions() == connections_to(path) == []
        with Authority(url) as authority:
            authority.set_budget("tenant:acme", Amount.tokens(6))
            assert authority.check() == []


# ---- Real signals ----


@pytest.fixture
def on_alarm():
    """Sets what handles SIGALRM during a test."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGALRM, before)


def interrupted_after(seconds, work, act=None):
    """Run some work until a signal comes; whether it came in time and raised."""
    try:
        with AfterTime(seconds, act=act):
            work()
    except Interrupt:
        return True
    return False


@needs_timers
@pytest.mark.parametrize("operation_class", OPERATIONS)
def test_a_signal_at_any_instant(bench, operation_class):
    hits = 0
    first = operation_class(bench).prepare()
    started = time.perf_counter()
    first()
    took = time.perf_counter() - started
    for _ in range(rounds(40)):
        operation = operation_class(bench).prepare()
        before = bench.amounts()
        hits += interrupted_after(random.uniform(1e-5, 1.5 * took + 1e-4), operation)
        demand_exact(bench, operation_class, before, demand_free(bench, operation, before))
    assert hits or not IS_LONG  # a machine that does other things may never come to it
    assert bench.authority.check() == []


class TimeIsUp(Exception):
    """What task queues raise for a soft time limit: no BaseException."""


class Limit:
    def raise_it(self, number, frame):
        raise TimeIsUp

    __call__ = raise_it


def raise_it(extra, number, frame):
    raise TimeIsUp


HANDLERS = [Limit(), Limit().raise_it, functools.partial(raise_it, 1)]


@needs_timers
@pytest.mark.parametrize("handler", HANDLERS, ids=["object", "method", "partial"])
def test_a_time_limit_is_no_fault_of_the_authority(bench, on_alarm, handler, caplog):
    """It comes out of the call that it ends, and is not answered with a 500."""
    on_alarm(handler)
    clock = bench.clock

    def raise_in_the_midst():
        os.kill(os.getpid(), signal.SIGALRM)
        return clock.now

    bench.authority._ledger.clock = raise_in_the_midst
    with pytest.raises(TimeIsUp):
        bench.event(1)
    bench.authority._ledger.clock = clock
    assert bench.event(1).status == 201
    assert bench.amounts()[2] == 1
    assert caplog.records == []


@needs_timers
def test_interrupts_while_threads_write(bench):
    """One thread is interrupted again and again, the others are not held up, and nothing is lost or doubled."""
    times, done = rounds(60), []
    ending = threading.Event()

    def others():
        while not ending.is_set():
            assert bench.event(1).status == 201
            done.append(1)

    threads = [threading.Thread(target=others) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(times):
            operation = Event(bench)
            interrupted_after(random.uniform(1e-5, 5e-3), operation)
            assert operation().status == 201
    finally:
        ending.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert bench.amounts()[2] == 3 * times + len(done)
    assert bench.authority.check() == []


@needs_timers
def test_a_handler_that_writes_is_refused_at_once(bench, on_alarm, url):
    """It would wait for the very transaction that it interrupts. Through another authority on the file too."""
    told = []
    other = Bench(url, validates=False, timeout=PATIENCE) if bench.is_file else bench

    def handler(number, frame):
        for one in (bench, other):
            with pytest.raises(TransportTimeout):
                one.event(1)
            told.append(one)

    on_alarm(handler)
    with bench.authority._ledger.writing():
        before = time.monotonic()
        os.kill(os.getpid(), signal.SIGALRM)
        while not told:
            time.sleep(0.001)
    assert time.monotonic() - before < SOON
    assert len(told) == 2
    assert bench.event(1).status == other.event(1).status == 201
    other.authority.shutdown()


@needs_timers
def test_a_handler_that_writes_while_a_network_file_is_read(on_alarm, url, monkeypatch):
    """Without a WAL readers hold writers up."""
    monkeypatch.setattr(location, "is_on_network", lambda path: True)
    told = []

    def handler(number, frame):
        with pytest.raises(TransportTimeout):
            bench.event(1)
        told.append(1)

    with Bench(url, validates=False, timeout=PATIENCE) as bench:
        bench.budget()
        on_alarm(handler)
        before = time.monotonic()
        with bench.authority._ledger.reading():
            os.kill(os.getpid(), signal.SIGALRM)
            while not told:
                time.sleep(0.001)
        assert time.monotonic() - before < SOON
        assert bench.event(1).status == 201
        assert bench.amounts()[2] == 1


@needs_timers
def test_a_handler_that_writes_at_any_instant(bench):
    """It is served or refused, at once in either case, and what was told is what the ledger says."""
    told, times = [], rounds(60)

    def handler():
        before = time.monotonic()
        try:
            assert bench.event(1).status == 201
            told.append(1)
        except TransportTimeout:
            pass
        assert time.monotonic() - before < SOON

    for _ in range(times):
        assert not interrupted_after(random.uniform(1e-5, 2e-3), Event(bench), handler)
    assert bench.amounts()[2] == 3 * times + len(told)
    assert bench.authority.check() == []


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORK = """
import os, signal, sys, time
from cycles_lite.local import Authority
from cycles_lite.local import connections
from cycles_lite.errors import TransportError
from cycles_lite.protocol.values import Amount

class Interrupted(BaseException):
    pass

connections._FORK_PATIENCE = 50.0
authority = Authority(sys.argv[1], timeout=60)
authority.set_budget("tenant:acme", Amount.tokens(100))

def forked(work):
    before = time.monotonic()
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert time.monotonic() - before < 25, "the fork waited"

def child():
    authority.set_budget("tenant:acme", Amount.tokens(101))
    authority.shutdown()

def interrupt(number, frame):
    raise Interrupted

signal.signal(signal.SIGALRM, interrupt)
kept = []
for step in range(20):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + step * 0.00005)
        for _ in range(200):
            authority.set_budget("tenant:acme", Amount.tokens(100))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted as e:
        kept.append(e)
    forked(child)
assert kept

# A handler that forks while a transaction is open: the child may not end it.
def end_of(transaction):
    try:
        transaction.__exit__(None, None, None)
    except TransportError as e:
        assert "fork" in str(e)
    else:
        raise AssertionError("a child ended its parent's transaction")

transaction = authority._ledger.writing()
transaction.__enter__()[0].execute("UPDATE budgets SET allocated = 7")
forked(lambda: end_of(transaction))
transaction.__exit__(None, None, None)
assert authority.budgets()[0].allocated == 7
assert authority.check() == []
authority.shutdown()
"""


@needs_fork
@needs_timers
def test_a_fork_does_not_wait_for_what_was_interrupted(url):
    process = start(FORK, url)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
