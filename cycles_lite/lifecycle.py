"""Work in one call: `with_cycles` for a function at hand, `@cycles` for one that is defined.

Once the work has returned, the caller gets its value: an error in settling is logged, and the spend kept and retried.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping, NamedTuple, TypeVar, cast

from .client import CyclesClient
from .errors import ValidationError
from .guard import ReservationGuard
from .guards.costs import actual_of, amount_of, is_cost, settle, settle_call, settle_unknown
from .guards.current import inside
from .guards.generators import UNDONE, GuardedGenerator, is_generator_function, refuse_asynchronous, refuse_unawaited
from .protocol.checks import boolean, is_a, refuse, texts
from .protocol.models import ReservationCreateRequest
from .protocol.values import SUBJECT_LEVELS, Action, Amount, CyclesMetrics, Subject, Unit
from .runtime.log import log

if TYPE_CHECKING:
    from types import FrameType
    from typing import Union

    from typing_extensions import ParamSpec, SupportsIndex

    from .protocol.models import ReservationCreateResponse
    from .protocol.values import CommitOveragePolicy

    P = ParamSpec("P")
    V = TypeVar("V")
    #: A constant, or a callable of each call's arguments.
    Given = Union[V, Callable[..., V]]
    Cost = Union[Amount, SupportsIndex]

T = TypeVar("T")

_SUBJECT_FIELDS = (*SUBJECT_LEVELS, "dimensions")
_ACTION_FIELDS = ("action_kind", "action_name", "action_tags")

#: The decorator's parameters that may be callables of each call's arguments.
_PER_CALL = frozenset("estimate unit action ttl_ms grace_period_ms overage_policy".split()).union(
    _ACTION_FIELDS, _SUBJECT_FIELDS
)


def with_cycles(
    client: CyclesClient,
    fn: Callable[[ReservationGuard], tuple[T, Cost]],
    *,
    estimate: Amount,
    action: Action,
    subject: Subject | None = None,
    ttl_ms: int = 60_000,
    metrics: CyclesMetrics | None = None,
    grace_period_ms: int | None = None,
    overage_policy: CommitOveragePolicy | None = None,
    metadata: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> T:
    """Reserve, call `fn(guard)`, which returns its value and what it cost, commit that, and return the value.

    The cost is an Amount, or an integer in the estimate's unit; `metrics` are sent with it. Raises what
    `CyclesClient.reserve` raises before `fn` runs, and what `fn` raises, after the reservation is released (or its
    meter committed). Where `fn` returns no pair of a value and a cost, what it returns is returned as it is. Without a
    cost, or with one that cannot be committed, the meter is committed if there is one, else the reservation is
    released, with an ERROR in the log.
    """
    if metrics is not None and not is_a(metrics, CyclesMetrics):
        raise refuse("metrics", metrics, "a CyclesMetrics")
    with client.reserve(
        estimate,
        action,
        subject=subject,
        ttl_ms=ttl_ms,
        grace_period_ms=grace_period_ms,
        overage_policy=overage_policy,
        metadata=metadata,
        idempotency_key=idempotency_key,
    ) as guard:
        result: Any = fn(guard)
        is_pair = is_a(result, tuple) and len(result) == 2
        if is_pair and is_cost(result[1]):
            settle(guard, result[1], metrics=metrics)
            result = result[0]
        elif guard.is_active:
            if is_pair:
                log().error(
                    "the work of reservation %s returned a pair whose second part is a %s: neither an Amount nor an "
                    "integer, and so no cost",
                    guard.reservation_id,
                    type(result[1]).__name__,
                )
            settle_unknown(guard)
    return cast("T", result)


# ---- The client of decorated functions ----

#: The key of the one client in the dictionary below. Single operations of a dictionary are atomic, so that no lock is
#: needed, which a fork or an interruption might leave held.
_DEFAULT = "default"
_clients: dict[str, CyclesClient] = {}


def set_default_client(client: CyclesClient | None) -> None:
    """Set the client of `@cycles` without one of its own; with None the next use makes one from the environment."""
    _demand_client(client)
    if client is None:
        _clients.pop(_DEFAULT, None)
    else:
        _clients[_DEFAULT] = client


def _demand_client(client: CyclesClient | None) -> None:
    if client is not None and not is_a(client, CyclesClient):
        raise refuse("client", client, "a CyclesClient of cycles_lite")


def default_client() -> CyclesClient:
    """The client that was set, else one made from the environment on first use."""
    client = _clients.get(_DEFAULT)
    if client is None:
        made = CyclesClient.from_env()
        client = _clients.setdefault(_DEFAULT, made)
        if client is not made:  # another thread was faster
            made.close()
    return client


# ---- The decorator ----


def cycles(
    estimate: Given[Cost],
    *,
    actual: Given[Cost] | None = None,
    action: Given[Action] | None = None,
    action_kind: Given[str | None] | None = None,
    action_name: Given[str | None] | None = None,
    action_tags: Given[Iterable[str] | None] | None = None,
    unit: Given[Unit | str] = Unit.USD_MICROCENTS,
    ttl_ms: Given[int | None] | None = 60_000,
    grace_period_ms: Given[int | None] | None = None,
    overage_policy: Given[CommitOveragePolicy | str | None] | None = None,
    dry_run: bool = False,
    tenant: Given[str | None] | None = None,
    workspace: Given[str | None] | None = None,
    app: Given[str | None] | None = None,
    workflow: Given[str | None] | None = None,
    agent: Given[str | None] | None = None,
    toolset: Given[str | None] | None = None,
    dimensions: Given[Mapping[str, str] | None] | None = None,
    client: CyclesClient | None = None,
    use_estimate_if_actual_not_provided: bool = True,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guard every call of a function: reserve before it, commit after it, release when it raises.

    Each parameter is a constant or a callable of the call's arguments; `actual` is a constant or a callable of the
    returned value. `estimate` and `actual` are Amounts, or integers in `unit`. Without `actual`, what was metered
    (`current_guard().spend(n)`) is committed, else the estimate, if `use_estimate_if_actual_not_provided`. An `actual`
    that fails commits the estimate, marked `actual_source: estimate` in the metadata. With `dry_run` the function does
    not run: the call returns the authority's answer. `action` is an Action in the place of the three `action_` fields,
    which default to "unknown"; subject fields default to the client's; the client to `set_default_client`'s, else the
    environment's. A constant that is wrong is a `ValidationError` at once.

    A generator function reserves at its first `next()` and settles when it is exhausted, closed or fails; where any
    other function returns a generator, that settles likewise. Coroutine functions are refused with `TypeError`: this
    library is blocking.
    """
    given = {name: value for name, value in locals().items() if name in _PER_CALL and value is not None}
    _refuse_bare_use(estimate, sys._getframe(1))
    boolean("dry_run", dry_run)
    boolean("use_estimate_if_actual_not_provided", use_estimate_if_actual_not_provided)
    _demand_client(client)
    callables = {name: value for name, value in given.items() if callable(value)}
    constants = _checked({name: value for name, value in given.items() if name not in callables}, callables, actual)
    plan = _Plan(constants, callables, actual, client, use_estimate_if_actual_not_provided)
    return functools.partial(_decorated, plan, dry_run)


def _refuse_bare_use(estimate: Any, caller: FrameType) -> None:
    """Refuse `@cycles` without parentheses, which takes the function below it for a callable estimate.

    Such a function is recognised by two things: its code is a constant of the calling code, and its name is not bound
    there yet.
    """
    code = getattr(inspect.unwrap(estimate), "__code__", None) if callable(estimate) else None
    if code is None or code.co_name == "<lambda>" or all(code is not part for part in caller.f_code.co_consts):
        return
    if all(value is not estimate for value in caller.f_locals.values()):
        raise TypeError(f"@cycles of {code.co_name} says no estimate: write @cycles(1000) or @cycles(estimate=...)")


def _checked(constants: dict[str, Any], callables: Mapping[str, Any], actual: Any) -> Mapping[str, Any]:
    """The constants, with the models in them that serve every call. What is wrong with one is raised here."""
    given = {**constants, **callables}
    if "estimate" not in given:
        raise refuse("estimate", None, "an Amount, an integer in the unit, or a callable of the call's arguments")
    for name in _ACTION_FIELDS:
        if name in given and "action" in given:
            raise ValidationError(f"{name}: action says it already")
    example = {"unit": Unit.TOKENS, "estimate": 0, **constants}
    unit = Amount(example["unit"], 0).unit
    request = ReservationCreateRequest(subject=_subject(example, lambda: {"tenant": "any"}), **_reservation(example))
    if is_a(given["estimate"], Amount) or ("estimate" in constants and "unit" in constants):
        unit = request.estimate.unit
        constants["estimate"] = request.estimate
        if actual is not None and not callable(actual):
            actual_of(actual, unit)
    elif actual is not None and not callable(actual):
        amount_of("actual", actual, unit)
    if not any(name in callables for name in ("action", *_ACTION_FIELDS)):
        constants["action"] = request.action
    return constants


def _reservation(values: Mapping[str, Any]) -> dict[str, Any]:
    """What one call reserves, but for its subject."""
    reservation = {
        "estimate": amount_of("estimate", values.get("estimate"), values.get("unit", Unit.USD_MICROCENTS)),
        "action": values["action"] if "action" in values else _action(values),
    }
    for name in ("ttl_ms", "grace_period_ms", "overage_policy"):
        if name in values:
            reservation[name] = values[name]
    return reservation


def _action(values: Mapping[str, Any]) -> Action:
    kind, name, tags = (None if _is_blank(values.get(each)) else values[each] for each in _ACTION_FIELDS)
    return Action(
        kind="unknown" if kind is None else kind,
        name="unknown" if name is None else name,
        tags=None if tags is None else texts("action_tags", tags),
    )


def _is_blank(value: Any) -> bool:
    """Whether a value counts as left out. Nothing else is asked of it, because a program's objects may raise."""
    return value is None or (type(value) in (str, dict, list, tuple) and not value)


def _subject(values: Mapping[str, Any], defaults: Callable[[], Mapping[str, str]]) -> Subject | None:
    """The subject that a call names, its missing levels filled from the defaults; None where it names none."""
    named = {name: values[name] for name in _SUBJECT_FIELDS if not _is_blank(values.get(name))}
    return Subject(**{**defaults(), **named}) if named else None


def _decorated(plan: _Plan, dry_run: bool, fn: Any) -> Any:
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(_decorated(plan, dry_run, fn.__func__))
    refuse_asynchronous("cycles", fn)
    is_generator = is_generator_function(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if dry_run:
            return plan.ask(args, kwargs)
        if is_generator:  # calling it here runs none of its work, but raises for wrong arguments
            return GuardedGenerator(fn(*args, **kwargs), plan.settle, functools.partial(plan.reserve, args, kwargs))
        guard = plan.reserve(args, kwargs)
        try:
            with inside(guard):
                return _finished(plan, guard, fn, fn(*args, **kwargs))
        except BaseException as e:
            guard.end(e)
            raise

    return call


def _finished(plan: _Plan, guard: ReservationGuard, fn: Any, result: Any) -> Any:
    """Settle the call, unless its result is what does its work: then that settles it."""
    if is_a(result, UNDONE):
        refuse_unawaited("cycles", fn, result)
        return GuardedGenerator(result, plan.settle, guard=guard)
    plan.settle(guard, result)
    return result


class _Plan(NamedTuple):
    """The decorator's parameters, without those that were left out."""

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
        return {"subject": _subject(values, client.config.subject_defaults), **_reservation(values)}

    def settle(self, guard: ReservationGuard, result: Any) -> None:
        settle_call(guard, self.actual, result, self.uses_estimate)
