"""What travels: JSON both ways, and what an answer proves."""

from __future__ import annotations

import copy
import json
import pickle
import time

import pytest
from hypothesis import given, strategies as st
from samples import JSON_OBJECTS, told

from cycles_lite import errors
from cycles_lite.errors import (
    ApiError,
    AuthenticationError,
    BudgetDenied,
    BudgetExceededError,
    CyclesError,
    ErrorCode,
    ForbiddenError,
    IdempotencyMismatchError,
    InvalidRequestError,
    MaxExtensionsExceededError,
    NotFoundError,
    RateLimitedError,
    ReservationExpiredError,
    ReservationFinalizedError,
    ResponseError,
    ServerError,
    SettlementRejectedError,
    UnitMismatchError,
    ValidationError,
)
from cycles_lite.protocol import wire
from cycles_lite.protocol.checks import INT64_MAX
from cycles_lite.protocol.models import (
    BalanceRequest,
    CommitRequest,
    ReleaseRequest,
    ReservationCreateResponse,
    ReservationListRequest,
)
from cycles_lite.protocol.values import Amount, CyclesEvidenceRef, Decision, Unit
from cycles_lite.protocol.wire import (
    COMMIT_RESERVATION,
    CREATE_EVENT,
    CREATE_RESERVATION,
    DECIDE,
    EXTEND_RESERVATION,
    GET_BALANCES,
    GET_EVIDENCE,
    GET_EVIDENCE_KEYS,
    GET_RESERVATION,
    LIST_RESERVATIONS,
    OPERATIONS,
    RELEASE_RESERVATION,
    Answer,
    read_answer,
)

TOKENS = {"unit": "TOKENS", "amount": 5}
HEADERS = {"x-request-id": "req-header", "x-cycles-trace-id": "trace-header"}


def answer(status, body, **headers):
    """An answer as a transport brings it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}, data)


def operation_named(operation):
    return operation.name


# ---- JSON ----


@given(JSON_OBJECTS)
def test_what_was_written_is_read_again(data):
    assert wire.loads(wire.dumps(data)) == data


def test_json_is_compact_ascii():
    assert wire.dumps({"é": ["😀", 1, None, True], "b": {}}) == rb'{"\u00e9":["\ud83d\ude00",1,null,true],"b":{}}'
    assert wire.dumps({"unit": Unit.TOKENS, "n": 2**63 - 1}) == b'{"unit":"TOKENS","n":9223372036854775807}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_does_not_have_is_not_written(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.dumps({"a": number})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"{} {}",
        b'{"a":1}x',
        b"{'a':1}",
        b'{"a":1,}',
        b"[1,]",
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"0x10",
        b"1_000",
        b"True",
        b'"\n"',
        b'"\\x41"',
        b'"\xff"',
        b'{"a":"\xc3"}',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"\x1f\x8b\x08",
        b"<html></html>",
        b"/* no */ {}",
        b"\xd9\xa1",
    ],
    ids=ascii,
)
def test_whatever_is_not_json_is_a_value_error(body):
    with pytest.raises(ValueError):  # noqa: PT011  # the decoder's own words
        wire.loads(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'], ids=ascii)
@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_bottomless_nesting_is_a_value_error(opening, depth):
    with pytest.raises(ValueError):  # noqa: PT011  # some Pythons tell of the depth, some of the end
        wire.loads(opening * depth)


@pytest.mark.parametrize("digits", [641, 5_000, 100_000, 10_000_000])
@pytest.mark.parametrize("form", [b"%b", b"-%b", b'{"a":[%b]}'], ids=ascii)
def test_endless_integers_are_a_value_error_at_once(form, digits):
    """Older Pythons take quadratic time for them: minutes for a body of 16 MiB."""
    started = time.process_time()
    with pytest.raises(ValueError, match="an integer of"):
        wire.loads(form % (b"9" * digits))
    assert time.process_time() - started < 1.0


def test_the_integers_of_the_protocol_are_exact():
    for number in (0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, int("9" * 640)):
        assert wire.loads(b"%d" % number) == number
    assert wire.loads(b"-0") == 0
    assert type(wire.loads(b"1.0")) is float
    assert type(wire.loads(b"1e3")) is float


def test_a_request_that_is_not_json_is_refused():
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000):
        with pytest.raises(ValidationError, match=r"^body: not JSON: "):
            ReleaseRequest.parse(wire.read_body(body))
    with pytest.raises(ValidationError, match=r"^body: \[\] is not an object$"):
        ReleaseRequest.parse(wire.read_body(b"[]"))


def test_a_request_is_parsed():
    body = b' {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 9223372036854775807}, "metrics": null}\n'
    assert CommitRequest.parse(wire.read_body(body)) == CommitRequest(Amount.tokens(2**63 - 1), idempotency_key="k")


@pytest.mark.parametrize(
    "number",
    ["9223372036854775808", "-1", "1.5", "1.0", "1e2", '"100"', "true", "null", "9" * 600],
    ids=lambda number: number[:20],
)
def test_an_amount_in_a_request_is_an_integer_of_63_bits(number):
    body = b'{"idempotency_key":"k","actual":{"unit":"TOKENS","amount":%b}}' % number.encode()
    with pytest.raises(ValidationError, match=r"amount"):
        CommitRequest.parse(wire.read_body(body))


def test_lone_surrogates_in_a_request_are_refused():
    """JSON's escapes can write what UTF-8 cannot."""
    with pytest.raises(ValidationError, match="lone surrogates"):
        ReleaseRequest.parse(wire.read_body(rb'{"idempotency_key":"k","reason":"\ud800"}'))


# ---- Queries ----


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (BalanceRequest(), {}),
        (BalanceRequest(tenant="acme", include_children=True), {"tenant": "acme", "include_children": "true"}),
        (BalanceRequest(include_children=False, limit=200, cursor="c&=d"), {"limit": "200", "cursor": "c&=d"}),
        (
            ReservationListRequest(status="ACTIVE", sort_by="reserved", sort_dir="desc", limit=1),
            {"status": "ACTIVE", "sort_by": "reserved", "sort_dir": "desc", "limit": "1"},
        ),
        (
            ReservationListRequest(from_="2026-05-21T10:00:00Z", finalized_to="", idempotency_key="k"),
            {"from": "2026-05-21T10:00:00Z", "finalized_to": "", "idempotency_key": "k"},
        ),
        (ReservationListRequest(include=["metadata", "evidence"]), {"include": "metadata,evidence"}),
        (ReservationListRequest(include=[]), {"include": ""}),
    ],
)
def test_filters_become_query_parameters(filters, expected):
    query = wire.query(filters)
    assert query == expected
    assert {type(value) for value in query.values()} <= {str}


# ---- The table of operations ----


def test_operations_are_named_once_and_know_what_they_do():
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS) == 11
    for operation in OPERATIONS:
        assert getattr(wire, operation.name.upper()) is operation
        assert (operation.request is not None) is (operation.method == "POST")
        assert (operation.proof is not None) is (operation.method == "POST" and not operation.reserves)
    assert [operation for operation in OPERATIONS if operation.reserves] == [CREATE_RESERVATION, DECIDE]
    assert [operation for operation in OPERATIONS if operation.settles] == [COMMIT_RESERVATION, CREATE_EVENT]
    assert [operation for operation in OPERATIONS if operation.public] == [GET_EVIDENCE, GET_EVIDENCE_KEYS]


def test_operations_are_where_the_protocol_has_them():
    """As `test_document.py` proves against the document itself, where that is at hand."""
    reservation = "/v1/reservations/{id}"
    assert [(each.method, each.path, each.status, each.proof) for each in OPERATIONS] == [
        ("POST", "/v1/reservations", 200, None),
        ("POST", reservation + "/commit", 200, "COMMITTED"),
        ("POST", reservation + "/release", 200, "RELEASED"),
        ("POST", reservation + "/extend", 200, "ACTIVE"),
        ("POST", "/v1/decide", 200, None),
        ("POST", "/v1/events", 201, "APPLIED"),
        ("GET", "/v1/reservations", 200, None),
        ("GET", reservation, 200, None),
        ("GET", "/v1/balances", 200, None),
        ("GET", "/v1/evidence/{id}", 200, None),
        ("GET", "/v1/.well-known/cycles-jwks.json", 200, None),
    ]
    assert (wire.IDEMPOTENCY_KEY_HEADER, wire.API_KEY_HEADER) == ("X-Idempotency-Key", "X-Cycles-API-Key")


def test_a_call_may_use_a_kept_connection_unless_it_says_otherwise():
    call = wire.Call(DECIDE, None, {}, None, {}, None, 2.0, 5.0)
    assert call.fresh is False
    assert call._replace(fresh=True).fresh is True


# ---- Success ----

#: For each operation, the least that proves it.
LEAST = {
    CREATE_RESERVATION: {"decision": "ALLOW", "affected_scopes": []},
    DECIDE: {"decision": "DENY"},
    COMMIT_RESERVATION: {"status": "COMMITTED", "charged": TOKENS},
    RELEASE_RESERVATION: {"status": "RELEASED", "released": TOKENS},
    EXTEND_RESERVATION: {"status": "ACTIVE", "expires_at_ms": 1},
    CREATE_EVENT: {"status": "APPLIED", "event_id": "evt_1"},
    LIST_RESERVATIONS: {"reservations": []},
    GET_BALANCES: {"balances": []},
    GET_RESERVATION: told(GET_RESERVATION.response),
    GET_EVIDENCE: told(GET_EVIDENCE.response),
    GET_EVIDENCE_KEYS: {"keys": []},
}
PROVEN = [operation for operation in OPERATIONS if operation.proof is not None]


def test_the_table_here_knows_every_operation():
    assert set(LEAST) == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_the_least_that_proves_success_is_enough(operation):
    came = answer(operation.status, LEAST[operation])
    response = read_answer(operation, came)
    assert type(response) is operation.response
    assert response.headers == HEADERS
    assert response.body == came.body
    assert response.request_id == "req-header"


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_fields_that_the_protocol_may_add_are_fine(operation):
    response = read_answer(operation, answer(operation.status, {**LEAST[operation], "new": None, "newer": [1]}))
    assert response.extra == {"new": None, "newer": [1]}


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_success_is_exactly_one_status(operation):
    """A 201 for a commit proves nothing, and neither does a 200 for an event."""
    for status in {*range(100, 400), 600, 601, 999, 0, -1} - {operation.status}:
        with pytest.raises(ResponseError) as caught:
            read_answer(operation, answer(status, LEAST[operation], retry_after="7"))
        assert str(caught.value) == f"status {status} where {operation.status} was expected"
        assert caught.value.status == status
        assert caught.value.is_retryable
        assert caught.value.retry_after == 7.0
        assert (caught.value.request_id, caught.value.trace_id) == ("req-header", "trace-header")


NOT_OBJECTS = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"ok"',
    b"1",
    b"true",
    b"<html>",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b"[" * 10**5,
    b"9" * 10**5,
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_a_body_that_is_no_object_proves_nothing(operation):
    for body in NOT_OBJECTS:
        with pytest.raises(ResponseError, match=rf"^unusable body of {operation.name}: ") as caught:
            read_answer(operation, answer(operation.status, body))
        assert caught.value.status == operation.status
        assert caught.value.request_id == "req-header"
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_a_body_that_lacks_a_required_field_proves_nothing(operation):
    for name in LEAST[operation]:
        for body in (
            {other: value for other, value in LEAST[operation].items() if other != name},
            {**LEAST[operation], name: None},
        ):
            with pytest.raises(ResponseError, match=rf"{name} is (missing|null)$"):
                read_answer(operation, answer(operation.status, body))


@pytest.mark.parametrize("operation", PROVEN, ids=operation_named)
def test_only_the_status_word_proves_a_settlement(operation):
    for status in ("", "committed", "PENDING", "ACTIVE ", "EXPIRED", "x" * 10_000, 1, True, None, []):
        with pytest.raises(ResponseError, match="status") as caught:
            read_answer(operation, answer(operation.status, {**LEAST[operation], "status": status}))
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("operation", PROVEN, ids=operation_named)
def test_one_operations_word_does_not_prove_another(operation):
    for other in PROVEN:
        if other is not operation:
            with pytest.raises(ResponseError, match=f"where {operation.proof} was expected"):
                read_answer(operation, answer(operation.status, {**LEAST[operation], "status": other.proof}))


#: Amounts that prove nothing.
WRONG_AMOUNTS = [
    None,
    {},
    [],
    5,
    "5",
    {"unit": "TOKENS"},
    {"amount": 5},
    {"unit": None, "amount": 5},
    {"unit": "TOKENS", "amount": None},
    {"unit": "TOKENS", "amount": True},
    {"unit": "TOKENS", "amount": 5.0},
    {"unit": "TOKENS", "amount": 1e300},
    {"unit": "TOKENS", "amount": "5"},
    {"unit": "TOKENS", "amount": -1},
    {"unit": "TOKENS", "amount": 2**63},
    {"unit": "TOKENS", "amount": 10**100},
    {"unit": 5, "amount": 5},
    {"unit": "EUR", "amount": 5},
    {"unit": "tokens", "amount": 5},
    {"unit": "", "amount": 5},
]


@pytest.mark.parametrize("amount", WRONG_AMOUNTS, ids=lambda amount: json.dumps(amount)[:40])
def test_an_amount_that_moved_money_is_an_integer_in_a_known_unit(amount):
    for operation, name in (
        (COMMIT_RESERVATION, "charged"),
        (COMMIT_RESERVATION, "released"),
        (RELEASE_RESERVATION, "released"),
        (CREATE_EVENT, "charged"),
    ):
        with pytest.raises(ResponseError):
            read_answer(operation, answer(operation.status, {**LEAST[operation], name: amount}))


@pytest.mark.parametrize("amount", [0, 1, INT64_MAX])
def test_amounts_of_a_commit_are_exact(amount):
    charged = {"unit": "USD_MICROCENTS", "amount": amount}
    response = read_answer(COMMIT_RESERVATION, answer(200, {"status": "COMMITTED", "charged": charged}))
    assert response.charged == Amount.usd_microcents(amount)
    assert response.released is None


@pytest.mark.parametrize("operation", PROVEN, ids=operation_named)
def test_no_known_field_of_a_settlement_may_be_null(operation):
    for entry in operation.response.layout():
        body = {**LEAST[operation], entry.json_name: None}
        with pytest.raises(ResponseError, match=rf"{entry.json_name} is null$"):
            read_answer(operation, answer(operation.status, body))
    balance = {"scope": "s", "scope_path": "p", "remaining": TOKENS, "debt": None}
    with pytest.raises(ResponseError, match=r"debt is null$"):
        read_answer(operation, answer(operation.status, {**LEAST[operation], "balances": [balance]}))


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each not in PROVEN], ids=operation_named)
def test_null_counts_as_absent_where_nothing_is_settled(operation):
    optional = [entry.json_name for entry in operation.response.layout() if not entry.required]
    response = read_answer(operation, answer(200, {**LEAST[operation], **dict.fromkeys(optional)}))
    assert response.extra == {}


def test_balances_in_unknown_units_do_not_spoil_a_proof():
    """Only what was charged and released must be understood; a newer server may keep budgets in other units."""
    balance = {"scope": "s", "scope_path": "p", "remaining": {"unit": "EUR", "amount": -5}}
    response = read_answer(COMMIT_RESERVATION, answer(200, {**LEAST[COMMIT_RESERVATION], "balances": [balance]}))
    assert response.balances[0].remaining.unit == "EUR"
    assert response.balances[0].remaining.amount == -5


@pytest.mark.parametrize("operation", [CREATE_RESERVATION, DECIDE], ids=operation_named)
@pytest.mark.parametrize(
    ("decision", "is_allowed"),
    [("ALLOW", True), ("ALLOW_WITH_CAPS", True), ("DENY", False), ("ALLOW_MAYBE", False), ("", False)],
)
def test_an_unknown_decision_is_an_answer_that_allows_nothing(operation, decision, is_allowed):
    response = read_answer(operation, answer(200, {"decision": decision, "affected_scopes": []}))
    assert response.decision == decision
    assert response.is_allowed is is_allowed


@pytest.mark.parametrize("decision", [None, 1, True, [], {}])
def test_a_decision_is_a_word(decision):
    with pytest.raises(ResponseError):
        read_answer(DECIDE, answer(200, {"decision": decision}))


def test_an_allow_without_an_id_is_read():
    """What to make of it is the guard's to say: a dry run has none."""
    response = read_answer(CREATE_RESERVATION, answer(200, {"decision": "ALLOW", "affected_scopes": ["tenant:acme"]}))
    assert response.decision is Decision.ALLOW
    assert response.reservation_id is None


def test_a_whole_reservation_is_read():
    body = {
        "decision": "ALLOW_WITH_CAPS",
        "reservation_id": "rsv_1",
        "reserved": {"unit": "USD_MICROCENTS", "amount": 500000},
        "expires_at_ms": 1712956830000,
        "remaining_ttl_ms": 0,
        "scope_path": "tenant:acme",
        "affected_scopes": ["tenant:acme"],
        "caps": {"max_tokens": 100, "tool_denylist": ["mail"]},
        "balances": [
            {"scope": "tenant:acme", "scope_path": "tenant:acme", "remaining": {"unit": "TOKENS", "amount": -1}}
        ],
        "cycles_evidence": {"evidence_id": "e" * 64, "cycles_evidence_url": "https://example.com"},
    }
    response = read_answer(CREATE_RESERVATION, answer(200, body))
    assert response.to_json() == body
    assert response.reserved == Amount.usd_microcents(500000)
    assert response.caps.is_tool_allowed("search")
    assert not response.caps.is_tool_allowed("mail")
    assert response.extra == {}


# ---- Refusals ----

DENIALS = {
    "BUDGET_EXCEEDED": errors.BudgetExceededError,
    "OVERDRAFT_LIMIT_EXCEEDED": errors.OverdraftLimitExceededError,
    "DEBT_OUTSTANDING": errors.DebtOutstandingError,
    "BUDGET_FROZEN": errors.BudgetFrozenError,
    "BUDGET_CLOSED": errors.BudgetClosedError,
    "TENANT_CLOSED": errors.TenantClosedError,
}
SAME_EVERYWHERE = {
    "RESERVATION_EXPIRED": ReservationExpiredError,
    "RESERVATION_FINALIZED": ReservationFinalizedError,
    "MAX_EXTENSIONS_EXCEEDED": MaxExtensionsExceededError,
    "INVALID_REQUEST": InvalidRequestError,
    "UNIT_MISMATCH": UnitMismatchError,
    "IDEMPOTENCY_MISMATCH": IdempotencyMismatchError,
    "NOT_FOUND": NotFoundError,
    "UNAUTHORIZED": AuthenticationError,
    "FORBIDDEN": ForbiddenError,
    "LIMIT_EXCEEDED": RateLimitedError,
    "INTERNAL_ERROR": ServerError,
}
DENYING = {CREATE_RESERVATION: BudgetDenied, DECIDE: BudgetDenied}
SETTLING = {COMMIT_RESERVATION: SettlementRejectedError, CREATE_EVENT: SettlementRejectedError}


def refused(operation, status, body, unit=None, **headers):
    with pytest.raises(CyclesError) as caught:
        read_answer(operation, answer(status, body, **headers), unit)
    return caught.value


def test_the_tables_here_know_every_code():
    assert {*DENIALS, *SAME_EVERYWHERE} == {code.value for code in ErrorCode}


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_the_class_of_an_error_follows_from_its_code_and_the_operation(operation):
    for status in (400, 404, 409, 418, 422, 499):
        for code, expected in SAME_EVERYWHERE.items():
            assert type(refused(operation, status, {"error": code, "message": "m"})) is expected
        for code, denial in DENIALS.items():
            error = refused(operation, status, {"error": code, "message": "m"})
            if operation in DENYING:
                assert type(error) is denial
            else:
                assert type(error) is SETTLING.get(operation, ApiError)
                assert not isinstance(error, BudgetDenied)
            assert (error.code, error.status) == (code, status)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, AuthenticationError),
        (403, ForbiddenError),
        (410, ReservationExpiredError),
        (429, RateLimitedError),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (599, ServerError),
    ],
)
def test_some_statuses_say_enough_whatever_code_comes_with_them(status, expected):
    for operation in OPERATIONS:
        for code in (*ErrorCode, "NEW_CODE", ""):
            error = refused(operation, status, {"error": code, "message": "m"})
            assert type(error) is expected
            assert error.code == code
        for body in (b"", b"<html>", {}, {"error": 5}, LEAST[operation]):
            error = refused(operation, status, body)
            assert type(error) is expected
            assert (error.code, error.request_id) == (None, "req-header")


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_an_unknown_code_is_an_api_error(operation):
    for status in (400, 402, 404, 405, 408, 409, 413, 418, 451):
        for code in ("NEW_CODE", "budget_exceeded", "", "Not Found"):
            error = refused(operation, status, {"error": code, "message": "m", "request_id": "r"})
            assert type(error) is ApiError
            assert (error.code, error.status, error.message) == (code, status, "m")
            assert not error.is_retryable


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"BUDGET_EXCEEDED"',
        b"[" * 10**5,
        b'{"error":"BUDGET_EXCEEDED"}',
        b'{"error":null,"message":"m"}',
        b'{"error":409,"message":"m"}',
        b'{"error":"BUDGET_EXCEEDED","message":{}}',
        b'{"error":"BUDGET_EXCEEDED","message":"m","details":"text"}',
        b'{"error":"BUDGET_EXCEEDED","message":"m","cycles_evidence":{}}',
        b'{"error":{"code":"BUDGET_EXCEEDED"},"message":"m"}',
        b'{"detail":"Not Found"}',
        b'{"error":"BUDGET_EXCEEDED","message":"m","details":{"retry_after_ms":%s}}' % (b"9" * 1000),
    ],
    ids=lambda body: ascii(body[:60]),
)  # fmt: skip
def test_an_error_that_is_not_the_protocols_has_no_code(body):
    """A proxy's page must neither deny nor settle anything."""
    for operation in OPERATIONS:
        error = refused(operation, 409, body)
        assert type(error) is ApiError
        assert (error.status, error.code, error.details, error.evidence) == (409, None, {}, None)
        assert str(error) == "refused (409): the answer is not the protocol's [request_id=req-header]"


def test_an_error_tells_everything_that_the_answer_told():
    body = {
        "error": "BUDGET_EXCEEDED",
        "message": "Insufficient remaining budget",
        "request_id": "req-body",
        "trace_id": "trace-body",
        "details": {"scope": "tenant:acme", "unit": "TOKENS", "requested": 1000, "remaining": 7, "other": [1]},
        "cycles_evidence": {"evidence_id": "e" * 64, "cycles_evidence_url": "https://example.com"},
        "new": 1,
    }
    error = refused(CREATE_RESERVATION, 409, body)
    assert type(error) is BudgetExceededError
    assert error.status == 409
    assert error.code == "BUDGET_EXCEEDED"
    assert error.message == "Insufficient remaining budget"
    assert error.details == body["details"]
    assert error.evidence == CyclesEvidenceRef("e" * 64, "https://example.com")
    assert error.request_id == "req-body"
    assert error.trace_id == "trace-body"
    assert error.retry_after is None
    assert str(error) == (
        "BUDGET_EXCEEDED (409): Insufficient remaining budget "
        "[scope=tenant:acme, unit=TOKENS, requested=1000, remaining=7, request_id=req-body]"
    )


def test_the_headers_tell_the_ids_that_the_body_does_not():
    error = refused(CREATE_RESERVATION, 409, {"error": "BUDGET_EXCEEDED", "message": "m", "request_id": None})
    assert (error.request_id, error.trace_id) == ("req-header", "trace-header")
    with pytest.raises(ApiError) as caught:
        read_answer(DECIDE, Answer(409, {}, b""))
    assert (caught.value.request_id, caught.value.trace_id) == (None, None)


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_named)
def test_a_404_says_which_unit_was_sent(operation):
    """Not found in that unit is a frequent mistake of configuration. The message of the server does not tell."""
    body = {"error": "NOT_FOUND", "message": "Budget not found for provided scope: tenant:acme"}
    assert "unit sent: TOKENS" in str(refused(operation, 404, body, Unit.TOKENS))
    assert "unit sent" not in str(refused(operation, 404, body))
    assert "unit sent" not in str(refused(operation, 409, body, Unit.TOKENS))


# ---- When to come back ----


@pytest.mark.parametrize(
    ("body", "header", "seconds"),
    [
        ({}, None, None),
        ({}, "0", 0.0),
        ({}, "7", 7.0),
        ({}, " 7 ", 7.0),
        ({}, "999999999", 999999999.0),
        ({}, "1712956830000", None),
        ({}, "-1", None),
        ({}, "1.5", None),
        ({}, "", None),
        ({}, "soon", None),
        ({}, "\u0667", None),
        ({}, "Wed, 21 Oct 2026 07:28:00 GMT", None),
        ({"retry_after_ms": 1500}, None, 1.5),
        ({"retry_after_ms": 1500}, "7", 1.5),
        ({"retry_after_ms": 0}, "7", 0.0),
        ({"retry_after_ms": INT64_MAX}, "7", INT64_MAX / 1000.0),
        ({"details": {"retry_after_ms": 1500}}, "7", 1.5),
        ({"details": {"retry_after_ms": 1500}, "retry_after_ms": 2500}, "7", 2.5),
        ({"retry_after_ms": -1}, "7", 7.0),
        ({"retry_after_ms": INT64_MAX + 1}, "7", 7.0),
        ({"retry_after_ms": 10**500}, "7", 7.0),
        ({"retry_after_ms": 1.5}, "7", 7.0),
        ({"retry_after_ms": "1500"}, "7", 7.0),
        ({"retry_after_ms": True}, "7", 7.0),
        ({"retry_after_ms": None}, "7", 7.0),
        ({"retry_after_ms": None}, None, None),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_body_says_when_to_come_back_before_the_header_does(body, header, seconds):
    headers = {} if header is None else {"retry_after": header}
    for status, code in ((429, "LIMIT_EXCEEDED"), (409, "BUDGET_EXCEEDED"), (503, "INTERNAL_ERROR")):
        error = refused(CREATE_RESERVATION, status, {"error": code, "message": "m", **body}, **headers)
        assert error.retry_after == seconds
        assert type(error.retry_after) in (float, type(None))


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"retry_after_ms":1500}'])
def test_only_the_header_says_when_to_come_back_where_the_body_is_not_the_protocols(body):
    assert refused(COMMIT_RESERVATION, 503, body, retry_after="7").retry_after == 7.0


# ---- An answer of 200 that denies ----


@pytest.mark.parametrize("code", [*DENIALS, "BUDGET_NOT_FOUND", "ACTION_QUOTA_EXCEEDED", "NEW_REASON", None])
def test_a_denying_answer_becomes_the_error_of_its_reason(code):
    body = {"decision": "DENY", "affected_scopes": ["tenant:acme"], "reason_code": code, "retry_after_ms": 1500}
    error = wire.denied(read_answer(CREATE_RESERVATION, answer(200, body)))
    assert type(error) is DENIALS.get(code, BudgetDenied)
    assert (error.status, error.code) == (200, code)
    assert error.retry_after == 1.5
    assert error.is_retryable
    assert (error.request_id, error.trace_id) == ("req-header", "trace-header")
    assert (code or "DENY") in str(error)


@pytest.mark.parametrize("decision", ["ALLOW", "DENY", "ALLOW_MAYBE"])
def test_an_answer_that_denies_without_a_reason_says_what_it_said(decision):
    evidence = CyclesEvidenceRef("e" * 64, "https://example.com")
    error = wire.denied(ReservationCreateResponse.from_json({"decision": decision, "affected_scopes": []}))
    assert type(error) is BudgetDenied
    assert not error.is_retryable
    assert str(error) == f"refused (200): the reservation was not allowed: {decision}"
    denial = {"decision": "DENY", "affected_scopes": [], "cycles_evidence": evidence.to_json()}
    assert wire.denied(ReservationCreateResponse.from_json(denial)).evidence == evidence


# ---- Whatever comes ----


def outcome(operation, came):
    """The response or the error; anything else fails the test."""
    try:
        return read_answer(operation, came)
    except (ApiError, ResponseError) as error:
        return error


@given(
    operation=st.sampled_from(OPERATIONS),
    status=st.integers(100, 599),
    body=st.binary(max_size=20) | JSON_OBJECTS.map(wire.dumps),
    headers=st.dictionaries(st.sampled_from(["retry-after", "x-request-id", "x-ratelimit-reset"]), st.text(max_size=5)),
)
def test_any_answer_is_a_response_or_an_error_of_ours(operation, status, body, headers):
    made = outcome(operation, Answer(status, headers, body))
    if status == operation.status:
        assert isinstance(made, (operation.response, ResponseError))
    else:
        assert isinstance(made, ApiError if status >= 400 else ResponseError)
    assert len(str(made)) < 500


@given(operation=st.sampled_from(OPERATIONS), data=st.data())
def test_a_legal_answer_with_one_field_spoiled_is_a_response_or_an_error_of_ours(operation, data):
    body = {**told(operation.response, everything=True), "status": operation.proof or "ACTIVE"}
    name = data.draw(st.sampled_from(sorted(body)))
    body[name] = data.draw(
        st.none() | st.booleans() | st.floats(allow_nan=False) | JSON_OBJECTS | st.lists(JSON_OBJECTS)
    )
    made = outcome(operation, answer(operation.status, json.dumps(body).replace("Infinity", "1e999").encode()))
    assert isinstance(made, (operation.response, ResponseError))


def test_a_calls_repr_shows_no_key():
    """Error reporters show the variables of every frame."""
    headers = {wire.API_KEY_HEADER: "sekrit-key"}
    call = wire.Call(wire.GET_RESERVATION, "rsv_1", {}, None, headers, "acme", 1.0, 1.0)
    assert repr(call) == "<Call get_reservation rsv_1>"


@pytest.mark.parametrize("levels", [250, 251])
@pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}")])
def test_json_is_nested_no_deeper_than_its_copies_can_be(levels, ends):
    opening, closing = ends
    body = (opening * levels + "1" + closing * levels).encode()
    if levels > 250:
        with pytest.raises(ValueError, match="nested too deep"):
            wire.loads(body)
    else:
        data = wire.loads(body)
        assert wire.loads(wire.dumps(data)) == data
        assert copy.deepcopy(data) == data
        repr(data)


def test_many_brackets_are_not_deep():
    assert wire.loads(b"[" + b"{}," * 1000 + b'"[[["]') == [{}] * 1000 + ["[[["]


def test_an_errors_details_that_are_nested_deep_keep_nobody_from_logging_it():
    """It is pickled by queues and error trackers, too."""
    details = '{"scope":' + "[" * 900 + "]" * 900 + "}"
    body = f'{{"error": "BUDGET_EXCEEDED", "message": "no", "details": {details}}}'.encode()
    with pytest.raises(ApiError) as raised:
        wire.read_answer(wire.CREATE_RESERVATION, Answer(409, {}, body))
    assert pickle.loads(pickle.dumps(raised.value)).status == 409
    assert str(raised.value)
