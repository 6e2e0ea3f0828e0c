"""The protocol over the ledger: validation, tenancy, headers, failures."""

from __future__ import annotations

import json
import logging
import re

import pytest

from cycles_lite.errors import ConfigError, TransportError, TransportTimeout
from cycles_lite.local import Authority, rules
from cycles_lite.local.authority import ANYONE, Caller
from cycles_lite.local.messages import error_answer, new_answer
from cycles_lite.protocol.values import Amount

from . import document
from .helpers import ABSENT, ACME, OWNER, Bench, request, tokens


def test_answers_are_held_against_the_document():
    """Every answer in these tests is checked against the protocol's schemas, where the document is at hand."""
    if not document.is_there():
        pytest.skip("the protocol's document, PyYAML or jsonschema is not here: answers are not held against schemas")


def without(body, *names):
    return {name: value for name, value in body.items() if name not in names}


RESERVE = request(100, None, idempotency_key="k")

BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b'"x"',
    b'{"a": NaN}',
    b"[" * 100_000,
    b"{} {}",
    without(RESERVE, "idempotency_key"),
    without(RESERVE, "subject"),
    without(RESERVE, "action"),
    without(RESERVE, "estimate"),
    {**RESERVE, "idempotency_key": None},
    {**RESERVE, "idempotency_key": ""},
    {**RESERVE, "idempotency_key": "x" * 257},
    {**RESERVE, "idempotency_key": 5},
    {**RESERVE, "idempotency_key": "\ud800"},
    {**RESERVE, "unknown": 1},
    {**RESERVE, "subject": {}},
    {**RESERVE, "subject": {"dimensions": {"a": "b"}}},
    {**RESERVE, "subject": {"tenant": "acme", "team": "x"}},
    {**RESERVE, "subject": {"tenant": "acme", "agent": ""}},
    {**RESERVE, "subject": {"tenant": "acme", "agent": "a b"}},
    {**RESERVE, "subject": {"tenant": "acme", "agent": "a/b"}},
    {**RESERVE, "subject": {"tenant": "acme", "agent": "a:b"}},
    {**RESERVE, "subject": {"tenant": "acme", "agent": "x" * 129}},
    {**RESERVE, "subject": {"tenant": "acme", "dimensions": {"a": 1}}},
    {**RESERVE, "subject": {"tenant": "acme", "dimensions": {str(n): "x" for n in range(17)}}},
    {**RESERVE, "subject": "acme"},
    {**RESERVE, "action": {"kind": "k"}},
    {**RESERVE, "action": {"kind": " ", "name": "n"}},
    {**RESERVE, "action": {"kind": "k", "name": "\u3000"}},
    {**RESERVE, "action": {"kind": "k" * 65, "name": "n"}},
    {**RESERVE, "action": {"kind": "k", "name": "n" * 257}},
    {**RESERVE, "action": {"kind": "k", "name": "n", "tags": ["t"] * 11}},
    {**RESERVE, "action": {"kind": "k", "name": "n", "tags": "t"}},
    {**RESERVE, "estimate": tokens(-1)},
    {**RESERVE, "estimate": tokens(1.5)},
    {**RESERVE, "estimate": tokens(1.0)},
    {**RESERVE, "estimate": tokens("100")},
    {**RESERVE, "estimate": tokens(True)},
    {**RESERVE, "estimate": tokens(None)},
    {**RESERVE, "estimate": tokens(2**63)},
    {**RESERVE, "estimate": {"unit": "EUROS", "amount": 1}},
    {**RESERVE, "estimate": {"unit": "tokens", "amount": 1}},
    {**RESERVE, "estimate": {"amount": 1}},
    {**RESERVE, "estimate": {"unit": "TOKENS", "amount": 1, "x": 1}},
    {**RESERVE, "ttl_ms": 999},
    {**RESERVE, "ttl_ms": 86_400_001},
    {**RESERVE, "ttl_ms": "60000"},
    {**RESERVE, "grace_period_ms": -1},
    {**RESERVE, "grace_period_ms": 60_001},
    {**RESERVE, "overage_policy": "MAYBE"},
    {**RESERVE, "dry_run": "true"},
    {**RESERVE, "dry_run": 1},
    {**RESERVE, "metadata": []},
    {**RESERVE, "metadata": "x"},
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bad_bodies(bench, body):
    """What the protocol does not allow is a 400, whoever's tenant it names."""
    answer = bench.call("create_reservation", body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.data["message"]
    assert bench.listed() == []


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("decide", {"estimate": ABSENT}),
        ("decide", {"dry_run": True}),
        ("event", {"actual": ABSENT}),
        ("event", {"estimate": tokens(1)}),
        ("event", {"client_time_ms": -1}),
        ("event", {"metrics": {"tokens_input": -1}}),
        ("event", {"metrics": {"unknown": 1}}),
        ("event", {"action": {"kind": "k", "name": " "}}),
        ("event", {"subject": {"tenant": "acme", "app": "ü"}}),
    ],
)
def test_bad_bodies_elsewhere(bench, operation, fields):
    """The same checks where a subject is named."""
    body = {**RESERVE, **({} if operation == "decide" else {"actual": tokens(1), "estimate": ABSENT}), **fields}
    body = {name: value for name, value in body.items() if value is not ABSENT}
    answer = bench.call({"event": "create_event"}.get(operation, operation), body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("commit_reservation", {"idempotency_key": "k"}),
        ("commit_reservation", {"actual": tokens(1)}),
        ("commit_reservation", {"idempotency_key": "k", "actual": tokens(1.5)}),
        ("commit_reservation", {"idempotency_key": "k", "actual": tokens(1), "metrics": {"model_version": "x" * 129}}),
        ("release_reservation", {}),
        ("release_reservation", {"idempotency_key": "k", "reason": "x" * 257}),
        ("release_reservation", {"idempotency_key": "k", "why": "x"}),
        ("extend_reservation", {"idempotency_key": "k"}),
        ("extend_reservation", {"idempotency_key": "k", "extend_by_ms": 0}),
        ("extend_reservation", {"idempotency_key": "k", "extend_by_ms": 86_400_001}),
    ],
)
def test_bad_bodies_come_before_404(bench, operation, body):
    """A body is checked before anybody looks for the reservation, and before its owner."""
    made = bench.reserve(100)
    for id, caller in (("rsv_x", ACME), (made.id, Caller("other")), (made.id, ACME)):
        answer = bench.call(operation, body, id, caller=caller)
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        {1: 2},
        {None: 1},
        b"x",
        object,
        {"a": [{"b": float("nan")}]},
        "\ud800",
        {"\ud800": 1},
        10**700,
    ],
    ids=repr,
)
def test_what_is_no_json_is_refused_in_process_too(bench, value):
    """No encoder looks at a request in this process, so the checks of the fields must refuse what it would."""
    for metadata in ({"a": value}, {"deep": [[value]]}):
        for operation, id in (("reserve", ()), ("event", ()), ("decide", ()), ("commit", ("rsv_x",))):
            answer = getattr(bench, operation)(*id, 1, metadata=metadata)
            assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert bench.listed() == []


def test_what_a_program_changes_afterwards_changes_nothing(bench):
    """Requests and answers in process share no object with the ledger, or with one another."""
    body = {**RESERVE, "metadata": {"list": [1], "map": {"a": 1}}, "action": {"kind": "k", "name": "n", "tags": ["t"]}}
    body["estimate"] = tokens(100)
    made = bench.call("create_reservation", body)
    before = json.loads(json.dumps(made.data))
    body["metadata"]["list"].append(2)
    body["metadata"]["map"]["b"] = float("nan")
    body["action"]["tags"].append("u")
    body["estimate"]["amount"] = 1
    shown = bench.get(made.id).data
    assert shown["metadata"] == {"list": [1], "map": {"a": 1}}
    assert (shown["action"]["tags"], shown["reserved"]) == (["t"], tokens(100))
    shown["metadata"]["list"].append(2)
    made.data["affected_scopes"].append("x")
    made.data["balances"][0]["reserved"]["amount"] = 0
    assert bench.get(made.id).data["metadata"] == {"list": [1], "map": {"a": 1}}
    body["metadata"], body["action"]["tags"] = {"list": [1], "map": {"a": 1}}, ["t"]
    body["estimate"] = tokens(100)
    assert bench.call("create_reservation", body).data == before


def test_null_is_absent(bench):
    """A field that is null might as well not be there."""
    body = {
        **RESERVE,
        "ttl_ms": None,
        "grace_period_ms": None,
        "overage_policy": None,
        "dry_run": None,
        "metadata": None,
        "subject": {"tenant": "acme", "agent": None, "dimensions": None},
        "action": {"kind": "k", "name": "n", "tags": None},
    }
    assert bench.call("create_reservation", body).status == 200
    commit = {"idempotency_key": "k", "actual": tokens(1), "metrics": {"custom": None}, "metadata": None}
    assert bench.call("commit_reservation", commit, bench.listed()[0]).status == 200


def test_dimensions_and_tags_come_back(bench):
    """What the ledger does not use is kept."""
    subject = {"tenant": "acme", "agent": "Bot", "dimensions": {"team": "x", "é": ""}}
    action = {"kind": "k", "name": "n", "tags": ["a", "b"]}
    made = bench.reserve(1, subject, action=action)
    shown = bench.get(made.id).data
    assert (shown["subject"], shown["action"]) == (subject, action)


def test_header_must_match(bench):
    """The key in the header, where there is one, is the body's; this too comes before 404 and 403."""
    assert bench.call("create_reservation", RESERVE, headers={"X-Idempotency-Key": "k"}).status == 200
    assert bench.call("create_reservation", RESERVE, headers={"x-idempotency-key": "k"}).status == 200
    other = {"X-IDEMPOTENCY-KEY": "other"}
    commit = {"idempotency_key": "k", "actual": tokens(1)}
    for answer in (
        bench.call("create_reservation", RESERVE, headers=other),
        bench.call("create_reservation", RESERVE, headers={"X-Idempotency-Key": ""}),
        bench.call("create_reservation", RESERVE, headers=other, caller=Caller("other")),
        bench.call("commit_reservation", commit, "rsv_x", headers=other),
    ):
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("operation", ["reserve", "decide", "event"])
def test_subject_of_another_tenant(bench, operation):
    """A subject of another tenant is a 403, also one whose case differs."""
    for tenant in ("other", "ACME", "Acme", "ac", "a_c"):
        answer = getattr(bench, operation)(1, {"tenant": tenant})
        assert (answer.status, answer.error) == (403, "FORBIDDEN")
    bad = getattr(bench, operation)(1, {"tenant": "a b"})
    assert (bad.status, bad.error) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("operation", ["reserve", "decide", "event"])
def test_subject_of_no_tenant_at_all(bench, operation):
    """Without a caller's tenant the subject's counts, and it must be able to own something."""
    assert getattr(bench, operation)(1, caller=OWNER).status in (200, 201)
    for tenant in ("ACME", "ac", "a_c"):
        answer = getattr(bench, operation)(1, {"tenant": tenant}, caller=OWNER)
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    configured = getattr(bench, operation)(1, {"tenant": "ACME"}, caller=Caller("ACME"))
    assert (configured.status, configured.error) == (400, "INVALID_REQUEST")


def test_subject_without_a_tenant(bench):
    """Scopes are of what the subject names alone, and no budget is outside a tenant."""
    bench.budget("tenant:acme/agent:bot", 5)
    for caller in (ACME, OWNER):
        answer = bench.reserve(1, {"agent": "bot"}, caller=caller)
        assert (answer.status, answer.error) == (404, "NOT_FOUND")
        assert bench.decide(1, {"agent": "bot"}, caller=caller).data["affected_scopes"] == ["agent:bot"]


def test_owner_of_the_file(bench):
    """With no tenant of its own, a caller acts on any reservation for the tenant that it belongs to."""
    made = bench.reserve(100, caller=OWNER)
    assert bench.extend(made.id, caller=OWNER).status == 200
    assert bench.get(made.id, caller=OWNER).status == 200
    assert bench.commit(made.id, caller=OWNER).status == 200
    assert bench.get(made.id, caller=ACME).status == 200


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"Traceparent": f"00-{TRACE}-00f067aa0ba902b7-00", "X-Cycles-Trace-Id": OTHER}, TRACE),
        ({"X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"traceparent": f"01-{TRACE}-00f067aa0ba902b7-01", "X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01", "X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01", "X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"traceparent": f"00-{TRACE.upper()}-00f067aa0ba902b7-01", "X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01-x", "X-Cycles-Trace-Id": OTHER}, OTHER),
        ({"X-Cycles-Trace-Id": "0" * 32}, None),
        ({"X-Cycles-Trace-Id": OTHER + "\n"}, None),
        ({"X-Cycles-Trace-Id": OTHER.upper()}, None),
        ({}, None),
    ],
)
def test_correlation(bench, headers, trace):
    """The trace is the caller's where it names one, else new; the request's id is always new."""
    answers = [bench.reserve(headers=headers), bench.reserve(9999, headers=headers)]
    for answer in answers:
        told = answer.headers["x-cycles-trace-id"]
        assert told == trace if trace else re.match(r"[0-9a-f]{32}\Z", told)
        assert told != "0" * 32
    assert answers[0].headers["x-request-id"] != answers[1].headers["x-request-id"]
    assert trace or answers[0].headers["x-cycles-trace-id"] != answers[1].headers["x-cycles-trace-id"]


def test_headers(bench):
    """What every answer carries, refusals too."""
    for answer in (bench.reserve(1), bench.reserve(9999), bench.get("x"), bench.balances()):
        assert answer.headers["x-cycles-tenant"] == "acme"
        assert answer.headers["x-ratelimit-remaining"] == "-1"
        assert answer.headers["x-ratelimit-reset"] == "0"
        assert all(name == name.lower() for name in answer.headers)
    assert bench.reserve(1, caller=OWNER).headers["x-cycles-tenant"] == "acme"
    assert "x-cycles-tenant" not in bench.get("x", caller=OWNER).headers


def test_answers_are_compact_json(bench):
    """Bodies have no blanks, and are ASCII."""
    from cycles_lite.protocol import wire

    call = wire.Call(wire.CREATE_RESERVATION, None, {}, RESERVE, {}, None, 0.0, 0.0)
    answer = bench.authority.answer(call)
    assert b'":"' in answer.body
    assert b" " not in answer.body


def test_evidence(bench):
    """Nothing is signed here: a 404, and a 400 for an id that is none."""
    for caller in (ANYONE, ACME, Caller(admin=True)):
        answer = bench.call("get_evidence", id="0" * 64, caller=caller)
        assert (answer.status, answer.error) == (404, "NOT_FOUND")
        answer = bench.call("get_evidence_keys", caller=caller)
        assert (answer.status, answer.error) == (404, "NOT_FOUND")
        for id in ("0" * 63, "G" * 64, "A" * 64, "", None):
            assert bench.call("get_evidence", id=id, caller=caller).error == "INVALID_REQUEST"


def test_a_crash_of_ours(bench, monkeypatch, caplog):
    """It is a 500, logged with its traceback; nothing was written, and nothing of it is told."""

    def crash(*arguments):
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as broken:
        broken.setattr(rules, "balances", crash)
        with caplog.at_level(logging.ERROR, "cycles_lite"):
            answer = bench.reserve(100)
    assert (answer.status, answer.error) == (500, "INTERNAL_ERROR")
    assert "secret" not in json.dumps(answer.data)
    assert "ZeroDivisionError" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text
    assert bench.amounts() == (1000, 0, 0, 0, False)


def test_a_lock_not_had_in_time(url):
    """A call waits no longer than its timeouts together, and no longer than the authority; then it raises."""
    with Bench(url, timeout=0.2) as bench, Bench(url) as other:
        bench.budget()
        with other.authority._ledger.writing():
            with pytest.raises(TransportTimeout, match="nothing was written"):
                bench.reserve(1)
            assert bench.balances().status == 200
        assert bench.reserve(1).status == 200


def test_a_file_that_is_gone(url, path):
    """What cannot be used raises, in place of an answer."""
    import os

    with Bench(url) as bench:
        bench.budget()
        bench.authority.shutdown()
        os.remove(path)
        with pytest.raises(TransportError):
            bench.reserve(1)


def test_construction(url, path, tmp_path, monkeypatch):
    """URL and repr name the file from anywhere; a client may insist that it is there."""
    with pytest.raises(ConfigError, match="budget set"):
        Authority(url, create=False)
    monkeypatch.chdir(tmp_path)
    with Authority("sqlite:budgets.db?synchronous=full") as authority:
        assert authority.url == url + "?synchronous=full"
        assert repr(authority) == f"<Authority {authority.url}>"
        authority.set_budget("tenant:acme", Amount.tokens(1))
    with Authority(url, create=False) as again:
        assert [one.allocated for one in again.budgets()] == [1]


def test_answers_beside_the_protocol():
    """The server's own answers carry the same headers."""
    answer = error_answer(405, "INVALID_REQUEST", "no", {"X-Cycles-Trace-Id": TRACE})
    assert (answer.status, answer.headers["x-cycles-trace-id"]) == (405, TRACE)
    assert answer.data["error"] == "INVALID_REQUEST"
    answer = new_answer(201, {"a": 1}, {}, "acme")
    assert (answer.status, answer.headers["x-cycles-tenant"], answer.body) == (201, "acme", b'{"a":1}')
