"""CR-CORE-001: lost commit response reuses the same key."""

from __future__ import annotations

import pytest
from faults import failed_afterwards, lost_answer, reset_answer, swallowed_answer, truncated
from stage import ACTION, Stage, key_of, kinds_and_keys

from cycles_lite import Amount, SettlementStatus

pytestmark = pytest.mark.scenario("CR-CORE-001")

LOSSES = (lost_answer, reset_answer, truncated, failed_afterwards, swallowed_answer)


@pytest.fixture(scope="module", params=LOSSES, ids=lambda fault: fault.__name__)
def played(request, tmp_path_factory):
    """The server settles the first commit, and its answer does not arrive."""
    with Stage(tmp_path_factory.mktemp("core-001")) as stage:
        stage.faults["/commit"] = [request.param]
        # Long enough for the answer to the second commit, and what the loss of the first takes.
        bound = {"connect_timeout": 2.0, "read_timeout": 2.0} if request.param is swallowed_answer else {}
        with stage.client(**bound) as client:
            with client.reserve(Amount.tokens(100), ACTION) as guard:
                stage.settlement = guard.commit(Amount.tokens(42))
        yield stage


def test_settlement_occurs_at_most_once(played):
    assert played.spent() == 42
    (row,) = played.reservations().values()
    assert (row.status, row.committed) == ("COMMITTED", Amount.tokens(42))
    assert played.settlement.status is SettlementStatus.COMMITTED
    assert played.settlement.charged == Amount.tokens(42)


def test_retry_uses_original_idempotency_key(played):
    first, second = played.sent("/commit")
    assert key_of(first) == key_of(second)
    assert first.body == second.body


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.settlements()) == ["commit", "commit same key"]
    assert played.sent("/release") == []
    assert played.files() == []
