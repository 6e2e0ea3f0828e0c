"""What the authority takes though this package's client would not send it (the reference takes it too)."""

from __future__ import annotations

import pytest

CONTROLS = "a\x00b\x1f\x7f\x85\n"


def nested(depth, leaf=1):
    """An object so many levels deep."""
    for _ in range(depth):
        leaf = {"x": leaf} if depth % 2 else [leaf]
    return {"x": leaf}


TAKEN = {
    "control characters in the key": {"idempotency_key": CONTROLS},
    "a key of control characters": {"idempotency_key": "\x00"},
    "control characters in kind and name": {"action": {"kind": CONTROLS, "name": CONTROLS}},
    "control characters in tags, and empty ones": {"action": {"kind": "k", "name": "n", "tags": [CONTROLS, "", ""]}},
    "labels": {"subject": {"tenant": "acme", "dimensions": {"": "", CONTROLS: CONTROLS}}},
    "metadata 70 deep": {"metadata": nested(70)},
    "metadata 190 deep": {"metadata": nested(189)},
    "control characters in metadata": {"metadata": {CONTROLS: CONTROLS}},
    "other scripts": {"idempotency_key": "\u9375\U0001f511", "action": {"kind": "\u00e9", "name": "\u2028x"}},
}


@pytest.mark.parametrize("fields", TAKEN.values(), ids=list(TAKEN))
def test_what_is_taken(bench, fields):
    """It is stored, replayed, decided, committed and shown as it came."""
    fields = dict(fields)
    action = {"action": fields.pop("action")} if "action" in fields else {}
    subject = fields.pop("subject", None)
    made = bench.reserve(10, subject, **{**action, **fields})
    assert made.status == 200
    if "idempotency_key" in fields:
        assert bench.reserve(10, subject, **action, **fields).data["reservation_id"] == made.id
        assert bench.reserve(11, subject, **action, **fields).error == "IDEMPOTENCY_MISMATCH"
    assert bench.decide(10, subject, **action, **fields).status == 200
    assert bench.event(10, subject, **action, **fields).status == 201
    shown = bench.get(made.id).data
    assert shown.get("metadata") == fields.get("metadata")
    assert shown["idempotency_key"] == fields.get("idempotency_key", shown["idempotency_key"])
    assert shown["action"] == action.get("action", shown["action"])
    assert shown["subject"] == (subject or {"tenant": "acme"})
    committed = {name: value for name, value in fields.items() if name in ("idempotency_key", "metadata")}
    assert bench.commit(made.id, 10, **committed).status == 200
    (row,) = bench.list(status="COMMITTED", include="committed_metadata").data["reservations"]
    assert row.get("committed_metadata") == fields.get("metadata")


REFUSED = {
    "an empty key": {"idempotency_key": ""},
    "an endless key": {"idempotency_key": "k" * 257},
    "half a pair in the key": {"idempotency_key": "\ud800"},
    "half a pair in a tag": {"action": {"kind": "k", "name": "n", "tags": ["\udfff"]}},
    "a long tag": {"action": {"kind": "k", "name": "n", "tags": ["t" * 65]}},
    "eleven tags": {"action": {"kind": "k", "name": "n", "tags": ["t"] * 11}},
    "no tags": {"action": {"kind": "k", "name": "n", "tags": {}}},
    "a blank kind": {"action": {"kind": " \n", "name": "n"}},
    "an empty name": {"action": {"kind": "k", "name": ""}},
    "half a pair in a label's name": {"subject": {"tenant": "acme", "dimensions": {"\ud800": ""}}},
    "half a pair in a label": {"subject": {"tenant": "acme", "dimensions": {"a": "\ud800"}}},
    "a label of a number": {"subject": {"tenant": "acme", "dimensions": {"a": 1}}},
    "a long label": {"subject": {"tenant": "acme", "dimensions": {"a": "x" * 257}}},
    "17 labels": {"subject": {"tenant": "acme", "dimensions": {str(n): "" for n in range(17)}}},
    "labels in a list": {"subject": {"tenant": "acme", "dimensions": [""]}},
    "bottomless metadata": {"metadata": nested(300)},
    "half a pair in metadata": {"metadata": {"a": ["\ud800"]}},
    "half a pair in a name in metadata": {"metadata": {"a": {"\ud800": 1}}},
    "a huge number in metadata": {"metadata": {"a": 10**630}},
    "metadata in a list": {"metadata": [1]},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=list(REFUSED))
def test_what_is_refused_all_the_same(bench, fields):
    fields = dict(fields)
    subject = fields.pop("subject", None)
    for operate in (bench.reserve, bench.decide, bench.event):
        answer = operate(10, subject, **fields)
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_metadata_of_infinite_numbers_is_refused(bench):
    made = bench.reserve(1)
    body = b'{"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 1}, "metadata": {"x": [1e999]}}'
    assert bench.call("commit_reservation", body, made.id).error == "INVALID_REQUEST"
