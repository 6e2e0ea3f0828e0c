"""An exception from a signal handler at any instruction of a call: the next calls on the same client are answered, each
with its own answer, and the only connection's place is free.

INTERRUPT_ROUNDS=3000 makes the random part longer and, with any value, the other part stop at each line each time that
it is reached, not only the first time.
"""

from __future__ import annotations

import gc
import random

import pytest
from interrupts import IS_LONG, AfterTime, AtLine, Interrupt, needs_timers, needs_tracing, rounds
from serving import serving

from cycles_lite import Action, Amount, CommitRequest, CyclesClient, CyclesConfig, ReservationCreateRequest

#: Python swallows what is raised within a finalizer, and says so.
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def client(tmp_path):
    with serving(tmp_path) as served:
        config = CyclesConfig(base_url=served.url, api_key=served.key, tenant="acme", max_connections=1)
        with CyclesClient(config.replace(read_timeout=20.0)) as client:
            yield client
    gc.collect()


class Rounds:
    """Pairs of a reservation and the commit that is to be interrupted, of an amount that no other has."""

    def __init__(self, client):
        self.client, self.number = client, 0
        self.bystander = self._reserve().reservation_id
        #: How many commits did not get through at first.
        self.interrupted = 0

    def _reserve(self):
        request = ReservationCreateRequest(Action("llm.completion", "gpt-4o"), Amount.tokens(1), ttl_ms=3_600_000)
        return self.client.create_reservation(request)

    def run(self, interruption):
        """Within the interruption's block an exception may come from anywhere."""
        self.number += 1
        amount = Amount.tokens(self.number % 7)
        id = self._reserve().reservation_id
        request = CommitRequest(amount)
        try:
            with interruption:
                self.client.commit_reservation(id, request)
        except Interrupt:
            self.interrupted += 1
        assert self.client.commit_reservation(id, request).charged == amount
        assert self.client.get_reservation(self.bystander).reservation_id == self.bystander
        assert self.client.get_reservation(id).committed == amount


def is_of_test(frame):
    return frame.f_code.co_filename == __file__


@needs_tracing
@pytest.mark.parametrize("fresh", [False, True], ids=["kept connection", "new connection"])
def test_an_exception_at_each_line(client, fresh):
    """Of the standard library and of urllib3 as well, and in finalizers too."""
    pairs = Rounds(client)

    def run(**stop):
        if fresh:
            client._session.transport.close()
        tracing = AtLine(files="", skips=is_of_test, **stop)
        pairs.run(tracing)
        return tracing

    run()
    whole = run()
    if IS_LONG:
        stops = [{"nth": nth} for nth in range(1, whole.count + 1)]
    else:
        stops = [{"place": place} for place in whole.places]
    for stop in stops:
        run(**stop)
    assert len(stops) > 300
    assert pairs.interrupted > 0.95 * len(stops)


@needs_timers
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_exception_at_any_instant(client):
    """At instructions, and not only between lines. A socket that has yet to be told its owner may be left to the
    collector, which closes it."""
    chance = random.Random(8)
    pairs = Rounds(client)
    for _ in range(rounds(300)):
        if chance.random() < 0.3:
            client._session.transport.close()
        pairs.run(AfterTime(chance.uniform(0.00002, 0.003)))
    assert pairs.interrupted
