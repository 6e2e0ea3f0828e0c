"""The provisioning calls over HTTP: tenants, keys and budgets, in the shapes that the official quickstart uses.

Fields that this authority has no use for are ignored, because the official admin server has many more.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any, Callable, Mapping, NamedTuple

from .. import checks, wire
from ..errors import ValidationError
from ..values import Amount, Caps
from . import instants
from .answers import error_answer, new_answer
from .authority import Authority
from .directory import AlreadyExists


class AdminCall(NamedTuple):
    """One call, and who makes it: the admin, a tenant by its own key, or neither."""

    authority: Authority
    body: bytes
    headers: Mapping[str, str]
    is_admin: bool
    tenant: str | None


class _No(Exception):
    """A refusal on its way to becoming an answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


_Handler = Callable[[AdminCall], "tuple[int, dict[str, Any]]"]


def _answering(handler: _Handler) -> Callable[[AdminCall], wire.Answer]:
    """The handler with its refusals made answers. Each asks who calls before it reads what they sent."""

    def answer(call: AdminCall) -> wire.Answer:
        try:
            status, told = handler(call)
        except _No as e:
            return error_answer(e.status, e.code, e.message, call.headers)
        except AlreadyExists as e:
            return error_answer(409, "DUPLICATE_RESOURCE", e.message, call.headers)
        except ValidationError as e:
            return error_answer(400, "INVALID_REQUEST", e.message, call.headers)
        return new_answer(status, told, call.headers, call.tenant)

    return answer


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        data = wire.loads(body)
    except ValueError as e:
        raise ValidationError(f"body: not JSON: {e}") from e
    if not isinstance(data, dict):
        raise ValidationError("body: not an object")
    return data


def _demand_admin(call: AdminCall) -> None:
    if not call.is_admin:
        raise _No(401, "UNAUTHORIZED", "A valid key in X-Admin-API-Key is needed.")


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValidationError(f"{name}: a text is needed")
    return checks.text(name, value, 1024)


def _milliseconds(data: Mapping[str, Any], name: str) -> int | None:
    if data.get(name) is None:
        return None
    found = instants.nanoseconds(_text(data, name))
    if found is None:
        raise ValidationError(f"{name}: an ISO 8601 date-time with an offset is needed, such as 2026-05-21T10:00:00Z")
    return instants.first_ms(found)


def _instant(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


#: Settings of a tenant: the admin API's names, and the authority's.
_TENANT_SETTINGS = (
    ("default_reservation_ttl_ms", "default_ttl_ms"),
    ("max_reservation_ttl_ms", "max_ttl_ms"),
    ("max_reservation_extensions", "max_extensions"),
    ("default_commit_overage_policy", "default_overage_policy"),
)


def _create_tenant(call: AdminCall) -> tuple[int, dict[str, Any]]:
    _demand_admin(call)
    data = _object(call.body)
    tenant_id = _text(data, "tenant_id")
    name = _text(data, "name") if data.get("name") is not None else None
    settings = {ours: data[theirs] for theirs, ours in _TENANT_SETTINGS if data.get(theirs) is not None}
    status = 201 if call.authority.tenant(tenant_id) is None else 200
    made = call.authority.create_tenant(tenant_id, name, **settings)
    return status, {
        "tenant_id": made.tenant_id,
        "name": made.name,
        "status": made.status,
        "created_at": _instant(made.created_at_ms),
    }


def _create_key(call: AdminCall) -> tuple[int, dict[str, Any]]:
    _demand_admin(call)
    data = _object(call.body)
    tenant_id = _text(data, "tenant_id")
    if call.authority.tenant(tenant_id) is None:
        raise _No(404, "NOT_FOUND", f"There is no tenant {tenant_id[:100]}.")
    permissions = [] if data.get("permissions") is None else data["permissions"]
    if not isinstance(permissions, list) or not all(isinstance(permission, str) for permission in permissions):
        raise ValidationError("permissions: a list of strings is needed")
    name = _text(data, "name") if data.get("name") is not None else None
    expires_at_ms = _milliseconds(data, "expires_at")
    key = call.authority.create_key(tenant_id, name=name, permissions=permissions, expires_at_ms=expires_at_ms)
    return 201, {
        "key_id": key.key_id,
        "key_secret": key.key_secret,
        "key_prefix": key.key_prefix,
        "tenant_id": key.tenant_id,
        "permissions": list(key.permissions),
        "created_at": _instant(key.created_at),
        "expires_at": _instant(key.expires_at),
    }


def _create_budget(call: AdminCall) -> tuple[int, dict[str, Any]]:
    if call.tenant is None:
        _demand_admin(call)
    data = _object(call.body)
    tenant = _budget_owner(call, data)
    scope = _text(data, "scope").lower()
    if not re.match(rf"tenant:{re.escape(tenant)}(/|\Z)", scope):
        if not scope.startswith("tenant:"):
            raise ValidationError("scope: it starts with tenant:")
        raise _No(403, "FORBIDDEN", f"Scope {scope[:200]} is not of tenant {tenant}.")
    amount = _amount(data, "allocated")
    if data.get("unit") not in (None, amount.unit):
        raise ValidationError("unit: it differs from the unit of allocated")
    limit = _amount(data, "overdraft_limit") if data.get("overdraft_limit") is not None else None
    caps = Caps.parse(data["caps"], "caps") if data.get("caps") is not None else None
    if not call.authority.add_budget(scope, amount, overdraft_limit=limit, caps=caps):
        raise _No(409, "DUPLICATE_RESOURCE", f"There is a budget of {amount.unit} at {scope}.")
    (made,) = [one for one in call.authority.budgets() if (one.scope, one.unit) == (scope, amount.unit)]
    return 201, {**made.to_json(), "scope": made.scope, "tenant_id": tenant, "unit": made.unit, "status": made.status}


def _budget_owner(call: AdminCall, data: Mapping[str, Any]) -> str:
    """The tenant that a budget is for: a tenant's key says it, beside the admin key the body must."""
    if call.tenant is not None:
        if data.get("tenant_id") is not None:
            raise ValidationError("tenant_id: with a tenant's key the body names none")
        return call.tenant
    tenant_id = _text(data, "tenant_id")
    if call.authority.tenant(tenant_id) is None:
        raise _No(404, "NOT_FOUND", f"There is no tenant {tenant_id[:100]}.")
    return tenant_id


def _amount(data: Mapping[str, Any], name: str) -> Amount:
    return Amount.parse(data.get(name), name)


ADMIN_ROUTES: Mapping[str, Callable[[AdminCall], wire.Answer]] = {
    "/v1/admin/tenants": _answering(_create_tenant),
    "/v1/admin/api-keys": _answering(_create_key),
    "/v1/admin/budgets": _answering(_create_budget),
}
