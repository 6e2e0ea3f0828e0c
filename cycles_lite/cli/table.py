"""Rows as aligned columns under headers, none of which is wider than the terminal.

On a narrow terminal the columns that may go do so, and then the texts that may be shortened are, the longest first.
Where standard output is no terminal every text is whole.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

from .terminal import cells, is_coloured, look_of, painted, printable, shortened, width_of

#: The space between two columns.
_GAP = "  "


class Column(NamedTuple):
    """A column of a table."""

    title: str
    #: Numbers stand at the right, under each other's units.
    is_number: bool = False
    #: The cells that its texts may be shortened to, in their middle; 0 where they stay whole.
    least: int = 0
    #: Which columns a narrow terminal shows no more: the highest first; one with 0 stays.
    goes: int = 0


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], stream: Any = None) -> Iterator[str]:
    """The lines of a table, headers first, for standard output or another stream. Each row has a text for each column,
    which may hold anything: control characters are escaped."""
    stream = stream or sys.stdout
    safe = [[printable(text, stream) for text in row] for row in rows]
    return laid_out(columns, safe, look_of(stream)["cut"], is_coloured(stream), width_of(stream))


def laid_out(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], cut: str, coloured: bool, room: int | None
) -> Iterator[str]:
    """As `table`, for printable texts and lines of `room` cells; None where they may be of any width."""
    lines: list[Sequence[str]] = [[column.title.upper() for column in columns], *rows]
    widths = [max(map(cells, texts)) for texts in zip(*lines)]
    if room is not None:
        widths = fitting(columns, widths, room)
    for number, texts in enumerate(lines):
        shown = [
            _aligned(shortened(text, width, cut), width, column.is_number)
            for text, width, column in zip(texts, widths, columns)
            if width
        ]
        line = shortened(_GAP.join(shown).rstrip(), room or sys.maxsize, cut)
        yield painted(line, "1" if number == 0 and coloured else "")


def moment(ms: int, stream: Any = None) -> str:
    """Milliseconds since 1970 as the local date and time; on a terminal short: today's time, or the date's minute."""
    try:
        then = time.localtime(ms / 1000)
    except (OverflowError, OSError, ValueError):  # no calendar goes that far
        return f"{ms} ms"
    if not (stream or sys.stdout).isatty():
        return time.strftime("%Y-%m-%d %H:%M:%S", then)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M", then)


#: Milliseconds of the units that ages are told in, and the words; each is used up to two of the next.
_UNITS = (86_400_000, "d"), (3_600_000, "h"), (60_000, "min")


def age(ms: int) -> str:
    """A span of time in one unit, rounded down; what is negative, because clocks differ, is nothing."""
    for length, word in _UNITS:
        if ms >= 2 * length:
            return f"{ms // length} {word}"
    return f"{max(0, ms) // 1000} s"


def _aligned(text: str, width: int, is_number: bool) -> str:
    space = " " * (width - cells(text))
    return space + text if is_number else text + space


def fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The widths of columns whose texts need `widths`, on a line of `room` cells; 0 for one that is not shown. What
    must stay may need more than there is."""
    least = [min(width, column.least) or width for column, width in zip(columns, widths)]
    shown = set(range(len(columns)))
    for index in sorted(shown, key=lambda index: -columns[index].goes):
        if columns[index].goes and _total(least[index] for index in shown) > room:
            shown.discard(index)
    now = [width if index in shown else 0 for index, width in enumerate(widths)]
    # Then further than is nice, before the whole line is cut: its middle has amounts, which would lose digits.
    for ends in least, [1 if column.least else width for column, width in zip(columns, widths)]:
        while _total(now[index] for index in shown) > room:
            longest = max(shown, key=lambda index: (now[index] > ends[index], now[index]))
            if now[longest] <= ends[longest]:
                break
            now[longest] -= 1
    return now


def _total(widths: Iterable[int]) -> int:
    """The cells of a line of columns."""
    there = list(widths)
    return sum(there) + len(_GAP) * (len(there) - 1)
