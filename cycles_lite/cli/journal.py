"""`cycles-lite journal`: look at unsettled spend on disk, and settle it."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Iterator

from ..client import CyclesClient
from ..clock import now_ms
from ..errors import ConfigError, ValidationError
from ..flush import flush
from ..journal import Journal, Record, identity_folders, usable_folder
from ..settler import Settler
from . import bars
from .statuses import DONE, WRONG
from .streams import reason


def add_command(commands: Any) -> None:
    text = "look at unsettled spend on disk, and settle it"
    group = commands.add_parser("journal", help=text, description=text)
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_folder(_action(actions, "list", "show every record: reservation, mode, amount, age, server", _list))
    parser = _action(actions, "show", "show one record as it is on disk", _show)
    parser.add_argument("reservation_id", metavar="ID", help="the reservation's id")
    _add_folder(parser)
    parser = _action(actions, "replay", "settle every record that is owed to the configured server", _replay)
    _add_folder(parser)
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default: %(default)s")


def _action(actions: Any, name: str, text: str, run: Any) -> Any:
    parser = actions.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_folder(parser: Any) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="a journal's folder or its parent, also one that the SDK runcycles wrote; default: CYCLES_JOURNAL_DIR or "
        "~/.cycles-lite/journal",
    )


def _folders(given: str | None) -> list[str]:
    """The identity folders to look at."""
    try:
        if given is not None and not os.path.isdir(given):
            raise ConfigError(f"journal: there is no folder {given}")
        folder = given or usable_folder(os.environ.get("CYCLES_JOURNAL_DIR") or None)[0]
        return list(identity_folders(folder)) if os.path.isdir(folder) else []
    except OSError as e:
        raise ConfigError(f"journal: the folder cannot be read: {reason(e)}") from e


def _records(given: str | None) -> Iterator[Record]:
    for folder in _folders(given):
        yield from Journal(folder).peek()


def _list(arguments: Any) -> int:
    for record in _records(arguments.folder):
        age = (now_ms() - record.recorded_at_ms) / 1000
        print("\t".join((record.reservation_id, record.mode, _amount(record), f"{age:.0f} s", record.base_url)))
    for folder in _folders(arguments.folder):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.corrupt"))):
            print(f"{path}\tset aside, unreadable")
    return DONE


def _amount(record: Record) -> str:
    actual = record.body.get("actual")
    if not isinstance(actual, dict) or type(actual.get("amount")) is not int:
        return "?"
    return f"{bars.shown(actual['amount'], str(actual.get('unit')))} {bars.name(str(actual.get('unit')))}"


def _show(arguments: Any) -> int:
    for record in _records(arguments.folder):
        if record.reservation_id == arguments.reservation_id:
            print(json.dumps(json.loads(record.to_json().decode("ascii")), indent=2))
            return DONE
    raise ValidationError(f"journal: there is no record of reservation {arguments.reservation_id}")


def _replay(arguments: Any) -> int:
    folders = _folders(arguments.folder)
    with CyclesClient.from_env(journal_enabled=False) as client:
        left = 0
        for folder in folders:
            settler = Settler(client, Journal(folder))
            left += flush(settler, arguments.timeout)
            settler.close()
    kept = sum(1 for _ in _records(arguments.folder))
    print(f"{left} still pending, {kept} on disk" if left or kept else "everything is settled")
    return WRONG if left or kept else DONE
