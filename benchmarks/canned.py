"""An authority that knows only its lines: it answers at once, always the same, and so costs its client nothing that
another client would not pay too. In a process of its own, so that its work is on nobody's clock.

It does keep one book: when each reservation expires, so that a heartbeat that comes too late is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)

_HEADERS = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_a788d0eeda00338cb1f6e3bf\r\n"
    "X-Cycles-Trace-Id: 11c56bbe733a3cb036ed403ac4c76a2b\r\nX-Cycles-Tenant: acme\r\nX-RateLimit-Remaining: -1\r\n"
    "X-RateLimit-Reset: 0\r\nDate: Tue, 24 Nov 2026 14:49:28 GMT\r\nContent-Length: {}\r\n\r\n"
)


def _tokens(amount: int) -> dict[str, Any]:
    return {"unit": "TOKENS", "amount": amount}


def _balances(reserved: int, spent: int) -> list[dict[str, Any]]:
    return [
        {
            "scope": path.rsplit("/", 1)[-1],
            "scope_path": path,
            "remaining": _tokens(10**9 - reserved - spent),
            "reserved": _tokens(reserved),
            "spent": _tokens(spent),
            "allocated": _tokens(10**9),
        }
        for path in ("tenant:acme", "tenant:acme/agent:bot")
    ]


def _created(id: str, ttl_ms: int) -> dict[str, Any]:
    return {
        "decision": "ALLOW",
        "reservation_id": id,
        "reserved": _tokens(1000),
        "expires_at_ms": int(time.time() * 1000) + ttl_ms,
        "remaining_ttl_ms": ttl_ms,
        "scope_path": "tenant:acme/agent:bot",
        "affected_scopes": ["tenant:acme", "tenant:acme/agent:bot"],
        "balances": _balances(1000, 0),
    }


_COMMITTED = {
    "status": "COMMITTED",
    "charged": _tokens(742),
    "released": _tokens(258),
    "balances": _balances(0, 742),
}
_RELEASED = {"status": "RELEASED", "released": _tokens(1000), "balances": _balances(0, 0)}


class Book:
    """The live reservations and when they expire, in seconds of the monotonic clock."""

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.expires: dict[str, float] = {}
        self.made = self.beats = self.late = 0

    def answer(self, target: str) -> dict[str, Any]:
        """The answer to a request, by its path alone."""
        parts = target.split("/")
        if parts[-1] == "reservations":
            self.made += 1
            id = f"rsv_{self.made:032x}"
            self.expires[id] = time.monotonic() + self.ttl_ms / 1000
            return _created(id, self.ttl_ms)
        if parts[-1] == "extend":
            return self._extended(parts[-2])
        if parts[-1] == "book":
            return self.told()
        self.expires.pop(parts[-2], None)
        return _COMMITTED if parts[-1] == "commit" else _RELEASED

    def _extended(self, id: str) -> dict[str, Any]:
        now = time.monotonic()
        left = 0
        if id in self.expires:  # else it was finished while its beat was on its way
            self.beats += 1
            self.late += now > self.expires[id]
            self.expires[id] += self.ttl_ms / 1000
            left = int((self.expires[id] - now) * 1000)
        return {"status": "ACTIVE", "expires_at_ms": int(time.time() * 1000) + left, "remaining_ttl_ms": left}

    def told(self) -> dict[str, Any]:
        now = time.monotonic()
        lapsed = sum(now > end for end in self.expires.values())
        return {"made": self.made, "live": len(self.expires), "beats": self.beats, "lapsed": lapsed + self.late}


class Conversation(asyncio.Protocol):
    """One connection."""

    def __init__(self, book: Book, delay: float) -> None:
        self._book, self._delay = book, delay
        self._read = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._read, 0, head + 2)
        if len(self._read) < head + 4 + (int(length.group(1)) if length else 0):
            return
        target = self._read.split(b" ", 2)[1].decode("ascii")
        self._read = b""
        body = json.dumps(self._book.answer(target), separators=(",", ":")).encode("ascii")
        whole = _HEADERS.format(len(body)).encode("ascii") + body
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, whole)
        else:
            self._transport.write(whole)


async def _serve(delay: float, ttl_ms: int) -> None:
    book = Book(ttl_ms)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Conversation(book, delay), "127.0.0.1", 0, backlog=128)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """A server as a process, for as long as the block runs: one that first prints `listening on URL`. The URL."""
    started = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    try:
        yield started.stdout.readline().split()[-1]
    finally:
        started.terminate()
        started.wait()
        started.stdin.close()
        started.stdout.close()


def canned(delay_ms: int = 0, ttl_ms: int = 60_000) -> Any:
    """This server, as a context manager whose value is its URL."""
    return process("benchmarks.canned", "--delay-ms", str(delay_ms), "--ttl-ms", str(ttl_ms))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=int, default=0)
    parser.add_argument("--ttl-ms", type=int, default=60_000)
    given = parser.parse_args()
    threading.Thread(target=end_with_parent, daemon=True).start()
    asyncio.run(_serve(given.delay_ms / 1000, given.ttl_ms))
