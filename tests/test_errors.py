"""The tree of errors: what is what, what may be tried again, and what an error shows and keeps."""

from __future__ import annotations

import concurrent.futures
import copy
import inspect
import json
import multiprocessing
import pickle

import pytest
from implementation import IS_PYPY

from cycles_lite import errors
from cycles_lite.background.lease import Failure, classify
from cycles_lite.errors import (
    ApiError,
    BudgetDenied,
    BudgetExceededError,
    ConfigError,
    CyclesError,
    GuardFinalizedError,
    ResponseError,
    SettlementRejectedError,
    TransportError,
    TransportTimeout,
    ValidationError,
    error_class,
)
from cycles_lite.local.messages import refusal_answer
from cycles_lite.local.rules import Refused
from cycles_lite.protocol import wire
from cycles_lite.protocol.models import ReservationCreateResponse
from cycles_lite.protocol.values import CyclesEvidenceRef, Decision
from cycles_lite.settlement.journal import COMMIT, EVENT
from cycles_lite.settlement.meaning import Meaning, meaning_of

#: Design, section 4, as it stands there: each class and what it is directly below.
TREE = {
    "CyclesError": ("Exception",),
    "ConfigError": ("CyclesError", "ValueError"),
    "ValidationError": ("CyclesError", "ValueError"),
    "GuardFinalizedError": ("CyclesError", "RuntimeError"),
    "TransportError": ("CyclesError",),
    "TransportTimeout": ("TransportError",),
    "ResponseError": ("CyclesError",),
    "ApiError": ("CyclesError",),
    "BudgetDenied": ("ApiError",),
    "BudgetExceededError": ("BudgetDenied",),
    "OverdraftLimitExceededError": ("BudgetDenied",),
    "DebtOutstandingError": ("BudgetDenied",),
    "BudgetFrozenError": ("BudgetDenied",),
    "BudgetClosedError": ("BudgetDenied",),
    "TenantClosedError": ("BudgetDenied",),
    "SettlementRejectedError": ("ApiError",),
    "ReservationExpiredError": ("ApiError",),
    "ReservationFinalizedError": ("ApiError",),
    "MaxExtensionsExceededError": ("ApiError",),
    "InvalidRequestError": ("ApiError",),
    "UnitMismatchError": ("ApiError",),
    "IdempotencyMismatchError": ("ApiError",),
    "NotFoundError": ("ApiError",),
    "AuthenticationError": ("ApiError",),
    "ForbiddenError": ("ApiError",),
    "RateLimitedError": ("ApiError",),
    "ServerError": ("ApiError",),
}
CLASSES = [getattr(errors, name) for name in TREE]

#: Those that the same call may follow, whatever else the error tells.
RETRYABLE = {"TransportError", "TransportTimeout", "ResponseError", "RateLimitedError", "ServerError"}

EVERYTHING = {
    "status": 409,
    "code": "BUDGET_EXCEEDED",
    "details": {"scope": "tenant:acme", "other": [1]},
    "evidence": CyclesEvidenceRef("e" * 64, "https://example.com"),
    "note": "unit sent: TOKENS",
    "retry_after": 1.5,
    "request_id": "req-1",
    "trace_id": "trace-1",
}


def named(value):
    return value.__name__


def made(kind):
    """An error of the class with everything that it can tell."""
    if issubclass(kind, ApiError):
        return kind("what happened", **EVERYTHING)
    known = {name: EVERYTHING[name] for name in ("retry_after", "request_id", "trace_id")}
    if issubclass(kind, ResponseError):
        known["status"] = 200
    return kind("what happened", **known)


# ---- The tree ----


def test_the_tree_is_that_of_the_design():
    found = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert found == TREE


def test_a_refused_settlement_and_a_denial_are_never_each_other():
    """`except BudgetDenied: fallback()` must not do work a second time."""
    assert not issubclass(SettlementRejectedError, BudgetDenied)
    for kind in CLASSES:
        if issubclass(kind, BudgetDenied):
            assert not issubclass(kind, SettlementRejectedError)


def test_an_unknown_outcome_is_never_a_refusal():
    for kind in (TransportError, TransportTimeout, ResponseError, ConfigError, ValidationError, GuardFinalizedError):
        assert not issubclass(kind, ApiError)
    assert not issubclass(TransportTimeout, TimeoutError)


@pytest.mark.parametrize("kind", CLASSES, ids=named)
def test_every_class_says_what_it_means(kind):
    own = kind.__dict__["__doc__"]
    assert own.strip().endswith((".", ")."))
    assert len(own) > 20


# ---- What may be tried again ----


@pytest.mark.parametrize("kind", CLASSES, ids=named)
def test_what_may_be_tried_again(kind):
    for retry_after in (None, 0.0, 1.5):
        error = kind("m", retry_after=retry_after)
        if issubclass(kind, BudgetDenied):
            assert error.is_retryable is (retry_after is not None)
        else:
            assert error.is_retryable is (kind.__name__ in RETRYABLE)


# ---- What an error keeps ----


@pytest.mark.parametrize("kind", CLASSES, ids=named)
def test_an_error_can_be_made_of_a_message_alone_or_of_nothing(kind):
    for error in (kind("m"), kind()):
        assert error.message in ("m", "")
        assert error.args == (error.message,)
        assert error.retry_after is None
        assert error.request_id is None
        assert error.trace_id is None
        assert isinstance(str(error), str)


@pytest.mark.parametrize("kind", CLASSES, ids=named)
def test_a_copied_or_pickled_error_keeps_everything(kind):
    error = made(kind)
    error.told_by_a_worker = {"pid": 7}
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in [*copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert again.args == error.args
        assert again.args[0] == "what happened"
        assert str(again) == str(error)
        assert repr(again) == repr(error)
        assert again.is_retryable is error.is_retryable
        assert again.retry_after == 1.5
        assert again.request_id == "req-1"
        assert again.trace_id == "trace-1"
        assert again.told_by_a_worker == {"pid": 7}


SOMETHING = [
    lambda: ApiError(),
    lambda: ApiError("m", status=404),
    lambda: ApiError("m", code="NEW"),
    lambda: ApiError("m", trace_id="t"),
    lambda: BudgetDenied("m", retry_after=0.0),
    lambda: BudgetDenied("m", details={"scope": "tenant:acme", "deep": [{"a": None}]}, request_id="r"),
    lambda: ApiError("m", note="unit sent: TOKENS"),
    lambda: ResponseError("m", status=200),
    lambda: ResponseError("m", retry_after=1.5),
    lambda: TransportError("m", trace_id="t"),
    lambda: ValidationError("m"),
]


@pytest.mark.parametrize(
    "make", [*[lambda kind=kind: made(kind) for kind in CLASSES], *SOMETHING], ids=lambda make: repr(make())
)
def test_an_error_is_rebuilt_of_its_args_and_they_are_json(make):
    """As Celery's JSON result backend does it, and whatever else knows no more of an exception than `args`."""
    error = make()
    for args in (error.args, json.loads(json.dumps(error.args))):
        again = type(error)(*args)
        assert vars(again) == vars(error)
        assert (str(again), repr(again), again.args) == (str(error), repr(error), error.args)
        assert again.is_retryable is error.is_retryable


def test_the_order_of_the_arguments_is_fixed():
    known = ("m", 409, "CODE", {"scope": "s"}, {"evidence_id": "e", "cycles_evidence_url": "u"}, "note", 1.5, "r", "t")
    error = ApiError(*known)
    assert error.args == known
    assert error.evidence == CyclesEvidenceRef("e", "u")
    assert (error.status, error.code, error.details) == (409, "CODE", {"scope": "s"})
    assert (error.retry_after, error.request_id, error.trace_id) == (1.5, "r", "t")
    assert str(error) == "CODE (409): m [scope=s, note, request_id=r]"
    assert ResponseError("m", 200, 1.5, "r", "t").args == ("m", 200, 1.5, "r", "t")
    assert ResponseError("m", 200, 1.5, "r", trace_id="t").status == 200
    assert TransportError("m", 1.5, "r", "t").args == ("m", 1.5, "r", "t")


def test_an_error_is_made_whatever_a_rebuilder_makes_of_its_facts():
    """Such as the reprs that Celery puts in the place of what its serializer refuses."""
    error = ApiError("m", 409, "CODE", "{'scope': object}", "CyclesEvidenceRef(...)", None)
    assert (error.details, error.evidence) == ({}, None)
    assert str(error) == "CODE (409): m"
    assert ApiError("m", None, evidence={"no": "evidence"}).evidence is None


@pytest.mark.parametrize("kind", CLASSES, ids=named)
def test_an_error_is_itself_after_celerys_json_backend(kind):
    backends = pytest.importorskip("celery.backends.base")
    celery = pytest.importorskip("celery")
    error = made(kind)
    with celery.Celery("tests", set_as_current=False) as app:
        backend = backends.Backend(app=app, serializer="json")
        stored = backend.decode(backend.encode(backend.prepare_exception(error)))
        again = backend.exception_to_python(stored)
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert again.args == error.args


@pytest.mark.skipif(IS_PYPY, reason="the process pool of PyPy 3.9.16 fails by itself")
def test_an_error_crosses_from_another_process():
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(made, BudgetExceededError).exception(timeout=60)
        assert error is None
        error = pool.submit(fail, BudgetExceededError).exception(timeout=60)
    assert type(error) is BudgetExceededError
    assert str(error) == str(made(BudgetExceededError))
    assert error.evidence == EVERYTHING["evidence"]


def fail(kind):
    raise made(kind)


# ---- Names of the official SDK ----


OFFICIAL = {
    "error_code": "`code`",
    "reason_code": "`code`",
    "retry_after_ms": "`retry_after`, which is in seconds",
    "is_budget_exceeded": "BudgetExceededError",
    "is_overdraft_limit_exceeded": "OverdraftLimitExceededError",
    "is_debt_outstanding": "DebtOutstandingError",
    "is_tenant_closed": "TenantClosedError",
    "is_reservation_expired": "ReservationExpiredError",
    "is_reservation_finalized": "ReservationFinalizedError",
    "is_idempotency_mismatch": "IdempotencyMismatchError",
    "is_unit_mismatch": "UnitMismatchError",
    "cause": "`__cause__`",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_attribute_of_the_official_error_names_the_replacement(name):
    error = made(BudgetExceededError)
    assert not hasattr(error, name)
    with pytest.raises(
        AttributeError, match=f"^'BudgetExceededError' object has no attribute '{name}': use ."
    ) as found:
        getattr(error, name)
    assert OFFICIAL[name] in str(found.value)


def test_other_attributes_are_as_absent_as_ever():
    with pytest.raises(AttributeError) as caught:
        _ = ValidationError("m").other
    assert str(caught.value) == "'ValidationError' object has no attribute 'other'"


def test_a_transport_error_tells_of_a_stale_connection_after_pickling_too():
    error = TransportTimeout("m")
    assert error.stale is False
    error.stale = True
    assert pickle.loads(pickle.dumps(error)).stale is True
    assert TransportTimeout("m").stale is False


def test_an_api_error_has_every_fact_as_an_attribute():
    error = made(BudgetExceededError)
    assert error.status == 409
    assert error.code == "BUDGET_EXCEEDED"
    assert error.details == {"scope": "tenant:acme", "other": [1]}
    assert error.evidence == CyclesEvidenceRef("e" * 64, "https://example.com")
    assert ApiError("m").details == {}
    assert ApiError("m").details is not ApiError("m").details
    assert (ApiError("m").status, ApiError("m").code, ApiError("m").evidence) == (0, None, None)
    assert made(ResponseError).status == 200
    assert ResponseError("m").status == 0


def test_details_are_the_errors_own():
    details = {"scope": "tenant:acme"}
    error = ApiError("m", details=details)
    details["scope"] = "other"
    assert error.details == {"scope": "tenant:acme"}


# ---- What an error shows ----


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CyclesError("what happened"), "what happened"),
        (ResponseError("what happened", status=200, request_id="r"), "what happened"),
        (ApiError(), "refused (0)"),
        (ApiError("what happened", status=418), "refused (418): what happened"),
        (ApiError("", status=404, code="NOT_FOUND"), "NOT_FOUND (404)"),
        (ApiError("no", status=404, code="NOT_FOUND", request_id="r"), "NOT_FOUND (404): no [request_id=r]"),
        (
            BudgetExceededError(
                "no",
                status=409,
                code="BUDGET_EXCEEDED",
                details={"remaining": 7, "requested": 1000, "unit": "TOKENS", "scope": "tenant:acme", "other": "x"},
                request_id="r",
            ),
            "BUDGET_EXCEEDED (409): no [scope=tenant:acme, unit=TOKENS, requested=1000, remaining=7, request_id=r]",
        ),
        (
            ApiError(
                "wrong unit",
                status=400,
                code="UNIT_MISMATCH",
                details={"scope": "tenant:acme", "requested_unit": "TOKENS", "expected_units": ["CREDITS"]},
            ),
            "UNIT_MISMATCH (400): wrong unit [scope=tenant:acme, requested_unit=TOKENS, expected_units=['CREDITS']]",
        ),
        (
            ApiError("no budget", status=404, code="NOT_FOUND", note="unit sent: TOKENS", request_id="r"),
            "NOT_FOUND (404): no budget [unit sent: TOKENS, request_id=r]",
        ),
        (ApiError("m", status=409, details={"remaining": 0}), "refused (409): m [remaining=0]"),
    ],
)
def test_an_error_shows_code_scope_unit_and_amounts(error, text):
    assert str(error) == text


def test_details_that_are_not_for_messages_are_not_shown():
    """They may hold whatever a server or a proxy put there."""
    error = ApiError("m", status=400, details={"api_key": "cyc_secret", "header": "Bearer secret", "scope": "s"})
    assert "secret" not in str(error)
    assert "secret" not in repr(error)


# ---- From answers to classes ----


@pytest.mark.parametrize("status", [401, 403, 410, 429, 500, 599])
def test_the_status_alone_decides_where_it_says_enough(status):
    expected = {
        401: "AuthenticationError",
        403: "ForbiddenError",
        410: "ReservationExpiredError",
        429: "RateLimitedError",
    }
    for code in (None, "", "NEW", "BUDGET_EXCEEDED", "RESERVATION_FINALIZED", "INVALID_REQUEST", "LIMIT_EXCEEDED"):
        for reserves, settles in ((True, False), (False, True), (False, False)):
            kind = error_class(status, code, reserves=reserves, settles=settles)
            assert kind.__name__ == expected.get(status, "ServerError")


@pytest.mark.parametrize("code", [None, "", "NEW", "budget_exceeded", "BUDGET_NOT_FOUND"])
def test_an_unknown_code_is_a_plain_refusal(code):
    for reserves, settles in ((True, False), (False, True), (False, False)):
        assert error_class(409, code, reserves=reserves, settles=settles) is ApiError


def test_a_denial_is_one_only_before_the_work():
    denials = {code: row.kind for code, row in errors.CODES.items() if row.denies}
    for code, denial in denials.items():
        assert error_class(409, code, reserves=True, settles=False) is denial
        assert error_class(409, code, reserves=False, settles=True) is SettlementRejectedError
        assert error_class(409, code, reserves=False, settles=False) is ApiError
    assert len(set(denials.values())) == len(denials) == 6


# ---- One row for each code ----


def test_each_code_has_a_class_of_its_own():
    kinds = [row.kind for row in errors.CODES.values()]
    assert len(set(kinds)) == len(kinds)


class QuotaExceededError(BudgetDenied):
    """A code of a newer protocol."""


def test_a_new_code_is_one_row(monkeypatch):
    """All that asks what a code means finds it there: clients, settlement, heartbeats and the embedded authority."""
    new = "QUOTA_EXCEEDED"
    error = ApiError("no", status=409, code=new)
    came = refusal_answer(Refused(new, "Too much."), {}, None)
    assert came.status == 409
    assert type(refusal_in(came, wire.CREATE_RESERVATION)) is ApiError
    assert {meaning_of(mode, error) for mode in (COMMIT, EVENT)} == {Meaning.HELD}
    assert classify(error) is Failure.REFUSED

    monkeypatch.setitem(errors.CODES, new, errors.Code(QuotaExceededError, 402, final_for=(COMMIT,), ends_lease=True))
    came = refusal_answer(Refused(new, "Too much."), {}, None)
    assert came.status == 402
    assert type(refusal_in(came, wire.CREATE_RESERVATION)) is QuotaExceededError
    assert type(refusal_in(came, wire.COMMIT_RESERVATION)) is SettlementRejectedError
    assert type(refusal_in(came, wire.RELEASE_RESERVATION)) is ApiError
    denying = ReservationCreateResponse(Decision.DENY, (), reason_code=new)
    assert type(wire.denied(denying)) is QuotaExceededError
    assert meaning_of(COMMIT, error) is Meaning.REJECTED
    assert meaning_of(EVENT, error) is Meaning.HELD
    assert classify(error) is Failure.PERMANENT


def refusal_in(answer, operation):
    with pytest.raises(ApiError) as caught:
        wire.read_answer(operation, answer)
    return caught.value


def test_a_servers_words_are_shown_in_what_every_log_can_encode():
    """A file's handler drops a line with a lone surrogate, and a terminal obeys an escape."""
    told = ApiError("no \ud800\x1b[31m\n", 400, "ODD\r", {"scope": "\u2028"}, request_id="caf\u00e9")
    assert str(told) == r"ODD\r (400): no \ud800\x1b[31m\n [scope=\u2028, request_id=café]"
    assert told.message == "no \ud800\x1b[31m\n"
