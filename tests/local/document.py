"""The protocol's document, where it is at hand: every answer that the tests get is held against its schemas."""

from __future__ import annotations

import functools
import os

PATH = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3, "shared", "protocol", "cycles-protocol-v0.yaml")


def is_there():
    """Whether answers can be held against the document."""
    return _validators() is not None


def check(operation, status, data):
    """Fail when an answer's body is not what the document says."""
    validators = _validators()
    if validators is None:
        return
    name = "ErrorResponse" if status >= 400 else _RESPONSES[operation.name]
    errors = [error.message for error in validators(name).iter_errors(data)]
    assert not errors, f"{operation.name} {status} is not a {name}: {errors} in {data}"


_RESPONSES = {
    "create_reservation": "ReservationCreateResponse",
    "commit_reservation": "CommitResponse",
    "release_reservation": "ReleaseResponse",
    "extend_reservation": "ReservationExtendResponse",
    "decide": "DecisionResponse",
    "create_event": "EventCreateResponse",
    "list_reservations": "ReservationListResponse",
    "get_reservation": "ReservationDetail",
    "get_balances": "BalanceResponse",
}


@functools.lru_cache(maxsize=None)
def _validators():
    try:
        import jsonschema
        import yaml

        with open(PATH, encoding="utf-8") as file:
            document = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ImportError, OSError):
        return None

    @functools.lru_cache(maxsize=None)
    def validator(name):
        root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": document["components"]["schemas"]}}
        return jsonschema.Draft202012Validator(root)

    return validator
