"""What one connection to the server may hold: bounds on clients that send slowly, or nothing, or too many at once.

Waitress reads requests without a thread each, so a slow one costs no more than its connection. Those are limited, too:
a request has a time to be there whole, and where more connections come than are kept, the one goes that has waited for
its client the longest, those first on which no key was ever proven.
"""

from __future__ import annotations

from typing import Any, Mapping

from waitress.channel import HTTPChannel
from waitress.task import WSGITask

from ..runtime.clock import monotonic

#: Connections that are kept. Each may cost a file descriptor or two, of which systems give 1024, or fewer.
MOST = 400

#: Seconds for a request's head and body together, and for a connection without a proven key to ask for anything.
PATIENCE = 20.0

#: The header of an answer that shows whose key was proven.
_PROVEN = "x-cycles-tenant"


def most_connections() -> int:
    """`MOST`, or what the limit on this process's open files allows for."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files < 0 else max(8, min(MOST, (files - 64) // 2))


class _Task(WSGITask):  # type: ignore[misc]
    channel: Any

    def finish(self) -> None:
        super().finish()
        self.channel.answered(any(name.lower() == _PROVEN for name, _ in self.response_headers))


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that knows since when its client lets it wait."""

    task_class = _Task

    def __init__(self, *given: Any, **options: Any) -> None:
        #: Whether a request with a valid key came.
        self.is_proven = False
        #: Since when nothing is under way here, or only half a request.
        self.waits_since = monotonic()
        super().__init__(*given, **options)

    def received(self, data: bytes) -> Any:
        """Take what came; the time of a request runs from its first byte."""
        was_idle = self.request is None
        taken = super().received(data)
        if was_idle and self.request is not None and self.is_proven:
            self.waits_since = monotonic()
        return taken

    def answered(self, is_proven: bool) -> None:
        self.is_proven = self.is_proven or is_proven
        self.waits_since = monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether the client has to say or to take something before anything happens here."""
        return not self.requests


def let_go(sockets: Mapping[int, Any], most: int) -> None:
    """Close the connections that waited too long, and those over the limit. Only for the thread that serves sockets."""
    now = monotonic()
    channels = [one for one in list(sockets.values()) if isinstance(one, Channel)]
    waiting = sorted((one for one in channels if one.is_waiting), key=lambda one: (one.is_proven, one.waits_since))
    excess = len(channels) - most
    for number, channel in enumerate(waiting):
        is_late = now - channel.waits_since > PATIENCE and not (channel.is_proven and channel.request is None)
        if number < excess or is_late:
            channel.handle_close()
