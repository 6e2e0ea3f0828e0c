"""The embedded authority: in process on its file, from several processes, and behind HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile

from cycles_lite import CyclesClient, CyclesConfig
from cycles_lite.local import Authority

from . import ledger, work
from .canned import HERE, process
from .report import Row, Target
from .scale import _in_threads
from .timing import beside

_SCOPES = ledger.SCOPES
_new = ledger.new_authority


def _client(url: str) -> CyclesClient:
    return CyclesClient(CyclesConfig(base_url=url, tenant="acme", agent="bot"))


def sqlite(quick: bool) -> list[Row]:
    """Reserve and commit without a server."""
    alone = [*ledger.same_statements(quick), *ledger.lists(quick), *ledger.room(quick)]
    with tempfile.TemporaryDirectory() as folder, _new(folder) as authority:
        return [*alone, *_processes(quick, authority)]


#: A process that waits for a line, does its pairs, and says how long that took.
_CHILD = """
import json, sys, time
from benchmarks import authority, work
url, count = sys.argv[1], int(sys.argv[2])
errors = 0
with authority._client(url) as client:
    pair = work.plain(client)
    pair()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(count):
        try:
            pair()
        except Exception as e:
            errors += 1
            print(e, file=sys.stderr)
    print(json.dumps([time.perf_counter() - start, errors]))
"""


def _processes(quick: bool, authority: Authority) -> list[Row]:
    calls, rounds = (20, 1) if quick else (1500, 5)
    told: dict[int, list[tuple[float, int]]] = {1: [], 4: []}
    lost = 0

    def pairs_a_second(count: int) -> float:
        nonlocal lost
        before = _spent(authority)
        found = _together(count, authority.url, calls)
        told[count] += found
        lost += (before + count * (calls + 1) * 742) - _spent(authority)
        return count * calls / max(seconds for seconds, _ in found)

    four, one = beside(lambda: pairs_a_second(4), lambda: pairs_a_second(1), rounds)
    errors = sum(failed for found in told.values() for _, failed in found)
    problems = authority.check()
    how = f"{calls} pairs a process; medians of {rounds} rounds, alternating"
    return [
        Row("SQLite: 4 processes on one file", four, "pairs/s", one, "1 process", None, how),
        Row(
            "SQLite: amount lost by then",
            lost + len(problems),
            "",
            None,
            "",
            Target(0, "ours"),
            "and broken invariants",
        ),
        Row("SQLite: errors by then", errors, "", None, "", Target(0, "ours"), "of any kind, locks included"),
    ]


def _together(count: int, url: str, calls: int) -> list[tuple[float, int]]:
    """Processes that start together: how long each took, and how many errors it saw."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, url, str(calls)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
        )
        for _ in range(count)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [tuple(json.loads(child.communicate()[0])) for child in children]


def _spent(authority: Authority) -> int:
    return next(budget.spent for budget in authority.budgets() if budget.scope == _SCOPES[0])


# ---- Behind HTTP ----


def serve(quick: bool) -> list[Row]:
    """`cycles-lite serve`, beside the same web server with canned answers."""
    what = "serve: create + commit, 4 threads"
    if importlib.util.find_spec("waitress") is None:
        return [Row(what, None, "pairs/s", how="not measured: waitress (extra [server]) is not installed")]
    rounds, calls = (2, 5) if quick else (11, 200)
    with tempfile.TemporaryDirectory() as folder, _new(folder) as authority:
        key = authority.create_key("acme").key_secret
        arguments = ("cycles_lite", "serve", "--db", os.path.join(folder, "budgets.db"), "--port", "0")
        with process(*arguments) as url, process("benchmarks.hollow") as hollow_url:
            with CyclesClient(work.config(url, api_key=key)) as client, CyclesClient(work.config(hollow_url)) as hollow:

                def pairs_a_second(client: CyclesClient) -> float:
                    pair = work.plain(client)
                    return 4 * calls / _in_threads(4, lambda: [pair() for _ in range(calls)])

                pairs_a_second(client), pairs_a_second(hollow)
                ours, peer = beside(lambda: pairs_a_second(client), lambda: pairs_a_second(hollow), rounds)
        problems = authority.check()
    assert problems == [], problems
    how = f"client and server share the cores; {calls} pairs a thread; medians of {rounds} rounds, alternating"
    return [Row(what, ours, "pairs/s", peer, "waitress, canned", None, how)]
