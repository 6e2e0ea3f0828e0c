"""The models against the protocol's own document: every schema, bound, enumeration, operation and code of it.

All expectations are generated from the document. Where the models differ on purpose, a table says so and why.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from samples import BODIES, MODELS, QUERIES, legal, named

from cycles_lite import errors
from cycles_lite.errors import ValidationError
from cycles_lite.protocol import models, values, wire
from cycles_lite.protocol.checks import INT64_MAX, INT64_MIN
from cycles_lite.protocol.fields import OneOf

yaml = pytest.importorskip("yaml", reason="PyYAML reads the document")
jsonschema = pytest.importorskip("jsonschema")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH = os.path.join(os.path.dirname(ROOT), "shared", "protocol", "cycles-protocol-v0.yaml")
if not os.path.exists(PATH):
    pytest.skip("the protocol's document is not at ../shared/protocol", allow_module_level=True)


def load():
    with open(PATH, encoding="utf-8") as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C one is ten times as fast


DOCUMENT = load()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def resolved(node):
    """The node that a reference leads to."""
    while "$ref" in node:
        name = node["$ref"]
        node = DOCUMENT
        for step in name.lstrip("#/").split("/"):
            node = node[step]
    return node


def target(node):
    """The name of the schema that a node refers to, or nothing."""
    return node.get("$ref", "").rpartition("/")[2]


def query_schema(method, path):
    """An operation's query parameters as the schema of an object."""
    parameters = [resolved(parameter) for parameter in OPERATIONS[method, path]["parameters"]]
    properties = {each["name"]: each["schema"] for each in parameters if each["in"] == "query"}
    required = [each["name"] for each in parameters if each["in"] == "query" and each.get("required")]
    return {"type": "object", "properties": properties, "required": required}


#: Where a model's name is not its schema's.
OTHER_NAMES = {"CyclesMetrics": "StandardMetrics"}
QUERY_SCHEMAS = {
    models.ReservationListRequest: query_schema("GET", "/v1/reservations"),
    models.BalanceRequest: query_schema("GET", "/v1/balances"),
}
SCHEMA_OF = {
    model: QUERY_SCHEMAS.get(model) or SCHEMAS[OTHER_NAMES.get(model.__name__, model.__name__)] for model in MODELS
}
MODEL_OF = {OTHER_NAMES.get(model.__name__, model.__name__): model for model in MODELS if model not in QUERIES}
ENUMERATION_OF = {
    "UnitEnum": values.Unit,
    "DecisionEnum": values.Decision,
    "CommitOveragePolicy": values.CommitOveragePolicy,
    "ReservationStatus": values.ReservationStatus,
    "SortDirection": values.SortDirection,
    "ErrorCode": errors.ErrorCode,
}

#: What the document requires of an answer and a model does not, so that an older or smaller server is understood too.
NOT_DEMANDED = {("ErrorResponse", "request_id")}

#: Closed sets of words in the document that stay plain text in a model: `wire` compares the proof words, a newer
#: server may have more of the others, and evidence is checked by other tools.
OPEN_WORDS = {
    ("CommitResponse", "status"),
    ("ReleaseResponse", "status"),
    ("ReservationExtendResponse", "status"),
    ("EventCreateResponse", "status"),
    ("ErrorResponse", "error"),
    ("ReservationListRequest", "sort_by"),
    ("CyclesEvidenceEnvelope", "schema_version"),
    ("CyclesEvidenceEnvelope", "artifact_type"),
    ("CyclesEvidenceJwk", "kty"),
    ("CyclesEvidenceJwk", "crv"),
    ("CyclesEvidenceJwk", "alg"),
    ("CyclesEvidenceJwk", "status"),
}

#: Bounds of a model that the document does not have.
STRICTER = {
    # A level longer than a subject's matches nothing.
    **{(model.__name__, level): 128 for model in QUERIES for level in values.SUBJECT_LEVELS},
    # A date-time, the name of a field, of a sort key.
    **{
        ("ReservationListRequest", name): 64
        for name in ("from", "to", "expires_from", "expires_to", "finalized_from", "finalized_to", "sort_by", "include")
    },
    # The list's rows have a minimum, and a reservation's own answer is one of them.
    **{("ReservationDetail", name): 0 for name in ("created_at_ms", "expires_at_ms", "finalized_at_ms")},
}


#: Identifiers that a model does not take empty though the document has no `minLength`: servers refuse an empty level,
#: kind or name, and nothing else is called that.
NEVER_EMPTY = {
    *[(model, level) for model in ("Subject", *map(named, QUERIES)) for level in values.SUBJECT_LEVELS],
    *[("Action", name) for name in ("kind", "name")],
    ("ReservationListRequest", "include"),
}


# ---- What the document calls for ----


def sample(schema):
    """The least legal JSON for a schema."""
    schema = resolved(schema)
    kind = schema.get("type")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 0))
    if kind == "integer" or kind == ["integer", "null"]:
        return max(0, schema.get("minimum", 0))
    if kind == "boolean":
        return True
    if kind == "array":
        return []
    assert kind == "object", schema
    needed = [*schema.get("required", ()), *schema.get("anyOf", [{"required": ()}])[0]["required"]]
    return {name: sample(schema["properties"][name]) for name in needed}


def whole(schema):
    """Legal JSON with every property of a schema, at every level."""
    schema = resolved(schema)
    if schema.get("type") == "array":
        return [whole(schema["items"])]
    if schema.get("type") != "object":
        return sample(schema)
    return {name: whole(property) for name, property in schema.get("properties", {}).items()}


def as_given(schema, data):
    """JSON as a program gives it to a constructor: models where the document has objects with a name."""
    model = MODEL_OF.get(target(schema))
    if model is not None:
        return made(model, data)
    items = resolved(schema).get("items")
    if items is not None and target(items) in MODEL_OF:
        return [as_given(items, item) for item in data]
    return data


def made(model, data):
    """The model's object for JSON, through its constructor."""
    properties = SCHEMA_OF[model]["properties"]
    names = {entry.json_name: entry.name for entry in model.layout()}
    return model(**{names[name]: as_given(properties[name], value) for name, value in data.items()})


def probes(schema):
    """Legal and illegal values of a property at the document's bounds: (value, is legal, where the bound is)."""
    schema = resolved(schema)
    kind = schema.get("type")
    if "enum" in schema:
        for member in schema["enum"]:
            yield member, True, "enum"
        yield "NOT_IN_THE_DOCUMENT", False, "enum"
    elif kind == "string" and "const" not in schema and "pattern" not in schema and "format" not in schema:
        longest = schema.get("maxLength")
        yield "x" * (longest or 5000), True, "maxLength"
        if longest is not None:
            yield "x" * (longest + 1), False, "maxLength"
            yield "é" * longest, True, "maxLength"
        if "minLength" in schema:
            yield "x" * schema["minLength"], True, "minLength"
            yield "x" * (schema["minLength"] - 1), False, "minLength"
        else:
            yield "", True, "no minLength"
    elif kind == "integer" or kind == ["integer", "null"]:
        low, high = schema.get("minimum", INT64_MIN), schema.get("maximum", INT64_MAX)
        yield low, True, "minimum"
        yield low - 1, False, "minimum"
        yield high, True, "maximum"
        yield high + 1, False, "maximum"
    elif kind == "array":
        most = schema.get("maxItems")
        item = sample(schema["items"])
        yield [item] * (most or 1000), True, "maxItems"
        if most is not None:
            yield [item] * (most + 1), False, "maxItems"
        if target(schema["items"]) not in MODEL_OF:
            for value, is_legal, where in probes(schema["items"]):
                yield [value], is_legal, "items." + where
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        most = schema["maxProperties"]
        yield {f"name{number}": "x" for number in range(most)}, True, "maxProperties"
        yield {f"name{number}": "x" for number in range(most + 1)}, False, "maxProperties"
        for value, is_legal, where in probes(schema["additionalProperties"]):
            yield {"name": value}, is_legal, "additionalProperties." + where


PROPERTIES = [(model, name) for model in MODELS for name in SCHEMA_OF[model]["properties"]]


def is_taken(model, data):
    """Whether the model's constructor takes the data. If so, it must keep it as it was."""
    try:
        written = made(model, data).to_json()
    except ValidationError:
        return False
    assert {name: written.get(name, False) for name in data} == data
    return True


# ---- Schemas ----


def test_every_object_of_the_document_has_a_model_and_every_model_a_schema():
    objects = {name for name, schema in SCHEMAS.items() if schema["type"] == "object"}
    assert set(MODEL_OF) == objects
    assert set(ENUMERATION_OF) == {name for name, schema in SCHEMAS.items() if "enum" in schema}


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_model_has_the_properties_of_its_schema(model):
    assert {entry.json_name for entry in model.layout()} == set(SCHEMA_OF[model]["properties"])


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_model_knows_every_field_at_every_level_of_what_the_document_describes(model):
    data = whole(SCHEMA_OF[model])
    read = model.from_json(data)
    assert read.extra == {}
    assert read.to_json() == data
    assert made(model, data) == read


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_model_requires_what_its_schema_requires(model):
    data = whole(SCHEMA_OF[model])
    required = set(SCHEMA_OF[model].get("required", ()))
    read = model.parse if model in BODIES else model.from_json
    for name in data:
        without = {other: value for other, value in data.items() if other != name}
        if name in required and (model.__name__, name) not in NOT_DEMANDED:
            with pytest.raises(ValidationError, match=rf"^body: {name} is missing$"):
                read(without)
        else:
            read(without)


@pytest.mark.parametrize("model", [values.Amount, values.Action, values.Subject, values.CyclesMetrics], ids=named)
def test_what_requests_are_made_of_is_demanded_too(model):
    data = whole(SCHEMA_OF[model])
    for name in SCHEMA_OF[model].get("required", ()):
        with pytest.raises(ValidationError, match=rf"^body: {name} is missing$"):
            model.parse({other: value for other, value in data.items() if other != name})


def test_a_subject_needs_one_of_the_levels_of_the_document():
    levels = [name for choice in SCHEMAS["Subject"]["anyOf"] for name in choice["required"]]
    assert tuple(levels) == values.SUBJECT_LEVELS


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_models_bounds_are_those_of_the_document(model):
    """The constructor at each bound and one beyond it, where the document has one and where it has none."""
    for name, schema in SCHEMA_OF[model]["properties"].items():
        for value, is_legal, where in probes(schema):
            if is_legal and where.endswith(("maxLength", "minimum")) and (model.__name__, name) in STRICTER:
                continue
            expected = is_legal or (where == "enum" and (model.__name__, name) in OPEN_WORDS)
            if where.endswith("no minLength"):
                expected = (model.__name__, name) not in NEVER_EMPTY
            assert is_taken(model, {**sample(SCHEMA_OF[model]), name: value}) is expected, (name, where)


def test_enough_bounds_of_the_document_were_found():
    """Should the document change its shape, the test above must not quietly prove nothing."""
    refused = [
        where.rpartition(".")[2]
        for model, name in PROPERTIES
        for _, is_legal, where in probes(SCHEMA_OF[model]["properties"][name])
        if not is_legal
    ]
    found = {where: refused.count(where) for where in refused}
    least = {
        "maxLength": 25,
        "minLength": 6,
        "minimum": 20,
        "maximum": 20,
        "maxItems": 1,
        "maxProperties": 1,
        "enum": 10,
    }
    assert found.keys() == least.keys()
    assert [where for where in least if found[where] < least[where]] == []


def test_stricter_bounds_are_as_the_table_says():
    by_name = {model.__name__: model for model in MODELS}
    for (model, name), bound in STRICTER.items():
        cases = [(0, True), (-1, False)] if bound == 0 else [("x" * bound, True), ("x" * (bound + 1), False)]
        for value, is_legal in cases:
            data = {**sample(SCHEMA_OF[by_name[model]]), name: [value] if name == "include" else value}
            assert is_taken(by_name[model], data) is is_legal, (model, name)


@pytest.mark.parametrize("name", sorted(ENUMERATION_OF))
def test_an_enumeration_has_the_members_of_the_document(name):
    assert [member.value for member in ENUMERATION_OF[name]] == SCHEMAS[name]["enum"]
    assert [member.name.lower() for member in ENUMERATION_OF[name]] == [word.lower() for word in SCHEMAS[name]["enum"]]


def test_every_property_with_a_named_enumeration_has_it_in_the_model():
    for model, name in PROPERTIES:
        enumeration = ENUMERATION_OF.get(target(SCHEMA_OF[model]["properties"][name]))
        (entry,) = [entry for entry in model.layout() if entry.json_name == name]
        if enumeration is not None and (model.__name__, name) not in OPEN_WORDS:
            assert entry.kind.enumeration is enumeration
        else:
            assert not isinstance(entry.kind, OneOf)


@pytest.mark.parametrize("model", BODIES, ids=named)
def test_what_is_sent_is_legal_by_the_document(model):
    schema = {"$ref": "#/components/schemas/" + model.__name__, "components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(schema)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(legal(model))
    def holds(request):
        data = wire.loads(wire.dumps(request.to_json()))
        assert [error.message for error in validator.iter_errors(data)] == []

    holds()
    assert not validator.is_valid({})
    assert not validator.is_valid({**sample(SCHEMA_OF[model]), "unknown": 1})


# ---- Operations ----


def as_in_the_document(operation):
    """The document's operation that one of ours is."""
    (found,) = [
        OPERATIONS[method, path]
        for method, path in OPERATIONS
        if method == operation.method
        and path.replace("{reservation_id}", "{id}").replace("{evidence_id}", "{id}") == operation.path
    ]
    return found


def body_schema(node):
    return node["content"]["application/json"]["schema"]


def test_every_operation_of_the_document_is_there_once():
    assert len(wire.OPERATIONS) == len(OPERATIONS)
    ids = [as_in_the_document(operation)["operationId"] for operation in wire.OPERATIONS]
    assert len(set(ids)) == len(OPERATIONS)


@pytest.mark.parametrize("operation", wire.OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_is_as_in_the_document(operation):
    document = as_in_the_document(operation)
    successes = [status for status in document["responses"] if status.startswith("2")]
    assert successes == [str(operation.status)]
    schema = body_schema(document["responses"][str(operation.status)])
    assert MODEL_OF[target(schema)] is operation.response
    assert operation.public is (document.get("security") == [])
    if "requestBody" in document:
        assert MODEL_OF[target(body_schema(document["requestBody"]))] is operation.request
    else:
        assert operation.request is None
    proof = SCHEMA_OF[operation.response]["properties"].get("status", {}).get("enum")
    assert proof == (None if operation.proof is None else [operation.proof])


def test_the_headers_have_the_documents_names():
    components = DOCUMENT["components"]
    assert components["parameters"]["IdempotencyKeyHeader"]["name"] == wire.IDEMPOTENCY_KEY_HEADER
    assert components["securitySchemes"]["ApiKeyAuth"]["name"] == wire.API_KEY_HEADER
    response = models.DecisionResponse("ALLOW")
    for number, header in enumerate(
        ("X-Request-Id", "X-Cycles-Trace-Id", "X-RateLimit-Remaining", "X-RateLimit-Reset")
    ):
        assert header in components["headers"]
        response.__dict__["headers"] = {header.lower(): str(number)}
        known = (response.request_id, response.trace_id, response.rate_limit_remaining, response.rate_limit_reset)
        assert str(known[number]) == str(number)
        assert [each for each in known if each is not None] == [known[number]]


# ---- Codes ----


def test_every_error_code_of_the_document_has_a_class_of_its_own():
    kinds = {code: errors.error_class(400, code, reserves=True, settles=False) for code in SCHEMAS["ErrorCode"]["enum"]}
    assert len(set(kinds.values())) == len(kinds) == 17
    assert errors.ApiError not in kinds.values()
    assert errors.BudgetDenied not in kinds.values()
