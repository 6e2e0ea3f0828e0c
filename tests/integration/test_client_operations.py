"""The client's operations end to end, the same in process and over HTTP."""

from __future__ import annotations

import threading
import uuid

import pytest

from cycles_lite import (
    Action,
    Amount,
    BudgetExceededError,
    CommitRequest,
    Decision,
    DecisionRequest,
    EventCreateRequest,
    ForbiddenError,
    IdempotencyMismatchError,
    NotFoundError,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationExtendRequest,
    ReservationFinalizedError,
    ReservationListRequest,
    ReservationStatus,
    SettlementRejectedError,
    Subject,
    UnitMismatchError,
    ValidationError,
)

ACTION = Action("llm.completion", "gpt-4o", tags=("test",))

#: More than any budget holds.
TOO_MUCH = Amount.tokens(2**62)


def reserve(client, amount=100, **more):
    return client.create_reservation(ReservationCreateRequest(action=ACTION, estimate=Amount.tokens(amount), **more))


def balance(client):
    """The tenant's own TOKENS balance."""
    rows = [row for row in client.iter_balances(tenant="acme") if row.scope_path == "tenant:acme"]
    return next(row for row in rows if row.remaining.unit == "TOKENS")


def test_a_commit_charges_the_actual_and_returns_the_rest(client):
    before = balance(client)
    held = reserve(client, 100)
    during = balance(client)
    settled = client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(60)))
    after = balance(client)
    assert held.decision is Decision.ALLOW
    assert held.reserved == Amount.tokens(100)
    assert during.reserved.amount - before.reserved.amount == 100
    assert (settled.status, settled.charged, settled.released) == ("COMMITTED", Amount.tokens(60), Amount.tokens(40))
    assert after.spent.amount - before.spent.amount == 60
    assert after.reserved == before.reserved
    assert before.remaining.amount - after.remaining.amount == 60


def test_a_release_returns_everything(client):
    before = balance(client)
    held = reserve(client)
    released = client.release_reservation(held.reservation_id, ReleaseRequest(reason="no need"))
    assert (released.status, released.released) == ("RELEASED", Amount.tokens(100))
    assert balance(client) == before


def test_the_same_request_object_again_is_a_replay(client):
    before = balance(client)
    request = ReservationCreateRequest(action=ACTION, estimate=Amount.tokens(10))
    first, second = client.create_reservation(request), client.create_reservation(request)
    commit = CommitRequest(actual=Amount.tokens(10))
    once = client.commit_reservation(first.reservation_id, commit)
    again = client.commit_reservation(first.reservation_id, commit)
    assert first.reservation_id == second.reservation_id
    assert once.charged == again.charged
    assert balance(client).spent.amount - before.spent.amount == 10


def test_the_same_key_with_another_payload_is_refused(client):
    request = ReservationCreateRequest(action=ACTION, estimate=Amount.tokens(10))
    client.create_reservation(request)
    other = ReservationCreateRequest(action=ACTION, estimate=Amount.tokens(11), idempotency_key=request.idempotency_key)
    with pytest.raises(IdempotencyMismatchError):
        client.create_reservation(other)


def test_an_extension_counts_from_the_current_expiry(client):
    held = reserve(client, ttl_ms=60_000)
    extended = client.extend_reservation(held.reservation_id, ReservationExtendRequest(extend_by_ms=30_000))
    assert extended.status == "ACTIVE"
    assert extended.expires_at_ms == held.expires_at_ms + 30_000
    client.release_reservation(held.reservation_id, ReleaseRequest())


def test_decide_and_dry_run_hold_nothing(client):
    before = balance(client)
    decided = client.decide(DecisionRequest(action=ACTION, estimate=Amount.tokens(100)))
    tried = reserve(client, dry_run=True)
    assert decided.is_allowed
    assert tried.is_allowed
    assert tried.reservation_id is None
    assert tried.expires_at_ms is None
    assert "tenant:acme" in tried.affected_scopes
    assert balance(client) == before


def test_a_denial_is_an_answer_to_questions_and_an_error_to_a_reservation(client):
    decided = client.decide(DecisionRequest(action=ACTION, estimate=TOO_MUCH))
    tried = client.create_reservation(ReservationCreateRequest(action=ACTION, estimate=TOO_MUCH, dry_run=True))
    assert (decided.decision, decided.reason_code) == (Decision.DENY, "BUDGET_EXCEEDED")
    assert (tried.decision, tried.reason_code) == (Decision.DENY, "BUDGET_EXCEEDED")
    assert not decided.is_allowed
    with pytest.raises(BudgetExceededError) as denied:
        client.create_reservation(ReservationCreateRequest(action=ACTION, estimate=TOO_MUCH))
    assert denied.value.status == 409
    assert denied.value.request_id


def test_an_event_charges_at_once(client):
    before = balance(client)
    event = client.create_event(EventCreateRequest(action=ACTION, actual=Amount.tokens(7)))
    assert event.status == "APPLIED"
    assert event.event_id
    assert balance(client).spent.amount - before.spent.amount == 7


def test_an_event_that_the_policy_rejects_is_a_rejected_settlement(client):
    with pytest.raises(SettlementRejectedError) as rejected:
        client.create_event(EventCreateRequest(action=ACTION, actual=TOO_MUCH, overage_policy="REJECT"))
    assert rejected.value.code == "BUDGET_EXCEEDED"


def test_a_reservation_can_be_looked_up(client):
    key = uuid.uuid4().hex
    held = reserve(client, idempotency_key=key, metadata={"run": 42})
    client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(1), metadata={"took": "long"}))
    detail = client.get_reservation(held.reservation_id)
    (listed,) = client.list_reservations(idempotency_key=key).reservations
    assert detail.status is ReservationStatus.COMMITTED
    assert detail.subject == Subject(tenant="acme")
    assert detail.action == ACTION
    assert detail.committed == Amount.tokens(1)
    assert (detail.metadata, detail.committed_metadata) == ({"run": 42}, {"took": "long"})
    assert listed.reservation_id == held.reservation_id
    assert listed.metadata is None
    (full,) = client.list_reservations(idempotency_key=key, include=("metadata",)).reservations
    assert full.metadata == {"run": 42}


def test_pages_follow_each_other(client):
    agent = "pager-" + uuid.uuid4().hex
    made = {reserve(client, 1, subject=Subject(agent=agent)).reservation_id for _ in range(5)}
    query = ReservationListRequest(agent=agent, limit=2, sort_by="created_at_ms", sort_dir="asc")
    assert {row.reservation_id for row in client.iter_reservations(query)} == made
    assert len(client.list_reservations(query).reservations) == 2
    for reservation_id in made:
        client.release_reservation(reservation_id, ReleaseRequest())


def test_a_finished_reservation_takes_nothing_more(client):
    held = reserve(client)
    client.release_reservation(held.reservation_id, ReleaseRequest())
    with pytest.raises(ReservationFinalizedError):
        client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(1)))
    with pytest.raises(ReservationFinalizedError):
        client.extend_reservation(held.reservation_id, ReservationExtendRequest(extend_by_ms=1000))


def test_a_commit_in_another_unit_is_refused_and_the_right_one_still_works(client):
    held = reserve(client)
    with pytest.raises(UnitMismatchError):
        client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.credits(1)))
    client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(1)))


def test_what_is_not_there_is_not_found(client):
    with pytest.raises(NotFoundError):
        client.get_reservation("rsv_" + uuid.uuid4().hex)
    with pytest.raises(NotFoundError):
        client.commit_reservation("rsv_" + uuid.uuid4().hex, CommitRequest(actual=Amount.tokens(1)))


def test_another_tenants_subject_is_forbidden(client):
    with pytest.raises(ForbiddenError):
        reserve(client, subject=Subject(tenant="other-tenant"))
    with pytest.raises(ForbiddenError):
        client.get_balances(tenant="other-tenant")


def test_bad_input_is_refused_before_it_is_sent(client):
    with pytest.raises(ValidationError, match="extend_by_ms"):
        ReservationExtendRequest(extend_by_ms=0)
    with pytest.raises(ValidationError, match="reservation_id"):
        client.get_reservation("bad\nid")
    with pytest.raises(ValidationError, match="agents"):
        client.list_reservations(agents="x")


def test_answers_say_which_request_they_answer(client):
    held = reserve(client)
    released = client.release_reservation(held.reservation_id, ReleaseRequest())
    assert held.request_id
    assert held.request_id != released.request_id
    assert len(held.trace_id) == 32


def test_many_threads_lose_nothing(client):
    before = balance(client)
    errors = []

    def work():
        try:
            for _ in range(5):
                held = reserve(client, 3)
                client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(2)))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = balance(client)
    assert errors == []
    assert after.spent.amount - before.spent.amount == 8 * 5 * 2
    assert after.reserved == before.reserved
