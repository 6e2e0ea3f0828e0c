"""Tables and the texts in them: nothing is wider than the terminal, and nothing that a name holds reaches it."""

from __future__ import annotations

import io
import time

import pytest

from cycles_lite.cli.table import Column, age, fitting, moment, table
from cycles_lite.cli.terminal import ASCII, cells, printable, shortened, width_of
from cycles_lite.runtime import system

COLUMNS = [Column("id"), Column("amount", is_number=True), Column("scope", least=6, goes=1), Column("made", goes=2)]
ROWS = [
    ["one", "5", "tenant:acme/agent:bot", "2026-11-28"],
    ["eleven", "1,000", "tenant:acme", "2026-11-28"],
]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal with so many columns, without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    def made(width):
        monkeypatch.setenv("COLUMNS", str(width))
        return Terminal()

    return made


def test_where_there_is_no_terminal_all_is_whole():
    assert list(table(COLUMNS, ROWS, io.StringIO())) == [
        "ID      AMOUNT  SCOPE                  MADE",
        "one          5  tenant:acme/agent:bot  2026-11-28",
        "eleven   1,000  tenant:acme            2026-11-28",
    ]


@pytest.mark.parametrize(
    ("width", "last"),
    [
        (80, "eleven   1,000  tenant:acme            2026-11-28"),
        (44, "eleven   1,000  tenant:acme       2026-11-28"),
        (32, "eleven   1,000  tenant:acme"),
        (24, "eleven   1,000  ten…acme"),
        (20, "eleven   1,000"),
        (10, "elev…1,000"),
        (1, "…"),
    ],
)
def test_columns_follow_the_terminal(terminal, width, last):
    """First the columns go that may, then texts are shortened; what is left is cut."""
    lines = list(table(COLUMNS, ROWS, terminal(width)))
    assert lines[-1] == last
    assert max(map(cells, lines)) <= width


def test_the_longest_text_gives_way_first():
    columns = [Column("a", least=2), Column("b", least=2), Column("c")]
    assert fitting(columns, [10, 30, 5], 29) == [10, 10, 5]
    assert fitting(columns, [10, 30, 5], 19) == [5, 5, 5]
    assert fitting(columns, [10, 30, 5], 3) == [1, 1, 5]


def test_texts_give_way_before_digits_do():
    columns = [Column("a", least=8), Column("b", is_number=True), Column("c", least=6)]
    assert fitting(columns, [10, 9, 12], 20) == [3, 9, 4]
    assert fitting(columns, [10, 9, 12], 9) == [1, 9, 1], "then the line is cut"


def test_headers_stand_out_on_a_terminal_with_colours(terminal, monkeypatch):
    stream = terminal(80)
    monkeypatch.delenv("NO_COLOR")
    header, *rows = table(COLUMNS, ROWS, stream)
    assert header.startswith("\x1b[1mID ")
    assert "\x1b" not in "".join(rows)


HOSTILE = "a\x1b[2J\x07b\u202ec\nd\x9be\udcfff\u200b"


def test_a_name_cannot_steer_the_terminal(terminal):
    assert printable(HOSTILE) == r"a\x1b[2J\x07b\u202ec\nd\x9be\udcfff\u200b"
    assert printable("tenant:ü 中 é") == "tenant:ü 中 é"
    for width in (80, 20):
        for line in table([Column("name", least=4)], [[HOSTILE]], terminal(width)):
            assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("tenant:acme", 11, "tenant:acme"),
        ("tenant:acme", 10, "tena…:acme"),
        ("tenant:acme", 2, "…e"),
        ("tenant:acme", 1, "…"),
        ("中文中文中文", 12, "中文中文中文"),
        ("中文中文中文", 11, "中文…中文"),
        ("中文中文中文", 6, "中…文"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
    ],
)
def test_a_text_is_shortened_in_its_middle(text, width, short):
    assert shortened(text, width, "…") == short
    assert cells(short) <= width


def test_ascii_has_three_dots():
    assert shortened("tenant:acme", 10, ASCII["cut"]) == "ten...acme"
    assert shortened("tenant:acme", 2, ASCII["cut"]) == ".."


def test_wide_characters_line_up(terminal):
    lines = list(table([Column("name"), Column("n", is_number=True)], [["中文", "1"], ["abcd", "22"]], terminal(40)))
    assert lines == ["NAME   N", "中文   1", "abcd  22"]


def test_a_moment_is_local_and_whole_unless_it_is_for_a_terminal(terminal):
    ms = int(time.time() * 1000)
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))
    assert moment(ms, io.StringIO()) == text
    assert moment(ms, terminal(80)) in (text[11:], text[:16])  # the latter where the day has ended meanwhile
    assert moment(ms - 86400_000 * 3, terminal(80)).count("-") == 2
    assert moment(10**23, io.StringIO()) == f"{10**23} ms"  # no calendar goes that far


def test_the_width_is_that_of_the_terminal(terminal):
    assert width_of(terminal(57)) == 57
    assert width_of(io.StringIO()) is None


def test_ages():
    assert [age(ms) for ms in (-5, 1999, 119_999, 120_000, 7_199_999, 7_200_000, 172_800_000)] == [
        "0 s", "1 s", "119 s", "2 min", "119 min", "2 h", "2 d",
    ]  # fmt: skip


def test_on_windows_the_last_cell_is_not_written(terminal, monkeypatch):
    """There the line would end twice."""
    monkeypatch.setattr(system, "WINDOWS", True)
    assert width_of(terminal(57)) == 56
