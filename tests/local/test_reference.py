"""Random operations: the authority and a second, plain reading of the rules must agree on every answer and balance."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cycles_lite.errors import ValidationError
from cycles_lite.local.authority import Caller
from cycles_lite.local.funding import FundingRefused
from cycles_lite.local.rules import Funding
from cycles_lite.protocol.values import Amount, Unit

from .helpers import START, Bench
from .reference import DAY, Reference

pytestmark = pytest.mark.thorough

BOT = {"tenant": "acme", "workspace": "w", "agent": "Bot"}
SUBJECTS = [{"tenant": "acme"}, {"tenant": "acme", "agent": "bot"}, BOT, BOT, {"tenant": "other"}]
SCOPES = ["tenant:acme", "tenant:acme/workspace:w", "tenant:acme/workspace:w/agent:bot", "tenant:other"]
UNITS = ["TOKENS"] * 9 + ["CREDITS"]
AMOUNTS = list(range(41))
HUGE = 2**63 - 1
POLICIES = ["REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT", "ALLOW_WITH_OVERDRAFT"]
KEYS = [str(number) for number in range(60)]
LIMITS = [None, 0, 10, 40]
#: The hours of a period: 0 for none, None for what is there.
HOURS = [None, None, None, 0, 7, 24, 100]
ROLLOVERS = [None, None, "NONE", "CARRY_FORWARD", "CAP_AT_ALLOCATED"]
SHORT_TIMES = [0, 1, 999, 1000, 1001, 5000, 6000, 6001, 20_000, 20_001, 25_001]
TIMES = SHORT_TIMES * 2 + [3_600_000] * 4 + [DAY, DAY + 1, 8 * DAY, 31 * DAY]


class Both:
    """The authority and the reference. Each operation goes to both, and what a client can tell apart must agree.

    What an operation does is drawn by `pick`, which takes a list of possibilities.
    """

    def __init__(self, pick):
        self.pick = pick
        self.bench = Bench(validates=False)
        self.reference = Reference(START)
        self.ids = {}
        for scope in (SCOPES[0], SCOPES[2], SCOPES[3]):
            self.set_budget(scope, "TOKENS", self.pick(range(30, 151)), self.pick(LIMITS), self.pick(HOURS))

    def close(self):
        closed = {name: [] for name in self.reference.periods}
        for scope, unit, *row in self.bench.authority.history():
            closed[scope, unit].append(tuple(row))
        assert closed == self.reference.periods
        self.bench.authority.shutdown()

    # ---- Setting up ----

    def set_budget(self, scope, unit, amount, limit, hours=None, policy=None):
        options = {"period": hours or "never", "starts": "1970-01-01T00:00Z" if hours else None}
        options = {"overdraft_limit": limit, "rollover_policy": policy, **(options if hours is not None else {})}
        made = provisioned(lambda: self.bench.authority.set_budget(scope, Amount(Unit(unit), amount), **options))
        assert made == self.reference.set_budget(scope, unit, amount, limit, hours, policy)

    def set_status(self, scope, unit, status):
        authority = self.bench.authority
        change = {"FROZEN": authority.freeze, "ACTIVE": authority.unfreeze, "CLOSED": authority.close}[status]
        assert provisioned(lambda: change(scope, unit)) == self.reference.set_status(scope, unit, status)

    def fund(self):
        key, scope, unit, amount = self.pick(KEYS), self.pick(SCOPES), self.pick(UNITS), self.pick(range(61))
        operation = self.pick(["CREDIT", "CREDIT", *Funding])
        spent = self.pick([None, *range(41)]) if operation == "RESET_SPENT" else None
        for _ in range(self.pick([1, 1, 1, 2])):
            expected = self.reference.fund(key, scope, unit, str(operation), amount, spent)
            counted = None if spent is None else Amount(Unit(unit), spent)
            try:
                made = self.bench.authority.funded(scope, Amount(Unit(unit), amount), operation, counted, key)
            except FundingRefused as e:
                told = e.code
            else:
                told = ("funded", made.before.remaining, state(made.after))
            assert told == expected

    def delete(self):
        scope, unit, force = self.pick(SCOPES), self.pick(UNITS), self.pick([False, False, True])
        made = provisioned(lambda: self.bench.authority.delete_budget(scope, unit, force=force))
        assert made == self.reference.delete(scope, unit, force)
        if made == "ok":  # without any budget there would be nothing to try
            self.set_budget(scope, unit, self.pick(range(30, 151)), self.pick(LIMITS))

    def provision(self):
        change, scope, unit = self.pick(range(40)), self.pick(SCOPES), self.pick(UNITS)
        if change == 0:
            self.set_status(scope, unit, "CLOSED")
        elif change == 1:
            self.bench.authority.close_tenant("acme")
            self.reference.closed.add("acme")
        elif change < 6:
            self.set_status(scope, unit, "FROZEN")
        elif change < 20:
            self.set_status(scope, unit, "ACTIVE")
        else:
            amount, limit = self.pick([40, 50, *range(151)]), self.pick(LIMITS)
            self.set_budget(scope, unit, amount, limit, self.pick(HOURS), self.pick(ROLLOVERS))

    def pass_time(self, times=TIMES):
        ms = self.pick(times)
        self.bench.clock.now += ms
        self.reference.pass_time(ms)

    # ---- Operations ----

    def spend(self):
        """A reservation, and most often what follows on one."""
        before = len(self.ids)
        self.reserve()
        following = self.pick(["commit"] * 4 + ["extend", "late", "nothing", "release"])
        if following == "late":
            self.pass_time(SHORT_TIMES)
        if following != "nothing" and len(self.ids) > before:
            self.act("commit" if following == "late" else following, len(self.ids) - 1)

    def reserve(self):
        key, subject, unit, amount = self.pick(KEYS), self.pick(SUBJECTS), self.pick(UNITS), self.pick(AMOUNTS)
        policy, ttl, grace = self.pick(POLICIES), self.pick([1000, 20_000, 86_400_000]), self.pick([0, 5000])
        dry = self.pick([False] * 9 + [True])
        for _ in range(self.pick([1, 1, 1, 2])):
            expected = self.reference.reserve(subject["tenant"], key, subject, unit, amount, policy, ttl, grace, dry)
            answer = self.bench.reserve(
                subject=subject,
                caller=Caller(subject["tenant"]),
                idempotency_key=key,
                estimate={"unit": unit, "amount": amount},
                overage_policy=policy,
                ttl_ms=ttl,
                grace_period_ms=grace,
                dry_run=dry,
            )
            if answer.status == 200 and not dry:
                name = self.ids.setdefault(answer.id, expected[1])
                assert ("reserved", name) == expected
                assert answer.data["remaining_ttl_ms"] == self.left(name, answer.data["expires_at_ms"])
                assert answer.data["reserved"] == {"unit": unit, "amount": amount}
            else:
                assert verdict(answer) == expected

    def decide(self):
        key, subject, unit, amount = self.pick(KEYS), self.pick(SUBJECTS), self.pick(UNITS), self.pick(AMOUNTS)
        expected = self.reference.decide(subject["tenant"], key, subject, unit, amount)
        estimate, caller = {"unit": unit, "amount": amount}, Caller(subject["tenant"])
        answer = self.bench.decide(subject=subject, caller=caller, idempotency_key=key, estimate=estimate)
        assert verdict(answer) == expected

    def event(self):
        key, subject, unit, policy = self.pick(KEYS), self.pick(SUBJECTS), self.pick(UNITS), self.pick(POLICIES)
        amount = self.pick([*AMOUNTS, HUGE])
        for _ in range(self.pick([1, 1, 1, 2])):
            expected = self.reference.event(subject["tenant"], key, subject, unit, amount, policy)
            answer = self.bench.event(
                subject=subject,
                caller=Caller(subject["tenant"]),
                idempotency_key=key,
                actual={"unit": unit, "amount": amount},
                overage_policy=policy,
            )
            if answer.status == 201:
                charged = answer.data.get("charged", {"unit": unit, "amount": amount})["amount"]
                assert ("applied", charged) == expected
                assert ("charged" in answer.data) == (charged < amount)
            else:
                assert answer.error == expected

    def act(self, operation=None, number=None):
        """Something happens to a reservation, more often to a late one; sometimes twice."""
        if not self.ids:
            return
        if number is None:
            number = len(self.ids) - 1 - self.pick(range(min(len(self.ids), 20)))
        id = list(self.ids)[number]
        name = self.ids[id]
        caller = Caller(self.reference.reservations[name]["tenant"])
        operate = getattr(self, "_" + (operation or self.pick(["commit", "release", "extend", "get"])))
        same = operate(id, name, caller, self.pick(KEYS))
        if self.pick([False, False, True]):
            same()

    def _commit(self, id, name, caller, key):
        unit = self.reference.reservations[name]["unit"] if self.pick(range(9)) else "USD_MICROCENTS"
        amount = self.pick([*AMOUNTS, *AMOUNTS, HUGE])

        def commit():
            expected = self.reference.commit(name, key, unit, amount)
            actual = {"unit": unit, "amount": amount}
            answer = self.bench.commit(id, caller=caller, idempotency_key=key, actual=actual)
            if answer.status == 200:
                released = answer.data.get("released", {"amount": 0})["amount"]
                assert ("committed", answer.data["charged"]["amount"], released) == expected
                assert ("released" in answer.data) == (released > 0)
            else:
                assert answer.error == expected

        commit()
        return commit

    def _release(self, id, name, caller, key):
        def release():
            expected = self.reference.release(name, key)
            answer = self.bench.release(id, caller=caller, idempotency_key=key)
            told = ("released", answer.data["released"]["amount"]) if answer.status == 200 else answer.error
            assert told == expected

        release()
        return release

    def _extend(self, id, name, caller, key):
        by = self.pick([1, 5000, 20_000])

        def extend():
            expected = self.reference.extend(name, key, by)
            answer = self.bench.extend(id, by, caller=caller, idempotency_key=key)
            if answer.status == 200:
                assert ("extended", answer.data["expires_at_ms"]) == expected
                assert answer.data["remaining_ttl_ms"] == self.left(name, answer.data["expires_at_ms"])
            else:
                assert answer.error == expected

        extend()
        return extend

    def _get(self, id, name, caller, key):
        def get():
            answer = self.bench.get(id, caller=caller)
            assert (answer.data["status"] if answer.status == 200 else answer.error) == self.reference.shown(name)

        get()
        return get

    def left(self, name, expires_at_ms):
        """What `remaining_ttl_ms` must be."""
        active = self.reference.reservations[name]["status"] == "ACTIVE"
        return max(0, expires_at_ms - self.reference.now) if active else 0

    # ---- What always holds ----

    def compare(self):
        ours = {(one.scope, one.unit): one for one in self.bench.authority.budgets()}
        assert set(ours) == set(self.reference.budgets)
        for name, budget in self.reference.budgets.items():
            one = ours[name]
            assert state(one) == budget.state(), name
            period = (one.period_start_ms, one.period_end_ms, one.granted, one.rollover_policy)
            assert period == (budget.start, budget.end, budget.granted, budget.policy), name
        assert self.bench.authority.check() == []


def state(one):
    """A budget as the reference tells it."""
    return one.remaining, one.reserved, one.spent, one.debt, one.is_over_limit


def provisioned(change):
    try:
        change()
    except ValidationError:
        return "refused"
    return "ok"


def verdict(answer):
    """A decision with its reason, or the code of a refusal."""
    return (answer.data["decision"], answer.data.get("reason_code")) if answer.status == 200 else answer.error


class Agreement(RuleBasedStateMachine):
    """Hypothesis draws, and finds the shortest history that disagrees."""

    @initialize(data=st.data())
    def begin(self, data):
        self.both = Both(drawing(data))

    def teardown(self):
        if hasattr(self, "both"):
            self.both.close()

    @rule(data=st.data(), name=st.sampled_from(["spend", "spend", "event", "act", "act", "decide", "pass_time"]))
    def operate(self, data, name):
        self.both.pick = drawing(data)
        getattr(self.both, name)()

    @precondition(lambda self: hasattr(self, "both"))
    @rule(data=st.data(), name=st.sampled_from(["fund", "provision", "delete"]))
    def set_up(self, data, name):
        self.both.pick = drawing(data)
        getattr(self.both, name)()

    @invariant()
    def agree(self):
        if hasattr(self, "both"):
            self.both.compare()


def drawing(data):
    return lambda options: data.draw(st.sampled_from(options))


Agreement.TestCase.settings = settings(stateful_step_count=25)
test_agreement = Agreement.TestCase


@pytest.mark.parametrize("number", range(10))
def test_long_histories(number):
    """Hundreds of operations on the same budgets; the same ones each time where a run is judged."""
    seed = str(number) if os.environ.get("CI") else os.urandom(8).hex()
    print("seed:", seed)  # shown if it fails
    both = Both(random.Random(seed).choice)
    names = ["spend"] * 8 + ["act"] * 3 + ["fund"] * 4 + ["event"] * 2 + ["decide", "pass_time", "provision", "delete"]
    for _ in range(250):
        getattr(both, both.pick(names))()
        both.compare()
    both.close()
