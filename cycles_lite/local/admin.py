"""The admin calls over HTTP: tenants, keys and budgets are made, and budgets funded, as the official server does it.

The official admin server has fields that this authority has no use for: they are ignored, and unknown ones refused.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any, Callable, Container, Dict, Mapping, NamedTuple, Tuple

from ..errors import ValidationError
from ..protocol import checks
from ..protocol.values import Amount, Caps, Unit
from ..protocol.wire import IDEMPOTENCY_KEY_HEADER, Answer, read_body
from . import instants
from .authority import Authority, Caller
from .funding import FundingRefused
from .messages import new_answer, refusal_answer
from .rules import Refused
from .tenants import AlreadyExists, checked_settings


class _Asked(NamedTuple):
    """An admin call by somebody who may make it."""

    authority: Authority
    data: Mapping[str, Any]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    #: Whose key was sent; None where it was the admin's.
    tenant: str | None


#: Returns the status and what is told.
_Handler = Callable[[_Asked], Tuple[int, Dict[str, Any]]]


def answer_admin_call(
    path: str,
    authority: Authority,
    body: bytes,
    headers: Mapping[str, str],
    caller: Caller | None,
    query: Mapping[str, str],
) -> Answer:
    """Answer one admin call. The caller is checked before the body is read."""
    handler, fields, is_for_tenants = ADMIN_ROUTES[path]
    try:
        if caller is None or not (caller.admin or is_for_tenants):
            raise Refused("UNAUTHORIZED", "A valid key in X-Admin-API-Key is needed.")
        status, told = handler(_Asked(authority, _object(body, fields), query, headers, caller.tenant))
        return new_answer(status, told, headers, caller.tenant)
    except Refused as e:
        return refusal_answer(e, headers, None)
    except FundingRefused as e:
        return refusal_answer(Refused(e.code, e.message, e.details), headers, None)
    except ValidationError as e:
        code = "DUPLICATE_RESOURCE" if isinstance(e, AlreadyExists) else "INVALID_REQUEST"
        return refusal_answer(Refused(code, e.message), headers, None)


def _object(body: bytes, known: Container[str]) -> Mapping[str, Any]:
    """The JSON object in a body, which must have no unknown field."""
    data = read_body(body)
    if not isinstance(data, dict):
        raise ValidationError("body: not an object")
    for name in data:
        if name not in known:
            raise ValidationError(f"body: unknown field {checks.shown(name)}")
    return data


def _text(data: Mapping[str, Any], name: str) -> str:
    """The text in a field, which must be there and not be blank."""
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValidationError(f"{name}: a text is needed")
    return checks.text(name, value, 1024)


def _milliseconds(data: Mapping[str, Any], name: str) -> int | None:
    """A date-time as milliseconds since 1970; None where the body has none."""
    if data.get(name) is None:
        return None
    found = instants.nanoseconds(_text(data, name))
    if found is None:
        raise ValidationError(f"{name}: an ISO 8601 date-time with an offset is needed, such as 2026-05-21T10:00:00Z")
    made = instants.first_ms(found)
    if not 0 <= made <= _LAST_MS:
        raise ValidationError(f"{name}: {checks.shown(data[name])} is not in the years 1970 to 9999 of UTC")
    return made


def _instant(milliseconds: int | None) -> str | None:
    """A time in milliseconds as text. A program may have set one after the year 9999, which is shown as the last
    instant of that year."""
    if milliseconds is None:
        return None
    seconds = min(milliseconds, _LAST_MS) // 1000
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


#: The last millisecond that a date can tell.
_LAST_MS = 253_402_300_799_999

#: Settings of a tenant: the admin API's names, and those of `create_tenant` in its order.
_TENANT_SETTINGS = {
    "default_reservation_ttl_ms": "default_ttl_ms",
    "max_reservation_ttl_ms": "max_ttl_ms",
    "default_commit_overage_policy": "default_overage_policy",
    "max_reservation_extensions": "max_extensions",
}

#: What a key may be permitted. It is stored with the key, and nothing here enforces it.
_PERMISSION = re.compile(
    r"reservations:(create|commit|release|extend|list|read)|decide|events:(create|read)|(balances|audit):read"
    r"|(budgets|policies|webhooks|admin):(read|write)"
    r"|admin:(tenants|budgets|policies|apikeys|webhooks|events|audit|overview):(read|write)"
)


def _create_tenant(asked: _Asked) -> tuple[int, dict[str, Any]]:
    """Make a tenant: 201, or 200 where the same id and name were there before."""
    authority, data = asked.authority, asked.data
    tenant_id, name = _text(data, "tenant_id"), _text(data, "name")
    settings = {ours: data.get(theirs) for theirs, ours in _TENANT_SETTINGS.items()}
    checked_settings(*settings.values())  # also where the tenant stays as it is
    made = authority.tenant(tenant_id)
    status = 201 if made is None else 200
    if made is None or made.name != name:
        made = authority.create_tenant(tenant_id, name, **settings)
    return status, {
        "tenant_id": made.tenant_id,
        "name": made.name,
        "status": made.status,
        "created_at": _instant(made.created_at_ms),
    }


def _create_key(asked: _Asked) -> tuple[int, dict[str, Any]]:
    """Make a key, whose secret this answer alone tells."""
    authority, data = asked.authority, asked.data
    name, tenant_id = _text(data, "name"), _tenant_id(authority, data)
    permissions = [] if data.get("permissions") is None else data["permissions"]
    if not isinstance(permissions, list):
        raise ValidationError("permissions: a list of strings is needed")
    for permission in permissions:
        if not isinstance(permission, str) or _PERMISSION.fullmatch(permission) is None:
            raise ValidationError(f"permissions: {checks.shown(permission)} is not known")
    expires_at_ms = _milliseconds(data, "expires_at")
    key = authority.create_key(tenant_id, name=name, permissions=permissions, expires_at_ms=expires_at_ms)
    return 201, {
        "key_id": key.key_id,
        "key_secret": key.key_secret,
        "key_prefix": key.key_prefix,
        "tenant_id": key.tenant_id,
        "permissions": list(key.permissions),
        "created_at": _instant(key.created_at),
        "expires_at": _instant(key.expires_at),
    }


def _create_budget(asked: _Asked) -> tuple[int, dict[str, Any]]:
    """Make a budget of the tenant whose key was sent, or with the admin's key of the one that the body names."""
    authority, data, tenant = asked.authority, asked.data, asked.tenant
    if tenant is None:
        tenant = _tenant_id(authority, data)
    elif data.get("tenant_id") is not None:
        raise ValidationError("tenant_id: with a tenant's key the body names none")
    scope = _scope(data, tenant)
    amount = _amount(data, "allocated", data.get("unit"))
    limit = None if data.get("overdraft_limit") is None else _amount(data, "overdraft_limit", amount.unit)
    caps = Caps.parse(data["caps"], "caps") if data.get("caps") is not None else None
    if not authority.add_budget(scope, amount, overdraft_limit=limit, caps=caps):
        raise Refused("DUPLICATE_RESOURCE", f"There is a budget of {amount.unit} at {scope}.")
    made = authority.holds(scope, amount.unit)[0].budget
    return 201, {**made.to_json(), "scope": made.scope, "tenant_id": tenant, "unit": made.unit, "status": made.status}


def _fund(asked: _Asked) -> tuple[int, dict[str, Any]]:
    """Fund a budget once for the key: the query names it, and the body says how."""
    data = asked.data
    scope, unit = _scope(asked.query, asked.tenant), _text(asked.query, "unit")
    operation, amount = _text(data, "operation"), _amount(data, "amount", unit)
    spent = None if data.get("spent") is None else _amount(data, "spent", unit)
    key = checks.words("idempotency_key", data.get("idempotency_key"), 256)
    if asked.headers.get(IDEMPOTENCY_KEY_HEADER, key) != key:
        raise ValidationError(f"{IDEMPOTENCY_KEY_HEADER} and the body's idempotency_key differ")
    made = asked.authority.funded(scope, amount, operation, spent, key, data.get("reason"))
    told: dict[str, Any] = {"operation": made.operation}
    for name in ("allocated", "remaining", "debt", "spent"):
        for when, budget in (("previous", made.before), ("new", made.after)):
            told[f"{when}_{name}"] = {"unit": amount.unit, "amount": getattr(budget, name)}
    return 200, {**told, "timestamp": _instant(made.at_ms)}


def _scope(named: Mapping[str, Any], tenant: str | None) -> str:
    """The scope that a body or a query names, which must be the tenant's if there is one."""
    scope = _text(named, "scope").lower()
    if tenant is not None and not re.match(rf"tenant:{re.escape(tenant)}(/|\Z)", scope):
        raise ValidationError(f"scope: {checks.shown(scope)} is not of tenant {tenant}")
    return scope


def _tenant_id(authority: Authority, data: Mapping[str, Any]) -> str:
    """The tenant that a body names, which must be there."""
    tenant_id = _text(data, "tenant_id")
    if authority.tenant(tenant_id) is None:
        raise Refused("TENANT_NOT_FOUND", f"There is no tenant {tenant_id[:100]}.")
    return tenant_id


def _amount(data: Mapping[str, Any], name: str, unit: object) -> Amount:
    """The amount in a field. It must be in the budget's unit, where that is told; before that, refuse a budget's unit
    that does not exist."""
    amount = Amount.parse(data.get(name), name)
    if unit is None or unit == amount.unit:
        return amount
    if unit not in list(Unit):
        raise ValidationError(f"unit: {checks.shown(unit)} is not known")
    raise Refused("UNIT_MISMATCH", f"{name} is in {amount.unit}, and the budget in {unit}.")


#: The admin calls by their paths: the handler, the fields that the body may have, and whether a tenant's own key
#: is enough. The official admin server has fields that this authority has no use for. Among them is a budget's period,
#: which is one start and one end there and nothing rolls it; a period that rolls here says after how long, and when.
ADMIN_ROUTES: Mapping[str, tuple[_Handler, frozenset[str], bool]] = {
    "/v1/admin/tenants": (
        _create_tenant,
        frozenset(
            ["tenant_id", "name", "parent_tenant_id", "metadata", "reservation_expiry_policy", *_TENANT_SETTINGS]
        ),
        False,
    ),
    "/v1/admin/api-keys": (
        _create_key,
        frozenset("tenant_id name description permissions scope_filter expires_at metadata".split()),
        False,
    ),
    "/v1/admin/budgets": (
        _create_budget,
        frozenset(
            "tenant_id scope unit allocated overdraft_limit commit_overage_policy caps rollover_policy period_start"
            " period_end metadata".split()
        ),
        True,
    ),
    "/v1/admin/budgets/fund": (
        _fund,
        frozenset("operation amount spent reason metadata idempotency_key".split()),
        True,
    ),
}
