"""What a signal handler raises while an answer is awaited comes out of the call, and the amount is settled."""

from __future__ import annotations

import signal
import threading

import pytest
from interrupts import needs_timers
from ledgers import ledger_of, spent, tokens
from peers import Peer, allowed, answer, client_of, committed, silent

from cycles_lite import Action, BudgetDenied, CyclesClient, CyclesConfig
from cycles_lite.transport.handlers import is_from_handler

ACTION = Action("llm.completion", "gpt-4o")
PATIENCE = 60.0

pytestmark = needs_timers


class SoftTimeLimit(Exception):
    """As Celery has one."""


ERRORS = [SoftTimeLimit, TimeoutError, BudgetDenied, SystemExit]


@pytest.fixture(params=ERRORS, ids=lambda error: error.__name__)
def limit(request):
    """Raises an error of this class within the next call that waits."""

    def handle(signum, frame):
        raise request.param("time is up")

    outer = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1), request.param
    signal.signal(signal.SIGUSR1, outer)


def test_a_limit_while_a_commit_is_under_way_is_raised_and_the_amount_settled(limit):
    strike, error = limit
    answers = []

    def serve(line, request):
        if request.target == "/v1/reservations":
            line.send(answer(allowed()))
        elif not answers:
            answers.append("none")
            strike()
            silent(line, request)
        else:
            line.send(answer(committed()))

    with Peer(serve) as peer, client_of(peer, heartbeat=False) as client:
        guard = client.reserve(tokens(5), ACTION)
        with pytest.raises(error, match="time is up"), guard:
            guard.commit(tokens(3))
        assert client.flush(PATIENCE) == 0
        assert [request.target.rsplit("/", 1)[-1] for request in peer.requests] == ["reservations", "commit", "commit"]
        assert len({request.json["idempotency_key"] for request in peer.requests[1:]}) == 1


def test_a_limit_within_the_embedded_authority_is_no_answer_of_it(limit, tmp_path, monkeypatch):
    """Neither a refusal nor a crash of ours."""
    from cycles_lite.local import rules

    strike, error = limit
    with ledger_of(tmp_path, 1000) as ledger:
        with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme", heartbeat=False)) as client:
            guard = client.reserve(tokens(5), ACTION)
            struck = []

            def charge(*arguments):
                if not struck:
                    struck.append(True)
                    strike()
                return original(*arguments)

            original = rules.charge
            monkeypatch.setattr(rules, "charge", charge)
            with pytest.raises(error, match="time is up"), guard:
                guard.commit(tokens(3))
            assert client.flush(PATIENCE) == 0
            assert spent(ledger) == (3, 0)


def test_other_exceptions_are_not_a_handlers():
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert not is_from_handler(caught.value)
