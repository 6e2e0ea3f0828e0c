"""Bars: every figure shows, whatever the amounts."""

from __future__ import annotations

import io

import pytest

from cycles_lite import Amount, Balance, SignedAmount, Unit
from cycles_lite.cli import bars
from cycles_lite.cli.terminal import ASCII, UNICODE, cells, is_coloured, look_of
from cycles_lite.local.periods import ClosedPeriod


def balance(allocated, spent=0, reserved=0, debt=0, unit=Unit.TOKENS, **more):
    return Balance(
        scope="tenant:acme",
        scope_path="tenant:acme",
        remaining=SignedAmount(unit, allocated - spent - reserved - debt),
        allocated=Amount(unit, allocated),
        spent=Amount(unit, spent),
        reserved=Amount(unit, reserved),
        debt=Amount(unit, debt) if debt else None,
        **more,
    )


def rows_of(*balances):
    return [bars.Row(row.scope_path, row) for row in balances]


@pytest.mark.parametrize(
    ("row", "drawn"),
    [
        (balance(100), "#" * 32),
        (balance(100, 50), "#" * 16 + "." * 16),
        (balance(100, 1, 1), "#" * 30 + "+."),
        (balance(100, 99), "#" + "." * 31),
        (balance(100, 100), "." * 32),
        (balance(99, 50, 49), "+" * 15 + "." * 17),
        (balance(100, 100, 0, 100), "." * 16 + "!" * 16),
        (balance(0), "." * 32),
        (balance(2**63 - 1, 2**62), "#" * 15 + "." * 17),
        (balance(10**9, 1, 1, 1), "#" * 29 + "+.!"),
    ],
)
def test_parts_of_a_bar(row, drawn):
    """What is left is solid. Whatever is not nothing gets at least one cell, what is nothing gets none, and all cells
    together are always as wide."""
    assert "".join(bars.bar_of(row, ASCII).values()) == drawn


@pytest.mark.parametrize("width", range(4, 40))
def test_bars_of_any_width(width):
    for row in (balance(0), balance(7, 1, 1, 1), balance(10**9, 1, 1, 10**8), balance(3, 10, 10, 10)):
        assert len("".join(bars.bar_of(row, ASCII, width).values())) == width


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (balance(100, 40), "60 of 100 tokens left"),
        (balance(1000, 1000, 0, 40), "-40 of 1,000 tokens left, debt 40"),
        (balance(5, 0, 3, unit=Unit.RISK_POINTS), "2 of 5 risk points left, reserved 3"),
        (balance(10**8, 1, unit=Unit.USD_MICROCENTS), "0.99999999 of 1.00 USD left"),
        (balance(1, is_over_limit=True), "1 of 1 tokens left, OVER LIMIT"),
    ],
)
def test_figures(row, said):
    assert bars.figures(row) == said


def test_a_negative_amount_of_money():
    assert bars.shown(-150_000_000, Unit.USD_MICROCENTS) == "-1.50"


def test_scopes_line_up():
    rows = [balance(1), Balance("agent:b", "tenant:acme/agent:b", SignedAmount(Unit.TOKENS, 1))]
    starts = {line.index("  ", 20) for line in bars.render(rows_of(*rows), io.StringIO())}
    assert len(starts) == 1


@pytest.mark.parametrize(("encoding", "look"), [("utf-8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII)])
def test_the_look_follows_the_streams_encoding(encoding, look, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert look_of(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is look


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert any("\x1b[" in line for line in bars.render(rows_of(balance(2, 1)), Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b[" in line for line in bars.render(rows_of(balance(2, 1)), Terminal()))
    assert not is_coloured(io.StringIO())


DEEP = Balance("agent:b", "tenant:acme/workspace:research/agent:bücher", SignedAmount(Unit.TOKENS, 1_000_000))


@pytest.mark.parametrize("width", [12, 20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    """A narrow one has the scope, the bar and the figures on lines of their own, and all figures are there."""
    rows = [*rows_of(DEEP, balance(10**6, 10**6, 7, 2 * 10**5)), bars.Row("x", balance(3), "FROZEN")]
    lines = list(bars.drawn(rows, UNICODE, False, width))
    assert max(map(cells, lines)) <= width
    assert all(line.isprintable() for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "debt 200,000" in text
    assert "FROZEN" in text
    assert len(lines) == {60: 10, 80: 4, 200: 3}.get(width, len(lines))


@pytest.mark.parametrize("width", range(40, 100))
def test_figures_are_broken_between_two_of_them(width):
    rows = [bars.Row(DEEP.scope_path, balance(10**6, 1), "FROZEN, until 13:00:00")]
    text = "\n".join(bars.drawn(rows, UNICODE, False, width))
    assert "999,999 of 1,000,000 tokens left," in text


def test_a_terminal_gets_a_legend(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    assert list(bars.render(rows_of(balance(1)), Terminal()))[-1] == "█ left  ▒ reserved  ░ spent  ! debt"
    assert list(bars.render([], Terminal())) == ["no budgets"]
    assert len(list(bars.render(rows_of(balance(1)), io.StringIO()))) == 1


@pytest.mark.parametrize(
    ("allocated", "spent", "debt", "drawn"),
    [
        (100, 0, 0, "·."),
        (100, 1, 0, "▁1"),
        (100, 49, 0, "▃4"),
        (100, 50, 0, "▄5"),
        (100, 99, 0, "▇9"),
        (100, 100, 0, "█#"),
        (100, 300, 0, "█#"),
        (100, 100, 1, "!!"),
        (0, 0, 0, "·."),
        (0, 1, 0, "█#"),
        (2**63 - 1, 2**62, 0, "▄5"),
    ],
)
def test_a_column_of_a_chart(allocated, spent, debt, drawn):
    closed = ClosedPeriod("a:b", "TOKENS", 0, 1, allocated, spent, debt)
    assert "".join(bars.chart([closed], look) for look in (UNICODE, ASCII)) == drawn
