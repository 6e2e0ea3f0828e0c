"""Budget files: recognising, making and opening them, and noticing when another file takes the place of an open one.

A file that is no budget file is never written, and neither is anything beside it. Files are looked at through SQLite
and `os.stat` alone: if this process opened and closed a database that it has in use, the system would drop the POSIX
locks of all its connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from urllib.parse import quote

from ..errors import ConfigError, TransportError
from ..runtime import system
from ..runtime.clock import monotonic
from . import schema
from .connections import Connection, Inode, Place, execute, inode, open_connections, stamp
from .failures import is_busy, not_in_time, translated
from .location import printable

#: Seconds that SQLite itself waits for a lock before it reports that it is busy. The caller then tries again.
BUSY_TIMEOUT = 0.05

#: Pages of 4 KiB that the WAL may have before they are copied to the file. The more, the fewer waits for the disk.
_CHECKPOINT_PAGES = 4000

#: Seconds between two tries for the lock on a folder.
_PAUSE = 0.002


# ---- Opening ----


def place_of(path: str, opened: Inode) -> Place | None:
    """The place of a file that was just opened and read once; None where the path leads elsewhere by now."""
    real = os.path.realpath(path)
    place = Place(path, real, opened, inode(real + "-wal"), inode(real + "-shm"))
    return place if opened is not None and opened == inode(path) == inode(real) else None


def connect(path: str, options: str = "mode=rw") -> Connection:
    """A connection in autocommit mode, for one thread at a time. The file must exist."""
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    return Connection(
        sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    )


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
    before = stamp(path)
    for other in open_connections():
        if other.place is not None and other.place.path == path and before and other.place.inode != before[:2]:
            set_aside(other.place, deadline)
    made = connect(path)
    try:
        # SQLite itself has written nothing yet, so the inode is unchanged if the name has led to this file all the
        # time.
        if before is not None and before == stamp(path):
            _set_up(made.db, path, journal, synchronous, deadline)
            made.place = place_of(path, before[:2])
            if made.place is not None:
                return made
    except BaseException:
        made.close()
        raise
    made.close()
    return None


def _set_up(db: sqlite3.Connection, path: str, journal: str, synchronous: str, deadline: float) -> None:
    application_id, version = schema.identity(db)
    if application_id != schema.APPLICATION_ID:
        raise TransportError(f"the budget file {printable(path)} was replaced by another file")
    _demand_known(path, version)
    try:
        execute(db, "PRAGMA journal_mode = " + journal, min(deadline, monotonic() + 1.0))
    except sqlite3.OperationalError as e:
        # Whoever else has the file open may keep its journal from being changed; then the present one serves.
        if not is_busy(e):
            raise
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
    db.execute("PRAGMA synchronous = " + synchronous)
    if synchronous == "full":
        db.execute("PRAGMA fullfsync = 1")  # only macOS heeds it; see `system.sync`
    db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opens the WAL
    if version < schema.VERSION:
        _upgrade(db, path, deadline)


def _upgrade(db: sqlite3.Connection, path: str, deadline: float) -> None:
    """Make the file one of this version, in one transaction. Whatever ends it too early leaves the file as it was: the
    caller closes the connection then.

    The deadline is for the lock alone. A large file takes longer than most callers would wait, and it would never be
    finished if each of them began anew.
    """
    execute(db, "BEGIN IMMEDIATE", deadline)
    _demand_known(path, schema.identity(db)[1])  # another process may have been faster, and newer
    schema.upgrade(db)
    execute(db, "COMMIT", max(deadline, monotonic() + 1.0))
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


# ---- Files that are replaced while they are open ----
# SQLite finds the WAL by its name. A process that opens the new file while the old file's WAL is still there would mix
# the two. So the old WAL is renamed, and its index removed, before the old file is closed.


def demand_same(place: Place, deadline: float) -> None:
    """Raise a `TransportError` if the path leads to another file, or to none. Wait for locks until a monotonic time."""
    found = inode(place.path)
    if found == place.inode:
        return
    what = f"the budget file {printable(place.path)} was {{}} while it was open; nothing was written{{}}"
    if found is None:
        raise TransportError(what.format("removed", ""))
    kept = set_aside(place, deadline)
    where = f", and what was not yet copied to the old one is in {printable(kept)}" if kept else ""
    raise TransportError(what.format("replaced by another", where + "; the next call uses the new one"))


def set_aside(place: Place, deadline: float) -> str | None:
    """Rename the WAL of a file that was replaced, because the new file's has the same name. Return its new name.

    The caller still has the old file open, so that its inode is no other file's. Where several processes do this, the
    lock on the folder keeps one from renaming the WAL that another has just made for the new file.
    """
    if place.wal is None or place.wal != inode(place.real + "-wal"):
        return None
    with _FolderLock(os.path.dirname(place.real), place.path, deadline):
        if inode(place.real) in (None, place.inode) or place.wal != inode(place.real + "-wal"):
            return None
        if place.shm is not None and place.shm == inode(place.real + "-shm"):
            os.unlink(place.real + "-shm")
        kept = f"{place.real}-wal.{os.urandom(4).hex()}.old"
        os.rename(place.real + "-wal", kept)
        return kept


class _FolderLock:
    """An exclusive lock on a folder. Its descriptor closes with this object, so no interruption leaves it locked."""

    _file: int | None = None

    def __init__(self, folder: str, name: str, deadline: float) -> None:
        self._folder, self._name, self._deadline = folder, name, deadline

    def __enter__(self) -> None:
        if system.fcntl is None:  # on Windows an open file is neither removed nor replaced
            return
        self._file = os.open(self._folder, os.O_RDONLY)
        while True:
            try:
                if system.lock(self._file):
                    return
                error = None
            except OSError as e:
                error = e
            if monotonic() >= self._deadline:
                raise not_in_time(printable(self._name), 0.0) from error
            time.sleep(_PAUSE)

    def __exit__(self, *exc_info: object) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        self.__exit__()


# ---- Finding and making ----


def prepare(path: str, create: bool, timeout: float) -> None:
    """Make sure that there is a budget file at `path`. Raises `ConfigError` if something else is there."""
    size = _size(path)
    if not size:
        if not create:
            what = "there is no budget file at {}" if size is None else "{} is an empty file"
            command = f"cycles-lite budget set --db {system.quoted(printable(path))} tenant:acme TOKENS:100000"
            raise ConfigError(f"{what.format(printable(path))}; this makes one: {command}")
        _make(path, size, monotonic() + timeout)
    application_id, version = _identity(path)
    if application_id != schema.APPLICATION_ID:
        raise ConfigError(f"{printable(path)} is not a budget file but another program's database; it was left alone")
    _demand_known(path, version)


def _demand_known(path: str, version: int) -> None:
    """Raise a `ConfigError` for a version of the tables that this library does not know."""
    if version != schema.VERSION and version not in schema.STEPS:
        age = "newer" if version > schema.VERSION else "unknown"
        known = f"this cycles_lite knows version {schema.VERSION}"
        raise ConfigError(f"{printable(path)} has the {age} schema version {version}; {known}")


def _size(path: str) -> int | None:
    """The size of a regular file; None where there is nothing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ConfigError(f"{printable(path)} cannot be looked at: {e}") from e
    if not stat.S_ISREG(found.st_mode):
        what = "a folder; name a file in it" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise ConfigError(f"{printable(path)} is {what}")
    return found.st_size


def _identity(path: str) -> tuple[int, int]:
    """The application id and the schema version of a file, read without locks and without a WAL.

    With `immutable` SQLite writes nothing. That is safe here, because the id never changes and the version never goes
    down. A higher version may still be in the WAL alone: whoever opens the file looks again. The number of pages on
    page 1 does change, and a process that is killed within a checkpoint leaves one that is larger than the file.
    `writable_schema` makes SQLite ignore that.
    """
    try:
        made = connect(path, "mode=ro&immutable=1")
    except (sqlite3.Error, UnicodeDecodeError) as e:  # the text of a damaged schema is in the error
        raise ConfigError(f"{printable(path)} cannot be read: {e}") from e
    try:
        made.db.execute("PRAGMA writable_schema=ON")
        return schema.identity(made.db)
    except (sqlite3.Error, UnicodeDecodeError) as e:  # the text of a damaged schema is in the error
        raise ConfigError(f"{printable(path)} is not a budget file, nor any SQLite database: {e}") from e
    finally:
        made.close()


def _make(path: str, size: int | None, deadline: float) -> None:
    """Make a budget file that only its owner may read and write; SQLite gives its WAL the same mode.

    It is finished under another name first, so that whoever finds the name finds a whole file, also after a crash.
    """
    if size is not None:
        _fill(path, deadline)  # the file exists and is empty
        return
    try:
        _link_whole(path, deadline)
    except FileExistsError:
        pass  # another process was faster
    except OSError as e:
        folder = os.path.dirname(path)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise ConfigError(f"{printable(path)} cannot be made: {e.strerror}") from e
        with contextlib.suppress(FileExistsError):  # this is for file systems without hard links
            _touch(path)
        _fill(path, deadline)


def _link_whole(path: str, deadline: float) -> None:
    if not hasattr(os, "link"):  # as on Android
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    draft = f"{path}.{os.urandom(6).hex()}.new"
    try:
        try:
            _touch(draft)
            _fill(draft, deadline)
            os.link(draft, path)
        finally:
            _remove(draft)
    finally:  # once more, for a signal handler that raises just before the line above
        _remove(draft)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.insist(os.unlink, path)


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
    except (sqlite3.Error, UnicodeDecodeError) as e:  # the text of a damaged schema is in the error
        raise translated(e, printable(path)) from e
