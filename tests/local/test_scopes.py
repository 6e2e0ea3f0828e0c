"""Scopes (protocol: SCOPE DERIVATION)."""

from __future__ import annotations

import pytest

from cycles_lite.errors import ValidationError
from cycles_lite.local import scopes
from cycles_lite.local.rules import Budget
from cycles_lite.protocol.values import SUBJECT_LEVELS, Subject


def test_every_prefix_is_affected():
    """All levels give six scopes, in canonical order, lower-cased, however the subject was written."""
    values = {level: level.upper() for level in reversed(SUBJECT_LEVELS)}
    made = scopes.derive(Subject(**values))
    assert made[0] == "tenant:tenant"
    assert made[-1] == "tenant:tenant/workspace:workspace/app:app/workflow:workflow/agent:agent/toolset:toolset"
    assert made == scopes.prefixes(made[-1])


def test_gaps_are_skipped():
    """Levels that are not given leave no trace."""
    assert scopes.derive(Subject(tenant="acme", agent="Bot.1")) == ("tenant:acme", "tenant:acme/agent:bot.1")
    assert scopes.derive(Subject(agent="bot")) == ("agent:bot",)


def test_leaf_and_owner():
    """The ends of a path."""
    assert Budget("tenant:acme/agent:bot", "TOKENS", 0).to_json()["scope"] == "agent:bot"
    assert Budget("tenant:acme", "TOKENS", 0).to_json()["scope"] == "tenant:acme"
    assert scopes.owner("tenant:acme/agent:bot") == "acme"


@pytest.mark.parametrize("value", ["a b", "a/b", "a:b", "é", "a@b"])
def test_illegal_characters(value):
    """A value without a stable scope is told from one that has one."""
    assert not scopes.is_value(value)
    assert scopes.is_value("A-z_0.9")


@pytest.mark.parametrize("given", ["abc", "a-1", "0" * 64])
def test_tenant_ids(given):
    """3 to 64 of a-z, 0-9 and the hyphen."""
    assert scopes.tenant_id(given) == given


@pytest.mark.parametrize("given", ["ab", "a" * 65, "Acme", "a_b", "a.b", "", None, "acme\n"])
def test_other_tenant_ids(given):
    """Anything else is refused, above all upper case: ownership would differ where scopes do not."""
    with pytest.raises(ValidationError, match="tenant_id"):
        scopes.tenant_id(given)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("tenant:acme", "tenant:acme"),
        ("Tenant:ACME/Agent:Bot", "tenant:acme/agent:bot"),
        ("tenant:acme/workspace:w/toolset:t", "tenant:acme/workspace:w/toolset:t"),
    ],
)
def test_budget_scopes(given, canonical):
    """Budgets have canonical scopes."""
    assert scopes.budget_scope(given) == canonical


@pytest.mark.parametrize(
    "given",
    [
        "",
        "acme",
        "tenant:",
        "tenant:ac",
        "agent:bot",
        "tenant:acme/",
        "tenant:acme//agent:bot",
        "tenant:acme/agent:bot/app:x",
        "tenant:acme/tenant:acme",
        "tenant:acme/robot:x",
        "tenant:acme/agent:a b",
        "tenant:a_b",
        "tenant:acme/agent:" + "x" * 129,
        7,
        None,
    ],
)
def test_other_budget_scopes(given):
    """What no subject could name is refused."""
    with pytest.raises(ValidationError, match="scope"):
        scopes.budget_scope(given)
