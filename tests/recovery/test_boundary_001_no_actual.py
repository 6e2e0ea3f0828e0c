"""CR-BOUNDARY-001: missing actual is surfaced without settlement."""

from __future__ import annotations

import logging

import pytest
from stage import ACTION, Stage, kind_of

from cycles_lite import Amount, cycles, with_cycles

pytestmark = pytest.mark.scenario("CR-BOUNDARY-001")

ESTIMATE = Amount.tokens(100)


class Broken(Exception):
    """The guarded action failed."""


def returns(value):
    return lambda client: with_cycles(client, lambda guard: value, estimate=ESTIMATE, action=ACTION)


def fails_in_with_cycles(client):
    def work(guard):
        raise Broken

    with pytest.raises(Broken):
        with_cycles(client, work, estimate=ESTIMATE, action=ACTION)


def leaves_the_block(client):
    with client.reserve(ESTIMATE, ACTION):
        pass


def fails_in_the_block(client):
    with pytest.raises(Broken):
        with client.reserve(ESTIMATE, ACTION):
            raise Broken


def is_decorated(client):
    @cycles(ESTIMATE, client=client, use_estimate_if_actual_not_provided=False)
    def work():
        return "value"

    assert work() == "value"


def fails_decorated(client):
    @cycles(ESTIMATE, client=client)
    def work():
        raise Broken

    with pytest.raises(Broken):
        work()


#: What happens, and whether it is the library that has to say that the actual is missing.
MISSING = {
    "nothing returned": (returns(None), True),
    "a bare value": (returns("value"), True),
    "an amount that is none": (returns(("value", "42")), True),
    "an amount alone": (returns(Amount.tokens(42)), True),
    "three values": (returns(("value", Amount.tokens(42), "more")), True),
    "another unit": (returns(("value", Amount.credits(42))), True),
    "the block is left": (leaves_the_block, True),
    "a decorated function without estimate": (is_decorated, True),
    "the work fails": (fails_in_with_cycles, False),
    "the block fails": (fails_in_the_block, False),
    "a decorated function fails": (fails_decorated, False),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with Stage(tmp_path_factory.mktemp("boundary-001")) as stage:
        yield stage


@pytest.fixture(params=MISSING)
def played(request, stage, caplog):
    """A guarded action that does not tell what it cost."""
    happens, stage.is_said = MISSING[request.param]
    seen = len(stage.proxy.requests)
    with caplog.at_level(logging.DEBUG, "cycles_lite"), stage.client() as client:
        happens(client)
    stage.log = [record for record in caplog.records if record.name == "cycles_lite"]
    stage.new = stage.proxy.requests[seen:]
    return stage


def test_no_commit_or_event_without_known_actual(played):
    """The reservation is given back, and nothing is charged."""
    assert [kind_of(request) for request in played.new] == ["create", "release"]
    assert played.spent() == 0
    assert played.files() == []
    assert {row.status for row in played.reservations().values()} == {"RELEASED"}


def test_missing_actual_or_guarded_action_failure_is_surfaced(played):
    """A failure reaches the caller (`pytest.raises` above); that no cost was told is in the log, with the id."""
    if not played.is_said:
        assert played.new[-1].json["reason"] == "Broken"
        return
    assert any(record.levelno >= logging.WARNING for record in played.log)
    id = played.new[-1].target.split("/")[-2]
    assert any(id in record.getMessage() for record in played.log)
