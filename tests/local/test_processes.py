"""Many processes on one file, and processes that are killed: no update is lost, no lock error comes, nothing breaks."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from cycles_lite.errors import ConfigError
from cycles_lite.local import Authority, connections
from cycles_lite.protocol.values import Amount
from cycles_lite.runtime.clock import now_ms

from .helpers import Bench
from .processes import PATIENCE, finish, run_threads, start

SPEND = """
import sys, threading
from cycles_lite.client import CyclesClient
from cycles_lite.config import CyclesConfig
from cycles_lite.protocol.models import CommitRequest, EventCreateRequest, ReservationCreateRequest
from cycles_lite.protocol.values import Action, Amount, Subject

url, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
action = Action("llm.completion", "gpt-4o")
charged = []

def spend(client, number):
    subject = Subject(agent="bot" + str(number % 2))
    for n in range(rounds):
        made = client.create_reservation(ReservationCreateRequest(action, Amount.tokens(10), subject))
        done = client.commit_reservation(made.reservation_id, CommitRequest(Amount.tokens(n % 15)))
        charged.append(done.charged.amount)
        client.create_event(EventCreateRequest(action, Amount.tokens(1), subject))
        charged.append(1)
        client.get_balances(tenant="acme")

with CyclesClient(CyclesConfig(base_url=url, tenant="acme", read_timeout=60.0)) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    workers = [threading.Thread(target=spend, args=(client, number)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
print(len(charged), sum(charged))
"""

PROCESSES, THREADS, ROUNDS = 4, 3, 20


def test_many_processes_and_threads(url):
    """The file's balance is the sum of what everybody was charged."""
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(10**9))
        authority.set_budget("tenant:acme/agent:bot1", Amount.tokens(10**9))
        processes = [start(SPEND, url, THREADS, ROUNDS) for _ in range(PROCESSES)]
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        before = time.monotonic()
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        told = [list(map(int, finish(process).split())) for process in processes]
        assert time.monotonic() - before < PATIENCE
        assert [count for count, _ in told] == [THREADS * ROUNDS * 2] * PROCESSES
        whole, part = authority.budgets()
        assert whole.spent == sum(charged for _, charged in told)
        assert 0 < part.spent < whole.spent
        assert whole.reserved == part.reserved == 0
        assert authority.check() == []


WORK = """
import json, os, random, sys
from cycles_lite.local.authority import LocalTransport
from cycles_lite.client import CyclesClient
from cycles_lite.config import CyclesConfig
from cycles_lite.protocol.models import CommitRequest, EventCreateRequest, ReleaseRequest, ReservationCreateRequest
from cycles_lite.protocol.models import ReservationExtendRequest
from cycles_lite.protocol.values import Action, Amount

action = Action("llm.completion", "gpt-4o")
client = CyclesClient(CyclesConfig(base_url=sys.argv[1], tenant="acme", read_timeout=60.0))
print("ready", flush=True)
sys.stdin.readline()
while True:
    request = ReservationCreateRequest(action, Amount.tokens(10), overage_policy="ALLOW_WITH_OVERDRAFT")
    made = client.create_reservation(request)
    if random.random() < 0.3:
        client.extend_reservation(made.reservation_id, ReservationExtendRequest(1000))
    if random.random() < 0.3:
        client.release_reservation(made.reservation_id, ReleaseRequest())
    else:
        done = client.commit_reservation(made.reservation_id, CommitRequest(Amount.tokens(random.randint(0, 12))))
        print(done.charged.amount, flush=True)
    if random.random() < 0.3:
        client.create_event(EventCreateRequest(action, Amount.tokens(3)))
        print(3, flush=True)
"""


@pytest.fixture
def killed():
    """Starts processes, and sees to it that none of them outlives the test."""
    started = []

    def begin(program, *arguments):
        started.append(start(program, *arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_killed_at_any_moment(url, killed):
    """What was answered is in the ledger, what was not is there whole or not at all, and holds end by themselves."""
    chance = random.Random()
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(10**9), overdraft_limit=100)
        answered = 0
        for _ in range(10):
            pair = [killed(WORK, url) for _ in range(2)]
            for process in pair:
                assert process.stdout.readline() == b"ready\n"
                process.stdin.write(b"\n")
                process.stdin.flush()
            for process in pair:
                for _ in range(chance.randrange(30)):
                    answered += int(process.stdout.readline())
                process.send_signal(signal.SIGKILL)
            for process in pair:
                answered += sum(map(int, process.stdout.read().split()))
            assert authority.check() == []
            spent = authority.budgets()[0].spent
            assert answered <= spent <= answered + 2 * 12
            answered = spent
    with Authority(url, clock=lambda: now_ms() + 3_600_000) as later:
        assert later.budgets()[0].reserved == 0
        assert later.budgets()[0].spent == answered
        assert later.check() == []


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("operation", ["commit", "release", "get"])
def test_the_clock_is_read_under_the_lock(url, kind, operation):
    """Whoever waited for the lock while a reservation expired finds it expired."""
    if (kind, operation) == ("file", "get"):
        pytest.skip("readers of a file wait for nobody")
    with Bench(url if kind == "file" else "sqlite://", validates=False, timeout=PATIENCE) as bench:
        bench.budget()
        made = bench.reserve(100, ttl_ms=1000, grace_period_ms=0)
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(getattr(bench, operation)(made.id)))
        with bench.authority._ledger.writing():
            waiting.start()
            while not any(one.thread == waiting.ident for one in connections.live_transactions()):
                time.sleep(0.001)
            bench.clock.now += 1001
        waiting.join(PATIENCE)
        assert [answer.error for answer in answers] == ["RESERVATION_EXPIRED"]
        assert bench.amounts() == (1000, 0, 0, 0, False)


MAKE = """
import sys
from cycles_lite.local import Authority
from cycles_lite.protocol.values import Amount

print("ready", flush=True)
number = 0
while True:
    number += 1
    authority = Authority("sqlite://{}/{}.db".format(sys.argv[1], number))
    authority.set_budget("tenant:acme", Amount.tokens(1))
    authority.shutdown()
    print(number, flush=True)
"""


def test_killed_while_making_a_file(tmp_path, killed):
    """A file that is being made is there whole or not at all."""
    chance = random.Random()
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = killed(MAKE, folder)
        assert process.stdout.readline() == b"ready\n"
        for _ in range(chance.randrange(6)):
            process.stdout.readline()
        process.kill()
        made = process.stdout.read().split()
        last = int(made[-1]) if made else 0
        for path in folder.glob("*.db"):
            with Authority(f"sqlite://{path}", create=False) as authority:
                assert authority.check() == []
                if int(path.stem) <= last:
                    assert len(authority.budgets()) == 1


def test_made_by_many_processes_at_once(url, tmp_path):
    """Processes that all find no file make one, and all use it."""
    program = (
        "import sys\n"
        "from cycles_lite.local import Authority\n"
        "from cycles_lite.protocol.values import Amount\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with Authority(sys.argv[1]) as authority:\n"
        "    authority.set_budget('tenant:acme/agent:' + sys.argv[2], Amount.tokens(1))\n"
    )
    processes = [start(program, url, number) for number in range(4)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    run_threads(4, lambda number: finish(processes[number], b"\n"))
    with Authority(url, create=False) as authority:
        assert len(authority.budgets()) == 4
    assert os.listdir(str(tmp_path)) == ["budgets.db"]
    with pytest.raises(ConfigError):
        Authority(url + ".other", create=False)
