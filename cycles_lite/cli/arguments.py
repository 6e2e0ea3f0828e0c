"""What the arguments of several commands mean."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, NamedTuple

from ..errors import ConfigError, ValidationError
from ..local.location import Location
from ..local.scopes import budget_scope
from ..protocol.values import SUBJECT_LEVELS, Action, Amount, Caps, Unit
from ..protocol.wire import loads


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


def action(text: str) -> Action:
    """`KIND:NAME`, such as tool.email:send."""
    kind, colon, name = text.partition(":")
    try:
        return Action(kind, name if colon else "")
    except ValidationError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND:NAME, such as tool.email:send: {e.message}") from e


def scope(text: str) -> str:
    """A budget's scope, such as tenant:acme/agent:bot."""
    try:
        return budget_scope(text.strip())
    except ValidationError as e:
        raise argparse.ArgumentTypeError(e.message) from e


class Allocation(NamedTuple):
    """A budget to set."""

    scope: str
    amount: Amount


def allocation(text: str) -> Allocation:
    """`SCOPE=UNIT:AMOUNT`, such as tenant:acme=TOKENS:100000."""
    where, equals, rest = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not SCOPE=UNIT:AMOUNT, such as tenant:acme=TOKENS:100000")
    return Allocation(scope(where), amount(rest))


def caps(text: str) -> Caps:
    """The protocol's `Caps` as JSON, such as {"max_tokens": 500}."""
    try:
        return Caps.parse(loads(text.encode("utf-8", "surrogateescape")), "caps")
    except ValueError as e:  # bad JSON, and our ValidationError
        raise argparse.ArgumentTypeError(f'{text!r} is not caps in JSON, such as {{"max_tokens": 500}}: {e}') from e


class ScopedCaps(NamedTuple):
    """Caps for the budgets of a scope."""

    scope: str
    caps: Caps


def scoped_caps(text: str) -> ScopedCaps:
    """`SCOPE=JSON`, such as tenant:acme={"max_tokens": 500}."""
    where, equals, rest = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f'{text!r} is not SCOPE=JSON, such as tenant:acme={{"max_tokens": 500}}')
    return ScopedCaps(scope(where), caps(rest))


def unit(text: str) -> str:
    """The name of a unit."""
    if text.upper() not in Unit.__members__:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(Unit.__members__)}")
    return text.upper()


def add_db(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--db", metavar="PATH", help="the budget file, or a sqlite: URL; default: CYCLES_BASE_URL where that is one"
    )


def db_url(arguments: Any) -> str:
    """The URL of the budget file that a command is about."""
    given = arguments.db if arguments.db is not None else os.environ.get("CYCLES_BASE_URL", "")
    if given.startswith("sqlite:"):
        return str(given)
    if arguments.db is None or not given:
        raise ConfigError("which budget file? Name it with --db PATH, or set CYCLES_BASE_URL to a sqlite: URL")
    return Location(os.path.abspath(given)).url


def add_levels(parser: argparse.ArgumentParser) -> None:
    """The six levels, as filters or as a subject."""
    for level in SUBJECT_LEVELS:
        parser.add_argument("--" + level, help=f"the {level}; default: CYCLES_{level.upper()}, where it applies")


def levels(arguments: Any) -> dict[str, Any]:
    """The levels that were given."""
    named = {level: getattr(arguments, level) for level in SUBJECT_LEVELS}
    return {level: value for level, value in named.items() if value is not None}
