"""Unsettled spend on disk: one file per reservation, written before its commit leaves, removed when it is settled.

    <journal_dir>/<identity>/v2-<sha256 of the reservation id>.json

Files come into being by a rename, so that a reader sees the whole record or none. What the authority refused for good,
and what cannot be read, is set aside under another suffix (see `record`).
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
import weakref
from contextlib import suppress
from typing import Container, Iterator

from ..runtime import system
from ..runtime.system import insist
from .record import CORRUPT, PENDING, REFUSED, Record, file_name


class Claim:
    """The claim of one process on a folder's records, which lasts until it is closed or nobody refers to it any more.

    Without it nothing would break, because records are sent with their own keys; it saves a fleet of workers that start
    together from all sending the same.
    """

    def __init__(self, folder: str) -> None:
        #: The open lock file, in a list from which exactly one caller pops it to close it.
        self._file: list[int] = []
        #: Whether this process has the claim. Somebody else may have it, or there is no such folder.
        self.is_ours = False
        try:
            self._file.append(os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o600))
        except FileNotFoundError:
            return
        _claims[id(self)] = self
        self.is_ours = _lock(self._file[0])

    def close(self) -> None:
        """Let others have the claim."""
        self.is_ours = False
        try:
            file = self._file.pop()
        except IndexError:  # it was closed before, perhaps because this is a forked child
            return
        os.close(file)

    __del__ = close


#: The claims that this process has at the moment, by their `id`.
_claims: weakref.WeakValueDictionary[int, Claim] = weakref.WeakValueDictionary()


def _forget_claims() -> None:
    """Close the claims' files in a forked child; else its parent's claims would last as long as the child lives."""
    for held in _claims.valuerefs():
        claim = held()
        if claim is not None:
            claim.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_claims)

#: How many bytes of a record are read at once. Nearly all records have fewer.
_PIECE = 64 * 1024

#: How many files of a folder a glance at it sees.
_GLANCE = 64

#: A temporary file that is older, in seconds, was left by a writer that died.
_STALE_AFTER = 3600.0


class Journal:
    """The records of one identity folder. Every method raises `OSError` for what the disk refuses."""

    def __init__(self, folder: str, fsync: bool = False) -> None:
        self.folder = folder
        self._fsync = fsync
        self._written = 0
        #: The temporary files of records that could not get their names yet, by reservation id.
        self._unnamed: dict[str, str] = {}

    def write(self, record: Record) -> None:
        """Put the record on disk, over one of the same reservation."""
        target = self.path_of(record.reservation_id)
        self._written += 1
        temporary = f"{target}.{os.getpid()}-{self._written}-{os.urandom(4).hex()}.tmp"
        left = memoryview(record.to_json())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            try:
                file = os.open(temporary, flags, 0o600)
            except FileNotFoundError:
                make_private(self.folder)
                file = os.open(temporary, flags, 0o600)
            try:
                while left:
                    left = left[os.write(file, left) :]
                if self._fsync:
                    system.sync(file)
            finally:
                os.close(file)
            self._name(record.reservation_id, temporary)
        except BaseException:
            _remove(temporary)
            raise
        if self._fsync:
            _sync_folder(self.folder)

    def _name(self, reservation_id: str, temporary: str) -> None:
        """Give a whole record its name.

        Windows refuses that while another program has one of the two files open. Where there is an older record of the
        same spend, that one must do. Else the file is left as it is: some later look finds it (see `tidy`).
        """
        older = self._unnamed.pop(reservation_id, None)
        try:
            insist(os.replace, temporary, self.path_of(reservation_id))
        except PermissionError:
            if not system.WINDOWS or self.has(reservation_id):
                raise
            self._unnamed[reservation_id] = temporary
        if older is not None and older != temporary:
            with suppress(OSError):
                _remove(older)

    def _file_of(self, reservation_id: str) -> str:
        """The file with a reservation's record. Where it has no name yet, it is tried again to give it one."""
        temporary = self._unnamed.get(reservation_id)
        if temporary is not None:
            with suppress(OSError):
                self._name(reservation_id, temporary)
        return self._unnamed.get(reservation_id) or self.path_of(reservation_id)

    def remove(self, reservation_id: str) -> bool:
        """Remove the record of settled spend. Returns whether it was there: of several processes that have settled it,
        one is told so."""
        return _remove(self._file_of(reservation_id))

    def has(self, reservation_id: str) -> bool:
        """Whether a reservation's record is still there: nobody has settled it meanwhile."""
        return os.path.exists(self.path_of(reservation_id))

    def refuse(self, reservation_id: str) -> None:
        """Set a record aside that the authority has refused for good. It is never deleted, and never sent again."""
        try:
            insist(os.replace, self._file_of(reservation_id), self.path_of(reservation_id, REFUSED))
        except FileNotFoundError:  # another process was refused too, and has set it aside
            return

    def path_of(self, reservation_id: str, suffix: str = PENDING) -> str:
        """The file of a reservation, also once it was set aside."""
        return self.folder + os.sep + file_name(reservation_id, suffix)

    def names(self, suffix: str = PENDING) -> set[str]:
        """The names of the records' files. Reads the folder, and no file."""
        try:
            with os.scandir(self.folder) as entries:
                return {entry.name for entry in entries if entry.name.endswith(suffix)}
        except FileNotFoundError:
            return set()

    def has_neighbours(self) -> bool:
        """Whether there are journals of other identities beside this one."""
        parent, own = os.path.split(self.folder)
        try:
            with os.scandir(parent) as entries:
                return any(entry.name != own and _is_folder(entry) for entry in entries)
        except OSError:
            return False

    def peek(self, suffix: str = PENDING) -> dict[str, Record]:
        """The readable records by their files, the oldest first. No file is changed or moved."""
        found = {}
        for path in [os.path.join(self.folder, name) for name in sorted(self.names(suffix))]:
            try:
                found[path] = Record.from_json(read_file(path))
            except (OSError, ValueError):  # it was settled meanwhile, or is no record
                continue
        return dict(sorted(found.items(), key=lambda entry: entry[1].recorded_at_ms))

    def glance(self) -> set[str] | None:
        """The names of the records' files; None where there are more files in the folder than a glance sees."""
        found = set()
        try:
            with os.scandir(self.folder) as entries:
                for seen, entry in enumerate(entries):
                    if seen >= _GLANCE:
                        return None
                    if entry.name.endswith(PENDING):
                        found.add(entry.name)
        except FileNotFoundError:
            pass
        return found

    def count(self, known: Container[str] = ()) -> int:
        """How many records there are whose file is not `known`. Reads the folder, and no file."""
        try:
            with os.scandir(self.folder) as entries:
                return sum(entry.name.endswith(PENDING) and entry.name not in known for entry in entries)
        except FileNotFoundError:
            return 0

    def read(self, name: str) -> Record | str | None:
        """The record in a file, or a sentence where there is none in it: what is malformed is set aside, what cannot be
        read is left. None where another process has settled it meanwhile, or where a file of the standard name has the
        same reservation's record."""
        path = os.path.join(self.folder, name)
        try:
            record = Record.from_json(read_file(path))
            return record if name == file_name(record.reservation_id) else self._migrate(path, record)
        except FileNotFoundError:
            return None
        except OSError as e:  # it is a folder, a pipe or somebody else's; the others are read all the same
            return f"journal record {path} cannot be read: {e}"
        except ValueError as e:
            return _quarantine(path, str(e))

    def _migrate(self, path: str, record: Record) -> Record | str | None:
        """Give a record of an older naming scheme its own name: two ids that shared a name no longer do. None where the
        reservation has a record of that name, which is newer, so that this one goes. A sentence where the file of that
        name is none: it is set aside, and a later look takes this one up."""
        standard = self.path_of(record.reservation_id)
        try:
            Record.from_json(read_file(standard))
        except FileNotFoundError:
            insist(os.replace, path, standard)
            return record
        except ValueError as e:
            return _quarantine(standard, str(e))
        _remove(path)
        return None


def _remove(path: str) -> bool:
    try:
        insist(os.unlink, path)
    except FileNotFoundError:  # another process, with the same key, was first
        return False
    return True


def read_file(path: str) -> bytes:
    """The content of a record's file. Should it be a pipe, this does not wait for a writer."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError("it is not a regular file")
        pieces = [os.read(file, _PIECE)]
        while pieces[-1]:
            pieces.append(os.read(file, _PIECE))
        return b"".join(pieces)
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Lock a file, unless somebody else has: then False. Where the system has no locks everybody is let through, which
    does no harm (see `Claim`)."""
    try:
        return system.lock(file)
    except OSError:
        return True


def tidy(path: str) -> None:
    """Remove the temporary file of a writer that died. A whole record gets its name, because its spend is known."""
    try:
        if time.time() - os.stat(path).st_mtime <= _STALE_AFTER:
            return
        with suppress(ValueError):
            name = file_name(Record.from_json(read_file(path)).reservation_id)
            standard = os.path.join(os.path.dirname(path), name)
            if not os.path.exists(standard):
                os.replace(path, standard)
                return
        os.unlink(path)
    except OSError:  # it is gone, or not ours to touch
        return


def _quarantine(path: str, why: str) -> str:
    aside = path[: -len(PENDING)] + CORRUPT
    try:
        insist(os.replace, path, aside)
    except OSError as e:
        return f"journal record {path} cannot be read ({why}) nor set aside ({e})"
    return f"journal record set aside as {aside}: {why}"


def _sync_folder(folder: str) -> None:
    """Make a rename durable, where folders can be synced."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        system.sync(file)
    finally:
        os.close(file)


def make_private(folder: str) -> None:
    """Make a folder and its missing parents, for this user alone."""
    parent = os.path.dirname(folder)
    if parent and not os.path.isdir(parent):
        make_private(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return


def usable_folder(wanted: str | None) -> tuple[str, str | None]:
    """The folder for the identity folders, and a sentence to log where it is not the default one.

    A folder that the user names is taken as it is. The default one, `~/.cycles-lite/journal`, may lie in a home that is
    read-only, as on Lambda, or unknown: then it is a folder of ours below the temporary one. Raises `OSError` where
    that is somebody else's.
    """
    if wanted is not None:
        return os.path.abspath(os.path.expanduser(wanted)), None
    try:
        home = os.path.expanduser("~")
        if not os.path.isabs(home):  # there is no HOME, and the system does not know the user either
            raise FileNotFoundError(errno.ENOENT, "the home folder is not known")
        folder = os.path.join(home, ".cycles-lite", "journal")
        make_private(folder)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder, None
        reason = f"{folder} is not writable"
    except OSError as e:
        reason = f"{e.strerror or e}: {e.filename}" if e.filename else str(e.strerror or e)
    fallback = _temporary_folder()
    return fallback, f"the journal is in {fallback}: {reason}"


def _temporary_folder() -> str:
    folder = os.path.join(tempfile.gettempdir(), f"cycles-lite-{system.user_id()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not system.is_private(os.lstat(folder)):
            raise PermissionError(f"{folder} is not a folder of this user that is closed to all others") from None
    return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself, which must not hide the folders beside it
        return False


def identity_folders(folder: str) -> Iterator[str]:
    """The folder itself where it holds records, or what was set aside, and those of its folders that do."""
    for candidate in [folder, *sorted(entry.path for entry in os.scandir(folder) if _is_folder(entry))]:
        if any(name.endswith((PENDING, REFUSED, CORRUPT)) for name in os.listdir(candidate)):
            yield candidate
