"""Mutated budget files: each is refused or used, by errors of ours alone, and a file of another program stays as it is.

SQLite itself may crash on a file that is broken on purpose, so that child processes open them, in batches.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

from serving import ROOT

#: Cases of one child process, and seconds that one may take.
BATCH, PATIENCE = 500, 600.0


def test_budget_files(fuzz, tmp_path):
    """Which of SQLite's own crashes there are is counted; they are no failure."""
    numbers = list(fuzz.numbers(short=100))
    while numbers:
        batch = numbers[:BATCH]
        folder = tempfile.mkdtemp(dir=str(tmp_path))
        done = batch_of(fuzz, folder, batch)
        numbers = numbers[done:]
        shutil.rmtree(folder)
    fuzz.judge()


def batch_of(fuzz, folder, batch):
    """Run some cases in a child. Returns how many it has tried: where it ended early, the last one was its end."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "files_child.py")
    command = [sys.executable, program, folder, str(fuzz.seed), str(batch[0]), str(len(batch))]
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "tests"), os.path.dirname(program)])
    with open(os.path.join(folder, "stdout"), "w+b") as out, open(os.path.join(folder, "stderr"), "w+b") as err:
        try:
            status = subprocess.call(
                command, stdout=out, stderr=err, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
            )
        except subprocess.TimeoutExpired:
            status = None
        out.seek(0)
        err.seek(0)
        lines, complaint = out.read().splitlines(), err.read().decode("utf-8", "replace")
    number, is_open = batch[0], False
    for line in map(json.loads, lines):
        if "number" in line:
            number, is_open = line["number"], True
        elif "outcome" in line:
            fuzz.counts[line["outcome"]] += 1
            is_open = False
        else:
            fuzz.failed(number, line["kind"], line["failure"])
            is_open = False
    if status is None:
        fuzz.failed(number, "hang", f"the child hung; its last words: {complaint[-2000:]}")
    elif status < 0:
        fuzz.counts[f"SQLite crashed with signal {-status}"] += 1
    else:
        assert status == 0, complaint
        assert not is_open
        assert "Traceback" not in complaint, complaint
    return number - batch[0] + 1
