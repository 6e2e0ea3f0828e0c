"""The official SDK, unchanged, against the server: what it sends is taken, what it gets it understands.

Each answer is also read by the SDK's own models, which refuse what its authors do not expect.
"""

from __future__ import annotations

import asyncio
import threading

import pytest
from serving import PATIENCE, new_key, serving

runcycles = pytest.importorskip("runcycles", reason="runcycles needs Python 3.10 or newer")

TOKENS = runcycles.Unit.TOKENS
ACTION = runcycles.Action(kind="llm.completion", name="gpt-4o", tags=["test"])
ACME = runcycles.Subject(tenant="acme")
BOT = runcycles.Subject(tenant="acme", agent="bot", dimensions={"cost_center": "7"})


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


def configured(served, **changes):
    return runcycles.CyclesConfig(**{"base_url": served.url, "api_key": served.key, "tenant": "acme", **changes})


@pytest.fixture
def client(served):
    with runcycles.CyclesClient(configured(served)) as client:
        yield client


def tokens(amount):
    return runcycles.Amount(unit=TOKENS, amount=amount)


def understood(response, model, status=200):
    """The body as the SDK's model of it."""
    assert (response.status, response.is_success) == (status, True), response
    assert response.request_id
    assert (response.rate_limit_remaining, response.cycles_tenant) == (-1, "acme")
    return model.model_validate(response.body)


def reserve(client, amount=100, subject=ACME, **fields):
    request = runcycles.ReservationCreateRequest(
        idempotency_key=new_key(), subject=subject, action=ACTION, estimate=tokens(amount), **fields
    )
    return understood(client.create_reservation(request), runcycles.ReservationCreateResponse)


def balance(client, scope="tenant:acme"):
    """What is left, held and spent at a scope."""
    page = understood(client.get_balances(tenant="acme"), runcycles.BalanceResponse)
    (found,) = [one for one in page.balances if one.scope_path == scope]
    return found.remaining.amount, found.reserved.amount, found.spent.amount


def state(client, reservation_id):
    return client.get_reservation(reservation_id).body["status"]


# ---- The programmatic client ----


def test_a_reservation_is_committed(client):
    held = reserve(client)
    assert held.decision is runcycles.Decision.ALLOW
    assert balance(client) == (999_900, 100, 0)
    metrics = runcycles.CyclesMetrics(tokens_input=3, tokens_output=4, latency_ms=5, custom={"x": [1.5, None]})
    request = runcycles.CommitRequest(idempotency_key=new_key(), actual=tokens(60), metrics=metrics, metadata={"a": 1})
    done = understood(client.commit_reservation(held.reservation_id, request), runcycles.CommitResponse)
    assert (done.charged, done.released) == (tokens(60), tokens(40))
    assert balance(client) == (999_940, 0, 60)
    again = understood(client.commit_reservation(held.reservation_id, request), runcycles.CommitResponse)
    assert again == done
    assert balance(client) == (999_940, 0, 60)


def test_a_reservation_is_released(client):
    held = reserve(client)
    request = runcycles.ReleaseRequest(idempotency_key=new_key(), reason="not needed")
    done = understood(client.release_reservation(held.reservation_id, request), runcycles.ReleaseResponse)
    assert done.released == tokens(100)
    assert balance(client) == (1_000_000, 0, 0)


def test_a_reservation_is_extended_read_and_listed(client):
    held = reserve(client, subject=BOT, ttl_ms=60_000, metadata={"job": "7"})
    assert held.decision is runcycles.Decision.ALLOW_WITH_CAPS
    assert held.caps.max_tokens == 500
    request = runcycles.ReservationExtendRequest(idempotency_key=new_key(), extend_by_ms=5000)
    extended = understood(client.extend_reservation(held.reservation_id, request), runcycles.ReservationExtendResponse)
    assert extended.expires_at_ms == held.expires_at_ms + 5000
    assert 60_000 < extended.remaining_ttl_ms <= 65_000
    read = understood(client.get_reservation(held.reservation_id), runcycles.ReservationDetail)
    assert (read.status, read.metadata) == (runcycles.ReservationStatus.ACTIVE, {"job": "7"})
    assert read.subject == BOT
    page = understood(client.list_reservations(status="ACTIVE", agent="bot"), runcycles.ReservationListResponse)
    assert [row.reservation_id for row in page.reservations] == [held.reservation_id]
    assert client.list_reservations(status="COMMITTED").body["reservations"] == []


def test_a_decision_is_asked_for(client):
    for amount, decision, reason in ((1000, "ALLOW_WITH_CAPS", None), (1001, "DENY", "BUDGET_EXCEEDED")):
        request = runcycles.DecisionRequest(
            idempotency_key=new_key(), subject=BOT, action=ACTION, estimate=tokens(amount)
        )
        answer = understood(client.decide(request), runcycles.DecisionResponse)
        assert (answer.decision.value, answer.reason_code) == (decision, reason)


def test_an_event_is_recorded(client):
    request = runcycles.EventCreateRequest(idempotency_key=new_key(), subject=BOT, action=ACTION, actual=tokens(70))
    understood(client.create_event(request), runcycles.EventCreateResponse, 201)
    understood(client.create_event(request), runcycles.EventCreateResponse, 201)
    assert balance(client) == (999_930, 0, 70)
    assert balance(client, "tenant:acme/agent:bot") == (930, 0, 70)


def test_errors_are_understood(client, served):
    """Codes that its enumeration knows. (Its model of an error, up to 0.5.3, knows no `trace_id`, which the document
    demands: it then takes the code and the message from the body as it is, as here.)"""
    request = runcycles.ReservationCreateRequest(
        idempotency_key=new_key(), subject=BOT, action=ACTION, estimate=tokens(10**9)
    )
    with runcycles.CyclesClient(configured(served, api_key="wrong")) as stranger:
        for response, status, code in (
            (client.create_reservation(request), 409, "BUDGET_EXCEEDED"),
            (client.get_reservation("rsv_none"), 404, "NOT_FOUND"),
            (client.get_balances(tenant="rival"), 403, "FORBIDDEN"),
            (client.create_reservation({"idempotency_key": "x"}), 400, "INVALID_REQUEST"),
            (stranger.create_reservation(request), 401, "UNAUTHORIZED"),
        ):
            assert (response.status, response.get_body_attribute("error")) == (status, code)
            assert response.get_body_attribute("request_id") == response.request_id
            assert response.error_message == response.body["message"]
            assert runcycles.ErrorCode(code)


# ---- The decorator ----


def decorated(client, body, **options):
    settings = {"actual": len, "unit": TOKENS, "action_kind": "llm.completion", "action_name": "gpt-4o"}
    return runcycles.cycles(10, client=client, **{**settings, **options})(body)


def test_the_decorator_commits_what_it_cost(client):
    seen = []

    def work(text):
        context = runcycles.get_cycles_context()
        context.metrics = runcycles.CyclesMetrics(tokens_output=7)
        context.commit_metadata = {"run": "1"}
        seen.append((context.reservation_id, context.estimate, state(client, context.reservation_id)))
        return text * 3

    assert decorated(client, work)("ab") == "ababab"
    ((reservation_id, estimate, status),) = seen
    assert (estimate, status) == (10, "ACTIVE")
    assert balance(client) == (999_994, 0, 6)
    read = client.get_reservation(reservation_id).body
    assert (read["status"], read["committed_metadata"]) == ("COMMITTED", {"run": "1"})


def test_the_decorator_charges_more_than_was_estimated(client):
    assert decorated(client, lambda: "x" * 25)() == "x" * 25
    assert balance(client) == (999_975, 0, 25)


def test_the_decorator_releases_when_the_work_fails(client):
    def work():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        decorated(client, work)()
    assert balance(client) == (1_000_000, 0, 0)
    (row,) = client.list_reservations().body["reservations"]
    assert row["status"] == "RELEASED"


def test_the_decorator_does_not_run_what_there_is_no_budget_for(client, served):
    ran = []
    with pytest.raises(runcycles.BudgetExceededError) as caught:
        runcycles.cycles(1001, client=client, unit=TOKENS, agent="bot")(lambda: ran.append(1))()
    assert (ran, caught.value.status, caught.value.error_code) == ([], 409, "BUDGET_EXCEEDED")
    served.authority.freeze("tenant:acme/agent:bot")
    with pytest.raises(runcycles.CyclesProtocolError) as caught:
        runcycles.cycles(1, client=client, unit=TOKENS, agent="bot")(lambda: ran.append(1))()
    assert (ran, caught.value.error_code) == ([], "BUDGET_FROZEN")
    assert balance(client) == (1_000_000, 0, 0)


def test_the_decorators_dry_run_holds_nothing(client):
    ran = []
    result = runcycles.cycles(10, client=client, unit=TOKENS, dry_run=True)(lambda: ran.append(1))()
    assert (ran, result.decision) == ([], runcycles.Decision.ALLOW)
    assert balance(client) == (1_000_000, 0, 0)


def test_the_decorators_heartbeat_keeps_the_reservation(served):
    """By the remaining time that the answers carry: with a lease shorter than two attempts, at once."""
    extended = threading.Event()
    with runcycles.CyclesClient(configured(served)) as client:
        extend = client.extend_reservation

        def noted(*args):
            response = extend(*args)
            if understood(response, runcycles.ReservationExtendResponse).remaining_ttl_ms > 0:
                extended.set()
            return response

        client.extend_reservation = noted
        work = decorated(client, lambda: "x" if extended.wait(PATIENCE) else "", ttl_ms=15_000, grace_period_ms=60_000)
        assert work() == "x"
        assert balance(client) == (999_999, 0, 1)


# ---- The context manager for streams ----


def test_a_stream_is_settled_with_what_it_used(client):
    with client.stream_reservation(
        action=ACTION, estimate=tokens(100), cost_fn=lambda usage: usage.tokens_input + usage.tokens_output
    ) as stream:
        assert state(client, stream.reservation_id) == "ACTIVE"
        stream.usage.add_input_tokens(3)
        for _ in range(4):
            stream.usage.add_output_tokens(1)
    assert stream.settlement_error is None
    assert balance(client) == (999_993, 0, 7)


def test_a_stream_that_fails_is_released(client):
    with pytest.raises(KeyError), client.stream_reservation(action=ACTION, estimate=tokens(100)):
        raise KeyError("mine")
    assert balance(client) == (1_000_000, 0, 0)


# ---- The asynchronous client ----


def test_the_asynchronous_client_and_its_decorator(served, client):
    """Ten tasks at once, each with a reservation of its own."""

    async def everything():
        async with runcycles.AsyncCyclesClient(configured(served)) as asynchronous:

            @runcycles.cycles(10, actual=len, unit=TOKENS, client=asynchronous)
            async def work(number):
                await asyncio.sleep(0)
                return "x" * number

            return await asyncio.gather(*[work(number) for number in range(10)])

    assert asyncio.run(everything()) == ["x" * number for number in range(10)]
    assert balance(client) == (1_000_000 - 45, 0, 45)
    assert {row["status"] for row in client.list_reservations().body["reservations"]} == {"COMMITTED"}
