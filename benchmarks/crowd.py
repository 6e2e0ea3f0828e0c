"""Many clients of one server in one process, one thread and a selector, so that they take little of the cores that the
server needs: about a tenth of a millisecond for a pair.

Each client keeps a connection, and reserves and commits on it as fast as it is answered. On a line `CLIENTS PAIRS` the
crowd does that many pairs and tells what came of it, as JSON: how many a second, and the seconds that pairs took.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NamedTuple
from urllib.parse import urlsplit

from .canned import HERE

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_ID = re.compile(rb'"reservation_id":"([^"]+)"')

_RESERVE = (
    '{"idempotency_key":"%s","subject":{"tenant":"acme","agent":"bot"},'
    '"action":{"kind":"llm.completion","name":"gpt-4o"},"estimate":{"unit":"TOKENS","amount":1000},"ttl_ms":60000}'
)
_COMMIT = '{"idempotency_key":"%s","actual":{"unit":"TOKENS","amount":742}}'


class Found(NamedTuple):
    """What a crowd saw."""

    pairs_a_second: float
    #: Milliseconds from the first byte of reserving to the last of the commit's answer.
    p50: float
    p99: float


#: Lets so many clients do so many pairs together.
Crowd = Callable[[int, int], Found]


class _Client:
    """One connection, and the pair that is under way on it."""

    def __init__(self, url: str, key: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname or "", where.port or 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host, self._key = where.netloc, key
        self._read = b""
        self._is_reserved = False
        self._since = 0.0

    def begin(self) -> None:
        self._since = time.perf_counter()
        self._send("/v1/reservations", _RESERVE)

    def goes_on(self) -> float | None:
        """Take what came; the seconds that a pair took, if it has ended."""
        came = self.socket.recv(65536)
        if not came:
            raise ConnectionResetError("the server has hung up")
        self._read += came
        head = self._read.find(b"\r\n\r\n")
        length = _LENGTH.search(self._read, 0, head + 2) if head > 0 else None
        if length is None or len(self._read) < head + 4 + int(length.group(1)):
            return None
        answer, self._read = self._read, b""
        if answer[9:12] != b"200":
            raise AssertionError(answer.decode("latin-1"))
        self._is_reserved = not self._is_reserved
        if not self._is_reserved:
            return time.perf_counter() - self._since
        found = _ID.search(answer)
        assert found is not None
        self._send("/v1/reservations/{}/commit".format(found.group(1).decode("ascii")), _COMMIT)
        return None

    def _send(self, path: str, body: str) -> None:
        id = os.urandom(16).hex()
        content = body % id
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(content)}\r\n"
            "Content-Type: application/json\r\nAccept: application/json\r\n"
            f"X-Cycles-API-Key: {self._key}\r\nX-Idempotency-Key: {id}\r\n\r\n"
        )
        self.socket.sendall((head + content).encode("ascii"))  # far less than a socket takes at once


def _work(clients: list[_Client], pairs: int) -> list[float]:
    """Let clients do so many pairs together; the seconds that each took."""
    took: list[float] = []
    begun = 0
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.begin()
            begun += 1
        while len(took) < begun:
            for ready, _ in selector.select():
                seconds = ready.data.goes_on()
                if seconds is not None:
                    took.append(seconds)
                    if begun < pairs:
                        ready.data.begin()
                        begun += 1
    return took


def _measured(clients: list[_Client], pairs: int) -> dict[str, Any]:
    start = time.perf_counter()
    took = sorted(_work(clients, max(pairs, len(clients))))
    seconds = time.perf_counter() - start
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    return Found(len(took) / seconds, p50 * 1000, p99 * 1000)._asdict()


@contextmanager
def crowd(url: str, key: str) -> Iterator[Crowd]:
    """The process, as a function."""
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.crowd", url, key],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    stdin, stdout = started.stdin, started.stdout
    assert stdin is not None
    assert stdout is not None

    def work(clients: int, pairs: int) -> Found:
        print(clients, pairs, file=stdin, flush=True)
        return Found(**json.loads(stdout.readline()))

    try:
        yield work
    finally:
        stdin.close()
        started.wait()
        stdout.close()


if __name__ == "__main__":
    ready: list[_Client] = []
    for line in sys.stdin:
        count, pairs = map(int, line.split())
        ready += [_Client(*sys.argv[1:]) for _ in range(count - len(ready))]
        print(json.dumps(_measured(ready[:count], pairs)), flush=True)
