"""Servers for tests: in a thread, or as users start them; and HTTP without this package's own client."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from cycles_lite import Amount
from cycles_lite.local import Authority

#: The folder that has the package in it.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: Seconds after which a test gives up on a server.
PATIENCE = 120.0


def document():
    """The protocol's OpenAPI document. Skips the test where it is not at hand."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the protocol's document")
    path = os.path.join(os.path.dirname(ROOT), "shared", "protocol", "cycles-protocol-v0.yaml")
    if not os.path.exists(path):
        pytest.skip("../shared/protocol, where the protocol's document lies, is not here", allow_module_level=True)
    with open(path, encoding="utf-8") as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


# ---- A server in a thread ----


class Served(NamedTuple):
    """An authority behind HTTP, and what is needed to use it."""

    authority: Authority
    url: str
    #: Keys of the tenants acme and rival.
    key: str
    rival_key: str
    admin_key: str


ADMIN_KEY = "admin-secret"


class Clock:
    """Milliseconds since 1970, as the test wants them; first the beginning of 2026 in UTC."""

    def __init__(self):
        self.now = 1_767_225_600_000

    def __call__(self):
        return self.now


@contextmanager
def serving(folder, admin_key=ADMIN_KEY, listeners=(), public_metrics=False, **options):
    """An authority on a file, in a thread: acme has 1,000,000 tokens, its agent `bot` 1000 and caps; rival has some."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    from cycles_lite import Caps

    with Authority(f"sqlite:///{folder}/budgets.db", **options) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1_000_000))
        authority.set_budget("tenant:acme/agent:bot", Amount.tokens(1000), caps=Caps(max_tokens=500))
        authority.set_budget("tenant:rival", Amount.tokens(1000))
        keys = [authority.create_key(tenant).key_secret for tenant in ("acme", "rival")]
        served = {"admin_key": admin_key, "listeners": listeners, "public_metrics": public_metrics}
        with server.Server(authority, **served) as running, running.in_background():
            yield Served(authority, running.url, *keys, admin_key)
        assert authority.check() == []


# ---- A server as users start it ----


class Process:
    """`python -m cycles_lite serve`, which has said where it listens."""

    def __init__(self, process, errors):
        self._process, self._errors = process, errors
        self.first_line = self._read_line()
        found = re.match(r"listening on (http://\S+)\n\Z", self.first_line)
        self.url = found.group(1) if found else None

    def _read_line(self):
        """One line, or what there is when the process ends or the patience does."""
        watch = threading.Timer(PATIENCE, self._process.kill)
        watch.start()
        try:
            return self._process.stdout.readline()
        finally:
            watch.cancel()
            watch.join()

    def send(self, number):
        self._process.send_signal(number)

    def end(self, number=signal.SIGTERM, within=PATIENCE):
        """The exit status, what else was printed, and what was complained about. Fails if it takes too long."""
        if number is not None:
            self._process.send_signal(number)
        out, _ = self._process.communicate(timeout=within)
        self._errors.seek(0)
        return self._process.returncode, out, self._errors.read()


@contextmanager
def process(folder, *arguments, **environment):
    """A server on a free port and on `budgets.db` in a folder, without its access log; warnings are errors."""
    pytest.importorskip("waitress", reason="the extra [server] is not installed")
    command = ["serve", "--db", os.path.join(str(folder), "budgets.db"), "--port", "0", "--quiet", *arguments]
    with command_line(command, folder, **environment) as started:
        assert started.url is not None, (started.first_line, started.end(None))
        yield started


@contextmanager
def command_line(arguments, folder, **environment):
    """Any command, whose first line of output has been read. Killed when the context ends before it does."""
    whole = {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error", **environment}
    with open(os.path.join(str(folder), "stderr.txt"), "w+", encoding="utf-8") as errors:
        started = subprocess.Popen(
            [sys.executable, "-m", "cycles_lite", *arguments],
            env=whole,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Process(started, errors)
        finally:
            if started.poll() is None:
                started.kill()
            started.stdout.close()
            started.wait()


@contextmanager
def kept_port():
    """A free port for servers that come one after the other; nobody else is given it between them."""
    with socket.socket() as keeper:
        if sys.platform == "linux":  # elsewhere a server could not have it meanwhile
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        port = keeper.getsockname()[1]
        if sys.platform != "linux":
            keeper.close()
        yield port


# ---- HTTP by the standard library alone ----


class Reply(NamedTuple):
    """An answer: names of headers in lower case, the body also decoded where it is JSON."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self):
        return json.loads(self.body.decode("ascii"))

    @property
    def error(self):
        return self.data["error"]


class Http:
    """One kept-alive connection, and the headers that each request on it has."""

    def __init__(self, url, key=None, **headers):
        where = urlsplit(url)
        self._connection = http.client.HTTPConnection(where.hostname, where.port, timeout=PATIENCE)
        self._headers = {**({"X-Cycles-API-Key": key} if key else {}), **_dashed(headers)}

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        self._connection.close()

    def __call__(self, method, target, body=None, **headers):
        """One request. A body that is no bytes is sent as JSON; `None` for a header leaves it out."""
        given = {**self._headers, **_dashed(headers)}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        sent = {name: value for name, value in given.items() if value is not None}
        self._connection.request(method, target, body, sent)
        return self.receive()

    def receive(self):
        response = self._connection.getresponse()
        body = response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    @property
    def local_port(self):
        """Tells one connection from another."""
        return self._connection.sock.getsockname()[1] if self._connection.sock else None


def _dashed(headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}


def raw(url, data):
    """Whatever comes back for some bytes, until the server closes or, where it keeps the connection, one answer."""
    with connect(url) as sock:
        sock.sendall(data)
        response = http.client.HTTPResponse(sock)
        response.begin()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def connect(url):
    """A connected socket."""
    where = urlsplit(url)
    return socket.create_connection((where.hostname, where.port), timeout=PATIENCE)


# ---- Requests ----

_count = iter(range(1, 2**62))
_lock = threading.Lock()


def new_key():
    """An idempotency key that no other request of this process has."""
    with _lock:
        return f"key-{next(_count)}"


def tokens(amount):
    return {"unit": "TOKENS", "amount": amount}


def asking(amount=100, tenant="acme", **fields):
    """A body for a reservation or a decision."""
    return {
        "idempotency_key": new_key(),
        "subject": {"tenant": tenant},
        "action": {"kind": "llm.completion", "name": "gpt-4o"},
        "estimate": tokens(amount),
        **fields,
    }


def event(amount=100, tenant="acme", **fields):
    body = asking(tenant=tenant, actual=tokens(amount), **fields)
    del body["estimate"]
    return body


def committing(amount=100, **fields):
    return {"idempotency_key": new_key(), "actual": tokens(amount), **fields}


def keyed(**fields):
    """A body that needs nothing but a key: for a release, or with `extend_by_ms` an extension."""
    return {"idempotency_key": new_key(), **fields}
