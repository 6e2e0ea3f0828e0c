"""Scripted servers: what a peer may do to a client, over real sockets. And the one fake transport.

    with Peer(answer(allowed()), reset) as peer, client_of(peer) as client:
        client.create_reservation(...)
    assert peer.requests[0].header("X-Idempotency-Key") == ...

An answer is the bytes to send, or a callable that is given the connection and the request. The answers are given to
requests in turn, whatever their connections; the last one is given again and again. A peer that needs a whole
connection to itself takes `talk` instead.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple

from cycles_lite import (
    Action,
    Amount,
    CommitRequest,
    CyclesClient,
    CyclesConfig,
    CyclesError,
    ReservationCreateRequest,
)
from cycles_lite.protocol.wire import Answer

#: A key such as servers make them. It has what JSON and URLs write in several ways.
KEY = 'cyc_live_s3cr3t/"+=\\key'

#: Seconds after which a peer that does not stop by itself gives up, so that a client without a bound fails, not hangs.
PATIENCE = 15.0


class Gone(Exception):
    """The client hung up, or the peer is told to stop."""


class Request(NamedTuple):
    """One request as it came."""

    #: Which of the peer's connections brought it, from 1.
    connection: int
    line: str
    headers: list
    body: bytes

    @property
    def method(self):
        return self.line.split(" ")[0]

    @property
    def target(self):
        return self.line.split(" ")[1]

    @property
    def json(self):
        return json.loads(self.body.decode())

    def all(self, name):
        return [value for other, value in self.headers if other.lower() == name.lower()]

    def header(self, name):
        """The value; None without one. A header that came twice fails the test."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None


class Line:
    """One connection that the peer accepted."""

    def __init__(self, peer, sock, number):
        self.peer, self.sock, self.number = peer, sock, number
        self.buffer = bytearray()  # which grows without being copied, however large a request is

    def start_tls(self, context):
        """From here on the peer speaks TLS. The handshake ends the connection where the client refuses it."""
        self.sock = self.peer.replaced(self.sock, context.wrap_socket(self.sock, server_side=True))

    def read_request(self):
        """The next request; `Gone` when there is none."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = [tuple(line.split(": ", 1)) for line in head[1:] if line]
        length = int(dict((name.lower(), value) for name, value in headers).get("content-length", 0))
        while len(self.buffer) < length:
            self._fill()
        body, self.buffer = bytes(self.buffer[:length]), self.buffer[length:]
        request = Request(self.number, head[0], headers, body)
        self.peer.record(request)
        return request

    def send(self, data):
        self.sock.sendall(data)

    def drip(self, data, every=0.02):
        """A byte at a time. Ends when the client has gone, and at the latest after `PATIENCE`."""
        end = time.monotonic() + PATIENCE
        for position in range(len(data)):
            self.send(data[position : position + 1])
            self.pause(every)
            if time.monotonic() > end:
                raise Gone

    def pour(self, data):
        """The same bytes without end, and the number of them that went out in `peer.poured`."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.send(data)
            self.peer.poured += len(data)
        raise Gone

    def pause(self, seconds=PATIENCE):
        if self.peer.stopped.wait(seconds):
            raise Gone

    def wait_for_close(self):
        """Read until the client hangs up."""
        while True:
            self._fill()

    def reset(self):
        """End with RST and not with FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Gone

    def _until(self, end):
        while end not in self.buffer:
            self._fill()
        found, self.buffer = self.buffer.split(end, 1)
        return found

    def _fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise Gone
        self.buffer += data


class Peer:
    """A server on a port of its own, with a thread for each connection. Joins them all when it is left, and raises
    what went wrong in them."""

    def __init__(self, *answers, talk=None, tls=None, family=socket.AF_INET, host="127.0.0.1"):
        self._answers, self._talk, self._tls = list(answers), talk, tls
        self._lock = threading.Condition()
        self._threads, self._sockets, self._failures = [], set(), []
        self.requests = []
        #: Connections that were accepted.
        self.connections = 0
        self.poured = 0
        self.stopped = threading.Event()
        self._listener = socket.socket(family)
        self._listener.bind((host, 0))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        self.host = f"[{host}]" if ":" in host else host
        self.url = "{}://{}:{}".format("https" if tls else "http", self.host, self.port)
        self._bell, self._rope = socket.socketpair()

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, kind, *_):
        self.stopped.set()
        self._rope.close()
        with self._lock:
            for sock in self._sockets:
                try:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would block
                except OSError:
                    pass
        for thread in self._threads:  # the first accepts; none is added after it has ended
            thread.join(PATIENCE * 2)
            assert not thread.is_alive(), thread
        self._bell.close()
        self._listener.close()
        if self._failures and kind is None:
            raise self._failures[0]

    def wait_for(self, requests, seconds=PATIENCE):
        """Until that many requests have come; says whether they have."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.requests) >= requests, seconds)

    # ---- What connections tell ----

    def record(self, request):
        with self._lock:
            self.requests.append(request)
            self._lock.notify_all()

    def replaced(self, old, new):
        with self._lock:
            self._sockets.remove(old)
            self._sockets.add(new)
        return new

    # ---- Threads ----

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, name="peer", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            ready = select.select([self._listener, self._bell], [], [])[0]
            if self._bell in ready:
                return
            sock = self._listener.accept()[0]
            sock.settimeout(PATIENCE)
            with self._lock:
                self._sockets.add(sock)
            self.connections += 1
            self._start(self._serve, Line(self, sock, self.connections))

    def _serve(self, line):
        try:
            if self._tls is not None:
                line.start_tls(self._tls)
            (self._talk or self._answer_all)(line)
        except (Gone, OSError):
            pass
        except BaseException as e:
            self._failures.append(e)
        finally:
            with self._lock:
                self._sockets.discard(line.sock)
                line.sock.close()

    def _answer_all(self, line):
        while True:
            request = line.read_request()
            with self._lock:
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if callable(answer):
                answer(line, request)
            else:
                line.send(answer)


# ---- Answers that do something ----


def close(line, request):
    """Hang up in order."""
    raise Gone


def reset(line, request):
    """Hang up with RST."""
    line.reset()


def silent(line, request):
    """Never answer."""
    line.wait_for_close()


def then(*steps):
    """Bytes to send and things to do, one after the other."""

    def act(line, request):
        for step in steps:
            if callable(step):
                step(line, request)
            else:
                line.send(step)

    return act


def dripped(data, every=0.02):
    return lambda line, request: line.drip(data, every)


def poured(data):
    return lambda line, request: line.pour(data)


# ---- Answers as bytes ----


def answer(data=None, status=200, headers=(), body=None):
    """A whole answer: `data` as JSON, or `body` as it is."""
    if body is None:
        body = b"" if data is None else json.dumps(data).encode()
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    return head(status, *fields) + body


def head(status=200, *fields):
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Whatever"
    lines = [f"HTTP/1.1 {status} {reason}"] + ["{}: {}".format(*field) for field in fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(*parts, status=200):
    return head(status, ("Transfer-Encoding", "chunked")) + b"".join(map(chunk, parts)) + b"0\r\n\r\n"


def refusal(code, status=409, message="no", headers=(), **more):
    return answer({"error": code, "message": message, "request_id": "req_1", **more}, status, headers)


def tokens(amount):
    return {"unit": "TOKENS", "amount": amount}


def allowed(**changes):
    return {
        "decision": "ALLOW",
        "reservation_id": "rsv_1",
        "affected_scopes": ["tenant:acme"],
        "reserved": tokens(100),
        "expires_at_ms": 1_900_000_000_000,
        **changes,
    }


def committed(**changes):
    return {"status": "COMMITTED", "charged": tokens(42), "released": tokens(58), **changes}


def released(**changes):
    return {"status": "RELEASED", "released": tokens(100), **changes}


def extended(**changes):
    return {"status": "ACTIVE", "expires_at_ms": 1_900_000_060_000, **changes}


def applied(**changes):
    return {"status": "APPLIED", "event_id": "evt_1", **changes}


def summary(reservation_id="rsv_1", **changes):
    return {
        "reservation_id": reservation_id,
        "status": "ACTIVE",
        "subject": {"tenant": "acme"},
        "action": {"kind": "llm.completion", "name": "gpt-4o"},
        "reserved": tokens(100),
        "created_at_ms": 1_800_000_000_000,
        "expires_at_ms": 1_900_000_000_000,
        "scope_path": "tenant:acme",
        "affected_scopes": ["tenant:acme"],
        **changes,
    }


def balance(scope="tenant:acme", **changes):
    return {"scope": scope, "scope_path": scope, "remaining": tokens(900), **changes}


# ---- The client's side ----


def config_of(peer, **changes):
    """A configuration for a peer or a URL. The bounds are those of a slow machine, unless a test is about them."""
    settings = {
        "base_url": peer if isinstance(peer, str) else peer.url,
        "api_key": KEY,
        "tenant": "acme",
        "connect_timeout": 5.0,
        "read_timeout": 10.0,
        "retry_initial_delay": 0.01,
        "retry_max_delay": 0.05,
    }
    return CyclesConfig(**{**settings, **changes})


def client_of(peer, traceparent=None, transport=None, **changes):
    return CyclesClient(config_of(peer, **changes), traceparent=traceparent, transport=transport)


ACTION = Action("llm.completion", "gpt-4o")


def create_request(**changes):
    return ReservationCreateRequest(**{"action": ACTION, "estimate": Amount.tokens(100), **changes})


def commit_request(**changes):
    return CommitRequest(**{"actual": Amount.tokens(42), **changes})


@contextmanager
def ends_within(seconds):
    """For what would last minutes without a bound: far above the bound, because the cores are shared."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"took {took:.1f} s"


@contextmanager
def no_descriptors():
    """This process can open nothing."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.dup(2)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 1, before[1]))
        try:
            while True:
                used.append(os.dup(2))
        except OSError:
            pass
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in used:
            os.close(descriptor)


class FakeTransport:
    """Answers without a network, in turn, the last one again and again. Errors of ours are answers like any other;
    another exception among them is raised."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.calls = []
        self.closed = 0

    def send(self, call):
        self.calls.append(call)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        try:
            if callable(answer):
                answer = answer(call)
            if isinstance(answer, BaseException):
                raise answer
        except CyclesError as e:
            return e
        return answer

    def close(self):
        self.closed += 1


def replied(data=None, status=200, body=None, **headers):
    """An `Answer` for the fake transport; headers as keywords, `_` for `-`."""
    body = json.dumps(data).encode() if body is None else body
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
