"""An exception at any instruction, as Ctrl-C, a soft time limit or a SIGTERM handler raises it, loses no money.

After each of them the next calls work, every amount whose `commit` was entered is in the ledger once, its reservation
was not released, and what flushes says that nothing is left.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import warnings

import pytest
from interrupts import IS_LONG, AfterTime, AtLine, Interrupt, needs_timers, rounds
from serving import serving

from cycles_lite import (
    Action,
    Amount,
    CyclesClient,
    CyclesConfig,
    Subject,
    with_cycles,
)

ACTION = Action("llm.completion", "gpt-4o")
ESTIMATE, ACTUAL = Amount.tokens(10), Amount.tokens(7)
PATIENCE = 60.0
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = [pytest.mark.thorough, needs_timers]


class Desk:
    """A client, and what the ledger says of it."""

    def __init__(self, client, authority):
        self.client, self.authority = client, authority
        #: By agent: what was committed for it.
        self.entered = {}
        self.number = 0

    def reserve(self):
        """A guard whose reservation is an agent's own, so that the ledger tells what became of it."""
        self.number += 1
        guard = self.client.reserve(ESTIMATE, ACTION, subject=Subject(agent=f"a{self.number}"))
        return guard

    def status(self, reservation_id):
        return self.client.get_reservation(reservation_id)

    def check(self, where):
        """The next calls work, and nothing is left."""
        gc.collect()
        assert self.client.flush(PATIENCE) == 0, where
        if where and where[0].startswith(HERE):  # before the call that was to be interrupted, or after it
            self.entered.clear()
        for id, amount in self.entered.items():
            found = self.status(id)
            assert (found.status.value, found.committed and found.committed.amount) == ("COMMITTED", amount), where
        self.entered.clear()
        with self.client.reserve(ESTIMATE, ACTION) as guard:
            assert guard.commit(Amount.tokens(1)).status.value == "COMMITTED", where


@pytest.fixture(params=["http", "file"])
def desk(request, tmp_path):
    with serving(tmp_path) as served:
        url = served.url if request.param == "http" else served.authority.url
        config = CyclesConfig(
            base_url=url, api_key=served.key, tenant="acme", journal_dir=str(tmp_path / "journal"), max_connections=2
        )
        with CyclesClient(config) as client:
            yield Desk(client, served.authority)


# ---- What is interrupted: each is a context manager's worth of work, and says what it has entered ----


def reserve(desk, interruption):
    with interruption:
        guard = desk.reserve()
        del guard


def commit(desk, interruption):
    with desk.reserve() as guard:
        desk.entered[guard.reservation_id] = 7
        with interruption:
            guard.commit(ACTUAL, metadata={"n": 1})


def commit_and_catch(desk, interruption):
    """As a program does that tidies up and goes on."""
    with desk.reserve() as guard:
        entered = [False]
        with interruption:
            try:
                entered[0] = True
                guard.commit(ACTUAL)
            except Interrupt:
                if guard.is_active:
                    desk.entered[guard.reservation_id] = 7
                    guard.commit(ACTUAL)
        if entered[0]:
            desk.entered[guard.reservation_id] = 7


def release(desk, interruption):
    with desk.reserve() as guard:
        with interruption:
            guard.release("no need")


def spend(desk, interruption):
    with desk.reserve() as guard:
        guard.spend(2)
        with interruption:
            guard.spend(3)
        desk.entered[guard.reservation_id] = 5


def leave_metered(desk, interruption):
    guard = desk.reserve()
    guard.spend(4)
    desk.entered[guard.reservation_id] = 4
    with interruption:
        with guard:
            pass


def leave_unmetered(desk, interruption):
    with interruption:
        with desk.reserve():
            raise RuntimeError("the work failed")


def one_call(desk, interruption):
    def work(guard):
        return None, ACTUAL

    desk.number += 1
    with interruption:
        with_cycles(desk.client, work, estimate=ESTIMATE, action=ACTION, subject=Subject(agent=f"a{desk.number}"))


def flush(desk, interruption):
    guard = desk.reserve()
    guard.spend(6)
    desk.entered[guard.reservation_id] = 6
    del guard
    gc.collect()
    with interruption:
        desk.client.flush(PATIENCE)


WORK = [reserve, commit, commit_and_catch, release, spend, leave_metered, leave_unmetered, one_call, flush]


def interrupted(desk, work, interruption):
    """Whether the interruption came. What was interrupted is forgotten, as a handler that goes on does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of guards that an interruption has nobody finish
        try:
            work(desk, interruption)
        except (Interrupt, RuntimeError):
            pass
        gc.collect()
    desk.check(interruption.where)
    return interruption.where is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_at_each_line(desk, work):
    """One run for each line that is executed; in the short form for a few of them."""
    never = AtLine()
    interrupted(desk, work, never)
    assert never.count > 3
    lines = range(1, never.count + 1)
    for nth in lines if IS_LONG else random.Random(work.__name__).sample(lines, min(5, len(lines))):
        interrupted(desk, work, AtLine(nth))
    assert desk.authority.check() == []
    assert threading.active_count() < 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_at_random_instants(desk, work):
    """Between any two instructions, and within what is no line of the package's own."""
    choice = random.Random(work.__name__)
    for _ in range(2):  # the first run takes longer than those that follow
        uninterrupted = AfterTime(PATIENCE)
        assert not interrupted(desk, work, uninterrupted)
    came = 0
    for _ in range(rounds(5)):
        came += interrupted(desk, work, AfterTime(choice.uniform(1e-6, 1.5 * uninterrupted.took + 1e-4)))
    assert came or not IS_LONG  # what takes microseconds is seldom met
    assert desk.authority.check() == []
