"""`cycles-lite journal`: look at unsettled spend on disk, and settle it."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Iterator, NamedTuple

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
    identity_folders,
    normalised,
    read_file,
    usable_folder,
)
from ..settlement.settler import Settler
from . import bars
from .arguments import argument, command, group
from .output import DONE, WRONG, reason


def add_commands(commands: Any) -> None:
    text = "a journal's folder or its parent, also one that the SDK runcycles wrote; default: CYCLES_JOURNAL_DIR or "
    folder = argument("folder", nargs="?", metavar="DIR", help=text + "~/.cycles-lite/journal")
    id = argument("id", metavar="ID", help="the reservation's id, or the name of a file that cannot be read")
    timeout = argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default: %(default)s")
    to = argument("--to", metavar="URL", help="the server that has taken the place of the one they are owed to")
    actions = group(commands, "journal", "look at unsettled spend on disk, and settle it")
    text = "show every record: reservation, mode, amount, age, server; and what was refused, or cannot be read"
    command(actions, "list", text, _list, folder)
    command(actions, "show", "show one record as it is on disk", _show, id, folder)
    text = "send a refused or repaired record again, to the configured server"
    command(actions, "retry", text, _retry, id, folder, timeout)
    text = "delete one record, which is shown once more: its spend is never settled then"
    command(actions, "discard", text, _discard, id, folder)
    text = "settle every record that is owed to the configured server"
    command(actions, "replay", text, _replay, to, folder, timeout)


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
    #: What it holds; None for one that cannot be read.
    record: Record | None


def _entries(given: str | None) -> Iterator[_Entry]:
    """Every file of these folders; in each first the pending records, then those refused, then what is unreadable."""
    for folder in _folders(given):
        journal = Journal(folder)
        for suffix in (PENDING, REFUSED):
            for path, record in journal.peek(suffix).items():
                yield _Entry(path, record)
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*" + CORRUPT))):
            yield _Entry(path, None)


def _find(arguments: Any) -> _Entry:
    """The record that a command names by its reservation's id or its file's name; one that cannot be read also by its
    file's path."""
    for entry in _entries(arguments.folder):
        if arguments.id in (entry.record.reservation_id if entry.record else entry.path, os.path.basename(entry.path)):
            return entry
    raise ValidationError(f"journal: there is no record of reservation {arguments.id}")


def _list(arguments: Any) -> None:
    for path, record in _entries(arguments.folder):
        if record is None:
            print(f"{path}\tset aside, unreadable")
            continue
        age = (now_ms() - record.recorded_at_ms) / 1000
        row = [record.reservation_id, record.mode, _amount(record), f"{age:.0f} s", record.base_url]
        print("\t".join([*row, "refused"] if path.endswith(REFUSED) else row))


def _amount(record: Record) -> str:
    """What is to be settled. A record may come from another program, so that its amount may be anything."""
    actual = record.body.get("actual")
    if not isinstance(actual, dict) or type(actual.get("amount")) is not int:
        return "?"
    return bars.with_unit(actual["amount"], str(actual.get("unit")))


def _show(arguments: Any) -> None:
    print(_text(_find(arguments)))


def _text(entry: _Entry) -> str:
    if entry.record is None:
        return read_file(entry.path).decode("utf-8", "backslashreplace")
    return json.dumps(json.loads(entry.record.to_json().decode("ascii")), indent=2)


def _discard(arguments: Any) -> None:
    entry = _find(arguments)
    print(_text(entry), flush=True)
    system.insist(os.unlink, entry.path)


def _retry(arguments: Any) -> int:
    path = _find(arguments).path
    if not path.endswith(PENDING):
        system.insist(os.replace, path, os.path.splitext(path)[0] + PENDING)
    return _settle([os.path.dirname(path)], arguments)


def _replay(arguments: Any) -> int:
    folders = _folders(arguments.folder)
    if arguments.to is None:
        return _settle(folders, arguments)
    CyclesConfig.from_env(base_url=arguments.to)  # it raises where this is no server, before a record is changed
    for journal in map(Journal, folders):
        for path, record in journal.peek().items():
            if path == journal.path_of(record.reservation_id) or not journal.has(record.reservation_id):
                journal.write(record._replace(base_url=normalised(arguments.to)))
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
    refused = sum(path.endswith(REFUSED) for path, _ in _entries(arguments.folder))
    told = [f"{left} still pending", f"{kept} on disk"] if left or kept else ["everything is settled"]
    print(", ".join([*told, f"{refused} refused before or now (see journal list)"] if refused else told))
    return WRONG if left or kept else DONE
