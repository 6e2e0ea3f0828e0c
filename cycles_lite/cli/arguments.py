"""What the commands have in common: how one is declared, what its arguments mean, and which budget file it is about."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Callable, Tuple

from ..errors import ConfigError, ValidationError
from ..local import Authority
from ..local.location import Location
from ..local.scopes import budget_scope
from ..protocol.values import SUBJECT_LEVELS, Action, Amount, Caps, Unit
from ..protocol.wire import loads

Argument = Tuple[Tuple[str, ...], Any]


def argument(*names: str, **settings: Any) -> Argument:
    """What `ArgumentParser.add_argument` takes, kept until a command is declared that has this argument."""
    return names, settings


def command(commands: Any, name: str, text: str, run: Callable[[Any], object], *given: Argument, **more: Any) -> None:
    """Declare a command, or an action of a group. `run` gets the parsed arguments and returns the exit status; one that
    returns None is done."""
    parser = commands.add_parser(name, help=text, description=text, **more)
    for names, settings in given:
        parser.add_argument(*names, **settings)
    parser.set_defaults(run=run)


def group(commands: Any, name: str, text: str) -> Any:
    """Declare a command that has actions; `command` declares each of them in what is returned."""
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(dest="action", metavar="ACTION", required=True)


# ---- What the text of an argument means ----


def amount(text: str) -> Amount:
    """`UNIT:AMOUNT`, such as TOKENS:100000; for money also `USD:0.50`."""
    unit, colon, number = text.strip().partition(":")
    unit = unit.upper()
    try:
        if unit == "USD" and colon:
            return Amount.usd(number)
        if unit in Unit.__members__ and re.match(r"[0-9]+\Z", number):
            return Amount(Unit[unit], int(number))
    except ValidationError as e:
        raise argparse.ArgumentTypeError(e.message) from e
    units = ", ".join(Unit.__members__)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not UNIT:AMOUNT, such as TOKENS:100000; units: {units}, and USD:0.50"
    )


def unit(text: str) -> str:
    """The name of a unit."""
    if text.upper() not in Unit.__members__:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(Unit.__members__)}")
    return text.upper()


def action(text: str) -> Action:
    """`KIND:NAME`, such as tool.email:send."""
    kind, _, name = text.partition(":")
    try:
        return Action(kind, name)
    except ValidationError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND:NAME, such as tool.email:send: {e.message}") from e


def scope(text: str) -> str:
    """A budget's scope, such as tenant:acme/agent:bot."""
    try:
        return budget_scope(text.strip())
    except ValidationError as e:
        raise argparse.ArgumentTypeError(e.message) from e


def caps(text: str) -> Caps:
    """The protocol's `Caps` as JSON, such as {"max_tokens": 500}."""
    try:
        return Caps.parse(loads(text.encode("utf-8", "surrogateescape")), "caps")
    except ValueError as e:  # bad JSON, and our ValidationError
        raise argparse.ArgumentTypeError(f'{text!r} is not caps in JSON, such as {{"max_tokens": 500}}: {e}') from e


def for_scopes(name: str, value: Callable[[str], Any], shape: str, example: str, what: str) -> Argument:
    """An option that may be repeated and gives a value to a scope each time, as in `--caps SCOPE=JSON`."""

    def pair(text: str) -> tuple[str, Any]:
        where, equals, rest = text.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not {shape}, such as {example}")
        return scope(where), value(rest)

    told = f"{what}, such as {example}; may be repeated"
    return argument(name, action="append", default=[], type=pair, metavar=shape, help=told)


# ---- Arguments of several commands ----

JSON = argument("--json", action="store_true", help="one JSON object a line")

#: The six levels, as filters or as a subject.
LEVELS = [
    argument("--" + level, help=f"the {level}; default: CYCLES_{level.upper()}, where it applies")
    for level in SUBJECT_LEVELS
]


def levels(arguments: Any) -> dict[str, Any]:
    """The levels that were given."""
    return {level: value for level, value in vars(arguments).items() if level in SUBJECT_LEVELS and value is not None}


DB = argument(
    "--db", metavar="PATH", help="the budget file, or a sqlite: URL; default: CYCLES_BASE_URL where that is one"
)


def authority(arguments: Any, create: bool = False) -> Authority:
    """The authority on the budget file that a command with `DB` is about; `create` allows it to make that file."""
    given = arguments.db if arguments.db is not None else os.environ.get("CYCLES_BASE_URL", "")
    if given.startswith("sqlite:"):
        return Authority(given, create=create)
    if arguments.db is None or not given:
        raise ConfigError("which budget file? Name it with --db PATH, or set CYCLES_BASE_URL to a sqlite: URL")
    return Authority(Location(os.path.abspath(given)).url, create=create)
