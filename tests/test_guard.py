"""The guard's life: one end, whatever happens inside, and nobody's exception lost to ours."""

from __future__ import annotations

import datetime
import decimal
import gc
import json
import logging
import os
import threading
import time
import uuid
import warnings
import weakref

import pytest
from implementation import needs_cpython
from ledgers import Broken, ledger_of, spent, tokens
from peers import FakeTransport, allowed, applied, committed, replied

from cycles_lite import (
    Action,
    Amount,
    ApiError,
    BudgetDenied,
    BudgetExceededError,
    Caps,
    CyclesClient,
    CyclesConfig,
    CyclesMetrics,
    Decision,
    GuardFinalizedError,
    NotFoundError,
    ResponseError,
    ServerError,
    SettlementRejectedError,
    SettlementStatus,
    Subject,
    TransportError,
    ValidationError,
    current_guard,
    events,
)
from cycles_lite.background.worker import worker
from cycles_lite.guards.costs import settle, settle_call

ACTION = Action("llm.completion", "gpt-4o")


@pytest.fixture
def ledger(tmp_path):
    with ledger_of(tmp_path, 1000) as ledger:
        yield ledger


@pytest.fixture
def seen():
    return []


@pytest.fixture
def client(ledger, tmp_path, seen):
    config = CyclesConfig(base_url=f"sqlite:///{tmp_path}/budgets.db", tenant="acme")
    with CyclesClient(config, observer=seen.append) as client:
        yield client


@pytest.fixture
def faking(tmp_path, seen):
    """Makes clients of a fake transport; closes them."""
    made = []

    def make(*answers, **changes):
        transport = FakeTransport(*answers)
        settings = {"retry_initial_delay": 0.01, "retry_max_delay": 0.05, "flush_timeout": 0.2, **changes}
        config = CyclesConfig(base_url="http://fake.invalid", api_key="key", tenant="acme", **settings)
        made.append(CyclesClient(config, observer=seen.append, transport=transport))
        return made[-1], transport

    yield make
    for client in made:
        client.close()


def names(seen):
    return [type(event).__name__ for event in seen]


# ---- One end ----


def test_a_commit_settles_and_tells_what_was_charged(client, ledger, seen):
    with client.reserve(tokens(100), ACTION) as guard:
        settled = guard.commit(tokens(40), metrics=CyclesMetrics(tokens_input=12), metadata={"run": 1})
    assert settled.status is SettlementStatus.COMMITTED
    assert (settled.charged, settled.released) == (tokens(40), tokens(60))
    assert settled.balances[0].remaining.amount == 960
    assert settled.response.status == "COMMITTED"
    assert spent(ledger) == (40, 0)
    assert names(seen) == ["Reserved", "Settled"]
    assert seen[1].actual == tokens(40)


def test_what_was_granted_can_be_read(client, ledger):
    ledger.set_budget("tenant:acme", tokens(1000), caps=Caps(max_tokens=7))
    with client.reserve(tokens(100), ACTION) as guard:
        assert guard.reservation_id.startswith("rsv_")
        assert guard.decision is Decision.ALLOW_WITH_CAPS
        assert guard.is_capped
        assert guard.caps.max_tokens == 7
        assert guard.affected_scopes == ("tenant:acme",)
        assert guard.scope_path == "tenant:acme"
        assert guard.reserved == tokens(100)
        assert guard.balances[0].reserved == tokens(100)
        assert guard.expires_at_ms > time.time() * 1000
        assert guard.is_active
        assert not guard.degraded
        assert guard.reservation_id in repr(guard)
        guard.release("read enough")
    assert not guard.is_active


def test_what_was_asked_for_cannot_be_changed(client):
    with client.reserve(tokens(5), ACTION) as guard:
        with pytest.raises(AttributeError):
            guard.estimate = Amount.credits(5)
        guard.commit(tokens(1))


@pytest.mark.parametrize("first", ["commit", "release"])
@pytest.mark.parametrize("second", ["commit", "release"])
def test_a_second_end_raises_and_sends_nothing(faking, first, second):
    client, transport = faking(replied(allowed()), replied(committed()))
    ends = {"commit": lambda: guard.commit(tokens(1)), "release": lambda: guard.release("x")}
    guard = client.reserve(tokens(5), ACTION)
    ends[first]()
    sent = len(transport.calls)
    with pytest.raises(GuardFinalizedError, match="finished"):
        ends[second]()
    with pytest.raises(GuardFinalizedError):
        guard.extend(1000)
    assert len(transport.calls) == sent


def test_of_many_threads_one_ends_it(client, ledger):
    guard = client.reserve(tokens(100), ACTION)
    outcomes = []

    def end():
        try:
            outcomes.append(guard.commit(tokens(3)).status)
        except GuardFinalizedError:
            outcomes.append("too late")

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["COMMITTED"] + ["too late"] * 7
    assert spent(ledger) == (3, 0)


@pytest.mark.parametrize("actual", [5, None, 5.0, Amount.credits(5), "5"])
def test_an_actual_that_is_none_is_refused_and_the_guard_stays_active(client, ledger, actual):
    with client.reserve(tokens(100), ACTION) as guard:
        with pytest.raises(ValidationError, match="actual"):
            guard.commit(actual)
        assert guard.is_active
        guard.commit(tokens(5))
    assert spent(ledger) == (5, 0)


class Hostile(dict):
    """What raises whatever is asked of it."""

    def __iter__(self):
        raise RuntimeError("no")

    keys = items = values = __len__ = __getitem__ = __iter__


UNSENDABLE = [
    {"at": datetime.datetime(2026, 1, 1)},
    {"price": decimal.Decimal("0.1")},
    {"id": uuid.UUID(int=1)},
    {"of": {1, 2}},
    {"raw": b"x"},
    {"rate": float("nan")},
    {1: "one"},
    Hostile(),
    [1, 2],
    {"text": "\ud800"},
]


@pytest.mark.parametrize("metadata", UNSENDABLE, ids=lambda value: type(value).__name__)
def test_metadata_that_cannot_be_sent_does_not_veto_the_amount(client, ledger, caplog, metadata):
    """The amount is settled without it, and an ERROR says what was wrong."""
    with client.reserve(tokens(100), ACTION) as guard:
        settlement = guard.commit(tokens(5), metrics=CyclesMetrics(tokens_input=3), metadata=metadata)
    assert settlement.status is SettlementStatus.COMMITTED
    assert spent(ledger) == (5, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "metadata" in caplog.text or "no" in caplog.text


def test_metrics_that_are_none_do_not_veto_the_amount_nor_the_metadata(faking, caplog):
    client, transport = faking(replied(allowed()), replied(committed()))
    with client.reserve(tokens(100), ACTION) as guard:
        guard.commit(tokens(5), metrics={"latency_ms": 1}, metadata={"run": 7})
    sent = json.loads(transport.calls[-1].body.decode())
    assert (sent["actual"]["amount"], sent["metadata"], "metrics" in sent) == (5, {"run": 7}, False)
    assert "metrics" in caplog.text


# ---- Leaving ----


def test_leaving_without_a_word_releases_with_a_warning(client, ledger, caplog, seen):
    with client.reserve(tokens(100), ACTION):
        pass
    assert spent(ledger) == (0, 0)
    assert "without a commit" in caplog.text
    assert names(seen) == ["Reserved", "Released"]


@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_releases_and_goes_on(client, ledger, seen, kind):
    with pytest.raises(kind), client.reserve(tokens(100), ACTION):
        raise kind
    assert spent(ledger) == (0, 0)
    assert seen[-1].reason == kind.__name__


@pytest.mark.parametrize("kind", [None, Broken, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_was_metered_is_committed_exception_or_not(client, ledger, kind):
    guard = client.reserve(tokens(100), ACTION)

    def work():
        with guard:
            assert guard.spend(30) == 30
            assert guard.spend(12) == 42
            if kind is not None:
                raise kind

    if kind is None:
        work()
    else:
        with pytest.raises(kind):
            work()
    assert guard.spent == 42
    assert spent(ledger) == (42, 0)


def test_a_meter_of_nothing_is_a_release(client, ledger, seen):
    with client.reserve(tokens(100), ACTION) as guard:
        guard.spend(0)
    assert names(seen) == ["Reserved", "Released"]


@pytest.mark.parametrize("n", [-1, 1.5, True, "1", None, 2**63])
def test_a_meter_takes_whole_numbers(client, n):
    with client.reserve(tokens(100), ACTION) as guard:
        with pytest.raises(ValidationError):
            guard.spend(n)
        assert guard.spent == 0
        guard.release("done")


def test_a_meter_never_passes_int64(client):
    with client.reserve(tokens(100), ACTION) as guard:
        guard.spend(2**63 - 2)
        with pytest.raises(ValidationError, match="spent"):
            guard.spend(2)
        assert guard.spent == 2**63 - 2
        guard.release("too much")


def test_threads_meter_together(client, ledger):
    with client.reserve(tokens(1000), ACTION) as guard:
        threads = [threading.Thread(target=lambda: [guard.spend(1) for _ in range(100)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert spent(ledger) == (800, 0)


def test_the_bodys_exception_wins_over_a_refused_commit(faking, caplog):
    client, _ = faking(replied(allowed()), replied(refusal_body("BUDGET_EXCEEDED"), 409))
    with pytest.raises(Broken), client.reserve(tokens(5), ACTION) as guard:  # noqa: PT012
        guard.spend(3)
        raise Broken
    assert "BUDGET_EXCEEDED" in caplog.text


def test_a_refused_commit_on_a_clean_exit_is_raised(faking):
    client, _ = faking(replied(allowed()), replied(refusal_body("BUDGET_EXCEEDED"), 409))
    guard = client.reserve(tokens(5), ACTION)
    guard.spend(3)
    with pytest.raises(SettlementRejectedError):
        guard.__exit__(None, None, None)


def test_a_release_that_fails_is_logged_and_nothing_else(faking, caplog):
    client, _ = faking(replied(allowed()), TransportError("down"))
    with client.reserve(tokens(5), ACTION) as guard:
        guard.release("no need")
    assert "was not released and will expire" in caplog.text


def test_long_reasons_are_shortened(client):
    with client.reserve(tokens(5), ACTION) as guard:
        guard.release("x" * 1000)


def refusal_body(code):
    return {"error": code, "message": "no", "request_id": "req_1"}


# ---- The context ----


def test_the_current_guard_is_the_innermost(client):
    assert current_guard() is None
    with client.reserve(tokens(5), ACTION) as outer:
        assert current_guard() is outer
        with client.reserve(tokens(5), ACTION) as inner:
            assert current_guard() is inner
            inner.release("x")
        assert current_guard() is outer
        with pytest.raises(Broken), client.reserve(tokens(5), ACTION):
            raise Broken
        assert current_guard() is outer
        outer.release("x")
    assert current_guard() is None


def test_another_thread_has_its_own_context(client):
    found = []
    with client.reserve(tokens(5), ACTION) as guard:
        thread = threading.Thread(target=lambda: found.append(current_guard()))
        thread.start()
        thread.join()
        guard.release("x")
    assert found == [None]


# ---- Reserving ----


def test_a_denial_raises_before_any_work(client, ledger, seen):
    with pytest.raises(BudgetExceededError) as denied:
        client.reserve(tokens(1001), ACTION)
    assert denied.value.details["remaining"] == 1000
    assert names(seen) == ["Denied"]
    assert seen[0].error is denied.value
    assert spent(ledger) == (0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        {"decision": "DENY", "reason_code": "BUDGET_EXCEEDED", "affected_scopes": []},
        {"decision": "MAYBE", "reservation_id": "rsv_1", "affected_scopes": []},
        {"decision": "ALLOW", "affected_scopes": []},
        {"decision": "ALLOW", "reservation_id": "", "affected_scopes": []},
    ],
)
def test_only_an_allow_with_an_id_lets_the_work_run(faking, answer):
    client, _ = faking(replied(answer))
    with pytest.raises(BudgetDenied):
        client.reserve(tokens(5), ACTION)


def test_the_requests_fields_are_sent(faking):
    client, transport = faking(replied(allowed()), replied(committed()))
    with client.reserve(
        tokens(5),
        ACTION,
        subject=Subject(agent="bot"),
        ttl_ms=5000,
        grace_period_ms=100,
        overage_policy="REJECT",
        metadata={"a": 1},
        idempotency_key="mine",
    ) as guard:
        guard.commit(tokens(1))
    sent = json.loads(transport.calls[0].body.decode())
    assert sent == {
        "action": {"kind": "llm.completion", "name": "gpt-4o"},
        "estimate": {"unit": "TOKENS", "amount": 5},
        "subject": {"tenant": "acme", "agent": "bot"},
        "ttl_ms": 5000,
        "grace_period_ms": 100,
        "overage_policy": "REJECT",
        "metadata": {"a": 1},
        "idempotency_key": "mine",
    }


def test_extending_moves_the_expiry(client):
    with client.reserve(tokens(5), ACTION) as guard:
        extended = guard.extend(30_000)
        assert extended.expires_at_ms == guard.expires_at_ms + 30_000
        with pytest.raises(ValidationError):
            guard.extend(0)
        guard.release("x")


# ---- Settlement, as the guard tells it ----


def test_a_lost_answer_is_asked_for_again_with_the_same_key(faking):
    client, transport = faking(replied(allowed()), TransportError("reset"), replied(committed()))
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(1)).status is SettlementStatus.COMMITTED
    first, second = transport.calls[1:]
    assert (first.operation.name, first.body) == (second.operation.name, second.body)


def test_an_expired_commit_becomes_an_event(faking, seen):
    client, transport = faking(
        replied(allowed()), replied(refusal_body("RESERVATION_EXPIRED"), 410), replied(applied(), 201)
    )
    with client.reserve(tokens(5), ACTION, subject=Subject(agent="bot")) as guard:
        settled = guard.commit(tokens(3), metrics=CyclesMetrics(latency_ms=9), metadata={"run": 1})
    assert settled.status is SettlementStatus.RECORDED
    assert settled.charged == tokens(3)
    commit, event = (json.loads(call.body.decode()) for call in transport.calls[1:])
    assert event["idempotency_key"] == commit["idempotency_key"]
    assert event["subject"] == {"tenant": "acme", "agent": "bot"}
    assert event["action"] == {"kind": "llm.completion", "name": "gpt-4o"}
    assert event["actual"] == {"unit": "TOKENS", "amount": 3}
    assert event["metrics"] == {"latency_ms": 9}
    assert event["overage_policy"] == "ALLOW_IF_AVAILABLE"
    assert event["metadata"] == {
        "run": 1,
        "recovered_reservation_id": guard.reservation_id,
        "recovery_reason": "reservation_expired",
    }


def test_what_cannot_be_settled_now_is_pending_and_settled_later(faking, seen):
    client, transport = faking(replied(allowed()), TransportError("down"), TransportError("down"), replied(committed()))
    with client.reserve(tokens(5), ACTION) as guard:
        settled = guard.commit(tokens(1))
    assert settled.status is SettlementStatus.PENDING
    assert settled.charged is None
    assert client.flush(60) == 0
    assert len({call.body for call in transport.calls[1:]}) == 1
    assert names(seen)[-1] == "Settled"


def test_a_final_no_raises_and_leaves_nothing_behind(faking, seen, caplog):
    client, transport = faking(replied(allowed()), replied(refusal_body("NOT_FOUND"), 404))
    with client.reserve(tokens(5), ACTION) as guard, pytest.raises(NotFoundError):
        guard.commit(tokens(4))
    assert client.flush(60) == 0
    assert [call.operation.name for call in transport.calls] == ["create_reservation", "commit_reservation"]
    rejected = seen[-1]
    assert isinstance(rejected, events.Rejected)
    assert rejected.body["actual"] == {"unit": "TOKENS", "amount": 4}
    assert rejected.reservation_id == guard.reservation_id
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert guard.reservation_id in record.getMessage()
    assert '"amount":4' in record.getMessage()


# ---- Modes ----


def test_off_asks_nothing():
    with CyclesClient(CyclesConfig(mode="off")) as client:
        with client.reserve(tokens(5), ACTION) as guard:
            assert guard.is_active
            assert guard.reservation_id is None
            settled = guard.commit(tokens(3))
        assert settled.status is SettlementStatus.SKIPPED
        with client.reserve(tokens(5), ACTION) as guard:
            guard.spend(1)
        assert client.flush() == 0


def test_shadow_asks_and_lets_everything_through(client, ledger, seen, caplog):
    shadow = client.with_options(mode="shadow")
    with shadow.reserve(tokens(5), ACTION) as guard:
        assert guard.decision is Decision.ALLOW
        assert guard.reservation_id is None
        assert guard.commit(tokens(3)).status is SettlementStatus.SKIPPED
    with shadow.reserve(tokens(5000), ACTION) as guard:
        assert guard.decision is None
        guard.spend(10)
    assert "would have been denied" in caplog.text
    assert seen[-1].shadow is True
    assert spent(ledger) == (0, 0)


@pytest.mark.parametrize(
    "answer",
    [TransportError("down"), replied({}, 500), replied(body=b"<html>"), replied(refusal_body("FORBIDDEN"), 403)],
)
def test_shadow_is_stopped_by_no_error(faking, answer):
    client, _ = faking(answer, mode="shadow")
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(1)).status is SettlementStatus.SKIPPED


UNAVAILABLE = [TransportError("down"), replied({}, 503), replied(body=b"<html>"), replied({}, 202)]


@pytest.mark.parametrize("answer", UNAVAILABLE)
def test_unavailable_raises_unless_it_is_allowed(faking, answer):
    client, _ = faking(answer)
    with pytest.raises((TransportError, ServerError, ResponseError)):
        client.reserve(tokens(5), ACTION)


@pytest.mark.parametrize("answer", UNAVAILABLE)
def test_unavailable_may_let_the_work_through_and_its_spend_is_recorded(faking, answer, seen):
    client, transport = faking(answer, answer, replied(applied(), 201), on_unavailable="allow")
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.degraded
        settled = guard.commit(tokens(3))
    assert settled.status is SettlementStatus.RECORDED
    event = json.loads(transport.calls[-1].body.decode())
    assert event["actual"] == {"unit": "TOKENS", "amount": 3}
    assert event["metadata"] == {"recovery_reason": "reserve_unavailable"}
    assert seen[0].error.is_retryable
    assert seen[1].reservation_id == "degraded:" + event["idempotency_key"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "UNAUTHORIZED"),
        (403, "FORBIDDEN"),
        (404, None),
        (409, "BUDGET_EXCEEDED"),
        (429, None),
        (400, "INTERNAL_ERROR"),
        (409, "INTERNAL_ERROR"),
    ],
)
def test_a_no_is_never_let_through(faking, status, code):
    answer = replied(refusal_body(code), status) if code else replied(body=b"<html>", status=status)
    client, _ = faking(answer, on_unavailable="allow")
    with pytest.raises(ApiError) as refused:
        client.reserve(tokens(5), ACTION)
    assert refused.value.status == status


def test_a_degraded_guard_without_spend_sends_nothing(faking):
    client, transport = faking(TransportError("down"), on_unavailable="allow")
    with client.reserve(tokens(5), ACTION):
        pass
    assert {call.operation.name for call in transport.calls} == {"create_reservation"}


# ---- Collected guards ----


@pytest.mark.parametrize(("metered", "charged"), [(7, 7), (0, 0)])
def test_a_collected_guard_is_settled_in_the_background(client, ledger, metered, charged):
    guard = client.reserve(tokens(100), ACTION)
    if metered:
        guard.spend(metered)
    with pytest.warns(ResourceWarning, match="never finished"):  # noqa: PT031
        del guard
        gc.collect()
    assert client.flush(60) == 0
    assert spent(ledger) == (charged, 0)


def test_a_finished_guard_is_collected_in_silence(client):
    guard = client.reserve(tokens(100), ACTION)
    guard.release("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del guard
        gc.collect()


# ---- Observers ----


def test_an_observer_that_fails_is_logged_and_stops_nothing(ledger, tmp_path, caplog):
    def fail(event):
        raise Broken("observer")

    config = CyclesConfig(base_url=f"sqlite:///{tmp_path}/budgets.db", tenant="acme")
    with CyclesClient(config, observer=fail) as client, client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(1)).status is SettlementStatus.COMMITTED
    assert "the observer failed on Reserved" in caplog.text


# ---- The journal ----


def journal_files():
    found = []
    for folder, _, names_ in os.walk(os.path.expanduser("~/.cycles-lite")):
        found += [os.path.join(folder, name) for name in names_ if name.endswith(".json")]
    return found


def test_the_record_is_on_disk_before_the_commit_leaves(faking):
    on_disk = []

    def commit(call):
        (path,) = journal_files()
        with open(path, "rb") as file:
            on_disk.append(json.loads(file.read().decode()))
        return replied(committed())

    client, _ = faking(replied(allowed()), commit)
    with client.reserve(tokens(5), ACTION) as guard:
        guard.commit(tokens(3))
    assert on_disk[0]["mode"] == "commit"
    assert on_disk[0]["commit_body"]["actual"] == {"unit": "TOKENS", "amount": 3}
    assert journal_files() == []


def test_event_mode_is_on_disk_before_the_event_leaves(faking):
    modes = []

    def event(call):
        (path,) = journal_files()
        with open(path, "rb") as file:
            modes.append(json.loads(file.read().decode())["mode"])
        return replied(applied(), 201)

    client, _ = faking(replied(allowed()), replied(refusal_body("RESERVATION_EXPIRED"), 410), event)
    with client.reserve(tokens(5), ACTION) as guard:
        guard.commit(tokens(3))
    assert modes == ["event"]
    assert journal_files() == []


def test_a_rate_limit_floor_is_on_disk(faking):
    client, transport = faking(replied(allowed()), replied(refusal_body("LIMIT_EXCEEDED"), 429, retry_after="60"))
    before = time.time() * 1000
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(3)).status is SettlementStatus.PENDING
    (path,) = journal_files()
    with open(path, "rb") as file:
        floor = json.loads(file.read().decode())["not_before_ms"]
    assert before + 59_000 <= floor <= time.time() * 1000 + 60_000
    sent = len(transport.calls)
    assert client.flush(0.1) == 1
    assert len(transport.calls) == sent, "nothing may be sent before the floor"


def test_a_later_client_takes_up_what_was_left(faking):
    first, _ = faking(replied(allowed()), TransportError("down"))
    with first.reserve(tokens(5), ACTION) as guard:
        guard.commit(tokens(3))
    first.close()
    assert len(journal_files()) == 1
    second, transport = faking(replied(committed()))
    assert second.flush(60) == 0
    assert [call.operation.name for call in transport.calls] == ["commit_reservation"]
    assert journal_files() == []


def test_without_a_journal_nothing_is_on_disk(faking):
    client, _ = faking(
        replied(allowed()), TransportError("down"), TransportError("down"), replied(committed()), journal_enabled=False
    )
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(3)).status is SettlementStatus.PENDING
    assert journal_files() == []
    assert client.flush(60) == 0


def test_a_journal_that_cannot_be_written_stops_no_commit(faking, tmp_path, seen):
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    client, _ = faking(replied(allowed()), replied(committed()), journal_dir=str(blocked))
    with client.reserve(tokens(5), ACTION) as guard:
        assert guard.commit(tokens(3)).status is SettlementStatus.COMMITTED
    assert "JournalFailed" in names(seen)


# ---- Finished guards ----


@pytest.mark.parametrize("end", [lambda guard: guard.commit(tokens(1)), lambda guard: guard.release("x")])
@pytest.mark.parametrize(
    "use",
    [
        lambda guard: guard.spend(1),
        lambda guard: guard.extend(1000),
        lambda guard: guard.__enter__(),
        lambda guard: guard.stream([]),
        lambda guard: guard.commit(tokens(1)),
        lambda guard: guard.release("x"),
    ],
    ids="spend extend with stream commit release".split(),
)
def test_a_finished_guard_takes_nothing_into_the_void(client, end, use):
    guard = client.reserve(tokens(100), ACTION)
    end(guard)
    with pytest.raises(GuardFinalizedError):
        use(guard)
    assert current_guard() is None


def test_a_guard_that_the_library_ended_reports_what_is_spent_too_late(client, ledger, seen, caplog):
    """The work is not to blame, and does not fail for it."""
    with client.reserve(tokens(100), ACTION) as guard:
        guard.spend(3)
        assert guard.cut_off().status is SettlementStatus.COMMITTED
        guard.spend(4)
    assert spent(ledger) == (3, 0)
    (late,) = [event for event in seen if isinstance(event, events.SpentTooLate)]
    assert (late.reservation_id, late.amount) == (guard.reservation_id, tokens(4))
    assert "4 TOKENS" in caplog.text
    with pytest.raises(GuardFinalizedError):
        guard.commit(tokens(5))


def test_a_cost_that_is_told_after_the_library_ended_the_guard_is_reported(client, ledger, seen):
    """What the meter had counted by then is committed; the rest of the cost must not go without a word."""
    for cost in (3, 10):  # the first is no more than was committed
        with client.reserve(tokens(100), ACTION) as guard:
            guard.spend(3)
            guard.cut_off()
            settle(guard, cost)
            settle_call(guard, lambda result: result, cost)
    late = [event for event in seen if isinstance(event, events.SpentTooLate)]
    assert [event.amount for event in late] == [tokens(7)] * 2
    assert spent(ledger) == (6, 0)


def test_work_that_ended_its_guard_just_before_the_library_did_is_not_too_late(client, seen):
    with client.reserve(tokens(100), ACTION) as guard:
        guard.spend(3)
        take = type(guard)._take

        def late(self, how, end):
            mock.undo()
            guard.commit(tokens(10))
            take(self, how, end)

        with pytest.MonkeyPatch.context() as mock:
            mock.setattr(type(guard), "_take", late)
            assert guard.cut_off() is None
        settle(guard, 10)
    assert "SpentTooLate" not in names(seen)


# ---- Beats ----


@pytest.mark.parametrize("ttl_ms", [1000, 2000])
def test_a_beat_that_is_due_at_once_is_followed_by_others(faking, ttl_ms):
    """It may run before the reserve that began it has returned."""
    beats = threading.Semaphore(0)
    extended = {"status": "ACTIVE", "expires_at_ms": 10**12, "remaining_ttl_ms": 60_000}

    def answer(call):
        if call.operation.name == "extend_reservation":
            beats.release()
            return replied(extended)
        if call.operation.name == "create_reservation":
            return replied(allowed(remaining_ttl_ms=ttl_ms))
        return replied(committed())

    client, _ = faking(answer, heartbeat=True)
    for _ in range(50):
        with client.reserve(tokens(5), ACTION, ttl_ms=ttl_ms) as guard:
            assert beats.acquire(timeout=60)
            guard.commit(tokens(1))


def test_no_beat_follows_the_end_of_its_guard(faking):
    """One that is under way meanwhile ends by itself, and begins no other."""
    reached, release, beats = threading.Event(), threading.Event(), []

    def answer(call):
        if call.operation.name == "extend_reservation":
            beats.append(call.id)
            reached.set()
            assert release.wait(60)
            return replied({"status": "ACTIVE", "expires_at_ms": 10**12})
        return replied(allowed() if call.operation.name == "create_reservation" else committed())

    client, _ = faking(answer, heartbeat=True)
    with client.reserve(tokens(5), ACTION, ttl_ms=1000) as guard:
        assert reached.wait(60)
        guard.commit(tokens(1))
    release.set()
    end = time.monotonic() + 60
    while len(worker._waiting) < len(worker._threads) or worker._post:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert not worker._is_needed()
    assert len(beats) == 1


def test_a_beat_that_fails_by_a_fault_of_ours_is_told_and_followed(faking, seen):
    done = threading.Event()

    def answer(call):
        if call.operation.name == "extend_reservation":
            if len([event for event in seen if isinstance(event, events.HeartbeatFailed)]):
                done.set()
                return replied({"status": "ACTIVE", "expires_at_ms": 10**12})
            raise ZeroDivisionError("a fault of something that instruments the transport")
        return replied(allowed() if call.operation.name == "create_reservation" else committed())

    client, _ = faking(answer, heartbeat=True)
    with client.reserve(tokens(5), ACTION, ttl_ms=1000) as guard:
        assert done.wait(60)
        guard.commit(tokens(1))
    (failed,) = [event for event in seen if isinstance(event, events.HeartbeatFailed)]
    assert "ZeroDivisionError" in str(failed.error)


# ---- What is kept alive ----


@needs_cpython
def test_an_error_keeps_nothing_alive_once_it_was_handled(faking):
    """Neither the guard nor the program's own frames wait for the garbage collector."""

    class Work:
        pass

    def refused(client):
        work = Work()
        gone.append(weakref.ref(work))
        with client.reserve(tokens(5), ACTION) as guard:
            gone.append(weakref.ref(guard))
            try:
                guard.extend(1000)
            except NotFoundError as e:  # pytest.raises would keep it
                told.append(str(e))
            guard.release("no need")

    gone, told = [], []
    released = {"status": "RELEASED", "released": {"unit": "TOKENS", "amount": 5}}
    client, _ = faking(replied(allowed()), replied(refusal_body("NOT_FOUND"), 404), replied(released))
    gc.disable()
    try:
        refused(client)
        assert [held() for held in gone] == [None, None]
        assert told
    finally:
        gc.enable()


def test_an_observer_that_ends_the_program_leaves_no_reservation(ledger, tmp_path):
    def observe(event):
        if isinstance(event, events.Reserved):
            raise SystemExit

    config = CyclesConfig(base_url=f"sqlite:///{tmp_path}/budgets.db", tenant="acme")
    with CyclesClient(config, observer=observe) as client:
        with pytest.raises(SystemExit):
            client.reserve(tokens(100), ACTION)
        assert client.flush(60) == 0
    assert spent(ledger) == (0, 0)
