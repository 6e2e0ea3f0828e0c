"""The provisioning calls over HTTP: tenants, keys and budgets, in the shapes that the official quickstart uses.

The official admin server has fields that this authority has no use for: they are ignored, and unknown ones refused.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any, Callable, Container, Mapping, NamedTuple

from ..errors import ValidationError
from ..protocol import checks, wire
from ..protocol.values import Amount, Caps, Unit
from . import instants
from .answers import error_answer, new_answer
from .authority import Authority
from .directory import AlreadyExists, TenantSettings


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


def _object(body: bytes, known: Container[str]) -> Mapping[str, Any]:
    data = wire.read_body(body)
    if not isinstance(data, dict):
        raise ValidationError("body: not an object")
    for name in data:
        if name not in known:
            raise ValidationError(f"body: unknown field {checks.shown(name)}")
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
    made = instants.first_ms(found)
    if not 0 <= made <= _LAST_MS:
        raise ValidationError(f"{name}: {checks.shown(data[name])} is not in the years 1970 to 9999 of UTC")
    return made


def _instant(milliseconds: int | None) -> str | None:
    """A time of ours as text; those that a program has set may be past all years, and are shown as the last instant."""
    if milliseconds is None:
        return None
    seconds = min(milliseconds, _LAST_MS) // 1000
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


#: The last millisecond that a date can tell.
_LAST_MS = 253_402_300_799_999

#: Settings of a tenant: the admin API's names, and the authority's.
_TENANT_SETTINGS = (
    ("default_reservation_ttl_ms", "default_ttl_ms"),
    ("max_reservation_ttl_ms", "max_ttl_ms"),
    ("max_reservation_extensions", "max_extensions"),
    ("default_commit_overage_policy", "default_overage_policy"),
)

_TENANT_FIELDS = frozenset(
    "tenant_id name parent_tenant_id metadata reservation_expiry_policy".split()
    + [name for name, _ in _TENANT_SETTINGS]
)
_KEY_FIELDS = frozenset("tenant_id name description permissions scope_filter expires_at metadata".split())
_BUDGET_FIELDS = frozenset(
    "tenant_id scope unit allocated overdraft_limit commit_overage_policy caps rollover_policy period_start period_end"
    " metadata".split()
)

#: What a key may be permitted. Stored, and enforced by nobody.
_PERMISSION = re.compile(
    r"reservations:(create|commit|release|extend|list|read)|decide|events:(create|read)|(balances|audit):read"
    r"|(budgets|policies|webhooks|admin):(read|write)"
    r"|admin:(tenants|budgets|policies|apikeys|webhooks|events|audit|overview):(read|write)"
)


def _create_tenant(call: AdminCall) -> tuple[int, dict[str, Any]]:
    _demand_admin(call)
    data = _object(call.body, _TENANT_FIELDS)
    tenant_id, name = _text(data, "tenant_id"), _text(data, "name")
    settings = {ours: data[theirs] for theirs, ours in _TENANT_SETTINGS if data.get(theirs) is not None}
    made = call.authority.tenant(tenant_id)
    status = 201 if made is None else 200
    if made is None or made.name != name:
        made = call.authority.create_tenant(tenant_id, name, **settings)
    TenantSettings(**settings).checked()  # also where the tenant stays as it is
    return status, {
        "tenant_id": made.tenant_id,
        "name": made.name,
        "status": made.status,
        "created_at": _instant(made.created_at_ms),
    }


def _create_key(call: AdminCall) -> tuple[int, dict[str, Any]]:
    _demand_admin(call)
    data = _object(call.body, _KEY_FIELDS)
    name, tenant_id = _text(data, "name"), _tenant_id(call, data)
    permissions = [] if data.get("permissions") is None else data["permissions"]
    if not isinstance(permissions, list):
        raise ValidationError("permissions: a list of strings is needed")
    for permission in permissions:
        if not isinstance(permission, str) or _PERMISSION.fullmatch(permission) is None:
            raise ValidationError(f"permissions: {checks.shown(permission)} is not known")
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
    data = _object(call.body, _BUDGET_FIELDS)
    tenant = _budget_owner(call, data)
    scope = _text(data, "scope").lower()
    if not re.match(rf"tenant:{re.escape(tenant)}(/|\Z)", scope):
        raise ValidationError(f"scope: {checks.shown(scope)} is not of tenant {tenant}")
    amount = Amount.parse(data.get("allocated"), "allocated")
    _demand_unit("allocated", amount, data.get("unit"))
    limit = None
    if data.get("overdraft_limit") is not None:
        limit = Amount.parse(data["overdraft_limit"], "overdraft_limit")
        _demand_unit("overdraft_limit", limit, amount.unit)
    caps = Caps.parse(data["caps"], "caps") if data.get("caps") is not None else None
    if not call.authority.add_budget(scope, amount, overdraft_limit=limit, caps=caps):
        raise _No(409, "DUPLICATE_RESOURCE", f"There is a budget of {amount.unit} at {scope}.")
    (made,) = [one for one in call.authority.budgets() if (one.scope, one.unit) == (scope, amount.unit)]
    return 201, {**made.to_json(), "scope": made.scope, "tenant_id": tenant, "unit": made.unit, "status": made.status}


def _budget_owner(call: AdminCall, data: Mapping[str, Any]) -> str:
    """The tenant that a budget is for: a tenant's key says it, with the admin's key the body must."""
    if call.tenant is not None:
        if data.get("tenant_id") is not None:
            raise ValidationError("tenant_id: with a tenant's key the body names none")
        return call.tenant
    return _tenant_id(call, data)


def _tenant_id(call: AdminCall, data: Mapping[str, Any]) -> str:
    """The tenant that a body names, which must be there."""
    tenant_id = _text(data, "tenant_id")
    if call.authority.tenant(tenant_id) is None:
        raise _No(404, "TENANT_NOT_FOUND", f"There is no tenant {tenant_id[:100]}.")
    return tenant_id


def _demand_unit(name: str, amount: Amount, unit: object) -> None:
    """Refuse an amount of another unit than the budget's. Whether that is one at all is asked first."""
    if unit is None or unit == amount.unit:
        return
    if unit not in [known.value for known in Unit]:
        raise ValidationError(f"unit: {checks.shown(unit)} is not known")
    raise _No(400, "UNIT_MISMATCH", f"{name} is in {amount.unit}, and the budget in {unit}.")


ADMIN_ROUTES: Mapping[str, Callable[[AdminCall], wire.Answer]] = {
    "/v1/admin/tenants": _answering(_create_tenant),
    "/v1/admin/api-keys": _answering(_create_key),
    "/v1/admin/budgets": _answering(_create_budget),
}
