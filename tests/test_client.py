"""The client's operations against scripted servers: what travels, what counts as an answer, what is told of it."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from peers import (
    ACTION,
    KEY,
    FakeTransport,
    Peer,
    allowed,
    answer,
    applied,
    balance,
    chunk,
    chunked,
    client_of,
    close,
    commit_request,
    committed,
    config_of,
    create_request,
    ends_within,
    extended,
    head,
    refusal,
    released,
    replied,
    summary,
    then,
    tokens,
)
from samples import Proxy

from cycles_lite import (
    Amount,
    ApiError,
    AuthenticationError,
    BalanceRequest,
    BudgetDenied,
    BudgetExceededError,
    ConfigError,
    CyclesClient,
    CyclesConfig,
    CyclesError,
    Decision,
    DecisionRequest,
    EventCreateRequest,
    ForbiddenError,
    IdempotencyMismatchError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    ReleaseRequest,
    ReservationExpiredError,
    ReservationExtendRequest,
    ReservationFinalizedError,
    ReservationListRequest,
    ResponseError,
    ServerError,
    SettlementRejectedError,
    Subject,
    TransportError,
    UnitMismatchError,
    ValidationError,
    __version__,
)

ONCE = {"retry_enabled": False, "max_connections": 1}

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

EVIDENCE_ID = "0123456789abcdef" * 4


def event_request(**changes):
    return EventCreateRequest(**{"action": ACTION, "actual": Amount.tokens(7), **changes})


def decision_request(**changes):
    return DecisionRequest(**{"action": ACTION, "estimate": Amount.tokens(7), **changes})


def operation(name):
    """The operation on a client, with a request of its own at each call."""
    return {
        "create": lambda client: client.create_reservation(create_request()),
        "commit": lambda client: client.commit_reservation("rsv_1", commit_request()),
        "release": lambda client: client.release_reservation("rsv_1", ReleaseRequest()),
        "extend": lambda client: client.extend_reservation("rsv_1", ReservationExtendRequest(extend_by_ms=1000)),
        "decide": lambda client: client.decide(decision_request()),
        "event": lambda client: client.create_event(event_request()),
        "get": lambda client: client.get_reservation("rsv_1"),
        "list": lambda client: client.list_reservations(),
        "balances": lambda client: client.get_balances(),
        "evidence": lambda client: client.get_evidence(EVIDENCE_ID),
        "keys": lambda client: client.get_evidence_keys(),
    }[name]


ENVELOPE = {
    "schema_version": "1",
    "artifact_type": "reserve",
    "server_id": "s",
    "signer_did": "did:key:z",
    "issued_at_ms": 1,
    "payload": {},
    "evidence_id": EVIDENCE_ID,
    "signature": "00",
}

#: The operations, what each sends its request as, and a good answer.
OPERATIONS = {
    "create": ("POST", "/v1/reservations", 200, allowed()),
    "commit": ("POST", "/v1/reservations/rsv_1/commit", 200, committed()),
    "release": ("POST", "/v1/reservations/rsv_1/release", 200, released()),
    "extend": ("POST", "/v1/reservations/rsv_1/extend", 200, extended()),
    "decide": ("POST", "/v1/decide", 200, {"decision": "ALLOW"}),
    "event": ("POST", "/v1/events", 201, applied()),
    "get": ("GET", "/v1/reservations/rsv_1", 200, summary()),
    "list": ("GET", "/v1/reservations?tenant=acme", 200, {"reservations": [summary()]}),
    "balances": ("GET", "/v1/balances?tenant=acme", 200, {"balances": [balance()]}),
    "evidence": ("GET", "/v1/evidence/" + EVIDENCE_ID, 200, ENVELOPE),
    "keys": ("GET", "/v1/.well-known/cycles-jwks.json", 200, {"keys": []}),
}

WRITES = [name for name in OPERATIONS if OPERATIONS[name][0] == "POST"]
SETTLEMENTS = ["commit", "release", "extend", "event"]


# ---- What travels ----


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_sends_its_method_path_and_headers(name):
    method, target, status, data = OPERATIONS[name]
    with Peer(answer(data, status)) as peer, client_of(peer) as client:
        response = operation(name)(client)
    (request,) = peer.requests
    assert (request.method, request.target) == (method, target)
    assert request.header("Host") == f"127.0.0.1:{peer.port}"
    assert request.header("Accept") == "application/json"
    assert request.header("User-Agent").startswith(f"cycles-lite/{__version__} Python/3.")
    assert request.header("Accept-Encoding") in (None, "identity")
    assert request.header("traceparent") is None
    assert request.header("X-Cycles-API-Key") == (None if name in ("evidence", "keys") else KEY)
    if method == "POST":
        assert request.header("Content-Type") == "application/json"
        assert request.header("X-Idempotency-Key") == request.json["idempotency_key"]
    else:
        assert request.body == b""
        assert request.header("Content-Type") is None
        assert request.header("X-Idempotency-Key") is None
    assert json.loads(response.body.decode()) == data


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("run-42", True),
        ("a b", True),
        ("~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./", True),
        (" a", False),
        ("a ", False),
        ("schl\u00fcssel", False),
        ("\U0001f511", False),
        ("a\u2028b", False),
    ],
)
def test_the_idempotency_keys_header_equals_the_bodys_or_is_left_out(key, sent):
    with Peer(answer(allowed())) as peer, client_of(peer) as client:
        client.create_reservation(create_request(idempotency_key=key))
    (request,) = peer.requests
    assert request.json["idempotency_key"] == key
    assert request.header("X-Idempotency-Key") == (key if sent else None)


@pytest.mark.parametrize("bad", ["", ".", "..", "a\nb", "a\r\nX-Evil: 1", "\x00", "\x7f", "a\x85", "a" * 129, None, 7])
@pytest.mark.parametrize("name", ["get", "commit", "release", "extend"])
def test_an_id_that_is_none_is_refused_before_sending(name, bad):
    transport = FakeTransport(replied({}))
    client = client_of("http://127.0.0.1:1", transport=transport)
    with pytest.raises(ValidationError):
        {
            "get": lambda: client.get_reservation(bad),
            "commit": lambda: client.commit_reservation(bad, commit_request()),
            "release": lambda: client.release_reservation(bad, ReleaseRequest()),
            "extend": lambda: client.extend_reservation(bad, ReservationExtendRequest(extend_by_ms=1)),
        }[name]()
    assert transport.calls == []


@pytest.mark.parametrize(
    "bad", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" * 21 + "x", "0" * 64 + "\n", None, 7]
)
def test_an_evidence_id_that_is_none_is_refused_before_sending(bad):
    transport = FakeTransport(replied({}))
    with pytest.raises(ValidationError):
        client_of("http://127.0.0.1:1", transport=transport).get_evidence(bad)
    assert transport.calls == []


@pytest.mark.parametrize("name", WRITES)
def test_another_operations_request_is_refused_before_sending(name):
    transport = FakeTransport(replied({}))
    client = client_of("http://127.0.0.1:1", transport=transport)
    method = {
        "create": client.create_reservation,
        "decide": client.decide,
        "event": client.create_event,
        "commit": lambda request: client.commit_reservation("rsv_1", request),
        "release": lambda request: client.release_reservation("rsv_1", request),
        "extend": lambda request: client.extend_reservation("rsv_1", request),
    }[name]
    wrong = commit_request() if name != "commit" else create_request()
    for bad in (wrong, None, {}, "request", ReservationListRequest()):
        with pytest.raises(ValidationError):
            method(bad)
    assert transport.calls == []


def test_filters_are_the_requests_fields_and_nothing_else():
    transport = FakeTransport(replied({"reservations": [], "balances": []}))
    client = client_of("http://127.0.0.1:1", transport=transport)
    with pytest.raises(ValidationError, match="colour"):
        client.list_reservations(colour="red")
    with pytest.raises(ValidationError):
        client.list_reservations(ReservationListRequest(), status="ACTIVE")
    with pytest.raises(ValidationError):
        client.list_reservations(BalanceRequest(tenant="acme"))
    with pytest.raises(ValidationError):
        client.get_balances(limit=201)
    assert transport.calls == []


def test_filters_travel_as_query_parameters():
    with Peer(answer({"reservations": []}), answer({"balances": []})) as peer, client_of(peer) as client:
        client.list_reservations(
            status="ACTIVE", from_="2026-01-01T00:00:00+01:00", include=("metadata", "evidence"), limit=5, agent="a&b=c"
        )
        client.get_balances(tenant="\u00fc b", include_children=True, cursor="a+/=")
    targets = [request.target.partition("?") for request in peer.requests]
    assert [(path, sorted(query.split("&"))) for path, _, query in targets] == [
        (
            "/v1/reservations",
            [
                "agent=a%26b%3Dc",
                "from=2026-01-01T00%3A00%3A00%2B01%3A00",
                "include=metadata%2Cevidence",
                "limit=5",
                "status=ACTIVE",
                "tenant=acme",
            ],
        ),
        ("/v1/balances", ["cursor=a%2B%2F%3D", "include_children=true", "tenant=%C3%BC+b"]),
    ]


# ---- Subjects ----


@pytest.mark.parametrize(
    ("defaults", "subject", "sent"),
    [
        ({"tenant": "acme"}, None, {"tenant": "acme"}),
        ({"tenant": "acme", "agent": "bot"}, Subject(agent="other"), {"tenant": "acme", "agent": "other"}),
        ({"tenant": "acme"}, Subject(tenant="rival"), {"tenant": "rival"}),
        ({}, Subject(workspace="dev"), {"workspace": "dev"}),
        (
            {"tenant": "acme", "app": "chat"},
            Subject(workflow="run", dimensions={"team": "red"}),
            {"tenant": "acme", "app": "chat", "workflow": "run", "dimensions": {"team": "red"}},
        ),
        (
            {level: "config-" + level for level in ("tenant", "workspace", "app", "workflow", "agent", "toolset")},
            Subject(app="request-app"),
            {
                "tenant": "config-tenant",
                "workspace": "config-workspace",
                "app": "request-app",
                "workflow": "config-workflow",
                "agent": "config-agent",
                "toolset": "config-toolset",
            },
        ),
    ],
)
@pytest.mark.parametrize("name", ["create", "decide", "event"])
def test_a_subject_is_merged_field_by_field(name, defaults, subject, sent):
    transport = FakeTransport(replied(OPERATIONS[name][3], OPERATIONS[name][2]))
    client = client_of("http://127.0.0.1:1", transport=transport, **{"tenant": None, **defaults})
    if name == "create":
        client.create_reservation(create_request(subject=subject))
    elif name == "decide":
        client.decide(decision_request(subject=subject))
    else:
        client.create_event(event_request(subject=subject))
    assert json.loads(transport.calls[0].body.decode())["subject"] == sent


@pytest.mark.parametrize("name", ["create", "decide", "event"])
def test_without_any_subject_nothing_is_sent(name):
    transport = FakeTransport(replied({}))
    with pytest.raises(ValidationError, match="subject"):
        operation(name)(client_of("http://127.0.0.1:1", transport=transport, tenant=None))
    assert transport.calls == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, **filters: client.get_balances(**filters).balances,
        lambda client, **filters: list(client.iter_balances(**filters)),
    ],
    ids=["one page", "all"],
)
def test_balances_of_nobody_are_not_asked_for(ask):
    """The authority refuses that, and here it is refused before sending."""
    transport = FakeTransport(replied({"balances": []}))
    client = client_of("http://127.0.0.1:1", transport=transport, tenant=None, agent="bot")
    with pytest.raises(ValidationError, match="tenant"):
        ask(client)
    with pytest.raises(ValidationError):
        ask(client, include_children=True, limit=5)
    assert transport.calls == []
    ask(client, agent="bot")
    ask(client.with_options(tenant="acme"))
    assert [dict(call.query) for call in transport.calls] == [{"agent": "bot"}, {"tenant": "acme"}]


# ---- What counts as an answer ----

HTML = b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"

UNUSABLE = {
    "HTML": answer(body=HTML),
    "nothing": answer(),
    "a blank": answer(body=b" "),
    "an array": answer([committed()]),
    "null": answer(body=b"null"),
    "a number": answer(body=b"42"),
    "a text": answer("COMMITTED"),
    "true": answer(body=b"true"),
    "an empty object": answer({}),
    "cut JSON": answer(body=b'{"status": "COMMITTED", "charged": {"unit": "TOKENS"'),
    "two objects": answer(body=json.dumps(committed()).encode() * 2),
    "single quotes": answer(body=b"{'status': 'COMMITTED'}"),
    "not UTF-8": answer(body=b'{"status": "\xff"}'),
    "UTF-16": answer(body=json.dumps(committed()).encode("utf-16")),
    "a byte order mark": answer(body=b"\xef\xbb\xbf" + json.dumps(committed()).encode()),
    "deep lists": answer(body=b"[" * 100_000),
    "deep objects": answer(body=b'{"a":' * 100_000),
    "deep and closed": answer(body=b'{"balances":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "compressed": answer(body=gzip.compress(json.dumps(committed()).encode()), headers=[("Content-Encoding", "gzip")]),
    "compressed chunks": chunked(gzip.compress(json.dumps(committed()).encode())).replace(
        b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1
    ),
    "NaN": answer(body=b'{"status": "COMMITTED", "charged": {"unit": "TOKENS", "amount": NaN}}'),
    "infinity": answer(body=b'{"status": "COMMITTED", "charged": {"unit": "TOKENS", "amount": -Infinity}}'),
    "a thousand digits": answer(body=b'{"charged": ' + b"9" * 100_000 + b"}"),
}


@pytest.mark.parametrize("name", ["create", "commit", "event", "get", "balances"])
def test_a_body_that_is_not_the_protocols_is_a_response_error(name):
    """Whatever it is; and the connection serves on."""
    status = OPERATIONS[name][2]
    answers = [body.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 %d OK" % status) for body in UNUSABLE.values()]
    good = answer(OPERATIONS[name][3], status)
    with Peer(*answers, good) as peer, client_of(peer, **ONCE) as client:
        for what in UNUSABLE:
            with pytest.raises(ResponseError) as failed:
                pytest.fail(f"{what}: {operation(name)(client)}")
            assert failed.value.status == status, what
            assert len(str(failed.value)) < 400, what
        operation(name)(client)
    assert peer.connections == 1


BAD_AMOUNTS = [
    None,
    {},
    [],
    "42",
    42,
    {"unit": "TOKENS"},
    {"amount": 42},
    {"unit": None, "amount": 42},
    {"unit": "TOKENS", "amount": None},
    {"unit": "EUR", "amount": 42},
    {"unit": "tokens", "amount": 42},
    {"unit": 1, "amount": 42},
    {"unit": ["TOKENS"], "amount": 42},
    {"unit": "TOKENS", "amount": 42.0},
    {"unit": "TOKENS", "amount": 1e300},
    {"unit": "TOKENS", "amount": "42"},
    {"unit": "TOKENS", "amount": True},
    {"unit": "TOKENS", "amount": -1},
    {"unit": "TOKENS", "amount": 2**63},
    {"unit": "TOKENS", "amount": [42]},
]

BAD_SETTLEMENTS = {
    "commit": [
        *[committed(charged=amount) for amount in BAD_AMOUNTS],
        *[committed(released=amount) for amount in BAD_AMOUNTS],
        {"status": "COMMITTED"},
        {"charged": tokens(42)},
        *[committed(status=word) for word in ("committed", "ACTIVE", "RELEASED", "APPLIED", "", None, True, 200, [])],
        committed(balances=None),
        committed(balances={}),
        committed(balances=[None]),
        committed(balances=[balance(remaining=None)]),
        committed(balances=[balance(spent=None)]),
        committed(balances=[balance(is_over_limit="no")]),
        committed(balances=[balance(is_over_limit=1)]),
        committed(cycles_evidence=None),
        committed(cycles_evidence="sha"),
    ],
    "release": [
        *[released(released=amount) for amount in BAD_AMOUNTS],
        {"status": "RELEASED"},
        *[released(status=word) for word in ("released", "COMMITTED", None)],
        released(balances=None),
    ],
    "extend": [
        *[extended(expires_at_ms=value) for value in (None, 1.5, "1", True, -1, 2**63)],
        *[extended(remaining_ttl_ms=value) for value in (None, 1.5, "1", False, -1)],
        *[extended(status=word) for word in ("EXPIRED", "active", None)],
        {"status": "ACTIVE"},
    ],
    "event": [
        *[applied(charged=amount) for amount in BAD_AMOUNTS],
        *[applied(event_id=value) for value in (None, 7, True, [])],
        *[applied(status=word) for word in ("COMMITTED", "applied", "PENDING", None)],
        {"status": "APPLIED"},
    ],
}


@pytest.mark.parametrize("name", SETTLEMENTS)
def test_a_settlement_that_is_not_proven_is_a_response_error(name):
    status = OPERATIONS[name][2]
    good = {**OPERATIONS[name][3], "a_newer_field": {"of": [1, None]}, "another": None}
    answers = [answer(data, status) for data in BAD_SETTLEMENTS[name]]
    with Peer(*answers, answer(good, status)) as peer, client_of(peer, **ONCE) as client:
        for data in BAD_SETTLEMENTS[name]:
            with pytest.raises(ResponseError) as failed:
                pytest.fail(f"{data}: {operation(name)(client)}")
            assert failed.value.is_retryable
        assert operation(name)(client).extra["a_newer_field"] == {"of": [1, None]}


BAD_ANSWERS = {
    "create": [
        {},
        allowed(decision=None),
        allowed(decision=True),
        allowed(affected_scopes=None),
        allowed(affected_scopes="tenant:acme"),
        allowed(affected_scopes=[1]),
        allowed(reservation_id=7),
        allowed(expires_at_ms="soon"),
        allowed(reserved={"unit": "TOKENS", "amount": 1.0}),
        allowed(caps=[]),
        allowed(caps={"max_tokens": "many"}),
    ],
    "get": [{}, summary(status=None), summary(subject="acme"), summary(created_at_ms=1.0), summary(action={})],
    "list": [{}, {"reservations": None}, {"reservations": {}}, {"reservations": [{}]}, {"reservations": ["rsv_1"]}],
    "balances": [{}, {"balances": None}, {"balances": [{}]}, {"balances": [balance(remaining=7)]}],
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_with_fields_of_other_types_is_a_response_error(name):
    answers = [answer(data) for data in BAD_ANSWERS[name]]
    with Peer(*answers, answer(OPERATIONS[name][3])) as peer, client_of(peer, **ONCE) as client:
        for data in BAD_ANSWERS[name]:
            with pytest.raises(ResponseError):
                pytest.fail(f"{data}: {operation(name)(client)}")
        operation(name)(client)


@pytest.mark.parametrize("name", OPERATIONS)
def test_only_the_operations_own_status_is_success(name):
    _, _, due, data = OPERATIONS[name]
    others = [status for status in (200, 201, 202, 203, 206, 207, 226, 300, 399, 600, 999) if status != due]
    with Peer(*[answer(data, status) for status in others], answer(data, due)) as peer:
        with client_of(peer, **ONCE) as client:
            for status in others:
                with pytest.raises(ResponseError, match=str(status)) as failed:
                    operation(name)(client)
                assert failed.value.status == status
            operation(name)(client)


@pytest.mark.parametrize("status", [204, 205, 304])
def test_an_answer_without_a_body_is_a_response_error(status):
    with Peer(head(status, ("Content-Length", "0")), answer(committed())) as peer, client_of(peer, **ONCE) as client:
        with pytest.raises(ResponseError, match=str(status)):
            operation("commit")(client)
        operation("commit")(client)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ApiError),
        (401, AuthenticationError),
        (403, ForbiddenError),
        (404, ApiError),
        (405, ApiError),
        (407, ApiError),
        (409, ApiError),
        (410, ReservationExpiredError),
        (413, ApiError),
        (429, RateLimitedError),
        (451, ApiError),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (504, ServerError),
        (599, ServerError),
    ],
)
@pytest.mark.parametrize("body", [HTML, b"", b"null", b"[]", b'{"error": 7, "message": "m"}', b'{"message": "m"}'])
def test_a_proxys_page_is_known_by_its_status_alone(status, kind, body):
    for name in ("create", "commit", "get"):
        transport = FakeTransport(replied(status=status, body=body, x_request_id="req_7"))
        client = client_of("http://127.0.0.1:1", transport=transport, **ONCE)
        with pytest.raises(kind) as refused:
            operation(name)(client)
        assert type(refused.value) is kind
        assert (refused.value.status, refused.value.code) == (status, None)
        assert refused.value.request_id == "req_7"
        assert len(str(refused.value)) < 200


def test_a_proxys_pages_over_the_network():
    pages = [answer(body=HTML, status=status, headers=[("Content-Type", "text/html")]) for status in (502, 401, 404)]
    with Peer(*pages) as peer, client_of(peer, **ONCE) as client:
        for kind in (ServerError, AuthenticationError, ApiError):
            with pytest.raises(kind):
                operation("commit")(client)
    assert peer.connections == 1


# ---- What the authority refuses ----


@pytest.mark.parametrize(
    ("name", "code", "status", "kind"),
    [
        ("create", "BUDGET_EXCEEDED", 409, BudgetExceededError),
        ("decide", "BUDGET_EXCEEDED", 409, BudgetExceededError),
        ("commit", "BUDGET_EXCEEDED", 409, SettlementRejectedError),
        ("event", "TENANT_CLOSED", 409, SettlementRejectedError),
        ("commit", "RESERVATION_FINALIZED", 409, ReservationFinalizedError),
        ("commit", "RESERVATION_EXPIRED", 410, ReservationExpiredError),
        ("commit", "UNIT_MISMATCH", 400, UnitMismatchError),
        ("create", "IDEMPOTENCY_MISMATCH", 409, IdempotencyMismatchError),
        ("create", "INVALID_REQUEST", 400, InvalidRequestError),
        ("get", "NOT_FOUND", 404, NotFoundError),
        ("create", "SOMETHING_NEWER", 422, ApiError),
    ],
)
def test_a_refusal_is_sent_once_and_tells_everything(name, code, status, kind):
    told = refusal(
        code,
        status,
        "not today",
        [("X-Request-Id", "header-req"), ("X-Cycles-Trace-Id", "0af7651916cd43dd8448eb211c80319c")],
        details={"scope": "tenant:acme", "unit": "TOKENS", "requested": 100, "remaining": 7, "hint": "x"},
    )
    with Peer(told) as peer, client_of(peer) as client, pytest.raises(kind) as refused:
        operation(name)(client)
    error = refused.value
    assert type(error) is kind
    assert len(peer.requests) == 1
    assert (error.status, error.code, error.message) == (status, code, "not today")
    assert error.request_id == "req_1"  # the body wins
    assert error.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert error.details["hint"] == "x"
    for part in (code, str(status), "not today", "scope=tenant:acme", "requested=100", "remaining=7", "req_1"):
        assert part in str(error)
    assert isinstance(error, BudgetDenied) == (kind is BudgetExceededError)


@pytest.mark.parametrize(("name", "unit"), [("create", "TOKENS"), ("event", "TOKENS"), ("decide", "TOKENS")])
def test_a_404_says_which_unit_was_sent(name, unit):
    """A budget that exists in another unit is the usual reason."""
    with Peer(refusal("NOT_FOUND", 404, "Budget not found")) as peer, client_of(peer) as client:
        with pytest.raises(NotFoundError, match="unit sent: " + unit):
            operation(name)(client)
        with pytest.raises(NotFoundError) as other:
            operation("get")(client)
    assert "unit sent" not in str(other.value)


ERRORS = {
    "denied": ("create", refusal("BUDGET_EXCEEDED", 409, details={"scope": "s"}, retry_after_ms=1500)),
    "rejected": ("commit", refusal("BUDGET_EXCEEDED", 409)),
    "not found": ("event", refusal("NOT_FOUND", 404)),
    "throttled": ("create", refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "7")])),
    "failed": ("commit", answer(body=HTML, status=502, headers=[("X-Request-Id", "r")])),
    "unusable": ("commit", answer({}, headers=[("X-Request-Id", "r"), ("X-Cycles-Trace-Id", "t")])),
    "too large": ("commit", head(200, ("Content-Length", "99999999999"), ("X-Request-Id", "r"))),
    "cut": ("commit", then(answer(committed())[:-1], close)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_pickle_and_copy_with_all_that_they_tell(what):
    name, told = ERRORS[what]
    with Peer(told) as peer, client_of(peer, **ONCE) as client, pytest.raises(CyclesError) as failed:
        operation(name)(client)
    error = failed.value
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(made) is type(error)
        assert made.__dict__ == error.__dict__
        assert str(made) == str(error)
        assert made.is_retryable == error.is_retryable
    if what in ("failed", "unusable", "too large"):
        assert error.request_id == "r"


def test_responses_tell_what_the_headers_say():
    headers = [
        ("X-Request-Id", "req_9"),
        ("X-Cycles-Trace-Id", "0af7651916cd43dd8448eb211c80319c"),
        ("X-RateLimit-Remaining", "-1"),
        ("X-RateLimit-Reset", "0"),
    ]
    with Peer(answer(allowed(), headers=headers), answer(allowed())) as peer, client_of(peer) as client:
        told, silent = operation("create")(client), operation("create")(client)
    assert (told.request_id, told.trace_id) == ("req_9", "0af7651916cd43dd8448eb211c80319c")
    assert (told.rate_limit_remaining, told.rate_limit_reset) == (-1, 0)
    assert (silent.request_id, silent.rate_limit_remaining) == (None, None)


@pytest.mark.parametrize("name", ["create", "decide"])
@pytest.mark.parametrize("decision", ["DENY", "MAYBE"])
def test_an_answer_that_allows_nothing_is_returned(name, decision):
    data = {"decision": decision, "affected_scopes": ["tenant:acme"], "reason_code": "BUDGET_FROZEN"}
    with Peer(answer(data)) as peer, client_of(peer) as client:
        response = operation(name)(client)
    assert not response.is_allowed
    assert response.reason_code == "BUDGET_FROZEN"
    assert (response.decision is Decision.DENY) == (decision == "DENY")


# ---- Throttling and retries ----

THROTTLED = {
    "no hint": refusal("LIMIT_EXCEEDED", 429),
    "seconds": refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "0")]),
    "milliseconds in the body": refusal("LIMIT_EXCEEDED", 429, retry_after_ms=20),
    "milliseconds in the details": refusal("LIMIT_EXCEEDED", 429, details={"retry_after_ms": 20}),
    "a date": refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "Fri, 31 Dec 2999 23:59:59 GMT")]),
    "nonsense": refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "-1")], retry_after_ms="soon"),
    "a page": answer(body=HTML, status=429),
    "an endless number": refusal("LIMIT_EXCEEDED", 429, retry_after_ms=10**400),
}


@pytest.mark.parametrize("what", THROTTLED)
def test_a_throttled_read_waits_and_asks_again(what):
    with Peer(THROTTLED[what], answer(summary())) as peer, client_of(peer) as client:
        assert operation("get")(client).reservation_id == "rsv_1"
    assert len(peer.requests) == 2


@pytest.mark.parametrize("failure", [refusal("LIMIT_EXCEEDED", 429), answer(status=503), answer({}), close])
def test_a_read_gives_up_after_the_configured_attempts(failure):
    with Peer(failure) as peer, client_of(peer, retry_max_attempts=3) as client:
        with pytest.raises((RateLimitedError, ServerError, ResponseError, TransportError)):
            operation("get")(client)
    assert len(peer.requests) == 3


@pytest.mark.parametrize(
    "late",
    [
        refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "20")]),
        refusal("LIMIT_EXCEEDED", 429, retry_after_ms=51),
        refusal("INTERNAL_ERROR", 503, headers=[("Retry-After", "1")]),
    ],
)
def test_a_read_gives_up_when_it_is_to_wait_longer_than_it_may(late):
    with Peer(late) as peer, client_of(peer, retry_max_delay=0.05, retry_max_attempts=2) as client:
        with pytest.raises(ApiError) as failed:
            operation("get")(client)
    assert failed.value.retry_after > 0.05
    assert len(peer.requests) == 1


@pytest.mark.parametrize("name", WRITES)
def test_a_throttled_write_is_raised_at_once_and_says_how_long_to_wait(name):
    with Peer(refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "7")])) as peer, client_of(peer) as client:
        with pytest.raises(RateLimitedError) as throttled:
            operation(name)(client)
    assert throttled.value.retry_after == 7.0
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ([("Retry-After", "7")], {"retry_after_ms": 1500}, 1.5),
        ([("Retry-After", "7")], {"details": {"retry_after_ms": 250}}, 0.25),
        ([("Retry-After", "7")], {"retry_after_ms": True}, 7.0),
        ([("Retry-After", "7")], {"retry_after_ms": -1}, 7.0),
        ([("Retry-After", "7")], {"retry_after_ms": 1.5}, 7.0),
        ([("Retry-After", " 7 ")], {}, 7.0),
        ([("Retry-After", "7.5")], {}, None),
        ([("Retry-After", "+7")], {}, None),
        ([("Retry-After", "\u0667")], {}, None),
        ([("Retry-After", "Fri, 31 Dec 2027 23:59:59 GMT")], {}, None),
        ([("Retry-After", "7"), ("Retry-After", "8")], {}, None),
        ([("Retry-After", "9" * 400)], {}, None),
        ([], {"retry_after_ms": 0}, 0.0),
    ],
)
def test_how_long_to_wait_is_read_from_the_body_and_then_the_header(headers, body, seconds):
    raw = refusal("LIMIT_EXCEEDED", 429, **body)
    extra = "".join("{}: {}\r\n".format(*header) for header in headers).encode("utf-8")
    with Peer(raw.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n", 1)) as peer, client_of(peer) as client:
        with pytest.raises(RateLimitedError) as throttled:
            operation("create")(client)
    assert throttled.value.retry_after == seconds


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("failure", [close, answer(status=500), refusal("LIMIT_EXCEEDED", 429)])
def test_with_retries_off_everything_is_sent_once(name, failure):
    with Peer(failure) as peer, client_of(peer, retry_enabled=False) as client, pytest.raises(CyclesError):
        operation(name)(client)
    assert len(peer.requests) == 1


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("failure", [close, answer(status=500), answer(body=HTML), answer(status=204)])
def test_a_write_of_unknown_outcome_is_repeated_once_with_the_same_key_and_bytes(name, failure):
    good = answer(OPERATIONS[name][3], OPERATIONS[name][2])
    with Peer(failure, good) as peer, client_of(peer, retry_initial_delay=3600, retry_max_delay=3600) as client:
        with ends_within(60):
            operation(name)(client)
    first, second = peer.requests
    assert first.body == second.body
    assert first.header("X-Idempotency-Key") == second.header("X-Idempotency-Key")


def test_the_same_request_object_is_sent_with_the_same_key_and_another_with_another():
    request = create_request()
    with Peer(answer(allowed())) as peer, client_of(peer) as client:
        for each in (request, request, create_request()):
            client.create_reservation(each)
    first, again, other = (sent.json["idempotency_key"] for sent in peer.requests)
    assert first == again != other


def test_close_ends_a_reads_wait():
    """It raises what it would have repeated."""
    with Peer(refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "3600")])) as peer:
        client = client_of(peer, retry_max_delay=3600)
        with ThreadPoolExecutor(1) as pool, ends_within(30):
            waiting = pool.submit(operation("get"), client)
            assert peer.wait_for(1)
            client.close()
            with pytest.raises(RateLimitedError):
                waiting.result()
    assert len(peer.requests) == 1


# ---- Pages ----


def test_pages_are_followed_to_the_end_with_the_same_filters():
    pages = [
        answer({"reservations": [summary("rsv_1"), summary("rsv_2")], "has_more": True, "next_cursor": "c 1/+"}),
        answer({"reservations": [], "has_more": True, "next_cursor": "c2"}),
        answer({"reservations": [summary("rsv_3")], "has_more": False}),
    ]
    with Peer(*pages) as peer, client_of(peer) as client:
        found = [row.reservation_id for row in client.iter_reservations(status="ACTIVE", limit=2)]
    assert found == ["rsv_1", "rsv_2", "rsv_3"]
    filters = "/v1/reservations?status=ACTIVE&limit=2&tenant=acme"
    assert [request.target for request in peer.requests] == [
        filters,
        filters + "&cursor=c+1%2F%2B",
        filters + "&cursor=c2",
    ]


def test_balances_are_followed_too():
    pages = [
        answer({"balances": [balance("tenant:acme")], "next_cursor": "c1", "has_more": True}),
        answer({"balances": [balance("tenant:acme/app:x")], "next_cursor": ""}),
    ]
    with Peer(*pages) as peer, client_of(peer) as client:
        assert [row.scope for row in client.iter_balances()] == ["tenant:acme", "tenant:acme/app:x"]
    assert len(peer.requests) == 2


def test_pages_are_asked_for_one_at_a_time():
    page = answer({"reservations": [summary()], "has_more": True, "next_cursor": "c1"})
    with Peer(page) as peer, client_of(peer) as client:
        next(client.iter_reservations())
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "cursors", [["a", "a"], ["a", "b", "a"], ["a", "b", "c", "d", "b"]], ids=["at once", "in turn", "later"]
)
@pytest.mark.parametrize("what", ["reservations", "balances"])
def test_a_cursor_that_comes_again_is_no_endless_loop(what, cursors):
    pages = [replied({what: [], "has_more": True, "next_cursor": cursor}) for cursor in cursors]
    transport = FakeTransport(*pages, *pages, TransportError("it goes on"))
    client = client_of("http://127.0.0.1:1", transport=transport)
    with pytest.raises(ResponseError, match="cursor"):
        list(client.iter_reservations() if what == "reservations" else client.iter_balances())
    assert len(transport.calls) <= len(cursors)


def test_a_cursor_to_start_from_that_comes_again_is_no_endless_loop():
    transport = FakeTransport(replied({"reservations": [], "next_cursor": "a"}))
    client = client_of("http://127.0.0.1:1", transport=transport)
    with pytest.raises(ResponseError, match="cursor"):
        list(client.iter_reservations(cursor="a"))
    assert len(transport.calls) == 1


# ---- Traces ----


def traced(traceparent, caplog):
    with Peer(answer(allowed())) as peer, client_of(peer, traceparent=traceparent) as client:
        operation("create")(client)
    return peer.requests[0].header("traceparent"), caplog.text


def test_a_traceparent_is_sent_as_given(caplog):
    assert traced(TRACEPARENT, caplog) == (TRACEPARENT, "")


def test_a_callable_makes_one_for_each_call_and_the_same_for_its_retries():
    made = iter([TRACEPARENT, TRACEPARENT.replace("b7", "c8"), None])
    with Peer(close, answer(allowed())) as peer, client_of(peer, traceparent=lambda: next(made)) as client:
        for _ in range(3):
            operation("create")(client)
    sent = [request.header("traceparent") for request in peer.requests]
    assert sent == [TRACEPARENT, TRACEPARENT, TRACEPARENT.replace("b7", "c8"), None]


def failing():
    raise AttributeError("of the tracer")


@pytest.mark.parametrize(
    ("wrong", "logged"),
    [
        (failing, "AttributeError: of the tracer"),
        (lambda: "nonsense", "not a W3C traceparent"),
        (lambda: TRACEPARENT.upper(), "not a W3C traceparent"),
        (lambda: TRACEPARENT + "\r\nX-Evil: 1", "not a W3C traceparent"),
        (lambda: TRACEPARENT + "\n", "not a W3C traceparent"),
        (lambda: TRACEPARENT.encode(), "not a W3C traceparent"),
        (lambda: (1, 2), "not a W3C traceparent"),
        (lambda: {"a": 1}, "not a W3C traceparent"),
        (lambda: "", "not a W3C traceparent"),
    ],
)
def test_a_callable_that_fails_is_logged_and_the_request_goes_without(wrong, logged, caplog):
    sent, log = traced(wrong, caplog)
    assert sent is None
    assert logged in log


@pytest.mark.parametrize("wrong", ["nonsense", TRACEPARENT + "\n", TRACEPARENT.upper(), ""])
def test_a_traceparent_that_is_none_is_a_configuration_error(wrong):
    with pytest.raises(ConfigError, match="traceparent"):
        client_of("http://127.0.0.1:1", traceparent=wrong)


# ---- The key ----

ECHOES = {
    "in a message": refusal("FORBIDDEN", 403, f"the key {KEY} is unknown"),
    "in a code": refusal(KEY, 400),
    "in details": refusal("FORBIDDEN", 403, details={"scope": KEY, "headers": {"X-Cycles-API-Key": KEY}}),
    "as a name": refusal("FORBIDDEN", 403, details={KEY: [KEY]}),
    "in a request id": refusal("FORBIDDEN", 403, headers=[("X-Request-Id", KEY), ("X-Cycles-Trace-Id", KEY)]),
    "in another header": refusal("FORBIDDEN", 403, headers=[("X-Echo", KEY), ("Retry-After", KEY)]),
    "escaped otherwise": answer(
        body='{{"error": "FORBIDDEN", "message": "{}"}}'.format(
            "".join(f"\\u{ord(c):04X}" if not c.isalnum() else c for c in KEY)
        ).encode(),
        status=403,
    ),
    "with slashes escaped": answer(
        body=json.dumps({"error": "FORBIDDEN", "message": KEY}).replace("/", "\\/").encode(), status=403
    ),
    "in a page": answer(body=b"<html>" + KEY.encode(), status=502),
    "in a success that is none": answer(body=json.dumps({"decision": [KEY], "affected_scopes": KEY}).encode()),
    "in place of an amount": answer(allowed(reserved=KEY)),
    "in the status line": then(f"{KEY}\r\n\r\n".encode(), close),
    "as a version": then(f"HTTP/{KEY} 200 OK\r\n\r\n".encode(), close),
    "as a status": then(f"HTTP/1.1 {KEY} OK\r\n\r\n".encode(), close),
    "as a reason": then(f"HTTP/1.1 403 {KEY}\r\nContent-Length: 0\r\n\r\n".encode()),
    "as a chunk's size": then(head(200, ("Transfer-Encoding", "chunked")), KEY.encode() + b"\r\n", close),
    "in a chunk that is cut": then(head(200, ("Transfer-Encoding", "chunked")), b"ff\r\n" + KEY.encode(), close),
    "before a cut chunk": then(head(200, ("Transfer-Encoding", "chunked")), chunk(KEY.encode()), close),
    "in a body that is cut": then(head(200, ("Content-Length", "500")), KEY.encode(), close),
    "as a length": then(head(200, ("Content-Length", KEY)), b"{}", close),
    "as two lengths": then(head(200, ("Content-Length", "1"), ("Content-Length", f"2, {KEY}")), b"{}", close),
    "as a length and chunks": head(200, ("Content-Length", KEY), ("Transfer-Encoding", "chunked")) + b"0\r\n\r\n",
    "among the headers": then(b"HTTP/1.1 403 No\r\n" + KEY.encode() + b"\r\nContent-Length: 0\r\n\r\n", close),
    "as a folded header": then(b"HTTP/1.1 403 No\r\n " + KEY.encode() + b"\r\nContent-Length: 0\r\n\r\n", close),
    "in a header that is cut": then(b"HTTP/1.1 403 No\r\nX-Echo: " + KEY.encode(), close),
    "as a redirect": answer(status=302, headers=[("Location", "http://127.0.0.1:1/?key=" + KEY)]),
    "as an encoding": answer(allowed(decision=None), headers=[("Content-Encoding", KEY)]),
}


def texts_of(error):
    """What an error and all that it came of can be made to tell."""
    seen = [error]
    for each in seen:
        seen += [other for other in (each.__cause__, each.__context__) if other is not None and other not in seen]
        yield from (str(each), repr(each), repr(each.args), repr(vars(each)))
    yield "".join(traceback.format_exception(type(error), error, error.__traceback__))
    yield pickle.dumps(error, 0).decode("latin-1")


def forms(secret):
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], repr(repr(secret))[1:-1], "s3cr3t"}


@pytest.mark.parametrize("what", ECHOES)
@pytest.mark.parametrize("name", ["create", "get"])
def test_a_key_that_comes_back_is_told_nowhere(what, name, caplog):
    caplog.set_level(logging.DEBUG)
    for logger in ("cycles_lite", "urllib3"):
        caplog.set_level(logging.DEBUG, logger)
    with Peer(ECHOES[what]) as peer, client_of(peer, retry_max_attempts=2) as client:
        with pytest.raises(CyclesError) as failed:
            operation(name)(client)
    assert peer.requests[0].header("X-Cycles-API-Key") == KEY
    told = [*texts_of(failed.value), caplog.text, *[record.getMessage() for record in caplog.records]]
    told += [repr(record.__dict__) for record in caplog.records]
    for text in told:
        for form in forms(KEY):
            assert form not in text


def test_a_good_answer_stays_as_it_is_where_it_has_text_in_common_with_the_key():
    """A tenant may be called as its key begins; an id with a hole in it would name another reservation."""
    tenant = "acme-research"
    with Peer(answer(allowed(reservation_id=tenant + "-1", affected_scopes=["tenant:" + tenant]))) as peer:
        with client_of(peer, api_key=tenant) as client:
            response = operation("create")(client)
    assert response.reservation_id == tenant + "-1"
    assert list(response.affected_scopes) == ["tenant:" + tenant]


@pytest.mark.parametrize("key", ["k", "tok", "acme", "rsv_1", "ALLOW", "tenant", "a\\b", '"'])
def test_a_key_too_short_to_be_secret_leaves_answers_as_they_are(key):
    """It occurs in words; `***` in their place would change ids, and break the JSON."""
    with Peer(answer(allowed())) as peer, client_of(peer, api_key=key) as client:
        response = operation("create")(client)
    assert response.reservation_id == "rsv_1"
    assert response.reserved == Amount.tokens(100)


@pytest.mark.parametrize(
    "key", ["sk-0123456789.abc_DEF", "k(e)y[s]*+?{2}^$|.x", "\\d\\d\\d\\d\\d\\d", "aaaa%aaaa", "========"]
)
def test_a_key_is_blotted_out_whatever_characters_it_has(key):
    with Peer(refusal("FORBIDDEN", 403, f"<{key}> 12345678")) as peer, client_of(peer, api_key=key) as client:
        with pytest.raises(ForbiddenError) as refused:
            operation("create")(client)
    assert refused.value.message == "<***> 12345678"


def test_neither_client_nor_configuration_shows_the_key():
    with client_of("http://127.0.0.1:1", proxy="http://user:pr0xy-s3cret@127.0.0.1:1") as client:
        for shown in (repr(client), str(client), repr(client.config), f"{client.config!s}"):
            for form in forms(KEY) | {"pr0xy"}:
                assert form not in shown
        with pytest.raises(TypeError):
            pickle.dumps(client)


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX-Evil: 1", "a b", "schl\u00fcssel", "\x00key", "key\x7f", "\U0001f511"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    with pytest.raises(ConfigError) as refused:
        config_of("http://127.0.0.1:1", api_key=key)
    assert all(key not in text for text in texts_of(refused.value))


def test_blanks_around_a_key_are_dropped():
    with Peer(answer(allowed())) as peer, client_of(peer, api_key=" padded-key\n") as client:
        operation("create")(client)
    assert peer.requests[0].header("X-Cycles-API-Key") == "padded-key"


# ---- The client as an object ----


def test_the_environment_makes_a_client(monkeypatch):
    with Peer(answer(allowed())) as peer:
        monkeypatch.setenv("CYCLES_BASE_URL", peer.url + "/")
        monkeypatch.setenv("CYCLES_API_KEY", " from-the-environment ")
        monkeypatch.setenv("CYCLES_TENANT", "acme")
        with CyclesClient.from_env(traceparent=TRACEPARENT, agent="bot") as client:
            operation("create")(client)
    (request,) = peer.requests
    assert request.target == "/v1/reservations"
    assert request.header("X-Cycles-API-Key") == "from-the-environment"
    assert request.header("traceparent") == TRACEPARENT
    assert request.json["subject"] == {"tenant": "acme", "agent": "bot"}


def test_with_options_keeps_what_it_does_not_change():
    with Peer(answer(allowed())) as peer, client_of(peer, traceparent=TRACEPARENT, agent="bot") as client:
        other = client.with_options(agent="other", api_key="another-key")
        operation("create")(other)
        operation("create")(client)
    first, second = peer.requests
    assert first.json["subject"] == {"tenant": "acme", "agent": "other"}
    assert second.json["subject"] == {"tenant": "acme", "agent": "bot"}
    assert first.header("traceparent") == TRACEPARENT
    assert (first.header("X-Cycles-API-Key"), second.header("X-Cycles-API-Key")) == ("another-key", KEY)
    with pytest.raises(ConfigError, match="colour"):
        client.with_options(colour="red")


@pytest.mark.parametrize(
    ("told", "answered"),
    [
        (answer({"keys": []}), True),
        (refusal("NOT_FOUND", 404), True),
        (answer(body=HTML, status=404), True),
        (answer(status=503), True),
        (answer(body=HTML), False),
        (answer(status=302), False),
        (close, False),
    ],
)
def test_warming_up_connects_once_and_says_whether_somebody_answered(told, answered):
    with Peer(told) as peer, client_of(peer) as client:
        assert client.warm_up() is answered
    (request,) = peer.requests
    assert request.header("X-Cycles-API-Key") is None


def test_warming_up_replaces_a_connection_that_went_stale():
    with Peer(answer({"keys": []}), close, answer({"keys": []})) as peer, client_of(peer) as client:
        assert client.warm_up() is True
        assert client.warm_up() is True
    assert [request.connection for request in peer.requests] == [1, 1, 2]


def test_warming_up_raises_nothing():
    with client_of("http://127.0.0.1:9", connect_timeout=0.5) as client:
        assert client.warm_up() is False
    assert CyclesClient(CyclesConfig(mode="off")).warm_up() is False
    with client_of("https://127.0.0.1:9", ca_certs="/nowhere/ca.pem") as client:
        assert client.warm_up() is False


def test_a_call_after_warming_up_uses_its_connection():
    with Peer(answer({"keys": []}), answer(allowed())) as peer, client_of(peer) as client:
        client.warm_up()
        operation("create")(client)
    assert peer.connections == 1


def test_a_client_without_an_authority_says_so():
    client = CyclesClient(CyclesConfig(mode="off", tenant="acme"))
    with pytest.raises(ConfigError, match="base_url"):
        operation("create")(client)
    client.close()


def test_a_transport_that_is_given_is_used_even_if_it_looks_empty():
    class Counted(FakeTransport):
        def __len__(self):
            return len(self.calls)

    transport = Counted(replied(allowed()))
    client = client_of("http://127.0.0.1:1", transport=transport)
    operation("create")(client)
    operation("create")(client.with_options(agent="bot"))
    client.close()
    assert (len(transport.calls), transport.closed) == (2, 1)


def test_a_client_is_left_closed_and_can_still_be_used():
    with Peer(answer(summary())) as peer:
        with client_of(peer) as client:
            operation("get")(client)
        operation("get")(client)
        client.close()
    assert peer.connections == 2


def test_no_thread_is_made_for_plain_calls():
    seen = set()

    def look(line, request):
        seen.update(thread.name for thread in threading.enumerate())
        line.send(answer(allowed()))

    before = {thread.name for thread in threading.enumerate()} | {"peer"}
    with Peer(look) as peer, client_of(peer) as client:
        operation("create")(client)
    assert seen <= before


# ---- What it is made of ----


@pytest.mark.parametrize(
    "config",
    ["sqlite:x", KEY, {"base_url": "sqlite:x", "api_key": KEY}, None, CyclesConfig, b"sqlite:x", 7],
    ids=["URL", "key", "mapping", "None", "class", "bytes", "number"],
)
def test_what_is_no_configuration_is_refused_with_what_to_write(config, tmp_path, monkeypatch):
    """Before anything is opened, and without showing what may be a key."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        CyclesClient(config)
    assert "CyclesClient(CyclesConfig(base_url=...))" in str(refused.value)
    assert "CyclesClient.from_env()" in str(refused.value)
    assert KEY not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given", [{"tenant": "acme"}, CyclesConfig(mode="off"), "acme"], ids=lambda given: type(given).__name__
)
def test_options_without_a_name_are_refused_with_what_to_write(given):
    with CyclesClient(CyclesConfig(mode="off")) as client, pytest.raises(ConfigError, match=r"with_options\(tenant="):
        client.with_options(given)


def test_a_trace_that_cannot_be_looked_at_stops_no_call(caplog):
    """Neither where it is a constant, nor where a callable gives it; the log says so."""
    for trace in (Proxy(), lambda: Proxy(), lambda: 10**5000):
        caplog.clear()
        transport = FakeTransport(replied({"keys": []}))
        with client_of("http://fake.invalid", transport=transport, traceparent=trace) as client:
            client.get_evidence_keys()
        assert "traceparent" not in transport.calls[0].headers
        assert "the request goes without" in caplog.text


def test_what_cannot_be_looked_at_is_no_request_and_no_configuration():
    with client_of("http://fake.invalid", transport=FakeTransport()) as client:
        with pytest.raises(ValidationError, match="request"):
            client.decide(Proxy())
        with pytest.raises(ValidationError, match="request"):
            client.list_reservations(Proxy())
        with pytest.raises(ValidationError, match="evidence_id"):
            client.get_evidence(Proxy())
    with pytest.raises(ConfigError, match="CyclesClient"):
        CyclesClient(Proxy())


@pytest.mark.parametrize("decision", ["DENY", "ALLOW", "LATER"])
def test_a_denial_does_not_tell_the_key_that_the_server_echoes(decision):
    """Such an answer is a success, which is data; the error that is made of it goes to logs."""
    told = {"decision": decision, "affected_scopes": [KEY], "reason_code": KEY}
    transport = FakeTransport(replied(told, x_request_id=KEY, x_cycles_trace_id=KEY))
    with client_of("http://fake.invalid", transport=transport) as client:
        with pytest.raises(BudgetDenied) as denied:
            client.reserve(Amount.tokens(5), ACTION)
        for text in (str(denied.value), repr(denied.value), repr(denied.value.args), repr(vars(denied.value))):
            assert KEY not in text
            assert json.dumps(KEY)[1:-1] not in text
        assert client.create_reservation(create_request()).reason_code == KEY
