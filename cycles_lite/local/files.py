"""Budget files before they are used: telling ours from others, and making new ones.

A file that is not ours is never written, and neither is anything beside it. All looking is done through SQLite: a
plain open and close of a database that this very process has in use would drop its POSIX locks.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
import stat
from typing import Callable
from urllib.parse import quote

from ..errors import ConfigError, TransportError
from ..runtime.clock import monotonic
from . import places, schema
from .connections import Connection, at_place, open_connections
from .failures import is_busy, translated
from .location import printable

#: Seconds that SQLite itself waits for a lock before it reports back; whoever calls it tries again.
BUSY_TIMEOUT = 0.05

#: Pages of 4 KiB that the WAL grows to before they are copied to the file: fewer copies, fewer waits for the disk.
_CHECKPOINT_PAGES = 4000


def connect(path: str, options: str = "mode=rw") -> Connection:
    """A connection in autocommit mode, for one thread at a time. The file must exist."""
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    return Connection(
        sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    )


def execute(
    db: sqlite3.Connection, statement: str, deadline: float, is_in_vain: Callable[[], bool] = lambda: False
) -> None:
    """Run a statement, again and again while others hold the lock, up to a monotonic time unless that is in vain."""
    while True:
        try:
            db.execute(statement).fetchall()
            return
        except sqlite3.OperationalError as e:
            if not is_busy(e) or monotonic() >= deadline or is_in_vain():
                raise


def open_file(path: str, journal: str, synchronous: str, deadline: float) -> Connection:
    """A connection to a budget file that is there, tried up to a monotonic time while others lock or replace it."""
    while True:
        try:
            made = _open(path, journal, synchronous, deadline)
            if made is not None:
                return made
        except sqlite3.OperationalError as e:
            if not is_busy(e) or monotonic() >= deadline:
                raise
        if monotonic() >= deadline:
            raise TransportError(
                f"the budget file {printable(path)} is replaced by others all the time; nothing was written"
            )


def _open(path: str, journal: str, synchronous: str, deadline: float) -> Connection | None:
    """A connection that knows which file it has open; None where the path came to lead elsewhere meanwhile."""
    before = places.stamp(path)
    for other in open_connections():
        if other.place is not None and other.place.path == path and before and other.place.inode != before[:2]:
            places.set_aside(other.place, deadline)
    made = connect(path)
    try:
        # The time of the last change tells whether the name led elsewhere in between; SQLite itself has written nothing
        # yet.
        is_same = before == places.stamp(path)
        if is_same:
            _set_up(made.db, path, journal, synchronous, deadline)
        place = places.place_of(path, before[:2]) if is_same and before else None
        if place is None:
            made.close()
            return None
        at_place(made, place)
        return made
    except BaseException:
        made.close()
        raise


def _set_up(db: sqlite3.Connection, path: str, journal: str, synchronous: str, deadline: float) -> None:
    if schema.identity(db) != (schema.APPLICATION_ID, schema.VERSION):
        raise TransportError(f"the budget file {printable(path)} was replaced by another file")
    _set_journal(db, journal, deadline)
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
    db.execute("PRAGMA synchronous = " + synchronous)
    db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opens the WAL


def _set_journal(db: sqlite3.Connection, journal: str, deadline: float) -> None:
    """The journal that suits the disk. Other users of the file may hold it back: then the present one serves."""
    try:
        execute(db, "PRAGMA journal_mode = " + journal, min(deadline, monotonic() + 1.0))
    except sqlite3.OperationalError as e:
        if not is_busy(e):
            raise


def prepare(path: str, create: bool, timeout: float) -> None:
    """See to it that there is a budget file at `path`; raises `ConfigError` for all that is none."""
    size = _size(path)
    if not size:
        if not create:
            raise ConfigError(_missing(path, size))
        _make(path, size, monotonic() + timeout)
    _demand_ours(path)


def _size(path: str) -> int | None:
    """The size of a regular file; None where there is nothing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ConfigError(f"{printable(path)} cannot be looked at: {e}") from e
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{printable(path)} is a folder; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{printable(path)} is not a regular file")
    return found.st_size


def _missing(path: str, size: int | None) -> str:
    what = "there is no budget file at {}" if size is None else "{} is an empty file"
    command = f"cycles-lite budget set --db {shlex.quote(printable(path))} tenant:acme TOKENS:100000"
    return f"{what.format(printable(path))}; this makes one: {command}"


def _demand_ours(path: str) -> None:
    application_id, version = _identity(path)
    if application_id != schema.APPLICATION_ID:
        raise ConfigError(f"{printable(path)} is not a budget file but another program's database; it was left alone")
    if version != schema.VERSION:
        age = "newer" if version > schema.VERSION else "unknown"
        known = f"this cycles_lite knows version {schema.VERSION}"
        raise ConfigError(f"{printable(path)} has the {age} schema version {version}; {known}")


def _identity(path: str) -> tuple[int, int]:
    """Read without locks and without a WAL: `immutable` writes nothing, and the two numbers never change. What does is
    the number of pages that page 1 tells: a process that is killed within a checkpoint leaves more there than the file
    has, which `writable_schema` makes SQLite overlook."""
    try:
        made = connect(path, "mode=ro&immutable=1")
    except sqlite3.Error as e:
        raise ConfigError(f"{printable(path)} cannot be read: {e}") from e
    try:
        made.db.execute("PRAGMA writable_schema=ON")
        return schema.identity(made.db)
    except sqlite3.Error as e:
        raise ConfigError(f"{printable(path)} is not a budget file, nor any SQLite database: {e}") from e
    finally:
        made.close()


def _make(path: str, size: int | None, deadline: float) -> None:
    """A budget file that only its owner may read and write; SQLite gives its WAL the same mode.

    It is finished under another name first: whoever finds the name finds a whole file, also after a crash.
    """
    if size is not None:
        _fill(path, deadline)  # an empty file that somebody provided
        return
    try:
        _link_whole(path, deadline)
    except FileExistsError:
        pass  # another process was faster
    except OSError as e:
        folder = os.path.dirname(path)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise ConfigError(f"{printable(path)} cannot be made: {e.strerror}") from e
        with contextlib.suppress(FileExistsError):  # a file system without hard links
            _touch(path)
        _fill(path, deadline)


def _link_whole(path: str, deadline: float) -> None:
    draft = f"{path}.{os.urandom(6).hex()}.new"
    try:
        try:
            _touch(draft)
            _fill(draft, deadline)
            os.link(draft, path)
        finally:
            _remove(draft)
    finally:  # for the signal handler that raises just before the line above
        _remove(draft)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


def _fill(path: str, deadline: float) -> None:
    """Write the tables into an empty file, unless somebody else just did."""
    try:
        made = connect(path)
        db = made.db
        try:
            execute(db, "BEGIN EXCLUSIVE", deadline)
            if schema.identity(db) == (0, 0) and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                schema.create(db)
            db.execute("COMMIT")
        finally:
            made.close()  # rolls back what was not committed
    except sqlite3.Error as e:
        raise translated(e, printable(path)) from e
