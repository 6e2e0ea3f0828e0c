"""What a flush waits for, and what it counts."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings

import pytest
from ledgers import tokens
from peers import (
    FakeTransport,
    Peer,
    allowed,
    answer,
    applied,
    client_of,
    committed,
    config_of,
    ends_within,
    replied,
    silent,
)

from cycles_lite import Action, CyclesClient, SettlementStatus, TransportError, events
from cycles_lite.background.worker import Job
from cycles_lite.settlement.settler import settler_of

ACTION = Action("llm.completion", "gpt-4o")
PATIENCE = 60.0

#: Nothing is retried by itself while a test looks.
LATER = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "heartbeat": False}


def test_another_threads_commit_is_counted_while_it_is_under_way():
    """A flush of no time says so, and one that has time waits for it."""
    reached, release = threading.Event(), threading.Event()

    def commit(call):
        reached.set()
        assert release.wait(PATIENCE)
        return replied(committed())

    transport = FakeTransport(replied(allowed()), commit)
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        guard = client.reserve(tokens(5), ACTION)
        thread = threading.Thread(target=guard.commit, args=(tokens(3),))
        thread.start()
        assert reached.wait(PATIENCE)
        assert client.flush(0.0) == 1
        release_soon = threading.Timer(0.1, release.set)
        release_soon.start()
        assert client.flush(PATIENCE) == 0
        thread.join()
        release_soon.join()


def test_the_meter_of_a_collected_guard_is_counted_until_it_is_settled():
    down = threading.Event()

    def commit(call):
        if not down.is_set():
            return TransportError("down")
        return replied(committed())

    transport = FakeTransport(replied(allowed()), commit)
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        guard = client.reserve(tokens(5), ACTION)
        guard.spend(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del guard
            gc.collect()
        assert client.flush(0.0) == 1
        assert client.flush(PATIENCE) == 1
        down.set()
        assert client.flush(PATIENCE) == 0


def test_a_release_that_a_collected_guard_left_is_waited_for():
    reached, release = threading.Event(), threading.Event()

    def released(call):
        reached.set()
        assert release.wait(PATIENCE)
        return TransportError("down")

    transport = FakeTransport(replied(allowed()), released)
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        guard = client.reserve(tokens(5), ACTION)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del guard
            gc.collect()
        assert client.flush(0.0) == 1
        assert reached.wait(PATIENCE)
        release.set()
        assert client.flush(PATIENCE) == 0


def test_a_release_that_is_asked_for_again_is_waited_for_once():
    """As after an interruption of whoever takes the notes of finalizers."""
    transport = FakeTransport(replied(allowed()), lambda call: TransportError("down"))
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        guard = client.reserve(tokens(5), ACTION)
        guard.settle_abandoned()
        guard.settle_abandoned()
        assert client.flush(PATIENCE) == 0


def test_a_frozen_clock_makes_no_flush_and_no_close_endless():
    freezegun = pytest.importorskip("freezegun")

    def serve(line, request):
        if request.target == "/v1/reservations":
            line.send(answer(allowed()))
        else:
            silent(line, request)

    with Peer(serve) as peer:
        # The connections' own timeouts are the sockets', which no clock of Python's freezes.
        client = client_of(peer, read_timeout=3.0, flush_timeout=0.3, **LATER)
        with freezegun.freeze_time("2026-11-25 12:00:00"), ends_within(PATIENCE):
            with client.reserve(tokens(5), ACTION) as guard:
                assert guard.commit(tokens(3)).status is SettlementStatus.PENDING
            assert client.flush(0.5) == 1
            client.close()


def test_a_flush_within_an_observer_only_counts():
    """What an observer is told of is still under way in its own thread: to wait for it would be to wait for oneself."""
    counted = []

    def observe(event):
        if isinstance(event, events.Pending):
            counted.append(clients[0].flush(PATIENCE))

    transport = FakeTransport(replied(allowed()), TransportError("down"))
    with CyclesClient(
        config_of("http://fake.invalid", flush_timeout=0.0, **LATER), observer=observe, transport=transport
    ) as client:
        clients = [client]
        with ends_within(PATIENCE / 2):
            with client.reserve(tokens(5), ACTION) as guard:
                guard.commit(tokens(3))
        assert counted == [1]


def test_a_flush_goes_well_while_other_threads_make_clients():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    end, failures = time.monotonic() + 2.0, []
    transport = FakeTransport(replied(allowed()))
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        others = [client.with_options(workflow=f"w{number}") for number in range(300)]
        for other in others:
            settler_of(other._session).open()

        def flush():
            while time.monotonic() < end and not failures:
                try:
                    client.flush(0.0)
                except RuntimeError as e:
                    failures.append(e)

        thread = threading.Thread(target=flush)
        thread.start()
        while thread.is_alive():
            settler_of(client.with_options(workflow="another")._session).open()
        thread.join()
        sys.setswitchinterval(interval)
        for other in others:
            other.close()
    assert failures == []


def test_there_is_another_look_after_one_in_which_an_observer_ends_the_program(tmp_path):
    def end(event):
        if isinstance(event, events.JournalFailed):
            raise SystemExit(event.problem)

    transport = FakeTransport(replied(allowed()))
    config = config_of("http://fake.invalid", journal_dir=str(tmp_path), **LATER)
    with CyclesClient(config, observer=end, transport=transport) as client:
        settler = settler_of(client._session)
        settler.open()
        folder = settler._journal.folder
        os.makedirs(folder)
        with open(os.path.join(folder, "broken.json"), "w") as file:
            file.write("{")
        finder = settler.finder
        wanted = finder.look_around()
        limit = time.monotonic() + PATIENCE
        while finder.looks < wanted or not finder._job.is_waiting:
            assert time.monotonic() < limit
            time.sleep(0.005)
        assert finder._job.is_guest


def test_a_flush_waits_for_the_event_that_a_late_commit_becomes(monkeypatch):
    """However long it takes until a thread sends that."""
    run = Job.run
    monkeypatch.setattr(Job, "run", lambda job: (threading.Event().wait(0.1), run(job)))
    expired = replied({"error": "RESERVATION_EXPIRED", "message": "no", "request_id": "r"}, 410)
    down = TransportError("down")
    transport = FakeTransport(replied(allowed()), down, down, expired, replied(applied(), 201))
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        with client.reserve(tokens(5), ACTION) as guard:
            assert guard.commit(tokens(3)).status is SettlementStatus.PENDING
        assert client.flush(PATIENCE) == 0


def test_an_attempt_that_is_wanted_while_another_ends_is_not_pending_for_ever():
    """As a flush, or an observer that ends its thread, may want one in the very moment in which all is settled."""
    transport = FakeTransport(replied(allowed()), TransportError("down"), TransportError("down"), replied(committed()))
    with client_of("http://fake.invalid", transport=transport, **LATER) as client:
        with client.reserve(tokens(5), ACTION) as guard:
            guard.commit(tokens(3))
        (spend,) = client._session.settler.pending.values()
        assert client.flush(PATIENCE) == 0
        client._session.settler.retry_later(spend, 0.0)
        assert client.flush(PATIENCE) == 0
        assert len(transport.calls) == 4
