"""Guarded generators: what a plain generator does, and one settlement however they end."""

from __future__ import annotations

import functools
import gc
import inspect
import threading

import pytest
from hypothesis import given, strategies as st
from ledgers import Broken, last, ledger_of, spent

from cycles_lite import (
    Amount,
    BudgetExceededError,
    CyclesClient,
    CyclesConfig,
    current_guard,
    cycles,
    events,
)

PATIENCE = 60


def decorate(client, estimate=100, **parameters):
    return cycles(estimate=estimate, unit="TOKENS", client=client, **parameters)


# ---- From the first step to the last ----


@pytest.fixture
def count(client):
    @decorate(client, 50)
    def count(n, log=None):
        assert current_guard() is not None
        try:
            for number in range(n):
                received = yield number
                if received is not None:
                    log.append(received)
                assert current_guard() is not None
        finally:
            if log is not None:
                log.append("done")
        return "result"

    return count


def test_a_generator_reserves_at_its_first_step_and_settles_at_its_last(count, ledger):
    steps = count(3)
    assert spent(ledger) == (0, 0)
    assert next(steps) == 0
    assert spent(ledger) == (0, 50)
    assert current_guard() is None
    assert list(steps) == [1, 2]
    assert spent(ledger) == (50, 0)
    assert list(steps) == []


def test_values_can_be_sent_in_and_the_result_comes_out(count, ledger):
    log = []

    def outer():
        result = yield from count(3, log)
        log.append(result)

    steps = outer()
    next(steps)
    steps.send("hello")
    assert list(steps) == [2]
    assert log == ["hello", "done", "result"]


def test_a_generator_closed_early_commits_the_estimate_and_says_so(count, client, ledger):
    log = []
    steps = count(3, log)
    next(steps)
    steps.close()
    assert log == ["done"]
    assert spent(ledger) == (50, 0)
    assert last(client).committed_metadata == {"actual_source": "estimate"}
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
    assert spent(ledger) == (50, 0)


def test_a_generator_closed_early_commits_its_meter(client, ledger):
    @decorate(client, 50)
    def work():
        while True:
            current_guard().spend(3)
            yield

    steps = work()
    next(steps)
    next(steps)
    steps.close()
    assert spent(ledger) == (6, 0)


@pytest.mark.parametrize("metered", [0, 4])
def test_a_generator_that_fails_releases_or_commits_its_meter(client, ledger, metered):
    @decorate(client, 50)
    def work():
        current_guard().spend(metered)
        yield
        raise Broken

    steps = work()
    next(steps)
    with pytest.raises(Broken):
        next(steps)
    assert spent(ledger) == (metered, 0)


def test_an_exception_thrown_in_can_be_handled_inside(client, ledger):
    @decorate(client, 50)
    def work():
        try:
            yield 1
        except Broken:
            yield current_guard()

    steps = work()
    next(steps)
    assert steps.throw(Broken) is not None
    assert list(steps) == []
    assert spent(ledger) == (50, 0)


@pytest.mark.parametrize("end", ["close", "throw"])
def test_a_generator_that_never_began_reserves_nothing(count, ledger, end):
    steps = count(3)
    if end == "close":
        steps.close()
    else:
        with pytest.raises(Broken):
            steps.throw(Broken())
    with pytest.raises(StopIteration):
        next(steps)
    assert spent(ledger) == (0, 0)


def test_two_generators_in_turn_keep_their_own_guards(client, ledger):
    @decorate(client, 50)
    def work(n):
        for _ in range(3):
            current_guard().spend(n)
            yield current_guard()

    one, two = work(1), work(10)
    guards = [(next(one), next(two)) for _ in range(3)]
    assert len({guard for pair in guards for guard in pair}) == 2
    assert (list(one), list(two)) == ([], [])
    assert spent(ledger) == (33, 0)


# ---- As a plain generator does ----


def run(moves, log, itself):
    """The body of a generator: one move after the other."""
    for number, (move, kind) in enumerate(moves):
        if move == "yield":
            log.append((yield number))
        elif move == "catch":
            try:
                log.append((yield number))
            except kind as e:
                log.append(type(e))
        elif move == "finally":
            try:
                yield number
            finally:
                log.append("finally")
        elif move == "reenter":
            try:
                next(itself[0])
            except ValueError as e:
                log.append(str(e))
        elif move == "raise":
            raise kind("raised")
        else:
            return number
    return "result"


KINDS = st.sampled_from([Broken, ValueError, KeyError, GeneratorExit, StopIteration, KeyboardInterrupt, BaseException])
MOVES = st.lists(
    st.tuples(st.sampled_from("yield catch catch finally reenter raise return".split()), KINDS), max_size=6
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("next"), st.none()),
        st.tuples(st.just("next"), st.none()),
        st.tuples(st.just("send"), st.sampled_from([None, 1])),
        st.tuples(st.just("throw"), st.one_of(KINDS, KINDS.map(lambda kind: kind("thrown")), st.just(5))),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=8,
)


def driven(steps, operations):
    """What each operation gave or raised."""
    for operation, value in operations:
        try:
            if operation == "next":
                yield operation, next(steps)
            else:
                yield operation, getattr(steps, operation)(*([] if operation == "close" else [value]))
        except BaseException as e:
            yield operation, (type(e), str(e), getattr(e, "value", None))


def charge(moves, operations):
    """What a generator that did this must be charged: the rule, told by a plain one; and what it did."""
    log, itself = [], []
    steps = run(moves, log, itself)
    itself.append(steps)
    trace, charged, has_begun, is_over = [], 0, False, False
    for outcome in driven(steps, operations):
        trace.append(outcome)
        operation, result = outcome
        state = inspect.getgeneratorstate(steps)
        refused = isinstance(result, tuple) and result[0]
        has_begun = (
            has_begun or state == inspect.GEN_SUSPENDED or (operation in ("next", "send") and refused is not TypeError)
        )
        if has_begun and not is_over and (state == inspect.GEN_CLOSED or operation == "close"):
            is_over = True
            early = operation == "close" and (not refused or "ignored" in result[1])
            charged = 50 if early or refused in (StopIteration, GeneratorExit) else 0
        elif state == inspect.GEN_CLOSED:
            is_over = True
    return trace, log, charged


@given(moves=MOVES, operations=OPERATIONS)
def test_whatever_is_done_to_it_a_plain_generator_answers_the_same(shared, moves, operations):
    ledger, client = shared
    operations += [("close", None)] * (len(moves) + 1)
    expected, expected_log, charged = charge(moves, operations)
    before, _ = spent(ledger)
    log, itself = [], []
    steps = decorate(client, 50)(run)(moves, log, itself)
    itself.append(steps)
    assert list(driven(steps, operations)) == expected
    assert log == expected_log
    assert spent(ledger) == (before + charged, 0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One ledger for all examples."""
    with ledger_of(tmp_path_factory.mktemp("shared"), 10**9) as ledger:
        with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme", heartbeat=False)) as client:
            yield ledger, client


# ---- Closed early, in whatever way ----


def unfinished(client, metered=0, **parameters):
    """A generator after its second step."""

    @decorate(client, 50, **parameters)
    def work():
        guard = current_guard()
        while True:
            guard.spend(metered)
            yield

    steps = work()
    next(steps)
    next(steps)
    return steps


def broken_off(client, metered):
    for _ in unfinished(client, metered):
        break


def in_a_circle(client, metered):
    circle = [unfinished(client, metered)]
    circle.append(circle)
    del circle
    gc.collect()


def thrown_out(client, metered):
    with pytest.raises(GeneratorExit):
        unfinished(client, metered).throw(GeneratorExit)


ENDS = [lambda *given: unfinished(*given).close(), thrown_out, broken_off, in_a_circle]


@pytest.mark.parametrize("metered", [0, 4])
@pytest.mark.parametrize("end", ENDS)
def test_however_it_is_closed_early_the_meter_or_the_estimate_is_committed(client, ledger, end, metered):
    end(client, metered)
    gc.collect()
    assert client.flush(PATIENCE) == 0
    charged, reserved = spent(ledger)
    assert charged in ((8, 12) if metered else (50,))
    assert reserved == 0
    assert last(client).committed_metadata == (None if metered else {"actual_source": "estimate"})


def test_what_is_metered_in_finally_counts_when_it_is_collected(client, ledger):
    @decorate(client, 50)
    def work():
        try:
            yield
        finally:
            current_guard().spend(7)

    for _ in work():
        break
    gc.collect()
    assert client.flush(PATIENCE) == 0
    assert spent(ledger) == (7, 0)


def test_a_finalizer_sends_nothing_itself(ledger):
    """It may run while any lock is held: a thread of the worker sends."""
    settled_in = []

    def observe(event):
        if isinstance(event, events.Settled):
            settled_in.append(threading.current_thread())

    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme"), observer=observe) as client:
        broken_off(client, 0)
        gc.collect()
        assert client.flush(PATIENCE) == 0
    assert len(settled_in) == 1
    assert threading.current_thread() not in settled_in


def test_one_that_ignores_being_closed_is_settled(client, ledger):
    @decorate(client, 50)
    def work():
        while True:
            try:
                yield
            except GeneratorExit:
                pass
            else:
                return

    steps = work()
    next(steps)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        steps.close()
    assert spent(ledger) == (50, 0)
    assert list(steps) == []
    assert spent(ledger) == (50, 0)


def test_an_interruption_that_passes_through_it_commits_the_meter(client, ledger):
    @decorate(client, 50)
    def work():
        current_guard().spend(3)
        yield
        raise KeyboardInterrupt

    steps = work()
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert spent(ledger) == (3, 0)


# ---- Before its first step ----


@pytest.mark.parametrize("wrong", [(), (1, 2, 3, 4)])
def test_wrong_arguments_fail_at_the_call_and_reserve_nothing(count, ledger, wrong):
    with pytest.raises(TypeError, match="count"):
        count(*wrong)
    assert spent(ledger) == (0, 0)


def test_one_that_is_collected_before_its_first_step_costs_nothing(count, client, ledger):
    count(3)
    gc.collect()
    assert client.flush(PATIENCE) == 0
    assert client.list_reservations().reservations == ()


def test_a_denial_is_raised_by_the_first_step_which_may_be_tried_again(client, ledger):
    @decorate(client, 5000)
    def work():
        yield "ran"

    steps = work()
    with pytest.raises(BudgetExceededError):
        next(steps)
    ledger.set_budget("tenant:acme", Amount.tokens(10_000))
    assert list(steps) == ["ran"]
    assert spent(ledger) == (5000, 0)


# ---- Threads ----


class Blocking:
    """A call that waits in a thread until it is let go."""

    def __init__(self, result=None):
        self.reached, self.released, self.result = threading.Event(), threading.Event(), result

    def __call__(self, *arguments):
        self.reached.set()
        assert self.released.wait(PATIENCE)
        return self.result


STEPS = [
    ("next", lambda steps: next(steps)),
    ("send", lambda steps: steps.send(1)),
    ("throw", lambda steps: steps.throw(Broken)),
    ("close", lambda steps: steps.close()),
]


@pytest.mark.parametrize("where", ["estimate", "body", "actual"])
@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_step_in_another_thread_is_refused_and_the_work_goes_on(client, ledger, where, name, step):
    """While the first step reserves, while the body runs, and while the end is being settled."""
    block = Blocking(50 if where == "estimate" else 7)

    def body():
        yield 1
        if where == "body":
            block()
        return "result"

    actual = block if where == "actual" else (lambda result: {"result": 7}[result])
    steps = decorate(client, block if where == "estimate" else 50, actual=actual)(body)()
    got = []
    thread = threading.Thread(target=lambda: got.extend(steps))
    thread.start()
    try:
        assert block.reached.wait(PATIENCE)
        with pytest.raises(ValueError, match=r"^generator already executing$"):
            step(steps)
        assert spent(ledger) == (0, 0 if where == "estimate" else 50)
    finally:
        block.released.set()
        thread.join()
    assert got == [1]
    assert spent(ledger) == (7, 0)


def test_of_many_threads_that_step_exactly_one_settles(client, ledger):
    @decorate(client, 50, actual=lambda result: result)
    def body():
        yield from range(200)
        return 7

    steps, got = body(), []

    def take():
        while True:
            try:
                got.append(next(steps))
            except ValueError:
                continue
            except StopIteration:
                return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))
    assert spent(ledger) == (7, 0)
    assert len(client.list_reservations().reservations) == 1


# ---- Hidden by another decorator ----


def hidden(fn):
    @functools.wraps(fn)
    def call(*args, **kwargs):
        return fn(*args, **kwargs)

    return call


@pytest.fixture
def behind(client):
    @decorate(client, 50, actual=lambda result: {"result": 7}[result])
    @hidden
    def behind():
        assert current_guard() is not None
        received = yield 1
        assert current_guard() is not None
        yield received
        return "result"

    return behind


def test_a_hidden_generator_settles_at_its_last_step(behind, ledger):
    steps = behind()
    assert (next(steps), steps.send(5)) == (1, 5)
    assert current_guard() is None
    assert spent(ledger) == (0, 50)
    with pytest.raises(StopIteration):
        next(steps)
    assert spent(ledger) == (7, 0)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_hidden_generator_that_is_closed_early_commits_the_estimate(behind, client, ledger, steps, is_closed):
    """Also before its first step: the function that returned it has been at work."""
    made = behind()
    for _ in range(steps):
        next(made)
    if is_closed:
        made.close()
    del made
    gc.collect()
    assert client.flush(PATIENCE) == 0
    assert spent(ledger) == (50, 0)


def test_a_function_may_return_a_generator(client, ledger):
    assert list(decorate(client, 50)(lambda n: (number for number in range(n)))(3)) == [0, 1, 2]
    assert spent(ledger) == (50, 0)


async def coroutine():
    pytest.fail("it ran")


async def asynchronous_generator():
    pytest.fail("it ran")
    yield


@pytest.mark.parametrize("metered", [0, 3])
@pytest.mark.parametrize("fn", [coroutine, asynchronous_generator])
def test_what_turns_out_to_be_asynchronous_is_refused_and_costs_nothing(client, ledger, fn, metered):
    """The coroutine is closed, so that Python does not warn of one that was never awaited."""

    @decorate(client, 50)
    def work():
        current_guard().spend(metered)
        return fn()

    with pytest.raises(TypeError, match=r"work is asynchronous.*runcycles"):
        work()
    gc.collect()
    assert spent(ledger) == (metered, 0)
