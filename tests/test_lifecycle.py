"""`with_cycles` and `@cycles`: the value is never lost, and a cost that nobody knows is never committed."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
import threading
from decimal import Decimal

import pytest
from ledgers import Broken, last, spent, tokens
from peers import FakeTransport, allowed, committed, replied
from samples import Proxy

from cycles_lite import (
    Action,
    Amount,
    BudgetExceededError,
    CommitOveragePolicy,
    CyclesClient,
    CyclesConfig,
    CyclesMetrics,
    Decision,
    Subject,
    TransportError,
    ValidationError,
    current_guard,
    cycles,
    lifecycle,
    set_default_client,
    with_cycles,
)

ACTION = Action("llm.completion", "gpt-4o")


class Unlike:
    """Comparing it raises."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("compared")


def sent_by(transport, number):
    """The body of that request."""
    return json.loads(transport.calls[number].body.decode())


# ---- with_cycles ----


def call(client, fn, estimate=100):
    return with_cycles(client, fn, estimate=tokens(estimate), action=ACTION)


def test_whatever_reserve_takes_is_handed_on(client, monkeypatch):
    """Also to a `reserve` that something has wrapped, whose signature says nothing."""
    options = {
        "subject": Subject(tenant="acme", agent="bot"),
        "ttl_ms": 5000,
        "grace_period_ms": 1000,
        "overage_policy": CommitOveragePolicy.REJECT,
        "metadata": {"of": "order 7"},
        "idempotency_key": "order-7",
    }
    taken = inspect.signature(CyclesClient.reserve).parameters
    assert set(taken) == {"self", "estimate", "action", *options}
    given = {}
    reserve = CyclesClient.reserve

    @functools.wraps(reserve)
    def wrapped(*args, **kwargs):
        given.update(kwargs)
        return reserve(*args, **kwargs)

    monkeypatch.setattr(CyclesClient, "reserve", wrapped)
    with_cycles(client, lambda guard: (None, tokens(1)), estimate=tokens(5), action=ACTION, **options)
    assert {name: given[name] for name in options} == options


def test_the_value_is_returned_and_the_amount_committed(client, ledger):
    def work(guard):
        assert current_guard() is guard
        return "reply", tokens(42)

    assert call(client, work) == "reply"
    assert spent(ledger) == (42, 0)


def test_what_the_work_raises_is_raised_and_the_reservation_released(client, ledger):
    def work(guard):
        raise Broken

    with pytest.raises(Broken):
        call(client, work)
    assert spent(ledger) == (0, 0)


def test_a_denial_keeps_the_work_from_running(client):
    with pytest.raises(BudgetExceededError):
        call(client, lambda guard: pytest.fail("it ran"), estimate=5000)


@pytest.mark.parametrize(
    "result",
    [None, "reply", ("reply",), ("reply", 5.0), ("a", "b", "c"), ("reply", None), ("reply", True), ["reply", 1]],
)
def test_a_result_without_an_amount_is_returned_and_nothing_guessed(client, ledger, result, caplog):
    """The estimate is no cost: what nobody knows is released, with an error."""
    assert call(client, lambda guard: result) == result
    assert spent(ledger) == (0, 0)
    assert "told no cost" in caplog.text


def test_a_result_without_an_amount_commits_the_meter(client, ledger):
    def work(guard):
        guard.spend(9)
        return "reply"

    assert call(client, work) == "reply"
    assert spent(ledger) == (9, 0)


class Index:
    """As numpy's integers are."""

    def __index__(self):
        return 42


@pytest.mark.parametrize("cost", [42, Index(), 0, 2**63 - 1])
def test_an_integer_is_a_cost_in_the_estimates_unit(tmp_path, cost):
    transport = FakeTransport(replied(allowed()), replied(committed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        assert call(client, lambda guard: ("reply", cost)) == "reply"
    assert sent_by(transport, 1)["actual"] == {"unit": "TOKENS", "amount": operator.index(cost)}


@pytest.mark.parametrize("cost", [1.5, None, "5", True, Decimal(5), [5], int])
@pytest.mark.parametrize("metered", [0, 9])
def test_another_second_part_is_named_in_the_log_and_no_cost(client, ledger, cost, metered, caplog):
    """What was returned is returned whole, because it may be the value; the meter counts, and nothing is guessed."""

    def work(guard):
        guard.spend(metered)
        return "reply", cost

    assert call(client, work) == ("reply", cost)
    assert spent(ledger) == (metered, 0)
    (record,) = [record for record in caplog.records if "second part" in record.getMessage()]
    assert record.levelname == "ERROR"
    assert f" {type(cost).__name__}:" in record.getMessage()


@pytest.mark.parametrize("cost", [Amount.credits(5), -1, 2**63, 10**30])
@pytest.mark.parametrize("metered", [0, 9])
def test_a_cost_that_cannot_be_committed_loses_neither_value_nor_meter(client, ledger, cost, metered, caplog):
    def work(guard):
        guard.spend(metered)
        return "reply", cost

    assert call(client, work) == "reply"
    assert spent(ledger) == (metered, 0)
    assert "cannot be committed" in caplog.text


def test_metrics_are_sent_with_the_cost():
    transport = FakeTransport(replied(allowed()), replied(committed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        metrics = CyclesMetrics(tokens_input=3, model_version="m")
        with_cycles(client, lambda guard: ("reply", 1), estimate=tokens(1), action=ACTION, metrics=metrics)
    assert sent_by(transport, 1)["metrics"] == {"tokens_input": 3, "model_version": "m"}


def test_wrong_metrics_are_refused_before_anything_is_sent():
    transport = FakeTransport(replied(allowed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        with pytest.raises(ValidationError, match=r"metrics: .* is not a CyclesMetrics"):
            with_cycles(client, lambda guard: ("x", 1), estimate=tokens(1), action=ACTION, metrics={"latency_ms": 1})
    assert transport.calls == []


def test_a_guard_that_the_work_ended_itself_stays_ended(client, ledger):
    def work(guard):
        guard.commit(tokens(7))
        return "reply", tokens(42)

    assert call(client, work) == "reply"
    assert spent(ledger) == (7, 0)


@pytest.mark.parametrize(
    "answer", [TransportError("down"), replied(body=b"<html>"), replied({"error": "NOT_FOUND", "message": "x"}, 404)]
)
def test_a_commit_that_fails_loses_no_value(answer, tmp_path):
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme", flush_timeout=0.1)
    with CyclesClient(config, transport=FakeTransport(replied(allowed()), answer)) as client:
        assert call(client, lambda guard: ("reply", tokens(5))) == "reply"


# ---- The decorator: what is reserved and committed ----


def decorate(client, estimate=100, **parameters):
    return cycles(estimate=estimate, unit="TOKENS", client=client, **parameters)


@pytest.mark.parametrize(
    ("estimate", "actual", "charged"),
    [
        (100, None, 100),
        (tokens(100), None, 100),
        (lambda prompt: len(prompt), None, 5),
        (lambda prompt: tokens(len(prompt)), None, 5),
        (100, 42, 42),
        (100, tokens(42), 42),
        (100, lambda reply: len(reply) * 2, 10),
        (100, lambda reply: tokens(3), 3),
        (100, 0, 0),
    ],
)
def test_estimate_and_actual_are_constants_or_callables(client, ledger, estimate, actual, charged):
    @decorate(client, estimate, actual=actual)
    def ask(prompt):
        return prompt.upper()

    assert ask("hello") == "HELLO"
    assert spent(ledger) == (charged, 0)


def test_every_field_may_be_a_callable_of_the_arguments(tmp_path):
    transport = FakeTransport(replied(allowed()), replied(committed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme", app="shop")
    with CyclesClient(config, transport=transport) as client:

        @cycles(
            estimate=lambda who, n: n,
            unit=lambda who, n: "CREDITS",
            action_kind=lambda who, n: "kind." + who,
            action_name=lambda who, n: "name." + who,
            action_tags=lambda who, n: [who],
            ttl_ms=lambda who, n: 5000,
            grace_period_ms=lambda who, n: 10,
            overage_policy=lambda who, n: "REJECT",
            workspace=lambda who, n: who,
            agent=lambda who, n: None,
            dimensions=lambda who, n: {"team": who},
            actual=lambda result: 1,
            client=client,
        )
        def work(who, n):
            return None

        work("ann", n=7)
    sent = json.loads(transport.calls[0].body.decode())
    sent.pop("idempotency_key")
    assert sent == {
        "estimate": {"unit": "CREDITS", "amount": 7},
        "action": {"kind": "kind.ann", "name": "name.ann", "tags": ["ann"]},
        "subject": {"tenant": "acme", "app": "shop", "workspace": "ann", "dimensions": {"team": "ann"}},
        "ttl_ms": 5000,
        "grace_period_ms": 10,
        "overage_policy": "REJECT",
    }


def test_the_defaults_are_those_of_the_official_decorator(tmp_path):
    transport = FakeTransport(replied(allowed()), replied(committed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        cycles(5, client=client)(lambda: None)()
    sent = json.loads(transport.calls[0].body.decode())
    assert sent["action"] == {"kind": "unknown", "name": "unknown"}
    assert sent["estimate"] == {"unit": "USD_MICROCENTS", "amount": 5}
    assert sent["ttl_ms"] == 60_000


@pytest.mark.parametrize(
    "actual",
    [
        lambda reply: 1 / 0,
        lambda reply: None,
        lambda reply: -1,
        lambda reply: 1.5,
        lambda reply: "x",
        lambda reply: Amount.credits(1),
    ],
)
def test_an_actual_that_fails_commits_the_estimate_and_says_so(client, ledger, actual, caplog):
    assert decorate(client, 10, actual=actual)(lambda: "reply")() == "reply"
    assert spent(ledger) == (10, 0)
    assert last(client).committed_metadata == {"actual_source": "estimate"}
    assert "the estimate is committed" in caplog.text


def test_what_was_metered_goes_before_the_estimate(client, ledger):
    @decorate(client, 100)
    def work():
        current_guard().spend(12)

    work()
    assert spent(ledger) == (12, 0)


def test_without_actual_and_estimate_the_cost_is_unknown(client, ledger, caplog):
    decorate(client, 100, use_estimate_if_actual_not_provided=False)(lambda: None)()
    assert spent(ledger) == (0, 0)
    assert "told no cost" in caplog.text


def test_an_exception_releases(client, ledger):
    @decorate(client)
    def work():
        raise Broken

    with pytest.raises(Broken):
        work()
    assert spent(ledger) == (0, 0)


def test_a_denial_keeps_the_function_from_running(client):
    with pytest.raises(BudgetExceededError):
        decorate(client, 5000)(lambda: pytest.fail("it ran"))()


def test_dry_run_returns_the_answer_and_runs_nothing(client, ledger):
    answer = decorate(client, 5000, dry_run=True)(lambda: pytest.fail("it ran"))()
    assert answer.decision is Decision.DENY
    assert answer.reason_code == "BUDGET_EXCEEDED"
    assert decorate(client, 5, dry_run=True)(lambda: pytest.fail("it ran"))().is_allowed
    assert spent(ledger) == (0, 0)


@pytest.mark.parametrize("estimate", [lambda: -1, lambda: 1.5, lambda: None, lambda: "5", lambda: True, lambda: 1 / 0])
def test_a_bad_estimate_of_a_call_is_raised_before_anything_is_sent(estimate):
    transport = FakeTransport(replied(allowed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        with pytest.raises((ValidationError, ZeroDivisionError)):
            cycles(estimate=estimate, client=client)(lambda: pytest.fail("it ran"))()
    assert transport.calls == []


# ---- The decorator: what is wrong is said when it decorates ----


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"estimate": None}, "estimate: None is not an Amount, an integer in the unit, or a callable"),
        ({"estimate": "5"}, "estimate: '5' is not an Amount or an integer in TOKENS"),
        ({"estimate": 1.5}, "estimate: 1.5"),
        ({"estimate": Decimal(5)}, "estimate: Decimal"),
        ({"estimate": True}, "estimate: True"),
        ({"estimate": -1}, "estimate: -1"),
        ({"estimate": 2**63}, "estimate: 9223372036854775808"),
        ({"estimate": {"unit": "TOKENS", "amount": 5}}, "estimate: "),
        ({"unit": "TOKEN"}, "unit: 'TOKEN' is not one of USD_MICROCENTS, TOKENS"),
        ({"unit": "TOKEN", "estimate": tokens(5)}, "unit: 'TOKEN'"),
        ({"unit": 5}, "unit: 5"),
        ({"ttl_ms": 999}, "ttl_ms: 999 is not in 1000..86400000"),
        ({"ttl_ms": 1.5e4}, "ttl_ms: 15000.0"),
        ({"ttl_ms": 86_400_001}, "ttl_ms: 86400001"),
        ({"grace_period_ms": -1}, "grace_period_ms: -1"),
        ({"grace_period_ms": "5s"}, "grace_period_ms: '5s'"),
        ({"overage_policy": "ALLOW"}, "overage_policy: 'ALLOW' is not one of REJECT"),
        ({"actual": "5"}, "actual: '5' is not an Amount or an integer in TOKENS"),
        ({"actual": 1.5}, "actual: 1.5"),
        ({"actual": -1}, "actual: -1"),
        ({"actual": Amount.credits(1)}, "TOKENS, the estimate's unit"),
        ({"actual": tokens(1), "estimate": Amount.credits(1)}, "CREDITS, the estimate's unit"),
        ({"action": "llm.completion"}, "action: 'llm.completion'"),
        ({"action": ACTION, "action_kind": "x"}, "action_kind: action says it already"),
        ({"action": ACTION, "action_name": lambda: "x"}, "action_name: action says it already"),
        ({"action": lambda: ACTION, "action_tags": ["x"]}, "action_tags: action says it already"),
        ({"action_kind": "x" * 65}, "kind: "),
        ({"action_name": 5}, "name: 5"),
        ({"action_tags": "tag"}, "tags: 'tag' is not a list"),
        ({"action_tags": [5]}, "tags"),
        ({"tenant": 5}, "tenant: 5"),
        ({"agent": "x" * 129}, "agent: "),
        ({"toolset": 0}, "toolset: 0"),
        ({"dimensions": ["x"]}, "dimensions: "),
        ({"client": "http://localhost"}, "client: 'http://localhost' is not a CyclesClient"),
        ({"dry_run": "no"}, "dry_run: 'no'"),
        ({"use_estimate_if_actual_not_provided": 0}, "use_estimate_if_actual_not_provided: 0"),
    ],
)
def test_a_wrong_constant_is_refused_when_decorated(parameters, named):
    """Also where another parameter is a callable, so that only half of a value is known."""
    with pytest.raises(ValidationError, match=re.escape(named)):
        cycles(**{"estimate": 5, "unit": "TOKENS", **parameters})
    if "estimate" not in parameters and "Amount" not in str(parameters):
        with pytest.raises(ValidationError, match=re.escape(named)):
            cycles(**{"estimate": lambda: 5, "unit": "TOKENS", **parameters})


@pytest.mark.parametrize("action", [ACTION, lambda n: ACTION])
def test_the_action_can_be_given_whole(action):
    transport = FakeTransport(replied(allowed()), replied(committed()))
    config = CyclesConfig(base_url="http://fake.invalid", api_key="k", tenant="acme")
    with CyclesClient(config, transport=transport) as client:
        cycles(5, action=action, client=client)(lambda n: None)(1)
    assert sent_by(transport, 0)["action"] == {"kind": "llm.completion", "name": "gpt-4o"}


def refused():
    return pytest.raises(TypeError, match=r"says no estimate: write @cycles\(1000\) or @cycles\(estimate=")


def test_without_parentheses_it_is_refused_when_decorated():
    """A function, one below another decorator, and a method."""
    with refused():

        @cycles
        def work(prompt):
            return prompt

    with refused():

        @cycles
        @functools.lru_cache(maxsize=None)
        def cached(prompt):
            return prompt

    with refused():

        class Agent:
            @cycles
            def method(self):
                return self

    with refused():
        exec("@cycles\ndef work(): pass", {"cycles": cycles})


def price_of(prompt):
    return len(prompt)


class Pricing:
    @staticmethod
    def static(prompt):
        return len(prompt)

    def method(self, prompt):
        return len(prompt)

    def __call__(self, prompt):
        return len(prompt)


def test_callable_estimates_of_every_kind_are_no_use_without_parentheses():
    def local(prompt):
        return len(prompt)

    cached = functools.lru_cache(maxsize=None)(local)
    made = (lambda: lambda prompt: len(prompt))()
    known = [len, price_of, local, cached, made, Pricing.static, Pricing().method, Pricing(), lambda prompt: 5]
    assert all(callable(cycles(estimate)) for estimate in known)


def test_what_slipped_through_is_told_at_the_call():
    def made():
        def work(prompt):
            return prompt

        return work

    with pytest.raises(TypeError, match="'hello' is not callable; is it used without its parentheses"):
        cycles(made())("hello")


# ---- The decorator: what can be decorated ----


def test_methods_of_every_kind(client, ledger):
    class Agent:
        @decorate(client, lambda self, n: n)
        def method(self, n):
            return self, n

        @decorate(client, lambda cls, n: n)
        @classmethod
        def below(cls, n):
            return cls, n

        @classmethod
        @decorate(client, lambda cls, n: n)
        def above(cls, n):
            return cls, n

        @decorate(client, lambda n: n)
        @staticmethod
        def static(n):
            return n

    agent = Agent()
    assert agent.method(1) == (agent, 1)
    assert agent.below(2) == (Agent, 2)
    assert Agent.above(3) == (Agent, 3)
    assert agent.static(4) == 4
    assert spent(ledger) == (10, 0)


def test_partials_and_callable_objects(client, ledger):
    class Callable_:
        def __call__(self, n):
            return n

    assert decorate(client, 1)(functools.partial(max, 3))(5) == 5
    assert decorate(client, lambda n: n)(Callable_())(2) == 2
    assert spent(ledger) == (3, 0)


def test_names_and_signatures_survive(client):
    @decorate(client)
    def ask(prompt: str, *, retries: int = 3) -> str:
        """Ask a model."""

    assert (ask.__name__, ask.__doc__) == ("ask", "Ask a model.")
    assert str(inspect.signature(ask)) == str(inspect.signature(ask.__wrapped__))


async def coroutine():
    pass


async def asynchronous_generator():
    yield


class AsynchronousCallable:
    async def __call__(self):
        pass


@pytest.mark.parametrize(
    "fn",
    [
        coroutine,
        asynchronous_generator,
        functools.partial(coroutine),
        functools.partial(functools.partial(asynchronous_generator)),
        AsynchronousCallable(),
    ],
)
def test_asynchronous_functions_are_refused_when_decorated(fn):
    with pytest.raises(TypeError, match=r"blocking.*runcycles"):
        cycles(estimate=1)(fn)


def test_what_cannot_be_called_is_refused_when_decorated():
    with pytest.raises(TypeError, match="not callable"):
        cycles(estimate=1)(5)


# ---- The client ----


def test_the_default_client_is_the_one_that_was_set(client, ledger):
    set_default_client(client)
    try:
        cycles(estimate=tokens(5))(lambda: None)()
    finally:
        set_default_client(None)
    assert spent(ledger) == (5, 0)


def test_else_it_is_made_from_the_environment_on_first_use(ledger, tmp_path, monkeypatch):
    work = cycles(estimate=tokens(5), tenant="acme")(lambda: None)
    monkeypatch.setenv("CYCLES_BASE_URL", f"sqlite:///{tmp_path}/budgets.db")
    work()
    work()
    lifecycle.default_client().close()
    set_default_client(None)
    assert spent(ledger) == (10, 0)


def test_threads_that_come_together_get_the_same_client(ledger, monkeypatch):
    """The clients of the slower ones are closed."""
    monkeypatch.setenv("CYCLES_BASE_URL", ledger.url)
    together, got = threading.Barrier(4), []
    made, from_env = [], CyclesClient.from_env

    def slowly():
        together.wait(60)  # each has found that there is none
        made.append(from_env())
        return made[-1]

    monkeypatch.setattr(CyclesClient, "from_env", slowly)
    monkeypatch.setattr(CyclesClient, "close", lambda client: closed.append(client))
    closed = []
    threads = [threading.Thread(target=lambda: got.append(lifecycle.default_client())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    set_default_client(None)
    assert len(made) == 4
    assert len(set(got)) == 1
    assert {*closed, got[0]} == set(made)
    assert len(closed) == 3


def test_a_subject_in_the_call_is_the_whole_subject(client, ledger):
    ledger.set_budget("tenant:acme/agent:bot", tokens(7))
    assert with_cycles(
        client, lambda guard: ("x", tokens(7)), estimate=tokens(7), action=ACTION, subject=Subject(agent="bot")
    )
    assert {budget.scope: budget.spent for budget in ledger.budgets()} == {"tenant:acme": 7, "tenant:acme/agent:bot": 7}


# ---- Objects that cannot be looked at ----


def test_a_value_that_cannot_be_looked_at_is_returned_and_its_work_settled(client, ledger):
    """As flask's `request` outside of one: by then the work is done, and its value and cost must not be lost."""
    proxy = Proxy()
    assert call(client, lambda guard: (proxy, tokens(3))) is proxy
    assert call(client, lambda guard: guard.spend(4) and proxy) is proxy
    assert cycles(tokens(5), client=client)(lambda: proxy)() is proxy
    assert spent(ledger) == (3 + 4 + 5, 0)


@pytest.mark.parametrize("name", ["action_tags", "dimensions", "tenant", "action_kind", "overage_policy", "client"])
@pytest.mark.parametrize("make", [Proxy, Unlike, lambda: 5, lambda: NotImplemented])
def test_a_constant_that_cannot_be_looked_at_is_refused_when_decorated(name, make):
    with pytest.raises(ValidationError, match=name.replace("action_", "(action_)?")):
        cycles(5, **{name: make()})


def test_the_default_client_is_a_client():
    with pytest.raises(ValidationError, match="client: 'odd' is not a CyclesClient"):
        set_default_client("odd")
