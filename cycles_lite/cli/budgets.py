"""`cycles-lite budget`: make, fund, look at and delete the budgets in a file."""

from __future__ import annotations

import csv
import json
import sys
import textwrap
from datetime import datetime, timedelta, timezone
from typing import Any, Iterable, Iterator

from ..errors import ValidationError
from ..local import instants, periods
from ..local.funding import Holds
from ..local.rules import Budget
from ..protocol.values import Unit
from . import arguments as given, bars
from .arguments import DB, JSON, argument, command, group
from .output import tell
from .table import Column, table
from .terminal import printable, width_of

_SCOPE = argument("scope", type=given.scope, metavar="SCOPE", help="such as tenant:acme or tenant:acme/agent:bot")
_AMOUNT = argument("amount", type=given.amount, metavar="UNIT:AMOUNT", help="such as TOKENS:100000 or USD:20")
_UNIT = argument("--unit", type=given.unit, help="only the budget in this unit; default: all of the scope")

_SETTINGS = [
    argument(
        "--overdraft-limit", type=given.limit, metavar="N", help="the debt that is allowed; for money, such as USD:5"
    ),
    argument("--caps", type=given.caps, metavar="JSON", help='limits for the work, such as {"max_tokens": 500}'),
    argument("--every", type=given.period, metavar="PERIOD", help="day, week, month or hours such as 12h; or never"),
    argument(
        "--from",
        dest="starts",
        type=given.anchor,
        metavar="TIME",
        help="when a period begins, in ISO 8601 with an offset; default: the start of the day, Monday or month of UTC",
    ),
    argument(
        "--rollover",
        choices=[policy.lower().replace("_", "-") for policy in periods.ROLLOVER_POLICIES],
        help="what the next period has of what is left; at first none",
    ),
]

#: The actions that fund: the operation, and what it does.
_FUNDINGS = {
    "credit": ("CREDIT", "add to a budget; debt is repaid first"),
    "debit": ("DEBIT", "take from a budget, no more than is left"),
    "reset": ("RESET", "set the allocation; what is spent, reserved and owed stays"),
    "repay": ("REPAY_DEBT", "lessen the debt; what exceeds it is added to the budget"),
    "reset-spent": ("RESET_SPENT", "set the allocation, and begin to count anew"),
}
_SPENT = argument("--spent", type=given.amount, metavar="UNIT:AMOUNT", help="what counts as spent; default: nothing")
_ONCE = [
    argument("--idempotency-key", metavar="KEY", help="the same key again, within 30 days, does nothing more"),
    argument("--reason", help="kept with the key"),
]


def add_commands(commands: Any) -> None:
    actions = group(commands, "budget", "manage the budgets in a file")
    text = "create a budget, or change its allocation, limit, caps or period"
    command(actions, "set", text, _set, DB, _SCOPE, _AMOUNT, *_SETTINGS, JSON)
    for name, (_, text) in _FUNDINGS.items():
        more = [_SPENT, *_ONCE] if name == "reset-spent" else _ONCE
        command(actions, name, text, _fund, DB, _SCOPE, _AMOUNT, *more, JSON)
    text = "stop reservations and events until it is unfrozen"
    command(actions, "freeze", text, _change_status, DB, _SCOPE, _UNIT, JSON)
    command(actions, "unfreeze", "let a frozen budget work again", _change_status, DB, _SCOPE, _UNIT, JSON)
    command(actions, "close", "close a budget for good", _change_status, DB, _SCOPE, _UNIT, JSON)
    force = argument("--force", action="store_true", help="also one that live reservations hold; they go on without it")
    command(actions, "delete", "delete a budget", _delete, DB, _SCOPE, _UNIT, force, JSON)
    command(actions, "list", "show every budget", _list, DB, JSON)
    command(actions, "show", "show all about a scope's budgets", _show, DB, _SCOPE, _UNIT, JSON)
    as_csv = argument("--csv", action="store_true", help="comma-separated values, with amounts as whole numbers")
    command(actions, "history", "show the periods that have ended", _history, DB, _SCOPE, _UNIT, JSON, as_csv)


# ---- What changes budgets ----


def _set(arguments: Any) -> None:
    limit = arguments.overdraft_limit
    if limit and isinstance(limit, int) and arguments.amount.unit == Unit.USD_MICROCENTS:
        # Whoever has typed USD:20 before it means dollars, and would get a hundred-millionth of that.
        raise ValidationError(f"--overdraft-limit: {limit} of what? Name the unit, as in USD:{limit}")
    rollover = arguments.rollover and arguments.rollover.upper().replace("-", "_")
    with given.authority(arguments, create=True) as authority:
        made = authority.set_budget(
            arguments.scope,
            arguments.amount,
            overdraft_limit=limit,
            caps=arguments.caps,
            period=arguments.every,
            starts=arguments.starts,
            rollover_policy=rollover,
        )
    _tell_changed(arguments, [made])


def _fund(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        made = authority.fund(
            arguments.scope,
            arguments.amount,
            _FUNDINGS[arguments.action][0],
            spent=getattr(arguments, "spent", None),
            idempotency_key=arguments.idempotency_key,
            reason=arguments.reason,
        )
    _tell_changed(arguments, [made])


def _change_status(arguments: Any) -> None:
    """Freeze, unfreeze or close: the authority's methods have the actions' names."""
    with given.authority(arguments) as authority:
        made = getattr(authority, arguments.action)(arguments.scope, arguments.unit)
    _tell_changed(arguments, made)


def _delete(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        made = authority.delete_budget(arguments.scope, arguments.unit, force=arguments.force)
    _tell_changed(arguments, made, "deleted, it had ")


def _tell_changed(arguments: Any, changed: Iterable[Budget], before: str = "") -> None:
    """A line for each budget, with what it is now."""
    for budget in changed:
        if arguments.json:
            print(json.dumps(_record(budget)))
        else:
            figures = ", ".join(filter(None, (bars.figures(budget.balance), _note(budget))))
            _print_fitting(f"{budget.scope}: {before}{figures}", 2)


# ---- What shows them ----


def _list(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        budgets = authority.budgets()
    if arguments.json:
        lines = [json.dumps(_record(budget)) for budget in budgets]
    else:
        lines = list(bars.render([bars.Row(budget.scope, budget.balance, _note(budget)) for budget in budgets]))
    for line in lines:
        print(line)


def _show(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        found = authority.holds(arguments.scope, arguments.unit)
    for number, one in enumerate(found):
        if arguments.json:
            live = {"live_reservations": one.reservations, "oldest_reservation_ms": one.oldest_ms}
            print(json.dumps({**_record(one.budget), **live}))
        else:
            print("\n" * (number > 0), end="")
            _print_fitting(one.budget.scope, 2)
            for name, fact in _facts(one):
                _print_fitting(f"  {name:<{_NAMES}}{fact}", 2 + _NAMES)


#: The cells for the names of facts, and the space after them. A time fits behind them on a terminal of 40 columns.
_NAMES = 11


def _print_fitting(text: str, indent: int) -> None:
    """Print a line, or on a terminal that is too narrow for it several, those after the first indented."""
    text, room = printable(text), width_of(sys.stdout)
    if room is not None:
        space = " " * indent
        text = "\n".join(textwrap.wrap(text, max(room, indent + 10), subsequent_indent=space, break_on_hyphens=False))
    print(text)


def _facts(of: Holds) -> Iterator[tuple[str, str]]:
    budget = of.budget
    amounts = {"left": budget.remaining, "allocated": budget.allocated, "spent": budget.spent}
    amounts.update({"reserved": budget.reserved, "debt": budget.debt, "overdraft": budget.overdraft_limit})
    for name, amount in amounts.items():
        yield name, f"{bars.shown(amount, budget.unit)} {bars.name(budget.unit)}"
    yield "held by", f"{of.reservations} live reservation{'' if of.reservations == 1 else 's'}"
    if of.oldest_ms is not None:
        yield "oldest", _time(of.oldest_ms, budget.anchor)
    yield "status", budget.status + (", OVER LIMIT" if budget.is_over_limit else "")
    yield "caps", "none" if budget.caps is None else json.dumps(budget.caps)
    yield "period", "none: it is spent once" if budget.period is None else f"{budget.period}, from {budget.anchor}"
    if budget.period_start_ms is not None and budget.period_end_ms is not None:
        yield "since", _time(budget.period_start_ms, budget.anchor)
        yield "until", _time(budget.period_end_ms, budget.anchor)
        granted = f"{bars.shown(budget.granted or 0, budget.unit)} {bars.name(budget.unit)}"
        yield "then", "nothing is spent, and " + _THEN[budget.rollover_policy].format(granted)


_THEN = {
    periods.NONE: "the allocation stays",
    periods.CARRY_FORWARD: "{} are allocated, and what is left now",
    periods.CAP_AT_ALLOCATED: "{0} are allocated, and of what is left now no more than {0}",
}


def _history(arguments: Any) -> None:
    with given.authority(arguments) as authority:
        anchors = {(one.scope, one.unit): one.anchor for one in authority.budgets()}
        found = authority.history(arguments.scope, arguments.unit)
    if arguments.json:
        for one in found:
            print(json.dumps(one._asdict()))
        return
    times = [[_time(ms, anchors.get((one.scope, one.unit))) for ms in (one.start_ms, one.end_ms)] for one in found]
    amounts = [(one.allocated, one.spent, one.debt) for one in found]
    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow("scope unit start end allocated spent debt".split())
        writer.writerows([one.scope, one.unit, *t, *a] for one, t, a in zip(found, times, amounts))
    elif found:
        shown = [[bars.shown(amount, one.unit) for amount in three] for one, three in zip(found, amounts)]
        rows = [[*t, *texts, bars.name(one.unit)] for one, t, texts in zip(found, times, shown)]
        for line in table(_COLUMNS, rows):
            print(line)
    else:
        tell(f"{arguments.scope}: no period of it has ended")


_COLUMNS = [
    Column("start"),
    Column("end", goes=4),
    Column("allocated", is_number=True, goes=2),
    Column("spent", is_number=True),
    Column("debt", is_number=True, goes=3),
    Column("unit", goes=1),
]


# ---- One budget in words and in JSON ----


def _note(budget: Budget) -> str:
    """What its figures do not say: the status that keeps it from working, and its period."""
    until = (
        ""
        if budget.period_end_ms is None
        else f"each {budget.period}, until {_time(budget.period_end_ms, budget.anchor)}"
    )
    return ", ".join(filter(None, ("" if budget.status == "ACTIVE" else budget.status, until)))


def _record(budget: Budget) -> dict[str, Any]:
    """The protocol's balance, and what a budget has beside it."""
    names = ("status", "caps", "period", "period_start_ms", "period_end_ms", "rollover_policy", "anchor")
    return {**budget.to_json(), **{name: getattr(budget, name) for name in names}}


def _time(ms: int, anchor: str | None) -> str:
    """Milliseconds since 1970 in ISO 8601, with the offset of a budget's periods, else in UTC."""
    offset = (instants.with_offset(anchor or "") or (0, 0))[1]
    try:
        then = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms)
        then = then.astimezone(timezone(timedelta(minutes=offset)))
    except OverflowError:  # no calendar goes that far
        return f"{ms} ms"
    return then.isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
