"""The benchmarks run and say what they have to; what they find is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from serving import PATIENCE, ROOT

if sys.version_info < (3, 10):
    pytest.skip("the benchmarks need Python 3.10, as the official SDK does", allow_module_level=True)
sys.path.insert(0, ROOT)
from benchmarks.__main__ import BENCHMARKS
from benchmarks.moves import FOLLOWED
from benchmarks.report import Row, Target, as_text

pytestmark = pytest.mark.thorough


def run(*arguments):
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_runs(name):
    """Every row has a figure of ours, and one of the peer where it names one; nothing is lost and nothing lapses."""
    found = json.loads(run("--quick", "--json", "--only", name))
    assert found["machine"].startswith("CPython 3.")
    assert found["rows"]
    for row in found["rows"]:
        if row["how"] == "not measured: valgrind is not on this machine":
            continue
        assert row["ours"] is not None, row
        assert (row["peer"] is not None) is bool(row["beside"]), row
        assert (row["verdict"] == "") is (row["target"] is None), row
        assert row["how"] or row["peer"] is not None, row
    exact = [row for row in found["rows"] if row["target"] == "<= 0"]
    assert [row["what"] for row in exact if row["ours"] != 0] == []


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("a", 12, "us", 10, "b", Target(1.2)), "met"),
        (Row("a", 12.1, "us", 10, "b", Target(1.2)), "MISSED"),
        (Row("a", 8, "us", 10, "b", Target(0.8, is_floor=True)), "met"),
        (Row("a", 7.9, "us", 10, "b", Target(0.8, is_floor=True)), "MISSED"),
        (Row("a", 400, "us", 1, "b", Target(400, "ours")), "met"),
        (Row("a", 401, "us", 1, "b", Target(400, "ours")), "MISSED"),
        (Row("a", 0, "", target=Target(0, "ours")), "met"),
        (Row("a", 1, "us", 2, "b"), ""),
        (Row("a", None, "us", None, "", Target(1.2)), ""),
    ],
)
def test_a_target_is_met_up_to_its_limit(row, verdict):
    assert row.verdict == verdict


def test_the_table_says_what_was_measured_against_what():
    text = as_text([Row("import", 36.8, "ms", 101.2, "urllib3", Target(0.5), "how it was measured")])
    assert "import  36.8 ms  101 ms urllib3  0.36 x  <= 0.50 x  met" in text
    assert text.endswith("import: how it was measured")


def test_a_profile_shows_where_the_time_goes():
    assert "cycles_lite" in run("--profile", "guard")


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_call_does_not_wander(name):
    """The same each time, other than a figure of time: so it is asserted."""
    follow, most = FOLLOWED[name]
    moves = follow()
    assert len(moves.files) > 5
    assert moves.moves <= most, moves
