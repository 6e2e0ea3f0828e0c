"""The library's logger. `logging` is imported when there is something to log, to keep the package's import cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


def log() -> Logger:
    """The logger `cycles_lite`."""
    import logging

    return logging.getLogger("cycles_lite")
