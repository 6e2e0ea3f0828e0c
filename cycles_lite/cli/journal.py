"""`cycles-lite journal`: look at unsettled spend on disk, and settle it."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Iterator, NamedTuple

from ..client import CyclesClient
from ..errors import ConfigError, ValidationError
from ..runtime.clock import now_ms
from ..settlement.flush import flush
from ..settlement.journal import CORRUPT, PENDING, REFUSED, Journal, Record, identity_folders, normalised, usable_folder
from ..settlement.settler import Settler
from . import bars
from .statuses import DONE, WRONG
from .streams import reason


def add_command(commands: Any) -> None:
    text = "look at unsettled spend on disk, and settle it"
    group = commands.add_parser("journal", help=text, description=text)
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "show every record: reservation, mode, amount, age, server; and what was refused, or cannot be read"
    _add_folder(_action(actions, "list", text, _list))
    _add_id(_action(actions, "show", "show one record as it is on disk", _show))
    text = "send a refused or repaired record again, to the configured server"
    _add_timeout(_add_id(_action(actions, "retry", text, _retry)))
    text = "delete one record, which is shown once more: its spend is never settled then"
    _add_id(_action(actions, "discard", text, _discard))
    parser = _action(actions, "replay", "settle every record that is owed to the configured server", _replay)
    parser.add_argument("--to", metavar="URL", help="the server that has taken the place of the one they are owed to")
    _add_timeout(_add_folder(parser))


def _action(actions: Any, name: str, text: str, run: Any) -> Any:
    parser = actions.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_folder(parser: Any) -> Any:
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="a journal's folder or its parent, also one that the SDK runcycles wrote; default: CYCLES_JOURNAL_DIR or "
        "~/.cycles-lite/journal",
    )
    return parser


def _add_id(parser: Any) -> Any:
    parser.add_argument("id", metavar="ID", help="the reservation's id, or the name of a file that cannot be read")
    return _add_folder(parser)


def _add_timeout(parser: Any) -> None:
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default: %(default)s")


def _folders(given: str | None) -> list[str]:
    """The identity folders to look at."""
    try:
        if given is not None and not os.path.isdir(given):
            raise ConfigError(f"journal: there is no folder {given}")
        folder = given or usable_folder(os.environ.get("CYCLES_JOURNAL_DIR") or None)[0]
        return list(identity_folders(folder)) if os.path.isdir(folder) else []
    except OSError as e:
        raise ConfigError(f"journal: the folder cannot be read: {reason(e)}") from e


class _Entry(NamedTuple):
    """A file of a journal."""

    path: str
    #: What it holds; None for one that cannot be read.
    record: Record | None

    @property
    def is_refused(self) -> bool:
        return self.path.endswith(REFUSED)

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which the command line knows this record: its id, or its file's name or path."""
        name = os.path.basename(self.path)
        return (self.record.reservation_id, name) if self.record else (name, self.path)


def _entries(given: str | None) -> Iterator[_Entry]:
    """Every file: what is pending first, then what was refused, then what cannot be read."""
    for folder in _folders(given):
        journal = Journal(folder)
        for suffix in (PENDING, REFUSED):
            for record in journal.peek(suffix):
                yield _Entry(journal.path_of(record.reservation_id, suffix), record)
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*" + CORRUPT))):
            yield _Entry(path, None)


def _find(arguments: Any) -> _Entry:
    for entry in _entries(arguments.folder):
        if arguments.id in entry.names:
            return entry
    raise ValidationError(f"journal: there is no record of reservation {arguments.id}")


def _list(arguments: Any) -> int:
    for path, record in _entries(arguments.folder):
        if record is None:
            print(f"{path}\tset aside, unreadable")
            continue
        age = (now_ms() - record.recorded_at_ms) / 1000
        row = [record.reservation_id, record.mode, _amount(record), f"{age:.0f} s", record.base_url]
        print("\t".join([*row, "refused"] if path.endswith(REFUSED) else row))
    return DONE


def _amount(record: Record) -> str:
    actual = record.body.get("actual")
    if not isinstance(actual, dict) or type(actual.get("amount")) is not int:
        return "?"
    return f"{bars.shown(actual['amount'], str(actual.get('unit')))} {bars.name(str(actual.get('unit')))}"


def _show(arguments: Any) -> int:
    print(_text(_find(arguments)))
    return DONE


def _text(entry: _Entry) -> str:
    if entry.record is None:
        with open(entry.path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    return json.dumps(json.loads(entry.record.to_json().decode("ascii")), indent=2)


def _discard(arguments: Any) -> int:
    entry = _find(arguments)
    print(_text(entry), flush=True)
    os.unlink(entry.path)
    return DONE


def _retry(arguments: Any) -> int:
    entry = _find(arguments)
    if not entry.path.endswith(PENDING):
        os.replace(entry.path, os.path.splitext(entry.path)[0] + PENDING)
    return _settle([os.path.dirname(entry.path)], arguments)


def _replay(arguments: Any) -> int:
    folders = _folders(arguments.folder)
    if arguments.to is not None:
        for journal in map(Journal, folders):
            for record in journal.peek():
                journal.write(record._replace(base_url=normalised(arguments.to)))
    return _settle(folders, arguments)


def _settle(folders: list[str], arguments: Any) -> int:
    """Settle what is in some folders; what is left is said, and is the status."""
    to: Any = {"base_url": arguments.to} if getattr(arguments, "to", None) else {}
    with CyclesClient.from_env(journal_enabled=False, **to) as client:
        left = 0
        for folder in folders:
            settler = Settler(client.session, Journal(folder))
            left += flush(settler, arguments.timeout)
            settler.close()
    kept = sum(len(Journal(folder).names()) for folder in folders)
    refused = sum(entry.is_refused for entry in _entries(arguments.folder))
    told = [f"{left} still pending", f"{kept} on disk"] if left or kept else ["everything is settled"]
    print(", ".join([*told, f"{refused} refused before or now (see journal list)"] if refused else told))
    return WRONG if left or kept else DONE
