"""Amounts as people read them, and balances as bars, for a terminal or in plain ASCII."""

from __future__ import annotations

import os
import sys
from typing import Any, Iterable, Iterator, Mapping

from ..protocol.models import Balance
from ..protocol.values import MICROCENTS_PER_USD, Amount, SignedAmount, Unit
from ..runtime import system

_WIDTH = 32

#: The parts of a bar in order, and what each is drawn with.
UNICODE = {"spent": "█", "reserved": "▒", "free": "░", "debt": "!"}
ASCII = {"spent": "#", "reserved": "+", "free": ".", "debt": "!"}

#: The number of each part's colour in a terminal's escape sequences.
_COLOURS = {"spent": "36", "reserved": "33", "free": "2", "debt": "31"}


def look_of(stream: Any) -> Mapping[str, str]:
    """Blocks where the stream can encode them, else ASCII."""
    try:
        "".join(UNICODE.values()).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE if os.environ.get("TERM") != "dumb" else ASCII


def is_coloured(stream: Any) -> bool:
    """Whether to colour: a terminal that can, and nobody asked not to (NO_COLOR). The old one of Windows cannot."""
    can = os.environ.get("TERM") != "dumb"
    if system.WINDOWS:
        can = bool(os.environ.get("WT_SESSION") or os.environ.get("TERM", "dumb") != "dumb")
    return can and bool(stream.isatty()) and not os.environ.get("NO_COLOR")


def render(balances: Iterable[Balance], stream: Any = None) -> Iterator[str]:
    """A line for each balance: scope, bar, figures."""
    stream = stream or sys.stdout
    look, coloured = look_of(stream), is_coloured(stream)
    rows = list(balances)
    width = max((len(row.scope_path) for row in rows), default=0)
    for row in rows:
        parts = bar_of(row, look)
        if coloured:
            parts = {part: f"\x1b[{_COLOURS[part]}m{text}\x1b[0m" for part, text in parts.items() if text}
        yield f"{row.scope_path:<{width}}  {''.join(parts.values())}  {figures(row)}"


def bar_of(balance: Balance, look: Mapping[str, str]) -> Mapping[str, str]:
    """The parts of a bar, in order. Each amount that is not zero gets at least one cell."""
    amounts = {name: _amount(getattr(balance, name)) for name in ("debt", "spent", "reserved")}
    whole = max(_amount(balance.allocated), sum(amounts.values()), 1)
    cells = {"free": _WIDTH}
    for name, amount in amounts.items():
        cells[name] = min(cells["free"], max(amount * _WIDTH // whole, 1 if amount else 0))
        cells["free"] -= cells[name]
    return {part: look[part] * cells[part] for part in look}


def _amount(amount: Amount | None) -> int:
    return amount.amount if amount is not None else 0


def figures(balance: Balance) -> str:
    """How much is left of how much, and what is reserved or owed if that is not zero."""
    unit = balance.remaining.unit
    text = f"{shown(balance.remaining.amount, unit)} of {shown(_amount(balance.allocated), unit)} {name(unit)} left"
    for part in ("reserved", "debt"):
        amount = _amount(getattr(balance, part))
        text += f", {part} {shown(amount, unit)}" if amount else ""
    return text + (", OVER LIMIT" if balance.is_over_limit else "")


def worded(amount: Amount | SignedAmount) -> str:
    """An amount with its unit."""
    return f"{shown(amount.amount, amount.unit)} {name(amount.unit)}"


def shown(amount: int, unit: str) -> str:
    """An amount's number as people read it: money in dollars, all else with thousands apart."""
    if unit != Unit.USD_MICROCENTS:
        return f"{amount:,}"
    whole, rest = divmod(abs(amount), MICROCENTS_PER_USD)
    places = f"{rest:08d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole:,}.{places}"


def name(unit: str) -> str:
    return "USD" if unit == Unit.USD_MICROCENTS else unit.lower().replace("_", " ")
