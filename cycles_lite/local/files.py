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
from urllib.parse import quote

from ..clock import monotonic
from ..errors import ConfigError
from . import schema
from .failures import is_busy, translated

#: Seconds that SQLite itself waits for a lock before it reports back; whoever calls it tries again.
BUSY_TIMEOUT = 0.05


def connect(path: str, options: str = "mode=rw") -> sqlite3.Connection:
    """A connection in autocommit mode, for one thread at a time. The file must exist."""
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def execute(db: sqlite3.Connection, statement: str, deadline: float) -> None:
    """Run a statement, again and again while others hold the lock, up to a monotonic time."""
    while True:
        try:
            db.execute(statement).fetchall()
            return
        except sqlite3.OperationalError as e:
            if not is_busy(e) or monotonic() >= deadline:
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
        raise ConfigError(f"{path} cannot be looked at: {e}") from e
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is not a regular file")
    return found.st_size


def _missing(path: str, size: int | None) -> str:
    what = "there is no budget file at {}" if size is None else "{} is an empty file"
    command = f"cycles-lite budget set --db {shlex.quote(path)} tenant:acme TOKENS:100000"
    return f"{what.format(path)}; this makes one: {command}"


def _demand_ours(path: str) -> None:
    application_id, version = _identity(path)
    if application_id != schema.APPLICATION_ID:
        raise ConfigError(f"{path} is not a budget file but another program's database; it was left alone")
    if version != schema.VERSION:
        age = "newer" if version > schema.VERSION else "unknown"
        known = f"this cycles_lite knows version {schema.VERSION}"
        raise ConfigError(f"{path} has the {age} schema version {version}; {known}")


def _identity(path: str) -> tuple[int, int]:
    """Read without locks and without a WAL: `immutable` writes nothing, and the two numbers never change. What does is
    the number of pages that page 1 tells: a process that is killed within a checkpoint leaves more there than the file
    has, which `writable_schema` makes SQLite overlook."""
    try:
        db = connect(path, "mode=ro&immutable=1")
    except sqlite3.Error as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
    try:
        db.execute("PRAGMA writable_schema=ON")
        return schema.identity(db)
    except sqlite3.Error as e:
        raise ConfigError(f"{path} is not a budget file, nor any SQLite database: {e}") from e
    finally:
        db.close()


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
            raise ConfigError(f"{path} cannot be made: {e.strerror}") from e
        with contextlib.suppress(FileExistsError):  # a file system without hard links
            _touch(path)
        _fill(path, deadline)


def _link_whole(path: str, deadline: float) -> None:
    draft = f"{path}.{os.urandom(6).hex()}.new"
    _touch(draft)
    try:
        _fill(draft, deadline)
        os.link(draft, path)
    finally:
        os.unlink(draft)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


def _fill(path: str, deadline: float) -> None:
    """Write the tables into an empty file, unless somebody else just did."""
    try:
        db = connect(path)
        try:
            execute(db, "BEGIN EXCLUSIVE", deadline)
            if schema.identity(db) == (0, 0) and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                schema.create(db)
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed
    except sqlite3.Error as e:
        raise translated(e, path) from e
