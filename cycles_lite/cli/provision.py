"""`cycles-lite key` and `tenant`: manage who may use the budgets in a file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ..local.tenants import ApiKey
from ..protocol import checks
from . import arguments as given
from .arguments import DB, JSON, argument, command, group
from .table import Column, moment, table

_TENANT = argument("tenant", metavar="TENANT", help="such as acme")


def add_commands(commands: Any) -> None:
    actions = group(commands, "key", "manage the API keys that a served file accepts")
    name = argument("--name", help="what the key is for")
    key_id = argument("key_id", metavar="KEY_ID", help="as key list shows it")
    text = "make a key for a tenant and print its secret, once"
    command(actions, "create", text, _create_key, DB, _TENANT, name, JSON)
    command(actions, "revoke", "refuse a key from now on", _revoke_key, DB, key_id, JSON)
    command(actions, "list", "show every key, without the secrets", _list_keys, DB, JSON)

    actions = group(commands, "tenant", "manage the tenants in a file")
    command(actions, "close", "close a tenant for good and revoke its keys", _close_tenant, DB, _TENANT, JSON)


def _create_key(arguments: Any) -> None:
    with given.authority(arguments, create=True) as authority:
        key = authority.create_key(arguments.tenant, name=arguments.name)
    print(json.dumps({**_record(key), "key_secret": key.key_secret}) if arguments.json else key.key_secret)


def _revoke_key(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        key = authority.revoke_key(checks.text("key_id", arguments.key_id, 128))
    print(json.dumps(_record(key)) if arguments.json else f"{key.key_id} of tenant {key.tenant_id} is revoked")


def _list_keys(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        keys = authority.keys()
    rows = [[k.key_id, k.key_prefix, k.tenant_id, _state(k), moment(k.created_at), k.name or ""] for k in keys]
    for line in [json.dumps(_record(key)) for key in keys] if arguments.json else table(_COLUMNS, rows):
        print(line)


_COLUMNS = [
    Column("key"),
    Column("prefix", goes=2),
    Column("tenant", least=10),
    Column("state"),
    Column("created", goes=3),
    Column("name", least=8, goes=1),
]


def _state(key: ApiKey) -> str:
    return "revoked" if key.revoked else "active"


def _record(key: ApiKey) -> dict[str, Any]:
    """A key in JSON, without its secret."""
    fields = dataclasses.asdict(key)
    del fields["key_secret"]
    return fields


def _close_tenant(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        tenant = authority.close_tenant(arguments.tenant)
    print(json.dumps(tenant._asdict()) if arguments.json else f"tenant {tenant.tenant_id} is closed")
