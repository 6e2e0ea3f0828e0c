"""`cycles-lite balances`, `reservations` and `release`: what the configured authority holds."""

from __future__ import annotations

import json
from typing import Any

from ..client import CyclesClient
from ..protocol.models import ReleaseRequest
from . import arguments as given, bars


def add_commands(commands: Any) -> None:
    text = "show balances as bars"
    parser = commands.add_parser("balances", help=text, description=text)
    given.add_levels(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_balances)
    text = "show reservations"
    parser = commands.add_parser("reservations", help=text, description=text)
    given.add_levels(parser)
    parser.add_argument("--status", help="ACTIVE, COMMITTED, RELEASED or EXPIRED")
    parser.add_argument("--idempotency-key", metavar="KEY", help="the key that it was made with")
    parser.add_argument("--from", dest="from_", metavar="TIME", help="made at or after, in ISO 8601 with an offset")
    parser.add_argument("--to", metavar="TIME", help="made at or before")
    parser.add_argument("--limit", type=int, default=50, help="how many at the most; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_reservations)
    text = "give a reservation back unused"
    parser = commands.add_parser("release", help=text, description=text)
    parser.add_argument("reservation_id", metavar="ID")
    parser.add_argument("--reason", default="released from the command line", help="default: %(default)s")
    parser.set_defaults(run=_release)


def _balances(arguments: Any) -> int:
    with CyclesClient.from_env() as client:
        balances = list(client.iter_balances(**given.levels(arguments)))
    for line in (json.dumps(row.to_json()) for row in balances) if arguments.json else bars.render(balances):
        print(line)
    return 0


def _reservations(arguments: Any) -> int:
    filters = {name: getattr(arguments, name) for name in ("status", "idempotency_key", "from_", "to")}
    named = {name: value for name, value in filters.items() if value is not None}
    shown = 0
    with CyclesClient.from_env() as client:
        for row in client.iter_reservations(
            limit=min(max(arguments.limit, 1), 200), **named, **given.levels(arguments)
        ):
            if shown >= arguments.limit:
                break
            shown += 1
            print(json.dumps(row.to_json()) if arguments.json else _line(row))
    return 0


def _line(row: Any) -> str:
    amount = row.committed if row.committed is not None else row.reserved
    action = f"{row.action.kind}:{row.action.name}"
    figure = f"{bars.shown(amount.amount, amount.unit)} {bars.name(amount.unit)}"
    return "\t".join((row.reservation_id, row.status, figure, action, row.scope_path))


def _release(arguments: Any) -> int:
    with CyclesClient.from_env() as client:
        released = client.release_reservation(
            arguments.reservation_id, ReleaseRequest(reason=arguments.reason)
        ).released
    print(f"released {bars.shown(released.amount, released.unit)} {bars.name(released.unit)}")
    return 0
