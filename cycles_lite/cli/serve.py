"""`cycles-lite serve`: the embedded authority behind HTTP."""

from __future__ import annotations

import logging
import os
import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..local import AlreadyExists, Authority
from ..protocol.checks import shown
from ..protocol.values import Amount, Unit
from . import arguments as given
from .access import AccessLog
from .arguments import argument, command

if TYPE_CHECKING:
    from ..local.server import Server


#: Bytes of a key's file that are read; a larger one holds no key.
_LONGEST_FILE = 4096


def add_commands(commands: Any) -> None:
    options = [
        argument("--host", default="127.0.0.1", help="the address to listen on; default: %(default)s"),
        argument("--port", type=int, default=7878, help="0 picks a free one; default: %(default)s"),
        argument("--tenant", help="a tenant to create where it is missing"),
        argument("--no-page", action="store_true", help="no page to look at budgets at /"),
    ]
    # Arguments are shown to every user of the machine; the other two places are not. One key has one place.
    for name, what in (("api", "for that tenant"), ("admin", "for the provisioning calls, which are off without one")):
        places = f"one of: --{name}-key, --{name}-key-file, the variable CYCLES_SERVE_{name.upper()}_KEY"
        options.append(argument(f"--{name}-key", metavar="KEY", help=f"a key {what}; {places}"))
        options.append(argument(f"--{name}-key-file", metavar="PATH", help="a file with that key and nothing else"))
    text = "let GET /metrics be answered to everybody; it needs the admin key else"
    options.append(argument("--public-metrics", action="store_true", help=text))
    shape, text = ("SCOPE=UNIT:AMOUNT", "tenant:acme=TOKENS:100000"), "a budget to set"
    options.append(given.for_scopes("--budget", given.amount, *shape, text))
    shape, text = ("SCOPE=JSON", 'tenant:acme={"max_tokens": 500}'), "caps for the budgets of a scope"
    options.append(given.for_scopes("--caps", given.caps, *shape, text))
    text = "no line on standard error for each request; they tell time, client, method, path, status, code, ms, bytes, "
    options.append(argument("--quiet", action="store_true", help=text + "tenant and request id"))
    command(commands, "serve", "serve a budget file over HTTP (needs the extra [server])", _serve, given.DB, *options)


def _serve(arguments: Any) -> None:
    server_class = load_server("serve")
    (_, admin_key), (place, api_key) = _key(arguments, "admin"), _key(arguments, "api")
    if api_key is not None and arguments.tenant is None:
        raise ConfigError(f"{place} needs --tenant: a key belongs to a tenant")
    with given.authority(arguments, create=True) as authority, ExitStack() as stack:
        access = stack.enter_context(AccessLog())
        stack.enter_context(access.logging())
        # Before anything is changed: where the address is taken, the file is in use by the one who has it.
        options = {
            "admin_key": admin_key,
            "public_metrics": arguments.public_metrics,
            "page": not arguments.no_page,
            "listeners": [] if arguments.quiet else [access],
        }
        with server_class(authority, arguments.host, arguments.port, **options) as server:
            _prepare(authority, arguments, place, api_key)
            _stop_on_signals(server)
            logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # else each request that waits is a warning
            print(f"listening on {server.url}", flush=True)
            server.run()


def _key(arguments: Any, name: str) -> tuple[str, str | None]:
    """The place that has the `api` or `admin` key, for messages, and the key; None where no place has it."""
    option, variable = f"--{name}-key", f"CYCLES_SERVE_{name.upper()}_KEY"
    told = {
        option: getattr(arguments, f"{name}_key"),
        option + "-file": getattr(arguments, f"{name}_key_file"),
        variable: os.environ.get(variable),
    }
    places = [place for place, text in told.items() if text is not None]
    if len(places) > 1:
        raise ConfigError("{} are given; the {} key has one place".format(" and ".join(places), name))
    if not places:
        return "", None
    place = places[0]
    secret = _content(place, told[place]) if place.endswith("-file") else told[place].strip()
    if re.match(r"[\x21-\x7e]{1,256}\Z", secret) is None:
        what = "is empty" if not secret else "has other characters than visible ASCII, or more than 256"
        raise ConfigError(f"{place}: the secret of the {name} key {what}")
    return place, secret


def _content(option: str, path: str) -> str:
    """A file's text without the white space around it."""
    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST_FILE).decode("latin-1").strip()
    except (OSError, ValueError) as e:
        raise ConfigError(f"{option}: {shown(path)} cannot be read: {getattr(e, 'strerror', None) or e}") from e


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
    """Let SIGINT, SIGTERM and their like end the server in an orderly way. Their handler raises no exception, because
    that could hit any line, also one that may not fail."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last one is of Windows: a console that is closed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda signum, frame: server.stop())


def _prepare(authority: Authority, arguments: Any, place: str, api_key: str | None) -> None:
    """Make what a start from nothing needs; on a file that has it already, nothing changes but the allocations."""
    if arguments.tenant is not None:
        try:
            authority.create_tenant(arguments.tenant)
        except AlreadyExists:
            pass  # it may have another name, or settings of its own
    if api_key is not None:
        owner = authority.authenticate(api_key)
        if owner is None:
            authority.create_key(str(arguments.tenant), secret=api_key)
        elif owner != arguments.tenant:
            raise ConfigError(f"{place}: the key is another tenant's")
    for scope, amount in arguments.budget:
        authority.set_budget(scope, amount)
    for scope, caps in arguments.caps:
        found = [budget for budget in authority.budgets() if budget.scope == scope]
        if not found:
            raise ConfigError(f"--caps: there is no budget at {scope}; set one with --budget")
        for budget in found:
            authority.set_budget(scope, Amount(Unit(budget.unit), budget.allocated), caps=caps)
