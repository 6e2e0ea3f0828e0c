"""Every request and response: what constructors refuse, what answers may bring, what strict servers take."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pickle

import pytest
from hypothesis import given, settings, strategies as st
from samples import ANY_TEXT, BODIES, MODELS, QUERIES, RESPONSES, Proxy, legal, named, told, wrong

from cycles_lite.errors import ValidationError
from cycles_lite.protocol import fields, wire
from cycles_lite.protocol.models import (
    BalanceRequest,
    CommitRequest,
    CyclesEvidenceEnvelope,
    DecisionRequest,
    DecisionResponse,
    EventCreateRequest,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationCreateResponse,
    ReservationExtendRequest,
    ReservationListRequest,
    Response,
)
from cycles_lite.protocol.values import Action, Amount, CyclesMetrics, Decision, SignedAmount, Subject, Unit

ACTION = Action("llm.completion", "gpt-4o")
AMOUNT = Amount.tokens(1000)

#: What each request that has a body needs.
NEEDED = {
    DecisionRequest: {"action": ACTION, "estimate": AMOUNT},
    ReservationCreateRequest: {"action": ACTION, "estimate": AMOUNT},
    CommitRequest: {"actual": AMOUNT},
    ReleaseRequest: {},
    ReservationExtendRequest: {"extend_by_ms": 1000},
    EventCreateRequest: {"action": ACTION, "actual": AMOUNT},
}
WITH_METADATA = [model for model in NEEDED if model is not ReleaseRequest]
WITH_SUBJECT = [DecisionRequest, ReservationCreateRequest, EventCreateRequest]


def test_the_tables_here_know_every_request():
    assert set(NEEDED) == set(BODIES)
    assert {model.__name__ for model in BODIES + QUERIES} == {
        model.__name__ for model in MODELS if model.__name__.endswith("Request")
    }
    assert {operation.response for operation in wire.OPERATIONS} == set(RESPONSES)


# ---- Idempotency keys ----


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_request_gets_a_key_of_its_own_when_it_is_made_and_keeps_it(model):
    first, second = model(**NEEDED[model]), model(**NEEDED[model])
    assert len(first.idempotency_key) == 32
    assert first.idempotency_key != second.idempotency_key
    assert first != second
    assert first.to_json()["idempotency_key"] == first.to_json()["idempotency_key"] == first.idempotency_key
    for again in (copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert again == first


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_key_that_the_program_names_is_kept(model):
    for key in ("k", "k" * 256, "a b", "é", "0"):
        assert model(**NEEDED[model], idempotency_key=key).idempotency_key == key


@pytest.mark.parametrize(
    "key", [None, "", "k" * 257, "a\nb", "\x00", "\x7f", "\ud800", b"k", 7, ["k"]], ids=lambda key: ascii(key)[:20]
)
def test_other_keys_are_refused(key):
    for model in BODIES:
        with pytest.raises(ValidationError, match=r"^idempotency_key: "):
            model(**NEEDED[model], idempotency_key=key)


# ---- Constructors ----

#: Values that are wrong for almost any field, as a program may give them.
STRANGE = [
    b"x",
    -1.5,
    float("nan"),
    1j,
    object(),
    {1: 2},
    {"a": object()},
    {"a": float("inf")},
    ["\ud800"],
    "\ud800",
]


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_constructor_refuses_every_strange_value_in_every_field_and_names_it(model):
    """`{"a": ...}` and the like are wrong for free JSON too."""
    whole = model.from_json(told(model, everything=True))
    for entry in model.layout():
        for value in STRANGE:
            with pytest.raises(ValidationError, match=rf"^{entry.name}(\.a)?: .+ is not ") as caught:
                dataclasses.replace(whole, **{entry.name: value})
            assert len(str(caught.value)) < 250


class Word(str):
    """A string whose methods raise."""

    def __hash__(self):
        raise RuntimeError("no")

    __len__ = __eq__ = __iter__ = __repr__ = __str__ = __hash__


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_constructor_raises_nothing_else_for_values_that_raise(model):
    whole = model.from_json(told(model, everything=True))
    for entry in model.layout():
        with pytest.raises(ValidationError, match=rf"^{entry.name}: "):
            dataclasses.replace(whole, **{entry.name: Proxy()})
        try:
            dataclasses.replace(whole, **{entry.name: Word("x")})
        except ValidationError:
            continue


def test_no_decoration_vetoes_an_amount():
    """What cannot be sent of it is left out, and named."""
    metrics, metadata = CyclesMetrics(tokens_input=1), {"run": 7}
    request, faults = CommitRequest.of_spend(Amount.tokens(7), metrics=metrics, metadata=metadata)
    assert (request.actual, request.metrics, request.metadata, faults) == (Amount.tokens(7), metrics, metadata, [])
    cases = [
        ({"metrics": metrics, "metadata": {"at": datetime.datetime(2026, 1, 1)}}, metrics, None, ["metadata.at: "]),
        ({"metrics": {"latency_ms": 12.7}, "metadata": metadata}, None, metadata, ["metrics: "]),
        ({"metrics": Proxy(), "metadata": Proxy()}, None, None, ["metrics: ", "metadata: "]),
        ({"metadata": None}, None, None, []),
    ]
    for decoration, kept, kept_too, told_of in cases:
        request, faults = CommitRequest.of_spend(Amount.tokens(7), **decoration)
        assert (request.actual, request.metrics, request.metadata) == (Amount.tokens(7), kept, kept_too)
        assert [str(fault).startswith(start) for fault, start in zip(faults, told_of)] == [True] * len(told_of)
        assert len(faults) == len(told_of)
    with pytest.raises(ValidationError, match=r"^actual: 7 is not an Amount$"):
        CommitRequest.of_spend(7, metadata={"at": datetime.datetime(2026, 1, 1)})


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_server_takes_what_only_a_header_could_not_carry(model):
    """The reference does: a key, a kind, a name, a tag or a dimension's name is any text in a body."""
    body = {name: value for name, value in told(model, everything=True).items() if name != "idempotency_key"}
    made = model.parse({**body, "idempotency_key": "a\n\0"})
    assert made.idempotency_key == "a\n\0"
    assert copy.deepcopy(made).to_json()["idempotency_key"] == "a\n\0"
    for illegal in ("", "k" * 257, "\ud800", 7):
        with pytest.raises(ValidationError, match=r"^idempotency_key: "):
            model.parse({**body, "idempotency_key": illegal})


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_constructor_refuses_none_where_none_is_not_the_default(model):
    whole = model.from_json(told(model, everything=True))
    for field in dataclasses.fields(model):
        if field.default is None and model is not Subject:
            assert getattr(dataclasses.replace(whole, **{field.name: None}), field.name) is None
        elif field.default is not None:
            with pytest.raises(ValidationError, match=rf"^{field.name}: None is not "):
                dataclasses.replace(whole, **{field.name: None})


@pytest.mark.parametrize("model", WITH_METADATA, ids=named)
def test_metadata_is_copied_and_must_be_json(model):
    metadata = {"run": 7, "nested": {"list": [1]}}
    request = model(**NEEDED[model], metadata=metadata)
    metadata["nested"]["list"].append(2)
    assert request.metadata == {"run": 7, "nested": {"list": [1]}}
    cyclic = {}
    cyclic["itself"] = cyclic
    for illegal in ({1: "a"}, {"a": {2: "b"}}, {"a": {"b"}}, {"a": float("nan")}, cyclic, {"a": 2**5000}, [], "{}"):
        with pytest.raises(ValidationError, match=r"^metadata"):
            model(**NEEDED[model], metadata=illegal)


def test_what_a_constructor_takes_can_be_sent():
    """Python cannot write integers of thousands of digits, nor lone surrogates: neither gets that far."""
    largest = 2**2048 - 1
    assert wire.loads(wire.dumps(CommitRequest(AMOUNT, metadata={"a": largest}).to_json()))["metadata"] == {
        "a": largest
    }


@pytest.mark.parametrize("model", WITH_SUBJECT, ids=named)
def test_a_program_may_leave_the_subject_to_the_configuration(model):
    assert model(**NEEDED[model]).subject is None
    assert "subject" not in model(**NEEDED[model]).to_json()
    with pytest.raises(ValidationError, match=r"^subject: 'acme' is not a Subject$"):
        model(**NEEDED[model], subject="acme")


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("ttl_ms", 1000, 86_400_000), ("grace_period_ms", 0, 60_000)],
)
def test_a_reservations_times_are_bounded(name, low, high):
    for legal_value in (low, high):
        request = ReservationCreateRequest(ACTION, AMOUNT, **{name: legal_value})
        assert request.to_json()[name] == legal_value
    for illegal in (low - 1, high + 1, float(low), str(low), True):
        with pytest.raises(ValidationError, match=rf"^{name}: "):
            ReservationCreateRequest(ACTION, AMOUNT, **{name: illegal})


def test_an_extension_is_of_1_ms_to_a_day():
    assert ReservationExtendRequest(1).extend_by_ms == 1
    assert ReservationExtendRequest(86_400_000).extend_by_ms == 86_400_000
    for illegal in (0, -1, 86_400_001, 1.0, "1", None):
        with pytest.raises(ValidationError, match=r"^extend_by_ms: "):
            ReservationExtendRequest(illegal)


def test_an_amount_is_one_and_not_the_signed_kind_nor_a_number():
    for illegal in (SignedAmount(Unit.TOKENS, 1), 1000, {"unit": "TOKENS", "amount": 1}, "1000"):
        with pytest.raises(ValidationError, match=r"^actual: .+ is not an Amount$"):
            CommitRequest(illegal)


@pytest.mark.parametrize("model", QUERIES, ids=named)
@pytest.mark.parametrize("limit", [0, 201, -1, 50.0, "50", True])
def test_a_page_has_1_to_200_rows(model, limit):
    assert model(limit=1).limit == 1
    assert model(limit=200).limit == 200
    with pytest.raises(ValidationError, match=r"^limit: "):
        model(limit=limit)


@pytest.mark.parametrize(
    ("model", "name", "longest"),
    [
        (ReleaseRequest, "reason", 256),
        (DecisionResponse, "reason_code", 128),
        (ReservationListRequest, "from_", 64),
        (ReservationListRequest, "finalized_to", 64),
        (ReservationListRequest, "sort_by", 64),
        (ReservationListRequest, "tenant", 128),
        (BalanceRequest, "toolset", 128),
    ],
)
def test_texts_are_bounded(model, name, longest):
    """As `test_document.py` proves of every field, where the document is at hand."""
    needed = {"decision": "DENY"} if model is DecisionResponse else {}
    assert getattr(model(**needed, **{name: "x" * longest}), name) == "x" * longest
    with pytest.raises(ValidationError, match=rf"^{name}: .+ is not at most {longest} characters long$"):
        model(**needed, **{name: "x" * (longest + 1)})


def test_a_blank_end_of_a_time_window_is_no_error():
    """Protocol, TIME-RANGE FILTERS: blank values are common, and MUST be treated as unset."""
    blank = {name: "" for name in ("from_", "to", "expires_from", "expires_to", "finalized_from", "finalized_to")}
    assert ReservationListRequest(**blank).to_json() == {name.rstrip("_"): "" for name in blank}


def test_queries_are_words_and_not_the_names_of_enumerations_members():
    assert ReservationListRequest(status="ACTIVE", sort_dir="asc") == ReservationListRequest.from_json(
        {"status": "ACTIVE", "sort_dir": "asc"}
    )
    with pytest.raises(ValidationError, match=r"^status: 'active' is not one of ACTIVE, COMMITTED, RELEASED, EXPIRED$"):
        ReservationListRequest(status="active")
    with pytest.raises(ValidationError, match=r"^include_children: 'true' is not true or false$"):
        BalanceRequest(include_children="true")


# ---- There and back ----


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_strict_server_reads_what_was_sent(model):
    @given(legal(model))
    def holds(request):
        assert model.parse(wire.loads(wire.dumps(request.to_json()))) == request

    holds()


@pytest.mark.parametrize("model", [model for model in MODELS if model not in BODIES], ids=named)
def test_a_client_reads_what_a_server_with_these_models_writes(model):
    @settings(max_examples=settings.default.max_examples // 4)  # of each of many models
    @given(legal(model))
    def holds(made):
        read = model.from_json(wire.loads(wire.dumps(made.to_json())), strict=True)
        assert read == made
        assert read.extra == {}

    holds()


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_every_field_is_read_and_written_under_its_name(model):
    whole = told(model, everything=True)
    assert model.from_json(whole).to_json() == whole
    assert model.from_json(whole, strict=True).extra == {}


# ---- Requests, as a strict server reads them ----


def objects(data):
    """Every object in JSON that has named fields, with the path to it; free JSON and dimensions aside."""
    yield data
    for name, value in data.items():
        if isinstance(value, dict) and name not in ("metadata", "custom", "dimensions"):
            yield from objects(value)


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_strict_server_refuses_an_unknown_field_at_every_level(model):
    count = len(list(objects(told(model, everything=True))))
    assert count > (2 if model in WITH_SUBJECT else 0)
    for number in range(count):
        for name, value in (("unknown", 1), ("unknown", None), ("idempotencyKey", "k"), ("", {})):
            data = told(model, everything=True)
            model.parse(data)
            list(objects(data))[number][name] = value
            with pytest.raises(ValidationError, match=rf": unknown field '{name}'$"):
                model.parse(data)


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_strict_server_refuses_every_wrong_type_in_every_field(model):
    for entry in model.layout():
        for value in wrong(entry.kind):
            with pytest.raises(ValidationError):
                model.parse({**told(model, everything=True), entry.json_name: value})


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_a_strict_server_demands_the_key_and_what_else_is_needed(model):
    for entry in model.layout():
        whole = told(model, everything=True)
        without = {name: value for name, value in whole.items() if name != entry.json_name}
        if entry.name in ("idempotency_key", "subject", *NEEDED[model]):
            for data in (without, {**whole, entry.json_name: None}):
                with pytest.raises(ValidationError, match=rf"^body: {entry.json_name} is (missing|null)$"):
                    model.parse(data)
        else:
            assert model.parse({**whole, entry.json_name: None}) == model.parse(without)


@pytest.mark.parametrize("model", WITH_SUBJECT, ids=named)
def test_a_strict_server_refuses_a_subject_without_levels(model):
    for subject in ({}, {"dimensions": {"a": "b"}}, {"tenant": None}):
        with pytest.raises(ValidationError, match=r"^subject: at least one of "):
            model.parse({**told(model, everything=True), "subject": subject})


# ---- Answers ----


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_an_answer_with_a_wrong_type_in_any_field_is_refused(model):
    """Generated from the layout: every field, every JSON type but its own, integers out of range included."""
    tried = 0
    for entry in model.layout():
        for value in wrong(entry.kind):
            with pytest.raises(ValidationError):
                model.from_json({**told(model, everything=True), entry.json_name: value})
            tried += 1
    assert tried >= 8


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_an_answer_needs_what_the_model_requires_and_nothing_else(model):
    whole = told(model, everything=True)
    for entry in model.layout():
        without = {name: value for name, value in whole.items() if name != entry.json_name}
        null = {**whole, entry.json_name: None}
        with pytest.raises(ValidationError, match=rf"{entry.json_name} is null$"):
            model.from_json(null, strict=True)
        if entry.required:
            for data in (without, null):
                with pytest.raises(ValidationError, match=rf"^body: {entry.json_name} is (missing|null)$"):
                    model.from_json(data)
        else:
            assert model.from_json(null) == model.from_json(without) == model.from_json(without, strict=True)
            assert model.from_json(without).extra == {}


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_an_answer_may_bring_fields_and_words_that_this_version_does_not_know(model):
    data = told(model, everything=True)
    for entry in model.layout():
        if isinstance(entry.kind, fields.OneOf):
            data[entry.json_name] = "NEW_WORD"
        elif isinstance(entry.kind, fields.Object):
            data[entry.json_name]["new"] = entry.json_name
        elif isinstance(entry.kind, fields.ListOf) and isinstance(entry.kind.kind, fields.Object):
            data[entry.json_name][0]["new"] = entry.json_name
    read = model.from_json({**data, "new": {"deep": [1, None]}}, strict=True)
    assert read.extra == {"new": {"deep": [1, None]}}
    for entry in model.layout():
        value = getattr(read, entry.name)
        if isinstance(entry.kind, fields.OneOf):
            assert value == "NEW_WORD"
            assert type(value) is str
        elif isinstance(value, fields.Model):
            assert value.extra == {"new": entry.json_name}
        elif isinstance(value, tuple) and isinstance(value[0], fields.Model):
            assert value[0].extra == {"new": entry.json_name}


def test_absent_lists_of_an_answer_are_empty():
    assert DecisionResponse.from_json({"decision": "ALLOW"}).affected_scopes == ()
    assert ReservationCreateResponse.from_json({"decision": "DENY", "affected_scopes": []}).balances == ()


@pytest.mark.parametrize("model", [DecisionResponse, ReservationCreateResponse], ids=named)
@pytest.mark.parametrize(
    ("decision", "is_allowed"),
    [
        ("ALLOW", True),
        ("ALLOW_WITH_CAPS", True),
        ("DENY", False),
        ("ALLOW_WITH_CONDITIONS", False),
        ("allow", False),
        ("", False),
    ],
)
def test_only_the_two_known_words_allow_the_work(model, decision, is_allowed):
    data = {"decision": decision, "affected_scopes": []}
    assert model.from_json(data).is_allowed is is_allowed


def test_a_response_that_a_program_makes_allows_too():
    assert DecisionResponse("ALLOW").is_allowed
    assert DecisionResponse(Decision.DENY).is_allowed is False


# ---- What comes with an answer ----


def answered(operation):
    """A response with everything that can come with one."""
    data = {**told(operation.response, everything=True), "new": {"a": [1]}}
    if operation.proof is not None:
        data["status"] = operation.proof
    headers = {"x-request-id": "req-1", "x-cycles-trace-id": "t" * 32, "x-ratelimit-remaining": "-1"}
    return wire.read_answer(operation, wire.Answer(operation.status, headers, wire.dumps(data)))


@pytest.mark.parametrize("operation", wire.OPERATIONS, ids=lambda operation: operation.name)
def test_a_copied_or_pickled_response_keeps_everything(operation):
    response = answered(operation)
    copies = [pickle.loads(pickle.dumps(response, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in [*copies, copy.copy(response), copy.deepcopy(response)]:
        assert again == response
        assert type(again) is operation.response
        assert again.extra == response.extra == {"new": {"a": [1]}}
        assert again.headers == response.headers
        assert again.body == response.body != b""
        assert again.request_id == "req-1"
        assert vars(again) == vars(response)


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_every_object_is_frozen_and_shows_itself_and_copies(model):
    made = model.from_json({**told(model, everything=True), "new": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, model.layout()[0].name, None)
    assert repr(made).startswith(model.__name__ + "(")
    for entry in model.layout():
        assert f"{entry.name}={getattr(made, entry.name)!r}" in repr(made)
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert again.extra == {"new": 1}


def test_an_object_is_hashable_unless_it_holds_a_mapping():
    for model in MODELS:
        made = model.from_json(told(model))
        if any(isinstance(value, dict) for value in vars(made).values()):
            with pytest.raises(TypeError):
                hash(made)
        else:
            assert hash(made) == hash(copy.deepcopy(made))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("0", 0),
        ("17", 17),
        ("-1", -1),
        ("1712956830", 1712956830),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("", None),
        ("many", None),
        ("1.5", None),
        ("1e3", None),
        ("- 1", None),
        ("--1", None),
        ("1\n", None),
        ("\u0661", None),
    ],
)
def test_rate_limits_are_integers_or_nothing(value, expected):
    response = answered(wire.DECIDE)
    headers = {} if value is None else {"x-ratelimit-remaining": value, "x-ratelimit-reset": value}
    response.__dict__["headers"] = headers
    assert response.rate_limit_remaining == expected
    assert response.rate_limit_reset == expected


def test_a_response_without_headers_has_no_ids():
    for model in RESPONSES:
        response = model.from_json(told(model))
        assert response.request_id is None
        assert response.trace_id is None
        assert response.rate_limit_remaining is None
        assert response.rate_limit_reset is None
        assert response.body == b""
    assert Response.headers == {}


def test_an_evidence_envelope_tells_the_trace_of_the_operation_that_it_is_about():
    assert answered(wire.GET_EVIDENCE).trace_id == "word"
    assert answered(wire.GET_EVIDENCE_KEYS).trace_id == "t" * 32
    assert CyclesEvidenceEnvelope.from_json(told(CyclesEvidenceEnvelope)).trace_id is None


@given(st.text(ANY_TEXT), st.text(ANY_TEXT))
def test_text_of_a_server_is_taken_as_it_is(scope, path):
    data = {"scope": scope, "scope_path": path, "remaining": {"unit": "TOKENS", "amount": -1}}
    (balance,) = wire.read_answer(wire.GET_BALANCES, wire.Answer(200, {}, wire.dumps({"balances": [data]}))).balances
    assert (balance.scope, balance.scope_path, balance.remaining) == (scope, path, SignedAmount("TOKENS", -1))


def test_a_subclass_says_itself_what_is_sent_of_it():
    class Doubled(Amount):
        def to_json(self):
            return {**super().to_json(), "amount": self.amount * 2}

    assert CommitRequest(actual=Doubled.tokens(2)).to_json()["actual"]["amount"] == 4
