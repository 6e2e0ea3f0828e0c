"""The in-process transport: `sqlite:` URLs go to the embedded authority, without a server or a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError, CyclesError
from ..transport.handlers import is_from_handler
from .authority import Authority, Caller

if TYPE_CHECKING:
    from ..config import CyclesConfig
    from ..protocol.wire import Answer, Call


class LocalTransport:
    """Sends calls to the ledger in a file that exists; the file's permissions are the authentication.

    The tenant of a call's configuration is the caller's; without one, requests say themselves for whom they act.
    What is returned instead of an answer is a `ConfigError` for an unusable file, or a `TransportError` where a request
    has none.
    """

    def __init__(self, config: CyclesConfig) -> None:
        if config.base_url is None:
            raise ConfigError("base_url is not set")
        self._authority = Authority(config.base_url, create=False)

    def __repr__(self) -> str:
        return f"<LocalTransport to {self._authority.url}>"

    def send(self, call: Call) -> Answer | CyclesError:
        """The authority's answer to one call, within the call's timeouts together."""
        try:
            return self._authority.answer(call, Caller(call.tenant))
        except CyclesError as e:
            if is_from_handler(e):
                raise
            return e

    def close(self) -> None:
        """Let idle connections to the file go. A later call opens new ones."""
        self._authority.shutdown()
