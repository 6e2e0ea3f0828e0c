"""What the library logs can be written to any log's file, whatever it is about."""

from __future__ import annotations

import logging
import os
import sys

import pytest

from cycles_lite.runtime.log import escaped, log
from cycles_lite.settlement.journal import Journal


class Ugly(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.fixture
def written(tmp_path):
    """What a log's file in UTF-8 holds by now."""
    path = tmp_path / "log"
    handler = logging.FileHandler(str(path), encoding="utf-8")
    log().addHandler(handler)
    yield lambda: path.read_text(encoding="utf-8")
    log().removeHandler(handler)
    handler.close()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\udcffb", "a\\udcffb"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        (ValueError("at \udcff"), "at \\udcff"),
        ("Ünïcode, 価", "Ünïcode, 価"),
        (7, "7"),
    ],
)
def test_what_a_message_is_filled_with_is_escaped(written, given, shown):
    log().error("about %s", given)
    assert written() == f"about {shown}\n"


def test_messages_without_anything_stay_as_they_are(written):
    log().error("100 % of it")
    log().error("%(name)s", {"name": "by name"})
    assert written() == "100 % of it\nby name\n"


def test_an_exception_without_a_text_is_for_the_handler_to_bear(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log().error("about %s", Ugly())


def test_escaping_keeps_what_can_be_shown():
    assert escaped("a b") == "a b"
    assert escaped("\ud800\t") == "\\ud800\\t"


@pytest.mark.skipif(sys.platform != "linux", reason="only there is every byte a file's name")
def test_a_file_whose_name_is_no_text(written, tmp_path):
    name = os.fsdecode(b"\xff.json")
    with open(os.path.join(str(tmp_path), name), "wb") as file:
        file.write(b"{")
    log().error("%s", Journal(str(tmp_path)).read(name))
    assert "\\udcff.corrupt" in written()
