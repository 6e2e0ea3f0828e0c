"""README.rst shows only what was run: here is where it runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap

import pytest

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.rst")


def readme():
    with open(README, encoding="utf-8") as file:
        return file.read()


def blocks(text):
    """The literal blocks, without their indentation."""
    return [textwrap.dedent(found) for found in re.findall(r"(?:::|python)\n\n((?:    .*\n|\n)+)", text)]


def block_with(word):
    (found,) = [block for block in blocks(readme()) if word in block]
    return found.strip()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    return tmp_path


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, text=True)


def cli(arguments):
    return run("-m", "cycles_lite", *arguments)


def test_the_start_and_the_snippets_work_together(folder, monkeypatch):
    """The commands make the budget that the Python snippets then draw on, one after the other."""
    set_budget, export = block_with("cycles-lite budget set").splitlines()
    done = cli(shlex.split(set_budget)[1:])
    assert (done.returncode, done.stderr) == (0, "")
    for assignment in shlex.split(export)[1:]:
        monkeypatch.setenv(*assignment.split("=", 1))
    said = {
        "with_cycles": "a reply HELLO\n",
        "settlement = guard.commit": "COMMITTED 742 None\n",
        "create_reservation": f"742 charged, {100_000 - 42 - 5 - 742 - 742} left\n",
        "guard.stream": "one token each\n",
    }
    for word, output in said.items():
        done = run("-c", block_with(word + "("))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == output
    (listing,) = re.findall(r"``cycles-lite (budget list [^`]*)``", readme())
    assert "98,466 of 100,000 tokens left" in cli(listing.split()).stdout


def test_the_set_up_commands_are_single_lines():
    """`.ci/run` takes both from here and runs them on a fresh copy."""
    for end in ("-m cycles_lite demo", "-m pytest -q -n auto"):
        assert re.search(rf"^    python3 -m venv \.venv && .*{re.escape(end)}$", readme(), re.MULTILINE)


def test_every_setting_is_named_with_its_default():
    from cycles_lite import CyclesConfig

    rows = re.findall(r"^(\w+) {2,}(\S+) {2,}\S", readme(), re.MULTILINE)
    shown = {name: default for name, default in rows if name not in ("name",)}
    for name, default in shown.items():
        actual = CyclesConfig.__dataclass_fields__[name].default
        assert default == {True: "true", False: "false"}.get(actual, str(actual))
