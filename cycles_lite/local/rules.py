"""The budget rules of the embedded authority, pure: budgets in, budgets or a refusal out.

A budget is a (scope, unit). All amounts are Python integers; what would leave int64 is refused, never wrapped.

    remaining = allocated - spent - reserved - debt         (protocol: Balance, LEDGER INVARIANT)

Budgets always come in canonical order, from the tenant down, and an operation changes all of them or none.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, NamedTuple, Sequence, Tuple

from ..errors import ValidationError
from ..protocol.checks import INT64_MAX, INT64_MIN
from ..protocol.models import Balance
from ..protocol.values import CommitOveragePolicy
from ..runtime.words import WordEnum

ACTIVE = "ACTIVE"
FROZEN = "FROZEN"
CLOSED = "CLOSED"

REJECT = CommitOveragePolicy.REJECT.value
ALLOW_IF_AVAILABLE = CommitOveragePolicy.ALLOW_IF_AVAILABLE.value
ALLOW_WITH_OVERDRAFT = CommitOveragePolicy.ALLOW_WITH_OVERDRAFT.value


class Budget(NamedTuple):
    """What one scope may spend in one unit."""

    scope: str
    unit: str
    allocated: int
    spent: int = 0
    reserved: int = 0
    debt: int = 0
    overdraft_limit: int = 0
    is_over_limit: bool = False
    #: ACTIVE, FROZEN (by an operator, for now) or CLOSED (for good).
    status: str = ACTIVE
    #: The protocol's `Caps` as JSON, or None.
    caps: Mapping[str, Any] | None = None
    #: How long a period lasts: `day`, `week`, `month`, or hours such as `12h`; see `periods`. None where the budget is
    #: spent once, and then the fields below are as here.
    period: str | None = None
    #: The running period in milliseconds since 1970. Its end is not part of it.
    period_start_ms: int | None = None
    period_end_ms: int | None = None
    #: NONE, CARRY_FORWARD or CAP_AT_ALLOCATED.
    rollover_policy: str = "NONE"
    #: From where the periods are counted: an ISO 8601 date-time with an offset.
    anchor: str | None = None
    #: The allocation that was set. What was carried over or credited since is in `allocated` alone.
    granted: int | None = None

    @property
    def remaining(self) -> int:
        """What new reservations may take; negative in overdraft."""
        return self.allocated - self.spent - self.reserved - self.debt

    def moved(self, reserved: int, spent: int) -> Budget:
        """The budget with more or less reserved and spent. Each call does this, and `_replace` takes thrice as long."""
        return Budget._make((*self[:3], self.spent + spent, self.reserved + reserved, *self[5:]))

    @property
    def balance(self) -> Balance:
        """As the protocol's `Balance`."""
        return Balance.from_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The protocol's `Balance` as JSON: debt, limit and over-limit only where there is something to say."""
        unit = self.unit
        shown: dict[str, Any] = {
            "scope": self.scope[self.scope.rfind("/") + 1 :],
            "scope_path": self.scope,
            "remaining": {"unit": unit, "amount": self.remaining},
            "reserved": {"unit": unit, "amount": self.reserved},
            "spent": {"unit": unit, "amount": self.spent},
            "allocated": {"unit": unit, "amount": self.allocated},
        }
        if self.debt > 0:
            shown["debt"] = {"unit": unit, "amount": self.debt}
        if self.overdraft_limit > 0:
            shown["overdraft_limit"] = {"unit": unit, "amount": self.overdraft_limit}
        if self.is_over_limit:
            shown["is_over_limit"] = True
        return shown


Budgets = Tuple[Budget, ...]


def balances(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    """The budgets as the protocol's `Balance`s."""
    return [budget.to_json() for budget in budgets]


class Refused(Exception):
    """The refusal of an operation, with the protocol's code, a sentence, and facts for `details`.

    It is raised within the operation's transaction, which is rolled back by it.
    """

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details or {}


def invalid(message: str, **details: Any) -> Refused:
    """The refusal of a request that the protocol does not allow."""
    return Refused("INVALID_REQUEST", message, details)


class Charge(NamedTuple):
    """What becomes of the budgets and the hold when an amount is charged."""

    budgets: Budgets
    charged: int
    #: The part of the hold that is given back; 0 where there was no hold.
    released: int


# ---- Reserving ----


class Check(NamedTuple):
    """One reason to refuse; `fails` is asked with a budget and the requested amount."""

    code: str
    fails: Callable[[Budget, int], bool]
    message: str


_OPEN = Check("BUDGET_CLOSED", lambda budget, amount: budget.status == CLOSED, "Budget {scope} ({unit}) is closed.")

_SPENDABLE = (
    Check("BUDGET_FROZEN", lambda budget, amount: budget.status == FROZEN, "Budget {scope} ({unit}) is frozen."),
    _OPEN,
)

_COVERED = Check(
    "BUDGET_EXCEEDED",
    lambda budget, amount: budget.remaining < amount,
    "Budget {scope} has {remaining} {unit} left; {requested} were requested.",
)

#: What a reservation must pass in every budgeted scope, in this order (protocol: ERROR SEMANTICS).
RESERVE_CHECKS = (
    *_SPENDABLE,
    Check(
        "OVERDRAFT_LIMIT_EXCEEDED",
        lambda budget, amount: budget.is_over_limit,
        "Budget {scope} ({unit}) is over its limit and takes no new reservation until it is funded.",
    ),
    Check(
        "DEBT_OUTSTANDING",
        lambda budget, amount: budget.debt > 0 and budget.overdraft_limit == 0,
        "Budget {scope} has a debt of {debt} {unit} and no overdraft limit; fund it first.",
    ),
    _COVERED,
)

#: Events record work that has happened, so debt and over-limit do not stop them. With REJECT, the amount must be left.
EVENT_CHECKS = {REJECT: (*_SPENDABLE, _COVERED), ALLOW_IF_AVAILABLE: _SPENDABLE, ALLOW_WITH_OVERDRAFT: _SPENDABLE}


def _demand(budget: Budget, amount: int, checks: Sequence[Check]) -> None:
    for check in checks:
        if check.fails(budget, amount):
            raise _refused(check.code, check.message, budget, amount)


def _refused(code: str, message: str, budget: Budget, requested: int) -> Refused:
    details: dict[str, Any] = {
        "scope": budget.scope,
        "unit": budget.unit,
        "requested": requested,
        "remaining": budget.remaining,
    }
    if budget.debt or budget.overdraft_limit:
        details.update(debt=budget.debt, overdraft_limit=budget.overdraft_limit)
    return Refused(code, message.format(**{"debt": 0, "overdraft_limit": 0, **details}), details)


def hold(budgets: Budgets, amount: int) -> Budgets:
    """The budgets with an amount reserved. Raises `Refused`; each scope passes all its checks before the next one.

    An amount that passes the checks cannot take the reserved sum out of int64.
    """
    for budget in budgets:
        _demand(budget, amount, RESERVE_CHECKS)
    return free(budgets, -amount)


def free(budgets: Budgets, amount: int) -> Budgets:
    """The budgets with a hold given back."""
    return tuple([budget.moved(-amount, 0) for budget in budgets])


# ---- Settling ----


def charge(budgets: Budgets, held: int, actual: int, policy: str) -> Charge:
    """Settle a hold with what an action really cost (protocol: CommitOveragePolicy). Raises `Refused`.

    Frozen, closed and over-limit budgets settle like others: the action already happened.
    """
    if actual <= held:
        settled = tuple([budget.moved(-held, actual) for budget in budgets])
        return _in_range(Charge(settled, actual, held - actual), actual)
    if policy == REJECT and budgets:  # there are none once the operator has deleted them
        short = next((b for b in budgets if b.remaining < actual - held), budgets[-1])
        message = "{requested} {unit} are more than was reserved in {scope}, and the overage policy is REJECT."
        raise _refused("BUDGET_EXCEEDED", message, short, actual)
    return _cover(budgets, held, actual, policy, ())


def charge_event(budgets: Budgets, actual: int, policy: str) -> Charge:
    """Charge an amount that was never reserved, under the same policies (protocol: EventCreateRequest)."""
    return _cover(budgets, 0, actual, policy, EVENT_CHECKS[policy])


def _cover(budgets: Budgets, held: int, actual: int, policy: str, checks: Sequence[Check]) -> Charge:
    """Charge a hold and the extra above it, where each budget passes the checks.

    A budget that may not owe caps the extra to what it has left (floor 0), and is over limit when that is not all of
    it. A budget that may owe takes what is missing of the capped extra as debt, up to its overdraft limit.
    """
    extra = actual - held
    capped = min([extra] + [max(0, b.remaining) for b in budgets if not _may_owe(b, policy)])
    settled: list[Budget] = []
    for budget in budgets:
        _demand(budget, actual, checks)
        owed = max(0, capped - max(0, budget.remaining))  # nothing, in each budget that has capped the extra
        # A debt above a limit that was lowered refuses the charge too, also where nothing would be added to it.
        is_short = policy == ALLOW_WITH_OVERDRAFT and budget.remaining < capped
        if is_short and budget.debt + owed > budget.overdraft_limit:
            message = "{requested} {unit} would take the debt of {scope} past its overdraft limit of {overdraft_limit}."
            raise _refused("OVERDRAFT_LIMIT_EXCEEDED", message, budget, actual)
        short = capped < extra and budget.remaining < extra and not _may_owe(budget, policy)
        settled.append(
            budget._replace(
                reserved=budget.reserved - held,
                spent=budget.spent + held + capped - owed,
                debt=budget.debt + owed,
                is_over_limit=budget.is_over_limit or short,
            )
        )
    return _in_range(Charge(tuple(settled), held + capped, 0), actual)


def _may_owe(budget: Budget, policy: str) -> bool:
    return policy == ALLOW_WITH_OVERDRAFT and budget.overdraft_limit > 0


def _in_range(made: Charge, actual: int) -> Charge:
    for budget in made.budgets:
        if not is_legal(budget):
            message = "{requested} {unit} would take {scope} out of the range of amounts."
            raise _refused("OVERDRAFT_LIMIT_EXCEEDED", message, budget, actual)
    return made


def is_legal(budget: Budget) -> bool:
    """Whether every amount is in 0..2^63-1, and what remains at least -2^63."""
    amounts = (budget.allocated, budget.spent, budget.reserved, budget.debt, budget.overdraft_limit)
    return min(amounts) >= 0 and max(amounts) <= INT64_MAX and budget.remaining >= INT64_MIN


# ---- Funding ----


class Funding(WordEnum):
    """What an operator does to a budget's amounts, in the words of the official admin API."""

    CREDIT = "CREDIT"
    DEBIT = "DEBIT"
    RESET = "RESET"
    REPAY_DEBT = "REPAY_DEBT"
    RESET_SPENT = "RESET_SPENT"


def _credited(budget: Budget, amount: int, spent: int = 0) -> Budget:
    """More to spend. What was owed counts as spent from now on, so that what remains grows by just the amount."""
    repaid = min(budget.debt, amount)
    return budget._replace(allocated=budget.allocated + amount, spent=budget.spent + repaid, debt=budget.debt - repaid)


def _repaid(budget: Budget, amount: int, spent: int = 0) -> Budget:
    """Debt that is paid from elsewhere, and never was this budget's spend; what exceeds it is more to spend."""
    repaid = min(budget.debt, amount)
    return budget._replace(allocated=budget.allocated + amount - repaid, debt=budget.debt - repaid)


#: Each operation: what it must pass, and the budget after it, given an amount and what counts as spent from now on.
_FUNDINGS: Mapping[Funding, tuple[Sequence[Check], Callable[[Budget, int, int], Budget]]] = {
    Funding.CREDIT: ((_OPEN,), _credited),
    Funding.DEBIT: ((_OPEN, _COVERED), lambda budget, amount, _: budget._replace(allocated=budget.allocated - amount)),
    Funding.RESET: ((_OPEN,), lambda budget, amount, _: budget._replace(allocated=amount)),
    Funding.REPAY_DEBT: ((_OPEN,), _repaid),
    Funding.RESET_SPENT: ((_OPEN,), lambda budget, amount, spent: budget._replace(allocated=amount, spent=spent)),
}


def fund(budget: Budget, operation: Funding, amount: int, spent: int = 0) -> Budget:
    """The budget after an operation of the admin API, frozen or not. `spent` is for RESET_SPENT, which begins to count
    anew. Raises `Refused`; and `ValidationError` where an amount would leave its range."""
    checks, change = _FUNDINGS[operation]
    _demand(budget, amount, checks)
    return _funded(change(budget, amount, spent))


def allocate(budget: Budget, amount: int, overdraft_limit: int | None = None) -> Budget:
    """The budget with another allocation, and another overdraft limit where one is given. Debt stays."""
    limit = budget.overdraft_limit if overdraft_limit is None else overdraft_limit
    return _funded(budget._replace(allocated=amount, overdraft_limit=limit))


def _funded(budget: Budget) -> Budget:
    if not is_legal(budget):
        raise ValidationError(f"budget {budget.scope} ({budget.unit}): an amount would leave 0..2^63-1")
    # Funding reconciles (protocol: OVERDRAFT RECONCILIATION), also a budget that was over limit because it had capped.
    return budget._replace(is_over_limit=budget.debt > budget.overdraft_limit)
