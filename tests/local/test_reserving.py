"""Reservations, dry runs and decisions (protocol: createReservation, decide)."""

from __future__ import annotations

import re

import pytest

from cycles_lite.local import tenants
from cycles_lite.protocol.values import Amount, Caps

from .helpers import START, Bench, tokens

BOT = {"tenant": "acme", "agent": "Bot"}


def test_answer_of_a_live_reservation(bench):
    """Everything that the protocol has for a live reservation, and nothing else."""
    bench.budget("tenant:acme/agent:bot", 500)
    made = bench.reserve(100, BOT, ttl_ms=30000)
    assert re.match(r"rsv_[0-9a-f]{32}\Z", made.id)
    balances = made.data.pop("balances")
    assert made.data == {
        "decision": "ALLOW",
        "reservation_id": made.id,
        "reserved": tokens(100),
        "expires_at_ms": START + 30000,
        "remaining_ttl_ms": 30000,
        "scope_path": "tenant:acme/agent:bot",
        "affected_scopes": ["tenant:acme", "tenant:acme/agent:bot"],
    }
    assert [(one["scope"], one["scope_path"], one["remaining"]["amount"]) for one in balances] == [
        ("tenant:acme", "tenant:acme", 900),
        ("agent:bot", "tenant:acme/agent:bot", 400),
    ]
    assert bench.amounts()[:2] == (900, 100)


def test_scopes_without_a_budget_are_skipped(bench):
    """A scope between two budgets needs none, and is affected all the same."""
    bench.budget("tenant:acme/workspace:w/agent:bot", 500)
    made = bench.reserve(100, {"tenant": "acme", "workspace": "w", "app": "a", "agent": "bot"})
    assert made.data["affected_scopes"] == [
        "tenant:acme",
        "tenant:acme/workspace:w",
        "tenant:acme/workspace:w/app:a",
        "tenant:acme/workspace:w/app:a/agent:bot",
    ]
    assert [one["scope_path"] for one in made.data["balances"]] == ["tenant:acme"]


def test_all_scopes_or_none(bench):
    """What one scope refuses takes nothing from the others."""
    bench.budget("tenant:acme/agent:bot", 50)
    refused = bench.reserve(51, BOT)
    assert (refused.status, refused.error) == (409, "BUDGET_EXCEEDED")
    assert refused.data["details"] == {
        "scope": "tenant:acme/agent:bot",
        "unit": "TOKENS",
        "requested": 51,
        "remaining": 50,
    }
    assert bench.amounts() == (1000, 0, 0, 0, False)


def set_up(bench, state):
    """A budget tenant:acme/agent:bot in a state that refuses."""
    bench.budget("tenant:acme/agent:bot", 100, overdraft_limit=10)
    if state == "frozen":
        bench.authority.freeze("tenant:acme/agent:bot")
    elif state == "closed":
        bench.authority.close("tenant:acme/agent:bot")
    elif state in ("debt", "over"):
        made = bench.reserve(100, BOT, overage_policy="ALLOW_WITH_OVERDRAFT")
        assert bench.commit(made.id, 110).status == 200
        bench.budget("tenant:acme/agent:bot", 200, overdraft_limit=0 if state == "debt" else 5)
        if state == "debt":  # over limit as well, until it is funded: take that away the only way there is
            bench.budget("tenant:acme/agent:bot", 200, overdraft_limit=10)
            bench.budget("tenant:acme/agent:bot", 200, overdraft_limit=10)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("frozen", "BUDGET_FROZEN"),
        ("closed", "BUDGET_CLOSED"),
        ("over", "OVERDRAFT_LIMIT_EXCEEDED"),
        ("small", "BUDGET_EXCEEDED"),
    ],
)
def test_refusals(bench, state, code):
    """Each state refuses with its code: a 409 live, a DENY with that reason in a dry run and a decision."""
    set_up(bench, state)
    live = bench.reserve(101, BOT)
    assert (live.status, live.error) == (409, code)
    assert {"scope", "unit", "requested", "remaining"} <= set(live.data["details"])
    denied = {"decision": "DENY", "reason_code": code, "affected_scopes": ["tenant:acme", "tenant:acme/agent:bot"]}
    assert bench.decide(101, BOT).data == denied
    assert bench.reserve(101, BOT, dry_run=True).data == {**denied, "scope_path": "tenant:acme/agent:bot"}


def test_debt_without_a_limit(bench):
    """Debt that no limit covers is over limit where it was just reconciled, and outstanding debt where it was not."""
    set_up(bench, "debt")
    with bench.authority._ledger.writing() as (db, _):
        db.execute("UPDATE budgets SET overdraft_limit = 0 WHERE scope = 'tenant:acme/agent:bot'")
    refused = bench.reserve(1, BOT)
    assert (refused.status, refused.error) == (409, "DEBT_OUTSTANDING")
    assert refused.data["details"]["debt"] == 10
    assert bench.decide(1, BOT).data["reason_code"] == "DEBT_OUTSTANDING"
    with bench.authority._ledger.writing() as (db, _):
        db.execute("UPDATE budgets SET overdraft_limit = 10 WHERE scope = 'tenant:acme/agent:bot'")


def test_wrong_unit(bench):
    """Where an affected scope has a budget in another unit, that is a 400 on all three, naming the first such scope."""
    bench.authority.set_budget("tenant:acme", Amount.credits(5))
    bench.budget("tenant:acme/agent:bot", 5)
    estimate = {"unit": "USD_MICROCENTS", "amount": 1}
    for answer in (
        bench.reserve(subject=BOT, estimate=estimate),
        bench.reserve(subject=BOT, estimate=estimate, dry_run=True),
        bench.decide(subject=BOT, estimate=estimate),
        bench.event(subject=BOT, actual=estimate),
    ):
        assert (answer.status, answer.error) == (400, "UNIT_MISMATCH")
        assert answer.data["details"] == {
            "scope": "tenant:acme",
            "requested_unit": "USD_MICROCENTS",
            "expected_units": ["CREDITS", "TOKENS"],
        }


def test_a_unit_in_one_scope_is_enough(bench):
    """A unit that only the deeper scope has a budget in is no mismatch."""
    bench.authority.set_budget("tenant:acme/agent:bot", Amount.credits(5))
    assert bench.reserve(subject=BOT, estimate={"unit": "CREDITS", "amount": 5}).status == 200


def test_no_budget(bench):
    """With no budget at all: 404 live, DENY with BUDGET_NOT_FOUND in a dry run and a decision."""
    nobody = {"tenant": "nobody", "agent": "x"}
    owner = {"caller": bench_caller("nobody")}
    live = bench.reserve(1, nobody, **owner)
    assert (live.status, live.error) == (404, "NOT_FOUND")
    assert live.data["message"] == "Budget not found for provided scope: tenant:nobody/agent:x"
    assert bench.event(1, nobody, **owner).status == 404
    denied = {
        "decision": "DENY",
        "reason_code": "BUDGET_NOT_FOUND",
        "affected_scopes": ["tenant:nobody", "tenant:nobody/agent:x"],
    }
    assert bench.decide(1, nobody, **owner).data == denied
    assert bench.reserve(1, nobody, dry_run=True, **owner).data == {**denied, "scope_path": "tenant:nobody/agent:x"}


def bench_caller(tenant):
    from cycles_lite.local.authority import Caller

    return Caller(tenant)


def test_caps_come_from_the_deepest_scope(bench):
    """Only the budget at the full path, in that unit, has a say; its caps are on all three answers."""
    bench.budget("tenant:acme", 1000, caps=Caps(max_tokens=1))
    bench.budget("tenant:acme/agent:bot", 500, caps=Caps(tool_allowlist=("search",), max_tokens=2))
    caps = {"max_tokens": 2, "tool_allowlist": ["search"]}
    assert bench.reserve(1, BOT).data["caps"] == caps
    assert bench.reserve(1, BOT).data["decision"] == "ALLOW_WITH_CAPS"
    assert bench.reserve(1, BOT, dry_run=True).data["caps"] == caps
    assert bench.decide(1, BOT).data == {
        "decision": "ALLOW_WITH_CAPS",
        "caps": caps,
        "affected_scopes": ["tenant:acme", "tenant:acme/agent:bot"],
    }
    deeper = bench.reserve(1, {**BOT, "toolset": "t"})  # no budget at the full path, so no caps
    assert deeper.data["decision"] == "ALLOW"
    bench.budget("tenant:acme/agent:bot", 500, caps=Caps())
    assert "caps" not in bench.reserve(1, BOT).data


def test_dry_run_changes_nothing(bench):
    """A dry run that is allowed shows the balances as they are, and never an id or a lifetime."""
    answer = bench.reserve(100, dry_run=True)
    balances = answer.data.pop("balances")
    assert answer.data == {
        "decision": "ALLOW",
        "reserved": tokens(100),
        "scope_path": "tenant:acme",
        "affected_scopes": ["tenant:acme"],
    }
    assert balances[0]["remaining"]["amount"] == 1000
    assert bench.amounts() == (1000, 0, 0, 0, False)
    assert bench.listed() == []


def test_zero(bench):
    """Nothing can be reserved, too."""
    bench.budget("tenant:acme", 0)
    made = bench.reserve(0)
    assert made.status == 200
    assert bench.commit(made.id, 0).data["charged"] == tokens(0)


def test_int64(bench):
    """The largest amount there is goes through everything exactly."""
    most = 2**63 - 1
    bench.budget("tenant:acme", most)
    made = bench.reserve(most)
    assert bench.amounts()[:2] == (0, most)
    assert bench.reserve(1).error == "BUDGET_EXCEEDED"
    assert bench.commit(made.id, most).data["balances"][0]["spent"] == tokens(most)
    assert bench.amounts()[2] == most


@pytest.mark.parametrize(
    ("fields", "ttl"),
    [({}, 60000), ({"ttl_ms": 1000}, 1000), ({"ttl_ms": 86_400_000}, 3_600_000), ({"ttl_ms": None}, 60000)],
)
def test_ttl(bench, fields, ttl):
    """A minute where nothing is said, at most an hour."""
    assert bench.reserve(**fields).data["remaining_ttl_ms"] == ttl


def test_tenant_settings():
    """A tenant's own default and maximum TTL, overage policy and extensions."""
    with Bench() as bench:
        bench.authority.create_tenant(
            "acme", default_ttl_ms=5000, max_ttl_ms=7000, default_overage_policy="REJECT", max_extensions=1
        )
        bench.budget()
        assert bench.reserve().data["remaining_ttl_ms"] == 5000
        made = bench.reserve(10, ttl_ms=9000)
        assert made.data["remaining_ttl_ms"] == 7000
        assert bench.extend(made.id, 100_000).data["remaining_ttl_ms"] == 107_000  # extensions are not clamped
        assert bench.extend(made.id).error == "MAX_EXTENSIONS_EXCEEDED"
        assert bench.commit(made.id, 11).error == "BUDGET_EXCEEDED"
        assert bench.event(2000).error == "BUDGET_EXCEEDED"
        lenient = bench.reserve(10, overage_policy="ALLOW_IF_AVAILABLE")
        assert bench.commit(lenient.id, 11).status == 200


def test_default_ttl_is_clamped_too():
    """A default over the maximum is no way around it."""
    with Bench() as bench:
        bench.authority.create_tenant("acme", max_ttl_ms=7000)
        bench.budget()
        assert bench.reserve().data["remaining_ttl_ms"] == 7000


def test_fallbacks():
    """The settings of a tenant that nobody gave any."""
    assert tenants.FALLBACK == ("ACTIVE", 60000, 3600000, "ALLOW_IF_AVAILABLE", 10)
