"""Every snippet in docs/ runs, and every program in examples/."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from cycles_lite import Amount
from cycles_lite.local import Authority

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def blocks():
    for path in sorted(glob.glob(os.path.join(ROOT, "docs", "*.rst"))):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for match in re.finditer(r"(\.\. code-block:: python|::)\n\n((?:    .*\n|\n)+)", text):
            line = text.count("\n", 0, match.start()) + 1
            kind = "python" if "python" in match.group(1) else "shell"
            yield pytest.param(kind, textwrap.dedent(match.group(2)), id=f"{os.path.basename(path)}:{line}")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(100_000))
        monkeypatch.setenv("CYCLES_BASE_URL", authority.url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("kind", "block"), list(blocks()))
def test_a_snippet_runs(kind, block, environment):
    if kind == "shell":
        commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
        commands = [[sys.executable, "-m", "cycles_lite", *words] for words in commands]
    else:
        for module in re.findall(r"^(?:from|import) (bottle|django|flask|prometheus_client)", block, re.MULTILINE):
            pytest.importorskip(module)
        (environment / "test_snippet.py").write_text(block, encoding="utf-8")
        is_test = "def test_" in block
        commands = [[sys.executable, *(["-m", "pytest", "-q"] if is_test else []), "test_snippet.py"]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, timeout=120, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_prints_what_it_has_paid_for_until_the_budget_says_no(environment):
    (environment / "short.txt").write_text("Short\nindeed. And more of it.", encoding="utf-8")
    (environment / "long.txt").write_text("word " * 60_000, encoding="utf-8")
    program = os.path.join(ROOT, "examples", "first_sentences.py")
    done = subprocess.run(
        [sys.executable, program, "short.txt", "long.txt", "short.txt"], capture_output=True, timeout=120, text=True
    )
    assert (done.returncode, done.stdout) == (75, "short.txt: Short indeed.\n")
    assert done.stderr.startswith("long.txt: ")
    with Authority(os.environ["CYCLES_BASE_URL"]) as authority:
        (budget,) = authority.budgets()
    assert (budget.spent, budget.reserved) == (6 + 2, 0)


def texts():
    """The documentation, by its files' paths."""
    for path in [*glob.glob(os.path.join(ROOT, "*.rst")), *glob.glob(os.path.join(ROOT, "*", "*.rst"))]:
        with open(path, encoding="utf-8") as file:
            yield path, file.read()


def test_what_the_documentation_names_is_there():
    """Files and folders, by their paths from the root, from the package, or from the text's own folder."""
    for path, text in texts():
        for named in re.findall(r"``([\w./]*\w(?:\.py|\.rst|/))``", text):
            places = [ROOT, os.path.join(ROOT, "cycles_lite"), os.path.dirname(path)]
            assert any(os.path.exists(os.path.join(place, named)) for place in places), (path, named)


def test_contributing_says_of_each_folder_what_belongs_there():
    told = re.findall(r"^- ``(\w+)/``: ", dict(texts())[os.path.join(ROOT, "CONTRIBUTING.rst")], re.MULTILINE)
    assert sorted(told) == sorted(
        name for name in os.listdir(os.path.join(ROOT, "cycles_lite")) if re.match(r"[a-z]+\Z", name)
    )
