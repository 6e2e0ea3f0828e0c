"""CR-DURABLE-006: concurrent replay remains exactly once."""

from __future__ import annotations

import threading

import pytest
from faults import failed, intact
from serving import PATIENCE
from stage import Stage, key_of, kinds_and_keys

pytestmark = pytest.mark.scenario("CR-DURABLE-006")


def together(fault, count=2):
    """Faults for so many requests, which are held until all of them have come."""
    gate = threading.Barrier(count)

    def held(passage, line):
        gate.wait(PATIENCE)
        fault(passage, line)

    return [held] * count


@pytest.fixture(scope="module", params=("commit", "event"))
def played(request, tmp_path_factory):
    """The process that could not settle, and another that takes its record up, send at the same moment; once with the
    reservation alive, once with it expired, when each sends the commit and then the event."""
    with Stage(tmp_path_factory.mktemp("durable-006")) as stage:
        stage.faults["/commit"] = [failed, failed, *together(intact)]
        slow = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0}
        one = stage.actor("commit 42", "wait", "flush", **slow)
        stage.statuses = [one.hears("commit")]
        stage.kept = stage.records()
        stage.seen = len(stage.settlements())
        if request.param == "event":
            stage.ahead_ms = 3_600_000
            stage.faults["/events"] = together(intact)
        one.hears("waiting")
        other = stage.actor("flush", **slow)
        one.go_on()
        stage.pending = [one.hears("pending"), other.hears("pending")]
        stage.out = [one.end(), other.end()]
        stage.mode = request.param
        yield stage


def test_settlement_occurs_at_most_once(played):
    assert played.statuses == ["PENDING"]
    assert played.spent() == 42
    (row,) = played.reservations().values()
    assert row.status == ("COMMITTED" if played.mode == "commit" else "EXPIRED")


def test_terminal_record_is_removed(played):
    assert len(played.kept) == 1
    assert set(played.pending) <= {"0", "1"}  # what the other one is just settling is on disk until it is settled
    assert played.files() == []


def test_the_requests_are_those_expected(played):
    """Two commits that were under way at the same time, with one key; where they came too late, two events too."""
    kinds = kinds_and_keys(played.settlements())[played.seen :]
    assert sorted(kinds) == sorted([f"{kind} same key" for kind in ("commit", played.mode)] * 2)[-len(kinds) :]
    assert len(kinds) == (2 if played.mode == "commit" else 4)
    assert len({key_of(request) for request in played.settlements()}) == 1
