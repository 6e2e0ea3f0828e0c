"""`cycles-lite check`: is the configuration right, does the authority answer, and if not, what to do."""

from __future__ import annotations

import time
from typing import Any, Callable, Iterator

from ..client import CyclesClient
from ..config import CyclesConfig, doubtful_variables, warned_of
from ..errors import ApiError, AuthenticationError, CyclesError, ForbiddenError
from .statuses import DONE, WRONG

#: Seconds that the clocks may differ without a word; HTTP's Date has whole seconds.
_SKEW = 5.0

_ROUNDS = 5


def add_command(commands: Any) -> None:
    text = "check the configuration, and whether the authority takes it"
    parser = commands.add_parser("check", help=text, description=text)
    parser.set_defaults(run=_check)


class _Wrong(Exception):
    """What is wrong, and what to do."""


def _check(arguments: Any) -> int:
    for variable, doubt in doubtful_variables():
        warned_of.add(variable)  # the next line would log it
        print(f"warn  {'variable':<14} {doubt}")
    config = CyclesConfig.from_env()
    print(f"ok    configuration  {config.base_url or 'mode ' + config.mode}")
    if config.mode == "off":
        return DONE
    name = "reachability"
    try:
        with CyclesClient(config.replace(retry_enabled=False)) as client:
            for name, step in _STEPS:
                print(f"ok    {name:<14} {step(client)}")
    except (_Wrong, CyclesError) as e:
        print(f"FAIL  {name:<14} {e}")
        return WRONG
    return DONE


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
        raise _Wrong(
            f"the key is not tenant {client.config.tenant}'s: mend CYCLES_TENANT or CYCLES_API_KEY ({e})"
        ) from e
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
    from email.utils import parsedate_to_datetime  # costly, and used here alone

    skew = parsedate_to_datetime(date).timestamp() - time.time()
    if abs(skew) > _SKEW:
        raise _Wrong(f"this machine's clock and the authority's differ by {abs(skew):.0f} s: synchronise them")
    return "agrees with the authority's"


def _latency(client: CyclesClient) -> str:
    def timed() -> Iterator[float]:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            client.get_balances()
            yield time.perf_counter() - start

    return f"{sorted(timed())[_ROUNDS // 2] * 1000:.1f} ms, the median of {_ROUNDS}"


_STEPS: tuple[tuple[str, Callable[[CyclesClient], str]], ...] = (
    ("reachability", _reach),
    ("key", _key),
    ("tenant", _tenant),
    ("clock", _clock),
    ("latency", _latency),
)
