"""One lane of the crash matrix: a program, not a test. It forks workers, kills them at random instants, and recovers.

    python crash_lane.py '{"url": ..., "key": ..., "folder": ..., "seed": 1, "rounds": 50}'

It is warm and has one thread, so that a worker costs a fork and not an interpreter. Each round has a folder:

    journal/    of the round's two workers, which share it
    told-N      what worker N was about to hand over, and what it was told; a line each, written at once
    journaled   the reservations that the journal held when both were dead
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback

from cycles_lite import Action, Amount, ConfigError, CyclesClient, CyclesConfig, CyclesError, with_cycles

ACTION = Action("llm.completion", "gpt-4o")
WORKERS = 2

#: Seconds that a worker lives at the most, should nobody kill it.
LIFE = 120.0
#: Seconds from a worker's first call, and from the fork of a recovery, until the kill.
UNTIL_WORKER_DIES, UNTIL_RECOVERY_DIES = 0.05, 0.1
#: The TTL of rounds whose recovery comes too late for a commit.
SHORT_TTL_MS = 2000
#: Seconds for one recovery.
PATIENCE = 60.0


class Died(Exception):
    """The work of a guard failed."""


def client_of(given, folder):
    config = CyclesConfig(
        base_url=given["url"],
        api_key=given["key"],
        tenant="acme",
        connect_timeout=1.0,
        read_timeout=4.0,
        retry_initial_delay=0.005,
        retry_max_delay=0.02,
        journal_dir=os.path.join(folder, "journal"),
    )
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return CyclesClient(config)
        except ConfigError as e:
            # See test_a_file_that_a_kill_left_within_a_checkpoint_opens in test_crash_matrix: to go with its mark.
            if "malformed" not in str(e) or time.monotonic() > end:
                raise
            finish_checkpoint(given["url"])


def finish_checkpoint(url):
    """As any program does that opens the file with SQLite."""
    db = sqlite3.connect(url.replace("sqlite://", "", 1))
    db.execute("SELECT count(*) FROM sqlite_master").fetchall()
    db.close()


# ---- A worker, until it is killed ----


class Told:
    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, *words):
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def work(given, folder, number, source, ttl_ms):
    client = client_of(given, folder)
    told = Told(os.path.join(folder, f"told-{number}"))
    end = time.monotonic() + LIFE
    while time.monotonic() < end:
        amount = source.randint(1, 10**9)
        options = {"ttl_ms": ttl_ms, "grace_period_ms": 0}
        try:
            source.choice((by_commit, by_meter, by_with_cycles, by_exception))(client, told, amount, options)
        except CyclesError as e:  # a reservation that met a fault; the rest raises nothing
            told("refused", type(e).__name__)


def by_commit(client, told, amount, options):
    with client.reserve(Amount.tokens(10), ACTION, **options) as guard:
        told("handed", guard.reservation_id, amount)
        told("result", guard.reservation_id, guard.commit(Amount.tokens(amount)).status)


def by_meter(client, told, amount, options):
    with client.reserve(Amount.tokens(10), ACTION, **options) as guard:
        guard.spend(amount)
        told("handed", guard.reservation_id, amount)
    told("result", guard.reservation_id, "LEFT")


def by_with_cycles(client, told, amount, options):
    def fn(guard):
        told("handed", guard.reservation_id, amount)
        return guard.reservation_id, Amount.tokens(amount)

    id = with_cycles(client, fn, estimate=Amount.tokens(10), action=ACTION, **options)
    told("result", id, "RETURNED")


def by_exception(client, told, amount, options):
    try:
        with client.reserve(Amount.tokens(10), ACTION, **options) as guard:
            told("releasing", guard.reservation_id)
            raise Died
    except Died:
        return


# ---- A recovery ----


def recover(given, folder):
    with client_of(given, folder) as client:
        end = time.monotonic() + PATIENCE
        while client.flush(5.0):
            if time.monotonic() > end:
                raise AssertionError("still pending")


# ---- The one who kills ----


def forked(task, *arguments):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        task(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for_first_line(path):
    end = time.monotonic() + LIFE / 2
    while not (os.path.exists(path) and os.path.getsize(path)):
        if time.monotonic() > end:
            raise SystemExit(f"nothing in {path}")
        time.sleep(0.001)


def kill_within(seconds, pid, source):
    time.sleep(source.uniform(0, seconds))  # the random instant
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def journaled(folder):
    found = []
    for where, _, names in os.walk(os.path.join(folder, "journal")):
        for name in names:
            if name.endswith(".json"):
                with open(os.path.join(where, name), "rb") as file:
                    found.append(json.loads(file.read().decode())["reservation_id"])
    return found


def crash(given, folder, source, ttl_ms):
    os.mkdir(folder)
    workers = [forked(work, given, folder, number, random.Random(source.random()), ttl_ms) for number in range(WORKERS)]
    for number, pid in enumerate(workers):
        wait_for_first_line(os.path.join(folder, f"told-{number}"))
        kill_within(UNTIL_WORKER_DIES, pid, source)
    with open(os.path.join(folder, "journaled"), "w") as file:
        file.write("\n".join(journaled(folder)))


def settle(given, folder, source):
    """One recovery that is killed, and one that is not."""
    kill_within(UNTIL_RECOVERY_DIES, forked(recover, given, folder), source)
    status = os.waitpid(forked(recover, given, folder), 0)[1]
    if status:
        raise SystemExit(f"the recovery in {folder} ended with status {status}")


def warm_up(url):
    """Load what workers load, so that their time is spent on work."""
    transport = "cycles_lite.local.authority" if url.startswith("sqlite") else "cycles_lite.transport.http"
    for name in ("cycles_lite.guards.asking", "cycles_lite.settlement.flush", transport):
        importlib.import_module(name)


def main(given):
    warm_up(given["url"])
    source = random.Random(given["seed"])
    late = []
    for number in range(given["rounds"]):
        folder = os.path.join(given["folder"], f"round-{number}")
        is_late = bool(number % 2)
        crash(given, folder, source, SHORT_TTL_MS if is_late else 60_000)
        if is_late:
            late.append(folder)
        else:
            settle(given, folder, source)
    time.sleep(SHORT_TTL_MS / 1000 + 0.1)  # until the late rounds' reservations have expired
    for folder in late:
        settle(given, folder, source)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
