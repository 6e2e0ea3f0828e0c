"""Whether the process is about to end: what is seen of it, without signal handlers of our own."""

from __future__ import annotations

import signal
import threading
from time import monotonic

import pytest
from ledgers import tokens
from peers import FakeTransport, allowed, client_of, committed, replied

from cycles_lite import Action, SettlementStatus, TransportError
from cycles_lite.background.worker import worker
from cycles_lite.runtime import shutdown

ACTION = Action("llm.completion", "gpt-4o")

#: Nothing is retried in the background while a test counts.
LATER = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "heartbeat": False}


class Worker:
    """As a worker of gunicorn is: its handler only says that it is to end, and its present request is finished."""

    alive = True

    def handle_exit(self, number, frame):
        self.alive = False


@pytest.fixture
def host():
    worker = Worker()
    before = signal.signal(signal.SIGTERM, worker.handle_exit)
    yield worker
    signal.signal(signal.SIGTERM, before)


def outcomes(transport):
    with client_of("http://fake.invalid", transport=transport, flush_timeout=0.0, **LATER) as client:
        with client.reserve(tokens(5), ACTION) as guard:
            return guard.commit(tokens(3)).status, len(transport.calls) - 1


def test_a_host_that_was_told_to_end_is_seen(host):
    assert not shutdown.is_under_way()
    signal.raise_signal(signal.SIGTERM) if hasattr(signal, "raise_signal") else host.handle_exit(None, None)
    assert shutdown.is_under_way()


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda number, frame: None, threading.Event().set])
def test_other_handlers_say_nothing(host, handler):
    signal.signal(signal.SIGTERM, handler)
    assert not shutdown.is_under_way()


class Odd:
    """As a proxy that may be asked in a request alone."""

    @property
    def alive(self):
        raise RuntimeError("outside of a request")

    def handle_exit(self, number, frame):
        raise AssertionError


def test_what_a_host_raises_when_it_is_asked_stops_no_settlement():
    before = signal.signal(signal.SIGTERM, Odd().handle_exit)
    try:
        assert outcomes(FakeTransport(replied(allowed()), TransportError("lost"), replied(committed()))) == (
            SettlementStatus.COMMITTED,
            2,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_attempt_is_made_while_the_caller_waits_and_wants_to_end(host):
    transport = FakeTransport(replied(allowed()), TransportError("down"))
    assert outcomes(transport) == (SettlementStatus.PENDING, 2)
    host.alive = False
    transport = FakeTransport(replied(allowed()), TransportError("down"))
    assert outcomes(transport) == (SettlementStatus.PENDING, 1)


def test_without_a_record_on_disk_there_are_two_attempts_all_the_same(host):
    host.alive = False
    down = TransportError("down")
    transport = FakeTransport(replied(allowed()), down, down, replied(committed()))
    with client_of("http://fake.invalid", transport=transport, journal_enabled=False, **LATER) as client:
        with client.reserve(tokens(5), ACTION) as guard:
            assert guard.commit(tokens(3)).status is SettlementStatus.PENDING
            assert len(transport.calls) == 3
        assert client.flush(60) == 0


@pytest.mark.parametrize("is_run_first", [False, True], ids=["cancelled", "run first"])
def test_a_commit_that_is_under_way_while_its_client_is_closed_is_attempted_once(is_run_first, monkeypatch):
    """And no thread stays, whether its next attempt is cancelled or finds by itself that it has nothing to do."""
    if is_run_first:
        post = worker.post

        def post_and_wait(job):
            post(job)
            end = monotonic() + 60
            while not (job.is_guest or job.is_over) and monotonic() < end:
                threading.Event().wait(0.005)

        monkeypatch.setattr(worker, "post", post_and_wait)
    reached, closing, told = threading.Event(), threading.Event(), []

    def commit(call):
        reached.set()
        assert closing.wait(60)
        return TransportError("down")

    transport = FakeTransport(replied(allowed()), commit)
    client = client_of("http://fake.invalid", transport=transport, heartbeat=False, flush_timeout=0.0)
    guard = client.reserve(tokens(5), ACTION)
    thread = threading.Thread(target=lambda: told.append(guard.commit(tokens(3))))
    thread.start()
    assert reached.wait(60)
    client.close()
    closing.set()
    thread.join()
    assert told[0].status is SettlementStatus.PENDING
    assert len(transport.calls) == 2
