"""The Lambda decorator without Lambda: what it refuses, and what it settles. See `compat/test_aws_lambda.py` too."""

from __future__ import annotations

import functools
import gc
import inspect

import pytest
from ledgers import Ended, ending, spent, tokens

from cycles_lite import Action, CyclesClient, CyclesConfig, ValidationError, current_guard
from cycles_lite.aws_lambda import guarded


@pytest.fixture
def client(ledger):
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme")) as client:
        yield client
        client.flush()  # it has settled nothing itself, and only a client that has lets the worker's threads end


@pytest.fixture
def decorate(client):
    return functools.partial(guarded, client, estimate=tokens(50), action=Action("llm.completion", "x"))


@pytest.mark.parametrize("given", [{"estimate": 5}, {"action": "llm:x"}, {"subject": "acme"}])
def test_constants_that_nothing_can_be_reserved_with_are_refused_at_once(decorate, given):
    (name,) = given
    with pytest.raises(ValidationError, match=f"^{name}: .* or a callable of event and context"):
        decorate(**given)


async def coroutine(event, context):
    pytest.fail("it ran")


async def asynchronous_generator(event, context):
    pytest.fail("it ran")
    yield


def generator(event, context):
    pytest.fail("it ran")
    yield


class Callable_:
    def __call__(self, event, context):
        yield


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (coroutine, "asynchronous.*runcycles"),
        (asynchronous_generator, "asynchronous.*runcycles"),
        (functools.partial(coroutine), "asynchronous"),
        (generator, "generator is a generator, which Lambda's Python runtime does not run"),
        (functools.partial(generator), "is a generator"),
        (Callable_(), "is a generator"),
        ("handler", "not callable"),
    ],
)
def test_handlers_that_lambda_never_runs_are_refused_when_decorated(decorate, handler, why):
    with pytest.raises(TypeError, match="@guarded: .*" + why):
        decorate()(handler)


@pytest.mark.parametrize("metered", [0, 3])
@pytest.mark.parametrize("hidden", [coroutine, asynchronous_generator, generator])
def test_what_another_decorator_hid_costs_nothing_but_its_meter(decorate, ledger, hidden, metered):
    """It is closed, so that Python does not warn of a coroutine that was never awaited."""

    @decorate()
    def handler(event, context):
        current_guard().spend(metered)
        return hidden(event, context)

    with pytest.raises(TypeError, match=r"@guarded: .*handler is"):
        handler({}, None)
    gc.collect()
    assert spent(ledger) == (metered, 0)


@pytest.mark.parametrize(("metered", "charged"), [(0, 50), (3, 3)])
def test_an_actual_that_ends_the_program_does_so_once_the_work_is_settled(decorate, ledger, metered, charged):
    handler = decorate(actual=ending)(lambda event, context: current_guard().spend(metered))
    with pytest.raises(Ended):
        handler({}, None)
    assert spent(ledger) == (charged, 0)


@pytest.mark.parametrize("metered", [0, 3])
def test_a_handler_that_ends_the_program_is_released_or_its_meter_committed(decorate, ledger, metered):
    @decorate()
    def handler(event, context):
        current_guard().spend(metered)
        raise Ended

    with pytest.raises(Ended):
        handler({}, None)
    assert spent(ledger) == (metered, 0)


def test_an_estimate_that_ends_the_program_reserves_nothing(decorate, client):
    with pytest.raises(Ended):
        decorate(estimate=ending)(lambda event, context: pytest.fail("it ran"))({}, None)
    assert client.list_reservations().reservations == ()


def test_names_and_signatures_survive(decorate):
    @decorate()
    def handler(event: dict, context: object) -> str:
        """Answer."""

    assert (handler.__name__, handler.__doc__) == ("handler", "Answer.")
    assert str(inspect.signature(handler)) == str(inspect.signature(handler.__wrapped__))
