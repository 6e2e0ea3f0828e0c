"""`cycles-lite balances`, `reservations`, `release` and `check`: what the configured authority holds, and whether
configuration and authority are as they should be."""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from typing import Any, Iterable, Iterator

from ..client import CyclesClient
from ..config import CyclesConfig, doubtful_variables, warned_of
from ..errors import ApiError, AuthenticationError, CyclesError, ForbiddenError
from ..protocol.models import Balance, ReleaseRequest
from . import bars
from .arguments import JSON, LEVELS, WARN_BELOW, argument, command, levels
from .output import DONE, LOW, WRONG, tell

#: Seconds by which the clocks may differ before `check` objects. (HTTP's `Date` tells whole seconds.)
_SKEW = 5.0

#: Calls whose median is shown as the latency.
_ROUNDS = 5


def add_commands(commands: Any) -> None:
    command(commands, "check", "check the configuration, and whether the authority takes it", _check, WARN_BELOW)
    command(commands, "balances", "show balances as bars", _balances, *LEVELS, WARN_BELOW, JSON)
    filters = [
        argument("--status", help="ACTIVE, COMMITTED, RELEASED or EXPIRED"),
        argument("--idempotency-key", metavar="KEY", help="the key that it was made with"),
        argument("--from", dest="from_", metavar="TIME", help="made at or after, in ISO 8601 with an offset"),
        argument("--to", metavar="TIME", help="made at or before"),
        argument("--limit", type=int, default=50, help="how many at the most; default: %(default)s"),
    ]
    command(commands, "reservations", "show reservations", _reservations, *LEVELS, *filters, JSON)
    reason = argument("--reason", default="released from the command line", help="default: %(default)s")
    command(commands, "release", "give a reservation back unused", _release, argument("id", metavar="ID"), reason)


def _balances(arguments: Any) -> int:
    with CyclesClient.from_env() as client:
        balances = list(client.iter_balances(**levels(arguments)))
    for line in (json.dumps(row.to_json()) for row in balances) if arguments.json else bars.render(balances):
        print(line)
    low = list(_low(balances, arguments.warn_below))
    for text in low:
        tell(text)
    return LOW if low else DONE


def _low(balances: Iterable[Balance], below: float | None) -> Iterator[str]:
    """A text about each budget of which a smaller part is left."""
    for row in balances:
        if below is not None and row.fraction_left is not None and row.fraction_left < below:
            yield f"{row.scope_path}: {bars.figures(row)}, below {100 * below:.6g}%"


def _reservations(arguments: Any) -> None:
    filters = levels(arguments, "status", "idempotency_key", "from_", "to")
    filters["limit"] = min(max(arguments.limit, 1), 200)  # of a page, within the protocol's bounds
    with CyclesClient.from_env() as client:
        for row in islice(client.iter_reservations(**filters), min(max(arguments.limit, 0), sys.maxsize)):
            print(json.dumps(row.to_json()) if arguments.json else _line(row))


def _line(row: Any) -> str:
    amount = row.committed if row.committed is not None else row.reserved
    action = f"{row.action.kind}:{row.action.name}"
    return "\t".join((row.reservation_id, row.status, bars.worded(amount), action, row.scope_path))


def _release(arguments: Any) -> None:
    with CyclesClient.from_env() as client:
        released = client.release_reservation(arguments.id, ReleaseRequest(reason=arguments.reason)).released
    print(f"released {bars.worded(released)}")


# ---- check ----


class _Wrong(Exception):
    """Something is wrong: the message says what, and what to do about it."""


def _check(arguments: Any) -> int:
    for variable, doubt in doubtful_variables():
        warned_of.add(variable)  # because `from_env` would log the same
        print(f"warn  {'variable':<14} {doubt}")
    config = CyclesConfig.from_env()
    print(f"ok    configuration  {config.base_url or 'mode ' + config.mode}")
    if config.mode == "off":
        return DONE
    name = "reachability"
    try:
        with CyclesClient(config.replace(retry_enabled=False)) as client:
            for name, step in _STEPS.items():
                print(f"ok    {name:<14} {step(client)}")
            name = "budgets"
            low = list(_low(client.iter_balances(tenant=config.tenant), arguments.warn_below))
    except (_Wrong, CyclesError) as e:
        print(f"FAIL  {name:<14} {e}")
        return WRONG
    for text in low:
        print(f"LOW   {name:<14} {text}")
    return LOW if low else DONE


def _reach(client: CyclesClient) -> str:
    try:
        client.get_evidence_keys()
    except ApiError as e:
        if e.status >= 500:
            raise
    return "the authority answers"


def _key(client: CyclesClient) -> str:
    if client.config.is_local:
        return "none is needed: the file's permissions are the authentication"
    try:
        tenant = client.list_reservations(limit=1).headers.get("x-cycles-tenant")
    except AuthenticationError as e:
        raise _Wrong(f"the key is not accepted: set CYCLES_API_KEY to a valid one ({e})") from e
    except ForbiddenError as e:
        named = client.config.tenant
        raise _Wrong(f"the key is not tenant {named}'s: mend CYCLES_TENANT or CYCLES_API_KEY ({e})") from e
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
