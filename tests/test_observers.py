"""The observers for Prometheus and OpenTelemetry, with the real packages and a real authority."""

from __future__ import annotations

import gc

import pytest
from ledgers import ledger_of, tokens

from cycles_lite import (
    Action,
    Amount,
    BudgetDenied,
    CyclesClient,
    CyclesConfig,
    CyclesError,
    TransportError,
    TransportTimeout,
    events,
    observers,
)
from cycles_lite.errors import BudgetExceededError, SettlementRejectedError
from cycles_lite.protocol.models import Balance
from cycles_lite.protocol.values import SignedAmount
from cycles_lite.settlement.meaning import Settlement, SettlementStatus

prometheus_client = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="the OpenTelemetry SDK is not installed")
InMemoryMetricReader = pytest.importorskip("opentelemetry.sdk.metrics.export").InMemoryMetricReader

ACTION = Action("llm.completion", "gpt-4o")
USD = Amount.usd("0.05")
LOW = Balance(scope="tenant:acme", scope_path="tenant:acme", remaining=SignedAmount("TOKENS", -3))

#: An event, and what both observers count of it: by the name of the counter and its labels.
COUNTED = [
    (
        events.Reserved("rsv_1", tokens(7), ACTION, None),
        {("reservations_granted",): 1, ("estimated_amount", ("unit", "TOKENS")): 7},
    ),
    (
        events.Denied(USD, ACTION, BudgetExceededError("no", code="BUDGET_EXCEEDED"), False),
        {("reservations_denied", ("code", "BUDGET_EXCEEDED"), ("shadow", "false")): 1},
    ),
    (
        events.Denied(USD, ACTION, BudgetDenied("no", code='NEW"\n\\'), True),
        {("reservations_denied", ("code", "other"), ("shadow", "true")): 1},
    ),
    (
        events.Degraded(USD, ACTION, TransportTimeout("late")),
        {("reservations_degraded", ("error", "TransportTimeout")): 1},
    ),
    (
        events.Settled("rsv_1", USD, Settlement(SettlementStatus.COMMITTED, Amount.usd("0.04"))),
        {
            ("settlements", ("status", "COMMITTED")): 1,
            ("actual_amount", ("unit", "USD_MICROCENTS")): 5_000_000,
            ("charged_amount", ("unit", "USD_MICROCENTS")): 4_000_000,
        },
    ),
    (
        events.Settled("rsv_1", None, Settlement(SettlementStatus.RECORDED)),
        {("settlements", ("status", "RECORDED")): 1},
    ),
    (events.Pending("rsv_1", TransportError("gone"), 0.5), {("settlements_pending", ("error", "TransportError")): 1}),
    (
        events.Rejected("rsv_1", {}, SettlementRejectedError("no", code="BUDGET_CLOSED")),
        {("settlements_rejected", ("code", "BUDGET_CLOSED")): 1},
    ),
    (events.Rejected("rsv_1", {}, CyclesError("no")), {("settlements_rejected", ("code", "none")): 1}),
    (events.SpentTooLate(None, tokens(9)), {("spent_too_late_amount", ("unit", "TOKENS")): 9}),
    (events.Released("rsv_1", "any text\n"), {("reservations_released",): 1}),
    (events.HeartbeatFailed("rsv_1", None, "words"), {("heartbeat_failures", ("error", "none")): 1}),
    (events.JournalFailed("words"), {("journal_failures",): 1}),
    (events.RunningLow(LOW, -0.1), {("budgets_running_low", ("unit", "TOKENS")): 1}),
    (
        events.RunningLow(Balance.from_json({**LOW.to_json(), "remaining": {"unit": "NEW", "amount": 1}}), 0.1),
        {("budgets_running_low", ("unit", "other")): 1},
    ),
]


class Prometheus:
    """A registry, and what an observer counts in it."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        self.observe = observers.prometheus(self.registry)

    def counts(self):
        """What is above zero, by the counters' names and the labels."""
        text = prometheus_client.generate_latest(self.registry).decode("utf-8")
        families = __import__("prometheus_client.parser").parser.text_string_to_metric_families(text)
        found = [one for family in families if family.type == "counter" for one in family.samples if one.value]
        head, tail = "cycles_lite_client_", "_total"
        assert all(one.name.startswith(head) and one.name.endswith(tail) for one in found)
        return {(one.name[len(head) : -len(tail)], *sorted(one.labels.items())): one.value for one in found}


class OpenTelemetry:
    """A meter, and what an observer counts with it."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.meter = sdk.MeterProvider([self.reader]).get_meter("tests")
        self.observe = observers.opentelemetry(self.meter)

    def counts(self):
        data = self.reader.get_metrics_data()
        found = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data is not None else ():
            assert metric.name.startswith("cycles_lite.client.")
            assert metric.data.is_monotonic
            for point in metric.data.data_points:
                found[(metric.name[len("cycles_lite.client.") :], *sorted(point.attributes.items()))] = point.value
        return found


@pytest.fixture(params=[Prometheus, OpenTelemetry], ids=lambda kind: kind.__name__)
def place(request):
    return request.param()


def test_every_event_is_counted_and_has_an_example_here():
    """A new event fails here until it is decided what is counted of it."""
    known = set(events.Event.__args__)
    assert known == set(observers._STEPS)
    assert known == {type(event) for event, _ in COUNTED}


def test_every_counter_is_of_some_event():
    assert {name for _, expected in COUNTED for name, *_ in expected} == set(observers.COUNTERS)


@pytest.mark.parametrize(("event", "expected"), COUNTED, ids=lambda value: type(value).__name__)
def test_what_is_counted_of_an_event(place, event, expected):
    place.observe(event)
    assert place.counts() == expected
    place.observe(event)
    assert place.counts() == {key: 2 * value for key, value in expected.items()}


def test_an_event_that_is_not_known_is_no_error(place):
    place.observe("an event of a later version")
    assert place.counts() == {}


def test_the_work_of_a_client(place, tmp_path):
    config = CyclesConfig(base_url=f"sqlite:///{tmp_path}/budgets.db", tenant="acme", journal_dir=str(tmp_path / "j"))
    with ledger_of(tmp_path, 100), CyclesClient(config, observer=place.observe) as client:
        with client.reserve(tokens(50), ACTION) as guard:
            guard.commit(tokens(85))
        with client.reserve(tokens(1), ACTION) as guard:
            guard.release("not needed")
        with pytest.raises(BudgetDenied):
            client.reserve(tokens(16), ACTION)
    tokens_of = ("unit", "TOKENS")
    assert place.counts() == {
        ("reservations_granted",): 2,
        ("estimated_amount", tokens_of): 51,
        ("settlements", ("status", "COMMITTED")): 1,
        ("actual_amount", tokens_of): 85,
        ("charged_amount", tokens_of): 85,
        ("budgets_running_low", tokens_of): 1,
        ("reservations_released",): 1,
        ("reservations_denied", ("code", "BUDGET_EXCEEDED"), ("shadow", "false")): 1,
    }


def test_two_clients_share_a_registry_or_a_meter(place):
    """Each may make an observer of its own; what they tell is counted once each, in the same series."""
    where = (
        (observers.prometheus, place.registry)
        if isinstance(place, Prometheus)
        else (observers.opentelemetry, place.meter)
    )
    other = where[0](where[1])
    place.observe(events.JournalFailed("words"))
    other(events.JournalFailed("words"))
    assert place.counts() == {("journal_failures",): 2}


def test_registries_count_for_themselves_and_are_let_go():
    first, second = Prometheus(), Prometheus()
    first.observe(events.JournalFailed("words"))
    assert second.counts() == {}
    gc.collect()  # what the tests before this one have left
    there = len(observers._made)
    del second
    gc.collect()
    assert len(observers._made) == there - 1


def test_both_at_once_as_the_docstring_says():
    one, other = Prometheus(), OpenTelemetry()
    ours = [one.observe, other.observe]

    def observer(event):
        return [observe(event) for observe in ours]

    for event, _ in COUNTED:
        observer(event)
    assert one.counts() == other.counts()
    assert len(one.counts()) > len(observers.COUNTERS)
