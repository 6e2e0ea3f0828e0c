"""Many clients at once, large answers and slow readers: the loop that serves the sockets neither spins nor stalls."""

from __future__ import annotations

import functools
import http.client
import json
import socket
import threading
import urllib.request
from contextlib import ExitStack

import pytest
from serving import PATIENCE, Http, asking, committing, connect, process, serving

from cycles_lite.local import Authority

server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")

#: A metadata of nearly what a request may have: its answer is more than sockets take at once.
LARGE = "x" * 900_000

#: More clients than the server has threads, and more such answers for each than the buffers of two sockets take.
MANY, AHEAD = 12, 20

KEY = "cyc_live_secret-of-acme"


@pytest.fixture
def low_watermark(monkeypatch):
    """Workers wait for slow readers from 64 KiB on, instead of 16 MiB."""
    made = functools.partial(server.create_server, outbuf_high_watermark=65536)
    monkeypatch.setattr(server, "create_server", made)


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


def large_reservation(served):
    """The path of a reservation whose answer is large."""
    with Http(served.url, served.key) as client:
        made = client("POST", "/v1/reservations", asking(1, metadata={"note": LARGE}))
        assert made.status == 200
        return "/v1/reservations/" + made.data["reservation_id"]


def asked(served, path, more=""):
    return f"GET {path} HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\n{more}\r\n".encode()


class Reader:
    """The answers on a connection whose buffers are small, so that the server has to wait for it."""

    def __init__(self, url):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._socket.settimeout(PATIENCE)
        host, port = url[len("http://") :].split(":")
        self._socket.connect((host, int(port)))
        self._file = self._socket.makefile("rb", 1024)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()
        self._socket.close()

    def send(self, data):
        self._socket.sendall(data)

    def line(self):
        return self._file.readline()

    def answer(self, first=b""):
        """Status and body of the next answer."""
        status = int((first or self.line()).split()[1])
        headers = http.client.parse_headers(self._file)
        return status, self._file.read(int(headers["Content-Length"]))


def proves_large(answer):
    status, body = answer
    assert status == 200
    assert json.loads(body.decode())["metadata"] == {"note": LARGE}


def keeps_serving(client):
    """More requests than it takes until every worker has come to a client that it could wait for."""
    for _ in range(5 * MANY):
        assert client("GET", "/v1/balances?tenant=acme").status == 200


# ---- The loop ----


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_the_loop_turns_a_bounded_number_of_times_for_a_request(served, monkeypatch, clients):
    """Once for what came and once for the answer that has gone; it does not turn while workers are at work. Before it
    was bounded, it turned ten times and more for each request where several were at work."""
    turns, failed = [], []
    poll = server.wasyncore.poll2
    monkeypatch.setattr(server.wasyncore, "poll2", lambda *given: turns.append(1) or poll(*given))
    pairs = 320 // clients

    def work():
        try:
            with Http(served.url, served.key) as client:
                for _ in range(pairs):
                    made = client("POST", "/v1/reservations", asking(1))
                    path = "/v1/reservations/{}/commit".format(made.data["reservation_id"])
                    assert client("POST", path, committing(1)).status == 200
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    requests = 2 * pairs * clients
    # Head and body of a request come apart here, a connection comes and goes, and a look is due each second.
    assert len(turns) < 4 * requests + 4 * clients + PATIENCE


def test_a_worker_that_sends_does_not_make_the_loop_turn(served, monkeypatch):
    """However long the system call takes: here until the loop has had ample time to turn."""
    path = large_reservation(served)
    turns, during = [], []
    poll, send = server.wasyncore.poll2, server.Channel.send
    monkeypatch.setattr(server.wasyncore, "poll2", lambda *given: turns.append(1) or poll(*given))

    def slow_send(channel, data, **options):
        if threading.current_thread().name.startswith("waitress"):
            before = len(turns)
            channel.server.pull_trigger()  # as a worker does that has ended meanwhile
            threading.Event().wait(0.2)
            during.append(len(turns) - before)
        return send(channel, data, **options)

    monkeypatch.setattr(server.Channel, "send", slow_send)
    with Http(served.url, served.key) as client:
        assert client("GET", path).status == 200
    assert during
    assert max(during) < 10  # a thousand, where it spun


def test_while_a_worker_sends_others_are_served(served, monkeypatch):
    """The loop does not wait for the lock that a worker holds while it sends, however long the system call takes."""
    path = large_reservation(served)
    send, others = server.Channel.send, []

    def slow_send(channel, data, **options):
        if threading.current_thread().name.startswith("waitress") and not others:
            others.append(None)
            with urllib.request.urlopen(served.url + "/actuator/health", timeout=PATIENCE / 2) as other:
                others[0] = other.status
        return send(channel, data, **options)

    monkeypatch.setattr(server.Channel, "send", slow_send)
    with Http(served.url, served.key) as client:
        assert client("GET", path).status == 200
    assert others == [200]


def test_an_answer_is_one_packet(served, monkeypatch):
    """Each system call costs the others a moment in which nobody has the interpreter, and the client a look."""
    sent = []
    send = server.Channel.send
    monkeypatch.setattr(
        server.Channel, "send", lambda channel, data, **options: sent.append(data) or send(channel, data, **options)
    )
    with Http(served.url, served.key) as client:
        replies = [
            client("POST", "/v1/reservations", asking(1)),
            client("GET", "/v1/balances?tenant=rival"),
            client("HEAD", "/actuator/health"),
        ]
    assert [reply.status for reply in replies] == [200, 403, 200]
    assert len(sent) == 3
    assert [data.partition(b"\r\n\r\n")[2] for data in sent] == [reply.body for reply in replies]


@pytest.mark.parametrize("clients", [64, 399])
def test_hundreds_of_connections_are_kept_and_served(tmp_path, clients):
    """In turn and again, each on the connection that it had before."""
    pytest.importorskip("resource", reason="needs poll for more than 512 descriptors")
    if server.most_connections() < clients:
        pytest.skip("this process may not open so many files")
    options = ("--tenant", "acme", "--api-key", KEY, "--budget", "tenant:acme=TOKENS:1000000")
    with process(tmp_path, *options) as running, ExitStack() as stack:
        sockets = [stack.enter_context(connect(running.url)) for _ in range(clients)]
        for amount in (1, 2):
            for one in sockets:  # all of them before any answer is read
                body = json.dumps(asking(amount))
                head = f"POST /v1/reservations HTTP/1.1\r\nX-Cycles-API-Key: {KEY}\r\nContent-Length: {len(body)}"
                one.sendall(f"{head}\r\n\r\n{body}".encode())
            for one in sockets:
                response = http.client.HTTPResponse(one)
                response.begin()
                assert (response.status, json.loads(response.read().decode())["reserved"]["amount"]) == (200, amount)
        assert running.end() == (0, "", "")
    with Authority(f"sqlite:///{tmp_path}/budgets.db", create=False) as authority:
        assert authority.budgets()[0].reserved == 3 * clients


def test_as_many_connections_as_are_kept_cost_no_look_at_each_turn(tmp_path, monkeypatch):
    """Only more of them do; that few of them wait too long is looked at each second."""
    looks = []
    let_go = server.let_go
    monkeypatch.setattr(server, "MOST", 10)
    monkeypatch.setattr(server, "_LOOK", 600.0)
    monkeypatch.setattr(server, "let_go", lambda *given: looks.append(1) or let_go(*given))
    with serving(tmp_path) as served, ExitStack() as stack:
        clients = [stack.enter_context(Http(served.url, served.key)) for _ in range(10)]
        for one in 3 * clients:
            assert one("GET", "/v1/balances?tenant=acme").status == 200
        assert len(looks) == 1
        with Http(served.url, served.key) as one_more:
            assert one_more("GET", "/v1/balances?tenant=acme").status == 200
        assert len(looks) > 1


def test_newcomers_are_served_where_all_connections_are_kept_by_others(tmp_path, monkeypatch):
    """The one that was idle the longest makes room, though its client has a key."""
    monkeypatch.setattr(server, "MOST", 10)
    with serving(tmp_path) as served, ExitStack() as stack:
        ports = []
        for _ in range(30):
            client = stack.enter_context(Http(served.url, served.key))
            assert client("GET", "/v1/balances?tenant=acme").status == 200
            assert client("GET", "/v1/balances?tenant=acme").status == 200
            ports.append(client.local_port)
        assert client("GET", "/v1/balances?tenant=acme").status == 200
        assert client.local_port == ports[-1]


# ---- Large answers and slow readers ----


def test_large_answers_arrive_whole(served):
    path = large_reservation(served)
    with Http(served.url, served.key) as client, Reader(served.url) as reader:
        reader.send(asked(served, path))
        assert client("GET", "/v1/balances?tenant=acme").status == 200  # while the other takes its time
        proves_large(reader.answer())
        reader.send(asked(served, path))
        proves_large(reader.answer())


@pytest.mark.usefixtures("low_watermark")
def test_a_slow_reader_that_asks_ahead_gets_all_in_order(tmp_path):
    """Each answer is past the watermark, so that its worker waits for the loop to send before the next one."""
    with serving(tmp_path) as served, Reader(served.url) as reader:
        path = large_reservation(served)
        reader.send(asked(served, path) + asked(served, "/v1/balances?tenant=rival") + 3 * asked(served, path))
        proves_large(reader.answer())
        assert reader.answer()[0] == 403
        for _ in range(3):
            proves_large(reader.answer())
        reader.send(asked(served, "/actuator/health"))
        assert reader.answer() == (200, b'{"status":"UP"}')


@pytest.mark.usefixtures("low_watermark")
def test_slow_readers_that_hang_up_let_their_workers_go(tmp_path):
    """More than there are workers, each waiting for its client: once those are gone, the next client is served."""
    with serving(tmp_path) as served:
        path = large_reservation(served)
        with ExitStack() as stack:
            for _ in range(MANY):
                stack.enter_context(Reader(served.url)).send(AHEAD * asked(served, path))
        with Http(served.url, served.key) as client:
            keeps_serving(client)


@pytest.mark.usefixtures("low_watermark")
def test_slow_readers_hold_no_worker_for_long(tmp_path, monkeypatch):
    """Those that take nothing are hung up on, so that they cannot keep the others from being served."""
    with serving(tmp_path) as served, ExitStack() as stack:
        path = large_reservation(served)
        client = stack.enter_context(Http(served.url, served.key))
        assert client("GET", "/v1/balances?tenant=acme").status == 200
        readers = [stack.enter_context(Reader(served.url)) for _ in range(MANY)]
        for reader in readers:
            reader.send(AHEAD * asked(served, path))
        monkeypatch.setattr(server, "PATIENCE", 0.5)  # all that is asked for in time is here; the client has a key
        keeps_serving(client)


@pytest.mark.usefixtures("low_watermark")
def test_a_stop_does_not_wait_for_slow_readers(tmp_path, caplog):
    """No thread stays behind that waits for a client."""
    with ExitStack() as stack, serving(tmp_path) as served:
        path = large_reservation(served)
        for _ in range(4):  # fewer than there are workers
            stack.enter_context(Reader(served.url)).send(AHEAD * asked(served, path))
        with Http(served.url, served.key) as client:
            keeps_serving(client)
    assert "still running" not in caplog.text  # what waitress says after five seconds


# ---- What else is said on a connection ----


def test_a_body_is_asked_for_once_the_answer_before_it_has_gone(served):
    """A request whose body waits to be asked for, sent together with one that is answered first."""
    body = json.dumps(asking()).encode()
    head = f"POST /v1/decide HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\nContent-Length: {len(body)}\r\n"
    with Reader(served.url) as reader:
        for path in ("/v1/balances?tenant=acme", large_reservation(served)):
            reader.send(asked(served, path) + head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert reader.answer()[0] == 200
            assert [reader.line(), reader.line()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
            reader.send(body)
            status, answer = reader.answer()
            assert (status, json.loads(answer.decode())["decision"]) == (200, "ALLOW")


def test_a_body_is_asked_for_once_however_long_that_takes(served, monkeypatch):
    """While a worker asks for it, the loop must not send the same bytes."""
    send = server.Channel.send

    def slow_send(channel, data, **options):
        if threading.current_thread().name.startswith("waitress") and b" 100 Continue" in bytes(data):
            channel.server.pull_trigger()  # as a worker does that has ended meanwhile
            threading.Event().wait(0.2)
        return send(channel, data, **options)

    monkeypatch.setattr(server.Channel, "send", slow_send)
    body = json.dumps(asking()).encode()
    head = f"POST /v1/decide HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\nContent-Length: {len(body)}\r\n"
    with Reader(served.url) as reader:
        reader.send(asked(served, "/v1/balances?tenant=acme") + head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert reader.answer()[0] == 200
        assert [reader.line(), reader.line()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        reader.send(body)
        assert reader.answer()[0] == 200


def test_the_last_answer_before_a_close_arrives_whole(served):
    path = large_reservation(served)
    for last in (asked(served, path, "Connection: close\r\n"), asked(served, path).replace(b"1.1", b"1.0")):
        with Reader(served.url) as reader:
            reader.send(asked(served, path) + last)
            proves_large(reader.answer())
            proves_large(reader.answer())
            assert reader.line() == b""


def test_an_error_after_a_large_answer_arrives_and_ends_the_connection(served):
    path = large_reservation(served)
    with Reader(served.url) as reader:
        reader.send(asked(served, path) + b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        proves_large(reader.answer())
        assert reader.answer()[0] == 400
        assert reader.line() == b""


def test_heads_alone_are_answered_without_a_body(served):
    with Reader(served.url) as reader:
        reader.send(b"HEAD /actuator/health HTTP/1.1\r\n\r\n")
        assert reader.line() == b"HTTP/1.1 200 OK\r\n"
        lines = []
        while True:
            line = reader.line()
            if line in (b"\r\n", b""):
                break
            lines.append(line)
        assert b"Content-Length: 15\r\n" in lines
