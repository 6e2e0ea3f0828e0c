"""Scopes: how a subject names its budgets (protocol: SCOPE DERIVATION). Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Callable

from ..errors import ValidationError
from ..protocol.checks import is_a, refuse, shown
from ..protocol.values import SUBJECT_LEVELS

if TYPE_CHECKING:
    from ..protocol.values import Subject

TENANT_PREFIX = "tenant:"

#: Whether the value of a level has a stable scope (protocol: `Subject`, CHARSET).
is_value: Callable[[str], object] = re.compile(r"[a-zA-Z0-9_.-]{1,128}\Z").match

#: Whether a text names a tenant that may own anything: ownership is case-sensitive while scopes are not, so case has no
#: room.
is_tenant_id: Callable[[str], object] = re.compile(r"[a-z0-9-]{3,64}\Z").match


def tenant_id(tenant: Any) -> str:
    """A tenant's id, checked."""
    if is_a(tenant, str) and is_tenant_id(tenant):
        return tenant
    raise refuse("tenant_id", tenant, "3 to 64 of the characters a-z, 0-9 and -")


def derive(subject: Subject | None) -> tuple[str, ...]:
    """The affected scopes of a subject in canonical order; the last is its `scope_path`. Gaps are skipped."""
    assert subject is not None  # a program may leave the subject to its configuration, but every body has one
    made = []
    path = ""
    for level in SUBJECT_LEVELS:
        value = getattr(subject, level)
        if value is not None:
            path += "{}{}:{}".format("/" if path else "", level, value.lower())
            made.append(path)
    return tuple(made)


def prefixes(scope_path: str) -> tuple[str, ...]:
    """Every scope from the root down to a `scope_path`."""
    parts = scope_path.split("/")
    return tuple(["/".join(parts[: depth + 1]) for depth in range(len(parts))])


def owner(scope_path: str) -> str:
    """The tenant of a budget's scope."""
    return scope_path.split("/", 1)[0][len(TENANT_PREFIX) :]


def budget_scope(text: Any) -> str:
    """A scope that may have a budget, in canonical form: it begins with a tenant and keeps the levels' order.

    >>> budget_scope("tenant:acme/agent:Bot")
    'tenant:acme/agent:bot'
    """
    if not is_a(text, str):
        raise refuse("scope", text, "a string such as tenant:acme/agent:bot")
    scope = text.lower()
    depth = -1
    for part in scope.split("/"):
        level, colon, value = part.partition(":")
        if not colon or level not in SUBJECT_LEVELS or is_value(value) is None:
            raise ValidationError(f"scope {shown(text)}: {shown(part)} is not LEVEL:VALUE with one of {_LEVELS}")
        if SUBJECT_LEVELS.index(level) <= depth:
            raise ValidationError(f"scope {shown(text)}: the order of levels is {_LEVELS}")
        depth = SUBJECT_LEVELS.index(level)
    if not scope.startswith(TENANT_PREFIX) or not is_tenant_id(owner(scope)):
        raise ValidationError(f"scope {shown(text)}: it must begin with tenant: and 3 to 64 of a-z, 0-9, -")
    return scope


_LEVELS = ", ".join(SUBJECT_LEVELS)
