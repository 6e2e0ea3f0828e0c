"""Type checkers find in users' code what is misspelt, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pages
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = "3.11"


@pytest.fixture(params=["user_code.py", "typed_wrappers.py"])
def code(request, tmp_path):
    """Users' code, away from this project's own configuration, with the package beside it."""
    (tmp_path / "cycles_lite").symlink_to(os.path.join(os.path.dirname(HERE), "cycles_lite"), target_is_directory=True)
    return shutil.copy(os.path.join(HERE, request.param), str(tmp_path / "code.py"))


@pytest.fixture
def readme(tmp_path):
    """The Python blocks of the README, a file each, likewise."""
    (tmp_path / "cycles_lite").symlink_to(os.path.join(os.path.dirname(HERE), "cycles_lite"), target_is_directory=True)
    blocks = [block.code for block in pages.blocks(pages.read("README.rst")) if block.language == "python"]
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(block, encoding="utf-8")
    return tmp_path


def told(code, found):
    """What a checker missed, and what it was wrong about; `found` are its (line, message)s."""
    with open(code, encoding="utf-8") as file:
        refused = {number for number, line in enumerate(file, 1) if line.endswith("  # refused\n")}
    assert refused
    return {
        "missed": sorted(refused - {line for line, _ in found}),
        "wrong": [pair for pair in found if pair[0] not in refused],
    }


def test_mypy_finds_every_mistake_and_nothing_else(code):
    pytest.importorskip("mypy", reason="the extra [lint] is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", PYTHON, "--cache-dir", "cache"]
    command += ["--no-error-summary", "--config-file=", "code.py"]
    done = subprocess.run(
        command, cwd=os.path.dirname(code), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = re.findall(r"^code\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == done.stdout.count(": error: "), done.stdout
    assert told(code, [(int(line), message) for line, message in lines]) == {"missed": [], "wrong": []}


def test_the_readmes_blocks_are_typed_for_mypy(readme):
    pytest.importorskip("mypy", reason="the extra [lint] is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", PYTHON, "--cache-dir", "cache"]
    command += ["--config-file=", *sorted(path.name for path in readme.glob("block*.py"))]
    done = subprocess.run(command, cwd=str(readme), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_the_readmes_blocks_are_typed_for_pyright(readme):
    pytest.importorskip("basedpyright", reason="the extra [lint] is not installed")
    settings = {"typeCheckingMode": "standard", "include": ["block*.py"], "pythonVersion": PYTHON}
    (readme / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright"]
    done = subprocess.run(command, cwd=str(readme), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_pyright_finds_every_mistake_and_nothing_else(code):
    pytest.importorskip("basedpyright", reason="the extra [lint] is not installed")
    settings = {"typeCheckingMode": "standard", "include": ["code.py"], "pythonVersion": PYTHON}
    with open(os.path.join(os.path.dirname(code), "pyrightconfig.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file)
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(command, cwd=os.path.dirname(code), stdout=subprocess.PIPE, text=True)
    found = [entry for entry in json.loads(done.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    lines = [(entry["range"]["start"]["line"] + 1, entry["message"]) for entry in found]
    assert told(code, lines) == {"missed": [], "wrong": []}
