"""Spend against an authority that answers badly for a while: it is settled once, or reported as refused."""

from __future__ import annotations

import os
import shutil

import oracles
import pytest
from answers import hygienic
from ledger import Ledger
from peers import KEY, config_of

from cycles_lite import Action, Amount, ApiError, CyclesClient, SettlementStatus, with_cycles
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement.journal import PENDING, REFUSED, Record

ACTION = Action("llm.completion", "gpt-4o")

#: Nothing is retried by itself while the test looks.
LATER = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "heartbeat": False, "flush_timeout": 0.0}


@pytest.fixture
def config(tmp_path):
    return config_of("http://127.0.0.1:9", journal_dir=str(tmp_path / "journal"), **LATER)


def test_settling(fuzz, config, logged):
    def check(case):
        del logged[:]
        shutil.rmtree(config.journal_dir, ignore_errors=True)
        random = case.random
        amount = random.choice([0, 1, 42, 10**6, 2**63 - 1])
        ledger = Ledger(random, random.choice([1, 1, 2, 2, 3, 4]))
        case.show(amount=amount, answers=ledger.answers)
        with CyclesClient(config, transport=ledger) as client:
            became = spend(client, amount, random.randrange(3))
        assert not [text for text in logged if KEY in text]
        if became is SettlementStatus.COMMITTED:
            operation, status, content = ledger.answers[-1]
            assert operation == "commit_reservation"
            assert oracles.commit_is_proven(status, content)
        elif became is SettlementStatus.RECORDED:
            operation, status, content = ledger.answers[-1]
            assert operation == "create_event"
            assert oracles.event_is_proven(status, content)
        return outcome(config, ledger, amount)

    fuzz.run(check, short=150)


def spend(client, amount, way):
    """Reserve and spend; the status, where one is told, or None."""
    if way == 0:
        assert with_cycles(client, lambda guard: ("value", amount), estimate=Amount.tokens(5), action=ACTION) == "value"
        return None
    try:
        with client.reserve(Amount.tokens(5), ACTION) as guard:
            if way == 1:
                guard.spend(amount)
                if amount == 0:
                    guard.commit(Amount.tokens(0))
            else:
                settlement = guard.commit(Amount.tokens(amount))
                if settlement.status is not SettlementStatus.PENDING:
                    assert settlement.response is not None
                return settlement.status
    except ApiError as e:
        hygienic(e)
    return None


def outcome(config, ledger, amount):
    """What became of the spend, once an authority that is well again has settled what was left."""
    waiting, refused = left(config, PENDING), left(config, REFUSED)
    assert len(waiting) + len(refused) <= 1
    assert ledger.released == []
    for path in refused:
        _, status, content = ledger.answers[-1]
        assert oracles.is_final(status, content), status
        assert read(path).body["actual"]["amount"] == amount
        os.unlink(path)
        return "refused"
    word = "settled at once"
    for path in waiting:
        word = "settled later"
        record = read(path)
        if record.not_before_ms is not None:  # a Retry-After, an hour at the most
            assert record.not_before_ms <= now_ms() + 3_600_000
            with open(path, "wb") as file:
                file.write(record._replace(not_before_ms=None).to_json())
            word = "settled after a pause"
        ledger.bad = 0
        with CyclesClient(config, transport=ledger) as other:
            assert other.flush(30.0) == 0
        assert left(config, PENDING) == []
    ((name, _, body),) = ledger.settled.values() if ledger.settled else [answered(ledger)]
    assert body is None or body["actual"]["amount"] == amount
    assert list(ledger.times.values()) in ([1], [])
    assert ledger.changed == []
    if ledger.has_lied:
        return "a lie about expiry"
    return f"{word} by {name}"


def answered(ledger):
    """An answer that proves a success which did not happen: nobody can tell that it is a lie."""
    operation, status, content = ledger.answers[-1]
    proves = oracles.commit_is_proven if operation == "commit_reservation" else oracles.event_is_proven
    assert proves(status, content), "the spend is lost"
    return f"a lie about {operation}", None, None


def left(config, suffix):
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(config.journal_dir)
        for name in names
        if name.endswith(suffix)
    ]


def read(path):
    with open(path, "rb") as file:
        return Record.from_json(file.read())
