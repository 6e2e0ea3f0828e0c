"""What operators do with budgets, which the protocol leaves to them (protocol: NON-GOALS); and the ledger verified."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

from ..errors import ValidationError
from ..protocol.checks import INT64_MIN, is_a, refuse
from ..protocol.fields import OneOf
from ..protocol.values import Amount, Caps, Unit
from . import periods, rows, rules, scopes
from .periods import NEVER, ClosedPeriod
from .rules import ACTIVE, CLOSED, FROZEN, Budget
from .schema import RESERVATIONS

if TYPE_CHECKING:
    from datetime import datetime

    from .ledger import Ledger

_UNIT = OneOf(Unit)
_HOLDS = f"SELECT unit, reserved, held FROM {RESERVATIONS} INDEXED BY reservations_due WHERE {rows.LIVE}"

#: Seconds that the ledger may be checked for. Others can write meanwhile.
_PATIENCE = 600.0


class BudgetMethods:
    """The methods of `Authority` for budgets. Each opens its own transaction, and raises `ValidationError` for values
    that are illegal and budgets that do not exist."""

    _ledger: Ledger

    def set_budget(
        self,
        scope: str,
        amount: Amount,
        *,
        overdraft_limit: int | Amount | None = None,
        caps: Caps | None = None,
        period: str | int | None = None,
        starts: str | datetime | None = None,
        rollover_policy: str | None = None,
    ) -> Budget:
        """Allocate an amount to a scope such as `tenant:acme/agent:bot`, whether or not it has a budget in that unit.

        What is omitted stays as it is; at first there are no overdraft, caps and period. `overdraft_limit` is in the
        same unit. An empty `Caps()` takes the caps away.

        With a `period` the amount is for each `day`, `week` or `month`, or for so many hours: 1 to 8784, or a text such
        as `12h`. `never` takes the period away. Periods are counted from `starts`, before it as well as after it: an
        aware `datetime`, or an ISO 8601 text with an offset; without it, from the start of this day, Monday or month of
        UTC. A month begins on the day of `starts`, or on its last day if it has no such day. The offset is fixed: there
        is no summer time. `rollover_policy` says what the next period may spend: NONE, the same; CARRY_FORWARD, what
        remained besides; CAP_AT_ALLOCATED, no more of that than the amount.

        This may be called again and again: the period goes on where it and its start are the same, and what was carried
        over stays where the amount is the same. With another period or start, the last boundary before now is the one
        to count from. What was spent stays spent.

        Raises `ValidationError`, also for `starts` or `rollover_policy` without any period.
        """
        scope, unit = place(scope, amount)
        terms = _Terms.read(unit, amount, overdraft_limit, caps, period, starts, rollover_policy)
        with self._ledger.writing() as (db, now):
            return _set(db, now, scope, unit, terms)

    def add_budget(
        self,
        scope: str,
        amount: Amount,
        *,
        overdraft_limit: int | Amount | None = None,
        caps: Caps | None = None,
        period: str | int | None = None,
        starts: str | datetime | None = None,
        rollover_policy: str | None = None,
    ) -> bool:
        """Like `set_budget`, but leaves an existing budget as it is. Return whether one was made."""
        scope, unit = place(scope, amount)
        terms = _Terms.read(unit, amount, overdraft_limit, caps, period, starts, rollover_policy)
        with self._ledger.writing() as (db, now):
            if _find(db, scope, unit):
                return False
            _set(db, now, scope, unit, terms)
            return True

    def history(
        self, scope: str | None = None, unit: str | Unit | None = None, *, tenant: str | None = None
    ) -> list[ClosedPeriod]:
        """The closed periods of a scope, or of a tenant's scopes, or of all, in one unit or in all; the oldest first.

        Periods are kept for good. Where there is no budget, or it never had a period, there are none. Raises
        `ValidationError`.
        """
        conditions: list[tuple[str, tuple[str, ...]]] = []
        if scope is not None:
            conditions.append(("scope = ?", (scopes.budget_scope(scope),)))
        if tenant is not None:
            root = scopes.TENANT_PREFIX + scopes.tenant_id(tenant)
            conditions.append(("(scope = ? OR scope > ? AND scope < ?)", (root, root + "/", root + "0")))
        if unit is not None:
            conditions.append(("unit = ?", (_UNIT.check("unit", unit).value,)))
        where = " AND ".join([condition for condition, _ in conditions]) or "1"
        with self._ledger.reading() as (db, _):
            return rows.find_closed(db, where, [value for _, values in conditions for value in values])

    def freeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Let a scope's budget, or with no unit all its budgets, take no new reservation or event for now."""
        return self._set_status(scope, unit, FROZEN)

    def unfreeze(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Let a scope's frozen budget, or with no unit all of them, take reservations and events again."""
        return self._set_status(scope, unit, ACTIVE)

    def close(self, scope: str, unit: str | Unit | None = None) -> list[Budget]:
        """Close a scope's budget, or with no unit all its budgets, for good. (`shutdown` closes the file.)"""
        return self._set_status(scope, unit, CLOSED)

    def budgets(self) -> list[Budget]:
        """Every budget, in the order of scope and unit."""
        with self._ledger.reading() as (db, _):
            return _all(db)

    def check(self) -> list[str]:
        """Verify the ledger's invariants over the whole file, for ten minutes at the most. Return a sentence for each
        violation."""
        with self._ledger.reading(patience=_PATIENCE) as (db, _):
            damage = [line for (line,) in db.execute("PRAGMA quick_check").fetchall() if line != "ok"]
            return [f"SQLite: {line}" for line in damage] or list(_violations(db))

    def _set_status(self, scope: str, unit: str | Unit | None, status: str) -> list[Budget]:
        """Give a scope's budgets another status. Closed ones stay as they are, and to close them again is no error."""
        scope = scopes.budget_scope(scope)
        wanted = None if unit is None else _UNIT.check("unit", unit).value
        with self._ledger.writing() as (db, _):
            found = known(db, scope, wanted)
            changing = [one for one in found if one.status in (ACTIVE, FROZEN) or one.status == status]
            if not changing:
                _demand_not_closed(found[0])
            made = [budget._replace(status=status) for budget in changing]
            for budget in made:
                rows.save_budget(db, budget)
            return made


def place(scope: object, amount: Any) -> tuple[str, str]:
    """The canonical scope and the unit of a budget."""
    scope = scopes.budget_scope(scope)
    if is_a(amount, Amount):
        return scope, amount.unit.value
    raise refuse("amount", amount, "an Amount")


class _Terms(NamedTuple):
    """What an operator wants a budget to be, checked. None leaves what is there."""

    amount: int
    limit: int | None
    caps: Caps | None
    period: str | None
    anchor: str | None
    rollover_policy: str | None

    @classmethod
    def read(cls, unit: str, amount: Amount, limit: Any, caps: Any, period: Any, starts: Any, policy: Any) -> _Terms:
        if caps is not None and not is_a(caps, Caps):
            raise refuse("caps", caps, "a Caps")
        if policy is not None and policy not in periods.ROLLOVER_POLICIES:
            raise refuse("rollover_policy", policy, "one of " + ", ".join(periods.ROLLOVER_POLICIES))
        period = None if period is None else periods.read_period(period)
        anchor = None if starts is None else periods.read_anchor(starts)
        return cls(amount.amount, _limit(limit, unit), caps, period, anchor, policy)


def _set(db: sqlite3.Connection, now: int, scope: str, unit: str, terms: _Terms) -> Budget:
    """Make a budget, or set the allocation of one."""
    (found,) = _find(db, scope, unit) or [Budget(scope, unit, 0)]
    _demand_not_closed(found)
    period, carried = terms.period or found.period or NEVER, found.rollover_policy != periods.NONE
    if period == NEVER:
        if terms.anchor or terms.rollover_policy:
            raise ValidationError("starts and rollover_policy are for budgets with a period, and this one has none")
        found = periods.ended(found)
    else:
        found = _in_period(db, now, found, period, terms)
    # A policy that comes or goes with this call keeps nothing: the budget has what the operator says.
    if not carried or found.rollover_policy == periods.NONE or found.granted != terms.amount:
        found = periods.allocation_set(found._replace(allocated=terms.amount))
    made = rules.allocate(found, found.allocated, terms.limit)
    if terms.caps is not None:
        made = made._replace(caps=terms.caps.to_json() or None)
    rows.save_budget(db, made)
    return made


def _in_period(db: sqlite3.Connection, now: int, found: Budget, period: str, terms: _Terms) -> Budget:
    """The budget in a period: in the one that it has, or in a new one, for which the allocation must be set.

    Closed periods that end after now are of a clock that was ahead, and the budget would have to wait for it. So they
    are opened again for a new period: what was spent in them is spent in that.
    """
    anchor = terms.anchor or (found.anchor if period == found.period else None) or periods.default_anchor(period, now)
    if (period, anchor) != (found.period, found.anchor):
        closed = rows.find_closed(db, "scope = ? AND unit = ?", (found.scope, found.unit))
        ahead = [one for one in closed if one.end_ms > now]
        rows.drop_closed(db, ahead)
        found = found._replace(spent=found.spent + sum([one.spent for one in ahead]), granted=None)
        until = max([one.end_ms for one in closed if one.end_ms <= now], default=INT64_MIN)
        found = periods.begun(found, now, period, anchor, until)
    return found._replace(rollover_policy=terms.rollover_policy or found.rollover_policy)


def _limit(value: Any, unit: str) -> int | None:
    """An overdraft limit as a number of a budget's unit, in which it must be."""
    if value is None:
        return None
    if not is_a(value, Amount):
        return Amount(Unit(unit), value).amount
    if value.unit.value != unit:
        raise refuse("overdraft_limit", value.unit.value, "the budget's unit, " + unit)
    return value.amount


def _find(db: sqlite3.Connection, scope: str, unit: str | None) -> list[Budget]:
    """A scope's budget in one unit, or with None its budgets in all of them."""
    return rows.find_budgets(db, "scope = ? AND unit = ifnull(?, unit) ORDER BY unit", (scope, unit))


def known(db: sqlite3.Connection, scope: str, unit: str | None) -> list[Budget]:
    """As `_find`; raises a `ValidationError` if there is none."""
    found = _find(db, scope, unit)
    if not found:
        raise ValidationError("scope {}: it has no budget{}".format(scope, "" if unit is None else " in " + unit))
    return found


def _demand_not_closed(found: Budget) -> None:
    """Refuse to change a budget that is closed."""
    if found.status == CLOSED:
        raise ValidationError(f"budget {found.scope} ({found.unit}) is closed, and that is final")


def _all(db: sqlite3.Connection) -> list[Budget]:
    """Every budget, in the order of scope and unit."""
    return rows.find_budgets(db, "1 ORDER BY scope, unit", ())


# ---- The ledger's invariants ----


def _violations(db: sqlite3.Connection) -> Iterator[str]:
    """A sentence for each violation, in the budgets and in what reservations hold of them."""
    held: dict[tuple[str, str], int] = {}
    for unit, reserved, scope_paths in db.execute(_HOLDS).fetchall():
        for scope in scope_paths.split():
            held[scope, unit] = held.get((scope, unit), 0) + reserved
    closed_until: dict[tuple[str, str], int] = {}
    for one in rows.find_closed(db, "1", ()):
        place = (one.scope, one.unit)
        if not periods.is_legal(one) or one.start_ms < closed_until.get(place, INT64_MIN):
            yield f"budget {one.scope} ({one.unit}): a closed period is out of range, or overlaps with another: {one}"
        closed_until[place] = one.end_ms
    for budget in _all(db):
        name = f"budget {budget.scope} ({budget.unit})"
        sum_of_holds = held.pop((budget.scope, budget.unit), 0)
        if budget.reserved != sum_of_holds:
            yield f"{name}: reserved is {budget.reserved}, its reservations hold {sum_of_holds}"
        if not rules.is_legal(budget):
            yield f"{name}: an amount is out of range: {budget}"
        if budget.debt > budget.overdraft_limit and not budget.is_over_limit:
            yield f"{name}: the debt is over the overdraft limit, and it is not marked"
        if budget.status not in (ACTIVE, FROZEN, CLOSED):
            yield f"{name}: its status is {budget.status!r}"
        fault = periods.fault(budget, closed_until.get((budget.scope, budget.unit), INT64_MIN))
        if fault is not None:
            yield f"{name}: {fault}"
        try:
            scopes.budget_scope(budget.scope)
        except ValidationError as e:
            yield f"{name}: {e}"
    for scope, unit in sorted(held):
        yield f"budget {scope} ({unit}): reservations hold {held[scope, unit]} of it, and it is not there"
