"""Whether a path still leads to the file that a connection has open, and what to do where another took its place.

SQLite finds the journal by name: whoever opens the new file while the old one's WAL is still beside it would mix the
two. So the old WAL is renamed, and its index removed, before the old file is let go. Only the file system is asked: a
plain open and close of a file that this process has in use would drop its POSIX locks.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple, Optional, Tuple

from ..errors import TransportError
from ..runtime.clock import monotonic
from .failures import not_in_time
from .location import printable

try:
    import fcntl
except ImportError:  # Windows, where an open file is neither removed nor replaced
    fcntl = None  # type: ignore[assignment]

#: Device and inode; None where there is no file.
Inode = Optional[Tuple[int, int]]

_PAUSE = 0.002


class Place(NamedTuple):
    """A file that a connection has open: while it does, no other file gets these numbers."""

    path: str
    #: The path without links, as SQLite names the journal.
    real: str
    inode: Inode
    wal: Inode
    shm: Inode


def inode(path: str) -> Inode:
    found = stamp(path)
    return found[:2] if found else None


def stamp(path: str) -> tuple[int, int, int] | None:
    """Device, inode, and when that was last changed, which shows a name that came back."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def place_of(path: str, opened: Inode) -> Place | None:
    """The place of a file that was just opened and read once; None where the path leads elsewhere by now."""
    real = os.path.realpath(path)
    place = Place(path, real, opened, inode(real + "-wal"), inode(real + "-shm"))
    return place if opened is not None and opened == inode(path) == inode(real) else None


def demand_same(place: Place, deadline: float) -> None:
    """Raise a `TransportError` where the path leads to another file, or to none; up to a monotonic time."""
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
    """Take the WAL of a file that was replaced away from the name that the new file's has; its new name, if it had one.

    Whoever calls has the old file open still, so that the inodes are no other file's. Among processes that all do this
    the lock on the folder keeps one from taking the WAL that another has just made for the new file.
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
    """An exclusive lock on a folder. Its descriptor closes with the object, so no interruption leaves it locked."""

    _file: int | None = None

    def __init__(self, folder: str, name: str, deadline: float) -> None:
        self._folder, self._name, self._deadline = folder, name, deadline

    def __enter__(self) -> None:
        if fcntl is None:
            return
        self._file = os.open(self._folder, os.O_RDONLY)
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as e:
                if monotonic() >= self._deadline:
                    raise not_in_time(printable(self._name), 0.0) from e
                time.sleep(_PAUSE)

    def __exit__(self, *exc_info: object) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        self.__exit__()
