"""CR-DURABLE-002: replayed expired commit switches durably to event mode."""

from __future__ import annotations

import pytest
from faults import intact, swallowed_answer, swallowed_request
from stage import Stage, key_of, kinds_and_keys

pytestmark = pytest.mark.scenario("CR-DURABLE-002")


@pytest.fixture(scope="module", params=(swallowed_request, swallowed_answer), ids=lambda fault: fault.__name__)
def played(request, tmp_path_factory):
    """Killed with its commit under way; restarted when the reservation has expired; killed with its event under way,
    before the server has it and after; restarted again."""
    with Stage(tmp_path_factory.mktemp("durable-002")) as stage:
        stage.faults["/commit"] = [swallowed_request]
        stage.faults["/events"] = [stage.looking_first(request.param), intact]
        first = stage.actor("commit 42")
        stage.reservation_id = first.hears("reserved")
        stage.wait_for("/commit", 1)
        first.kill()
        stage.before_switch = stage.records()
        stage.ahead_ms = 3_600_000
        second = stage.actor("flush")
        stage.wait_for_look()
        second.kill()
        stage.after_switch = stage.records()
        stage.of_the_second = len(stage.settlements())
        stage.pending = stage.actor("flush").hears("pending")
        yield stage


def test_event_mode_is_persisted_before_event_attempt(played):
    (before,), (at_event,) = played.before_switch.values(), played.at_request.values()
    assert before["mode"] == "commit"
    assert at_event["mode"] == "event"
    assert at_event["event_fallback_body"] == before["event_fallback_body"] == played.sent("/events")[0].json
    assert at_event["reservation_id"] == played.reservation_id
    assert played.after_switch == played.at_request


def test_a_process_that_finds_event_mode_sends_no_commit_any_more(played):
    assert kinds_and_keys(played.settlements()[played.of_the_second :]) == ["event"]


def test_successful_event_removes_record(played):
    assert played.pending == "0"
    assert played.files() == []


def test_settlement_occurs_at_most_once(played):
    assert played.spent() == 42
    assert played.reservations()[played.reservation_id].status == "EXPIRED"


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.settlements()) == [
        "commit",
        "commit same key",
        "event same key",
        "event same key",
    ]
    assert len({key_of(request) for request in played.settlements()}) == 1
