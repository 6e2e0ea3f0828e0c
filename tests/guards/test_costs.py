"""What interrupts the settling of work that is done: the work is settled first, and nothing stays reserved."""

from __future__ import annotations

import contextvars
import gc

import pytest
from interrupts import IS_LONG, AtLine, Interrupt
from ledgers import Ended, ending, ledger_of, spent, tokens

from cycles_lite import Action, CyclesClient, CyclesConfig, current_guard, cycles, events, lifecycle, with_cycles
from cycles_lite.guards import costs, generators

PATIENCE = 60
ACTION = Action("llm.completion", "gpt-4o")

#: The modules whose lines are interrupted.
INTERRUPTED = tuple(module.__file__ for module in (costs, generators, lifecycle))


class TimeLimit(Exception):
    """As a soft time limit, which an `except Exception` catches."""


@pytest.fixture
def ledger(tmp_path):
    with ledger_of(tmp_path, 10**9) as ledger:
        yield ledger


@pytest.fixture
def client(ledger):
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme", heartbeat=False)) as client:
        yield client


def told(client, metered, done):
    def work(guard):
        guard.spend(metered)
        done.append(7)
        return "value", 7

    return with_cycles(client, work, estimate=tokens(50), action=ACTION)


def decorated(client, metered, done, **parameters):
    @cycles(50, unit="TOKENS", client=client, **parameters)
    def work():
        current_guard().spend(metered)
        done.append(1)
        return 7

    return work()


def decorated_with_actual(client, metered, done):
    return decorated(client, metered, done, actual=lambda result: result)


def generator(client, metered, done, takes=3):
    @cycles(50, unit="TOKENS", client=client)
    def work():
        current_guard().spend(metered)
        done.append(1)
        yield 1
        yield 2

    steps = work()
    for _ in range(takes):
        next(steps, None)
    return steps


def closed_generator(client, metered, done):
    generator(client, metered, done, takes=1).close()


#: Where an interruption passes for one of the work: between its last line and the first of the settling.
ON_THE_WAY = {"with_cycles", "is_cost", "settle", "_finished", "settle_call"}

SCENARIOS = [told, decorated, decorated_with_actual, generator, closed_generator]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
@pytest.mark.filterwarnings("ignore:.*was never finished:ResourceWarning")
@pytest.mark.parametrize(("metered", "error"), [(0, Interrupt), (3, TimeLimit)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interruption_at_each_line_leaves_nothing_reserved_and_loses_no_meter(
    client, ledger, scenario, metered, error
):
    """One run for each line, in the short form for each third. Work that has run may count as failed where the line is
    in the very call of it."""
    number = 1
    while True:
        done = []
        before = spent(ledger)[0]
        with AtLine(number, files=INTERRUPTED, error=error) as at:
            try:
                contextvars.copy_context().run(scenario, client, metered, done)
            except (Interrupt, TimeLimit):
                pass
        if at.where is None:
            break
        if spent(ledger)[1]:  # a guard that nobody holds is settled in the background
            gc.collect()
            assert client.flush(PATIENCE) == 0, at.where
        charged, reserved = spent(ledger)[0] - before, spent(ledger)[1]
        assert reserved == 0, at.where
        assert charged or not done or at.where[2] in ON_THE_WAY, at.where
        if done and metered:
            assert charged in (3, 7), at.where
        assert charged in ({0, 3, 7} if metered else {0, 7, 50}), at.where
        number += 1 if IS_LONG else 3
    assert number > 15


# ---- What user code raises ----


@pytest.mark.parametrize(("metered", "charged"), [(0, 50), (3, 3)])
@pytest.mark.parametrize("scenario", [decorated, generator])
def test_an_actual_that_ends_the_program_does_so_once_the_work_is_settled(client, ledger, scenario, metered, charged):
    if scenario is decorated:
        with pytest.raises(Ended):
            decorated(client, metered, [], actual=ending)
    else:
        steps = cycles(50, unit="TOKENS", client=client, actual=ending)(
            lambda: (yield current_guard().spend(metered))
        )()
        next(steps)
        with pytest.raises(Ended):
            next(steps)
    assert spent(ledger) == (charged, 0)
    (row,) = client.list_reservations(include=("committed_metadata",)).reservations
    assert row.committed_metadata == (None if metered else {"actual_source": "estimate"})


def test_an_estimate_that_ends_the_program_reserves_nothing(client, ledger):
    def work():
        yield 1

    with pytest.raises(Ended):
        cycles(ending, client=client)(lambda: pytest.fail("it ran"))()
    steps = cycles(ending, client=client)(work)()
    with pytest.raises(Ended):
        next(steps)
    assert client.list_reservations().reservations == ()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("metered", [0, 3])
def test_an_observer_that_ends_the_program_does_so_once_the_work_is_settled(ledger, scenario, metered):
    def observe(event):
        if isinstance(event, events.Settled):
            raise Ended

    config = CyclesConfig(base_url=ledger.url, tenant="acme", heartbeat=False)
    with CyclesClient(config, observer=observe) as client:
        with pytest.raises(Ended):
            scenario(client, metered, [])
    assert spent(ledger) in ((7, 0), (metered or 50, 0))


@pytest.mark.parametrize(("metered", "charged"), [(0, 0), (3, 3)])
def test_work_that_ends_the_program_is_released_or_its_meter_committed(client, ledger, metered, charged):
    def work(*_):
        current_guard().spend(metered)
        raise Ended

    with pytest.raises(Ended):
        cycles(50, unit="TOKENS", client=client)(work)()
    with pytest.raises(Ended):
        with_cycles(client, work, estimate=tokens(50), action=ACTION)
    assert spent(ledger) == (2 * charged, 0)
