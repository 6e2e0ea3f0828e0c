"""Clients that send slowly, or nothing, or are too many: whoever has a key is served meanwhile."""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from serving import PATIENCE, Http, asking, committing, connect, event, process, serving

from cycles_lite.local import Authority

pytestmark = pytest.mark.thorough

#: More than the server keeps connections.
MANY = 450

#: Seconds in which a client with a key must be served; some milliseconds on an idle machine.
SOON = 10.0

KEY = "cyc_live_secret-of-acme"
OPTIONS = ("--tenant", "acme", "--api-key", KEY, "--budget", "tenant:acme=TOKENS:1000000")

HEADS = {
    "nothing": (b"", b""),
    "a head": (b"POST /v1/reservations HTTP/1.1\r\nX-A: ", b"a"),
    "a body": (b"POST /v1/reservations HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b" "),
    "chunks": (b"POST /v1/reservations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "empty lines": (b"", b"\r\n"),
    "health": (b"GET /actuator/health HTTP/1.1\r\n\r\n", b""),
}


class Dripping:
    """Hundreds of connections that send a bit now and then; those that the server closed come again."""

    def __init__(self, url, head, drip):
        self._url, self._head, self._drip = url, head, drip
        self._ending = threading.Event()
        self._sockets = []
        #: Set once the server has closed one of them.
        self.closes = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        try:
            self._sockets += [self._connect() for _ in range(MANY)]
        except OSError as e:
            if e.errno != errno.EMFILE:
                raise
            self._close()
            pytest.skip("this process may not open so many connections")
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._ending.set()
        self._thread.join(PATIENCE)
        self._close()

    def _close(self):
        for one in self._sockets:
            one.close()

    def _connect(self):
        made = connect(self._url)
        made.setblocking(True)
        try:
            made.sendall(self._head)
        except OSError:
            pass
        return made

    def _run(self):
        while not self._ending.wait(0.05):
            for number, one in enumerate(self._sockets):
                if self._ending.is_set():
                    return
                try:
                    if self._drip:
                        one.sendall(self._drip)
                    poll = select.poll()
                    poll.register(one, select.POLLIN)
                    if poll.poll(0) and not one.recv(65536):
                        raise ConnectionResetError
                except OSError:
                    self.closes.set()
                    one.close()
                    self._sockets[number] = self._connect()


@pytest.mark.skipif(not hasattr(select, "poll"), reason="needs poll for more than 1024 descriptors")
@pytest.mark.parametrize("head", HEADS)
def test_a_client_with_a_key_is_served_meanwhile(tmp_path, head):
    """On a connection of its own, on one that it keeps, and on new ones."""
    with process(tmp_path, *OPTIONS) as server, Http(server.url, KEY) as kept:
        longest = 0.0

        def spend(http):
            nonlocal longest
            before = time.monotonic()
            made = http("POST", "/v1/reservations", asking(1))
            assert made.status == 200
            path = "/v1/reservations/{}/commit".format(made.data["reservation_id"])
            assert http("POST", path, committing(1)).status == 200
            longest = max(longest, time.monotonic() - before)

        spend(kept)
        with Dripping(server.url, *HEADS[head]) as slow:
            for _ in range(10):
                spend(kept)
                with Http(server.url, KEY) as fresh:
                    spend(fresh)
            assert slow.closes.wait(PATIENCE)
        assert longest < SOON
        status, out, errors = server.end()
        assert (status, out) == (0, "")
        assert "Traceback" not in errors
    with Authority(f"sqlite:///{tmp_path}/budgets.db", create=False) as authority:
        assert authority.budgets()[0].spent == 21
        assert authority.check() == []


def closes(sock, drip=b"", before=None):
    """The seconds from a time, such as now, until the server closes a connection on which something is sent again and
    again."""
    before = time.monotonic() if before is None else before
    sock.settimeout(0.05)
    while time.monotonic() - before < PATIENCE:
        try:
            if drip:
                sock.sendall(drip)
            if not sock.recv(65536):
                break
        except socket.timeout:
            pass
        except OSError:
            break
    else:
        pytest.fail("the server kept the connection")
    return time.monotonic() - before


@pytest.mark.parametrize("head", HEADS)
def test_a_request_has_a_time_to_be_there_whole(tmp_path, monkeypatch, head):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    with serving(tmp_path) as served:
        before = time.monotonic()
        with connect(served.url) as slow:
            slow.sendall(HEADS[head][0])
            assert 0.5 < closes(slow, HEADS[head][1], before) < SOON


def test_a_client_that_has_proven_a_key_may_think(tmp_path, monkeypatch):
    """Its idle connection is kept, but half a request on it is not waited for any longer than another's."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with serving(tmp_path) as served, Http(served.url, served.key) as http:
        assert http("POST", "/v1/events", event(1)).status == 201
        monkeypatch.setattr(server, "PATIENCE", 0.5)
        for _ in range(2):
            with connect(served.url) as other:
                closes(other)
        # In one packet, so that it is there whole however slow this machine is.
        assert http("GET", "/v1/balances?tenant=acme").status == 200
        assert http("GET", "/v1/balances?tenant=acme", X_Cycles_API_Key="wrong").status == 401
        http._connection.sock.sendall(b"POST /v1/events HTTP/1.1\r\n")
        assert closes(http._connection.sock, b"X-A: b\r\n") < SOON


def test_those_without_a_key_go_first(tmp_path, monkeypatch):
    """Over the limit a connection goes on which no key was proven, though others were idle for longer."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    monkeypatch.setattr(server, "MOST", 10)
    with serving(tmp_path) as served, ExitStack() as stack:
        keyed = [stack.enter_context(Http(served.url, served.key)) for _ in range(5)]
        for one in keyed:
            assert one("GET", "/v1/balances?tenant=acme").status == 200
        ports = [one.local_port for one in keyed]
        for _ in range(20):
            stack.enter_context(connect(served.url))
        with Http(served.url, served.key) as last:
            assert last("GET", "/v1/balances?tenant=acme").status == 200
        for one in keyed:
            assert one("GET", "/v1/balances?tenant=acme").status == 200
        assert [one.local_port for one in keyed] == ports


def test_the_limit_follows_the_limit_of_open_files(monkeypatch):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    resource = pytest.importorskip("resource")
    for files, most in ((-1, 400), (100_000, 400), (1024, 400), (256, 96), (64, 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, files=files: (files, files))
        assert server.most_connections() == most
