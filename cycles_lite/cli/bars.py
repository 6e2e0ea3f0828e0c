"""Amounts as people read them, and balances as bars, for a terminal or in plain ASCII.

What is left is the solid part of a bar, so that an untouched budget is a full one, and a spent one is pale.
"""

from __future__ import annotations

import sys
import textwrap
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ..local.periods import ClosedPeriod
from ..protocol.models import Balance
from ..protocol.values import MICROCENTS_PER_USD, Amount, SignedAmount, Unit
from .terminal import cells, is_coloured, look_of, painted, printable, shortened, width_of

#: The cells of a bar where there is room, where the labels need some, and before each has a line of its own.
_WIDTH, _SHORT, _LEAST = 32, 16, 8

#: The cells that a label is shortened to before that.
_LABEL = 20

#: The parts of a bar in order, and the number of each part's colour in a terminal's escape sequences.
PARTS = {"left": "32", "reserved": "33", "spent": "2", "debt": "31"}


class Row(NamedTuple):
    """A balance to be drawn."""

    label: str
    balance: Balance
    #: More to be said after the figures; may be empty.
    note: str = ""


def render(rows: Sequence[Row], stream: Any = None) -> Iterator[str]:
    """The lines for some balances, each with its label, a bar, and figures; on a terminal none is wider than that, and
    a legend comes last."""
    stream = stream or sys.stdout
    width, look = width_of(stream), look_of(stream)
    rows = [printable_row(row, stream) for row in rows]
    yield from drawn(rows, look, is_coloured(stream), width)
    if width is not None:
        yield legend(look, width) if rows else "no budgets"


def printable_row(row: Row, stream: Any) -> Row:
    return row._replace(label=printable(row.label, stream), note=printable(row.note, stream))


def legend(look: Mapping[str, str], room: int) -> str:
    """What the parts of a bar are drawn with, on a line of so many cells."""
    return shortened("  ".join(f"{look[part]} {part}" for part in PARTS), room, look["cut"])


def drawn(rows: Sequence[Row], look: Mapping[str, str], coloured: bool, room: int | None) -> Iterator[str]:
    """As `render`, without the legend, for printable rows and lines of `room` cells; None where they may be of any
    width."""
    labels = [row.label for row in rows]
    texts = [", ".join(filter(None, (figures(row.balance), row.note))) for row in rows]
    label, width, figure = _columns(labels, texts, room)
    for row, name, text in zip(rows, labels, texts):
        if width >= _LEAST:
            bar = _painted(bar_of(row.balance, look, width), coloured)
            name = shortened(name, label, look["cut"])
            first, *more = _wrapped(text, figure)
            yield f"{name}{' ' * (label - cells(name))}  {bar}  {first}"
            yield from (" " * (label + width + 4) + line for line in more)
            continue
        room = room or 0  # it is a narrow terminal
        indent = "  " if room > 2 * _LEAST else ""
        yield shortened(name, room, look["cut"])
        yield indent + _painted(bar_of(row.balance, look, min(_WIDTH, max(len(PARTS), room - len(indent)))), coloured)
        yield from (indent + line for line in _wrapped(text, room - len(indent)))


def _columns(labels: Sequence[str], texts: Sequence[str], room: int | None) -> tuple[int, int, int]:
    """The cells for labels, bars and figures; what follows on how much is left may have a line of its own."""
    label, figure = (max(map(cells, column), default=1) for column in (labels, texts))
    if room is None:
        return label, _WIDTH, figure
    first = max((cells("".join(text.partition(", ")[:2]).rstrip()) for text in texts), default=1)  # with its comma
    figure = max(first, min(figure, room - 4 - min(label, _LABEL) - _SHORT))
    spare = room - 4 - figure
    label = max(min(label, _LABEL), min(label, spare - _SHORT))
    return label, min(_WIDTH, spare - label), figure


def _wrapped(text: str, width: int) -> list[str]:
    """Figures on lines of so many cells, broken between two of them where that is possible."""
    whole = text.replace(" ", "\xa0").replace(",\xa0", ", ")
    return [line.replace("\xa0", " ") for line in textwrap.wrap(whole, width)]


def _painted(parts: Mapping[str, str], coloured: bool) -> str:
    return "".join(painted(text, PARTS[part] if coloured else "") for part, text in parts.items())


def bar_of(balance: Balance, look: Mapping[str, str], width: int = _WIDTH) -> Mapping[str, str]:
    """The parts of a bar of `width` cells, in order. Each amount that is not zero gets at least one cell,
    the others get none, and what cannot be divided goes to the largest."""
    amounts = {part: number(getattr(balance, part)) for part in ("reserved", "spent", "debt")}
    amounts["left"] = max(0, balance.remaining.amount)
    whole = sum(amounts.values())
    shares = {part: max(amounts[part] * width // whole, 1) if amounts[part] else 0 for part in PARTS}
    largest = max(PARTS, key=lambda part: (amounts[part], part == "spent"))
    shares[largest] += width - sum(shares.values())
    return {part: look[part] * shares[part] for part in PARTS}


def chart(periods: Sequence[ClosedPeriod], look: Mapping[str, str]) -> str:
    """What was spent in each period, a column each: as high as the part of its allocation, or another sign where it
    ended in debt."""
    return "".join(look["debt"] if one.debt else _column(one, look["columns"]) for one in periods)


def _column(of: ClosedPeriod, columns: str) -> str:
    top = len(columns) - 1
    return columns[min(top, max(of.spent * top // max(of.allocated, 1), of.spent > 0))]


def number(amount: Amount | None) -> int:
    """An amount that a balance may lack."""
    return amount.amount if amount is not None else 0


def figures(balance: Balance) -> str:
    """How much is left of how much, and what is reserved or owed if that is not zero."""
    unit = balance.remaining.unit
    text = f"{shown(balance.remaining.amount, unit)} of {shown(number(balance.allocated), unit)} {name(unit)} left"
    for part in ("reserved", "debt"):
        amount = number(getattr(balance, part))
        text += f", {part} {shown(amount, unit)}" if amount else ""
    return text + (", OVER LIMIT" if balance.is_over_limit else "")


def worded(amount: Amount | SignedAmount) -> str:
    """An amount with its unit."""
    return with_unit(amount.amount, amount.unit)


def with_unit(amount: int, unit: str) -> str:
    return f"{shown(amount, unit)} {name(unit)}"


def shown(amount: int, unit: str) -> str:
    """An amount's number as people read it: money in dollars, all else with thousands apart."""
    if unit != Unit.USD_MICROCENTS:
        return f"{amount:,}"
    whole, rest = divmod(abs(amount), MICROCENTS_PER_USD)
    places = f"{rest:08d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole:,}.{places}"


def name(unit: str) -> str:
    return "USD" if unit == Unit.USD_MICROCENTS else printable(unit.lower().replace("_", " "))
