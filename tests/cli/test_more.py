"""What is made of that which an authority tells beside the protocol, whatever it is."""

from __future__ import annotations

import json

import pytest
from peers import Peer, answer, client_of, refusal

from cycles_lite import ApiError, Balance, ResponseError, SignedAmount, Unit
from cycles_lite.cli.more import Denial, ask
from cycles_lite.local.extension import MOST_PERIODS
from cycles_lite.local.periods import ClosedPeriod

PERIOD = {"scope": "tenant:acme", "unit": "TOKENS", "start_ms": 0, "end_ms": 1, "allocated": 9, "spent": 5, "debt": 0}
TOLD = {
    "periods": [PERIOD],
    "running": [{"scope": "tenant:acme", "unit": "TOKENS", "end_ms": 3_600_000}],
    "states": [{"scope": "tenant:acme", "unit": "TOKENS", "status": "FROZEN"}],
    "has_more": False,
}


def asked(answered, has_told=False):
    """What is made of an answer, for acme's balance."""
    balance = Balance("tenant:acme", "tenant:acme", SignedAmount(Unit.TOKENS, 9))
    with Peer(answered) as peer, client_of(peer, retry_enabled=False) as client:
        told = ask(client, "acme", [balance], has_told)
        assert peer.requests[0].target == "/v1/budgets/periods?tenant=acme"
    return told


def test_what_an_authority_tells_beside_the_protocol():
    others = [{**PERIOD, "scope": "tenant:acme/agent:bot"}, {**PERIOD, "unit": "CREDITS"}]
    denials = [
        {"request_id": "r1", "age_ms": 5, "scope": "tenant:acme", "unit": "TOKENS", "requested": 7, "remaining": 4},
        {"request_id": "r2", "age_ms": 4},
        {"request_id": "r3", "age_ms": 3, "scope": "tenant:acme/agent:bot", "unit": "TOKENS", "requested": 7},
    ]
    told = asked(answer({**TOLD, "periods": [PERIOD, *others], "denials": denials, "new": 1}))
    assert list(told.notes) == list(told.closed) == [("tenant:acme", "TOKENS")]
    assert told.notes["tenant:acme", "TOKENS"].startswith("FROZEN, until 1970-01-01 ")
    assert told.closed["tenant:acme", "TOKENS"] == [ClosedPeriod(**PERIOD)]
    assert told.denials == [Denial("r1", 5, "7 tokens", "tenant:acme"), Denial("r2", 4, "", "")]


@pytest.mark.parametrize(
    "answered",
    [
        refusal("NOT_FOUND", 404),
        refusal("FORBIDDEN", 403),
        answer({}),
        answer({**TOLD, "periods": [1]}),
        answer({**TOLD, "periods": None}),
        answer({**TOLD, "running": [{"scope": "x"}]}),
        answer({**TOLD, "states": [{**PERIOD, "end_ms": None}], "running": [{**PERIOD, "end_ms": None}]}),
        answer(body=json.dumps(TOLD).replace("3600000", "1e999").encode()),
        answer({**TOLD, "periods": [{**PERIOD, "spent": "5"}]}),
        answer([TOLD]),
        refusal("INTERNAL_ERROR", 500),
        answer(body=b"<html>"),
    ],
)
def test_an_authority_that_tells_nothing_or_something_else(answered):
    assert asked(answered) is None


@pytest.mark.parametrize("answered", [refusal("INTERNAL_ERROR", 500), refusal("X", 429), answer(body=b"<")])
def test_one_that_has_told_something_and_fails_is_trouble(answered):
    with pytest.raises((ApiError, ResponseError)):
        asked(answered, has_told=True)


def test_whatever_it_tells_there_is_a_bound_and_no_denial_is_to_come():
    denials = [{"request_id": "r1", "age_ms": -(10**15), "scope": "tenant:acme"}]
    told = asked(answer({**TOLD, "periods": [PERIOD] * 500, "denials": denials}))
    assert len(told.closed["tenant:acme", "TOKENS"]) == MOST_PERIODS
    assert told.denials == [Denial("r1", 0, "", "tenant:acme")]
