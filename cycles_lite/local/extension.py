"""What this authority tells beside the protocol, for those who look at budgets: their periods, those that take no
reservation, and what was denied lately. It is one operation that reads; any other authority has nothing at its path.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple

from ..errors import known_code
from ..protocol import wire
from ..runtime.clock import monotonic
from . import rows
from .rules import ACTIVE, Budget
from .scopes import TENANT_PREFIX

if TYPE_CHECKING:
    import sqlite3

GET_PERIODS = wire.Operation("get_periods", "/v1/budgets/periods", "Response", method="GET")

#: The budgets of which more is told than their balances, and the closed periods of each: the newest.
MOST_BUDGETS = 500
MOST_PERIODS = 12
_NEWEST = (
    "scope = ? AND unit = ? AND end_ms >= (SELECT min(end_ms) FROM"
    " (SELECT end_ms FROM periods WHERE scope = ? AND unit = ? ORDER BY end_ms DESC LIMIT ?))"
)

#: The denials that are remembered of a tenant, the tenants of whom they are, and for how many seconds.
MOST_DENIALS = 50
MOST_TENANTS = 200
_REMEMBERED = 60.0


def get_periods(db: sqlite3.Connection, now: int, tenant: str | None) -> dict[str, Any]:
    """Of a tenant's budgets, or of all, whatever their balances do not tell. `now_ms` is the ledger's time."""
    root = f"{TENANT_PREFIX}{tenant}"
    of_tenant = "(scope = ? OR (scope > ? AND scope < ?))", (root, root + "/", root + "0")  # "0" is after "/"
    where, values = ("1", ()) if tenant is None else of_tenant
    budgets = rows.find_budgets(db, where + " ORDER BY scope, unit LIMIT ?", (*values, MOST_BUDGETS + 1))
    shown = budgets[:MOST_BUDGETS]
    places = [(one.scope, one.unit) for one in shown]
    closed = [one for place in places for one in rows.find_closed(db, _NEWEST, [*place, *place, MOST_PERIODS])]
    return {
        "now_ms": now,
        "periods": [one._asdict() for one in closed],
        "running": [_running(one) for one in shown if one.period is not None],
        "states": [
            {"scope": one.scope, "unit": one.unit, "status": one.status} for one in shown if one.status != ACTIVE
        ],
        "has_more": len(budgets) > MOST_BUDGETS,
    }


def _running(of: Budget) -> dict[str, Any]:
    return {
        "scope": of.scope,
        "unit": of.unit,
        "period": of.period,
        "start_ms": of.period_start_ms,
        "end_ms": of.period_end_ms,
        "rollover_policy": of.rollover_policy,
    }


class _Denial(NamedTuple):
    at: float
    #: What is told of it.
    told: Mapping[str, Any]


class Denials:
    """The reservations that a server has denied lately. No file has them: nothing in the ledger has changed."""

    def __init__(self) -> None:
        #: By their tenants, who do not push out each other's; the tenant that was denied last is the last.
        self._denials: dict[str | None, deque[_Denial]] = {}
        self._lock = threading.Lock()

    def note(self, tenant: str | None, operation: wire.Operation, answer: wire.Answer) -> None:
        """Remember an answer for a minute, if it denies a reservation."""
        if answer.status < 400 or not operation.reserves or not known_code(answer.data["error"]).denies:
            return
        details = answer.data.get("details", {})
        told = {"request_id": answer.headers["x-request-id"], "operation": operation.name, "code": answer.data["error"]}
        told.update({name: details[name] for name in ("scope", "unit", "requested", "remaining") if name in details})
        with self._lock:
            own = self._denials.pop(tenant, None) or deque(maxlen=MOST_DENIALS)
            own.append(_Denial(monotonic(), told))
            self._denials[tenant] = own
            if len(self._denials) > MOST_TENANTS:
                del self._denials[next(iter(self._denials))]

    def of(self, tenant: str | None) -> dict[str, Any]:
        """What is told of a tenant's, the oldest first."""
        with self._lock:
            ages = [(monotonic() - one.at, one) for one in self._denials.get(tenant, ())]
        denials = [{"age_ms": int(age * 1000), **one.told} for age, one in ages if age <= _REMEMBERED]
        return {"denials": denials, "has_more_denials": len(denials) == MOST_DENIALS}  # then there may have been
