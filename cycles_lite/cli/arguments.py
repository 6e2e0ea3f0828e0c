"""What the commands have in common: how one is declared, what its arguments mean, and which budget file it is about."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Callable, Sequence, Tuple, TypeVar

from .. import config
from ..errors import ConfigError
from ..local import Authority
from ..local.location import Location
from ..local.periods import read_anchor, read_period
from ..local.scopes import budget_scope
from ..protocol.checks import shown
from ..protocol.values import SUBJECT_LEVELS, Action, Amount, Caps, Unit
from ..protocol.wire import loads
from . import output

T = TypeVar("T")

#: What `add_argument` is called with: the names, and the rest by keyword.
Argument = Tuple[Tuple[str, ...], Any]


def argument(*names: str, **settings: Any) -> Argument:
    """What `ArgumentParser.add_argument` takes, kept until a command is declared that has this argument."""
    return names, settings


def command(
    commands: Any,
    name: str,
    text: str,
    run: Callable[[Any], object],
    *given: Argument,
    also: Sequence[object] = (),
    **more: Any,
) -> None:
    """Declare a command, or an action of a group. `run` gets the parsed arguments and returns the exit status; one that
    returns None is done. `also` are the exit statuses in `output.COMMON` that not every command has."""
    parser = commands.add_parser(name, help=text, description=text, **{**output.epilog(output.common(*also)), **more})
    for names, settings in given:
        parser.add_argument(*names, **settings)
    parser.set_defaults(run=run)


def group(commands: Any, name: str, text: str) -> Any:
    """Declare a command that has actions; `command` declares each of them in what is returned."""
    parser = commands.add_parser(name, help=text, description=text, formatter_class=output.Help)
    return parser.add_subparsers(dest="action", metavar="ACTION", required=True)


# ---- What the text of an argument means ----


def _taking(shape: str = "") -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Let the function that reads an argument tell `argparse` what is wrong with what it got, and what it takes unless
    its own errors say that."""

    def decorate(read: Callable[[str], T]) -> Callable[[str], T]:
        def reading(text: str) -> T:
            try:
                return read(text)
            except ValueError as e:  # bad JSON, no member of an enumeration, and our ValidationError
                raise argparse.ArgumentTypeError(f"{shown(text)} is not {shape}: {e}" if shape else str(e)) from e

        return reading

    return decorate


@_taking(f"UNIT:AMOUNT, such as TOKENS:100000 or USD:0.50 (units: {', '.join(Unit.__members__)}, USD)")
def amount(text: str) -> Amount:
    unit, colon, number = text.strip().partition(":")
    if not colon:
        raise ValueError("it has no unit")
    if unit.upper() == "USD":
        return Amount.usd(number)
    if not re.match(r"[0-9]+\Z", number):
        raise ValueError("the amount is no whole number")
    return Amount(Unit(unit.upper()), int(number))


@_taking("a whole number, or UNIT:AMOUNT such as USD:5")
def limit(text: str) -> int | Amount:
    if ":" in text:
        return amount(text)
    if not re.match(r"[0-9]+\Z", text):
        raise ValueError("it is no whole number")
    return int(text)


@_taking(f"one of {', '.join(Unit.__members__)}")
def unit(text: str) -> str:
    return Unit(text.upper()).value


def seconds(least: float) -> Callable[[str], float]:
    """Reads a number of seconds, from `least` to a day."""

    @_taking(f"a number of seconds in {least:g}..86400")
    def read(text: str) -> float:
        found = float(text)
        if not least <= found <= 86_400:
            raise ValueError("it is out of range")
        return found

    return read


@_taking("KIND:NAME, such as tool.email:send")
def action(text: str) -> Action:
    kind, _, name = text.partition(":")
    return Action(kind, name)


@_taking()
def part(text: str) -> float:
    try:
        return config.part(text)
    except ValueError as e:
        raise ValueError(f"{shown(text)} is not {e}") from None


@_taking()
def scope(text: str) -> str:
    return budget_scope(text.strip())


@_taking()
def period(text: str) -> str:
    return read_period(text.strip().lower())


@_taking()
def anchor(text: str) -> str:
    return read_anchor(text.strip())


@_taking('caps in JSON, such as {"max_tokens": 500}')
def caps(text: str) -> Caps:
    return Caps.parse(loads(text.encode("utf-8", "surrogateescape")), "caps")


def for_scopes(name: str, value: Callable[[str], Any], shape: str, example: str, what: str) -> Argument:
    """An option that may be repeated and gives a value to a scope each time, as in `--caps SCOPE=JSON`."""

    def pair(text: str) -> tuple[str, Any]:
        where, equals, rest = text.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {shape}, such as {example}")
        return scope(where), value(rest)

    told = f"{what}, such as {example}; may be repeated"
    return argument(name, action="append", default=[], type=pair, metavar=shape, help=told)


# ---- Arguments of several commands ----

JSON = argument("--json", action="store_true", help="one JSON object a line")

WARN_BELOW = argument(
    "--warn-below",
    metavar="PART",
    type=part,
    help="name the budgets of which a smaller part is left, such as 20%% or 0.2, and end with the status 3",
)

#: The six levels, as filters or as a subject.
LEVELS = [
    argument("--" + level, help=f"the {level}; default: CYCLES_{level.upper()}, where it applies")
    for level in SUBJECT_LEVELS
]


def levels(arguments: Any, *more: str) -> dict[str, Any]:
    """The levels, and more options by their names, that were given."""
    named = {name: getattr(arguments, name) for name in (*SUBJECT_LEVELS, *more)}
    return {name: value for name, value in named.items() if value is not None}


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
