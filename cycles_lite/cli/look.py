"""`cycles-lite balances`, `reservations`, `release` and `check`: what the configured authority holds, and whether
configuration and authority are as they should be."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from itertools import islice
from typing import Any, Iterable, Iterator, Sequence

from ..client import CyclesClient
from ..config import CyclesConfig, doubtful_variables, warned_of
from ..errors import ApiError, AuthenticationError, ConfigError, CyclesError, ForbiddenError
from ..protocol.models import Balance, ReleaseRequest, ReservationListResponse, ReservationSummary
from ..protocol.values import ReservationStatus
from . import bars
from .arguments import JSON, LEVELS, WARN_BELOW, argument, command, levels
from .output import DONE, LOW, WRONG, tell
from .table import Column, moment, table
from .terminal import printable, width_of

#: Seconds by which the clocks may differ before `check` objects. (HTTP's `Date` tells whole seconds.)
_SKEW = 5.0

#: Calls whose median is shown as the latency.
_ROUNDS = 5


def add_commands(commands: Any) -> None:
    command(
        commands,
        "check",
        "check the configuration, and whether the authority takes it",
        _check,
        WARN_BELOW,
        JSON,
        also=(WRONG, LOW),
    )
    command(commands, "balances", "show balances as bars", _balances, *LEVELS, WARN_BELOW, JSON, also=(LOW,))
    states = list(ReservationStatus.__members__)
    filters = [
        argument("--status", type=str.upper, choices=states, metavar="STATUS", help="one of " + ", ".join(states)),
        argument("--idempotency-key", metavar="KEY", help="the key that it was made with"),
        argument("--from", dest="from_", metavar="TIME", help="made at or after, in ISO 8601 with an offset"),
        argument("--to", metavar="TIME", help="made at or before"),
        argument("--limit", type=int, default=50, metavar="N", help="how many at the most; default: %(default)s"),
    ]
    command(
        commands,
        "reservations",
        "show reservations: when each was made, and when it expires or has ended",
        _reservations,
        *LEVELS,
        *filters,
        JSON,
    )
    text = "why, for whoever looks at it later; default: %(default)s"
    reason = argument("--reason", default="released from the command line", metavar="TEXT", help=text)
    id = argument("id", metavar="ID", help="the reservation's id")
    command(commands, "release", "give a reservation back unused", _release, id, reason, JSON)


def _balances(arguments: Any) -> int:
    with CyclesClient.from_env() as client:
        filters = levels(arguments)
        if not filters and client.config.tenant is None and client.config.mode != "off":
            filters = of_key(client, client.list_reservations(limit=1))
        balances = list(client.iter_balances(**filters))
    if arguments.json:
        lines = [json.dumps(row.to_json()) for row in balances]
    else:
        lines = list(bars.render([bars.Row(row.scope_path, row) for row in balances]))
    for line in lines:
        print(line)
    low = list(_low(balances, arguments.warn_below))
    for text in low:
        tell(text)
    return LOW if low else DONE


def of_key(client: CyclesClient, page: ReservationListResponse) -> dict[str, Any]:
    """The tenant whose key it is, as a filter: balances cannot be asked for without one. Any list tells it."""
    if client.config.tenant is not None:
        return {}
    tenant = page.headers.get("x-cycles-tenant")
    if tenant is None:
        raise ConfigError("whose budgets? Name a tenant with --tenant, or set CYCLES_TENANT")
    return {"tenant": tenant}


def _low(balances: Iterable[Balance], below: float | None) -> Iterator[str]:
    """A text about each budget of which a smaller part is left."""
    for row in balances:
        if below is not None and row.fraction_left is not None and row.fraction_left < below:
            yield f"{row.scope_path}: {bars.figures(row)}, below {100 * below:.6g}%"


def _reservations(arguments: Any) -> None:
    filters = levels(arguments, "status", "idempotency_key", "from_", "to")
    filters["limit"] = min(max(arguments.limit, 1), 200)  # of a page, within the protocol's bounds
    with CyclesClient.from_env() as client:
        found = islice(client.iter_reservations(**filters), min(max(arguments.limit, 0), sys.maxsize))
        if arguments.json:
            for row in found:
                print(json.dumps(row.to_json()))
            return
        rows = [_cells_of(row) for row in found]
    # An id can be copied from a terminal of the usual width, and tells reservations apart on a narrower one.
    least = 0 if (width_of(sys.stdout) or _USUAL) >= _USUAL else 10
    columns = [Column("id", least=least), *_COLUMNS]
    for line in table(columns, rows):
        print(line)


#: The cells of a line on a terminal of the usual width.
_USUAL = 80

#: What `reservations` shows of each, after the id. A narrow terminal shows the times and the action no more.
_COLUMNS = [
    Column("status"),
    Column("amount", is_number=True),
    Column("action", least=8, goes=3),
    Column("scope", least=14, goes=1),
    Column("created", goes=4),
    Column("until", goes=2),
]


def _cells_of(row: ReservationSummary) -> Sequence[str]:
    amount = row.committed if row.committed is not None else row.reserved
    until = row.expires_at_ms if row.finalized_at_ms is None else row.finalized_at_ms
    action = f"{row.action.kind}:{row.action.name}"
    times = moment(row.created_at_ms), moment(until)
    return (row.reservation_id, row.status, bars.worded(amount), action, row.scope_path, *times)


def _release(arguments: Any) -> None:
    with CyclesClient.from_env() as client:
        answer = client.release_reservation(arguments.id, ReleaseRequest(reason=arguments.reason))
    print(json.dumps(answer.to_json()) if arguments.json else f"released {bars.worded(answer.released)}")


# ---- check ----


class _Wrong(Exception):
    """Something is wrong: the message says what, and what to do about it."""


def _check(arguments: Any) -> int:
    say = partial(_say, arguments.json)
    for variable, doubt in doubtful_variables():
        warned_of.add(variable)  # because `from_env` would log the same
        say("warn", "variable", doubt)
    config = CyclesConfig.from_env()
    say("ok", "configuration", config.base_url or "mode " + config.mode)
    if config.mode == "off":
        return DONE
    name = "reachability"
    try:
        with CyclesClient(config.replace(retry_enabled=False)) as client:
            for name, step in _STEPS.items():
                say("ok", name, step(client))
            name = "budgets"
            low = list(_low(client.iter_balances(tenant=config.tenant), arguments.warn_below))
    except (_Wrong, CyclesError) as e:
        say("FAIL", name, str(e))
        return WRONG
    for text in low:
        say("LOW", name, text)
    return LOW if low else DONE


def _say(as_json: bool, result: str, step: str, text: str) -> None:
    told = {"result": result.lower(), "step": step, "text": text}
    print(json.dumps(told) if as_json else f"{result:<5} {step:<14} {printable(text, sys.stdout)}")


def _reach(client: CyclesClient) -> str:
    try:
        client.get_evidence_keys()
    except ApiError as e:
        if e.status >= 500:
            raise
    return "the authority answers"


def advice(error: CyclesError, tenant: str | None) -> str:
    """What is wrong, and what to do about it where that is the key."""
    if isinstance(error, AuthenticationError):
        return f"the key is not accepted: set CYCLES_API_KEY to a valid one ({error})"
    if isinstance(error, ForbiddenError):
        return f"the key is not tenant {tenant}'s: mend CYCLES_TENANT or CYCLES_API_KEY ({error})"
    return str(error)


def _key(client: CyclesClient) -> str:
    if client.config.is_local:
        return "none is needed: the file's permissions are the authentication"
    try:
        tenant = client.list_reservations(limit=1).headers.get("x-cycles-tenant")
    except (AuthenticationError, ForbiddenError) as e:
        raise _Wrong(advice(e, client.config.tenant)) from e
    return f"it is tenant {tenant}'s" if tenant else "it is accepted"


def _tenant(client: CyclesClient) -> str:
    tenant = client.config.tenant
    if tenant is None:
        raise _Wrong("no tenant is configured: set CYCLES_TENANT, or name one in every subject")
    count = sum(1 for _ in client.iter_balances(tenant=tenant))
    if not count:
        raise _Wrong(f"tenant {tenant} has no budget, so every reservation will be refused: set one")
    return f"{tenant}, with {count} budget{'s' if count > 1 else ''}"


def _clock(client: CyclesClient) -> str:
    date = client.get_balances().headers.get("date")
    if date is None:
        return "the authority's is this machine's" if client.config.is_local else "the authority does not tell its own"
    from email.utils import parsedate_to_datetime  # this import takes long, and nothing else needs it

    skew = parsedate_to_datetime(date).timestamp() - time.time()
    if abs(skew) > _SKEW:
        raise _Wrong(f"this machine's clock and the authority's differ by {abs(skew):.0f} s: synchronise them")
    return "agrees with the authority's"


def _latency(client: CyclesClient) -> str:
    instants = [time.perf_counter()]
    for _ in range(_ROUNDS):
        client.get_balances()
        instants.append(time.perf_counter())
    rounds = sorted(end - start for start, end in zip(instants, instants[1:]))
    return f"{rounds[_ROUNDS // 2] * 1000:.1f} ms, the median of {_ROUNDS}"


#: What is asked of the authority, one after the other, until one thing is wrong. Each returns what it found to be well.
_STEPS = {"reachability": _reach, "key": _key, "tenant": _tenant, "clock": _clock, "latency": _latency}
