"""Budgets being funded, once for each idempotency key, and deleted."""

from __future__ import annotations

import pickle
import threading

import pytest

from cycles_lite.errors import ValidationError
from cycles_lite.local import FundingRefused
from cycles_lite.local.rules import Funding
from cycles_lite.protocol.values import Amount, Unit

from .helpers import Bench, tokens
from .processes import finish, run_threads, start

DAY = 24 * 3600 * 1000
BOT = {"tenant": "acme", "agent": "bot"}
BOT_SCOPE = "tenant:acme/agent:bot"


def fund(bench, *arguments, scope="tenant:acme", amount=5, **named):
    return bench.authority.fund(scope, Amount.tokens(amount), *arguments, **named)


# ---- Funding ----


def test_each_operation(bench):
    """On a budget with a hold and spend; the returned budget is the stored one."""
    bench.reserve(30)
    bench.event(20)
    amounts = []
    for operation, amount in (("CREDIT", 10), ("DEBIT", 60), (Funding.RESET, 100), ("REPAY_DEBT", 3)):
        made = fund(bench, operation, amount=amount)
        assert made == bench.authority.budgets()[0]
        amounts.append((made.allocated, made.spent, made.reserved, made.remaining))
    made = fund(bench, "RESET_SPENT", amount=50, spent=Amount.tokens(4))
    amounts.append((made.allocated, made.spent, made.reserved, made.remaining))
    made = fund(bench, "RESET_SPENT", amount=50)
    amounts.append((made.allocated, made.spent, made.reserved, made.remaining))
    assert amounts == [
        (1010, 20, 30, 960), (950, 20, 30, 900), (100, 20, 30, 50), (103, 20, 30, 53), (50, 4, 30, 16), (50, 0, 30, 20)
    ]  # fmt: skip


def test_only_what_remains_is_taken(bench):
    """The refusal says what is asked and what there is, and it can be pickled."""
    bench.reserve(990)
    with pytest.raises(FundingRefused, match=r"tenant:acme has 10 TOKENS left; 11 were") as caught:
        fund(bench, "DEBIT", amount=11)
    facts = {"scope": "tenant:acme", "unit": "TOKENS", "requested": 11, "remaining": 10}
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value)), type(caught.value)(*caught.value.args)):
        assert (error.code, error.details) == ("BUDGET_EXCEEDED", facts)
        assert str(error) == str(caught.value)
    assert fund(bench, "DEBIT", amount=10).remaining == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda bench: fund(bench, scope="tenant:nobody"), "NOT_FOUND"),
        (lambda bench: bench.authority.fund("tenant:acme", Amount.credits(5)), "UNIT_MISMATCH"),
        (lambda bench: fund(bench, "RESET_SPENT", spent=Amount.credits(5)), "UNIT_MISMATCH"),
        (lambda bench: bench.authority.close("tenant:acme") and fund(bench), "BUDGET_CLOSED"),
        (lambda bench: fund(bench, idempotency_key="used", amount=6), "IDEMPOTENCY_MISMATCH"),
        (lambda bench: fund(bench, "REPAY_DEBT", idempotency_key="used"), "IDEMPOTENCY_MISMATCH"),
        (lambda bench: fund(bench, idempotency_key="used", reason="other"), "IDEMPOTENCY_MISMATCH"),
        (lambda bench: fund(bench, idempotency_key="used", scope=BOT_SCOPE), "IDEMPOTENCY_MISMATCH"),
    ],
)
def test_refusals_have_codes(bench, change, code):
    bench.budget(BOT_SCOPE)
    fund(bench, idempotency_key="used")
    before = [one.allocated for one in bench.authority.budgets()]
    with pytest.raises(FundingRefused) as caught:
        change(bench)
    assert caught.value.code == code
    assert [one.allocated for one in bench.authority.budgets()] == before


@pytest.mark.parametrize(
    "named",
    [
        {"operation": "credit"},
        {"operation": "SPEND"},
        {"operation": None},
        {"operation": ["CREDIT"]},
        {"spent": Amount.tokens(5)},
        {"operation": "RESET", "spent": Amount.tokens(5)},
        {"operation": "RESET_SPENT", "spent": 5},
        {"idempotency_key": ""},
        {"idempotency_key": 5},
        {"idempotency_key": "x" * 257},
        {"idempotency_key": "\ud800"},
        {"reason": 5},
        {"reason": "x" * 513},
        {"scope": "acme"},
        {"amount": 2**63 - 1},
    ],
)
def test_what_cannot_be_meant_is_refused(bench, named):
    before = bench.authority.budgets()
    with pytest.raises(ValidationError):
        fund(bench, **named)
    assert bench.authority.budgets() == before


@pytest.mark.parametrize(
    ("operation", "next_allocation"),
    [("CREDIT", 1000 + 300), ("DEBIT", 1000 + 100), ("RESET", 100 + 100), ("RESET_SPENT", 100 + 100)],
)
def test_what_the_next_period_has(operation, next_allocation):
    """A reset says what each coming period has, while what was added or taken is of this one alone."""
    with Bench() as bench:
        bench.budget(amount=1000, period="1h", rollover_policy="CARRY_FORWARD")
        fund(bench, "RESET_SPENT", amount=1000, spent=Amount.tokens(800))
        made = fund(bench, operation, amount=100)
        assert made.period_end_ms == bench.authority.budgets()[0].period_end_ms
        left = made.remaining
        bench.clock.now = made.period_end_ms
        (rolled,) = bench.authority.budgets()
        assert (rolled.spent, rolled.allocated) == (0, rolled.granted + max(0, left))
        assert rolled.allocated == next_allocation if operation != "RESET" else rolled.granted == 100
        assert bench.authority.check() == []


def test_a_frozen_budget_is_funded_and_stays_frozen(bench):
    bench.authority.freeze("tenant:acme")
    assert (fund(bench).status, fund(bench, "DEBIT").allocated) == ("FROZEN", 1000)


# ---- Once for each key ----


def test_a_key_counts_for_thirty_days(bench):
    """A replay is answered with the budget as it was then, also once the budget is closed or gone."""
    bench.budget("tenant:other")
    first = fund(bench, idempotency_key="k", reason="a top-up")
    fund(bench, amount=1)
    bench.authority.close("tenant:acme")
    assert fund(bench, idempotency_key="k", reason="a top-up") == first
    bench.authority.delete_budget("tenant:acme")
    assert fund(bench, idempotency_key="k", reason="a top-up") == first
    assert fund(bench, scope="tenant:other", idempotency_key="k").allocated == 1005  # another tenant's key
    bench.budget(amount=2000)
    bench.clock.now += 30 * DAY
    assert fund(bench, idempotency_key="k", reason="a top-up") == first
    assert bench.authority.budgets()[0].allocated == 2000
    bench.clock.now += 1
    assert fund(bench, idempotency_key="k", reason="a top-up").allocated == 2005


def test_a_replay_has_the_whole_budget(bench):
    """Caps, limit and all: what a program gets does not depend on who was first."""
    from cycles_lite.protocol.values import Caps

    bench.budget(overdraft_limit=9, caps=Caps(max_tokens=5, tool_denylist=["rm"]))
    first = bench.authority.funded("tenant:acme", Amount.tokens(5), "CREDIT", None, "k")
    bench.clock.now += 1000
    assert bench.authority.funded("tenant:acme", Amount.tokens(5), "CREDIT", None, "k") == first
    assert first.at_ms == bench.clock.now - 1000


def test_a_refusal_is_not_kept(bench):
    """The key may be used again once the budget allows it."""
    with pytest.raises(FundingRefused):
        fund(bench, "DEBIT", amount=1001, idempotency_key="k")
    fund(bench, amount=1)
    assert fund(bench, "DEBIT", amount=1001, idempotency_key="k").allocated == 0


def test_threads_with_one_key_fund_once(url):
    with Bench(url) as bench:
        bench.budget()
        made = []
        run_threads(8, lambda number: made.append(fund(bench, idempotency_key="same")))
        assert {one.allocated for one in made} == {1005}


FUND = """
import sys
from cycles_lite import Amount
from cycles_lite.local import Authority

with Authority(sys.argv[1]) as authority:
    print("ready", flush=True)
    for line in sys.stdin:
        authority.fund("tenant:acme", Amount.tokens(3), idempotency_key=line.strip())
        print(line.strip(), flush=True)
"""


def test_processes_with_one_key_fund_once(url):
    """What two processes ask with the same keys at the same time happens once for each key."""
    with Bench(url) as bench:
        bench.budget(amount=0)
        processes = [start(FUND, url) for _ in range(2)]
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        keys = "".join(f"key-{number}\n" for number in range(40)).encode()
        run_threads(2, lambda number: finish(processes[number], keys))
        assert bench.authority.budgets()[0].allocated == 40 * 3


def test_a_process_killed_while_it_funds(url):
    """Whichever instant it was: each key that is asked again has happened once after that."""
    asked = 0
    with Bench(url) as bench:
        bench.budget(amount=0)
        for at in (1, 4, 7):
            process = start(FUND, url)
            try:
                assert process.stdout.readline() == b"ready\n"
                keys = range(asked, asked + 60)
                process.stdin.write("".join(f"key-{number}\n" for number in keys).encode())
                process.stdin.flush()
                for _ in range(at):
                    assert process.stdout.readline()
            finally:
                process.kill()
                process.communicate()
            asked += 60
            found = bench.authority.budgets()[0].allocated // 3
            done = [n for n in range(asked) if is_known(bench, f"key-{n}")]
            assert len(done) == found
            for number in keys:
                fund(bench, amount=3, idempotency_key=f"key-{number}")
            assert bench.authority.budgets()[0].allocated == asked * 3


def is_known(bench, key):
    with bench.authority._ledger.reading() as (db, _):
        statement = "SELECT 1 FROM replies WHERE operation = 'fund' AND idempotency_key = ?"
        return db.execute(statement, (key,)).fetchone() is not None


# ---- Deleting ----


def test_a_budget_that_nobody_holds_is_deleted(bench):
    """One unit or all; it is as if it had never been there."""
    bench.authority.set_budget("tenant:acme", Amount.credits(7))
    bench.commit(bench.reserve(10).id, 10)
    (deleted,) = bench.authority.delete_budget("Tenant:Acme", Unit.TOKENS)
    assert (deleted.unit, deleted.spent) == ("TOKENS", 10)
    assert [one.unit for one in bench.authority.budgets()] == ["CREDITS"]
    assert bench.reserve(1).error == "UNIT_MISMATCH"
    assert [one.allocated for one in bench.authority.delete_budget("tenant:acme")] == [7]
    assert bench.reserve(1).error == "NOT_FOUND"
    with pytest.raises(ValidationError, match="tenant:acme: it has no budget"):
        bench.authority.delete_budget("tenant:acme")
    assert bench.budget(amount=5).spent == 0


def test_a_held_budget_is_deleted_by_force_only(bench):
    """The refusal counts who holds it; of two units none is deleted if one is held."""
    bench.authority.set_budget("tenant:acme", Amount.credits(7))
    before = bench.authority.budgets()
    first = bench.reserve(10).id
    with pytest.raises(ValidationError, match=r"\(TOKENS\): 1 live reservation holds 10 TOKENS"):
        bench.authority.delete_budget("tenant:acme")
    bench.reserve(20, BOT)
    with pytest.raises(ValidationError, match=r"\(TOKENS\): 2 live reservations hold 30 TOKENS"):
        bench.authority.delete_budget("tenant:acme", "TOKENS")
    assert [one.allocated for one in bench.authority.budgets()] == [one.allocated for one in before]
    bench.authority.delete_budget("tenant:acme", "CREDITS")
    assert len(bench.authority.delete_budget("tenant:acme", force=True)) == 1
    assert bench.authority.check() == []
    assert bench.get(first).data["status"] == "ACTIVE"


def test_a_hold_that_is_over_keeps_no_budget(bench):
    """A hold counts until its reservation's expiry and grace are over, and then not even until the next write."""
    bench.reserve(10, ttl_ms=1000, grace_period_ms=500)
    bench.clock.now += 1500
    with pytest.raises(ValidationError, match="1 live"):
        bench.authority.delete_budget("tenant:acme")
    bench.clock.now += 1
    bench.authority.delete_budget("tenant:acme")


ENDINGS = {
    "commit": lambda bench, id: bench.commit(id, 40).data["charged"],
    "commit of more": lambda bench, id: bench.commit(id, 160).data["charged"],
    "release": lambda bench, id: bench.release(id).data["released"],
    "extend and commit": lambda bench, id: bench.extend(id).status == 200 and bench.commit(id, 40).data["charged"],
    "expiry": lambda bench, id: bench.get(id).error,
}


@pytest.mark.parametrize("made_anew", [False, True], ids=["gone", "made anew"])
@pytest.mark.parametrize("keeps_another", [False, True], ids=["alone", "with another"])
@pytest.mark.parametrize("policy", ["REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_becomes_of_holds(ending, policy, keeps_another, made_anew):
    """They end as they would have, and only the budgets that are still held change: no new one in the same place."""
    if (ending, policy, keeps_another) == ("commit of more", "REJECT", True):
        return  # refused, as it is where nothing was deleted
    with Bench() as bench:
        bench.budget()
        if keeps_another:
            bench.budget(BOT_SCOPE, 500)
        id = bench.reserve(100, BOT, overage_policy=policy).id
        bench.authority.delete_budget("tenant:acme", force=True)
        if made_anew:
            bench.budget(amount=7)
        assert bench.authority.check() == []
        if ending == "expiry":
            bench.clock.now += 60_000 + 5_000 + 1
        told = ENDINGS[ending](bench, id)
        spent = {"release": 0, "expiry": 0, "commit of more": 160}.get(ending, 40)
        assert told == {"release": tokens(100), "expiry": "RESERVATION_EXPIRED"}.get(ending, tokens(spent))
        assert bench.authority.check() == []
        found = {one.scope: (one.allocated, one.spent, one.reserved, one.debt) for one in bench.authority.budgets()}
        expected = {"tenant:acme": (7, 0, 0, 0)} if made_anew else {}
        if keeps_another:
            expected[BOT_SCOPE] = (500, spent, 0, 0)
        assert found == expected


def test_only_this_budget_is_let_go(bench):
    """Scopes whose names begin or end alike, and another unit, are still held."""
    held = ["tenant:acme/app:a", "tenant:acme/app:a/agent:b", "tenant:acme/app:ab", "tenant:acme-2/app:a"]
    for scope in held:
        bench.budget(scope, 100)
    bench.authority.set_budget("tenant:acme/app:a", Amount.credits(100))
    for tenant, app in (("acme", "a"), ("acme", "ab"), ("acme-2", "a")):
        bench.reserve(10, {"tenant": tenant, "app": app, "agent": "b"}, caller=_as(tenant))
    bench.reserve(10, {"tenant": "acme", "app": "a"}, estimate={"unit": "CREDITS", "amount": 10})
    assert [one.reservations for one in bench.authority.holds("tenant:acme/app:a")] == [1, 1]
    bench.authority.delete_budget("tenant:acme/app:a", "TOKENS", force=True)
    assert bench.authority.check() == []
    reserved = {(one.scope, one.unit): one.reserved for one in bench.authority.budgets()}
    assert reserved == {
        ("tenant:acme", "TOKENS"): 20,
        ("tenant:acme-2/app:a", "TOKENS"): 10,
        ("tenant:acme/app:a", "CREDITS"): 10,
        ("tenant:acme/app:a/agent:b", "TOKENS"): 10,
        ("tenant:acme/app:ab", "TOKENS"): 10,
    }


def _as(tenant):
    from cycles_lite.local.authority import Caller

    return Caller(tenant)


def test_closed_periods_outlive_their_budget():
    """A new one in the same place goes on after them, also within the period in which the old one was deleted."""
    with Bench() as bench:
        bench.budget(amount=10, period="12h")
        bench.event(3)
        bench.clock.now += DAY
        bench.event(4)
        bench.authority.delete_budget("tenant:acme")
        before = bench.authority.history("tenant:acme")
        assert [one.spent for one in before] == [3, 0]
        for period in ("12h", "1h"):
            bench.budget(amount=20, period=period)
            assert bench.authority.budgets()[0].spent == 0
            assert before[-1].end_ms <= bench.authority.budgets()[0].period_start_ms <= bench.clock.now
            bench.clock.now += DAY
            assert bench.authority.history("tenant:acme")[:2] == before
            assert bench.authority.check() == []
            bench.authority.delete_budget("tenant:acme")
        assert len(bench.authority.history("tenant:acme")) > 20


def test_holds_are_counted(bench):
    """Each budget of a scope with its live reservations and the time of the oldest."""
    bench.authority.set_budget("tenant:acme", Amount.credits(7))
    bench.reserve(10)
    bench.clock.now += 5
    bench.reserve(20, BOT)
    bench.release(bench.reserve(30).id)
    credits, found = bench.authority.holds("tenant:ACME")
    assert credits[1:] == (0, None)
    assert found == (bench.authority.budgets()[1], 2, bench.clock.now - 5)
    assert found.budget.reserved == 30
    assert bench.authority.holds("tenant:acme", "CREDITS") == [credits]
    with pytest.raises(ValidationError, match="no budget"):
        bench.authority.holds(BOT_SCOPE)


def test_threads_that_delete_and_reserve(url):
    """Whatever comes first: nothing is held of a budget that is gone."""
    with Bench(url) as bench, Bench(url) as other:
        stop = threading.Event()

        def work(number):
            if number:
                while not stop.is_set():
                    held = bench.reserve(1, BOT)
                    assert held.error in (None, "NOT_FOUND")
                    if held.error is None:
                        assert bench.commit(held.id, 1).status == 200
                return
            try:
                for _ in range(40):
                    other.budget()
                    other.authority.delete_budget("tenant:acme", force=True)
            finally:
                stop.set()

        run_threads(3, work)
        assert bench.authority.check() == []
