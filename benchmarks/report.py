"""What a benchmark found, and how it is printed."""

from __future__ import annotations

import json
import os
import platform
from typing import NamedTuple


class Target(NamedTuple):
    """A limit: on the ratio of ours to the peer's, or on our own figure."""

    limit: float
    #: `ratio` or `ours`.
    of: str = "ratio"
    #: Whether more would be better, as for a throughput.
    is_floor: bool = False

    def __str__(self) -> str:
        unit = " x" if self.of == "ratio" else ""
        return f"{'>=' if self.is_floor else '<='} {_short(self.limit)}{unit}"


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: float | None
    unit: str
    peer: float | None = None
    #: What the peer is.
    beside: str = ""
    target: Target | None = None
    #: How it was measured, or why it was not.
    how: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.ours is not None and self.peer else None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing where there is no target or no figure."""
        figure = self.ratio if self.target and self.target.of == "ratio" else self.ours
        if self.target is None or figure is None:
            return ""
        target = self.target
        return "met" if (figure >= target.limit if target.is_floor else figure <= target.limit) else "MISSED"


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()} "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


HEADINGS = ("what", "ours", "peer", "ratio", "target", "")


def as_text(rows: list[Row]) -> str:
    """The table, and below it how each row was measured."""
    cells = [HEADINGS] + [
        (
            row.what,
            _figure(row.ours, row.unit),
            f"{_figure(row.peer, row.unit)} {row.beside}".strip(),
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            "" if row.target is None else str(row.target),
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    notes = [f"{row.what}: {row.how}" for row in rows if row.how]
    return "\n".join([machine(), "", *lines, "", *notes])


def as_json(rows: list[Row]) -> str:
    found = [
        {**row._asdict(), "target": str(row.target) if row.target else None, "ratio": row.ratio, "verdict": row.verdict}
        for row in rows
    ]
    return json.dumps({"machine": machine(), "rows": found}, indent=2)


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_short(value)} {unit}".strip()


def _short(value: float) -> str:
    """Three digits that count, and never an exponent."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
