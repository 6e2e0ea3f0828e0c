"""Work in one call: `with_cycles` for a function at hand, `@cycles` for one that is defined.

Once the work has returned, its value is never lost: what goes wrong in settling is logged, kept and retried.
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, Callable, Generator, Mapping, NamedTuple, TypeVar

from .client import CyclesClient
from .errors import CyclesError, GuardFinalizedError, ValidationError
from .guard import ReservationGuard, inside
from .log import log
from .models import ReservationCreateRequest
from .values import SUBJECT_LEVELS, Action, Amount, Subject, Unit

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from .models import ReservationCreateResponse
    from .values import CommitOveragePolicy

    P = ParamSpec("P")

T = TypeVar("T")

_SUBJECT_FIELDS = (*SUBJECT_LEVELS, "dimensions")

#: The decorator's parameters that may be callables of each call's arguments.
_PER_CALL = frozenset(
    "estimate unit action_kind action_name action_tags ttl_ms grace_period_ms overage_policy".split()
).union(_SUBJECT_FIELDS)

#: Marks a commit whose amount is the estimate, because the actual cost could not be had.
_ESTIMATED = {"actual_source": "estimate"}


def with_cycles(
    client: CyclesClient,
    fn: Callable[[ReservationGuard], tuple[T, Amount]],
    *,
    estimate: Amount,
    action: Action,
    subject: Subject | None = None,
    ttl_ms: int = 60_000,
    grace_period_ms: int | None = None,
    overage_policy: CommitOveragePolicy | None = None,
    metadata: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> T:
    """Reserve, call `fn(guard)`, which returns its value and what it cost, commit that, and return the value.

    Raises what `CyclesClient.reserve` raises before `fn` runs, and what `fn` raises, after the reservation is released
    (or its meter committed). Where `fn` returns no pair of value and Amount, what it returns is returned: the meter is
    committed if there is one, else the reservation is released, with an ERROR in the log.
    """
    guard = client.reserve(
        estimate,
        action,
        subject=subject,
        ttl_ms=ttl_ms,
        grace_period_ms=grace_period_ms,
        overage_policy=overage_policy,
        metadata=metadata,
        idempotency_key=idempotency_key,
    )
    with guard:
        result: Any = fn(guard)
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Amount):
            _settle(guard, result[1])
            value: T = result[0]
            return value
        if guard.is_active:
            _settle_unknown(guard)
    return result  # type: ignore[no-any-return]


def _settle(guard: ReservationGuard, actual: Amount, **more: Any) -> None:
    """Commit without raising: the work is done, and its value is on its way to the caller."""
    if not guard.is_active:  # the work has committed or released by itself
        return
    try:
        guard.commit(actual, **more)
    except GuardFinalizedError:  # another thread of the work was first
        return
    except ValidationError as e:
        log().error("the actual cost of guard %r cannot be committed: %s", guard, e)
        _settle_unknown(guard)
    except CyclesError as e:
        log().error("spend of reservation %s was refused: %s", guard.reservation_id, e)


def _settle_unknown(guard: ReservationGuard) -> None:
    """The work has told no cost: the meter if there is one; an amount that nobody knows is never committed."""
    try:
        if guard.spent:
            guard.commit(Amount(unit=guard.estimate.unit, amount=guard.spent))
            return
        log().error("the work of reservation %s told no cost: it is released, not committed", guard.reservation_id)
        guard.release("no actual amount")
    except CyclesError as e:
        log().error("spend of reservation %s was not settled: %s", guard.reservation_id, e)


# ---- The decorator ----

_default_client: CyclesClient | None = None
_default_lock = threading.Lock()


def set_default_client(client: CyclesClient | None) -> None:
    """What `@cycles` uses where it is given no client; None lets the environment make one at the next use."""
    global _default_client
    _default_client = client


def default_client() -> CyclesClient:
    """The client that was set, else one made from the environment on first use."""
    global _default_client
    with _default_lock:
        if _default_client is None:
            _default_client = CyclesClient.from_env()
        return _default_client


def cycles(
    estimate: Any,
    *,
    actual: Any = None,
    action_kind: Any = None,
    action_name: Any = None,
    action_tags: Any = None,
    unit: Any = Unit.USD_MICROCENTS,
    ttl_ms: Any = 60_000,
    grace_period_ms: Any = None,
    overage_policy: Any = None,
    dry_run: bool = False,
    tenant: Any = None,
    workspace: Any = None,
    app: Any = None,
    workflow: Any = None,
    agent: Any = None,
    toolset: Any = None,
    dimensions: Any = None,
    client: CyclesClient | None = None,
    use_estimate_if_actual_not_provided: bool = True,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guard every call of a function: reserve before it, commit after it, release when it raises.

    Each parameter is a constant or a callable of the call's arguments; `actual` is a constant or a callable of the
    returned value. `estimate` and `actual` are Amounts, or integers in `unit`. Without `actual`, what was metered
    (`current_guard().spend(n)`) is committed, else the estimate, if `use_estimate_if_actual_not_provided`. An `actual`
    that fails commits the estimate, marked `actual_source: estimate` in the metadata. With `dry_run` the function does
    not run: the call returns the authority's answer. Action fields default to "unknown", subject fields to the
    client's; the client to `set_default_client`'s, else the environment's.

    A generator function reserves at its first `next()` and settles when it is exhausted, closed or fails. Coroutine
    functions are refused with `TypeError`: this library is blocking.
    """
    given = {name: value for name, value in locals().items() if name in _PER_CALL and value is not None}
    constants = {name: value for name, value in given.items() if not callable(value)}
    callables = {name: value for name, value in given.items() if callable(value)}
    plan = _Plan(constants, callables, actual, client, use_estimate_if_actual_not_provided)
    return functools.partial(_decorated, plan, dry_run)


def _decorated(plan: _Plan, dry_run: bool, fn: Any) -> Any:
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(_decorated(plan, dry_run, fn.__func__))
    _refuse_coroutines(fn)
    is_generator = inspect.isgeneratorfunction(_innermost(fn))

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if dry_run:
            return plan.ask(args, kwargs)
        if is_generator:
            return _GuardedGenerator(plan, fn, args, kwargs)
        with plan.reserve(args, kwargs) as guard:
            result = fn(*args, **kwargs)
            plan.settle(guard, result)
        return result

    return call


def _innermost(fn: Any) -> Any:
    """The function in a partial, and in an object that is called."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    is_plain = inspect.isfunction(fn) or inspect.ismethod(fn) or inspect.isclass(fn)
    return fn if is_plain else getattr(fn, "__call__", fn)  # noqa: B004


def _refuse_coroutines(fn: Any) -> None:
    inner = _innermost(fn)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(
            f"@cycles: {name} is asynchronous, and cycles_lite is blocking; use the SDK runcycles for asyncio"
        )
    if not callable(fn):
        raise TypeError(f"@cycles: {fn!r} is not callable")


def _subject(client: CyclesClient, values: Mapping[str, Any]) -> Subject | None:
    """The subject that a call names, its missing levels filled from the configuration; None where it names none."""
    named = {name: values[name] for name in _SUBJECT_FIELDS if values.get(name)}
    return Subject(**{**client.config.subject_defaults(), **named}) if named else None


def _amount(value: Any, unit: Any) -> Amount:
    """An Amount, or an integer in the unit."""
    return value if isinstance(value, Amount) else Amount(unit=unit, amount=value)


class _Plan(NamedTuple):
    """The decorator's parameters, as they were given; what is left out is not there."""

    constants: Mapping[str, Any]
    callables: Mapping[str, Callable[..., Any]]
    actual: Any
    client: CyclesClient | None
    uses_estimate: bool

    def reserve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReservationGuard:
        client = self.client or default_client()
        return client.reserve(**self._reservation(client, args, kwargs))

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReservationCreateResponse:
        client = self.client or default_client()
        return client.create_reservation(
            ReservationCreateRequest(dry_run=True, **self._reservation(client, args, kwargs))
        )

    def _reservation(self, client: CyclesClient, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What one call reserves. Whatever the callables raise is raised before anything is sent."""
        values = dict(self.constants)
        for name, given in self.callables.items():
            values[name] = given(*args, **kwargs)
        tags = values.get("action_tags")
        reservation = {
            "estimate": _amount(values.get("estimate"), values.get("unit")),
            "action": Action(
                kind=values.get("action_kind") or "unknown",
                name=values.get("action_name") or "unknown",
                tags=tuple(tags) if tags else None,
            ),
            "subject": _subject(client, values),
        }
        for name in ("ttl_ms", "grace_period_ms", "overage_policy"):
            if name in values:
                reservation[name] = values[name]
        return reservation

    def settle(self, guard: ReservationGuard, result: Any) -> None:
        settle_call(guard, self.actual, result, self.uses_estimate)


def settle_call(guard: ReservationGuard, actual: Any, result: Any, uses_estimate: bool = True) -> None:
    """Commit work that is done. `actual` is a constant, a callable of the result, or None: meter, else estimate.

    Nothing is raised: the work's value is on its way to the caller.
    """
    if not guard.is_active:  # the work has committed or released by itself
        return
    if actual is None:
        if guard.spent or not uses_estimate:
            _settle_unknown(guard)
        else:
            _settle(guard, guard.estimate)
        return
    unit = guard.estimate.unit
    try:
        amount = _amount(actual(result) if callable(actual) else actual, unit)
        if amount.unit != unit:
            raise ValidationError(f"actual: {amount.unit} is not the estimate's unit, {unit}")
    except Exception:
        log().exception(
            "the actual cost of reservation %s cannot be had: the estimate is committed", guard.reservation_id
        )
        settle_by_estimate(guard)
    else:
        _settle(guard, amount)


def settle_by_estimate(guard: ReservationGuard) -> None:
    """Commit the meter if there is one, else the estimate, marked as such."""
    if guard.spent:
        _settle_unknown(guard)
    else:
        _settle(guard, guard.estimate, metadata=_ESTIMATED)


class _GuardedGenerator(Generator[Any, Any, Any]):
    """A generator whose guard lives from its first step to its last, and is current inside each step alone.

    An object and not a generator itself: one that is collected unfinished must not settle from within a finalizer; its
    guard does what collected guards do.
    """

    def __init__(self, plan: _Plan, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._plan, self._fn, self._args, self._kwargs = plan, fn, args, kwargs
        self._guard: ReservationGuard | None = None
        self._steps: Any = None
        #: Closed, or thrown into, before its first step: it has reserved nothing and never will.
        self._is_void = False

    def send(self, value: Any) -> Any:
        if self._is_void:
            raise StopIteration
        if self._guard is None:
            self._begin()
        return self._step(self._steps.send, value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        error = value if value is not None else (kind() if isinstance(kind, type) else kind)
        if self._guard is None:
            self._is_void = True
            raise error
        return self._step(self._steps.throw, error)

    def close(self) -> None:
        guard = self._guard
        if guard is None:
            self._is_void = True
            return
        with inside(guard):
            try:
                self._steps.close()
            except BaseException as e:
                guard.fail(e)
                raise
        if guard.is_active:
            settle_by_estimate(guard)

    def _begin(self) -> None:
        self._guard = self._plan.reserve(self._args, self._kwargs)
        self._steps = self._fn(*self._args, **self._kwargs)

    def _step(self, advance: Callable[[Any], Any], value: Any) -> Any:
        guard: Any = self._guard
        with inside(guard):
            try:
                return advance(value)
            except StopIteration as stop:
                self._plan.settle(guard, stop.value)
                raise
            except BaseException as e:
                guard.fail(e)
                raise
