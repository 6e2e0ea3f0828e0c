"""Guards while their work runs: kept alive by few threads, which short work does not wake, and held weakly."""

from __future__ import annotations

import peers
import pytest
from desks import DOWN, requests_of
from hosts import ended_well, run, running

TEN_THOUSAND = """
from program import *
import itertools
from cycles_lite import events
import peers

COUNT = 10000
numbers = itertools.count()
threads, extended = set(), set()

def answer(call):
    if call.operation.name == "create_reservation":
        # One second is less than what is kept for two attempts: each is due for its first beat at once.
        data = peers.allowed(reservation_id="rsv_{}".format(next(numbers)), remaining_ttl_ms=1000)
    elif call.operation.name == "extend_reservation":
        extended.add(call.id)
        threads.add(threading.active_count())
        data = peers.extended(remaining_ttl_ms=61000)
    else:
        data = peers.released()
    return peers.replied(data)

def observe(event):
    if isinstance(event, events.HeartbeatFailed):
        failed.append(event)

failed = []
config = peers.config_of("http://127.0.0.1:9")
client = CyclesClient(config, transport=peers.FakeTransport(answer), observer=observe)
guards = [reserve(client) for _ in range(COUNT)]
wait_until(lambda: len(extended) + len(failed) == COUNT)
assert len(failed) < COUNT // 50, failed  # an attempt has a second: a machine that stalls for longer fails a few
assert all(guard.is_active for guard in guards)
assert max(threads) <= 8, threads
for guard in guards:
    guard.release("done")
client.close()
wait_until(lambda: threading.active_count() == 1)
"""


def test_ten_thousand_live_guards(tmp_path):
    """All of them are extended by at most seven threads beside the program's, which are gone after `close`.
    Over a fake transport, so that only this library's work is in it."""
    run(TEN_THOUSAND, tmp_path)


SHORT = """
from program import *
from cycles_lite.background.worker import worker
import peers

def answer(call):
    made = {"create_reservation": peers.allowed(remaining_ttl_ms=60000), "commit_reservation": peers.committed()}
    return peers.replied(made[call.operation.name])

client = peers.client_of("http://127.0.0.1:9", transport=peers.FakeTransport(answer))
spend(client)
woken, ring = [], worker._ring
worker._ring = lambda: (woken.append(True), ring())
before = threading.enumerate()
for _ in range(5):
    with reserve(client) as guard:
        threading.Event().wait(0.05)
        guard.commit(Amount.tokens(42))
assert woken == []
assert threading.enumerate() == before
assert len(before) == 2
"""


def test_short_work_wakes_nobody(tmp_path):
    """A guard of 50 ms neither starts a thread nor wakes the one that there is, which looks once a second."""
    run(SHORT, tmp_path)


DROPPED = """
from program import *
import gc, warnings

client = new_client()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    guard = reserve(client)
    guard.spend(3)
    id = guard.reservation_id
    del guard
    gc.collect()
    assert [(warning.category, id in str(warning.message)) for warning in caught] == [(ResourceWarning, True)], caught
wait_until(lambda: client.get_reservation(id).status.value == "COMMITTED")
"""


def test_a_dropped_guard_is_settled_in_the_background(place, ledger, tmp_path):
    """The worker, which has its heartbeat to run, does not keep it: it is collected, and settled without a further
    call of the program."""
    run(DROPPED, tmp_path, **place)
    assert ledger.amounts == (3, 0)


LONG = """
from program import *
import logging
from cycles_lite import events

client = new_client()
with reserve(client, ttl_ms=8000, grace_period_ms=0) as guard:
    wait_until(lambda: time.time() * 1000 > guard.expires_at_ms + 100)
    assert client.get_reservation(guard.reservation_id).status.value == "ACTIVE"
    assert guard.commit(Amount.tokens(7)).status.value == "COMMITTED"
"""


def test_work_longer_than_its_ttl(ledger, tmp_path):
    """Heartbeats keep a reservation of 8 s alive for longer, and it is committed, not recorded afterwards."""
    run(LONG, tmp_path, **ledger.over_http)
    assert ledger.amounts == (7, 0)


STOPPED = """
from program import *
from cycles_lite.background.worker import worker
import peers

def answer(call):
    if call.operation.name == "extend_reservation":
        extended.append(call.id)
        return peers.replied(peers.extended(remaining_ttl_ms=12010))
    # Less would be due at once, and leave an attempt a second, which a machine may stall for.
    made = {"create_reservation": peers.allowed(remaining_ttl_ms=12000), "commit_reservation": peers.committed()}
    return peers.replied(made[call.operation.name])

def post(job):
    if extended and not ended.is_set():  # the beat's answer is taken in, and the next beat not yet known to the guard
        assert known.wait(PATIENCE)
        guard.commit(Amount.tokens(42))
        ended.set()
    really_post(job)

extended, known, ended = [], threading.Event(), threading.Event()
really_post, worker.post = worker.post, post
client = peers.client_of("http://127.0.0.1:9", transport=peers.FakeTransport(answer))
guard = reserve(client, ttl_ms=12000)
known.set()
assert ended.wait(PATIENCE)
wait_until(lambda: len(worker._waiting) == len(worker._threads) and not worker._post)
assert not worker._is_needed()
assert extended == [guard.reservation_id]
"""


def test_a_guard_that_ends_while_a_beat_is_answered(tmp_path):
    """The worker's thread has not yet told the guard of its next beat when the program ends the guard: it is not
    sent."""
    run(STOPPED, tmp_path)


FAILING = """
from program import *
import logging
from cycles_lite import events

logging.getLogger("cycles_lite").addHandler(logging.NullHandler())
seen = []
client = CyclesClient.from_env(observer=seen.append)

def failures():
    return [event for event in seen if isinstance(event, events.HeartbeatFailed)]

with reserve(client, ttl_ms=1000) as guard:
    wait_until(failures)
    say("failed")
    assert hear() == "go"
    assert guard.is_active
    assert guard.commit(Amount.tokens(1)).status.value == "COMMITTED"
for failed in failures():
    assert failed.reservation_id == guard.reservation_id
    say("{}: {}".format(failed.error.code, failed.disposition))
"""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            peers.refusal("MAX_EXTENSIONS_EXCEEDED"),
            "MAX_EXTENSIONS_EXCEEDED: no further extension: the reservation can be extended no further\n",
        ),
        (peers.refusal("UNAUTHORIZED", 401), "UNAUTHORIZED: no further extension: the extension was refused\n"),
    ],
    ids=["permanent", "refused"],
)
def test_an_extension_that_is_refused_is_told_and_stops_nothing(desk, peer, scripted, tmp_path, answer, told):
    """The observer hears of the reservation, the error and what happens next; the work goes on and is committed."""
    desk.answers["extend"] = answer
    with running(FAILING, tmp_path, **scripted) as program:
        program.expect("failed")
        program.say()
        assert ended_well(program) == told
    assert len(requests_of(peer, "extend")) == 1


def test_an_extension_that_fails_is_told_and_sent_again(desk, peer, scripted, tmp_path):
    """With the same key, as the observer hears."""
    desk.answers["extend"] = DOWN
    with running(FAILING, tmp_path, **scripted) as program:
        program.expect("failed")
        del desk.answers["extend"]
        peer.wait_for(3)
        program.say()
        told = ended_well(program)
    assert told.startswith("INTERNAL_ERROR: tried again in 0.")
    assert told.endswith(" s with the same key\n")
    first, second = requests_of(peer, "extend")[:2]
    assert first.body == second.body
