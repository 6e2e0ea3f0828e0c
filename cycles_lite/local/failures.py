"""What errors mean to a caller: SQLite's, each of which leaves this package as one of ours, and signal handlers'."""

from __future__ import annotations

import sqlite3

from ..errors import TransportError, TransportTimeout

#: SQLITE_BUSY, SQLITE_LOCKED and SQLITE_PROTOCOL (a race for the WAL that SQLite gave up): worth another try.
_BUSY_CODES = (5, 6, 15)
_BUSY_TEXTS = ("database is locked", "database table is locked", "locking protocol")

#: Told by the text, because Python has SQLite's codes since 3.11 only.
_MEANINGS: tuple[tuple[str, type[TransportError], str], ...] = (
    ("database is locked", TransportTimeout, "stayed locked by others for too long; nothing was written"),
    ("database table is locked", TransportTimeout, "stayed locked by others for too long; nothing was written"),
    ("locking protocol", TransportTimeout, "stayed locked by others for too long; nothing was written"),
    ("is full", TransportError, "cannot grow: the disk is full; nothing was written"),
    ("readonly database", TransportError, "cannot be written: the file or its folder is read-only"),
    ("disk image is malformed", TransportError, "is damaged; restore it from a copy"),
    ("is not a database", TransportError, "is damaged: it is no longer a SQLite database"),
    ("unable to open", TransportError, "cannot be opened"),
    ("disk I/O error", TransportError, "cannot be read or written: the disk reports an error"),
)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else held the lock that was needed."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _BUSY_CODES
    return any(text in str(error) for text in _BUSY_TEXTS)


def translated(error: sqlite3.Error, name: str) -> TransportError:
    """The error to raise for SQLite's; `name` is how the ledger is called in messages."""
    text = str(error)
    for part, kind, meaning in _MEANINGS:
        if part in text:
            return kind(f"the budget file {name} {meaning} (SQLite: {text})")
    return TransportError(f"the budget file {name} failed (SQLite: {text})")


def not_in_time(name: str, seconds: float) -> TransportTimeout:
    """The error for a lock that was not had within a caller's time."""
    return TransportTimeout(f"the budget file {name} stayed locked for {seconds:.3g} s; nothing was written")
