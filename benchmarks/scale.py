"""What changes with the number of guards, threads, calls and waiting records: it should be nothing."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
import urllib.request
from functools import partial
from typing import Any, Callable

from cycles_lite import Action, Amount, CyclesClient, ReservationGuard, events

from . import work
from .backlog import resident_bytes, with_records
from .canned import canned
from .report import Row, Target
from .timing import beside, microseconds, wall

_THREADS = 16


def _in_threads(count: int, run: Callable[[], Any]) -> float:
    """Run something in some threads that start together; the seconds until the last one ends."""
    gate = threading.Barrier(count + 1)

    def wait_and_run() -> None:
        gate.wait()
        run()

    threads = [threading.Thread(target=wait_and_run) for _ in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    start = wall()
    for thread in threads:
        thread.join()
    return wall() - start


# ---- Many guards at once ----


def live_guards(quick: bool) -> list[Row]:
    """10,000 guards that stay open while their heartbeats go on."""
    count, seconds, ttl_ms = (100, 2.5, 4_000) if quick else (10_000, 150.0, 60_000)
    failed: list[events.HeartbeatFailed] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.HeartbeatFailed):
            failed.append(event)

    with canned(delay_ms=20, ttl_ms=ttl_ms) as url:
        client = CyclesClient(work.config(url), observer=observe)
        guards: list[ReservationGuard] = []

        def reserve() -> None:
            for _ in range(count // _THREADS + 1):
                guards.append(client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o"), ttl_ms=ttl_ms))

        _in_threads(_THREADS, lambda: client.reserve(Amount.tokens(1), Action("a", "b")).release("warm"))
        gc.collect()
        before = resident_bytes()
        made_in = _in_threads(_THREADS, reserve)
        gc.collect()
        each = (resident_bytes() - before) / len(guards) / 1024
        threads = _most_threads(seconds)
        with urllib.request.urlopen(url + "/book") as answer:
            book = json.loads(answer.read())
        assert book["live"] == len(guards), book

        def release() -> None:
            while guards:
                try:
                    guards.pop().release("done")
                except IndexError:
                    return

        _in_threads(_THREADS, release)
        client.close()
    lasted = f"{seconds:.0f} s; reserved in {made_in:.0f} s"
    how = f"{book['live']} guards, TTL {ttl_ms / 1000:.0f} s, round trip 20 ms, for {lasted}"
    return [
        Row("live guards: threads", threads, "", None, "", Target(8, "ours"), how + "; the main thread is one of them"),
        Row("live guards: memory each", each, "KiB", None, "", Target(3, "ours"), "growth of resident memory"),
        Row(
            "live guards: lapses",
            book["lapsed"] + len(failed),
            "",
            None,
            "",
            Target(0, "ours"),
            f"expired before their extension came, or told to the observer; {book['beats']} beats came",
        ),
    ]


def _most_threads(seconds: float) -> int:
    """The most threads that there are at any time in the next seconds."""
    most, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, threading.active_count())
        time.sleep(0.02)
    return most


# ---- Many threads on one client ----


def threads(quick: bool) -> list[Row]:
    """Sixteen threads on one client: the programmatic client, and the default path with its guard and journal. Beside
    them sixteen on one bare pool, and sixteen with a connection each."""
    rounds, calls = (2, 5) if quick else (15, 100)
    with canned() as url, CyclesClient(work.config(url)) as client:
        plain, guarded = work.plain(client), work.guarded(client)
        pool, single = work.Bare(url, _THREADS).work, work.BareHttp(url).work
        cases = [
            ("16 threads, create + commit", plain, pool, "bare urllib3 pool", Target(0.80, is_floor=True)),
            ("16 threads, guard, journal on", guarded, pool, "bare urllib3 pool", Target(0.80, is_floor=True)),
            ("16 threads, guard, journal on", guarded, single, "bare http.client", None),
        ]

        def pairs_a_second(one: work.Work) -> float:
            def run() -> None:
                for _ in range(calls):
                    one()

            return _THREADS * calls / _in_threads(_THREADS, run)

        how = f"{_THREADS} threads of {calls} pairs each; medians of {rounds} rounds, alternating"
        rows = []
        for what, one, other, name, target in cases:
            pairs_a_second(one), pairs_a_second(other)
            ours, peer = beside(partial(pairs_a_second, one), partial(pairs_a_second, other), rounds)
            rows.append(Row(what, ours, "pairs/s", peer, name, target, how))
    return rows


# ---- Many calls, and many records that wait ----

#: More than measurements of the same thing differ by on a shared machine.
_FLAT = Target(1.10)


def growth(quick: bool) -> list[Row]:
    """What a guard costs after many calls of the same process, and beside many records in the journal."""
    return [*_after_calls(quick), *_beside_records(quick)]


def _after_calls(quick: bool) -> list[Row]:
    stages, calls = ((10, 50, 100), 10) if quick else ((10, 1_000, 100_000), 2_000)
    found: list[float] = []
    with canned() as url, CyclesClient(work.config(url)) as client:
        guard = work.guarded(client)
        done = 0
        memory = 0
        for stage in stages:
            while done < stage:
                guard()
                done += 1
                memory = memory or (resident_bytes() if done >= stages[1] else 0)
            found.append(microseconds(guard, calls))
            done += calls
        grown = (resident_bytes() - memory) / 2**20
    rows = [
        Row(
            f"guard after {stage:,} calls",
            cost,
            "us",
            found[0],
            f"after {stages[0]}",
            _FLAT,
            f"CPU; the mean of the {calls:,} calls that follow",
        )
        for stage, cost in zip(stages[1:], found[1:])
    ]
    how = f"resident memory, from call {stages[1]:,} to call {done:,}"
    return [*rows, Row("memory that those calls leave", grown, "MiB", None, "", Target(1, "ours"), how)]


def _beside_records(quick: bool) -> list[Row]:
    few, many = (10, 200) if quick else (10, 10_000)
    rounds, calls = (2, 10) if quick else (21, 200)
    with canned() as url, tempfile.TemporaryDirectory() as folder:
        clients = [with_records(url, os.path.join(folder, str(count)), count) for count in (many, few)]
        guards = [work.guarded(client) for client in clients]
        ours, peer = beside(lambda: microseconds(guards[0], calls), lambda: microseconds(guards[1], calls), rounds)
        for client in clients:
            client.close()
    how = f"CPU; medians of {rounds} rounds of {calls}, alternating, after the first look at them"
    return [Row(f"guard beside {many:,} waiting records", ours, "us", peer, f"beside {few}", _FLAT, how)]
