"""The demo is a newcomer's first run: it must tell its story, and fail when what it claims does not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cycles_lite.cli import demo, main, story
from cycles_lite.local import Authority

SCENES = ["read", "caps", "release", "event", "overrun", "risk"]


def run(*arguments, **environment):
    """The demo in a process of its own, as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "cycles_lite", "demo", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )


def test_the_story_is_told_and_holds():
    done = run(PYTHONIOENCODING="utf-8")
    story = done.stdout.decode("utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    for word in ("reserved", "DENIED", "ALLOW_WITH_CAPS", "released", "APPLIED", "debt", "e-mail", "All of it held."):
        assert word in story
    assert "█" in story


def test_a_plain_terminal_gets_plain_ascii():
    done = run(PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"###" in done.stdout
    assert max(done.stdout) < 128


def test_json_is_for_machines(capsys):
    assert main(["demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [scene["scene"] for scene in told["scenes"]] == SCENES
    assert told["held"] is True
    assert all(check["held"] for check in told["checks"])
    assert told["scenes"][0]["steps"][-1]["denied"] == "BUDGET_EXCEEDED"
    assert any(row["scope_path"] == "tenant:demo" for row in told["balances"])


def test_http_tells_the_same_story(capsys):
    pytest.importorskip("waitress", reason="the extra [server] is not installed")
    assert main(["demo", "--json", "--http"]) == 0
    over_http = json.loads(capsys.readouterr().out)
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == over_http


def test_texts_of_ones_own(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {number} " + "word " * 9 for number in range(10)), encoding="utf-8")
    assert main(["demo", "--json", str(text)]) == 0
    steps = json.loads(capsys.readouterr().out)["scenes"][0]["steps"]
    assert [step["charged"] for step in steps[:-1]] == [11] * (len(steps) - 1)
    assert steps[-1]["denied"] == "BUDGET_EXCEEDED"


@pytest.mark.parametrize("words", [1, 2, 3, 7, 50, 1000])
def test_texts_of_any_length_run_out_of_budget(tmp_path, capsys, words):
    text = tmp_path / "text.txt"
    text.write_text("word " * words, encoding="utf-8")
    assert main(["demo", "--json", str(text)]) == 0
    assert json.loads(capsys.readouterr().out)["held"] is True


def test_a_text_without_words_is_an_error(tmp_path, capsys):
    text = tmp_path / "empty.txt"
    text.write_text(" \n\n", encoding="utf-8")
    assert main(["demo", str(text)]) == 2
    assert capsys.readouterr().err == "cycles-lite: demo: there is no word in the text to work through\n"


def test_a_missing_text_is_an_error(capsys):
    assert main(["demo", "/nowhere/text.txt"]) == 2
    assert "/nowhere/text.txt cannot be read" in capsys.readouterr().err


def test_a_ledger_that_does_not_hold_fails_the_demo(monkeypatch, capsys):
    """Exit status 0 means that all of it held, so a violation must show."""
    monkeypatch.setattr(Authority, "check", lambda self: ["a budget does not add up"])
    assert main(["demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["held"] is False


def test_the_default_text_is_prose():
    text = demo.default_text()
    assert story.count_words(text) > 100
    assert "Metadata-Version" not in text
    assert "pip install" not in text
