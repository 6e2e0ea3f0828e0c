"""The server against the protocol's document, as schemathesis reads it: requests from its schemas, good and bad.

Each answer must have a declared status, body and headers; what the schemas allow must not be refused as malformed, and
what they forbid must be. Where prose or design narrow or widen a schema, `narrowed` says so to schemathesis.
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, settings
from serving import Http, asking, document, new_key, serving

from cycles_lite import Amount, Unit
from cycles_lite.protocol.checks import INT64_MAX
from cycles_lite.protocol.values import SUBJECT_LEVELS

pytestmark = pytest.mark.thorough

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis 4 needs Python 3.10 or newer")

#: Examples per operation, beside those that schemathesis derives from each bound of each field.
EXAMPLES = 10

PLENTY = 2**62


#: Parameters that are left out, and why. Their own tests are in test_server.py and test_document_conformance.py.
LEFT_OUT = {
    "IdempotencyKeyHeader": "it must equal the key in the body, which no schema can say",
    "Cursor": "it is opaque: what was not got from the server is a 400",
    "to": "it must not be before `from`",
    "expires_to": "it must not be before `expires_from`",
    "finalized_to": "it must not be before `finalized_from`",
    "include_children": "it may be ignored, and is, so that nothing can be wrong with it",
}

#: Blank time windows count as unset ("TIME-RANGE FILTERS" of the document), and so does a blank limit.
BLANK = {"type": "string", "pattern": r"^\s*$"}

#: Kind and name are not blank (design, section 9, Validation).
NOT_BLANK = r"\S"

#: What requests are made of.
REQUESTS = (
    "DecisionRequest",
    "ReservationCreateRequest",
    "CommitRequest",
    "ReleaseRequest",
    "ReservationExtendRequest",
    "EventCreateRequest",
    "Subject",
    "Action",
    "Amount",
    "StandardMetrics",
)


def narrowed(given):
    """The document with what its prose and this project's design add to its schemas."""
    made = copy.deepcopy(given)
    schemas = made["components"]["schemas"]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["parameters"] = list(_parameters(operation, path))
    subject, action = schemas["Subject"]["properties"], schemas["Action"]["properties"]
    for level in SUBJECT_LEVELS[1:]:
        subject[level]["pattern"] = "^[a-zA-Z0-9_.-]+$"  # "CHARSET": the rest may be refused
    subject["tenant"]["enum"] = ["acme", "rival"]  # the key's own, and another's
    limit = made["components"]["parameters"]["Limit"]
    limit["schema"] = {"anyOf": [limit["schema"], BLANK]}
    for text in (action["kind"], action["name"]):
        text["pattern"] = NOT_BLANK
    for name in REQUESTS:
        properties = schemas[name]["properties"]
        for field, one in properties.items():
            if one.get("type") == "integer":
                one.setdefault("maximum", INT64_MAX)  # also where no format says so
            if field not in schemas[name].get("required", ()):
                properties[field] = {"anyOf": [one, {"type": "null"}]}  # `null` equals absent (design, the same place)
    for given_level in schemas["Subject"]["anyOf"]:  # and so it names nobody
        given_level["properties"] = {level: {"type": "string"} for level in given_level["required"]}
    return made


def _parameters(operation, path):
    for parameter in operation.get("parameters", ()):
        name = parameter.get("name") or parameter["$ref"].rpartition("/")[2]
        if name in LEFT_OUT or (path == "/v1/balances" and name in SUBJECT_LEVELS[1:]):
            continue
        if path == "/v1/balances" and name == "tenant":  # one of the levels must be given: here always this one
            parameter = {**parameter, "required": True, "schema": {"enum": ["acme", "rival"]}}
        elif name == "idempotency_key":
            parameter = {**parameter, "schema": {"type": "string"}}  # one that cannot be a key finds nothing
        elif name.endswith("from"):
            parameter = {**parameter, "schema": {"anyOf": [parameter["schema"], BLANK]}}
        yield parameter


schema = schemathesis.openapi.from_dict(narrowed(document()))
# Unknown query parameters are ignored, and one that is unknown here may be one of those left out above.
schema.config.generation.update(allow_extra_parameters=False)
# It sends everything twice more, without a key and with a wrong one, which test_server.py does for each operation.
schema.config.checks.ignored_auth.enabled = False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("schemathesis")) as served:
        for unit in Unit:
            served.authority.set_budget("tenant:acme", Amount(unit, PLENTY))
        yield served


@pytest.fixture(scope="module")
def http(served):
    with Http(served.url, served.key) as http:
        yield http


@pytest.fixture(scope="module")
def session():
    """What schemathesis sends with: connections are kept alive."""
    with pytest.importorskip("requests").Session() as session:
        yield session


def completed(case, served, http):
    """What no schema can say of a good request: a key that is new, a reservation that is there and in the same unit."""
    body = case.body = whole(case.body)
    if isinstance(body, dict):
        body["idempotency_key"] = body["idempotency_key"][:200] + new_key()
    if isinstance(body, dict) and "subject" in body and not body["subject"].get("tenant"):
        body["subject"]["tenant"] = "acme"  # where there are budgets
    if "reservation_id" in case.path_parameters:
        unit = body["actual"]["unit"] if isinstance(body, dict) and "actual" in body else "TOKENS"
        served.authority.set_budget("tenant:acme", Amount(Unit(unit), PLENTY))  # ends what overspending has led to
        made = http("POST", "/v1/reservations", asking(estimate={"unit": unit, "amount": 0}))
        case.path_parameters["reservation_id"] = made.data["reservation_id"]


def whole(value):
    """Integers as integers: to JSON Schema 1.0 is one too, to the design it is not (section 9, Validation)."""
    if isinstance(value, dict):
        return {name: whole(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schema.parametrize()
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_the_document_is_kept(case, served, http, session):
    """And other methods are a 405 with Allow, and a missing header that is needed is refused."""
    if case.meta.generation.mode.is_positive:
        completed(case, served, http)
    case.call_and_validate(base_url=served.url, session=session, headers={"X-Cycles-API-Key": served.key})
