"""`cycles-lite serve`: the embedded authority behind HTTP."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..local import Authority
from ..local.directory import AlreadyExists
from ..values import Amount, Unit
from . import arguments as given

if TYPE_CHECKING:
    from ..local.server import Server


def add_command(commands: Any) -> None:
    text = "serve a budget file over HTTP (needs the extra [server])"
    parser = commands.add_parser("serve", help=text, description=text)
    given.add_db(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=7878, help="0 picks a free one; default: %(default)s")
    parser.add_argument("--tenant", help="a tenant to create where it is missing")
    parser.add_argument("--api-key", metavar="KEY", help="a key for that tenant")
    parser.add_argument(
        "--admin-key", metavar="KEY", help="a key for the provisioning calls, which are off without one"
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        type=given.allocation,
        metavar="SCOPE=UNIT:AMOUNT",
        help="a budget to set, such as tenant:acme=TOKENS:100000; may be repeated",
    )
    parser.add_argument(
        "--caps",
        action="append",
        default=[],
        type=given.scoped_caps,
        metavar="SCOPE=JSON",
        help='caps for the budgets of a scope, such as tenant:acme={"max_tokens": 500}; may be repeated',
    )
    parser.set_defaults(run=_serve)


def _serve(arguments: Any) -> int:
    server_class = load_server("serve")
    if arguments.api_key is not None and arguments.tenant is None:
        raise ConfigError("--api-key needs --tenant: a key belongs to a tenant")
    with Authority(given.db_url(arguments), create=True) as authority:
        # Before anything is changed: where the address is taken, the file is in use by the one who has it.
        with server_class(authority, arguments.host, arguments.port, admin_key=arguments.admin_key) as server:
            _prepare(authority, arguments)
            _stop_on_signals(server)
            logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # else each request that waits is a warning
            print(f"listening on {server.url}", flush=True)
            server.run()
    return 0


def load_server(command: str) -> type[Server]:
    """The server, which needs an extra."""
    try:
        from ..local.server import Server
    except ModuleNotFoundError as e:
        if e.name != "waitress":
            raise
        raise ConfigError(f"{command} needs waitress: pip install 'cycles_lite[server]'") from e
    return Server


def _stop_on_signals(server: Server) -> None:
    """End in an orderly way. No exception is raised for it: it could hit any line, also one that may not fail."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: server.stop())


def _prepare(authority: Authority, arguments: Any) -> None:
    """What a start from nothing needs; on a file that has it already, nothing changes but the allocations."""
    if arguments.tenant is not None:
        _ensure_tenant(authority, arguments.tenant)
    if arguments.api_key is not None:
        _ensure_key(authority, str(arguments.tenant), arguments.api_key)
    for budget in arguments.budget:
        authority.set_budget(budget.scope, budget.amount)
    for scope, caps in arguments.caps:
        _set_caps(authority, scope, caps)


def _ensure_tenant(authority: Authority, tenant: str) -> None:
    try:
        authority.create_tenant(tenant)
    except AlreadyExists:
        pass  # under another name, or with settings of its own: it is there


def _ensure_key(authority: Authority, tenant: str, secret: str) -> None:
    owner = authority.authenticate(secret)
    if owner is None:
        authority.create_key(tenant, secret=secret)
    elif owner != tenant:
        raise ConfigError("--api-key: the key is another tenant's")


def _set_caps(authority: Authority, scope: str, caps: Any) -> None:
    found = [budget for budget in authority.budgets() if budget.scope == scope]
    if not found:
        raise ConfigError(f"--caps: there is no budget at {scope}; set one with --budget")
    for budget in found:
        authority.set_budget(scope, Amount(Unit(budget.unit), budget.allocated), caps=caps)
