"""An exception from a signal handler at any instruction of a call: the next calls on the same client are answered, each
with its own answer, and the only connection's place is free.

INTERRUPT_ROUNDS=3000 makes the random part longer and, with any value, the other part stop at each line each time that
it is reached, not only the first time.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from contextlib import contextmanager

import pytest
from serving import serving

from cycles_lite import Action, Amount, CommitRequest, CyclesClient, CyclesConfig, ReservationCreateRequest

ROUNDS = os.environ.get("INTERRUPT_ROUNDS")

#: Python swallows what is raised within a finalizer, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupted(BaseException):
    pass


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
        request = ReservationCreateRequest(Action("llm.completion", "gpt-4o"), Amount.tokens(1))
        return self.client.create_reservation(request)

    def run(self, interrupting):
        """`interrupting()` is a context in which an exception may come from anywhere."""
        self.number += 1
        amount = Amount.tokens(self.number % 7)
        id = self._reserve().reservation_id
        request = CommitRequest(amount)
        try:
            with interrupting():
                self.client.commit_reservation(id, request)
        except Interrupted:
            self.interrupted += 1
        assert self.client.commit_reservation(id, request).charged == amount
        assert self.client.get_reservation(self.bystander).reservation_id == self.bystander
        assert self.client.get_reservation(id).committed == amount


class Tracer:
    """Raises where the line is reached that `wanted` chooses, or notes all that are."""

    def __init__(self, wanted=None):
        self.wanted = wanted
        self.seen = []

    @contextmanager
    def __call__(self):
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(None)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename == __file__:
            return None  # the test's own
        if event == "line":
            self.seen.append((frame.f_code.co_filename, frame.f_lineno))
            if self.wanted is not None and self.wanted(self.seen):
                sys.settrace(None)
                self.wanted = None
                raise Interrupted
        return self.trace


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or coverage traces already")
@pytest.mark.parametrize("fresh", [False, True], ids=["kept connection", "new connection"])
def test_an_exception_at_each_line(client, fresh):
    rounds = Rounds(client)

    @contextmanager
    def tracing(tracer):
        if fresh:
            client._sender.transport.close()
        with tracer():
            yield

    rounds.run(lambda: tracing(Tracer()))
    whole = Tracer()
    rounds.run(lambda: tracing(whole))
    if ROUNDS:
        stops = [lambda seen, count=count: len(seen) == count for count in range(1, len(whole.seen) + 1)]
    else:
        stops = [lambda seen, line=line: seen[-1] == line for line in dict.fromkeys(whole.seen)]
    for stop in stops:
        rounds.run(lambda stop=stop: tracing(Tracer(stop)))
    assert len(stops) > 300
    assert rounds.interrupted > 0.95 * len(stops)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_exception_at_any_instant(client):
    """At instructions, and not only between lines. A socket that has yet to be told its owner may be left to the
    collector, which closes it."""

    def interrupt(*_):
        raise Interrupted

    @contextmanager
    def soon():
        if chance.random() < 0.3:
            client._sender.transport.close()
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.003))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    chance = random.Random(8)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        rounds = Rounds(client)
        for _ in range(int(ROUNDS or 300)):
            while True:
                try:
                    rounds.run(soon)
                    break
                except Interrupted:  # it came between the commit and the end of `soon`
                    continue
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rounds.interrupted
