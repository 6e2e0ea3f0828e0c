"""Settling work that has been done, while its value is on its way to the caller.

Nothing here raises an error of this library. What interrupts the settling (Ctrl-C, `sys.exit()`, a soft time limit)
goes on its way once the work is settled, because leaving by an exception would release what has been spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

from ..errors import CyclesError, GuardFinalizedError, ValidationError
from ..protocol.checks import INT64_MAX, integer, is_a, refuse
from ..protocol.values import Amount
from ..runtime.log import log

if TYPE_CHECKING:
    from ..guard import ReservationGuard
    from ..protocol.values import Unit

#: Marks a commit whose amount is the estimate, because the actual cost could not be had.
_ESTIMATED = {"actual_source": "estimate"}


def is_cost(value: Any) -> bool:
    """Whether a value is of a kind that tells a cost: an Amount, or something that counts as an integer."""
    return is_a(value, Amount) or (hasattr(type(value), "__index__") and not is_a(value, bool))


def amount_of(name: str, value: Any, unit: Unit | str) -> Amount:
    """An Amount as it is, or an integer in the unit."""
    if is_a(value, Amount):
        return value
    if not is_cost(value):
        raise refuse(name, value, f"an Amount or an integer in {unit}")
    return Amount(unit, integer(name, value, 0, INT64_MAX))  # type: ignore[arg-type]


def actual_of(value: Any, unit: Unit) -> Amount:
    """The amount that a value stands for, which must be in the estimate's unit."""
    amount = amount_of("actual", value, unit)
    if amount.unit != unit:
        raise refuse("actual", amount, f"in {unit}, the estimate's unit")
    return amount


def settle(guard: ReservationGuard, cost: Any, **more: Any) -> None:
    """Commit an Amount, or an integer in the estimate's unit; what is neither counts as no cost at all."""
    try:
        _commit(guard, cost, more)
    except BaseException:
        _commit(guard, cost, more)  # this does nothing where the guard is finished, and so the cost on record
        raise


def _commit(guard: ReservationGuard, cost: Any, more: Mapping[str, Any]) -> None:
    try:
        if guard.is_active:
            guard.commit(actual_of(cost, guard.estimate.unit), **more)
        elif guard._is_cut_off:  # else the work has committed or released by itself
            late = actual_of(cost, guard.estimate.unit).amount - guard.spent
            if late > 0:
                guard.spend(late)  # which reports it
    except GuardFinalizedError:  # another thread of the work was first
        return
    except ValidationError as e:
        log().error("the actual cost of reservation %s cannot be committed: %s", guard.reservation_id, e)
        settle_unknown(guard)
    except CyclesError as e:
        log().error("spend of reservation %s was refused: %s", guard.reservation_id, e)


def settle_unknown(guard: ReservationGuard) -> None:
    """Settle work that has told no cost: commit the meter if there is one, else release. An amount that nobody knows is
    never committed."""
    if not guard.is_active:
        return
    try:
        if guard.spent:
            guard.commit(Amount(guard.estimate.unit, guard.spent))
            return
        log().error("the work of reservation %s told no cost: it is released, not committed", guard.reservation_id)
        guard.release("no actual amount")
    except GuardFinalizedError:
        return
    except CyclesError as e:
        log().error("spend of reservation %s was not settled: %s", guard.reservation_id, e)


def settle_by_estimate(guard: ReservationGuard, waits: bool = True) -> None:
    """Commit the meter if there is one, else the estimate, marked as such. Where it does not wait, as for a guard whose
    generator was collected, the commit is on record when this returns, and is sent in the background."""
    if not waits and guard.spent:
        guard.commit_later()
    elif not waits:
        guard.commit_later(guard.estimate, _ESTIMATED)
    elif guard.spent:
        settle_unknown(guard)
    else:
        settle(guard, guard.estimate, metadata=_ESTIMATED)


def settle_call(guard: ReservationGuard, actual: Any, result: Any, uses_estimate: bool = True) -> None:
    """Commit what a call has cost. `actual` is a constant, a callable of the result, or None, which stands for the
    meter if there is one, else for the estimate if `uses_estimate`."""
    try:
        if actual is not None:
            _settle_actual(guard, actual, result)
        elif uses_estimate and not guard.spent:
            settle(guard, guard.estimate)
        else:
            settle_unknown(guard)
    except BaseException:
        if uses_estimate or actual is not None:
            settle_by_estimate(guard)
        raise


def _settle_actual(guard: ReservationGuard, actual: Any, result: Any) -> None:
    if not (guard.is_active or guard._is_cut_off):
        return
    try:
        amount = actual_of(actual(result) if callable(actual) else actual, guard.estimate.unit)
    except Exception:
        log().exception(
            "the actual cost of reservation %s cannot be had: the estimate is committed", guard.reservation_id
        )
        settle_by_estimate(guard)
    else:
        settle(guard, amount)
