"""What spend that other processes have left in the journal costs a process that comes after them."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import time

from cycles_lite import Action, Amount, CyclesClient
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement.journal import Journal, Record, identity, normalised
from cycles_lite.settlement.settler import settler_of

from . import work
from .canned import canned
from .report import Row, Target
from .timing import beside, wall

#: More than measurements of the same thing differ by on a shared machine.
_FLAT = Target(1.10)


def resident_bytes() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leave_records(url: str, folder: str, count: int, not_before_ms: int | None) -> None:
    """Leave records in a journal, as another process does."""
    config = work.config(url, journal_dir=folder)
    journal = Journal(os.path.join(folder, identity(url, config.tenant, config.api_key)))
    now = now_ms()
    for number in range(count):
        key = f"{number:032x}"
        body = {"actual": {"unit": "TOKENS", "amount": 1}, "idempotency_key": key}
        event = {**body, "subject": {"tenant": "acme"}, "action": {"kind": "llm.completion", "name": "gpt-4o"}}
        journal.write(Record(f"rsv_waits_{key}", normalised(url), "commit", body, event, now, not_before_ms))


def with_records(url: str, folder: str, count: int) -> CyclesClient:
    """A client whose journal holds records that may not be sent for an hour. All have been looked at once."""
    leave_records(url, folder, count, now_ms() + 3_600_000)
    client = CyclesClient(work.config(url, journal_dir=folder, flush_timeout=0.0))
    settler_of(client._session).open()
    wait_for_look(client)
    return client


def wait_for_look(client: CyclesClient) -> None:
    """Wait until all that is in the journal has been looked at."""
    finder = settler_of(client._session).finder
    number = finder.look_around()
    while finder.looks < number:
        time.sleep(0.01)


def backlog(quick: bool) -> list[Row]:
    """The first reservation beside waiting records, and the end of a client that has no time for them."""
    return [*_first_reserve(quick), *_without_time(quick)]


def _first_reserve(quick: bool) -> list[Row]:
    counts, rounds = ((20, 200), 3) if quick else ((1_000, 50_000), 41)
    rows = []
    with canned() as url, tempfile.TemporaryDirectory() as place:
        folders = {count: os.path.join(place, str(count)) for count in (0, *counts)}
        for count, folder in folders.items():
            leave_records(url, folder, count, now_ms() + 3_600_000)
        _reserve_first(url, folders[0])  # what is imported late is there now
        resident = {count: _resident(url, folder) for count, folder in folders.items()}
        for count in counts:
            ours, peer = beside(
                lambda count=count: _reserve_first(url, folders[count]), lambda: _reserve_first(url, folders[0]), rounds
            )
            how = f"wall; medians of the first reservations of {rounds} new clients each, alternating"
            rows.append(Row(f"first reserve beside {count:,} records", ours, "us", peer, "beside none", _FLAT, how))
            how = "resident memory of the process when its first look is over"
            size, empty = resident[count] / 2**20, resident[0] / 2**20
            rows.append(Row(f"memory beside {count:,} records", size, "MiB", empty, "beside none", _FLAT, how))
    return rows


def _reserve_first(url: str, folder: str) -> float:
    """Microseconds of a new client's first reservation. Its transport has a connection."""
    client = CyclesClient(work.config(url, journal_dir=folder, flush_timeout=0.0))
    client.warm_up()
    gc.collect()
    start = wall()
    guard = client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o"))
    took = (wall() - start) * 1e6
    guard.release("done")
    client.close()
    return took


def _resident(url: str, folder: str) -> int:
    with CyclesClient(work.config(url, journal_dir=folder, flush_timeout=0.0)) as client:
        client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o")).release("done")
        wait_for_look(client)
        gc.collect()
        return resident_bytes()


def _without_time(quick: bool) -> list[Row]:
    """A flush and a close that are given no time, with a server that refuses connections."""
    few, many, rounds = (10, 200, 3) if quick else (10, 20_000, 21)
    with socket.socket() as nobody, tempfile.TemporaryDirectory() as place:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        folders = {count: os.path.join(place, str(count)) for count in (few, many)}
        for count, folder in folders.items():
            leave_records(url, folder, count, None)

        def close_in(count: int) -> float:
            client = CyclesClient(work.config(url, journal_dir=folders[count], flush_timeout=0.0))
            settler_of(client._session).open()
            start = wall()
            client.close()
            return (wall() - start) * 1e3

        def flush_in(count: int) -> float:
            client = CyclesClient(work.config(url, journal_dir=folders[count], flush_timeout=0.0))
            start = wall()
            left = client.flush(0.0)
            took = (wall() - start) * 1e3
            client.close()
            assert left >= count, left
            return took

        def names_in() -> float:
            (folder,) = os.scandir(folders[many])
            start = wall()
            with os.scandir(folder.path) as entries:
                assert sum(entry.name.endswith(".json") for entry in entries) == many
            return (wall() - start) * 1e3

        closed, closed_few = beside(lambda: close_in(many), lambda: close_in(few), rounds)
        flushed, named = beside(lambda: flush_in(many), names_in, rounds)
    how = f"wall; medians of {rounds}, alternating; flush_timeout 0, connections are refused"
    return [
        Row(f"close with {many:,} due records", closed, "ms", closed_few, f"with {few}", None, how),
        Row(f"flush(0), which counts {many:,} records", flushed, "ms", named, "reading their names", None, how),
    ]
