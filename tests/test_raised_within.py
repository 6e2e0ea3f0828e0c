"""What is raised within the library by somebody else: by a signal handler, by an observer that ends the program."""

from __future__ import annotations

import pytest
from interrupts import AtLine, Interrupt
from ledgers import tokens
from peers import (
    FakeTransport,
    Peer,
    allowed,
    answer,
    client_of,
    committed,
    create_request,
    released,
    replied,
)

from cycles_lite import Action, BudgetExceededError, CyclesError
from cycles_lite.guard import Backing, ReservationGuard
from cycles_lite.protocol import wire
from cycles_lite.protocol.models import ReservationCreateResponse

ACTION = Action("llm.completion", "gpt-4o")
PATIENCE = 60.0


class HandlersOwn(CyclesError):
    """A signal handler uses the library too, and lets its error through."""


def denied(where):
    return BudgetExceededError(f"a signal handler's, at {where}", status=409, code="BUDGET_EXCEEDED")


class Book:
    """An authority that grants everything, and what it was told of each reservation."""

    def __init__(self):
        self.charged, self.released = {}, set()

    def answer(self, call):
        body = call.data
        if call.operation is wire.CREATE_RESERVATION:
            return replied(allowed(reservation_id=f"rsv_{body['idempotency_key'][-12:]}"))
        if call.operation is wire.RELEASE_RESERVATION:
            self.released.add(call.id)
            return replied(released())
        self.charged.setdefault(call.id, set()).add((body["idempotency_key"], body["actual"]["amount"]))
        return replied(committed())


@pytest.fixture
def book():
    return Book()


@pytest.fixture
def client(book):
    transport = FakeTransport(book.answer)
    with client_of("http://fake.invalid", transport=transport, heartbeat=False) as client:
        yield client


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
@pytest.mark.parametrize("error", [HandlersOwn, denied, Interrupt])
def test_what_a_handler_raises_within_a_commit_loses_no_amount(client, book, error):
    """Also an error of ours, which is no answer to the commit: it may be of a call that the handler made itself."""
    cost, nth, at = tokens(7), 0, None
    while at is None or at.where is not None:
        nth += 1
        at = AtLine(nth, error=error)
        guard = client.reserve(tokens(10), ACTION)
        try:
            with guard, at:
                guard.commit(cost)
        except (CyclesError, Interrupt):
            pass
        assert client.flush(PATIENCE) == 0, at.where
        ((_, amount),) = book.charged[guard.reservation_id]
        assert (amount, book.released) == (7, set()), at.where
    assert nth > 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
def test_a_denial_that_a_handler_raises_within_a_request_is_no_answer_to_it():
    """Neither where the request is made: the commit goes out, however the reservation's own call went."""
    cost, nth, at = tokens(7), 20, None
    with Peer(
        lambda line, request: line.send(answer(released() if "release" in request.target else committed()))
    ) as peer:
        with client_of(peer, heartbeat=False) as client:
            while at is None or at.where is not None:
                nth += 5
                at = AtLine(nth, error=denied)
                guard = ReservationGuard(
                    client._session, create_request(), Backing.RESERVATION, {"tenant": "acme"}, granted(f"rsv_{nth}")
                )
                try:
                    with guard, at:
                        guard.commit(cost)
                except CyclesError:
                    pass
                assert client.flush(PATIENCE) == 0, at.where
                assert f"/v1/reservations/rsv_{nth}/commit" in [request.target for request in peer.requests], at.where
    assert nth > 150


SUBJECT = {"tenant": "acme"}


def granted(reservation_id):
    return ReservationCreateResponse.from_json(allowed(reservation_id=reservation_id))
