"""Guards through a proxy that drops, delays, cuts, doubles and refuses: what was handed over is what is spent."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from faults import (
    Faults,
    at_random,
    duplicated,
    failed,
    failed_afterwards,
    lost_answer,
    lost_request,
    nonsense,
    overtaken,
    reset_answer,
    reset_request,
    slow,
    swallowed_answer,
    swallowed_request,
    throttled_a_second,
    throttled_not_at_all,
    truncated,
)
from peers import ACTION, Peer
from serving import process

from cycles_lite import (
    Amount,
    CyclesClient,
    CyclesConfig,
    RateLimitedError,
    ResponseError,
    ServerError,
    TransportError,
    events,
    with_cycles,
)
from cycles_lite.local import Authority

pytestmark = pytest.mark.thorough

CALLS = int(os.environ.get("FAULT_CALLS", "2000"))
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
THREADS = 8

#: What a lost connection costs is little, what a silent one costs is the client's whole patience.
RATES = {
    lost_request: 0.01,
    lost_answer: 0.02,
    reset_request: 0.01,
    reset_answer: 0.02,
    truncated: 0.02,
    duplicated: 0.02,
    failed: 0.01,
    failed_afterwards: 0.01,
    nonsense: 0.01,
    slow: 0.02,
    throttled_not_at_all: 0.01,
    throttled_a_second: 0.005,
    swallowed_request: 0.003,
    swallowed_answer: 0.003,
    overtaken: 0.003,
}

#: Seconds for what is pending to be settled through the faults.
PATIENCE = 120.0

STATUSES = ("ACTIVE", "COMMITTED", "RELEASED", "EXPIRED")

KEY = "fault-proxy-key"
BUDGET = 10**12


class Lost(Exception):
    """The work of a guard failed."""


class Book:
    """What the callers know: what they handed over, and what became of it as far as they were told."""

    def __init__(self):
        #: Amounts by reservation.
        self.handed_over = {}
        self.told = Counter()
        self.released = set()

    def observe(self, event):
        if isinstance(event, events.Released):
            self.released.add(event.reservation_id)
        self.told[type(event).__name__] += 1


@contextmanager
def faulty(tmp_path, book):
    """A client of `cycles-lite serve` behind the proxy."""
    serve = process(tmp_path, "--tenant", "acme", "--api-key", KEY, "--budget", f"tenant:acme=TOKENS:{BUDGET}")
    with serve as server:
        faults = Faults(server.url, at_random(SEED, RATES))
        with Peer(talk=faults.talk) as proxy:
            config = CyclesConfig(
                base_url=proxy.url,
                api_key=KEY,
                tenant="acme",
                connect_timeout=0.5,
                read_timeout=0.5,
                retry_initial_delay=0.01,
                retry_max_delay=0.05,
                journal_dir=str(tmp_path / "journal"),
            )
            with CyclesClient(config, observer=book.observe) as client:
                yield client, faults
        code, out, errors = server.end()
    assert (code, out, errors) == (0, "", "")


# ---- The mix of calls ----


def by_commit(client, book, source, amount):
    with reserve(client, source) as guard:
        book.handed_over[guard.reservation_id] = amount
        book.told[guard.commit(Amount.tokens(amount)).status] += 1


def by_meter(client, book, source, amount):
    with reserve(client, source) as guard:
        book.handed_over[guard.reservation_id] = amount
        guard.spend(amount - amount // 2)
        guard.spend(amount // 2)


def by_meter_and_exception(client, book, source, amount):
    with pytest.raises(Lost):  # noqa: PT012
        with reserve(client, source) as guard:
            book.handed_over[guard.reservation_id] = amount
            guard.spend(amount)
            raise Lost


def by_with_cycles(client, book, source, amount):
    def work(guard):
        book.handed_over[guard.reservation_id] = amount
        return "value", Amount.tokens(amount)

    assert with_cycles(client, work, estimate=estimate(source), action=ACTION, **lease(source)) == "value"


def by_exception(client, book, source, amount):
    """Nothing is handed over: the reservation is released."""
    with pytest.raises(Lost):
        with reserve(client, source):
            raise Lost


KINDS = (by_commit, by_meter, by_meter_and_exception, by_with_cycles, by_exception)


def reserve(client, source):
    return client.reserve(estimate(source), ACTION, **lease(source))


def estimate(source):
    return Amount.tokens(source.randint(1, 5000))


def lease(source):
    """Some reservations expire before their delayed commits come, so that events take their place."""
    return {"ttl_ms": source.choice((1000, 3000, 5000)), "grace_period_ms": 0}


def call_again_and_again(client, book, number):
    source = random.Random(SEED * 1000 + number)
    for _ in range(CALLS // THREADS):
        kind, amount = source.choice(KINDS), source.randint(1, 10_000)
        try:
            kind(client, book, source, amount)
        except (TransportError, ResponseError, ServerError, RateLimitedError) as e:
            # From reserve alone: nothing was handed over, and the work has not run.
            book.told["refused " + type(e).__name__] += 1


def run_threads(work):
    failed = []

    def run(number):
        try:
            work(number)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def settle_all(client):
    end = time.monotonic() + PATIENCE
    while client.flush(5.0):
        assert time.monotonic() < end, "still pending"
        time.sleep(0.01)  # what is left waits for the time that a 429 named


def test_what_was_handed_over_is_what_is_spent(tmp_path):
    """Through every fault, each amount is charged exactly once; what stays held is what nobody knows of, until it
    expires."""
    print(f"FAULT_SEED={SEED} FAULT_CALLS={CALLS}")  # pytest shows it when the test fails
    book = Book()
    with faulty(tmp_path, book) as (client, faults):
        run_threads(lambda number: call_again_and_again(client, book, number))
        settle_all(client)
    print({fault.__name__: count for fault, count in faults.counts.items()}, dict(book.told))
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        (budget,) = authority.budgets()
        assert (budget.spent, budget.debt) == (sum(book.handed_over.values()), 0)
        assert_each_reservation_is_as_told(authority, book)
        assert authority.check() == []
    assert journal_files(tmp_path) == []
    assert book.told["Rejected"] == book.told["JournalFailed"] == 0
    if CALLS >= 2000:  # else the test would prove little, which fewer calls are allowed to
        assert all(faults.counts[fault] for fault in RATES)
        assert book.told["Pending"]


def assert_each_reservation_is_as_told(authority, book):
    """What was handed over was committed, or has expired and is an event's. A hold is left where the answer to the
    create, or both attempts of the release, were lost; it ends with its TTL."""
    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme", journal_enabled=False)) as client:
        rows = list(client.iter_reservations(limit=200))
        by_status = {status: {row.reservation_id for row in rows if row.status == status} for status in STATUSES}
        handed_over = set(book.handed_over)
        assert by_status["COMMITTED"] <= handed_over <= by_status["COMMITTED"] | by_status["EXPIRED"]
        assert book.released <= by_status["RELEASED"]
        assert all(row.committed.amount == book.handed_over[row.reservation_id] for row in rows if row.committed)
        end = time.monotonic() + PATIENCE
        while client.get_balances(tenant="acme").balances[0].reserved.amount:
            assert time.monotonic() < end, "a hold does not expire"
            time.sleep(0.05)  # the TTL has to pass


def journal_files(tmp_path):
    return [path for path in (tmp_path / "journal").rglob("*") if path.is_file() and path.name != ".lock"]
