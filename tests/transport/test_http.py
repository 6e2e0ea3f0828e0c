"""The HTTP transport against peers that drip, lie, hang up, flood and fork, over real sockets."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from implementation import IS_PYPY, needs_cpython
from peers import (
    ACTION,
    KEY,
    PATIENCE,
    Peer,
    allowed,
    answer,
    chunk,
    chunked,
    client_of,
    close,
    commit_request,
    committed,
    config_of,
    create_request,
    dripped,
    ends_within,
    head,
    no_descriptors,
    poured,
    refusal,
    released,
    reset,
    silent,
    summary,
    then,
)

import cycles_lite
from cycles_lite import (
    Amount,
    ApiError,
    ConfigError,
    ReleaseRequest,
    ResponseError,
    ServerError,
    TransportError,
    TransportTimeout,
    ValidationError,
)
from cycles_lite.protocol import wire
from cycles_lite.protocol.wire import Call
from cycles_lite.runtime import clock
from cycles_lite.transport import connections
from cycles_lite.transport.connections import MAX_ANSWER_BYTES
from cycles_lite.transport.http import HttpTransport

#: An attempt may take 0.3 s; the peers below would take minutes.
TIGHT = {"connect_timeout": 0.2, "read_timeout": 0.1, "retry_enabled": False, "max_connections": 1}

ONCE = {"retry_enabled": False, "max_connections": 1}

GOOD = answer(summary())
BODY = GOOD.split(b"\r\n\r\n", 1)[1]

#: What must hold on a new connection and on one that has served before.
either_exchange = pytest.mark.parametrize("first", [True, False], ids=["first", "later"])

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def get(client):
    return client.get_reservation("rsv_1")


def idempotency_keys(peer):
    return [request.header("X-Idempotency-Key") for request in peer.requests]


# ---- One attempt is bounded as a whole ----

CHUNKED = head(200, ("Transfer-Encoding", "chunked"))

NEVER_ENDING = {
    "silence": silent,
    "a dripped status line": dripped(b"HTTP/1.1 200 " + b"O" * 100_000),
    "dripped headers": then(b"HTTP/1.1 200 OK\r\n", dripped(b"X-Slow: " + b"o" * 100_000)),
    "a dripped body": then(head(200, ("Content-Length", "100000")), dripped(b" " * 100_000)),
    "a dripped body without a length": then(head(200), dripped(b" " * 100_000)),
    "dripped chunks": then(CHUNKED, dripped(chunk(b" ") * 100_000)),
    "a dripped chunk size": then(CHUNKED, dripped(b"0" * 100_000)),
    "endless trailers": then(CHUNKED, b"0\r\n", poured(b"X-More: yes\r\n" * 100)),
    "endless 100 Continue": poured(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "dripped 100 Continue": dripped(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
    "a body that stops": then(head(200, ("Content-Length", "100")), b"{", silent),
}


@either_exchange
@pytest.mark.parametrize("name", NEVER_ENDING)
def test_an_answer_that_never_ends_is_bounded_by_both_timeouts_together(name, first):
    """And without a thread; and the broken connection's place in the pool is free again."""
    threads = []

    def script(line, request):
        threads.extend(thread.name for thread in threading.enumerate())
        if request.target.endswith("rsv_slow"):
            NEVER_ENDING[name](line, request)
        line.send(GOOD)

    before = {thread.name for thread in threading.enumerate()} | {"peer"}
    with Peer(script) as peer, client_of(peer, **TIGHT) as client:
        patient = client.with_options(read_timeout=10.0)  # on the same pool of one connection
        if not first:
            get(patient)
        with ends_within(10), pytest.raises(TransportTimeout, match="no answer from"):
            client.get_reservation("rsv_slow")
        assert get(patient).reservation_id == "rsv_1"
    assert peer.requests[-1].connection == peer.connections
    assert set(threads) <= before


def test_a_peer_that_does_not_read_a_large_body_is_bounded():
    with Peer(talk=lambda line: line.pause()) as peer, client_of(peer, **TIGHT) as client:
        large = create_request(metadata={"large": "x" * 16_000_000})
        with ends_within(10), pytest.raises(TransportTimeout):
            client.create_reservation(large)


def test_a_peer_that_answers_without_reading_a_large_body_is_heard_or_leaves_the_outcome_unknown():
    """Its answer may be lost to the reset that follows; it must not be waited for."""

    def refuse_unread(line):
        line._until(b"\r\n\r\n")
        line.send(refusal("INVALID_REQUEST", 413, headers=[("Connection", "close")]))

    with Peer(talk=refuse_unread) as peer, client_of(peer, **ONCE, read_timeout=60.0) as client:
        with pytest.raises((ApiError, TransportError)) as refused:
            client.create_reservation(create_request(metadata={"large": "x" * 16_000_000}))
    assert getattr(refused.value, "status", 413) == 413
    assert not isinstance(refused.value, TransportTimeout)


def test_a_full_accept_queue_is_bounded():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    try:
        for _ in range(8):
            filler = socket.socket()
            fillers.append(filler)
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with client_of(url, **TIGHT) as client, ends_within(10), pytest.raises(TransportError):
            get(client)
    finally:
        for sock in [*fillers, listener]:
            sock.close()


def test_a_peer_that_accepts_late_is_waited_for_within_the_bound():
    """The kernel completes the handshake; what counts is that the answer's wait includes it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, client_of(url, **TIGHT) as client, ends_within(10), pytest.raises(TransportTimeout):
        get(client)


def test_waiting_for_a_free_connection_is_bounded_and_says_so():
    with Peer(silent) as peer, client_of(peer, **TIGHT) as client, ThreadPoolExecutor(1) as pool:
        held = pool.submit(get, client.with_options(read_timeout=8.0))
        assert peer.wait_for(1)
        with ends_within(8), pytest.raises(TransportTimeout, match="all connections are busy"):
            get(client)
        peer.stopped.set()
        peer.__exit__(None)
        with pytest.raises(TransportError):
            held.result()


def test_two_attempts_take_at_most_twice_the_bound():
    with Peer(silent) as peer, client_of(peer, **{**TIGHT, "retry_enabled": True}) as client:
        with ends_within(10), pytest.raises(TransportTimeout):
            client.create_reservation(create_request())
    assert len(peer.requests) <= 2
    assert len(set(idempotency_keys(peer))) <= 1


# ---- Answers that are cut or are none ----

CUT = {
    "closed at once": close,
    "reset at once": reset,
    "closed within the status line": then(b"HTTP/1.1 2", close),
    "closed within the headers": then(b"HTTP/1.1 200 OK\r\nContent-Ty", close),
    "closed between headers": then(b"HTTP/1.1 200 OK\r\nX-A: b\r\n", close),
    "closed after an error's status line": then(b"HTTP/1.1 410 Gone\r\n", close),
    "a line that is no header": then(b"HTTP/1.1 410 Gone\r\nnonsense\r\nContent-Length: 0\r\n\r\n"),
    "reset within the headers": then(b"HTTP/1.1 200 OK\r\nContent-Ty", reset),
    "closed before the body": then(head(200, ("Content-Length", "10")), close),
    "closed within the body": then(head(200, ("Content-Length", "1000")), b'{"status":', close),
    "closed one byte early": then(answer(summary())[:-1], close),
    "reset within the body": then(head(200, ("Content-Length", "1000")), b'{"status":', reset),
    "cut before a chunk": then(CHUNKED, close),
    "cut within a chunk's size": then(CHUNKED, b"1", close),
    "cut within a chunk": then(CHUNKED, b"20\r\n{", close),
    "cut between chunks": then(CHUNKED, chunk(b"{}"), close),
    "a chunk size that is no number": then(CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk size": then(CHUNKED, b"-5\r\n{}\r\n0\r\n\r\n", close),
    "a chunk size line without end": then(CHUNKED, b"0" * 100_000),
    "another protocol's greeting": then(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "TLS where none is spoken": then(b"\x15\x03\x01\x00\x02\x02\x28", close),
    "control characters and no end": then(b"\x1b[31m\x00" + b"\x07" * 70_000),
    "HTTP/2": then(b"HTTP/2.0 200 OK\r\n\r\n"),
    "a status that is no number": then(b"HTTP/1.1 OK 200\r\n\r\n"),
    "a hundred and one headers": then(head(200, *[("X-H", "1")] * 101)),
    "a header without end": then(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000),
    "two lengths": then(head(200, ("Content-Length", "2"), ("Content-Length", "3")), b"{} "),
    "100 Continue and nothing more": then(b"HTTP/1.1 100 Continue\r\n\r\n", close),
}


#: On a connection that was used before these count as stale, and the request is sent again.
STALE = ("closed at once", "reset at once", "reset within the headers", "100 Continue and nothing more")


@pytest.mark.parametrize(
    ("name", "first"), [(name, True) for name in CUT] + [(name, False) for name in CUT if name not in STALE]
)
def test_an_answer_that_is_cut_or_is_none_leaves_the_outcome_unknown(name, first):
    """A `TransportError` of one short line; the connection is not used again, and its place is free."""
    before = [] if first else [GOOD]
    with Peer(*before, CUT[name], GOOD) as peer, client_of(peer, **ONCE) as client:
        for _ in before:
            get(client)
        with pytest.raises(TransportError) as failed:
            get(client)
        assert get(client).reservation_id == "rsv_1"
    assert not isinstance(failed.value, TransportTimeout)
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) < 400
    assert [request.connection for request in peer.requests] == [1] * len(before) + [1, 2]


FINE = {
    "one chunk": chunked(BODY),
    "chunks of one byte": chunked(*[bytes([byte]) for byte in BODY]),
    "chunks with extensions and trailers": CHUNKED
    + b'%x;name="value"\r\n%s\r\n0\r\nX-A: b\r\n\r\n' % (len(BODY), BODY),
    "no length, then the end": then(head(200), BODY, close),
    "HTTP/1.0": then(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), close),
    "100 Continue before": b"HTTP/1.1 100 Continue\r\nX-A: b\r\n\r\n" * 3 + GOOD,
    "both a length and chunks": head(200, ("Transfer-Encoding", "chunked"), ("Content-Length", "3"))
    + chunked(BODY)[len(CHUNKED) :],
    "one length, twice": head(200, *[("Content-Length", str(len(BODY)))] * 2) + BODY,
    "lengths as a list": then(head(200, ("Content-Length", "{0}, {0}".format(len(BODY)))) + BODY, close),
    "103 Early Hints before": head(103, ("Link", "</x>; rel=preload")) * 2 + GOOD,
    "102 Processing before, dripped": dripped(head(102) + GOOD, every=0.0001),
    "dripped but in time": dripped(GOOD, every=0.0001),
}


@either_exchange
@pytest.mark.parametrize("name", FINE)
def test_unusual_but_whole_answers_are_read(name, first):
    before = [] if first else [GOOD]
    with Peer(*before, FINE[name], GOOD) as peer, client_of(peer, **ONCE) as client:
        for _ in before:
            get(client)
        assert get(client).reservation_id == "rsv_1"
        assert get(client).reservation_id == "rsv_1"


@pytest.mark.parametrize("interim", [100, 101, 102, 103, 199])
def test_an_interim_answer_never_shifts_the_next_one(interim):
    """Were it taken for the answer, the real one would be read as that of the next request on the connection."""

    def hint_then_answer_late(line, request):
        line.send(head(interim, ("Link", "</x>")))
        peer.wait_for(2, seconds=0.1)
        line.send(answer(summary("rsv_late")))

    with Peer(hint_then_answer_late, GOOD) as peer, client_of(peer, **ONCE) as client:
        assert client.get_reservation("rsv_late").reservation_id == "rsv_late"
        assert get(client).reservation_id == "rsv_1"


def test_what_comes_behind_an_answer_is_not_taken_for_the_next_one():
    with Peer(GOOD + answer(summary("rsv_evil")), answer(summary("rsv_2"))) as peer, client_of(peer) as client:
        assert get(client).reservation_id == "rsv_1"
        assert get(client).reservation_id == "rsv_2"


# ---- Stale keep-alive ----


@pytest.mark.parametrize("end", [close, reset], ids=["closed", "reset"])
@pytest.mark.parametrize("retries", [True, False])
def test_a_kept_alive_connection_that_ends_after_the_second_request_is_replaced_at_once(end, retries):
    with Peer(answer(allowed()), end, answer(allowed(reservation_id="rsv_2"))) as peer:
        with client_of(peer, retry_enabled=retries) as client:
            client.create_reservation(create_request())
            assert client.create_reservation(create_request(idempotency_key="again")).reservation_id == "rsv_2"
    assert [request.connection for request in peer.requests] == [1, 1, 2]
    assert idempotency_keys(peer)[1:] == ["again", "again"]
    assert peer.requests[1].body == peer.requests[2].body


def test_a_read_on_a_stale_connection_is_repeated_without_a_delay():
    with Peer(GOOD, close, GOOD) as peer, client_of(peer, retry_initial_delay=3600, retry_max_delay=3600) as client:
        get(client)
        with ends_within(60):
            get(client)
    assert [request.connection for request in peer.requests] == [1, 1, 2]


@pytest.mark.parametrize("end", [close, reset], ids=["closed", "reset"])
def test_a_kept_alive_connection_that_ended_while_idle_is_noticed(end):
    """Whether before or after sending is the network's choice; the caller gets an answer."""
    with Peer(then(answer(allowed()), end), answer(allowed())) as peer, client_of(peer) as client:
        client.create_reservation(create_request())
        assert client.create_reservation(create_request()).is_allowed
    assert len(peer.requests) <= 3


@pytest.mark.parametrize(
    "retries",
    [
        True,
        False,
    ],
)
def test_the_second_failure_in_a_row_is_raised(retries):
    """At most two attempts in all: the stale one counts."""
    with Peer(answer(allowed()), close) as peer, client_of(peer, retry_enabled=retries) as client:
        client.create_reservation(create_request())
        with pytest.raises(TransportError):
            client.create_reservation(create_request())
    assert [request.connection for request in peer.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    ("operation", "answers", "error"),
    [
        ("create", [answer(allowed()), close, refusal("INTERNAL_ERROR", 500), answer(allowed())], ServerError),
        ("create", [answer(allowed()), close, answer(body=b"<html>"), answer(allowed())], ResponseError),
        ("commit", [answer(committed()), close, close, answer(committed())], TransportError),
        ("commit", [answer(committed()), reset, refusal("INTERNAL_ERROR", 503), answer(committed())], ServerError),
        ("commit", [answer(committed()), answer(status=204), close, answer(committed())], TransportError),
        ("commit", [answer(committed()), refusal("INTERNAL_ERROR", 500), close, answer(committed())], TransportError),
        ("release", [answer(released()), close, close, answer(released())], TransportError),
    ],
)
def test_at_most_two_attempts_are_made_inline_whatever_happens(operation, answers, error):
    def call(client):
        if operation == "create":
            return client.create_reservation(create_request())
        if operation == "commit":
            return client.commit_reservation("rsv_1", commit_request())
        return client.release_reservation("rsv_1", ReleaseRequest())

    with Peer(*answers) as peer, client_of(peer) as client:
        call(client)
        with pytest.raises(error):
            call(client)
        assert len(peer.requests) == 3
        call(client)
    keys = idempotency_keys(peer)
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_several_stale_connections_cost_one_retry():
    """The retry opens a new connection; it does not try the other stale ones."""
    together = threading.Barrier(3)

    def talk(line):
        request = line.read_request()
        if line.number <= 3:
            together.wait(10)
            line.send(GOOD)
            line.read_request()
            line.reset()
        while True:
            line.send(GOOD)
            request = line.read_request()
        return request

    with Peer(talk=talk) as peer, client_of(peer, retry_enabled=False) as client:
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(get, client) for _ in range(3)]:
                done.result()
        get(client)
    assert peer.connections == 4
    assert len(peer.requests) == 5


def test_a_kept_alive_connection_that_ends_within_a_large_request_is_replaced_at_once():
    def talk(line):
        line.read_request()
        line.send(answer(allowed()))
        if line.number == 1:
            line._until(b"\r\n\r\n")
            line.reset()
        line.wait_for_close()

    with Peer(talk=talk) as peer, client_of(peer, retry_enabled=False, read_timeout=60.0) as client:
        client.create_reservation(create_request())
        assert client.create_reservation(create_request(metadata={"large": "x" * 16_000_000})).is_allowed
    assert peer.connections == 2


def test_a_fresh_connection_is_a_new_one_even_where_an_idle_one_would_do():
    """Another thread may have given one back since, as old as the one that was stale."""
    call = Call(wire.GET_RESERVATION, "rsv_1", {}, None, {}, None, 5.0, 10.0)
    with Peer(GOOD) as peer:
        transport = HttpTransport(config_of(peer, max_connections=1))
        for fresh in (False, False, True, False):
            assert transport.send(call._replace(fresh=fresh)).status == 200
        transport.close()
    assert [request.connection for request in peer.requests] == [1, 1, 2, 2]


def test_a_fresh_connection_that_is_closed_is_no_stale_one():
    with Peer(close) as peer, client_of(peer, **ONCE) as client:
        with pytest.raises(TransportError) as failed:
            get(client)
    assert not failed.value.stale
    assert len(peer.requests) == 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object], ids=["NaN", "set", "class"])
def test_what_is_no_json_is_refused_before_anything_is_sent(value):
    """The checks of a request are over when it is made; what its owner puts into its metadata later meets them not."""
    request = create_request(metadata={"deep": {}})
    request.metadata["deep"]["a"] = value
    with Peer(GOOD) as peer, client_of(peer) as client:
        with pytest.raises(ValidationError, match="create_reservation: the body is not JSON"):
            client.create_reservation(request)
    assert peer.requests == []


# ---- Idle connections ----


class Clocks:
    """The two clocks that say how long a connection has been idle, moved by hand."""

    def __init__(self, monkeypatch):
        self.ahead = self.world_ahead = 0
        monkeypatch.setattr(connections, "monotonic", lambda: clock.monotonic() + self.ahead)
        monkeypatch.setattr(connections, "now_ms", lambda: clock.now_ms() + self.world_ahead * 1000)


@pytest.mark.parametrize(
    ("seconds", "by", "kept"),
    [
        (connections.MAX_IDLE - 10, ("ahead", "world_ahead"), True),
        (connections.MAX_IDLE + 1, ("ahead", "world_ahead"), False),
        (connections.MAX_IDLE + 1, ("world_ahead",), False),
        (connections.MAX_IDLE + 1, ("ahead",), False),
    ],
    ids=["a while", "too long", "over a freeze", "while the clock was set back"],
)
def test_a_connection_that_was_idle_for_too_long_is_not_tried(seconds, by, kept, monkeypatch):
    """It may be forgotten by what is between here and the server: this peer never answers on it again."""

    def talk(line):
        while True:
            line.read_request()
            if line.number == 1 and len(line.peer.requests) > 1 and not kept:
                line.wait_for_close()
            line.send(GOOD)

    clocks = Clocks(monkeypatch)
    with Peer(talk=talk) as peer, client_of(peer, read_timeout=60.0) as client:
        get(client)
        for name in by:
            setattr(clocks, name, seconds)
        with ends_within(30):
            get(client)
    assert [request.connection for request in peer.requests] == [1, 1 if kept else 2]


def test_all_connections_that_were_idle_for_too_long_are_closed(monkeypatch):
    together = threading.Barrier(4)
    ended = []

    def talk(line):
        line.read_request()
        if line.number <= 4:
            together.wait(10)
        line.send(GOOD)
        try:
            line.wait_for_close()
        finally:
            ended.append(line.number)

    clocks = Clocks(monkeypatch)
    with Peer(talk=talk) as peer, client_of(peer) as client:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(get, client) for _ in range(4)]:
                done.result()
        clocks.ahead = connections.MAX_IDLE + 1
        get(client)
        end = time.monotonic() + PATIENCE
        while len(ended) < 4 and time.monotonic() < end:  # their ends are noticed by other threads
            peer.stopped.wait(0.005)
        assert sorted(ended) == [1, 2, 3, 4]


# ---- Sizes ----


def padded(size):
    return BODY + b" " * (size - len(BODY))


def test_an_answer_of_exactly_the_limit_passes():
    with Peer(answer(body=padded(MAX_ANSWER_BYTES)), chunked(padded(MAX_ANSWER_BYTES))) as peer:
        with client_of(peer, **ONCE) as client:
            assert len(get(client).body) == MAX_ANSWER_BYTES
            assert len(get(client).body) == MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    "large",
    [
        then(head(200, ("Content-Length", str(10 * 1024**3))), poured(b" " * 65536)),
        then(head(200, ("Content-Length", str(MAX_ANSWER_BYTES + 1))), poured(b" " * 65536)),
        then(CHUNKED, poured(chunk(b" " * 65536))),
        then(head(200), poured(b" " * 65536)),
        then(head(500), poured(b" " * 65536)),
    ],
    ids=["10 GB", "one byte too many", "endless chunks", "endless", "endless error"],
)
@either_exchange
def test_a_larger_answer_is_refused_and_not_read(large, first):
    before = [] if first else [GOOD]
    with Peer(*before, large, GOOD) as peer, client_of(peer, **ONCE) as client:
        for _ in before:
            get(client)
        with pytest.raises(ResponseError, match="larger than"):
            get(client)
        assert get(client).reservation_id == "rsv_1"
    assert peer.poured < 4 * MAX_ANSWER_BYTES  # the system's socket buffers are in it
    assert [request.connection for request in peer.requests] == [1] * len(before) + [1, 2]


def test_one_endless_chunk_is_refused():
    with Peer(then(CHUNKED, b"ffffffffff\r\n", poured(b" " * 65536))) as peer, client_of(peer, **ONCE) as client:
        with pytest.raises((ResponseError, TransportError)):
            get(client)
    assert peer.poured < 4 * MAX_ANSWER_BYTES


@needs_cpython
def test_a_small_answer_takes_little_memory():
    """http.client of Python 3.7 to 3.9 fills a buffer of the size that is asked for, whatever the answer's size."""
    import tracemalloc

    with Peer(GOOD, chunked(BODY)) as peer, client_of(peer) as client:
        get(client)
        get(client)
        tracemalloc.start()
        try:
            for _ in range(3):
                get(client)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1024 * 1024


# ---- Redirects ----


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("operation", ["create", "get"])
def test_a_redirect_is_not_followed(status, operation):
    with Peer(GOOD) as other, Peer(answer({}, status, [("Location", other.url + "/v1/reservations")])) as peer:
        with client_of(peer, **ONCE) as client, pytest.raises(ResponseError, match=str(status)) as failed:
            client.create_reservation(create_request()) if operation == "create" else get(client)
    assert failed.value.status == status
    assert len(peer.requests) == 1
    assert other.connections == 0


# ---- Connecting ----


def test_a_name_that_does_not_resolve_fails_at_once(monkeypatch):
    def unknown(*args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with client_of("http://budgets.invalid", **ONCE) as client:
        with pytest.raises(TransportError, match="Name or service not known") as failed:
            get(client)
    assert "http://budgets.invalid" in str(failed.value)
    assert not isinstance(failed.value, TransportTimeout)


@pytest.mark.parametrize("host", ["a" * 64 + ".invalid", "a..b", "xn--a"])
def test_a_name_that_cannot_be_one_fails_as_any_other(host):
    with client_of("http://" + host, **ONCE) as client, pytest.raises((TransportError, ConfigError)):
        get(client)


@pytest.mark.parametrize("host", ["b\u00fccher.invalid", "exa\u2100mple.invalid", "\u2603.invalid", "\u00ad.invalid"])
def test_a_name_beyond_ascii_fails_with_an_error_of_ours(host, monkeypatch):
    """Whether urllib3 takes such a name depends on another package; where it does not, that is the configuration's."""

    def unknown(*args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises((TransportError, ConfigError)):
        with client_of("http://" + host, **ONCE) as client:
            get(client)


def test_a_port_where_nobody_listens_fails_at_once():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with client_of(url, **ONCE) as client, pytest.raises(TransportError, match="refused") as failed:
            get(client)
    assert not isinstance(failed.value, TransportTimeout)


@contextmanager
def addresses_of(monkeypatch, *found):
    """Every name resolves to these addresses."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [(*each[:2], 0, "", each[2]) for each in found])
    yield


@contextmanager
def dead_address():
    """An address that takes no connection and refuses none: its accept queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(8)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()
    finally:
        for sock in [*fillers, listener]:
            sock.close()


TCP = (socket.AF_INET, socket.SOCK_STREAM)


def test_the_second_address_serves_where_the_first_is_dead(monkeypatch):
    with Peer(GOOD) as peer, dead_address() as dead:
        with addresses_of(monkeypatch, (*TCP, dead), (*TCP, ("127.0.0.1", peer.port))):
            with client_of("http://two.invalid", connect_timeout=1.0, retry_enabled=False) as client, ends_within(20):
                assert get(client).reservation_id == "rsv_1"


def test_the_second_address_serves_where_the_first_is_of_a_family_that_this_machine_lacks(monkeypatch):
    """Such as ::1 for localhost, on a kernel without IPv6."""
    with Peer(GOOD) as peer:
        lacking = (9999, socket.SOCK_STREAM, ("::1", peer.port, 0, 0))
        with addresses_of(monkeypatch, lacking, (*TCP, ("127.0.0.1", peer.port))):
            with client_of("http://two.invalid", **ONCE) as client:
                assert get(client).reservation_id == "rsv_1"


def test_dead_addresses_share_the_connect_timeout(monkeypatch):
    with dead_address() as dead, addresses_of(monkeypatch, *[(*TCP, dead)] * 40):
        with client_of("http://many.invalid", **TIGHT) as client, ends_within(10):
            with pytest.raises(TransportError):
                get(client)


def test_a_name_without_addresses_is_an_error_of_ours(monkeypatch):
    with addresses_of(monkeypatch), client_of("http://none.invalid", **ONCE) as client, pytest.raises(TransportError):
        get(client)


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6")
def test_an_ipv6_address_can_be_the_host():
    with Peer(GOOD, family=socket.AF_INET6, host="::1") as peer, client_of(peer) as client:
        assert get(client).reservation_id == "rsv_1"
    assert peer.requests[0].header("Host") == f"[::1]:{peer.port}"


# ---- The path ----


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/v1/reservations/rsv_1"),
        ("/", "/v1/reservations/rsv_1"),
        ("/cycles/", "/cycles/v1/reservations/rsv_1"),
        ("/a/b", "/a/b/v1/reservations/rsv_1"),
        ("/a%2Fb", "/a%2Fb/v1/reservations/rsv_1"),
        ("/\u00fc", "/%C3%BC/v1/reservations/rsv_1"),
        ('/a"b', "/a%22b/v1/reservations/rsv_1"),
    ],
)
def test_the_base_urls_path_is_a_prefix(path, sent):
    with Peer(GOOD) as peer, client_of(peer.url + path) as client:
        get(client)
    assert peer.requests[0].target == sent


@pytest.mark.parametrize(
    ("reservation_id", "quoted"),
    [
        ("a/b?c#d", "a%2Fb%3Fc%23d"),
        ("%2F", "%252F"),
        ("a%2e%2e", "a%252e%252e"),
        ("../../admin", "..%2F..%2Fadmin"),
        ("\u00fc\u2603\U0001f4b8", "%C3%BC%E2%98%83%F0%9F%92%B8"),
        ("a b+c&d=e;f", "a%20b%2Bc%26d%3De%3Bf"),
        ("...", "..."),
        ("http://evil.invalid/", "http%3A%2F%2Fevil.invalid%2F"),
    ],
)
def test_ids_are_quoted_as_one_segment(reservation_id, quoted):
    with Peer(GOOD, answer(committed())) as peer, client_of(peer) as client:
        client.get_reservation(reservation_id)
        client.commit_reservation(reservation_id, commit_request())
    assert [request.target for request in peer.requests] == [
        "/v1/reservations/" + quoted,
        "/v1/reservations/" + quoted + "/commit",
    ]


# ---- The pool ----


def test_calls_share_one_connection():
    with Peer(GOOD) as peer, client_of(peer) as client:
        for _ in range(5):
            get(client)
    assert peer.connections == 1


@pytest.mark.parametrize(
    "last",
    [
        answer({}, 200),
        answer(status=204),
        answer(status=304),
        refusal("NOT_FOUND", 404),
        chunked(b"{", b"}"),
        answer(body=b""),
        refusal("INTERNAL_ERROR", 503),
    ],
    ids=["unusable", "204", "304", "404", "chunks", "empty", "503"],
)
def test_a_whole_answer_keeps_the_connection_whatever_it_says(last):
    with Peer(last, GOOD) as peer, client_of(peer, **ONCE) as client:
        with pytest.raises(cycles_lite.CyclesError):
            get(client)
        get(client)
    assert peer.connections == 1


def test_sixteen_threads_share_four_connections_and_get_their_own_answers():
    def echo(line, request):
        line.send(answer(summary(request.target.rsplit("/", 1)[1])))

    def work(thread):
        wanted = [f"rsv_{thread}_{number}" for number in range(50)]
        return wanted == [client.get_reservation(each).reservation_id for each in wanted]

    with Peer(echo) as peer, client_of(peer, max_connections=4, read_timeout=60.0) as client:
        start = threading.Barrier(16)  # the first calls, which open the pool, come together
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda thread: start.wait(30) >= 0 and work(thread), range(16)))
    assert len(peer.requests) == 800
    assert peer.connections <= 4


def test_threads_that_come_first_together_make_one_pool(monkeypatch):
    """A pool takes a while to make: certificates are read. The second thread must not get a pool of its own."""
    original = HttpTransport._new_pool

    def slow(self):
        made = original(self)
        meet()
        return made

    barrier = threading.Barrier(4)

    def meet():
        try:
            barrier.wait(0.2)
        except threading.BrokenBarrierError:
            pass

    monkeypatch.setattr(HttpTransport, "_new_pool", slow)
    with Peer(then(lambda line, request: meet(), GOOD)) as peer, client_of(peer, max_connections=1) as client:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(get, client) for _ in range(4)]:
                done.result()
        assert peer.connections == 1


def test_close_lets_the_connection_go_and_a_later_call_opens_another():
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        client.close()
        client.close()
        get(client)
        get(client)
    assert [request.connection for request in peer.requests] == [1, 2, 2]


def test_close_hangs_up():
    ended = threading.Event()

    def talk(line):
        line.read_request()
        line.send(GOOD)
        try:
            line.wait_for_close()
        finally:
            ended.set()

    with Peer(talk=talk) as peer:
        with client_of(peer) as client:
            get(client)
            assert not ended.is_set()
        assert ended.wait(10)


def test_close_during_a_call_leaves_the_call_its_answer():
    def close_first(line, request):
        client.close()
        line.send(GOOD)

    with Peer(close_first, GOOD) as peer:
        client = client_of(peer, **ONCE)
        assert get(client).reservation_id == "rsv_1"
        assert get(client).reservation_id == "rsv_1"
        client.close()
    assert peer.connections == 2


def test_close_from_another_client_does_not_starve_a_call_that_waits_for_a_connection():
    """Clients made by `with_options` share the pool, and one of them may be closed at any time."""
    waiting = threading.Event()

    def close_first(line, request):
        assert waiting.wait(10)
        client.with_options(agent="other").close()
        line.send(GOOD)

    with Peer(close_first, GOOD) as peer:
        client = client_of(peer, **ONCE, read_timeout=60.0)
        with ThreadPoolExecutor(2) as pool, ends_within(30):
            first = pool.submit(get, client)
            assert peer.wait_for(1)
            second = pool.submit(get, client)
            time.sleep(0.1)  # nothing tells that a thread waits; too early only makes the test prove less
            waiting.set()
            assert first.result().reservation_id == "rsv_1"
            assert second.result().reservation_id == "rsv_1"
        client.close()


def test_with_options_shares_the_connection_under_another_key():
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        get(client.with_options(api_key="another-key", tenant="other", connect_timeout=1.0, agent="bot"))
        get(client)
    assert [request.header("X-Cycles-API-Key") for request in peer.requests] == [KEY, "another-key", KEY]
    assert peer.connections == 1


@pytest.mark.parametrize("change", ["base_url", "max_connections"])
def test_with_options_shares_nothing_where_connections_differ(change):
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        with client.with_options(**{change: peer.url + "/x" if change == "base_url" else 3}) as other:
            get(other)
        get(client)
    assert [request.connection for request in peer.requests] == [1, 2, 1]


def test_a_transport_does_not_pickle_and_so_gives_no_secret_away():
    for transport in (HttpTransport(config_of("http://127.0.0.1:1")), client_of("http://127.0.0.1:1")):
        with pytest.raises(TypeError) as refused:
            pickle.dumps(transport)
        assert KEY not in str(refused.value)


# ---- File descriptors ----


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs /dev/fd")
@pytest.mark.skipif(IS_PYPY, reason="PyPy opens a file for the random bytes of an idempotency key")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_without_file_descriptors_the_work_can_go_on(host):
    """What passes is no fault of the configuration, so that `on_unavailable="allow"` lets the work run."""
    with Peer(answer(allowed())) as peer:
        url = f"http://{host}:{peer.port}"
        changes = {"on_unavailable": "allow", "journal_enabled": False, "retry_initial_delay": 0.001}
        with client_of(url, **changes) as client, client_of(peer) as other:
            other.reserve(Amount.tokens(1), ACTION).release("for what it imports")
            with no_descriptors():
                with pytest.raises(TransportError):
                    get(client)
                guard = client.reserve(Amount.tokens(1), ACTION)
                assert guard.degraded
            guard.release("done")
            assert client.create_reservation(create_request()).is_allowed


# ---- Exceptions from outside ----


class Interrupted(BaseException):
    pass


@contextmanager
def interrupting():
    """SIGUSR1 raises in the main thread, in whatever it is doing there."""

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def kill_after(data):
    def act(line, request):
        line.send(data)
        os.kill(os.getpid(), signal.SIGUSR1)
        line.wait_for_close()

    return act


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals")
@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\nX-A: ", head(200, ("Content-Length", "100")) + b"{", CHUNKED + b"10\r\n{"],
    ids=["before the answer", "in the headers", "in the body", "in a chunk"],
)
def test_an_interrupt_gives_the_connection_back(sent):
    with interrupting(), Peer(kill_after(sent), GOOD) as peer, client_of(peer, **ONCE) as client:
        with pytest.raises(Interrupted):
            get(client)
        assert get(client).reservation_id == "rsv_1"
    assert [request.connection for request in peer.requests] == [1, 2]


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_an_exception_in_any_read_gives_the_connection_back(reads, monkeypatch):
    """As the test above, at every read in turn: first of the status line, last of the body."""
    original = socket.SocketIO.readinto
    left = [reads]

    def failing(self, buffer):
        if threading.current_thread() is threading.main_thread():
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return original(self, buffer)

    pieces = [GOOD[:10], GOOD[10:-20], GOOD[-20:]]

    def act(line, request):
        for piece in pieces:
            line.send(piece)
            line.pause(0.05)  # so that the pieces arrive one by one; together they only make the test prove less

    with Peer(act, GOOD) as peer, client_of(peer, **ONCE) as client:
        monkeypatch.setattr(socket.SocketIO, "readinto", failing)
        with pytest.raises(KeyboardInterrupt):
            get(client)
        assert get(client).reservation_id == "rsv_1"


@pytest.mark.parametrize("method", ["connect", "settimeout"])
def test_an_exception_while_connecting_closes_the_socket(method, monkeypatch):
    """Else it stays open until it is collected, with a ResourceWarning."""
    opened = []

    class Socket(socket.socket):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            opened.append(self)

    def interrupted(self, *args):
        raise KeyboardInterrupt

    setattr(Socket, method, interrupted)
    with Peer(GOOD) as peer, client_of(peer, **ONCE) as client:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", Socket)
            with pytest.raises(KeyboardInterrupt):
                get(client)
        assert [sock.fileno() for sock in opened] == [-1]
        assert get(client).reservation_id == "rsv_1"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals")
def test_an_interrupt_while_waiting_for_a_connection_breaks_nobody_elses_call():
    """urllib3 hands back a place that was never taken; the call that then finds the pool full must not fail for it."""
    waiting = threading.Event()

    def kill_then_answer(line, request):
        assert waiting.wait(10)
        time.sleep(0.1)  # nothing tells that a thread waits; too early only makes the test prove less
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupted.wait(10)
        line.send(GOOD)

    interrupted = threading.Event()
    with interrupting(), Peer(kill_then_answer, GOOD) as peer, client_of(peer, **ONCE) as client:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(get, client)
            assert peer.wait_for(1)
            with pytest.raises(Interrupted):  # noqa: PT012  # from here on it may strike
                waiting.set()
                get(client)
            interrupted.set()
            assert first.result().reservation_id == "rsv_1"
        assert get(client).reservation_id == "rsv_1"


# ---- Fork ----


def in_child(work):
    """What `work()` returns, in a forked child that then ends without a word."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(work()).encode())
        except BaseException as e:
            os.write(writing, repr(e).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 120)[0], "the child hangs"
        return os.read(reading, 10_000).decode()
    finally:
        os.close(reading)
        os.waitpid(pid, 0)


@needs_fork
def test_a_forked_child_has_connections_of_its_own():
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        assert in_child(lambda: [get(client).reservation_id for _ in range(2)]) == "['rsv_1', 'rsv_1']"
        get(client)
    assert [request.connection for request in peer.requests] == [1, 2, 2, 1]


@needs_fork
def test_a_child_that_closes_the_client_does_not_disturb_the_parent():
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        assert in_child(client.close) == "None"
        get(client)
    assert [request.connection for request in peer.requests] == [1, 1]


@needs_fork
def test_a_fork_during_a_call_of_another_thread():
    """The only connection is in use in the parent: the child neither waits for it nor uses it."""
    forked = threading.Event()

    def talk(line):
        while True:
            request = line.read_request()
            if request.target.endswith("rsv_slow"):
                assert forked.wait(30)
            line.send(answer(summary(request.target.rsplit("/", 1)[1])))

    with Peer(talk=talk) as peer, client_of(peer, **ONCE, read_timeout=60.0) as client:
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.get_reservation, "rsv_slow")
            assert peer.wait_for(1)
            assert in_child(lambda: get(client).reservation_id) == "rsv_1"
            forked.set()
            assert slow.result().reservation_id == "rsv_slow"
        get(client)
    assert [request.connection for request in peer.requests] == [1, 2, 1]


@needs_fork
def test_threads_of_a_child_never_use_the_parents_connection(monkeypatch):
    """Two threads notice the fork at the same time; the second must not take the first's progress for a pool."""
    with Peer(GOOD) as peer, client_of(peer) as client:
        get(client)
        original = HttpTransport._new_pool

        def slow(self):
            noticed.set()
            go_on.wait(10)
            return original(self)

        def child():
            with ThreadPoolExecutor(2) as pool:
                first = pool.submit(get, client)
                assert noticed.wait(10)
                second = pool.submit(get, client)
                time.sleep(0.1)  # nothing tells that a thread waits; too early only makes the test prove less
                go_on.set()
                return first.result().reservation_id, second.result().reservation_id

        noticed, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(HttpTransport, "_new_pool", slow)
        assert in_child(child) == "('rsv_1', 'rsv_1')"
        get(client)
    assert [request.connection for request in peer.requests].count(1) == 2
    assert peer.requests[-1].connection == 1


def in_another_process(program, *args):
    """Its return code and what it complains of. A child that hangs is ended with it."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(cycles_lite.__file__)))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(program), *args],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            told = process.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, told.decode()


EXIT = """
    import os, sys, warnings
    from cycles_lite import CyclesClient, CyclesConfig

    client = CyclesClient(CyclesConfig(base_url=sys.argv[1], api_key="key"))
    client.get_reservation("parent-before")
    pid = os.fork()
    if pid == 0:
        client.get_reservation("child")
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    client.get_reservation("parent-after")
    client.close()
"""


@needs_fork
def test_a_child_that_exits_in_order_does_not_disturb_the_parent():
    """Finalizers, `atexit` and module teardown included. What the child inherited it does not close: its exit does."""
    with Peer(GOOD) as peer:
        assert in_another_process(EXIT, peer.url) == (0, "")
    assert [(request.target.rsplit("/", 1)[1], request.connection) for request in peer.requests] == [
        ("parent-before", 1),
        ("child", 2),
        ("parent-after", 1),
    ]


# ---- Itself ----


def test_a_transport_needs_a_url():
    with pytest.raises(ConfigError):
        HttpTransport(cycles_lite.CyclesConfig(mode="off"))
