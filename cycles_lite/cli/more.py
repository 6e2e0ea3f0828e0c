"""What `cycles-lite watch` shows beside the protocol, where the authority is one of this library's."""

from __future__ import annotations

from operator import index
from typing import Any, Iterator, Mapping, NamedTuple, Sequence, Tuple

from ..client import CyclesClient
from ..errors import ApiError, ResponseError
from ..local.extension import GET_PERIODS, MOST_PERIODS
from ..local.periods import ClosedPeriod
from ..local.rules import ACTIVE
from ..protocol.models import Balance
from ..protocol.wire import loads
from ..session import response_in
from . import bars
from .table import moment

#: The scope and the unit of a budget.
Key = Tuple[str, str]


class Denial(NamedTuple):
    """A reservation that was denied."""

    request_id: str
    age_ms: int
    #: How much was asked for, with the unit, and of which budget; empty where the denial was about neither.
    amount: str
    scope: str


class More(NamedTuple):
    """What an authority told beside the protocol."""

    #: By budget, what a balance does not tell.
    notes: Mapping[Key, str] = {}
    #: By budget, the last of its periods that have ended, the oldest first.
    closed: Mapping[Key, Sequence[ClosedPeriod]] = {}
    #: Those of the last minute, the oldest first.
    denials: Sequence[Denial] = ()
    #: Whether there are more budgets than it told of.
    is_cut: bool = False


NOTHING = More()


def key_of(balance: Balance) -> Key:
    return balance.scope_path, balance.remaining.unit


def ask(client: CyclesClient, tenant: str | None, balances: Sequence[Balance], has_told: bool) -> More | None:
    """What the authority tells of these balances' budgets; None where it speaks the protocol alone. Some servers answer
    500 where they have nothing: it is trouble only from one that has told something before."""
    told = client._session.send(GET_PERIODS, query={} if tenant is None else {"tenant": tenant})
    if isinstance(told, (ApiError, ResponseError)) and not (has_told and told.is_retryable):
        return None
    try:
        return _read(loads(response_in(told).body), [key_of(balance) for balance in balances])
    except (KeyError, TypeError, ValueError):  # something else is at that path
        return None


def _read(told: Any, keys: Sequence[Key]) -> More:
    closed: dict[Key, list[ClosedPeriod]] = {}
    for one in told["periods"]:
        amounts = (index(one[name]) for name in ClosedPeriod._fields[2:])
        closed.setdefault(_key(one), []).append(ClosedPeriod(*_key(one), *amounts))
    states = {_key(one): str(one["status"]) for one in told["states"]}
    ends = {_key(one): index(one["end_ms"]) for one in told["running"]}
    notes = {key: ", ".join(_notes(states.get(key, ACTIVE), ends.get(key))) for key in keys}
    scopes = {"", *(scope for scope, _ in keys)}
    denials = [one for one in map(_denial, told.get("denials", ())) if one.scope in scopes]
    last = {key: closed[key][-MOST_PERIODS:] for key in keys if key in closed}
    return More(notes, last, denials, bool(told["has_more"]))


def _key(told: Any) -> Key:
    return str(told["scope"]), str(told["unit"])


def _notes(status: str, end_ms: int | None) -> Iterator[str]:
    if status != ACTIVE:
        yield status
    if end_ms is not None:
        yield f"until {moment(end_ms)}"


def _denial(told: Any) -> Denial:
    amount = bars.with_unit(index(told["requested"]), str(told["unit"])) if "unit" in told else ""
    return Denial(str(told["request_id"]), max(0, index(told["age_ms"])), amount, str(told.get("scope", "")))
