"""The library's logger, found when there is something to say: programs that never hear from it do not pay for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


def log() -> Logger:
    """The logger `cycles_lite`."""
    import logging

    return logging.getLogger("cycles_lite")
