"""CR-CORE-002: expired commit falls back to an event."""

from __future__ import annotations

import pytest
from faults import intact, lost_answer
from stage import ACTION, Stage, key_of, kinds_and_keys

from cycles_lite import Amount, CyclesMetrics, SettlementStatus, Subject

pytestmark = pytest.mark.scenario("CR-CORE-002")


@pytest.fixture(scope="module", params=(intact, lost_answer), ids=lambda fault: f"event-{fault.__name__}")
def played(request, tmp_path_factory):
    """The work takes longer than the reservation and its grace; once the event's answer is lost too."""
    with Stage(tmp_path_factory.mktemp("core-002")) as stage:
        stage.faults["/events"] = [request.param]
        with stage.client(workflow="nightly") as client:
            subject = Subject(agent="bot", dimensions={"run": "7"})
            with client.reserve(Amount.tokens(100), ACTION, subject=subject, ttl_ms=1000) as guard:
                stage.ahead_ms = 3_600_000
                metrics = CyclesMetrics(tokens_input=5, tokens_output=6)
                stage.settlement = guard.commit(Amount.tokens(42), metrics=metrics, metadata={"run": 7})
                stage.reservation_id = guard.reservation_id
        yield stage


def test_event_carries_original_subject_action_actual(played):
    (create,), (commit,), event = played.sent("/v1/reservations"), played.sent("/commit"), played.sent("/events")[0]
    assert event.json["subject"] == create.json["subject"]
    assert event.json["subject"] == {
        "tenant": "acme",
        "workflow": "nightly",
        "agent": "bot",
        "dimensions": {"run": "7"},
    }
    assert event.json["action"] == create.json["action"]
    assert event.json["actual"] == commit.json["actual"] == {"unit": "TOKENS", "amount": 42}
    assert event.json["metrics"] == commit.json["metrics"]
    assert key_of(event) == key_of(commit)


def test_settlement_occurs_at_most_once(played):
    assert played.spent() == 42
    assert played.settlement.status is SettlementStatus.RECORDED
    assert played.settlement.charged == Amount.tokens(42)
    assert played.reservations()[played.reservation_id].status == "EXPIRED"


def test_the_event_says_what_it_stands_for(played):
    """A tenant's default policy may be to reject, so the policy is said aloud."""
    event = played.sent("/events")[0]
    assert event.json["overage_policy"] == "ALLOW_IF_AVAILABLE"
    assert event.json["metadata"] == {
        "run": 7,
        "recovered_reservation_id": played.reservation_id,
        "recovery_reason": "reservation_expired",
    }


def test_the_requests_are_those_expected(played):
    expected = ["commit", "event same key", "event same key"]
    assert kinds_and_keys(played.settlements()) == expected[: 1 + len(played.sent("/events"))]
    assert played.sent("/release") == []
    assert played.files() == []
