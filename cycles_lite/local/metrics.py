"""What `GET /metrics` tells: the state of the ledger and the requests of one server, in Prometheus's text format.

Needs prometheus-client (extra `[server]`). Each server has a registry of its own, so that several in one process do not
mix. The ledger is read when it is scraped, in one transaction.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder

from .. import __version__
from . import rows
from .rules import Budget
from .schema import RESERVATIONS

if TYPE_CHECKING:
    import sqlite3

    from prometheus_client.core import Metric

    from .application import Exchange
    from .authority import Authority

#: The most budgets that are told one by one, those nearest to the root first.
MOST_BUDGETS = 1000

#: Upper bounds of the histogram's buckets, in seconds. A request usually takes less than a millisecond; one that waits
#: for the file's lock may take seconds, up to seven.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5)
_BOUNDS = [*map(str, _BUCKETS), "+Inf"]

#: The longest grace period (protocol: `grace_period_ms`), so that what is past its expiry is found by its deadline.
_LONGEST_GRACE_MS = 60_000

_NEAREST_FIRST = "1 ORDER BY length(scope) - length(replace(scope, '/', '')), scope, unit LIMIT ?"
_COUNT_BUDGETS = "SELECT count(*) FROM budgets"
_COUNT_LIVE = f"SELECT count(*) FROM {RESERVATIONS} INDEXED BY reservations_due WHERE {rows.LIVE}"
_COUNT_PAST = f"{_COUNT_LIVE} AND deadline_ms < ? AND expires_at_ms < ?"

#: The gauges of a budget by their names; amounts are in the budget's unit, and None is not told.
_OF_BUDGETS: dict[str, tuple[str, Callable[[Budget], float | None]]] = {
    "allocated": ("What the budget may spend.", lambda budget: budget.allocated),
    "spent": ("What was charged to the budget.", lambda budget: budget.spent),
    "reserved": ("What live reservations hold of the budget.", lambda budget: budget.reserved),
    "debt": ("What was charged beyond what the budget had.", lambda budget: budget.debt),
    "overdraft_limit": ("How much debt the budget may have.", lambda budget: budget.overdraft_limit),
    "remaining": ("What new reservations may take; negative in overdraft.", lambda budget: budget.remaining),
    "over_limit": ("Whether the budget takes no new reservation until it is funded.", lambda b: b.is_over_limit),
    "period_end_timestamp_seconds": (
        "When the next period of the budget begins, for those that have periods.",
        lambda budget: None if budget.period_end_ms is None else budget.period_end_ms / 1000,
    ),
}


class Metrics:
    """The metrics of one server; a collector for its registry.

    What is counted here is no `Counter` and no `Histogram` of prometheus-client: where PROMETHEUS_MULTIPROC_DIR is set,
    for some other program, all of a process are kept in files there, those of several servers as one.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._lock = threading.Lock()
        #: Requests by operation, status and code.
        self._requests: dict[tuple[str, str, str], int] = {}
        #: By operation, the requests in each bucket, and the sum of their seconds.
        self._durations: dict[str, tuple[list[int], list[float]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def exposition(self, accepted: str) -> tuple[str, bytes]:
        """The content type and the text, in the format that an `Accept` header asks for. Raises the ledger's errors."""
        try:
            encode, content_type = choose_encoder(accepted)
        except (TypeError, ValueError):  # prometheus-client trips over a version that is none
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry)

    def count(self, exchange: Exchange) -> None:
        """Count a request. Its labels have few values: paths and methods, which clients choose, are not among them."""
        labels = exchange.operation, str(exchange.status), exchange.code or ""
        with self._lock:
            self._requests[labels] = self._requests.get(labels, 0) + 1
            buckets, total = self._durations.setdefault(exchange.operation, ([0] * len(_BOUNDS), [0.0]))
            buckets[bisect_left(_BUCKETS, exchange.seconds)] += 1
            total[0] += exchange.seconds

    def describe(self) -> list[Metric]:
        """Nothing: to be registered reads no file."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for whenever it is scraped."""
        with self._authority._ledger.reading() as (db, now):
            budgets = rows.find_budgets(db, _NEAREST_FIRST, (MOST_BUDGETS,))
            counts = _counts(db, now)
        yield from _of_budgets(budgets)
        for name, (text, count) in counts.items():
            yield GaugeMetricFamily(f"cycles_lite_{name}", text, value=count)
        yield from self._of_requests()
        build = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("cycles_lite_build", "The version of cycles_lite and of its Python.", build)

    def _of_requests(self) -> Iterator[Metric]:
        with self._lock:
            requests = list(self._requests.items())
            durations = [(name, list(buckets), total[0]) for name, (buckets, total) in self._durations.items()]
        text = "Requests by the protocol's operation, the HTTP status, and the code of an error."
        counter = CounterMetricFamily("cycles_lite_http_requests", text, labels=["operation", "status", "code"])
        for labels, count in requests:
            counter.add_metric(labels, count)
        name, text = "cycles_lite_http_request_duration_seconds", "How long it took until the answer was made."
        histogram = HistogramMetricFamily(name, text, labels=["operation"])
        for operation, buckets, total in durations:
            histogram.add_metric([operation], list(zip(_BOUNDS, accumulate(buckets))), total)
        yield from (counter, histogram)


def _of_budgets(budgets: Sequence[Budget]) -> Iterator[Metric]:
    for name, (text, value) in _OF_BUDGETS.items():
        gauge = GaugeMetricFamily(f"cycles_lite_budget_{name}", text, labels=["scope", "unit"])
        for budget, told in zip(budgets, map(value, budgets)):
            if told is not None:
                gauge.add_metric([budget.scope, budget.unit], told)
        yield gauge
    text = "1 for the status that the budget has: ACTIVE, FROZEN or CLOSED."
    gauge = GaugeMetricFamily("cycles_lite_budget_status", text, labels=["scope", "unit", "status"])
    for budget in budgets:
        gauge.add_metric([budget.scope, budget.unit, budget.status], 1)
    yield gauge


def _counts(db: sqlite3.Connection, now: int) -> dict[str, tuple[str, int]]:
    """The gauges that have no labels: what they say, and their values."""
    budgets, live, past = (
        db.execute(statement, values).fetchone()[0]
        for statement, values in (
            (_COUNT_BUDGETS, ()),
            (_COUNT_LIVE, ()),
            (_COUNT_PAST, (now + _LONGEST_GRACE_MS, now)),
        )
    )
    return {
        "budgets": ("Budgets in the file.", budgets),
        "budgets_untold": (f"Budgets beyond the {MOST_BUDGETS} that are told.", max(0, budgets - MOST_BUDGETS)),
        "reservations_live": ("Reservations that hold something.", live),
        "reservations_past_expiry": ("Those of them that are past their expiry and within their grace period.", past),
    }
