"""One attempt's bound as a whole, and http.client's reader made to keep it."""

from __future__ import annotations

import http.client
import io
import socket
import time
from contextvars import ContextVar
from typing import Any


class Attempt:
    """What the connections must know of the attempt that they serve."""

    __slots__ = ("deadline", "fresh", "stale")

    def __init__(self, deadline: float, fresh: bool) -> None:
        self.deadline = deadline
        #: Do not reuse a connection.
        self.fresh = fresh
        #: A reused connection turned out to be closed by the peer.
        self.stale = False

    def left(self) -> float:
        """Seconds until the deadline; raises when it has passed."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise socket.timeout("timed out")
        return seconds


#: The attempt that is under way. A context variable and not a thread's: greenlets share threads.
current: ContextVar[Attempt] = ContextVar("cycles_lite_attempt")


class BoundedReader(io.RawIOBase):
    """A socket's reader that never waits past the deadline, however slowly the bytes drip."""

    def __init__(self, raw: Any, sock: socket.socket, attempt: Attempt) -> None:
        self._raw, self._sock, self._of = raw, sock, attempt
        #: The peer hung up.
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._sock.settimeout(self._of.left())
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """An answer that is read within its attempt, and whose head is whole."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader = BoundedReader(self.fp.detach(), sock, current.get())
        self.fp: Any = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader.ended:  # which http.client takes for the headers' end
            raise http.client.HTTPException("the connection was closed within the headers")
        if self.msg.defects or self.msg.get_payload():
            # What follows such a line is lost, such as the body's length; and urllib3 would log it, whatever it holds.
            raise http.client.HTTPException("there is a line among the headers that is none")

    def _read_status(self) -> Any:
        """http.client skips no interim answer but 100 (RFC 9110, 15.2). Another must not be taken for the answer: the
        real one would then be read as that of the next request."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 100 <= status < 200 else status, reason
