"""What SQLite's errors mean to a caller. Each leaves this package as one of the library's own errors."""

from __future__ import annotations

import sqlite3

from ..errors import CyclesError, TransportError, TransportTimeout
from ..transport.handlers import is_from_handler

#: SQLITE_BUSY, SQLITE_LOCKED and SQLITE_PROTOCOL (a race for the WAL that SQLite gave up): worth another try.
_BUSY_CODES = (5, 6, 15)
_BUSY = (TransportTimeout, "stayed locked by others for too long; nothing was written")

#: SQLITE_INTERRUPT: the statement was given up at its deadline.
_LATE_CODE = 9
_LATE = (TransportTimeout, "took too long to answer; nothing was written")

#: What SQLite's errors mean, by a part of their messages, because Python gives SQLite's codes from 3.11 on only.
_MEANINGS: dict[str, tuple[type[TransportError], str]] = {
    "database is locked": _BUSY,
    "database table is locked": _BUSY,
    "locking protocol": _BUSY,
    "interrupted": _LATE,
    "is full": (TransportError, "cannot grow: the disk is full; nothing was written"),
    "readonly database": (TransportError, "cannot be written: the file or its folder is read-only"),
    "disk image is malformed": (TransportError, "is damaged; restore it from a copy"),
    "is not a database": (TransportError, "is damaged: it is no longer a SQLite database"),
    "unable to open": (TransportError, "cannot be opened"),
    "ould not open": (TransportError, "cannot be opened"),  # PyPy's words
    "disk I/O error": (TransportError, "cannot be read or written: the disk reports an error"),
}


def _meaning(error: sqlite3.Error) -> tuple[type[TransportError], str]:
    text = str(error)
    return next((meaning for part, meaning in _MEANINGS.items() if part in text), (TransportError, "failed"))


class UnreadableError(TransportError):
    """A row of the file holds what no row of ours does: another type, no JSON. Another program has written it, or it is
    damaged where SQLite does not look."""


#: What reading such a row raises; and what SQLite's own error does if its text is damaged.
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError)


def is_of_file(error: BaseException | None) -> bool:
    """Whether an error within a transaction comes of what is in the file."""
    if isinstance(error, sqlite3.Error):
        return True
    return isinstance(error, _UNREADABLE) and not isinstance(error, CyclesError) and not is_from_handler(error)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else held the lock that was needed."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return _meaning(error) is _BUSY if code is None else code & 0xFF in _BUSY_CODES


def is_late(error: sqlite3.Error) -> bool:
    """Whether a statement was given up because its time was over."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return _meaning(error) is _LATE if code is None else code & 0xFF == _LATE_CODE


def translated(error: Exception, name: str) -> TransportError:
    """The error to raise for one of the file's; `name` is what messages call the ledger."""
    if not isinstance(error, sqlite3.Error):
        return UnreadableError(f"the budget file {name} holds what cannot be read ({type(error).__name__}: {error})")
    kind, meaning = _meaning(error)
    return kind(f"the budget file {name} {meaning} (SQLite: {error})")


def not_in_time(name: str, seconds: float) -> TransportTimeout:
    """The error for a lock that could not be had within a caller's time."""
    return TransportTimeout(f"the budget file {name} stayed locked for {seconds:.3g} s; nothing was written")
