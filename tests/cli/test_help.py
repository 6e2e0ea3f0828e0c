"""`--help` of every command: complete, within the terminal's width, and with the exit statuses."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

import pytest
from terminals import on_terminal

from cycles_lite.cli import main, output


def help_of(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return out.getvalue()


def commands(*words):
    """The names of the commands, or of a command's actions."""
    return re.findall(r"^    ([a-z-]+)", help_of(*words).split("\noption")[0], re.MULTILINE)


@pytest.fixture(scope="module")
def every():
    """The help of each command and action, by its words."""
    found = {}
    with mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
        for name in commands():
            inner = commands(name) if "ACTION ..." in help_of(name) else []
            for words in [[name, action] for action in inner] or [[name]]:
                found[tuple(words)] = help_of(*words)
    assert ("watch",) in found
    assert ("budget", "set") in found
    return found


def test_every_command_tells_its_exit_statuses(every):
    for words, text in every.items():
        _, _, statuses = text.partition("exit status:\n")
        told = re.findall(r"^  (\S+)", statuses, re.MULTILINE)
        wanted = output.OF_RUN if words == ("run",) else output.common()
        assert set(wanted) <= set(told), words


def test_every_option_says_what_it_is(every):
    for words, text in every.items():
        options = re.split(r"\n  (?=-)", re.split(r"\noption.*:", text)[-1].partition("\n\n")[0])
        assert len(options) > 1, words
        for option in options[1:]:
            assert re.search(r"(  |\n)\s*\S.*[a-z]{2}", option), (words, option)


def test_no_line_is_wider_than_the_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with on_terminal(["run", "--help"], 50) as shown:
        status, text = shown.end()
    assert (status, shown.picture.widest <= 50) == (0, True)
    assert re.search(r"\n  75 +the budget says no; nothing ran\n", text)
    assert re.search(r"\n  2 +the arguments [^\n]*\n {10}\S", text)
