"""The embedded authority: in process on its file, from several processes, and behind HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from cycles_lite import CyclesClient, CyclesConfig
from cycles_lite.local import Authority

from . import ledger, work
from .canned import HERE, process
from .crowd import Crowd, Found, crowd
from .report import Row, Target
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


#: How many clients a server has at once.
_CROWDS = (1, 8, 64)


def serve(quick: bool) -> list[Row]:
    """`cycles-lite serve` with one client and with many, beside the same web server with canned answers."""
    if importlib.util.find_spec("waitress") is None:
        return [Row("serve: 1 client", None, "pairs/s", how="not measured: waitress (extra [server]) is not installed")]
    rounds, pairs = (1, 64) if quick else (11, 400)
    with tempfile.TemporaryDirectory() as folder, _new(folder) as authority:
        key = authority.create_key("acme").key_secret
        arguments = ("cycles_lite", "serve", "--db", os.path.join(folder, "budgets.db"), "--port", "0", "--quiet")
        with process(*arguments) as url, process("benchmarks.hollow") as hollow_url:
            with crowd(url, key or "") as ours, crowd(hollow_url, work.KEY) as hollow:
                for serving in (ours, hollow):
                    serving(max(_CROWDS), 2 * max(_CROWDS))
                found = [_crowds(ours, hollow, clients, pairs, rounds) for clients in _CROWDS]
        problems = authority.check()
    assert problems == [], problems
    how = (
        f"{pairs} pairs by all clients together; medians of {rounds} rounds, alternating; all clients are one thread "
        "of one process beside the server"
    )
    return _serve_rows(found, how)


def _crowds(ours: Crowd, hollow: Crowd, clients: int, pairs: int, rounds: int) -> tuple[Found, Found]:
    """What so many clients see of ours and of the peer: medians of the rounds, which take turns."""
    seen: tuple[list[Found], list[Found]] = ([], [])
    for number in range(rounds):
        turns = [(seen[0], ours), (seen[1], hollow)]
        for figures, serving in turns if number % 2 == 0 else turns[::-1]:
            figures.append(serving(clients, pairs))
    our, its = [Found(*map(median, zip(*figures))) for figures in seen]
    return our, its


def _serve_rows(found: list[tuple[Found, Found]], how: str) -> list[Row]:
    names = ["1 client" if clients == 1 else f"{clients} clients" for clients in _CROWDS]
    rows = [
        Row(f"serve: {name}", our.pairs_a_second, "pairs/s", its.pairs_a_second, "waitress, canned")
        for name, (our, its) in zip(names, found)
    ]
    alone = found[0][0].pairs_a_second
    for name, (our, _) in zip(names[1:], found[1:]):
        floor = Target(0.85, is_floor=True)
        rows.append(Row(f"serve: {name} to 1", our.pairs_a_second, "pairs/s", alone, "1 client", floor))
    for name, (our, its) in zip(names, found):
        rows.append(Row(f"serve: {name}, p50", our.p50, "ms", its.p50, "waitress, canned"))
        rows.append(Row(f"serve: {name}, p99", our.p99, "ms", its.p99, "waitress, canned"))
    eight = found[1][0]
    rows.append(Row("serve: 8 clients, p99 to p50", eight.p99, "ms", eight.p50, "p50", Target(10.0)))
    return [rows[0]._replace(how=how), *rows[1:]]
