"""Signatures survive type checkers."""

from __future__ import annotations

import os
import re

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))


def test_mypy_infers_what_the_wrappers_return_and_finds_wrong_uses(tmp_path):
    """In its strict mode, and nothing else in that file is an error."""
    api = pytest.importorskip("mypy.api", reason="mypy is for those who check types")
    path = os.path.join(HERE, "typed_wrappers.py")
    with open(path, encoding="utf-8") as file:
        wrong = {number for number, line in enumerate(file, 1) if line.endswith("# wrong\n")}
    options = ["--strict", "--python-version", "3.11", "--config-file=", "--cache-dir", str(tmp_path)]
    out, problems, _ = api.run([*options, path])
    found = {int(number) for number in re.findall(r"typed_wrappers\.py:(\d+): error", out)}
    assert (found, problems) == (wrong, ""), out
