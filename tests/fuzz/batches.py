"""Cases in child processes, in batches: one that ends the child, or hangs, is reported like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

from serving import ROOT

HERE = os.path.dirname(os.path.abspath(__file__))

#: Cases of one child process, and seconds that one may take.
BATCH, PATIENCE = 500, 600.0


def run(fuzz, program, folder, short, may_crash=False):
    """Run a campaign's cases by a program of this folder; `may_crash` counts the signals that end it."""
    numbers = list(fuzz.numbers(short))
    while numbers:
        inside = tempfile.mkdtemp(dir=str(folder))
        numbers = numbers[_batch(fuzz, program, inside, numbers[:BATCH], may_crash) :]
        shutil.rmtree(inside)
    fuzz.judge()


def _batch(fuzz, program, folder, batch, may_crash):
    """Returns how many cases the child has tried: where it ended early, the last one was its end."""
    command = [sys.executable, os.path.join(HERE, program), folder, str(fuzz.seed), str(batch[0]), str(len(batch))]
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "tests"), HERE])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.call(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=PATIENCE, env=environment
            )
        except subprocess.TimeoutExpired:
            status = None
        out.seek(0)
        err.seek(0)
        lines, complaint = out.read().splitlines(), err.read().decode("utf-8", "replace")
    number = batch[0]
    for line in map(json.loads, lines):
        number = line.get("number", number)
        if "outcome" in line:
            fuzz.counts[line["outcome"]] += 1
        elif "failure" in line:
            fuzz.failed(number, line["kind"], line["failure"])
    if status is None:
        fuzz.failed(number, "hang", f"the child hung; its last words: {complaint[-3000:]}")
    elif status < 0 and may_crash:
        fuzz.counts[f"ended by signal {-status}"] += 1
    else:
        assert status == 0, (number, status, complaint[-5000:])
        assert "Traceback" not in complaint, complaint
    return number - batch[0] + 1
