"""`cycles-lite budget`, `key` and `tenant`: manage the budgets and keys in a budget file."""

from __future__ import annotations

import json
from typing import Any

from ..local import Authority
from ..protocol import checks
from . import arguments as given, bars

#: What an action on a budget needs, and whether it may create the file.
_BUDGET_ACTIONS = (
    ("set", "create a budget, or change its allocation, limit or caps", True),
    ("fund", "add to a budget; debt is repaid first", False),
    ("freeze", "stop reservations and events until it is unfrozen", False),
    ("unfreeze", "let a frozen budget work again", False),
    ("close", "close a budget for good", False),
)


def add_commands(commands: Any) -> None:
    _add_budget(commands)
    _add_key(commands)
    _add_tenant(commands)


def _group(commands: Any, name: str, text: str) -> Any:
    group = commands.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="action", metavar="ACTION", required=True)


def _action(actions: Any, name: str, text: str, run: Any) -> Any:
    parser = actions.add_parser(name, help=text, description=text)
    given.add_db(parser)
    parser.set_defaults(run=run)
    return parser


def _add_budget(commands: Any) -> None:
    actions = _group(commands, "budget", "manage the budgets in a file")
    for name, text, _ in _BUDGET_ACTIONS:
        parser = _action(actions, name, text, _change_budget)
        parser.add_argument(
            "scope", type=given.scope, metavar="SCOPE", help="such as tenant:acme or tenant:acme/agent:bot"
        )
        if name in ("set", "fund"):
            parser.add_argument("amount", type=given.amount, metavar="UNIT:AMOUNT", help="such as TOKENS:100000")
        else:
            parser.add_argument(
                "--unit", type=given.unit, help="only the budget in this unit; default: all of the scope"
            )
        if name == "set":
            parser.add_argument(
                "--overdraft-limit", type=int, metavar="N", help="the debt that is allowed, in the same unit"
            )
            parser.add_argument(
                "--caps", type=given.caps, metavar="JSON", help='limits for the work, such as {"max_tokens": 500}'
            )
    parser = _action(actions, "list", "show every budget", _list_budgets)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _change_budget(arguments: Any) -> int:
    creates = dict((name, may_create) for name, _, may_create in _BUDGET_ACTIONS)[arguments.action]
    with Authority(given.db_url(arguments), create=creates) as authority:
        if arguments.action == "set":
            authority.set_budget(
                arguments.scope, arguments.amount, overdraft_limit=arguments.overdraft_limit, caps=arguments.caps
            )
        elif arguments.action == "fund":
            authority.fund(arguments.scope, arguments.amount)
        else:
            getattr(authority, arguments.action)(arguments.scope, arguments.unit)
    return 0


def _list_budgets(arguments: Any) -> int:
    with Authority(given.db_url(arguments), create=False) as authority:
        budgets = authority.budgets()
    if arguments.json:
        for budget in budgets:
            print(json.dumps({**budget.balance.to_json(), "status": budget.status}))
        return 0
    for budget, line in zip(budgets, bars.render([budget.balance for budget in budgets])):
        print(line if budget.status == "ACTIVE" else f"{line}, {budget.status}")
    return 0


def _add_key(commands: Any) -> None:
    actions = _group(commands, "key", "manage the API keys that a served file accepts")
    parser = _action(actions, "create", "make a key for a tenant and print its secret, once", _create_key)
    parser.add_argument("tenant", metavar="TENANT")
    parser.add_argument("--name", help="what the key is for")
    parser = _action(actions, "revoke", "refuse a key from now on", _revoke_key)
    parser.add_argument("key_id", metavar="KEY_ID")
    _action(actions, "list", "show every key, without the secrets", _list_keys)


def _create_key(arguments: Any) -> int:
    with Authority(given.db_url(arguments), create=True) as authority:
        key = authority.create_key(arguments.tenant, name=arguments.name)
    print(key.key_secret)
    return 0


def _revoke_key(arguments: Any) -> int:
    with Authority(given.db_url(arguments), create=False) as authority:
        authority.revoke_key(checks.text("key_id", arguments.key_id, 128))
    return 0


def _list_keys(arguments: Any) -> int:
    with Authority(given.db_url(arguments), create=False) as authority:
        keys = authority.keys()
    for key in keys:
        state = "revoked" if key.revoked else "active"
        print("\t".join((key.key_id, key.key_prefix, key.tenant_id, state, key.name or "")))
    return 0


def _add_tenant(commands: Any) -> None:
    actions = _group(commands, "tenant", "manage the tenants in a file")
    parser = _action(actions, "close", "close a tenant for good and revoke its keys", _close_tenant)
    parser.add_argument("tenant", metavar="TENANT")


def _close_tenant(arguments: Any) -> int:
    with Authority(given.db_url(arguments), create=False) as authority:
        authority.close_tenant(arguments.tenant)
    return 0
