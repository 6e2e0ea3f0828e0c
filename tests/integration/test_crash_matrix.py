"""SIGKILL at random instants, hundreds of times: after a restart the ledger ends exactly right.

What is proved, over every round of `crash_lane`:

- an amount whose commit was answered, or was in the journal when its process died, is in the ledger exactly once,
  whether its reservation still lived when it was replayed or not, also where the replay was killed too;
- an amount that was about to be handed over when its process died is there once or not at all;
- nothing else is charged, no reservation of finished work is released, and the ledger's invariants hold.

CRASH_ROUNDS sets the number of rounds (each with two killed workers and a killed recovery), CRASH_SEED repeats the
random choices of one run; its instants are the machine's.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys

import pytest
from faults import Faults, at_random, failed_afterwards, lost_answer, lost_request, throttled_not_at_all, truncated
from peers import Peer, create_request
from serving import ROOT, process

from cycles_lite import Amount, CyclesClient, CyclesConfig
from cycles_lite.local import Authority

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "200"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().getrandbits(32)
PLACES = ("in process", "through a proxy with faults")
LANES = 2

#: Faults that take no time.
RATES = {
    lost_request: 0.03,
    lost_answer: 0.05,
    truncated: 0.05,
    failed_afterwards: 0.03,
    throttled_not_at_all: 0.03,
}

KEY = "crash-matrix-key"
BUDGET = 10**15

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")]


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_instant_the_ledger_ends_exactly_right(place, tmp_path):
    print(f"CRASH_SEED={SEED} CRASH_ROUNDS={ROUNDS}")  # pytest shows it when the test fails
    url = f"sqlite:///{tmp_path}/budgets.db"
    if place != "in process":
        options = ("--tenant", "acme", "--api-key", KEY, "--budget", f"tenant:acme=TOKENS:{BUDGET}")
        with process(tmp_path, *options) as server:
            with Peer(talk=Faults(server.url, at_random(SEED, RATES)).talk) as proxy:
                run_lanes(proxy.url, tmp_path)
            assert server.end() == (0, "", "")
    else:
        with Authority(url) as authority:
            authority.set_budget("tenant:acme", Amount.tokens(BUDGET))
        run_lanes(url, tmp_path)
    rounds = [Round(folder) for folder in sorted(tmp_path.glob("lane-*/round-*"))]
    assert len(rounds) == ROUNDS // len(PLACES) // LANES * LANES
    judge(url, rounds)


def run_lanes(url, tmp_path):
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "crash_lane.py")
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error"}
    lanes = []
    try:
        for number in range(LANES):
            folder = tmp_path / f"lane-{number}"
            folder.mkdir()
            given = {"url": url, "key": KEY, "folder": str(folder), "seed": SEED + number}
            given["rounds"] = ROUNDS // len(PLACES) // LANES
            with open(str(folder / "stderr"), "wb") as errors:
                lanes.append(
                    subprocess.Popen([sys.executable, program, json.dumps(given)], env=environment, stderr=errors)
                )
        codes = [lane.wait(60 + 5 * ROUNDS) for lane in lanes]
    finally:
        for lane in lanes:
            lane.kill()
            lane.wait()
    for number, code in enumerate(codes):
        said = (tmp_path / f"lane-{number}" / "stderr").read_text()
        assert code == 0, said[-3000:]
        assert "Traceback" not in said
        assert "refused for good" not in said  # as a retry with another key would be


def test_a_file_that_a_kill_left_within_a_checkpoint_opens(tmp_path):
    """A checkpoint copies page 1 first, which counts pages that are still in the WAL alone. All data is there."""
    path, killed = tmp_path / "budgets.db", tmp_path / "killed.db"
    with Authority(f"sqlite:///{path}") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(BUDGET))
    with CyclesClient(CyclesConfig(base_url=f"sqlite:///{path}", tenant="acme", journal_enabled=False)) as client:
        for _ in range(100):
            client.create_reservation(create_request())
        for suffix in ("", "-wal"):
            shutil.copy(str(path) + suffix, str(killed) + suffix)
    with open(str(killed), "r+b") as file:
        file.write(newest_page_1(str(killed) + "-wal"))
    with Authority(f"sqlite:///{killed}") as authority:
        (budget,) = authority.budgets()
        assert budget.reserved == 100 * 100
        assert authority.check() == []


def newest_page_1(path):
    """From the frames of a WAL (https://www.sqlite.org/fileformat2.html, section 4)."""
    with open(path, "rb") as file:
        wal = file.read()
    (size,) = struct.unpack(">I", wal[8:12])
    frames = (wal[at : at + 24 + size] for at in range(32, len(wal), 24 + size))
    return [frame[24:] for frame in frames if frame[:4] == b"\0\0\0\1"][-1]


class Round:
    """What is known of one round from outside."""

    def __init__(self, folder):
        self.name = f"{folder.parent.name}/{folder.name}"
        self.handed, self.results, self.releasing = {}, {}, set()
        for path in folder.glob("told-*"):
            for line in path.read_text().splitlines():
                self._take_in(*line.split())
        self.journaled = set((folder / "journaled").read_text().split())
        self.left = [path for path in pathlib.Path(folder, "journal").rglob("v2-*") if path.suffix != ".tmp"]

    def _take_in(self, word, *more):
        if word == "handed":
            self.handed[more[0]] = int(more[1])
        elif word == "result":
            self.results[more[0]] = more[1]
        elif word == "releasing":
            self.releasing.add(more[0])

    @property
    def owed(self):
        """What must be in the ledger: what was answered for, and what was on disk."""
        return {id: amount for id, amount in self.handed.items() if id in self.results or id in self.journaled}


def judge(url, rounds):
    with Authority(url, create=False) as authority:
        with CyclesClient(CyclesConfig(base_url=url, tenant="acme", journal_enabled=False)) as client:
            ledger = {row.reservation_id: row for row in client.iter_reservations(limit=200)}
        assert [problem for one in rounds for problem in problems(one, ledger)] == []
        expired = {id: amount for one in rounds for id, amount in one.owed.items() if ledger[id].status == "EXPIRED"}
        committed = sum(row.committed.amount for row in ledger.values() if row.committed)
        (budget,) = authority.budgets()
        assert (budget.spent, budget.debt) == (committed + sum(expired.values()), 0)
        assert authority.check() == []
    summary = {
        "reservations": len(ledger),
        "handed over": sum(len(one.handed) for one in rounds),
        "journals with records": sum(bool(one.journaled) for one in rounds),
        "told PENDING": sum(list(one.results.values()).count("PENDING") for one in rounds),
        "settled by events": len(expired),
    }
    print(summary)
    # Else the kills came where they prove little.
    assert summary["journals with records"] * 20 >= len(rounds), summary
    assert summary["settled by events"] or len(rounds) < 500, summary


def problems(one, ledger):
    """What is wrong with the reservations of one round, a sentence each."""
    known = set(one.handed) | one.releasing
    yield from (f"{one.name}: {id} is not in the ledger" for id in known - set(ledger))
    yield from (f"{one.name}: {path} was not settled" for path in one.left)
    for id in sorted(known & set(ledger)):
        row, amount = ledger[id], one.handed.get(id)
        charged = row.committed.amount if row.committed else None
        if charged is not None and charged != amount:
            yield f"{one.name}: {id} was charged {charged}, not {amount}"
        if amount is not None and row.status == "RELEASED":
            yield f"{one.name}: {id} was released, and its work had cost {amount}"
        if id in one.owed and row.status not in ("COMMITTED", "EXPIRED"):
            yield f"{one.name}: {id} is {row.status}, and owes {amount}"
