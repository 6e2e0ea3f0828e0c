"""What `cycles-lite watch` shows, as lines: pure, so that every size of a terminal can be looked at."""

from __future__ import annotations

import textwrap
import time
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from . import bars
from .more import NOTHING, More
from .seen import Change, Seen, tree
from .table import Column, age, laid_out, moment
from .terminal import cells, is_coloured, look_of, painted, printable, shortened

_BOLD, _PALE, _ALARM = "1", "2", "1;31"

#: Lines that are kept of each section where there are too few for all.
_LEAST = 4

#: What is said at the end of the last line.
_ENDS = "q ends"

_LIVE = [
    Column("age", is_number=True),
    Column("left", is_number=True),
    Column("amount", is_number=True),
    Column("scope", least=12),
    Column("action", least=8, goes=1),
    Column("id", goes=2),
]
_CLOSED = [
    Column("scope", least=12),
    Column("spent"),
    Column("last", is_number=True),
    Column("of", is_number=True),
    Column("until", goes=1),
]
_CHANGED = [Column("ago", is_number=True), Column("what"), Column("amount", is_number=True), Column("scope", least=8)]


class State(NamedTuple):
    """What there is to be shown."""

    #: What was seen last; None before anything was.
    seen: Seen | None = None
    #: The newest first.
    changes: Sequence[Change] = ()
    #: What is wrong at present; empty where all is well.
    trouble: str = ""
    #: The same for as long as it is the same trouble; its text has another request's id each time.
    cause: object = None


#: Before the first look.
NEW = State()


class Sheet(NamedTuple):
    """What it is shown on."""

    stream: Any
    look: Mapping[str, str]
    coloured: bool
    #: The cells of a line, and the lines; None where there is no end.
    width: int | None = None
    height: int | None = None

    @classmethod
    def of(cls, stream: Any, width: int | None = None, height: int | None = None) -> Sheet:
        return cls(stream, look_of(stream), is_coloured(stream), width, height)

    def painted(self, text: str, colour: str) -> str:
        return painted(text, colour if self.coloured else "")

    def cut(self, text: str) -> str:
        return text if self.width is None else shortened(text, self.width, self.look["cut"])

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
        safe = [[printable(text, self.stream) for text in row] for row in rows]
        return list(laid_out(columns, safe, self.look["cut"], self.coloured, self.width))


def frame(state: State, sheet: Sheet, title: str, now: int) -> list[str]:
    """The lines for a state at a time in milliseconds since 1970."""
    top = [*_title(sheet, title, now), *_trouble(state, sheet, now)]
    if state.seen is None:
        return [*top, *([] if state.trouble else [sheet.cut("no answer yet")])][: sheet.height]
    seen, changed = state.seen, _changed(state.changes, sheet, now)
    sections = [_budgets(seen, sheet), _live(seen, sheet, now), changed, _closed(seen.more or NOTHING, sheet)]
    bottom: list[str] = []
    if sheet.width is not None and sheet.height is not None:
        legend = bars.legend(sheet.look, sheet.width)
        room = sheet.width - cells(legend) - len(_ENDS)
        bottom = ["", sheet.painted(legend + (" " * room + _ENDS if room > 1 else ""), _PALE)]
        _fit(sections, sheet.height - len(top) - len(bottom) - sum(map(bool, sections)), sheet)
    body = [line for section in sections if section for line in ("", *section)]
    return [*top, *body, *bottom][: sheet.height]


def _fit(sections: list[list[str]], room: int, sheet: Sheet) -> None:
    """Shorten the sections to so many lines together, the last first, and tell how many lines are missing."""
    excess = sum(map(len, sections)) - max(room, 0)
    for section in reversed(sections):
        length = max(min(len(section), _LEAST), len(section) - max(excess, 0))
        excess -= len(section) - length
        if length < len(section):
            section[length - 1 :] = [sheet.cut(f"{sheet.look['cut']} {len(section) - length + 1} more lines")]


def _title(sheet: Sheet, title: str, now: int) -> Iterator[str]:
    clock = time.strftime("%Y-%m-%d %H:%M:%S" if sheet.height is None else "%H:%M:%S", time.localtime(now / 1000))
    if sheet.width is None:
        yield f"{clock}  {title}"
        return
    room = sheet.width - len(clock) - 2
    if room < 1:
        return
    title = shortened(printable(title, sheet.stream), room, sheet.look["cut"])
    yield sheet.painted(title, _BOLD) + " " * (room + 2 - cells(title)) + clock


def _trouble(state: State, sheet: Sheet, now: int) -> Iterator[str]:
    text = printable(state.trouble, sheet.stream)
    if text and state.seen is not None and sheet.height is not None:
        text += f" (shown is what was so {age(now - state.seen.at_ms)} ago)"
    lines = textwrap.wrap(text, sheet.width) if sheet.width is not None else [text] if text else []
    yield from (sheet.painted(sheet.cut(line), _ALARM) for line in lines)  # a character may take two cells


def _budgets(seen: Seen, sheet: Sheet) -> list[str]:
    found = tree(seen)
    rows = [bars.printable_row(row, sheet.stream) for row in found[: sheet.height]]
    lines = list(bars.drawn(rows, sheet.look, sheet.coloured, sheet.width))
    return [*lines, *[""] * (len(found) - len(rows))] or [sheet.cut("no budgets")]  # the others are counted only


def _live(seen: Seen, sheet: Sheet, now: int) -> list[str]:
    count = f"{len(seen.reservations)}{' or more' if seen.has_more else ''}"
    heading = sheet.painted(sheet.cut(f"Live reservations: {count}"), _BOLD)
    rows = [
        (
            age(now - row.created_at_ms),
            age(row.expires_at_ms - now),
            bars.worded(row.reserved),
            row.scope_path,
            f"{row.action.kind}:{row.action.name}",
            row.reservation_id,
        )
        for row in seen.reservations[: sheet.height]
    ]
    return [heading, *(sheet.table(_LIVE, rows) if rows else []), *[""] * (len(seen.reservations) - len(rows))]


def _changed(changes: Sequence[Change], sheet: Sheet, now: int) -> list[str]:
    if not changes:
        return []
    rows = [(age(now - one.at_ms), one.what, one.amount, one.scope) for one in changes]
    return [sheet.painted(sheet.cut("Last minute"), _BOLD), *sheet.table(_CHANGED, rows)[1:]]


def _closed(more: More, sheet: Sheet) -> list[str]:
    """What was spent in the last periods of each budget, the newest at the right and in figures."""
    if not more.closed:
        return []
    rows = []
    for (scope, unit), periods in sorted(more.closed.items())[: sheet.height]:
        last = periods[-1]
        spent, of, until = bars.shown(last.spent, unit), bars.with_unit(last.allocated, unit), moment(last.end_ms)
        rows.append((scope, bars.chart(periods, sheet.look), spent, of, until))
    heading = "Closed periods" + (" of the first budgets" if more.is_cut else "")
    others = [""] * (len(more.closed) - len(rows))
    return [sheet.painted(sheet.cut(heading), _BOLD), *sheet.table(_CLOSED, rows), *others]
