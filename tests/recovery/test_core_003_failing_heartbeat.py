"""CR-CORE-003: heartbeat transport failure is observable and non-fatal."""

from __future__ import annotations

import logging

import pytest
from faults import reset_request
from stage import ACTION, Stage, key_of, kinds_and_keys

from cycles_lite import Amount, SettlementStatus, TransportError, events, with_cycles

pytestmark = pytest.mark.scenario("CR-CORE-003")

#: A TTL whose first beat comes after four seconds, with two for its retry (see `cycles_lite.background.lease`).
TTL_MS = 10_000


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The first extension fails while the work goes on."""
    kept = Kept()
    logging.getLogger("cycles_lite").addHandler(kept)
    try:
        with Stage(tmp_path_factory.mktemp("core-003")) as stage:
            stage.faults["/extend"] = [reset_request]
            stage.log, stage.told = kept.records, []
            with stage.client(observer=stage.told.append, heartbeat=True) as client:

                def work(guard):
                    stage.reservation_id = guard.reservation_id
                    stage.wait_for("/extend", 2)
                    return "the work's value", Amount.tokens(42)

                stage.value = with_cycles(
                    client, work, estimate=Amount.tokens(100), action=ACTION, ttl_ms=TTL_MS, grace_period_ms=60_000
                )
            yield stage
    finally:
        logging.getLogger("cycles_lite").removeHandler(kept)


def test_heartbeat_failure_reports_reservation_and_disposition(played):
    (told,) = (event for event in played.told if isinstance(event, events.HeartbeatFailed))
    assert told.reservation_id == played.reservation_id
    assert isinstance(told.error, TransportError)
    assert "tried again" in told.disposition
    assert "same key" in told.disposition
    (record,) = (record for record in played.log if "heartbeat" in record.getMessage())
    assert record.levelno == logging.WARNING
    assert played.reservation_id in record.getMessage()
    assert told.disposition in record.getMessage()


def test_guarded_action_continues_under_warn_policy(played):
    assert played.value == "the work's value"


def test_final_settlement_is_attempted(played):
    (settled,) = (event for event in played.told if isinstance(event, events.Settled))
    assert settled.settlement.status is SettlementStatus.COMMITTED
    assert played.spent() == 42


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.proxy.requests)[:4] == ["create", "extend", "extend same key", "commit"]
    first, second = played.sent("/extend")[:2]
    assert key_of(first) == key_of(second)
    assert first.body == second.body
