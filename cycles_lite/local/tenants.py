"""What the ledger knows of a tenant: whether it is closed, and its settings (design: section 9, Tenants)."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from .rules import ALLOW_IF_AVAILABLE, ALLOW_WITH_OVERDRAFT, REJECT, Refusal, Refused

ACTIVE = "ACTIVE"
CLOSED = "CLOSED"

POLICIES = (REJECT, ALLOW_IF_AVAILABLE, ALLOW_WITH_OVERDRAFT)


class Settings(NamedTuple):
    """A tenant's status and settings; the defaults are those of a tenant without a record, or without that setting."""

    status: str = ACTIVE
    default_ttl_ms: int = 60_000
    max_ttl_ms: int = 3_600_000
    default_overage_policy: str = ALLOW_IF_AVAILABLE
    max_extensions: int = 10

    @property
    def is_closed(self) -> bool:
        return self.status == CLOSED


FALLBACK = Settings()

_FIND = "SELECT {} FROM tenants WHERE id = ?".format(", ".join(Settings._fields))


def settings(db: sqlite3.Connection, tenant: str) -> Settings:
    """A tenant's settings. A record that cannot be read is refused: it could be a closed tenant's (protocol: ERROR
    SEMANTICS, malformed record)."""
    row = db.execute(_FIND, (tenant,)).fetchone()
    if row is None:
        return FALLBACK
    found = Settings._make([usual if given is None else given for given, usual in zip(row, FALLBACK)])
    numbers = (found.default_ttl_ms, found.max_ttl_ms, found.max_extensions)
    if (
        found.status not in (ACTIVE, CLOSED)
        or found.default_overage_policy not in POLICIES
        or any(type(number) is not int or number < 0 for number in numbers)
    ):
        raise Refused(Refusal("INTERNAL_ERROR", f"The record of tenant {tenant} cannot be read."))
    return found


def closed(tenant: str) -> Refusal:
    """The refusal of a closed tenant."""
    return Refusal("TENANT_CLOSED", f"Tenant {tenant} is closed.", {"tenant": tenant})


def demand_open(db: sqlite3.Connection, tenant: str) -> Settings:
    """The settings of a tenant that must not be closed."""
    found = settings(db, tenant)
    if found.is_closed:
        raise Refused(closed(tenant))
    return found
