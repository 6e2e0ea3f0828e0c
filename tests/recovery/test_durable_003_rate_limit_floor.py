"""CR-DURABLE-003: rate-limit floor survives restart."""

from __future__ import annotations

import json

import pytest
from faults import intact
from peers import refusal
from stage import Stage, kinds_and_keys

from cycles_lite.runtime.clock import now_ms

pytestmark = pytest.mark.scenario("CR-DURABLE-003")

#: Seconds that the server asks to wait: more than any test takes.
RETRY_AFTER = 3600


def throttled(passage, line):
    line.send(refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", str(RETRY_AFTER))]))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The commit is told to wait; the process is killed, and started again long before the time has come. Then the
    record is made one whose time is near, and another process is started."""
    with Stage(tmp_path_factory.mktemp("durable-003")) as stage:
        stage.faults["/commit"] = [throttled, intact]
        killed = stage.actor("commit 42", "wait")
        stage.status = killed.hears("commit")
        killed.kill()
        stage.throttled_at_ms = stage.came_at_ms[-1]
        (stage.record,) = stage.records().values()
        restarted = stage.actor("start", "flush 0.2", "flush 0.2", "wait")
        stage.pending = [restarted.hears("pending"), restarted.hears("pending")]
        stage.records_meanwhile = list(stage.records().values())
        restarted.kill()
        stage.sent_meanwhile = len(stage.sent("/commit"))
        stage.floor = now_ms() + 2000
        (path,) = stage.files()
        path.write_bytes(json.dumps({**stage.record, "not_before_ms": stage.floor}).encode())
        last = stage.actor("start", "flush 0.2", "wait", "flush")
        stage.wait_for("/commit", 2)
        last.go_on()
        last.hears("waiting")
        stage.pending.append(last.hears("pending"))
        last.end()
        yield stage


def test_no_retry_before_persisted_not_before(played):
    """Neither a restart nor a flush is a reason to come earlier."""
    assert played.status == "PENDING"
    floor = played.record["not_before_ms"]
    assert 0 <= floor - played.throttled_at_ms - RETRY_AFTER * 1000 < 60_000
    assert played.pending[:2] == ["1", "1"]
    assert played.records_meanwhile == [played.record]
    assert played.sent_meanwhile == 1
    _, second = (at for at, request in zip(played.came_at_ms, played.proxy.requests) if request in played.settlements())
    assert second >= played.floor


def test_successful_replay_removes_record(played):
    assert played.pending[2] == "0"
    assert played.files() == []
    assert played.spent() == 42


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.settlements()) == ["commit", "commit same key"]
