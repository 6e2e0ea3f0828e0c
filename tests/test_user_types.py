"""Type checkers find in users' code what is misspelt, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
CODE = os.path.join(HERE, "user_code.py")


@pytest.fixture
def code(tmp_path):
    """The users' code, away from this project's own configuration, with the package beside it."""
    shutil.copy(CODE, str(tmp_path / "user_code.py"))
    (tmp_path / "cycles_lite").symlink_to(os.path.join(os.path.dirname(HERE), "cycles_lite"), target_is_directory=True)
    return tmp_path


def refused():
    with open(CODE, encoding="utf-8") as file:
        return {number for number, line in enumerate(file, 1) if line.endswith("  # refused\n")}


def told(lines):
    """What a checker was right about, what it missed, and what it was wrong about; `lines` are its (line, message)s."""
    found = {line for line, _ in lines}
    return {"missed": sorted(refused() - found), "wrong": [pair for pair in lines if pair[0] not in refused()]}


def test_mypy_finds_every_mistake_and_nothing_else(code):
    pytest.importorskip("mypy", reason="the extra [lint] is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", "--cache-dir", "cache"]
    command += ["--no-error-summary", "--config-file=", "user_code.py"]
    done = subprocess.run(command, cwd=str(code), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = re.findall(r"^user_code\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == done.stdout.count(": error: "), done.stdout
    assert told([(int(line), message) for line, message in lines]) == {"missed": [], "wrong": []}


def test_pyright_finds_every_mistake_and_nothing_else(code):
    pytest.importorskip("basedpyright", reason="the extra [lint] is not installed")
    settings = {"typeCheckingMode": "standard", "include": ["user_code.py"], "pythonVersion": "3.10"}
    (code / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(command, cwd=str(code), stdout=subprocess.PIPE, text=True)
    found = [entry for entry in json.loads(done.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    lines = [(entry["range"]["start"]["line"] + 1, entry["message"]) for entry in found]
    assert told(lines) == {"missed": [], "wrong": []}
