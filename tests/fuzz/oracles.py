"""What an answer proves, told from its bytes without this package: by the table in its design, section 5."""

from __future__ import annotations

import json

UNITS = {"USD_MICROCENTS", "TOKENS", "CREDITS", "RISK_POINTS"}
INT64_MAX = 2**63 - 1


def decoded(body):
    """The JSON object in a body, in which the last of equal names counts; None where there is none."""

    def refuse(constant):
        raise ValueError(constant)

    try:
        data = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and not _is_deeper(data, 250) else None


def _is_deeper(value, levels):
    """Whether there is something below that many lists and objects; such JSON is refused as a whole."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if entries is None:
        return False
    return levels == 0 or any(_is_deeper(entry, levels - 1) for entry in entries)


def commit_is_proven(status, body):
    """Exactly 200, COMMITTED, an amount charged; nothing of a wrong type, and null nowhere."""
    data = decoded(body)
    return (
        status == 200
        and data is not None
        and data.get("status") == "COMMITTED"
        and is_amount(data.get("charged"), UNITS)
        and ("released" not in data or is_amount(data["released"], UNITS))
        and _rest_is_legal(data)
    )


def event_is_proven(status, body):
    """Exactly 201, APPLIED, an event's id; nothing of a wrong type, and null nowhere."""
    data = decoded(body)
    return (
        status == 201
        and data is not None
        and data.get("status") == "APPLIED"
        and type(data.get("event_id")) is str
        and ("charged" not in data or is_amount(data["charged"], UNITS))
        and _rest_is_legal(data)
    )


def may_run(status, body):
    """Whether the answer to a reservation lets the work run: exactly 200, one of two decisions, and an id."""
    data = decoded(body)
    return (
        status == 200
        and data is not None
        and data.get("decision") in ("ALLOW", "ALLOW_WITH_CAPS")
        and type(data.get("reservation_id")) is str
        and data["reservation_id"] != ""
    )


def is_amount(value, units=None):
    return (
        type(value) is dict
        and type(value.get("unit")) is str
        and (units is None or value["unit"] in units)
        and type(value.get("amount")) is int
        and 0 <= value["amount"] <= INT64_MAX
    )


def _is_signed_amount(value):
    if type(value) is not dict or type(value.get("amount")) is not int:
        return False
    return type(value.get("unit")) is str and -INT64_MAX - 1 <= value["amount"] <= INT64_MAX


def _is_balance(value):
    return (
        type(value) is dict
        and type(value.get("scope")) is str
        and type(value.get("scope_path")) is str
        and _is_signed_amount(value.get("remaining"))
        and all(is_amount(value[name]) for name in _AMOUNTS if name in value)
        and type(value.get("is_over_limit", False)) is bool
    )


_AMOUNTS = ("reserved", "spent", "debt", "allocated", "overdraft_limit")


def _rest_is_legal(data):
    balances, evidence = data.get("balances", []), data.get("cycles_evidence", _EVIDENCE)
    return (
        type(balances) is list
        and all(map(_is_balance, balances))
        and type(evidence) is dict
        and all(type(evidence.get(name)) is str for name in _EVIDENCE)
    )


_EVIDENCE = {"evidence_id": "", "cycles_evidence_url": ""}


def is_final(status, body):
    """Whether an answer may be a real no to spend: a 4xx that says neither who asks, nor when, with a code of the
    protocol that is about the spend."""
    data = decoded(body)
    is_no = 400 <= status < 500 and status not in (401, 403, 410, 429)
    return is_no and data is not None and data.get("error") in _FINAL


_FINAL = set(
    "INVALID_REQUEST NOT_FOUND BUDGET_EXCEEDED BUDGET_FROZEN BUDGET_CLOSED RESERVATION_FINALIZED IDEMPOTENCY_MISMATCH "
    "UNIT_MISMATCH OVERDRAFT_LIMIT_EXCEEDED DEBT_OUTSTANDING TENANT_CLOSED".split()
)
