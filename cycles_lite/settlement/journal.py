"""Unsettled spend on disk: one file per reservation, written before its commit leaves, removed when it is settled.

    <journal_dir>/<identity>/v2-<sha256 of the reservation id>.json

The identity keeps servers and tenants apart. A record is the JSON that the official SDKs write too, so that each can
settle what the other left behind; no API key is in it. Files come into being by a rename, so that a reader sees the
whole record or none. What the authority refused for good, and what cannot be read, is set aside under another suffix.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, Callable, Container, Iterator, NamedTuple

from ..protocol.checks import INT64_MAX
from ..protocol.wire import dumps, loads
from ..runtime import system
from ..runtime.system import insist

VERSION = 1
COMMIT, EVENT = "commit", "event"

#: What a record's name ends in: while it waits to be settled; once the authority has refused it for good; and where it
#: cannot be read.
PENDING, REFUSED, CORRUPT = ".json", ".refused", ".corrupt"

#: What is read where a record has to wait until other spend of its reservation is settled.
WAITS = ""

#: How many bytes of a record are read at once. Nearly all records have fewer.
_PIECE = 64 * 1024

#: How many files of a folder a glance at it sees.
_GLANCE = 64

#: A temporary file that is older, in seconds, was left by a writer that died.
_STALE_AFTER = 3600.0


class Record(NamedTuple):
    """Spend that is known and not yet settled."""

    reservation_id: str
    #: The server that the spend is owed to, normalised.
    base_url: str
    #: `commit`, or `event` once the reservation has expired or never was.
    mode: str
    commit_body: dict[str, Any] | None
    event_fallback_body: dict[str, Any] | None
    recorded_at_ms: int
    #: No request before this time, in milliseconds since the epoch: a 429's Retry-After.
    not_before_ms: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """What to send in the record's mode."""
        return (self.commit_body if self.mode == COMMIT else self.event_fallback_body) or {}

    @property
    def key(self) -> Any:
        """The idempotency key, which tells one spend from another of the same reservation."""
        return self.body.get("idempotency_key")

    @property
    def other_place(self) -> str:
        """Where it is while other spend of the reservation waits in the place that the id names."""
        return f"{self.reservation_id}\n{self.key}"

    def to_json(self) -> bytes:
        return dumps({"version": VERSION, **self._asdict()})

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """The record in a file. Raises `ValueError` that says why it is none of this version's."""
        data = loads(text)
        if not isinstance(data, dict):
            raise ValueError("not an object")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ValueError(f"version {data.get('version')!r:.40}, not {VERSION}")
        for name, is_legal in _LEGAL.items():
            if not is_legal(data.get(name)):
                raise ValueError(f"{name} is {data.get(name)!r:.40}")
        values: Any = [data.get(name) for name in cls._fields]
        record = cls(*values)
        if not record.body:
            raise ValueError(f"no body for mode {record.mode}")
        record.to_json()  # a number that is no JSON once it was read, such as 1e400, can be neither sent nor written
        return record


def _is_body(value: Any) -> bool:
    """Whether a body can be sent at all. The authority says what else is wrong with it."""
    if value is None:
        return True
    return isinstance(value, dict) and all(isinstance(value.get(name, {}), dict) for name in ("actual", "estimate"))


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT64_MAX


#: What each field of a record may be.
_LEGAL: dict[str, Callable[[Any], bool]] = {
    "reservation_id": lambda value: isinstance(value, str) and value != "",
    "base_url": lambda value: isinstance(value, str),
    "mode": lambda value: value in (COMMIT, EVENT),
    "commit_body": _is_body,
    "event_fallback_body": _is_body,
    "recorded_at_ms": _is_time,
    "not_before_ms": lambda value: value is None or _is_time(value),
}


def file_name(reservation_id: str, suffix: str = PENDING) -> str:
    """The name of a reservation's file, which no other reservation has."""
    return "v2-" + hashlib.sha256(reservation_id.encode("utf-8", "surrogatepass")).hexdigest() + suffix


def normalised(base_url: str) -> str:
    """A base URL in the form that records and identities have, which is the same for every spelling of a server's."""
    return base_url.strip().rstrip("/")


def identity(base_url: str, tenant: str | None, api_key: str | None) -> str:
    """The folder of one server and tenant; without a tenant, of the key, through a slow one-way hash.

    A tenant's folder stays the same when its key is rotated.
    """
    if tenant or not api_key:
        text = f"{normalised(base_url)}\n{tenant or ''}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return _identity_of_key(normalised(base_url), api_key)


@lru_cache(maxsize=256)
def _identity_of_key(base_url: str, api_key: str) -> str:
    """The identity that stands for a key. It is remembered, because programs may make a client for each request."""
    salt = ("cycles-lite journal\n" + base_url).encode("utf-8", "surrogatepass")
    return hashlib.pbkdf2_hmac("sha256", api_key.encode("utf-8"), salt, 20_000).hex()[:32]


class Journal:
    """The records of one identity folder. Every method raises `OSError` for what the disk refuses."""

    def __init__(self, folder: str, fsync: bool = False) -> None:
        self.folder = folder
        self._fsync = fsync
        self._written = 0
        #: The temporary files of records that could not get their names yet, by their places.
        self._unnamed: dict[str, str] = {}

    def write(self, record: Record, place: str | None = None) -> None:
        """Put the record on disk, over an earlier one of the same spend. Its place is the reservation's id, or its
        `other_place`."""
        place = place or record.reservation_id
        target = self.path_of(place)
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
            self._name(place, temporary)
        except BaseException:
            _remove(temporary)
            raise
        if self._fsync:
            _sync_folder(self.folder)

    def _name(self, place: str, temporary: str) -> None:
        """Give a whole record its name.

        Windows refuses that while another program has one of the two files open. Where there is an older record of the
        same spend, that one must do. Else the file is left as it is: some later look finds it (see `tidy`).
        """
        older = self._unnamed.pop(place, None)
        try:
            insist(os.replace, temporary, self.path_of(place))
        except PermissionError:
            if not system.WINDOWS or self.has(place):
                raise
            self._unnamed[place] = temporary
        if older is not None and older != temporary:
            with suppress(OSError):
                _remove(older)

    def _file_of(self, place: str) -> str:
        """The file of the record at a place. Where it has no name yet, it is tried again to give it one."""
        temporary = self._unnamed.get(place)
        if temporary is not None:
            with suppress(OSError):
                self._name(place, temporary)
        return self._unnamed.get(place) or self.path_of(place)

    def remove(self, place: str) -> bool:
        """Remove the record of settled spend. Returns whether it was there: of several processes that have settled it,
        one is told so."""
        return _remove(self._file_of(place))

    def has(self, place: str) -> bool:
        """Whether the record at a place is still there: nobody has settled it meanwhile."""
        return os.path.exists(self.path_of(place))

    def refuse(self, place: str) -> None:
        """Set a record aside that the authority has refused for good. It is never deleted, and never sent again."""
        try:
            insist(os.replace, self._file_of(place), _unused(self.path_of(place, REFUSED), REFUSED))
        except FileNotFoundError:  # another process was refused too, and has set it aside
            return

    def path_of(self, place: str, suffix: str = PENDING) -> str:
        """The file of spend by its place, also once it was set aside."""
        return self.folder + os.sep + file_name(place, suffix)

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
        except FileNotFoundError:  # nothing was ever written to it
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
        same spend's record. `WAITS` where that has other spend of the reservation."""
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
        """Give a record its reservation's own name: in an older naming scheme two ids could share one. None where that
        name is taken by a newer record of the same spend, and this one goes; `WAITS` where other spend of the
        reservation has it. A sentence where the file of that name is no record: it is set aside, and a later look
        takes this one up."""
        standard = self.path_of(record.reservation_id)
        try:
            is_same = Record.from_json(read_file(standard)).key == record.key
        except FileNotFoundError:
            insist(os.replace, path, standard)
            return record
        except ValueError as e:
            return _quarantine(standard, str(e))
        if not is_same:
            return WAITS
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


def tidy(path: str) -> None:
    """Remove the temporary file of a writer that died. A whole record gets its name, because its spend is known; where
    there is one of that name, the next look compares them (see `Journal.read`)."""
    try:
        if time.time() - os.stat(path).st_mtime <= _STALE_AFTER:
            return
        with suppress(ValueError):
            name = file_name(Record.from_json(read_file(path)).reservation_id)
            standard = os.path.join(os.path.dirname(path), name)
            os.replace(path, path + PENDING if os.path.exists(standard) else standard)
            return
        os.unlink(path)
    except OSError:  # it is gone, or not ours to touch
        return


def _unused(path: str, suffix: str) -> str:
    """A path to set a record aside at. Where there is one already it may be of other spend, and must stay."""
    stem, tries = path[: -len(suffix)], 1
    while os.path.lexists(path):
        tries += 1
        path = f"{stem}-{tries}{suffix}"
    return path


def _quarantine(path: str, why: str) -> str:
    aside = _unused(path[: -len(PENDING)] + CORRUPT, CORRUPT)
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
