"""The budget rules, as tables."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, strategies as st

from cycles_lite.errors import ValidationError
from cycles_lite.local import rules
from cycles_lite.local.rules import Budget, Charge, Refused

MAX = 2**63 - 1


def budget(remaining=100, **fields):
    """A budget with that much left beside what the fields take."""
    taken = sum(fields.get(name, 0) for name in ("spent", "reserved", "debt"))
    return Budget("tenant:acme", "TOKENS", remaining + taken, **fields)


def scoped(*budgets):
    """The budgets at one scope below the other."""
    return tuple(
        b._replace(scope="/".join(("tenant:acme", "app:a", "agent:b")[: i + 1])) for i, b in enumerate(budgets)
    )


def outcome(rule, *arguments):
    """What a rule returns, or the refusal that it raises."""
    try:
        return rule(*arguments)
    except Refused as e:
        return e


RESERVE = [
    # budget, amount, the code of the refusal
    (budget(100), 0, None),
    (budget(100), 99, None),
    (budget(100), 100, None),
    (budget(100), 101, "BUDGET_EXCEEDED"),
    (budget(0), 0, None),
    (budget(0), 1, "BUDGET_EXCEEDED"),
    (budget(MAX), MAX, None),
    (budget(-1, debt=5, overdraft_limit=10), 0, "BUDGET_EXCEEDED"),
    (budget(100, debt=5, overdraft_limit=10), 100, None),
    (budget(100, debt=5), 1, "DEBT_OUTSTANDING"),
    (budget(100, debt=5, is_over_limit=True), 1, "OVERDRAFT_LIMIT_EXCEEDED"),
    (budget(100, is_over_limit=True), 0, "OVERDRAFT_LIMIT_EXCEEDED"),
    (budget(100, is_over_limit=True, status=rules.FROZEN), 1, "BUDGET_FROZEN"),
    (budget(100, status=rules.CLOSED), 1, "BUDGET_CLOSED"),
]


@pytest.mark.parametrize(("state", "amount", "code"), RESERVE)
def test_reserve_checks(state, amount, code):
    """A reservation is refused by the first check that its budget fails, and by nothing else."""
    made = outcome(rules.hold, (state,), amount)
    assert (made.code if isinstance(made, Refused) else None) == code


def test_reserve_checks_scope_by_scope():
    """All checks of the outer scope come before any of the inner one's."""
    outer, inner = scoped(budget(5), budget(100, status=rules.FROZEN))
    refusal = outcome(rules.hold, (outer, inner), 10)
    assert refusal.code == "BUDGET_EXCEEDED"
    assert refusal.details == {"scope": "tenant:acme", "unit": "TOKENS", "requested": 10, "remaining": 5}
    assert outcome(rules.hold, (outer, inner), 1).details["scope"] == "tenant:acme/app:a"


def test_refusal_tells_debt():
    """Where debt plays a part the details say how much, and how much is allowed."""
    refusal = outcome(rules.hold, (budget(100, debt=7),), 1)
    assert refusal.details["debt"] == 7
    assert refusal.details["overdraft_limit"] == 0
    assert "7" in refusal.message


def test_hold_and_free():
    """A hold moves into reserved, and freeing it is the exact reverse."""
    before = scoped(budget(100), budget(50, spent=3))
    held = rules.hold(before, 50)
    assert [b.reserved for b in held] == [50, 50]
    assert [b.remaining for b in held] == [50, 0]
    assert rules.free(held, 50) == before


def held(remaining, amount=100, **fields):
    """A budget with that much left beside a hold."""
    return budget(remaining, reserved=amount, **fields)


REJECT, IF_AVAILABLE, OVERDRAFT = rules.REJECT, rules.ALLOW_IF_AVAILABLE, rules.ALLOW_WITH_OVERDRAFT

# A hold of 100 is settled. budgets, actual, policy; then charged, released, and per budget
# (spent, debt, is_over_limit) after it; or the code of the refusal.
SETTLE = [
    ([held(0)], 0, REJECT, (0, 100, [(0, 0, False)])),
    ([held(0)], 99, REJECT, (99, 1, [(99, 0, False)])),
    ([held(0)], 100, REJECT, (100, 0, [(100, 0, False)])),
    ([held(1000)], 101, REJECT, "BUDGET_EXCEEDED"),
    # The extra is there.
    ([held(50)], 150, IF_AVAILABLE, (150, 0, [(150, 0, False)])),
    ([held(50)], 150, OVERDRAFT, (150, 0, [(150, 0, False)])),
    # It is not: capped to what is left, and over limit.
    ([held(50)], 151, IF_AVAILABLE, (150, 0, [(150, 0, True)])),
    ([held(0)], 101, IF_AVAILABLE, (100, 0, [(100, 0, True)])),
    ([held(-20, debt=50, overdraft_limit=90)], 101, IF_AVAILABLE, (100, 0, [(100, 50, True)])),
    # The least of several caps all; only those that lack the whole extra are marked.
    ([held(30), held(10)], 120, IF_AVAILABLE, (110, 0, [(110, 0, False), (110, 0, True)])),
    ([held(10), held(15)], 120, IF_AVAILABLE, (110, 0, [(110, 0, True), (110, 0, True)])),
    # Without an overdraft limit, overdraft behaves as if-available.
    ([held(50)], 151, OVERDRAFT, (150, 0, [(150, 0, True)])),
    # With one, what is missing becomes debt.
    ([held(50, overdraft_limit=10)], 151, OVERDRAFT, (151, 0, [(150, 1, False)])),
    ([held(50, overdraft_limit=10)], 160, OVERDRAFT, (160, 0, [(150, 10, False)])),
    ([held(50, overdraft_limit=10)], 161, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([held(-5, debt=5, overdraft_limit=10)], 105, OVERDRAFT, (105, 0, [(100, 10, False)])),
    ([held(-5, debt=5, overdraft_limit=10)], 106, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    # Debt that is over the limit already does not matter to a charge that adds none.
    ([held(50, debt=20, overdraft_limit=10)], 150, OVERDRAFT, (150, 0, [(150, 20, False)])),
    # A limitless scope caps first, so that less is owed in the other; only the capping one is marked.
    ([held(0, overdraft_limit=50), held(20)], 150, OVERDRAFT, (120, 0, [(100, 20, False), (120, 0, True)])),
    ([held(5, overdraft_limit=50), held(20)], 150, OVERDRAFT, (120, 0, [(105, 15, False), (120, 0, True)])),
    ([held(0, overdraft_limit=10), held(20)], 150, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([held(0, overdraft_limit=10), held(0)], 150, OVERDRAFT, (100, 0, [(100, 0, False), (100, 0, True)])),
    # Whatever the state, a hold is settled.
    ([held(0, status=rules.FROZEN)], 100, REJECT, (100, 0, [(100, 0, False)])),
    ([held(50, status=rules.CLOSED, is_over_limit=True)], 120, IF_AVAILABLE, (120, 0, [(120, 0, True)])),
]


@pytest.mark.parametrize(("budgets", "actual", "policy", "expected"), SETTLE)
def test_charge(budgets, actual, policy, expected):
    """Settling a hold of 100 under each policy, at its edges."""
    made = outcome(rules.charge, scoped(*budgets), 100, actual, policy)
    if isinstance(expected, str):
        assert isinstance(made, Refused)
        assert made.code == expected
        assert made.details["requested"] == actual
    else:
        charged, released, states = expected
        assert made[1:] == (charged, released)
        assert [(b.spent, b.debt, b.is_over_limit) for b in made.budgets] == states
        assert all(b.reserved == 0 for b in made.budgets)


# budgets, actual, policy; then charged and per budget (spent, debt, is_over_limit), or the refusal's code.
EVENTS = [
    ([budget(100)], 100, REJECT, (100, [(100, 0, False)])),
    ([budget(100)], 101, REJECT, "BUDGET_EXCEEDED"),
    ([budget(100), budget(50)], 51, REJECT, "BUDGET_EXCEEDED"),
    ([budget(100)], 101, IF_AVAILABLE, (100, [(100, 0, True)])),
    ([budget(0)], 0, IF_AVAILABLE, (0, [(0, 0, False)])),
    ([budget(-5, debt=5, overdraft_limit=9)], 0, IF_AVAILABLE, (0, [(0, 5, False)])),
    ([budget(-5, debt=5, overdraft_limit=9)], 0, REJECT, "BUDGET_EXCEEDED"),
    ([budget(100, overdraft_limit=10)], 110, OVERDRAFT, (110, [(100, 10, False)])),
    ([budget(100, overdraft_limit=10)], 111, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    # Debt and over-limit do not stop an event; frozen and closed do. Scope by scope, each with all checks.
    ([budget(100, debt=5)], 10, IF_AVAILABLE, (10, [(10, 5, False)])),
    ([budget(100, is_over_limit=True)], 10, REJECT, (10, [(10, 0, True)])),
    ([budget(0), budget(100, status=rules.FROZEN)], 10, REJECT, "BUDGET_EXCEEDED"),
    ([budget(0, status=rules.CLOSED), budget(100, status=rules.FROZEN)], 10, REJECT, "BUDGET_CLOSED"),
    ([budget(10), budget(0, status=rules.FROZEN)], 10, REJECT, "BUDGET_FROZEN"),
    ([budget(0, overdraft_limit=5), budget(100, status=rules.FROZEN)], 10, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([budget(0, overdraft_limit=50), budget(100, status=rules.FROZEN)], 10, OVERDRAFT, "BUDGET_FROZEN"),
    # A debt above a lowered limit refuses wherever less remains than is to be taken, also where that is nothing.
    ([budget(-5, debt=5, overdraft_limit=4)], 0, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([budget(-5, debt=5, overdraft_limit=4), budget(0)], 9, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([budget(-5, debt=5), budget(9)], 9, OVERDRAFT, "OVERDRAFT_LIMIT_EXCEEDED"),
    ([budget(9, debt=5, overdraft_limit=4)], 9, OVERDRAFT, (9, [(9, 5, False)])),
    ([budget(-5, debt=5, overdraft_limit=4)], 9, IF_AVAILABLE, (0, [(0, 5, True)])),
    ([budget(0), budget(100, status=rules.CLOSED)], 10, IF_AVAILABLE, "BUDGET_CLOSED"),
]


@pytest.mark.parametrize(("budgets", "actual", "policy", "expected"), EVENTS)
def test_charge_event(budgets, actual, policy, expected):
    """Events follow the same policies on the whole amount."""
    made = outcome(rules.charge_event, scoped(*budgets), actual, policy)
    if isinstance(expected, str):
        assert isinstance(made, Refused)
        assert made.code == expected
    else:
        assert (made.charged, made.released) == (expected[0], 0)
        assert [(b.spent, b.debt, b.is_over_limit) for b in made.budgets] == expected[1]


def test_charge_never_leaves_int64():
    """A charge that no int64 could hold is refused, whichever field it would leave by."""
    spent = Budget("tenant:acme", "TOKENS", 100, spent=MAX - 10, reserved=100)
    assert outcome(rules.charge, (spent,), 100, 100, REJECT).code == "OVERDRAFT_LIMIT_EXCEEDED"
    deep = Budget("tenant:acme", "TOKENS", 0, spent=MAX, debt=0, overdraft_limit=MAX)
    assert outcome(rules.charge_event, (deep,), MAX, OVERDRAFT).code == "OVERDRAFT_LIMIT_EXCEEDED"
    assert isinstance(outcome(rules.charge_event, (deep,), 1, OVERDRAFT), Charge)


amounts = st.integers(min_value=0, max_value=MAX) | st.integers(min_value=0, max_value=200)
states = st.tuples(amounts, amounts, amounts, amounts, amounts, st.booleans()).map(
    lambda values: Budget("tenant:acme", "TOKENS", *values)
)
states = states.filter(rules.is_legal)


@given(st.lists(states, min_size=1, max_size=3), amounts, amounts, st.sampled_from([REJECT, IF_AVAILABLE, OVERDRAFT]))
def test_charge_is_conservative(budgets, hold, actual, policy):
    """Whatever is charged is spent or owed in every scope alike, nothing else changes, and all stays in int64."""
    budgets = tuple(b._replace(reserved=max(b.reserved, hold)) for b in budgets)
    if not all(rules.is_legal(b) for b in budgets):
        return
    made = outcome(rules.charge, budgets, hold, actual, policy)
    if isinstance(made, Refused):
        return
    assert 0 <= made.charged <= actual
    assert made.released == max(0, hold - actual)
    for before, after in zip(budgets, made.budgets):
        assert rules.is_legal(after)
        assert after.spent + after.debt == before.spent + before.debt + made.charged
        assert after.reserved == before.reserved - hold
        assert after.is_over_limit >= before.is_over_limit
        assert after.debt == before.debt or after.debt <= before.overdraft_limit


OPEN = {"debt": 10, "overdraft_limit": 6}
FUND = [
    # operation, budget, amount; allocated, spent, debt, is_over_limit after it
    ("CREDIT", budget(100), 0, (100, 0, 0, False)),
    ("CREDIT", budget(100), 5, (105, 0, 0, False)),
    ("CREDIT", budget(0, debt=10), 4, (14, 4, 6, True)),
    ("CREDIT", budget(0, debt=10), 10, (20, 10, 0, False)),
    ("CREDIT", budget(0, debt=10), 15, (25, 10, 0, False)),
    ("CREDIT", budget(0, is_over_limit=True, **OPEN), 3, (13, 3, 7, True)),
    ("CREDIT", budget(0, is_over_limit=True, **OPEN), 4, (14, 4, 6, False)),
    ("CREDIT", budget(0, is_over_limit=True), 0, (0, 0, 0, False)),
    ("CREDIT", budget(0, status=rules.FROZEN), 7, (7, 0, 0, False)),
    ("DEBIT", budget(100), 0, (100, 0, 0, False)),
    ("DEBIT", budget(100, spent=7, reserved=3), 99, (11, 7, 0, False)),
    ("DEBIT", budget(100, spent=7, reserved=3), 100, (10, 7, 0, False)),
    ("DEBIT", budget(100, spent=7, reserved=3), 101, "BUDGET_EXCEEDED"),
    ("DEBIT", budget(0), 1, "BUDGET_EXCEEDED"),
    ("DEBIT", budget(-1, spent=3, **OPEN), 0, "BUDGET_EXCEEDED"),
    ("DEBIT", budget(5, is_over_limit=True, debt=6, overdraft_limit=6), 5, (6, 0, 6, False)),
    ("DEBIT", budget(5, status=rules.FROZEN), 5, (0, 0, 0, False)),
    ("RESET", budget(100, spent=7, reserved=3, debt=2), 50, (50, 7, 2, True)),
    ("RESET", budget(100, spent=7, reserved=3, overdraft_limit=2, debt=2), 0, (0, 7, 2, False)),
    ("RESET", budget(100, is_over_limit=True), MAX, (MAX, 0, 0, False)),
    ("REPAY_DEBT", budget(0, spent=5, **OPEN), 3, (15, 5, 7, True)),
    ("REPAY_DEBT", budget(0, spent=5, **OPEN), 4, (15, 5, 6, False)),
    ("REPAY_DEBT", budget(0, spent=5, **OPEN), 10, (15, 5, 0, False)),
    ("REPAY_DEBT", budget(0, spent=5, **OPEN), 12, (17, 5, 0, False)),
    ("REPAY_DEBT", budget(0, spent=5), 12, (17, 5, 0, False)),
    ("RESET_SPENT", budget(100, spent=7, reserved=3, debt=2), 50, (50, 0, 2, True)),
    ("RESET_SPENT", budget(-20, spent=120, **OPEN), 0, (0, 0, 10, True)),
    *[(operation, budget(100, status=rules.CLOSED), 0, "BUDGET_CLOSED") for operation in rules.Funding],
]


@pytest.mark.parametrize(("operation", "state", "amount", "after"), FUND)
def test_fund(operation, state, amount, after):
    """Each operation changes what its name says and works out over-limit anew."""
    made = outcome(rules.fund, state, rules.Funding(operation), amount)
    if isinstance(made, Refused):
        assert made.code == after
        return
    assert (made.allocated, made.spent, made.debt, made.is_over_limit) == after
    assert made[5:] == state._replace(debt=made.debt, is_over_limit=made.is_over_limit)[5:]
    assert (made.reserved, made.status) == (state.reserved, state.status)


def test_what_counts_as_spent_may_be_told():
    """As where a billing period begins with what another system has counted."""
    made = rules.fund(budget(100, spent=7, reserved=3, debt=2), rules.Funding.RESET_SPENT, 50, 60)
    assert (made.allocated, made.spent, made.reserved, made.debt, made.remaining) == (50, 60, 3, 2, -15)


AMOUNTS = st.one_of(st.integers(0, 40), st.integers(MAX - 40, MAX))


@given(st.data(), st.sampled_from(list(rules.Funding)), AMOUNTS)
def test_what_remains_after_an_operation(data, operation, amount):
    """Adding and repaying add just the amount to what remains, taking takes just it, and nobody's hold is touched."""
    names = ("allocated", "spent", "reserved", "debt", "overdraft_limit")
    state = Budget("tenant:acme", "TOKENS", *[data.draw(AMOUNTS) for _ in names])
    assume(rules.is_legal(state))
    try:
        made = outcome(rules.fund, state, operation, amount)
    except ValidationError:
        assume(max(*state[2:7], amount) < MAX - 40)  # else an amount may leave its range
        raise
    if isinstance(made, Refused):
        assert (operation, made.code, state.remaining < amount) == ("DEBIT", "BUDGET_EXCEEDED", True)
        return
    assert rules.is_legal(made)
    assert made.is_over_limit == (made.debt > made.overdraft_limit)
    assert made.reserved == state.reserved
    moved = made.remaining - state.remaining
    expected = {"CREDIT": amount, "REPAY_DEBT": amount, "DEBIT": -amount}
    expected["RESET"] = amount - state.allocated
    expected["RESET_SPENT"] = expected["RESET"] + state.spent
    assert moved == expected[operation]
    assert made.debt == (max(0, state.debt - amount) if operation in ("CREDIT", "REPAY_DEBT") else state.debt)


def test_allocate():
    """Setting an allocation leaves spending and debt alone, and reconciles with the limit that it may bring."""
    state = budget(0, spent=50, debt=10, overdraft_limit=10)
    assert rules.allocate(state, 500) == state._replace(allocated=500)
    assert rules.allocate(state, 500, 9).is_over_limit
    assert not rules.allocate(state._replace(is_over_limit=True), 10).is_over_limit
    assert rules.allocate(state, 0).remaining == -60


@pytest.mark.parametrize(
    "funding",
    [
        lambda: rules.fund(Budget("tenant:acme", "TOKENS", MAX), rules.Funding.CREDIT, 1),
        lambda: rules.fund(Budget("tenant:acme", "TOKENS", 0, spent=MAX, debt=1), rules.Funding.CREDIT, 1),
        lambda: rules.allocate(Budget("tenant:acme", "TOKENS", MAX, spent=MAX, debt=2), 0),
    ],
)
def test_funding_never_leaves_int64(funding):
    """What would leave int64 is refused."""
    with pytest.raises(ValidationError, match="tenant:acme"):
        funding()


def test_balance_shows_what_matters():
    """Debt, limit and over-limit are shown only where there is something to say."""
    plain = Budget("tenant:acme/agent:bot", "TOKENS", 10, spent=1, reserved=2)
    assert plain.to_json() == {
        "scope": "agent:bot",
        "scope_path": "tenant:acme/agent:bot",
        "remaining": {"unit": "TOKENS", "amount": 7},
        "reserved": {"unit": "TOKENS", "amount": 2},
        "spent": {"unit": "TOKENS", "amount": 1},
        "allocated": {"unit": "TOKENS", "amount": 10},
    }
    full = plain._replace(debt=3, overdraft_limit=4, is_over_limit=True)
    assert {"debt", "overdraft_limit", "is_over_limit"} < set(full.to_json())
    assert full.balance.remaining.amount == 4
