"""Balances as bars, for a terminal or in plain ASCII."""

from __future__ import annotations

import os
import sys
from typing import Any, Iterable, Iterator, Mapping, NamedTuple

from ..protocol.models import Balance
from ..protocol.values import MICROCENTS_PER_USD, Unit

_WIDTH = 32


class Look(NamedTuple):
    """What bars are drawn with."""

    spent: str
    reserved: str
    free: str
    debt: str


UNICODE = Look("█", "▒", "░", "!")
ASCII = Look("#", "+", ".", "!")

#: Colours by part, where the terminal has them.
_COLOURS = {"spent": "36", "reserved": "33", "free": "2", "debt": "31"}


def look_of(stream: Any) -> Look:
    """Blocks where the stream can encode them, else ASCII."""
    try:
        "".join(UNICODE).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE if os.environ.get("TERM") != "dumb" else ASCII


def is_coloured(stream: Any) -> bool:
    """Whether to colour: a terminal, and nobody asked not to (NO_COLOR)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(balances: Iterable[Balance], stream: Any = None) -> Iterator[str]:
    """A line for each balance: scope, bar, figures."""
    stream = stream or sys.stdout
    look, coloured = look_of(stream), is_coloured(stream)
    rows = list(balances)
    width = max((len(row.scope_path) for row in rows), default=0)
    for row in rows:
        bar = "".join(_coloured(part, text) if coloured else text for part, text in bar_of(row, look).items())
        yield f"{row.scope_path:<{width}}  {bar}  {figures(row)}"


def bar_of(balance: Balance, look: Look) -> Mapping[str, str]:
    """The parts of a bar, in order. Whatever is not nothing gets at least one cell."""
    spent, reserved, debt = (_amount(getattr(balance, name)) for name in ("spent", "reserved", "debt"))
    whole = max(_amount(balance.allocated), spent + reserved + debt, 1)
    cells = {}
    left = _WIDTH
    for name, part in (("debt", debt), ("spent", spent), ("reserved", reserved)):
        cells[name] = min(left, max(part * _WIDTH // whole, 1 if part else 0))
        left -= cells[name]
    return {
        "spent": look.spent * cells["spent"],
        "reserved": look.reserved * cells["reserved"],
        "free": look.free * left,
        "debt": look.debt * cells["debt"],
    }


def _coloured(part: str, text: str) -> str:
    return f"\x1b[{_COLOURS[part]}m{text}\x1b[0m" if text else ""


def _amount(amount: Any) -> int:
    return amount.amount if amount is not None else 0


def figures(balance: Balance) -> str:
    """What is left of what, and whatever else is not nothing."""
    unit = balance.remaining.unit
    text = f"{shown(balance.remaining.amount, unit)} of {shown(_amount(balance.allocated), unit)} {name(unit)} left"
    for part in ("reserved", "debt"):
        if _amount(getattr(balance, part)):
            text += f", {part} {shown(_amount(getattr(balance, part)), unit)}"
    return text + (", OVER LIMIT" if balance.is_over_limit else "")


def shown(amount: int, unit: str) -> str:
    """An amount as people read it: money in dollars, all else with thousands apart."""
    if unit != Unit.USD_MICROCENTS:
        return f"{amount:,}"
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    whole, rest = divmod(amount, MICROCENTS_PER_USD)
    places = f"{rest:08d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{places}"


def name(unit: str) -> str:
    return "USD" if unit == Unit.USD_MICROCENTS else unit.lower().replace("_", " ")
