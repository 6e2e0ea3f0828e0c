"""`cycles-lite budget`, `key` and `tenant`: manage the budgets and keys in a budget file."""

from __future__ import annotations

import json
from typing import Any

from ..protocol import checks
from . import arguments as given, bars
from .arguments import DB, JSON, argument, command, group

_SCOPE = argument("scope", type=given.scope, metavar="SCOPE", help="such as tenant:acme or tenant:acme/agent:bot")
_AMOUNT = argument("amount", type=given.amount, metavar="UNIT:AMOUNT", help="such as TOKENS:100000")
_UNIT = argument("--unit", type=given.unit, help="only the budget in this unit; default: all of the scope")
_LIMIT = argument("--overdraft-limit", type=int, metavar="N", help="the debt that is allowed, in the same unit")
_CAPS = argument("--caps", type=given.caps, metavar="JSON", help='limits for the work, such as {"max_tokens": 500}')
_TENANT = argument("tenant", metavar="TENANT")


def add_commands(commands: Any) -> None:
    actions = group(commands, "budget", "manage the budgets in a file")
    text = "create a budget, or change its allocation, limit or caps"
    command(actions, "set", text, _set_budget, DB, _SCOPE, _AMOUNT, _LIMIT, _CAPS)
    command(actions, "fund", "add to a budget; debt is repaid first", _fund, DB, _SCOPE, _AMOUNT)
    text = "stop reservations and events until it is unfrozen"
    command(actions, "freeze", text, _change_status, DB, _SCOPE, _UNIT)
    command(actions, "unfreeze", "let a frozen budget work again", _change_status, DB, _SCOPE, _UNIT)
    command(actions, "close", "close a budget for good", _change_status, DB, _SCOPE, _UNIT)
    command(actions, "list", "show every budget", _list_budgets, DB, JSON)

    actions = group(commands, "key", "manage the API keys that a served file accepts")
    name, key_id = argument("--name", help="what the key is for"), argument("key_id", metavar="KEY_ID")
    text = "make a key for a tenant and print its secret, once"
    command(actions, "create", text, _create_key, DB, _TENANT, name)
    command(actions, "revoke", "refuse a key from now on", _revoke_key, DB, key_id)
    command(actions, "list", "show every key, without the secrets", _list_keys, DB)

    actions = group(commands, "tenant", "manage the tenants in a file")
    command(actions, "close", "close a tenant for good and revoke its keys", _close_tenant, DB, _TENANT)


def _set_budget(arguments: Any) -> None:
    with given.authority(arguments, create=True) as authority:
        limit, caps = arguments.overdraft_limit, arguments.caps
        authority.set_budget(arguments.scope, arguments.amount, overdraft_limit=limit, caps=caps)


def _fund(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        authority.fund(arguments.scope, arguments.amount)


def _change_status(arguments: Any) -> None:
    """Freeze, unfreeze or close: the authority's methods have the actions' names."""
    with given.authority(arguments) as authority:
        getattr(authority, arguments.action)(arguments.scope, arguments.unit)


def _list_budgets(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        budgets = authority.budgets()
    if arguments.json:
        lines = [json.dumps({**budget.balance.to_json(), "status": budget.status}) for budget in budgets]
    else:
        notes = ["" if budget.status == "ACTIVE" else budget.status for budget in budgets]
        lines = list(bars.render([bars.Row(b.scope, b.balance, note) for b, note in zip(budgets, notes)]))
    for line in lines:
        print(line)


def _create_key(arguments: Any) -> None:
    with given.authority(arguments, create=True) as authority:
        key = authority.create_key(arguments.tenant, name=arguments.name)
    print(key.key_secret)


def _revoke_key(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        authority.revoke_key(checks.text("key_id", arguments.key_id, 128))


def _list_keys(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        keys = authority.keys()
    for key in keys:
        state = "revoked" if key.revoked else "active"
        print("\t".join((key.key_id, key.key_prefix, key.tenant_id, state, key.name or "")))


def _close_tenant(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        authority.close_tenant(arguments.tenant)
