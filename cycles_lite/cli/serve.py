"""`cycles-lite serve`: the embedded authority behind HTTP."""

from __future__ import annotations

import logging
import os
import re
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..local import AlreadyExists, Authority
from ..protocol.checks import shown
from ..protocol.values import Amount, Unit
from . import arguments as given

if TYPE_CHECKING:
    from ..local.server import Server


#: Larger files hold no key.
_LONGEST_FILE = 4096


def add_command(commands: Any) -> None:
    text = "serve a budget file over HTTP (needs the extra [server])"
    parser = commands.add_parser("serve", help=text, description=text)
    given.add_db(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=7878, help="0 picks a free one; default: %(default)s")
    parser.add_argument("--tenant", help="a tenant to create where it is missing")
    # Arguments are shown to every user of the machine; the other two places are not. One key has one place.
    for name, what in (("api", "for that tenant"), ("admin", "for the provisioning calls, which are off without one")):
        places = f"one of: --{name}-key, --{name}-key-file, the variable CYCLES_SERVE_{name.upper()}_KEY"
        parser.add_argument(f"--{name}-key", metavar="KEY", help=f"a key {what}; {places}")
        parser.add_argument(f"--{name}-key-file", metavar="PATH", help="a file with that key and nothing else")
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
    admin_key, api_key = _key(arguments, "admin"), _key(arguments, "api")
    if api_key is not None and arguments.tenant is None:
        raise ConfigError(f"{api_key.place} needs --tenant: a key belongs to a tenant")
    with Authority(given.db_url(arguments), create=True) as authority:
        # Before anything is changed: where the address is taken, the file is in use by the one who has it.
        key = None if admin_key is None else admin_key.secret
        with server_class(authority, arguments.host, arguments.port, admin_key=key) as server:
            _prepare(authority, arguments, api_key)
            _stop_on_signals(server)
            logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # else each request that waits is a warning
            print(f"listening on {server.url}", flush=True)
            server.run()
    return 0


class _Key(NamedTuple):
    """A key, and where it was said, for messages."""

    place: str
    secret: str


def _key(arguments: Any, name: str) -> _Key | None:
    """The `api` or `admin` key, from the one place that has it; none where no place has."""
    option, variable = f"--{name}-key", f"CYCLES_SERVE_{name.upper()}_KEY"
    given = {
        option: getattr(arguments, f"{name}_key"),
        option + "-file": getattr(arguments, f"{name}_key_file"),
        variable: os.environ.get(variable),
    }
    places = [place for place, text in given.items() if text is not None]
    if len(places) > 1:
        raise ConfigError("{} are given; the {} key has one place".format(" and ".join(places), name))
    if not places:
        return None
    text = given[places[0]]
    secret = _content(places[0], text) if places[0].endswith("-file") else text.strip()
    if re.match(r"[\x21-\x7e]{1,256}\Z", secret) is None:
        what = "is empty" if not secret else "has other characters than visible ASCII, or more than 256"
        raise ConfigError(f"{places[0]}: the secret of the {name} key {what}")
    return _Key(places[0], secret)


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
    """End in an orderly way. No exception is raised for it: it could hit any line, also one that may not fail."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: server.stop())


def _prepare(authority: Authority, arguments: Any, api_key: _Key | None) -> None:
    """What a start from nothing needs; on a file that has it already, nothing changes but the allocations."""
    if arguments.tenant is not None:
        _ensure_tenant(authority, arguments.tenant)
    if api_key is not None:
        _ensure_key(authority, str(arguments.tenant), api_key)
    for budget in arguments.budget:
        authority.set_budget(budget.scope, budget.amount)
    for scope, caps in arguments.caps:
        _set_caps(authority, scope, caps)


def _ensure_tenant(authority: Authority, tenant: str) -> None:
    try:
        authority.create_tenant(tenant)
    except AlreadyExists:
        pass  # under another name, or with settings of its own: it is there


def _ensure_key(authority: Authority, tenant: str, key: _Key) -> None:
    owner = authority.authenticate(key.secret)
    if owner is None:
        authority.create_key(tenant, secret=key.secret)
    elif owner != tenant:
        raise ConfigError(f"{key.place}: the key is another tenant's")


def _set_caps(authority: Authority, scope: str, caps: Any) -> None:
    found = [budget for budget in authority.budgets() if budget.scope == scope]
    if not found:
        raise ConfigError(f"--caps: there is no budget at {scope}; set one with --budget")
    for budget in found:
        authority.set_budget(scope, Amount(Unit(budget.unit), budget.allocated), caps=caps)
