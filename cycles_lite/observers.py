"""Observers that count what a client tells of, for Prometheus and OpenTelemetry.

    client = CyclesClient(config, observer=observers.prometheus(prometheus_client.REGISTRY))

The packages are yours: nothing here is imported before its function is called. Several clients may share an observer, a
registry or a meter. A client that shall feed both, or a function of your own too, gets a function that calls them::

    ours = [observers.prometheus(registry), observers.opentelemetry(meter)]
    client = CyclesClient(config, observer=lambda event: [observe(event) for observe in ours])

Both count the same: `COUNTERS` has the names. For Prometheus they are `cycles_lite_client_<name>_total`, for
OpenTelemetry `cycles_lite.client.<name>`. Amounts are in the unit that the label `unit` tells.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from . import events
from .errors import CODES
from .protocol.values import Unit

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from prometheus_client import CollectorRegistry

    from .events import Event, Observer


#: The counters by their names: what they count, and their labels, which have few values whatever a server answers.
COUNTERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "reservations_granted": ("Reservations that were granted.", []),
    "reservations_denied": ("Reservations that were denied.", ["code", "shadow"]),
    "reservations_degraded": ("Work that ran without a reservation.", ["error"]),
    "reservations_released": ("Reservations that were given back unused.", []),
    "estimated_amount": ("Amounts that granted reservations asked for.", ["unit"]),
    "settlements": ("Settlements: spend that was committed, or recorded by an event.", ["status"]),
    "actual_amount": ("Amounts that settled work has cost.", ["unit"]),
    "charged_amount": ("Amounts that the authority charged for them.", ["unit"]),
    "settlements_pending": ("Attempts to settle that failed, and are made again.", ["error"]),
    "settlements_rejected": ("Spend that the authority refused for good.", ["code"]),
    "spent_too_late_amount": ("Amounts spent after their guard had ended, which are not settled.", ["unit"]),
    "heartbeat_failures": ("Reservations that could not be extended.", ["error"]),
    "journal_failures": ("Failures of the journal.", []),
    "budgets_running_low": ("Times that a budget began to run low.", ["unit"]),
}


def _amount(name: str, amount: Any) -> list[Any]:
    """What to add for an amount; nothing for one that is not known."""
    return [] if amount is None else [(name, amount.amount, [_unit(amount)])]


def _unit(amount: Any) -> str:
    """The unit of an amount; `other` for one that a server has made up."""
    return amount.unit.value if isinstance(amount.unit, Unit) else "other"


def _code(error: Any) -> str:
    """The protocol's code of an error; `other` for one that a server has made up, `none` where there is none."""
    code = getattr(error, "code", None)
    return "none" if code is None else code if code in CODES else "other"


def _class(error: Any) -> str:
    return "none" if error is None else type(error).__name__


#: What each event adds to the counters: their names, what to add, and the values of their labels in order.
_STEPS: Mapping[type, Callable[[Any], list[Any]]] = {
    events.Reserved: lambda told: [("reservations_granted", 1, []), *_amount("estimated_amount", told.estimate)],
    events.Denied: lambda told: [("reservations_denied", 1, [_code(told.error), str(told.shadow).lower()])],
    events.Degraded: lambda told: [("reservations_degraded", 1, [_class(told.error)])],
    events.Settled: lambda told: [
        ("settlements", 1, [str(told.settlement.status)]),
        *_amount("actual_amount", told.actual),
        *_amount("charged_amount", told.settlement.charged),
    ],
    events.Pending: lambda told: [("settlements_pending", 1, [_class(told.error)])],
    events.Rejected: lambda told: [("settlements_rejected", 1, [_code(told.error)])],
    events.SpentTooLate: lambda told: _amount("spent_too_late_amount", told.amount),
    events.Released: lambda told: [("reservations_released", 1, [])],
    events.HeartbeatFailed: lambda told: [("heartbeat_failures", 1, [_class(told.error)])],
    events.JournalFailed: lambda told: [("journal_failures", 1, [])],
    events.RunningLow: lambda told: [("budgets_running_low", 1, [_unit(told.balance.remaining)])],
}


def prometheus(registry: CollectorRegistry) -> Observer:
    """An observer that counts in a registry of prometheus-client, such as `prometheus_client.REGISTRY`."""
    from prometheus_client import Counter

    def counter(name: str, text: str, labels: Sequence[str]) -> _Add:
        made = Counter(f"cycles_lite_client_{name}", text, labels, registry=registry)
        return lambda amount, values: (made.labels(*values) if values else made).inc(amount)

    return _observer(registry, counter)


def opentelemetry(meter: Meter) -> Observer:
    """An observer that counts with a meter of OpenTelemetry, such as `opentelemetry.metrics.get_meter("agents")`."""

    def counter(name: str, text: str, labels: Sequence[str]) -> _Add:
        made = meter.create_counter(f"cycles_lite.client.{name}", description=text)
        return lambda amount, values: made.add(amount, dict(zip(labels, values)))

    return _observer(meter, counter)


# ---- What the two have in common ----

#: Adds an amount to a counter under the values of its labels.
_Add = Callable[[int, Sequence[str]], object]

#: The counters that a registry or a meter has already. It has each of them once.
_made: weakref.WeakKeyDictionary[Any, Mapping[str, _Add]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _observer(place: Any, counter: Callable[[str, str, Sequence[str]], _Add]) -> Observer:
    """An observer that counts in a place, whose counters `counter` makes."""
    with _making:
        adders = _made.get(place)
        if adders is None:
            adders = _made[place] = {name: counter(name, *more) for name, more in COUNTERS.items()}

    def observe(event: Event) -> None:
        steps = _STEPS.get(type(event))
        for name, amount, values in steps(event) if steps is not None else ():
            adders[name](amount, values)

    return observe
