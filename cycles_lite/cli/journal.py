"""`cycles-lite journal`: look at unsettled spend on disk, and settle it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Iterator, NamedTuple, Sequence

from ..client import CyclesClient
from ..config import CyclesConfig
from ..errors import ConfigError, ValidationError
from ..runtime import system
from ..runtime.clock import now_ms
from ..settlement.flush import flush
from ..settlement.journal import (
    CORRUPT,
    PENDING,
    REFUSED,
    Journal,
    Record,
    file_name,
    identity_folders,
    normalised,
    read_file,
    usable_folder,
)
from ..settlement.settler import Settler
from . import bars
from .arguments import JSON, argument, command, group, seconds
from .output import DONE, WRONG, reason
from .table import Column, age, table
from .terminal import printable


def add_commands(commands: Any) -> None:
    text = "a journal's folder or its parent, also one that the SDK runcycles wrote; default: CYCLES_JOURNAL_DIR or "
    folder = argument("folder", nargs="?", metavar="DIR", help=text + "~/.cycles-lite/journal")
    id = argument("id", metavar="ID", help="the reservation's id, or the name of a file that cannot be read")
    timeout = argument(
        "--timeout", type=seconds(0), default=30, metavar="SECONDS", help="how long at the most; default: %(default)s"
    )
    to = argument("--to", metavar="URL", help="the server that has taken the place of the one they are owed to")
    actions = group(commands, "journal", "look at unsettled spend on disk, and settle it")
    text = "show every record: what is pending, what was refused, and what cannot be read (corrupt)"
    command(actions, "list", text, _list, folder, JSON)
    command(actions, "show", "show one record as it is on disk", _show, id, folder, JSON)
    text = "send a refused or repaired record again, to the configured server"
    command(actions, "retry", text, _retry, id, folder, timeout, JSON, also=[WRONG])
    text = "delete one record, which is shown once more: its spend is never settled then"
    command(actions, "discard", text, _discard, id, folder, JSON)
    text = "settle every record that is owed to the configured server"
    command(actions, "replay", text, _replay, to, folder, timeout, JSON, also=[WRONG])


def _folders(given: str | None) -> list[str]:
    """The folders with records, one for each server and tenant, in the given folder or the configured one."""
    try:
        if given is not None and not os.path.isdir(given):
            raise ConfigError(f"journal: there is no folder {given}")
        folder = given or usable_folder(os.environ.get("CYCLES_JOURNAL_DIR") or None)[0]
        return list(identity_folders(folder)) if os.path.isdir(folder) else []
    except OSError as e:
        raise ConfigError(f"journal: the folder cannot be read: {reason(e)}") from e


class _Entry(NamedTuple):
    """A file of a journal."""

    #: Where the file is.
    path: str
    #: The end of its name, which tells what has become of it.
    suffix: str
    #: What it holds; None for one that cannot be read.
    record: Record | None

    @property
    def state(self) -> str:
        """What has become of it: pending, refused or corrupt."""
        return _STATES[self.suffix]


_STATES = {PENDING: "pending", REFUSED: "refused", CORRUPT: "corrupt"}


def _entries(given: str | None) -> Iterator[_Entry]:
    """Every file of these folders; in each first the pending records, then those refused, then what is unreadable."""
    for folder in _folders(given):
        journal = Journal(folder)
        for suffix in (PENDING, REFUSED):
            for path, record in journal.peek(suffix).items():
                yield _Entry(path, suffix, record)
        for name in sorted(journal.names(CORRUPT)):
            yield _Entry(os.path.join(folder, name), CORRUPT, None)


def _find(arguments: Any) -> _Entry:
    """The record that a command names by its reservation's id or its file's name; one that cannot be read also by its
    file's path."""
    for entry in _entries(arguments.folder):
        if arguments.id in (entry.record.reservation_id if entry.record else entry.path, os.path.basename(entry.path)):
            return entry
    raise ValidationError(f"journal: there is no record of reservation {arguments.id}")


def _list(arguments: Any) -> None:
    entries = _entries(arguments.folder)
    for line in (_json(entry) for entry in entries) if arguments.json else table(_COLUMNS, map(_cells_of, entries)):
        print(line)


#: What `list` shows of each record. An id of the reference's length stays whole.
_COLUMNS = [
    Column("id", least=36),
    Column("state"),
    Column("amount", is_number=True),
    Column("age", is_number=True, goes=2),
    Column("mode", goes=3),
    Column("server", least=12, goes=1),
]


def _cells_of(entry: _Entry) -> Sequence[str]:
    record = entry.record
    if record is None:
        return os.path.basename(entry.path), entry.state, "", "", "", ""
    since = age(now_ms() - record.recorded_at_ms)
    return record.reservation_id, entry.state, _amount(record), since, record.mode, record.base_url


def _amount(record: Record) -> str:
    """What is to be settled. A record may come from another program, so that its amount may be anything."""
    actual = record.body.get("actual")
    if not isinstance(actual, dict) or type(actual.get("amount")) is not int:
        return "?"
    return bars.with_unit(actual["amount"], str(actual.get("unit")))


def _show(arguments: Any) -> None:
    _print(_find(arguments), arguments.json)


def _print(entry: _Entry, as_json: bool) -> None:
    """Show a record, as it is on disk. A terminal is shown what it does not obey."""
    if as_json:
        text = _json(entry)
    elif entry.record is not None:
        text = json.dumps(json.loads(entry.record.to_json().decode("ascii")), indent=2)
    else:
        text = read_file(entry.path).decode("utf-8", "backslashreplace")
        if sys.stdout.isatty():
            text = "\n".join(map(printable, text.split("\n")))
    print(text, flush=True)


def _json(entry: _Entry) -> str:
    """A record on a line, with its file and what has become of it; what cannot be read is its text."""
    told = {"file": entry.path, "state": entry.state}
    if entry.record is None:
        return json.dumps({**told, "text": read_file(entry.path).decode("utf-8", "backslashreplace")})
    return json.dumps({**told, **json.loads(entry.record.to_json().decode("ascii"))})


def _discard(arguments: Any) -> None:
    entry = _find(arguments)
    _print(entry, arguments.json)
    system.insist(os.unlink, entry.path)


def _retry(arguments: Any) -> int:
    entry = _find(arguments)
    if entry.suffix != PENDING:
        pending = entry.path[: -len(entry.suffix)] + PENDING
        if os.path.exists(pending):  # it is another spend, which would be lost
            raise ValidationError(f"journal: {pending} is pending under the same name: settle or discard that first")
        system.insist(os.replace, entry.path, pending)
    return _settle([os.path.dirname(entry.path)], arguments)


def _replay(arguments: Any) -> int:
    folders = _folders(arguments.folder)
    if arguments.to is None:
        return _settle(folders, arguments)
    CyclesConfig.from_env(base_url=arguments.to)  # it raises where this is no server, before a record is changed
    for journal in map(Journal, folders):
        for path, record in journal.peek().items():
            id, name = record.reservation_id, os.path.basename(path)
            is_first = name == file_name(id) or not journal.has(id)
            place = id if is_first else record.other_place  # what has the id's name may be other spend
            journal.write(record._replace(base_url=normalised(arguments.to)), place)
            if name != file_name(place):
                system.insist(os.unlink, path)
    return _settle(folders, arguments, base_url=arguments.to)


def _settle(folders: list[str], arguments: Any, **server: Any) -> int:
    """Settle what is in some folders, tell what is left, and return whether that is anything as a status."""
    with CyclesClient.from_env(journal_enabled=False, **server) as client:
        left = 0
        for folder in folders:
            settler = Settler(client._session, Journal(folder))
            left += flush(settler, arguments.timeout)
            settler.close()
    kept = sum(len(Journal(folder).names()) for folder in folders)
    refused = sum(entry.suffix == REFUSED for entry in _entries(arguments.folder))
    if arguments.json:
        print(json.dumps({"pending": left, "on_disk": kept, "refused": refused}))
        return WRONG if left or kept else DONE
    told = [f"{left} still pending", f"{kept} on disk"] if left or kept else ["everything is settled"]
    print(", ".join([*told, f"{refused} refused before or now (see journal list)"] if refused else told))
    return WRONG if left or kept else DONE
