"""Budgets being set up and funded."""

from __future__ import annotations

import pytest

from cycles_lite.errors import ValidationError
from cycles_lite.protocol.values import Amount, Caps, Unit

from .helpers import Bench

MAX = 2**63 - 1


@pytest.fixture
def authority():
    with Bench() as bench:
        yield bench.authority
        assert bench.authority.check() == []


def test_set_budget_makes_and_changes(authority):
    """The first call makes a budget; later ones set its allocation, and leave alone what they do not name."""
    made = authority.set_budget("Tenant:ACME", Amount.tokens(10), overdraft_limit=5, caps=Caps(max_tokens=1))
    assert made == authority.budgets()[0]
    assert (made.scope, made.unit, made.allocated, made.overdraft_limit) == ("tenant:acme", "TOKENS", 10, 5)
    assert made.caps == {"max_tokens": 1}
    changed = authority.set_budget("tenant:acme", Amount.tokens(20))
    assert changed == made._replace(allocated=20)
    assert authority.set_budget("tenant:acme", Amount.tokens(20), overdraft_limit=Amount.tokens(0)).overdraft_limit == 0
    assert authority.set_budget("tenant:acme", Amount.tokens(20), caps=Caps()).caps is None
    assert authority.set_budget("tenant:acme", Amount.credits(1)).unit == "CREDITS"
    assert [one.unit for one in authority.budgets()] == ["CREDITS", "TOKENS"]


def test_add_budget(authority):
    """Like setting one, unless it is there."""
    assert authority.add_budget("tenant:acme", Amount.tokens(10), overdraft_limit=Amount.tokens(2), caps=Caps())
    assert not authority.add_budget("TENANT:acme", Amount.tokens(20))
    assert authority.add_budget("tenant:acme", Amount.credits(20))
    assert [one.allocated for one in authority.budgets()] == [20, 10]


def test_fund(authority):
    """Funds are added."""
    authority.set_budget("tenant:acme", Amount.tokens(10))
    assert authority.fund("tenant:acme", Amount.tokens(5)).allocated == 15
    assert authority.fund("tenant:acme", Amount.tokens(0)).allocated == 15


def test_status(authority):
    """Freeze and unfreeze come and go; closed is final; one unit or all of them."""
    authority.set_budget("tenant:acme", Amount.tokens(10))
    authority.set_budget("tenant:acme", Amount.credits(10))

    def states():
        return [one.status for one in authority.budgets()]  # CREDITS, TOKENS

    assert [one.unit for one in authority.freeze("tenant:acme", "TOKENS")] == ["TOKENS"]
    assert states() == ["ACTIVE", "FROZEN"]
    authority.freeze("tenant:acme")
    assert states() == ["FROZEN", "FROZEN"]
    authority.unfreeze("tenant:acme", Unit.CREDITS)
    assert states() == ["ACTIVE", "FROZEN"]
    authority.unfreeze("tenant:acme")
    authority.unfreeze("tenant:acme")
    authority.close("tenant:acme", "TOKENS")
    authority.freeze("tenant:acme")
    assert states() == ["FROZEN", "CLOSED"]
    authority.close("tenant:acme")
    authority.close("tenant:acme")
    assert states() == ["CLOSED", "CLOSED"]
    for change in (authority.freeze, authority.unfreeze):
        with pytest.raises(ValidationError, match="closed"):
            change("tenant:acme")
    with pytest.raises(ValidationError, match="closed"):
        authority.fund("tenant:acme", Amount.tokens(1))
    with pytest.raises(ValidationError, match="closed"):
        authority.set_budget("tenant:acme", Amount.tokens(1))
    assert not authority.add_budget("tenant:acme", Amount.tokens(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda authority: authority.set_budget("agent:x", Amount.tokens(1)), "agent:x"),
        (lambda authority: authority.set_budget("tenant:acme", 1), "amount"),
        (lambda authority: authority.set_budget("tenant:acme", Amount.tokens(1), overdraft_limit=-1), "-1"),
        (lambda authority: authority.set_budget("tenant:acme", Amount.tokens(1), overdraft_limit=1.5), "1.5"),
        (lambda authority: authority.set_budget("tenant:acme", Amount.tokens(1), overdraft_limit=True), "True"),
        (
            lambda authority: authority.set_budget("tenant:acme", Amount.tokens(1), overdraft_limit=Amount.credits(1)),
            "overdraft_limit",
        ),
        (lambda authority: authority.set_budget("tenant:acme", Amount.tokens(1), caps={"max_tokens": 1}), "caps"),
        (lambda authority: authority.fund("tenant:nobody", Amount.tokens(1)), "tenant:nobody"),
        (lambda authority: authority.fund("tenant:acme", Amount.credits(1)), "CREDITS"),
        (lambda authority: authority.fund("tenant:acme", Amount.tokens(MAX)), "2\\^63"),
        (lambda authority: authority.freeze("tenant:nobody"), "tenant:nobody"),
        (lambda authority: authority.freeze("tenant:acme", "CREDITS"), "CREDITS"),
        (lambda authority: authority.freeze("tenant:acme", "EUROS"), "EUROS"),
        (lambda authority: authority.close("acme"), "acme"),
    ],
)
def test_bad_input(authority, change, message):
    """What cannot be meant raises an error that names it, and changes nothing."""
    authority.set_budget("tenant:acme", Amount.tokens(10))
    with pytest.raises(ValidationError, match=message):
        change(authority)
    assert [one.allocated for one in authority.budgets()] == [10]


def test_check_finds_what_is_wrong(authority):
    """Each invariant that is broken is told, with the budget's name."""
    authority.set_budget("tenant:acme", Amount.tokens(10))
    broken = {
        "reserved = 5": "its reservations hold 0",
        "debt = 5": "not marked",
        "spent = -1": "out of range",
        "status = 'LOST'": "status",
        "scope = 'acme'": "scope",
    }
    for change, message in broken.items():
        with authority._ledger.writing() as (db, _):
            before = db.execute("SELECT * FROM budgets").fetchall()
            db.execute("UPDATE budgets SET " + change)
        (violation,) = authority.check()
        assert message in violation
        with authority._ledger.writing() as (db, _):
            db.execute("DELETE FROM budgets")
            db.execute("INSERT INTO budgets VALUES ({})".format(",".join("?" * len(before[0]))), before[0])


def test_check_finds_a_lost_budget():
    """Holds on a budget that is not there are told."""
    with Bench() as bench:
        bench.budget()
        bench.reserve(10)
        with bench.authority._ledger.writing() as (db, _):
            db.execute("DELETE FROM budgets")
        assert "hold 10" in bench.authority.check()[0]
