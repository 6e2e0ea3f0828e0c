"""The server's socket: its port is nobody else's."""

from __future__ import annotations

import socket

import pytest

from cycles_lite.errors import ConfigError
from cycles_lite.local.server import _listen


def test_on_windows_the_port_is_asked_for_alone(monkeypatch):
    """There SO_REUSEADDR lets a second server take the port of the first. Another option of this system stands for the
    one that only Windows has."""
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    with _listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.mark.skipif(hasattr(socket, "SO_EXCLUSIVEADDRUSE"), reason="Windows has an option of its own")
def test_elsewhere_a_port_can_be_had_again_at_once_but_not_twice():
    with _listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with pytest.raises(ConfigError, match="cannot listen"):
            _listen("127.0.0.1", listening.getsockname()[1])
