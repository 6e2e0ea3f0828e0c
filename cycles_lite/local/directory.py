"""Tenants and their keys (design: section 9, Tenants; HTTP). Of a key's secret the file has a SHA-256 alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sqlite3
from typing import Any, NamedTuple, Sequence

from ..errors import ValidationError
from ..protocol.checks import INT64_MAX, integer, refuse, text
from . import budget_rows, scopes, tenants

#: The most that a tenant's TTL settings may say: the protocol's own maximum.
_LONGEST_TTL_MS = 86_400_000

_SECRET = re.compile(r"[\x21-\x7e]{1,256}\Z")


class AlreadyExists(ValidationError):
    """What was to be made is there already, and it is another."""


# ---- Tenants ----


class Tenant(NamedTuple):
    """A tenant's record; settings that are None are the fallbacks of `tenants.Settings`."""

    tenant_id: str
    name: str
    status: str
    created_at_ms: int
    default_ttl_ms: int | None
    max_ttl_ms: int | None
    default_overage_policy: str | None
    max_extensions: int | None


class TenantSettings(NamedTuple):
    """What `create_tenant` sets: milliseconds in 1000..86400000, a policy, extensions in 0..2^31-1."""

    default_ttl_ms: int | None = None
    max_ttl_ms: int | None = None
    default_overage_policy: str | None = None
    max_extensions: int | None = None

    def checked(self) -> TenantSettings:
        policy = self.default_overage_policy
        if policy is not None and policy not in tenants.POLICIES:
            raise refuse("default_overage_policy", policy, "one of " + ", ".join(tenants.POLICIES))
        return TenantSettings(
            _optional("default_ttl_ms", self.default_ttl_ms, 1000, _LONGEST_TTL_MS),
            _optional("max_ttl_ms", self.max_ttl_ms, 1000, _LONGEST_TTL_MS),
            None if policy is None else str(policy),
            _optional("max_extensions", self.max_extensions, 0, 2**31 - 1),
        )


_TENANT = "id, name, status, created_at_ms, default_ttl_ms, max_ttl_ms, default_overage_policy, max_extensions"
_FIND_TENANT = f"SELECT {_TENANT} FROM tenants WHERE id = ?"
_ADD_TENANT = f"INSERT INTO tenants ({_TENANT}) VALUES (?,?,?,?,?,?,?,?)"
_CLOSE_TENANT = "UPDATE tenants SET status = ? WHERE id = ?"
_REVOKE_KEYS_OF = "UPDATE api_keys SET revoked_at_ms = ? WHERE tenant = ? AND revoked_at_ms IS NULL"


def create_tenant(
    db: sqlite3.Connection, now: int, tenant_id: str, name: str | None, settings: TenantSettings
) -> Tenant:
    """Make a tenant; the same one again is returned as it is, another of that id raises `AlreadyExists`."""
    settings = settings.checked()
    found = tenant(db, scopes.tenant_id(tenant_id))
    if found is None:
        name = text("name", tenant_id if name is None else name, 256)
        made = Tenant(tenant_id, name, tenants.ACTIVE, now, *settings)
        db.execute(_ADD_TENANT, made)
        return made
    if name not in (None, found.name):
        raise AlreadyExists(f"tenant {tenant_id} exists under another name")
    if any(wanted not in (None, present) for wanted, present in zip(settings, found[4:])):
        raise AlreadyExists(f"tenant {tenant_id} exists with other settings")
    return found


def close_tenant(db: sqlite3.Connection, now: int, tenant_id: str) -> Tenant:
    """Close a tenant for good and revoke its keys. One that only has budgets gets a record that says so."""
    found = tenant(db, scopes.tenant_id(tenant_id))
    if found is None:
        root = scopes.TENANT_PREFIX + tenant_id
        if not budget_rows.find_budgets(
            db, "scope = ? OR (scope > ? AND scope < ?) LIMIT 1", (root, root + "/", root + "0")
        ):
            raise ValidationError(f"tenant {tenant_id} is not known here")
        found = create_tenant(db, now, tenant_id, None, TenantSettings())
    db.execute(_CLOSE_TENANT, (tenants.CLOSED, tenant_id))
    db.execute(_REVOKE_KEYS_OF, (now, tenant_id))
    return found._replace(status=tenants.CLOSED)


def tenant(db: sqlite3.Connection, tenant_id: str) -> Tenant | None:
    """A tenant's record; None where it has none."""
    if not scopes.is_tenant_id(tenant_id):
        return None
    row = db.execute(_FIND_TENANT, (tenant_id,)).fetchone()
    return None if row is None else Tenant(*row)


def _optional(field: str, value: Any, low: int, high: int) -> int | None:
    return None if value is None else integer(field, value, low, high)


# ---- Keys ----


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """A key of a tenant. The secret is there once, when it was made, and never in the repr."""

    key_id: str
    #: The first characters of the secret, by which people tell keys apart.
    key_prefix: str
    tenant_id: str
    name: str | None
    #: Kept for operators; nothing enforces them.
    permissions: tuple[str, ...]
    #: Milliseconds since 1970, as all times here; None for never.
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    key_secret: str | None = dataclasses.field(default=None, repr=False)

    @property
    def revoked(self) -> bool:
        return self.revoked_at is not None


_KEY = "key_id, key_prefix, tenant, name, permissions, created_at_ms, expires_at_ms, revoked_at_ms"
_ADD_KEY = f"INSERT INTO api_keys ({_KEY}, secret_sha256) VALUES (?,?,?,?,?,?,?,?,?)"
_FIND_KEY = f"SELECT {_KEY} FROM api_keys WHERE key_id = ?"
_FIND_SECRET = f"SELECT {_KEY} FROM api_keys WHERE secret_sha256 = ?"
_ALL_KEYS = f"SELECT {_KEY} FROM api_keys ORDER BY created_at_ms, key_id"
_REVOKE = "UPDATE api_keys SET revoked_at_ms = ? WHERE key_id = ? AND revoked_at_ms IS NULL"


def create_key(
    db: sqlite3.Connection,
    now: int,
    tenant_id: str,
    secret: str | None,
    name: str | None,
    permissions: Sequence[str],
    expires_at_ms: int | None,
) -> ApiKey:
    """Make a key of an open tenant, which gets a record if it has none.

    A given secret that is already a key of this tenant is that key, so that a program may say it at each start.
    """
    secret = _secret(secret)
    owner = tenant(db, scopes.tenant_id(tenant_id)) or create_tenant(db, now, tenant_id, None, TenantSettings())
    if owner.status != tenants.ACTIVE:
        raise ValidationError(f"tenant {tenant_id} is closed")
    found = _by_secret(db, secret)
    if found is not None:
        if found.tenant_id != tenant_id or found.revoked:
            raise AlreadyExists("secret: another key has or had it")
        return dataclasses.replace(found, key_secret=secret)
    made = ApiKey(
        key_id="key_" + os.urandom(8).hex(),
        key_prefix=secret[: min(14, len(secret) // 3)],
        tenant_id=tenant_id,
        name=None if name is None else text("name", name, 256),
        permissions=_permissions(permissions),
        created_at=now,
        expires_at=_optional("expires_at_ms", expires_at_ms, 0, INT64_MAX),
        revoked_at=None,
        key_secret=secret,
    )
    permitted = json.dumps(made.permissions)
    values = (
        made.key_id,
        made.key_prefix,
        tenant_id,
        made.name,
        permitted,
        now,
        made.expires_at,
        None,
        _sha256(secret),
    )
    db.execute(_ADD_KEY, values)
    return made


def revoke_key(db: sqlite3.Connection, now: int, key_id: str) -> ApiKey:
    """End a key now; one that was revoked before stays so."""
    db.execute(_REVOKE, (now, text("key_id", key_id, 256)))
    row = db.execute(_FIND_KEY, (key_id,)).fetchone()
    if row is None:
        raise ValidationError(f"key_id: there is no key {key_id}")
    return _api_key(row)


def keys(db: sqlite3.Connection) -> list[ApiKey]:
    """Every key, the oldest first."""
    return [_api_key(row) for row in db.execute(_ALL_KEYS).fetchall()]


def authenticate(db: sqlite3.Connection, now: int, secret: str) -> str | None:
    """The tenant of a secret, or None. Looked up by hash, so that timing tells nothing about secrets."""
    found = _by_secret(db, secret)
    if found is None or found.revoked or (found.expires_at is not None and now >= found.expires_at):
        return None
    return found.tenant_id


def _by_secret(db: sqlite3.Connection, secret: str) -> ApiKey | None:
    row = db.execute(_FIND_SECRET, (_sha256(secret),)).fetchone()
    return None if row is None else _api_key(row)


def _api_key(row: Sequence[Any]) -> ApiKey:
    key_id, key_prefix, tenant_id, name, permissions, *times = row
    return ApiKey(key_id, key_prefix, tenant_id, name, tuple(json.loads(permissions)), *times)


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _secret(given: str | None) -> str:
    if given is None:
        return "cyc_live_" + os.urandom(20).hex()
    if not isinstance(given, str) or _SECRET.match(given) is None:
        raise ValidationError("secret: 1 to 256 visible ASCII characters are expected")
    return given


def _permissions(given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise refuse("permissions", given, "a list of strings")
    return tuple([text("permissions", permission, 128) for permission in given])
