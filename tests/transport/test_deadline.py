"""The ambient deadline: what it does to the calls within it."""

from __future__ import annotations

import contextlib
import contextvars
import math
import threading

import pytest
from implementation import collect_on_pypy
from interrupts import AtLine, Interrupt
from peers import (
    FakeTransport,
    Peer,
    allowed,
    answer,
    client_of,
    commit_request,
    committed,
    config_of,
    create_request,
    ends_within,
    replied,
    silent,
    summary,
)

from cycles_lite import ResponseError, ServerError, TransportError, TransportTimeout
from cycles_lite.protocol import wire
from cycles_lite.protocol.wire import Call
from cycles_lite.transport import deadline
from cycles_lite.transport.deadline import deadline_in, seconds_left
from cycles_lite.transport.http import HttpTransport


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set; only the deadline sees it."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(deadline, "monotonic", made.monotonic)
    return made


def fake_client(*answers, **changes):
    transport = FakeTransport(*answers)
    return client_of("http://127.0.0.1:1", transport=transport, **changes), transport


def test_there_is_none_unless_one_is_set():
    assert seconds_left() is None


def test_it_runs_down_and_goes_when_it_is_left(clock):
    with deadline_in(5.0):
        assert seconds_left() == 5.0
        clock.now += 4.0
        assert seconds_left() == 1.0
        clock.now += 4.0
        assert seconds_left() == -3.0
    assert seconds_left() is None


def test_the_nearest_of_nested_deadlines_holds(clock):
    with deadline_in(5.0):
        with deadline_in(2.0):
            assert seconds_left() == 2.0
        assert seconds_left() == 5.0
        with deadline_in(60.0):
            assert seconds_left() == 5.0
        clock.now += 1.0
        with deadline_in(math.inf):
            assert seconds_left() == 4.0


def test_it_goes_with_an_exception(clock):
    with pytest.raises(KeyError):
        with deadline_in(5.0):
            raise KeyError
    assert seconds_left() is None


def test_another_thread_has_none_unless_it_runs_in_the_same_context(clock):
    seen = []

    def look():
        seen.append(seconds_left())

    with deadline_in(5.0):
        context = contextvars.copy_context()
        for target in (look, lambda: context.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [None, 5.0]


@pytest.mark.parametrize(
    ("left", "connect", "read"),
    [
        (100.0, 2.0, 5.0),
        (7.0, 2.0, 5.0),
        (6.0, 2.0, 4.0),
        (2.5, 2.0, 0.5),
        (2.0, 2.0, 0.0),
        (1.0, 1.0, 0.0),
        (0.001, 0.001, 0.0),
    ],
)
def test_it_shortens_the_timeouts_to_what_is_left(clock, left, connect, read):
    client, transport = fake_client(replied(summary()), connect_timeout=2.0, read_timeout=5.0)
    with deadline_in(left):
        client.get_reservation("rsv_1")
    (call,) = transport.calls
    assert (call.connect_timeout, call.read_timeout) == (pytest.approx(connect), pytest.approx(read))


@pytest.mark.parametrize("seconds", [0.0, -1.0, -math.inf])
def test_nothing_is_sent_after_it(clock, seconds):
    client, transport = fake_client(replied(allowed()))
    with deadline_in(seconds):
        with pytest.raises(TransportTimeout, match="nothing was sent"):
            client.create_reservation(create_request())
        with pytest.raises(TransportTimeout, match="nothing was sent"):
            client.get_reservation("rsv_1")
        assert client.warm_up() is False
    assert transport.calls == []


def test_a_retry_that_would_end_after_it_is_not_made(clock):
    client, transport = fake_client(replied(status=503), retry_initial_delay=3.0, retry_max_delay=3.0)
    with deadline_in(3.0), pytest.raises(ServerError):
        client.get_reservation("rsv_1")
    assert len(transport.calls) == 1


@pytest.mark.parametrize("failure", [TransportError("cut"), replied(status=500), replied(body=b"<html>")])
def test_a_write_is_not_repeated_after_it_and_the_first_failure_is_told(clock, failure):
    """Not `nothing was sent`: something was."""

    def late(call):
        clock.now += 10.0
        return failure

    client, transport = fake_client(late)
    with deadline_in(5.0), pytest.raises((TransportError, ServerError, ResponseError)) as failed:
        client.commit_reservation("rsv_1", commit_request())
    assert "nothing was sent" not in str(failed.value)
    assert len(transport.calls) == 1


def test_a_retry_gets_what_is_then_left(clock):
    def slow(call):
        clock.now += 2.0
        return TransportError("cut")

    client, transport = fake_client(slow, replied(summary()), connect_timeout=2.0, read_timeout=5.0)
    client = client.with_options(retry_initial_delay=0.0)
    with deadline_in(5.0):
        client.get_reservation("rsv_1")
    assert [call.connect_timeout + call.read_timeout for call in transport.calls] == pytest.approx([5.0, 3.0])


@pytest.mark.parametrize(
    ("left", "retries", "bounds"),
    [
        (100.0, True, [None, None]),
        (10.0, True, [5.0, None]),
        (6.0, True, [3.0, None]),
        (6.0, False, [None]),
    ],
)
def test_an_old_connection_gets_half_of_what_is_left_where_another_attempt_can_follow(clock, left, retries, bounds):
    answers = [TransportTimeout("no answer"), replied(committed())]
    client, transport = fake_client(*answers, connect_timeout=2.0, read_timeout=5.0, retry_enabled=retries)
    with deadline_in(left), contextlib.suppress(TransportTimeout):
        client.commit_reservation("rsv_1", commit_request())
    assert [call.reused_bound for call in transport.calls] == bounds
    assert [call.fresh for call in transport.calls] == [False, True][: len(bounds)]


def black_hole(line):
    """Forgets its first connection after one request, as a gateway does while a process is frozen: nothing comes back
    on it, not even a reset. New connections work."""
    while True:
        line.read_request()
        if line.number == 1 and len(line.peer.requests) > 1:
            line.wait_for_close()
        line.send(answer(committed() if "commit" in line.peer.requests[-1].target else {**allowed(), **summary()}))


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create_reservation(create_request()),
        lambda client: client.commit_reservation("rsv_1", commit_request()),
        lambda client: client.get_reservation("rsv_1"),
    ],
    ids=["create", "commit", "get"],
)
def test_a_connection_that_leads_nowhere_does_not_take_the_whole_deadline(call):
    with Peer(talk=black_hole) as peer, client_of(peer, connect_timeout=60.0, read_timeout=600.0) as client:
        call(client)
        with ends_within(60), deadline_in(8.0):
            call(client)
    assert [request.connection for request in peer.requests] == [1, 1, 2]


def test_a_new_connection_gets_all_that_is_left():
    """What an old one would get is bounded lower, as the test above has it."""

    def late(line, request):
        line.pause(0.5)
        line.send(answer(summary()))

    with Peer(late) as peer:
        transport = HttpTransport(config_of(peer))
        call = Call(wire.GET_RESERVATION, "rsv_1", {}, None, {}, None, 60.0, 60.0, reused_bound=0.1)
        assert transport.send(call).status == 200
        assert isinstance(transport.send(call), TransportTimeout)
        transport.close()
    assert [request.connection for request in peer.requests] == [1, 1]


def test_it_bounds_a_real_call():
    with Peer(silent) as peer, client_of(peer, connect_timeout=60.0, read_timeout=600.0) as client:
        with ends_within(20), deadline_in(0.3), pytest.raises(TransportTimeout):
            client.create_reservation(create_request())
    assert len(peer.requests) <= 1


def test_a_call_that_is_done_in_time_does_not_notice_it():
    with Peer(answer(allowed())) as peer, client_of(peer) as client, deadline_in(60.0):
        assert client.create_reservation(create_request()).is_allowed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
def test_an_interruption_of_its_ends_leaves_no_deadline_behind():
    """Every later call would find that it has passed."""

    def bounded(nth):
        at = AtLine(nth)
        try:
            with at, deadline_in(0.0):
                pass
        except Interrupt:
            pass
        collect_on_pypy()
        return at.where

    nth = 1
    with deadline_in(1000.0):
        while bounded(nth) is not None:
            assert seconds_left() > 500, nth
            nth += 1
    assert nth > 5
    assert seconds_left() is None
