"""Tenants and their keys: their rows, and what operators do with them.

Of a key's secret the file has a SHA-256 alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

from ..errors import ValidationError
from ..protocol.checks import INT64_MAX, integer, is_a, shown, text, texts
from ..protocol.fields import Integer, OneOf
from ..protocol.values import CommitOveragePolicy
from . import rows, scopes
from .rules import ACTIVE, ALLOW_IF_AVAILABLE, CLOSED, Refused

if TYPE_CHECKING:
    from .ledger import Ledger

_SECRET = re.compile(r"[\x21-\x7e]{1,256}\Z")

_TTL = Integer(1000, 86_400_000)  # up to the protocol's own maximum

#: What may be set for a tenant, and what each setting may be.
_SETTINGS = {
    "default_ttl_ms": _TTL,
    "max_ttl_ms": _TTL,
    "default_overage_policy": OneOf(CommitOveragePolicy),
    "max_extensions": Integer(0, 2**31 - 1),
}


class AlreadyExists(ValidationError):
    """Something of this name exists already, and is not the same."""


class Tenant(NamedTuple):
    """A tenant's record; settings that are None are the fallbacks of `Settings`."""

    tenant_id: str
    name: str
    status: str
    created_at_ms: int
    default_ttl_ms: int | None
    max_ttl_ms: int | None
    default_overage_policy: str | None
    max_extensions: int | None


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
        """Whether the key was ended."""
        return self.revoked_at is not None


# ---- What operations ask ----


class Settings(NamedTuple):
    """A tenant's status and settings; the defaults are those of a tenant without a record, or without that setting."""

    status: str = ACTIVE
    default_ttl_ms: int = 60_000
    max_ttl_ms: int = 3_600_000
    default_overage_policy: str = ALLOW_IF_AVAILABLE
    max_extensions: int = 10


FALLBACK = Settings()
_POLICIES = tuple(CommitOveragePolicy)
_FIND_SETTINGS = "SELECT {} FROM tenants WHERE id = ?".format(", ".join(Settings._fields))


def settings(db: sqlite3.Connection, tenant: str) -> Settings:
    """A tenant's settings. A record that cannot be read is an error, because the tenant might be closed (protocol:
    ERROR SEMANTICS, malformed record)."""
    row = db.execute(_FIND_SETTINGS, (tenant,)).fetchone()
    if row is None:
        return FALLBACK
    found = Settings._make([usual if given is None else given for given, usual in zip(row, FALLBACK)])
    is_known = found.status in (ACTIVE, CLOSED) and found.default_overage_policy in _POLICIES
    numbers = (found.default_ttl_ms, found.max_ttl_ms, found.max_extensions)
    if not is_known or any(type(number) is not int or number < 0 for number in numbers):
        raise Refused("INTERNAL_ERROR", f"The record of tenant {tenant} cannot be read.")
    return found


def closed(tenant: str) -> Refused:
    """The refusal of a closed tenant."""
    return Refused("TENANT_CLOSED", f"Tenant {tenant} is closed.", {"tenant": tenant})


def demand_open(db: sqlite3.Connection, tenant: str) -> Settings:
    """The settings of a tenant that must not be closed."""
    found = settings(db, tenant)
    if found.status == CLOSED:
        raise closed(tenant)
    return found


# ---- What operators do ----

_TENANT = "id, name, status, created_at_ms, default_ttl_ms, max_ttl_ms, default_overage_policy, max_extensions"
_FIND_TENANT = f"SELECT {_TENANT} FROM tenants WHERE id = ?"
_ADD_TENANT = f"INSERT INTO tenants ({_TENANT}) VALUES (?,?,?,?,?,?,?,?)"
_CLOSE_TENANT = "UPDATE tenants SET status = ? WHERE id = ?"
_REVOKE_KEYS_OF = "UPDATE api_keys SET revoked_at_ms = ? WHERE tenant = ? AND revoked_at_ms IS NULL"

_KEY = "key_id, key_prefix, tenant, name, permissions, created_at_ms, expires_at_ms, revoked_at_ms"
_ADD_KEY = f"INSERT INTO api_keys ({_KEY}, secret_sha256) VALUES (?,?,?,?,?,?,?,?,?)"
_FIND_KEYS = f"SELECT {_KEY} FROM api_keys WHERE "
_REVOKE = "UPDATE api_keys SET revoked_at_ms = ? WHERE key_id = ? AND revoked_at_ms IS NULL"
_FIND_OWNER = "SELECT tenant, expires_at_ms FROM api_keys WHERE secret_sha256 = ? AND revoked_at_ms IS NULL"


class TenantMethods:
    """The methods of `Authority` for tenants and their keys. Each opens its own transaction."""

    _ledger: Ledger

    def create_tenant(
        self,
        tenant_id: str,
        name: str | None = None,
        *,
        default_ttl_ms: int | None = None,
        max_ttl_ms: int | None = None,
        default_overage_policy: str | None = None,
        max_extensions: int | None = None,
    ) -> Tenant:
        """Give a tenant (`[a-z0-9-]{3,64}`) a record, with settings other than 60000, 3600000, ALLOW_IF_AVAILABLE, 10.

        The same tenant again is returned as it is; another name or other settings raise `AlreadyExists`, a
        `ValidationError`.
        """
        wanted = checked_settings(default_ttl_ms, max_ttl_ms, default_overage_policy, max_extensions)
        name = None if name is None else text("name", name, 256)
        with self._ledger.writing() as (db, now):
            found = _tenant(db, scopes.tenant_id(tenant_id)) or _add_tenant(db, now, tenant_id, name, wanted)
        if name not in (None, found.name):
            raise AlreadyExists(f"tenant {tenant_id} exists under another name")
        if any(setting not in (None, present) for setting, present in zip(wanted, found[4:])):
            raise AlreadyExists(f"tenant {tenant_id} exists with other settings")
        return found

    def tenant(self, tenant_id: str) -> Tenant | None:
        """A tenant's record; None where it has none, which does not keep it from having budgets."""
        with self._ledger.reading() as (db, _):
            return _tenant(db, tenant_id) if is_a(tenant_id, str) and scopes.is_tenant_id(tenant_id) else None

    def close_tenant(self, tenant_id: str) -> Tenant:
        """Close a tenant for good: nothing is reserved, settled or recorded for it any more. Its keys are revoked."""
        with self._ledger.writing() as (db, now):
            found = _tenant(db, scopes.tenant_id(tenant_id))
            if found is None:  # one that only has budgets gets a record that says so
                root = scopes.TENANT_PREFIX + tenant_id
                its_own = "scope = ? OR (scope > ? AND scope < ?) LIMIT 1"  # "0" comes after "/"
                if not rows.find_budgets(db, its_own, (root, root + "/", root + "0")):
                    raise ValidationError(f"tenant {tenant_id} is not known here")
                found = _add_tenant(db, now, tenant_id)
            db.execute(_CLOSE_TENANT, (CLOSED, tenant_id))
            db.execute(_REVOKE_KEYS_OF, (now, tenant_id))
            return found._replace(status=CLOSED)

    def create_key(
        self,
        tenant_id: str,
        *,
        secret: str | None = None,
        name: str | None = None,
        permissions: Sequence[str] = (),
        expires_at_ms: int | None = None,
    ) -> ApiKey:
        """Make an API key of an open tenant, which gets a record if it has none. Its `key_secret` is only in this
        answer: the file keeps a SHA-256 of it.

        A `secret` of your own (visible ASCII) that is already this tenant's key is returned as that key.
        """
        secret = _secret(secret)
        with self._ledger.writing() as (db, now):
            owner = _tenant(db, scopes.tenant_id(tenant_id)) or _add_tenant(db, now, tenant_id)
            if owner.status != ACTIVE:
                raise ValidationError(f"tenant {tenant_id} is closed")
            for found in _keys(db, "secret_sha256 = ?", sha256(secret)):
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
                expires_at=None if expires_at_ms is None else integer("expires_at_ms", expires_at_ms, 0, INT64_MAX),
                revoked_at=None,
                key_secret=secret,
            )
            row = (made.key_id, made.key_prefix, tenant_id, made.name, json.dumps(made.permissions), now)
            db.execute(_ADD_KEY, (*row, made.expires_at, None, sha256(secret)))
            return made

    def revoke_key(self, key_id: str) -> ApiKey:
        """End a key; one that was revoked before stays so. Raises `ValidationError` where there is none of this id."""
        with self._ledger.writing() as (db, now):
            db.execute(_REVOKE, (now, text("key_id", key_id, 256)))
            for found in _keys(db, "key_id = ?", key_id):
                return found
        raise ValidationError(f"key_id: there is no key {shown(key_id)}")

    def keys(self) -> list[ApiKey]:
        """Every key, the oldest first, without their secrets."""
        with self._ledger.reading() as (db, _):
            return _keys(db, "1 ORDER BY created_at_ms, key_id")

    def authenticate(self, secret: str) -> str | None:
        """The tenant that a key's secret belongs to; None for one that is unknown, revoked or expired.

        Keys are found by their hash, so that the time it takes tells nothing about secrets.
        """
        if not is_a(secret, str):
            return None
        with self._ledger.reading() as (db, now):
            return owner(db, now, sha256(secret))


def owner(db: sqlite3.Connection, now: int, key: bytes) -> str | None:
    """The tenant of a key by the SHA-256 of its secret; None for one that is unknown, revoked or expired."""
    found = db.execute(_FIND_OWNER, (key,)).fetchone()
    if found is None or (found[1] is not None and now >= found[1]):
        return None
    return str(found[0])


def checked_settings(*given: Any) -> list[Any]:
    """The settings of a tenant in the order of `create_tenant`, proven legal; None leaves one as it usually is."""
    checked = [None if one is None else kind.check(name, one) for (name, kind), one in zip(_SETTINGS.items(), given)]
    return [str(one) if isinstance(one, CommitOveragePolicy) else one for one in checked]


def _tenant(db: sqlite3.Connection, tenant_id: str) -> Tenant | None:
    """A tenant's record, if it has one."""
    row = db.execute(_FIND_TENANT, (tenant_id,)).fetchone()
    return None if row is None else Tenant(*row)


def _add_tenant(
    db: sqlite3.Connection, now: int, tenant_id: str, name: str | None = None, settings: Sequence[Any] = (None,) * 4
) -> Tenant:
    """Write the record of an open tenant, which is called by its id where it has no name."""
    made = Tenant(tenant_id, text("name", tenant_id if name is None else name, 256), ACTIVE, now, *settings)
    db.execute(_ADD_TENANT, made)
    return made


def _keys(db: sqlite3.Connection, where: str, *values: Any) -> list[ApiKey]:
    """Keys by a condition, without their secrets."""
    return [
        ApiKey(key_id, key_prefix, tenant, name, tuple(json.loads(permissions)), *times)
        for key_id, key_prefix, tenant, name, permissions, *times in db.execute(_FIND_KEYS + where, values).fetchall()
    ]


def sha256(secret: str) -> bytes:
    """What the file keeps of a secret, and finds a key by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _secret(given: str | None) -> str:
    """The secret that a program gave, or a new one."""
    if given is None:
        return "cyc_live_" + os.urandom(20).hex()
    if not is_a(given, str) or _SECRET.match(given) is None:
        raise ValidationError("secret: 1 to 256 visible ASCII characters are expected")
    return given


def _permissions(given: Sequence[str]) -> tuple[str, ...]:
    """The permissions that a program gave, each a text; a text alone is no list of them."""
    return tuple([text("permissions", permission, 128) for permission in texts("permissions", given)])
