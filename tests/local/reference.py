"""A second, plain reading of the design's section 9, for random operations to be held against.

It shares no code with the package: dictionaries, no transactions, no laziness (holds are freed whenever time moves).
Every operation returns what a client can tell apart: a code for a refusal, or the facts of a success.
"""

from __future__ import annotations

HOUR = 3600 * 1000
DAY = 24 * HOUR
ORDER = ("tenant", "workspace", "app", "workflow", "agent", "toolset")


class Budget:
    def __init__(self, closed):
        self.allocated = self.spent = self.reserved = self.debt = self.limit = 0
        self.over = False
        self.status = "ACTIVE"
        self.hours = None  # of a period
        self.policy = "NONE"
        self.granted = self.start = self.end = None
        self.closed = closed  # which outlive it

    @property
    def remaining(self):
        return self.allocated - self.spent - self.reserved - self.debt

    def state(self):
        return self.remaining, self.reserved, self.spent, self.debt, self.over

    def roll(self):
        self.closed.append((self.start, self.end, self.allocated, self.spent, self.debt))
        left = max(self.remaining, 0)
        if self.policy == "CARRY_FORWARD":
            self.allocated = self.granted + left
        elif self.policy == "CAP_AT_ALLOCATED":
            self.allocated = self.granted + min(left, self.granted)
        self.spent = 0
        self.over = self.debt > self.limit
        self.start, self.end = self.end, self.end + self.hours * HOUR


class Reference:
    def __init__(self, now):
        self.now = now
        self.budgets = {}
        self.reservations = {}
        self.replies = {}
        self.closed = set()
        self.periods = {}

    # ---- Provisioning ----

    def set_budget(self, scope, unit, amount, limit, hours=None, policy=None):
        """`hours` are those of a period that is counted from the start of 1970, 0 to have none; None leaves it."""
        budget = self.budgets.get((scope, unit)) or Budget(self.periods.setdefault((scope, unit), []))
        if budget.status == "CLOSED" or (policy and not (budget.hours if hours is None else hours)):
            return "refused"
        self.budgets[scope, unit] = budget
        if hours == 0:
            budget.hours = budget.granted = budget.start = budget.end = None
            budget.policy = "NONE"
        elif hours is not None and hours != budget.hours:
            budget.hours, budget.granted = hours, None
            budget.start = self.now // (hours * HOUR) * hours * HOUR
            budget.end = budget.start + hours * HOUR
            if budget.closed:
                budget.start = max(budget.start, budget.closed[-1][1])
        budget.policy = policy or budget.policy
        if budget.policy == "NONE" or amount != budget.granted:
            budget.allocated = amount
            budget.granted = amount if budget.hours else None
        if limit is not None:
            budget.limit = limit
        budget.over = budget.debt > budget.limit
        return "ok"

    def fund(self, key, scope, unit, operation, amount, spent):
        """Money is moved in steps, each of which keeps what remains the sum that it is."""
        slot, payload = (scope.split("/")[0], "fund", "", key), (scope, unit, operation, amount, spent)
        answer = self.replayed(slot, payload)
        if answer is not None:
            return answer
        budget = self.budgets.get((scope, unit))
        if budget is None:
            return "UNIT_MISMATCH" if any(scope == one for one, _ in self.budgets) else "NOT_FOUND"
        if budget.status == "CLOSED":
            return "BUDGET_CLOSED"
        if operation == "DEBIT" and amount > budget.remaining:
            return "BUDGET_EXCEEDED"
        before = budget.remaining
        if operation == "RESET_SPENT":
            budget.spent = 0 if spent is None else spent
        if operation in ("RESET", "RESET_SPENT"):
            budget.allocated = amount
            budget.granted = amount if budget.hours else None
        elif operation == "DEBIT":
            budget.allocated -= amount
        for _ in range(amount if operation in ("CREDIT", "REPAY_DEBT") else 0):  # one by one
            if budget.debt == 0:
                budget.allocated += 1
            else:
                budget.debt -= 1
                if operation == "CREDIT":
                    budget.allocated += 1
                    budget.spent += 1
        budget.over = budget.debt > budget.limit
        until = self.now + 30 * DAY
        return self.keep(slot, payload, ("funded", before, budget.state()), lambda: until)

    def delete(self, scope, unit, force):
        """A deleted budget is held by nobody any more; what is held of others stays."""
        budget = self.budgets.get((scope, unit))
        holding = [one for one in self.reservations.values() if one["status"] == "ACTIVE" and budget in one["held"]]
        if budget is None or (holding and not force):
            return "refused"
        del self.budgets[scope, unit]
        for one in holding:
            one["held"] = [other for other in one["held"] if other is not budget]
        return "ok"

    def set_status(self, scope, unit, status):
        budget = self.budgets.get((scope, unit))
        if budget is None or (budget.status == "CLOSED" and status != "CLOSED"):
            return "refused"
        budget.status = status
        return "ok"

    def pass_time(self, ms):
        self.now += ms
        while True:
            ends = [budget.end for budget in self.budgets.values() if budget.hours and budget.end <= self.now]
            self.free_until(min([self.now, *ends]))
            if not ends:
                return
            for budget in self.budgets.values():
                if budget.end == min(ends):
                    budget.roll()

    def free_until(self, now):
        for one in self.reservations.values():
            if one["status"] == "ACTIVE" and now > one["expires"] + one["grace"]:
                one["status"] = "EXPIRED"
                one["ended"] = one["expires"] + one["grace"]
                for budget in one["held"]:
                    budget.reserved -= one["amount"]

    # ---- Idempotency ----

    def replayed(self, slot, payload):
        kept = self.replies.get(slot)
        if kept is None or self.now > kept["until"]():
            return None
        return kept["answer"] if kept["payload"] == payload else "IDEMPOTENCY_MISMATCH"

    def keep(self, slot, payload, answer, until):
        self.replies[slot] = {"payload": payload, "answer": answer, "until": until}
        return answer

    # ---- What budgets say ----

    def scopes(self, subject):
        path, found = [], []
        for level in ORDER:
            if level in subject:
                path.append(f"{level}:{subject[level].lower()}")
                found.append("/".join(path))
        return found

    def find(self, subject, unit):
        """The budgets in a unit, or the code that says why there is none."""
        scopes = self.scopes(subject)
        found = [self.budgets[scope, unit] for scope in scopes if (scope, unit) in self.budgets]
        if found:
            return found
        return "UNIT_MISMATCH" if any(scope in scopes for scope, _ in self.budgets) else "NOT_FOUND"

    def reserve_refusal(self, budgets, amount):
        for budget in budgets:
            if budget.status != "ACTIVE":
                return "BUDGET_" + budget.status
            if budget.over:
                return "OVERDRAFT_LIMIT_EXCEEDED"
            if budget.debt > 0 and budget.limit == 0:
                return "DEBT_OUTSTANDING"
            if amount > budget.remaining:
                return "BUDGET_EXCEEDED"
        return None

    def evaluate(self, subject, unit, amount):
        """None, or the code that a live reservation would be refused with."""
        if subject["tenant"] in self.closed:
            return "TENANT_CLOSED"
        budgets = self.find(subject, unit)
        return budgets if isinstance(budgets, str) else self.reserve_refusal(budgets, amount)

    def charge(self, budgets, extra, policy, demands=None):
        """Take an extra out of every budget; what was taken, or a code with nothing changed.

        `demands` says why a budget, looked at before the next one, refuses for another reason.
        """
        takes = extra
        for budget in budgets:
            owes = policy == "ALLOW_WITH_OVERDRAFT" and budget.limit > 0
            if not owes:
                takes = min(takes, max(budget.remaining, 0))
        for budget in budgets:
            if demands is not None and demands(budget) is not None:
                return demands(budget)
            if policy == "ALLOW_WITH_OVERDRAFT" and budget.remaining < takes:
                missing = takes - max(budget.remaining, 0)
                if budget.debt + missing > budget.limit:
                    return "OVERDRAFT_LIMIT_EXCEEDED"
        for budget in budgets:
            owes = policy == "ALLOW_WITH_OVERDRAFT" and budget.limit > 0
            available = max(budget.remaining, 0)
            if not owes and extra > available:
                budget.over = True
            budget.spent += min(takes, available)
            budget.debt += max(takes - available, 0)
        return takes

    # ---- Operations ----

    def reserve(self, tenant, key, subject, unit, amount, policy, ttl, grace, dry_run):
        slot, payload = (tenant, "reserve", "", key), (subject, unit, amount, policy, ttl, grace, dry_run)
        answer = self.replayed(slot, payload)
        if answer is not None:
            return answer
        refusal = self.evaluate(subject, unit, amount)
        if dry_run:
            if refusal == "UNIT_MISMATCH":
                return refusal
            until = self.now + DAY
            return self.keep(slot, payload, ("DENY" if refusal else "ALLOW", reason(refusal)), lambda: until)
        if refusal:
            return refusal
        held = self.find(subject, unit)
        for budget in held:
            budget.reserved += amount
        ttl = min(ttl, 3_600_000)
        name = len(self.reservations)
        self.reservations[name] = {
            "tenant": tenant,
            "status": "ACTIVE",
            "unit": unit,
            "amount": amount,
            "policy": policy,
            "expires": self.now + ttl,
            "grace": grace,
            "held": held,
            "extended": 0,
            "settled": None,
            "ended": None,
        }
        until = self.now + max(ttl + grace, DAY)
        return self.keep(slot, payload, ("reserved", name), lambda: until)

    def decide(self, tenant, key, subject, unit, amount):
        slot, payload = (tenant, "decide", "", key), (subject, unit, amount)
        answer = self.replayed(slot, payload)
        if answer is not None:
            return answer
        refusal = self.evaluate(subject, unit, amount)
        if refusal == "UNIT_MISMATCH":
            return refusal
        until = self.now + DAY
        return self.keep(slot, payload, ("DENY" if refusal else "ALLOW", reason(refusal)), lambda: until)

    def event(self, tenant, key, subject, unit, amount, policy):
        slot, payload = (tenant, "event", "", key), (subject, unit, amount, policy)
        answer = self.replayed(slot, payload)
        if answer is not None:
            return answer
        if tenant in self.closed:
            return "TENANT_CLOSED"
        budgets = self.find(subject, unit)
        if isinstance(budgets, str):
            return budgets

        def demands(budget):
            if budget.status != "ACTIVE":
                return "BUDGET_" + budget.status
            return "BUDGET_EXCEEDED" if policy == "REJECT" and amount > budget.remaining else None

        took = self.charge(budgets, amount, policy, demands)
        if isinstance(took, str):
            return took
        until = self.now + 7 * DAY
        return self.keep(slot, payload, ("applied", took), lambda: until)

    def gone(self, one):
        return one["ended"] is not None and self.now > one["ended"] + 30 * DAY

    def settle(self, name, operation, key, payload):
        """The answer to a settlement that needs no budget, or None where it may go ahead."""
        one = self.reservations[name]
        if self.gone(one):
            return "NOT_FOUND"
        if one["settled"] is not None and one["settled"][:2] == (operation, key):
            return one["settled"][3] if one["settled"][2] == payload else "IDEMPOTENCY_MISMATCH"
        if one["tenant"] in self.closed:
            return "TENANT_CLOSED"
        if one["status"] == "EXPIRED":
            return "RESERVATION_EXPIRED"
        return None if one["status"] == "ACTIVE" else "RESERVATION_FINALIZED"

    def commit(self, name, key, unit, amount):
        one = self.reservations[name]
        answer = self.settle(name, "commit", key, (unit, amount))
        if answer is not None:
            return answer
        if unit != one["unit"]:
            return "UNIT_MISMATCH"
        extra = amount - one["amount"]
        if extra > 0:
            if one["policy"] == "REJECT" and one["held"]:
                return "BUDGET_EXCEEDED"
            took = self.charge(one["held"], extra, one["policy"])
            if isinstance(took, str):
                return took
            charged = one["amount"] + took
        else:
            charged = amount
        for budget in one["held"]:
            budget.reserved -= one["amount"]
            budget.spent += min(amount, one["amount"])
        answer = ("committed", charged, max(-extra, 0))
        one.update(status="COMMITTED", ended=self.now, settled=("commit", key, (unit, amount), answer))
        return answer

    def release(self, name, key):
        one = self.reservations[name]
        answer = self.settle(name, "release", key, ())
        if answer is not None:
            return answer
        for budget in one["held"]:
            budget.reserved -= one["amount"]
        answer = ("released", one["amount"])
        one.update(status="RELEASED", ended=self.now, settled=("release", key, (), answer))
        return answer

    def extend(self, name, key, by):
        one = self.reservations[name]
        if self.gone(one):
            return "NOT_FOUND"
        slot = (one["tenant"], "extend", name, key)
        answer = self.replayed(slot, by)
        if answer is not None:
            return answer
        if one["tenant"] in self.closed:
            return "TENANT_CLOSED"
        if one["status"] in ("COMMITTED", "RELEASED"):
            return "RESERVATION_FINALIZED"
        if self.now > one["expires"]:
            return "RESERVATION_EXPIRED"
        if one["extended"] >= 10:
            return "MAX_EXTENSIONS_EXCEEDED"
        one["extended"] += 1
        one["expires"] += by
        return self.keep(slot, by, ("extended", one["expires"]), lambda: one["expires"])

    def shown(self, name):
        """What a GET says of a reservation."""
        one = self.reservations[name]
        if self.gone(one):
            return "NOT_FOUND"
        return "RESERVATION_EXPIRED" if one["status"] == "EXPIRED" else one["status"]


def reason(refusal):
    return "BUDGET_NOT_FOUND" if refusal == "NOT_FOUND" else refusal
