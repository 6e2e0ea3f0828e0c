"""Where connections wait for their next request: urllib3's pools keep them here, not in a queue with locks.

urllib3's own queue is Python code around a lock. An exception that a signal handler raises within it leaves the lock
held, and one between taking a connection and giving it back costs the pool a place for good. Here every step is one
operation of a deque, which happens as a whole or not at all; how many connections are in use is bounded elsewhere.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import Any

from ..runtime.clock import monotonic, now_ms
from .attempt import Attempt, current

#: Seconds that a connection may have been idle. Balancers and NAT gateways forget it after 60 to 350 seconds, and a
#: request on one that was forgotten, or that slept with a frozen process, may never be answered.
MAX_IDLE = 50.0


class Idle:
    """A stack of open connections, with as much of `queue.LifoQueue` as urllib3's pools call."""

    def __init__(self, maxsize: int = 0) -> None:
        self._stack: deque[tuple[Any, float, int]] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The connection that was used last. None that is too old, and none at all for an attempt that wants a new
        one: `queue.Empty` makes urllib3 open it."""
        attempt = self._user()
        stack = self._stack
        if attempt is not None:
            attempt.home = stack
        while stack:
            try:
                connection, since, since_ms = stack.pop()
            except IndexError:  # another thread was faster
                break
            if attempt is None:  # a pool that ends takes all of them, and closes them
                return connection
            if not attempt.fresh and monotonic() - since < MAX_IDLE and now_ms() - since_ms < MAX_IDLE * 1000:
                attempt.reuse()
                return connection
            connection.close()
            if attempt.fresh:  # it opens one new connection, and closes one idle one for that
                break
        raise queue.Empty

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take what urllib3 has done with. It waits here again only when the whole attempt went well: see `keep`."""
        attempt = self._user()
        if attempt is not None:
            attempt.connection = connection
        elif connection is not None:
            connection.close()

    def _user(self) -> Attempt | None:
        """The attempt that this call is for: the one under way, unless another pool is collected in the midst of it."""
        attempt = current.get(None)
        return attempt if attempt is not None and attempt.idle is self else None

    def keep(self, connection: Any, stack: Any) -> None:
        """Take back a connection from that stack whose answer was read whole."""
        if connection.sock is not None and stack is self._stack:
            stack.append((connection, monotonic(), now_ms()))
        else:
            connection.close()

    def let_go(self) -> None:
        """Close what is idle now; what is in use is closed when it comes back, because the stack is another then."""
        stack, self._stack = self._stack, deque()
        while stack:
            try:
                stack.pop()[0].close()
            except IndexError:
                break

    def qsize(self) -> int:
        return len(self._stack)

    def empty(self) -> bool:
        """vcrpy asks when it puts its own connections in."""
        return not self._stack
