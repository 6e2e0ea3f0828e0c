"""The event `RunningLow`: told once when a budget falls below the line, and again after it was lifted above it."""

from __future__ import annotations

import threading

import pytest
from ledgers import Ended, ledger_of, tokens

from cycles_lite import Action, Amount, CommitRequest, CyclesClient, CyclesConfig, Subject, events, session
from cycles_lite.local import Authority
from cycles_lite.protocol.models import EventCreateRequest, ReleaseRequest, ReservationCreateRequest

ACTION = Action("llm.completion", "gpt-4o")
ACME = "tenant:acme"


@pytest.fixture
def ledger(tmp_path):
    with ledger_of(tmp_path, 100) as authority:
        yield authority


def client_of(ledger, told, **settings):
    settings.setdefault("journal_enabled", False)
    return CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme", **settings), observer=told.append)


@pytest.fixture
def told():
    return []


@pytest.fixture
def client(ledger, told):
    with client_of(ledger, told) as client:
        yield client


def low(told):
    """The scopes and what was left of them, and nothing else that was told; told no more after that."""
    found = [(one.balance.scope_path, one.balance.remaining.amount) for one in told if type(one) is events.RunningLow]
    told.clear()
    return found


def reserve(client, amount, **fields):
    return client.create_reservation(ReservationCreateRequest(action=ACTION, estimate=tokens(amount), **fields))


def commit(client, made, amount):
    return client.commit_reservation(made.reservation_id, CommitRequest(actual=tokens(amount)))


def spend(client, amount):
    return client.create_event(EventCreateRequest(action=ACTION, actual=tokens(amount)))


def test_it_is_told_once_below_the_line_and_not_on_it(client, told):
    spend(client, 80)
    assert low(told) == []
    spend(client, 1)
    (event,) = told
    assert event.balance.scope_path == ACME
    assert (event.balance.remaining.amount, event.balance.allocated) == (19, tokens(100))
    assert event.fraction == 0.19
    told.clear()
    for _ in range(5):
        spend(client, 1)
    assert low(told) == []


@pytest.mark.parametrize("how", ["reserve", "commit", "release", "event"])
def test_the_answers_of_these_operations_tell_it(ledger, client, told, how):
    quiet = client_of(ledger, [], warn_below=None)
    made = reserve(quiet, 10)
    spend(quiet, 75)
    if how == "reserve":
        reserve(client, 1)
    elif how == "commit":
        commit(client, made, 10)
    elif how == "release":
        spend(quiet, 10)
        client.release_reservation(made.reservation_id, ReleaseRequest())
    else:
        spend(client, 1)
    assert len(low(told)) == 1
    quiet.close()


@pytest.mark.parametrize("how", ["reserve", "commit", "release", "shadow"])
def test_guards_tell_it(ledger, told, how):
    mode = "shadow" if how == "shadow" else "enforce"
    with client_of(ledger, [], warn_below=None) as other, client_of(ledger, told, mode=mode) as client:
        if how in ("reserve", "shadow"):
            spend(other, 81 if how == "shadow" else 80)  # a dry run holds nothing
            with client.reserve(tokens(1), ACTION) as guard:
                assert low(told) == [(ACME, 19)]
                guard.release("done")
            return
        with client.reserve(tokens(10), ACTION) as guard:
            assert low(told) == []
            if how == "commit":
                guard.commit(tokens(81))
            else:
                spend(other, 81)
                guard.release("done")
        assert low(told) == [(ACME, 19)]


def test_it_is_told_after_what_has_happened(ledger, told):
    """So that an observer that ends its thread keeps nothing from being settled."""
    with client_of(ledger, told) as client, client.reserve(tokens(85), ACTION) as guard:
        guard.commit(tokens(90))
    assert [type(event).__name__ for event in told] == ["Reserved", "RunningLow", "Settled"]


def test_holds_that_come_and_go_do_not_tell_it_again(client, told):
    spend(client, 70)
    for number in range(5):
        made = reserve(client, 15)
        assert low(told) == ([(ACME, 15)] if number == 0 else []), (
            "30 are left without the hold, which is above the line"
        )
        client.release_reservation(made.reservation_id, ReleaseRequest())
    assert low(told) == []


def test_more_funds_arm_it_again(ledger, client, told):
    spend(client, 90)
    assert low(told) == [(ACME, 10)]
    ledger.fund(ACME, tokens(5))
    spend(client, 1)
    assert low(told) == [], "it was not above the line"
    ledger.fund(ACME, tokens(100))
    spend(client, 1)
    assert low(told) == []
    spend(client, 80)
    assert low(told) == [(ACME, 33)]


def test_a_new_period_arms_it_again(tmp_path, told):
    """On a server, whose clock the test moves."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    now = [1_700_000_000_000]
    with Authority(f"sqlite:///{tmp_path}/budgets.db", clock=lambda: now[0]) as authority:
        authority.set_budget(ACME, tokens(100), period="12h")
        key = authority.create_key("acme").key_secret
        with server.Server(authority) as running, running.in_background():
            with CyclesClient(CyclesConfig(base_url=running.url, api_key=key), observer=told.append) as client:
                subject = Subject(tenant="acme")
                for _ in range(3):
                    for amount in (10, 75, 1, 1):
                        client.create_event(EventCreateRequest(action=ACTION, actual=tokens(amount), subject=subject))
                    assert low(told) == [(ACME, 15)]
                    now[0] += 12 * 3600 * 1000
                # Also where the first that is seen of the period is low already.
                for amount in (85, 84):
                    client.create_event(EventCreateRequest(action=ACTION, actual=tokens(amount), subject=subject))
                    assert low(told) == [(ACME, 100 - amount)]
                    now[0] += 12 * 3600 * 1000


def test_what_the_debt_is_repaid_with_does_not_tell_it_again(ledger, client, told):
    """The period is the same, and less than the line is left."""
    ledger.set_budget(ACME, tokens(100), overdraft_limit=50)
    policy = {"overage_policy": "ALLOW_WITH_OVERDRAFT"}
    client.create_event(EventCreateRequest(action=ACTION, actual=tokens(90)))
    assert low(told) == [(ACME, 10)]
    client.create_event(EventCreateRequest(action=ACTION, actual=tokens(30), **policy))
    ledger.fund(ACME, tokens(15), "REPAY_DEBT")
    client.create_event(EventCreateRequest(action=ACTION, actual=tokens(1), **policy))
    assert low(told) == []


def test_an_answer_whose_thread_comes_late_does_not_arm_it(client, told):
    earlier = spend(client, 80)
    spend(client, 1)
    assert low(told) == [(ACME, 19)]
    client._session.watch(earlier)
    spend(client, 1)
    assert low(told) == []


def test_each_budget_counts_for_itself(ledger, client, told):
    ledger.set_budget(ACME, Amount.credits(10))
    ledger.set_budget(f"{ACME}/agent:bot", tokens(10))
    bot = Subject(tenant="acme", agent="bot")
    client.create_event(EventCreateRequest(action=ACTION, actual=tokens(9), subject=bot))
    assert low(told) == [(f"{ACME}/agent:bot", 1)]
    spend(client, 80)
    assert low(told) == [(ACME, 11)]
    client.create_event(EventCreateRequest(action=ACTION, actual=Amount.credits(9)))
    assert low(told) == [(ACME, 1)]


def test_a_budget_in_overdraft_and_one_of_nothing(ledger, client, told):
    ledger.set_budget(ACME, tokens(100), overdraft_limit=50)
    request = EventCreateRequest(action=ACTION, actual=tokens(125), overage_policy="ALLOW_WITH_OVERDRAFT")
    client.create_event(request)
    (event,) = [one for one in told if type(one) is events.RunningLow]
    assert event.fraction == -0.25
    told.clear()
    ledger.set_budget(ACME, Amount.credits(0), overdraft_limit=50)
    request = EventCreateRequest(action=ACTION, actual=Amount.credits(5), overage_policy="ALLOW_WITH_OVERDRAFT")
    client.create_event(request)
    assert low(told) == [], "no part of nothing"


@pytest.mark.parametrize(("line", "left"), [(1.0, 99), (0.5, 49), (0.015, 1)])
def test_the_line_is_a_setting(ledger, told, line, left):
    with client_of(ledger, told, warn_below=line) as client:
        for _ in range(100):
            spend(client, 1)
    assert low(told) == [(ACME, left)]


def test_it_can_be_off(ledger, told):
    with client_of(ledger, told, warn_below=None) as client:
        spend(client, 99)
    assert told == []


def test_derived_clients_share_what_was_told(ledger, client, told):
    """A program may derive a client for each request that it serves."""
    spend(client.with_options(agent="bot"), 90)
    spend(client.with_options(agent="other"), 1)
    spend(client, 1)
    assert low(told) == [(ACME, 10)]
    spend(client.with_options(warn_below=0.5), 1)
    assert low(told) == [(ACME, 7)], "another line is another warning"
    spend(client, 1)
    spend(client.with_options(warn_below=0.5), 1)
    assert low(told) == []


def test_one_of_many_threads_tells_it(ledger, client, told):
    threads = [threading.Thread(target=spend, args=(client, 10)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(low(told)) == 1


def test_what_is_remembered_is_bounded(ledger, client, told, monkeypatch):
    monkeypatch.setattr(session, "_MOST_LOW", 3)
    for number in range(5):
        ledger.set_budget(f"{ACME}/agent:a{number}", tokens(10))
        subject = Subject(tenant="acme", agent=f"a{number}")
        client.create_event(EventCreateRequest(action=ACTION, actual=tokens(9), subject=subject))
    assert [scope for scope, _ in low(told)] == [f"{ACME}/agent:a{number}" for number in range(5)]
    assert len(client._session.low._told) == 3


def test_an_observer_that_fails_stops_nothing_and_is_not_asked_again(ledger, caplog):
    asked = []

    def fail(event):
        asked.append(event)
        raise ValueError("by intent")

    config = CyclesConfig(base_url=ledger.url, tenant="acme")
    with CyclesClient(config, observer=fail) as client:
        assert spend(client, 90).status == "APPLIED"
        spend(client, 1)
    assert len(asked) == 1
    assert "the observer failed on RunningLow" in caplog.text


def test_an_observer_may_use_the_client(ledger):
    told = []

    def observe(event):
        told.append(event)
        spend(client, 1)

    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme"), observer=observe) as client:
        spend(client, 90)
    assert len(told) == 1
    assert ledger.budgets()[0].spent == 91


def test_an_observer_that_ends_the_program_leaves_no_hold(ledger, tmp_path):
    def end(event):
        if type(event) is events.RunningLow:
            raise Ended

    config = CyclesConfig(base_url=ledger.url, tenant="acme", journal_dir=str(tmp_path / "journal"))
    with CyclesClient(config, observer=end) as client:
        with pytest.raises(Ended):
            client.reserve(tokens(90), ACTION)
        assert client.flush(60.0) == 0
    assert ledger.budgets()[0].reserved == 0


def test_without_an_observer_balances_are_not_even_looked_at(ledger, monkeypatch):
    def look(*_):
        raise AssertionError

    monkeypatch.setattr(session.Session, "watch", look)
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme")) as client:
        spend(client, 90)
