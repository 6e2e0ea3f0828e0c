"""Statements end at their transaction's deadline, with nothing written and the connection as good as before."""

from __future__ import annotations

import itertools
import json
import signal
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from implementation import needs_cpython

from cycles_lite.errors import TransportTimeout
from cycles_lite.local import connections, ledger, reads
from cycles_lite.local.authority import Authority
from cycles_lite.protocol.values import Amount
from cycles_lite.runtime.clock import monotonic

from .helpers import Bench, connections_to

#: A statement that never ends by itself.
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def run(authority, statements, seconds, writes=False):
    """Some statements in one transaction."""
    with (authority._ledger.writing if writes else authority._ledger.reading)(seconds) as (db, _):
        for statement in statements:
            db.execute(statement).fetchall()


@pytest.fixture(params=["memory", "file"])
def store(request, url):
    with Authority("sqlite://" if request.param == "memory" else url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        yield authority


@pytest.mark.parametrize("writes", [False, True])
def test_an_endless_statement_ends(store, writes):
    """It is a `TransportTimeout`; what the transaction had written is undone, and the next one goes on."""
    started = monotonic()
    with pytest.raises(TransportTimeout, match="took too long"):
        run(store, ["UPDATE budgets SET spent = 1"] * writes + [ENDLESS], 0.05, writes)
    assert monotonic() - started < 60
    assert connections.live_transactions() == []
    assert [budget.spent for budget in store.budgets()] == [0]
    store.fund("tenant:acme", Amount.tokens(1))
    assert store.check() == []


def test_statements_of_a_long_transaction_are_given_up(store):
    """The deadline is the transaction's, not each statement's."""
    with pytest.raises(TransportTimeout):
        run(store, itertools.repeat("SELECT count(*) FROM budgets"), 0.0)


def test_a_commit_is_never_given_up(url, path, monkeypatch):
    """SQLite may report a commit as given up when it is done. So it has no deadline: what is late is written or not,
    and whoever is told so is told the truth."""
    monkeypatch.setattr(connections, "_INSTRUCTIONS", 1)
    with Authority(url) as authority:
        with authority._ledger.writing() as (db, _):
            db.execute("INSERT INTO tenants VALUES ('acme', '', 'ACTIVE', 0, 0, 0, '', 0)")
            (connection,) = connections_to(path)
            connection.gives_up[0] = 0.0  # the time for its statements is over
        with authority._ledger.reading() as (db, _):
            assert db.execute("SELECT count(*) FROM tenants").fetchone() == (1,)


def test_an_old_deadline_ends_nothing(store, monkeypatch):
    """A connection that waits in the pool has none, and the next transaction has its own."""
    with store._ledger.reading(0.0):
        pass
    until = monotonic() + 0.4
    while monotonic() < until:
        pass
    with store._ledger.reading() as (db, _):
        for _ in range(5000):
            db.execute("SELECT count(*) FROM budgets").fetchall()


def test_freeing_many_holds_is_bounded(url, monkeypatch):
    """Where more holds are due than can be freed in a call's time, what was freed stays so, and later calls go on."""
    monkeypatch.setattr(ledger, "CATCH_UP_AT_ONCE", 1)
    with Bench(url) as bench:
        bench.budget(amount=10**6)
        for _ in range(60):
            bench.reserve(1, ttl_ms=1000)
        bench.clock.now += 10_000
        slow = bench.authority._ledger.clock
        ticks = [0]

        def clock():  # as if each batch took a tenth of the time
            ticks[0] += 1
            until = monotonic() + 0.03
            while monotonic() < until:
                pass
            return slow()

        bench.authority._ledger.clock = clock
        calls = 0
        while True:
            calls += 1
            try:
                with bench.authority._ledger.writing(0.1):
                    break
            except TransportTimeout:
                assert calls < 60
        bench.authority._ledger.clock = slow
        assert calls > 1
        assert bench.amounts()[:2] == (10**6, 0)


class Interrupt(BaseException):
    """What a signal handler raises."""


@needs_cpython  # PyPy swallows what is raised within that look
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_a_signal_during_a_long_statement_is_not_lost(store):
    """Python swallows what is raised within SQLite's look at the time, so nothing is: the handler runs afterwards."""

    def handler(*_):
        raise Interrupt

    def run_soon_interrupted():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        run(store, [ENDLESS], 0.1)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(10):
            with pytest.raises(Interrupt):
                run_soon_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert connections.live_transactions() == []
    assert store.check() == []


def endless_page(db, *_):
    return db.execute(ENDLESS).fetchall()


def test_a_call_that_takes_too_long(bench, monkeypatch):
    """A list past the call's time raises `TransportTimeout`; other calls are as before."""
    monkeypatch.setattr(reads, "find_page", endless_page)
    bench.authority._ledger.timeout = 0.1
    with pytest.raises(TransportTimeout):
        bench.list()
    assert bench.reserve(1).status == 200


def test_a_server_answers_500(url, monkeypatch):
    """Behind HTTP it is a 5xx, and the same server answers the next request."""
    pytest.importorskip("waitress")
    from cycles_lite.local.server import Server

    monkeypatch.setattr(reads, "find_page", endless_page)
    with Authority(url, timeout=0.1) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        key = authority.create_key("acme").key_secret
        with Server(authority) as server, server.in_background():

            def get(path):
                return urlopen(Request(server.url + path, headers={"X-Cycles-API-Key": key}), timeout=60)

            with pytest.raises(HTTPError) as caught:
                get("/v1/reservations")
            answer = caught.value
            assert answer.code == 500
            assert json.loads(answer.read().decode())["error"] == "INTERNAL_ERROR"
            answer.close()
            with get("/v1/balances?tenant=acme") as answer:
                assert answer.status == 200


def test_looks_at_the_time_are_rare(store):
    """Short statements, such as a call has, are not disturbed by them."""
    looks = []
    with store._ledger.reading() as (db, _):
        db.set_progress_handler(lambda: looks.append(time) or 0, connections._INSTRUCTIONS)
        for _ in range(100):
            db.execute("SELECT * FROM budgets WHERE scope = 'tenant:acme'").fetchall()
        assert len(looks) <= 1
