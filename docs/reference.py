"""What the pages say of settings, commands, errors and events is made of the code, here: each function returns
reStructuredText. Sphinx is not needed for it."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from typing import Any, Callable, Iterator
from unittest import mock

from cycles_lite import cli, errors, events
from cycles_lite.cli import output
from cycles_lite.config import CyclesConfig
from cycles_lite.errors import CODES, CyclesError
from cycles_lite.observers import COUNTERS
from cycles_lite.wsgi import HTTP_ERRORS

#: The command line's own variables, which are no settings.
VARIABLES = {
    "CYCLES_SERVE_API_KEY": "the tenant's key for `cycles-lite serve`, in the place of `--api-key`",
    "CYCLES_SERVE_ADMIN_KEY": "the operator's key for `cycles-lite serve`, in the place of `--admin-key`",
}


def rst(text: str) -> str:
    """A docstring's text, whose single backticks mean code."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", " ".join(text.split()))


def table(widths: str, *rows: tuple[str, ...]) -> str:
    """A table whose first row is its head."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'*' if first else ' '} - {cell}" for first, cell in zip([True] + [False] * len(row), row)]
    return "\n".join(lines) + "\n\n"


def comments(of: Any) -> dict[str, str]:
    """The `#:` comments above the fields of a class, by the fields' names."""
    found = re.findall(r"((?:^ +#: .*\n)+) +(\w+)(?::| =)", inspect.getsource(of), re.MULTILINE)
    return {name: re.sub(r"^ +#: ", "", text, flags=re.MULTILINE) for text, name in found}


# ---- Settings ----


def settings() -> str:
    told = comments(CyclesConfig)
    rows = [("setting", "default", "meaning")]
    for setting in CyclesConfig.layout():
        default = CyclesConfig.__dataclass_fields__[setting.name].default
        shown = {True: "true", False: "false", None: ""}.get(default, str(default))
        variable = f"``{setting.name}`` ``CYCLES_{setting.name.upper()}``"
        rows.append((variable, shown, rst(told[setting.name])))
    return table("28 12 60", *rows)


def variables() -> str:
    rows = [(f"``{name}``", rst(meaning)) for name, meaning in VARIABLES.items()]
    return table("40 60", ("variable", "meaning"), *rows)


# ---- Commands ----


class _Parsed(Exception):
    """Ends the command line as soon as its parser is there; `args` has that."""


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command as one types it, with its parser: those of a group come after the group."""

    def stop(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise _Parsed(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            cli.main([])
        except _Parsed as e:
            yield from _walk(e.args[0])


def _walk(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _walk(child)


def commands() -> str:
    parts = []
    for name, parser in parsers():
        rows = [_argument(action) for action in parser._actions if action.dest not in ("help", "version")]
        if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
            continue  # the group's actions are told one by one
        title = name.partition(" ")[2]
        parts += [
            f".. index:: {title}",
            "",
            title,
            "~" * len(title),
            "",
            f"{(parser.description or name)[:1].upper()}{(parser.description or name)[1:]}.",
            "",
        ]
        if rows:
            parts.append(table("35 65", ("argument", "meaning"), *rows))
    return "\n".join(parts) + "\n"


def _argument(action: argparse.Action) -> tuple[str, str]:
    meta = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    takes = "" if action.nargs == 0 else " " + meta
    shown = ", ".join(f"``{option}{takes}``" for option in action.option_strings) or f"``{meta}``"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("*", r"\*")
    return shown, text


def statuses() -> str:
    return table("15 85", ("status", "meaning"), *output.COMMON.items())


def run_statuses() -> str:
    return table("15 85", ("status", "meaning"), *output.OF_RUN.items())


# ---- Errors ----


def error_classes() -> list[type[CyclesError]]:
    """The classes of errors, each after its base."""
    found, rest = [], [CyclesError]
    while rest:
        kind = rest.pop(0)
        found.append(kind)
        ours = [each for each in vars(errors).values() if inspect.isclass(each) and each.__bases__[0] is kind]
        rest = [*ours, *rest]
    return found


def again(kind: type[CyclesError]) -> str:
    """Whether the same call may succeed later, as `is_retryable` tells."""
    if isinstance(kind.is_retryable, property):
        return "with ``retry_after``"
    return "yes" if kind.is_retryable else "no"


def error_tree() -> str:
    """The tree of errors, with what each means."""
    rows = [("class", "meaning", "try again?")]
    for kind in error_classes():
        depth = len([base for base in kind.__mro__ if issubclass(base, CyclesError)]) - 1
        name = "\N{MIDDLE DOT} " * depth + f":class:`{kind.__name__}`"
        rows.append((name, rst((kind.__doc__ or "").partition("\n\n")[0]), again(kind)))
    return ".. currentmodule:: cycles_lite\n\n" + table("38 47 15", *rows)


def codes() -> str:
    """The error codes of the protocol, with what each does to spend."""
    rows = [("code", "status", "class", "try again?", "ends for good")]
    for code, row in CODES.items():
        ends = [f"{'a' if each == 'commit' else 'an'} {each}" for each in row.final_for] + [
            "the heartbeat"
        ] * row.ends_lease
        name = f":class:`~cycles_lite.{row.kind.__name__}`"
        rows.append((f"``{code}``", str(row.status), name, again(row.kind), ", ".join(ends)))
    return table("28 8 30 14 20", *rows)


def http() -> str:
    """What `http_error` makes of errors."""
    rows = [("error", "status", "code in the body", "Retry-After")]
    for kind, status, code, wait in HTTP_ERRORS:
        when = "where the authority names one" if wait is None else f"the authority's, else {wait}"
        rows.append((f":class:`~cycles_lite.{kind.__name__}`", str(status), f"``{code}``", when))
    rows.append(("any other", "500", "``INTERNAL_ERROR``", ""))
    return table("38 12 30 20", *rows)


# ---- Events ----


def counters() -> str:
    """What the observers of `cycles_lite.observers` count."""
    rows = [(f"``{name}``", rst(text), ", ".join(labels)) for name, (text, labels) in COUNTERS.items()]
    return table("30 50 20", ("counter", "what is counted", "labels"), *rows)


def event_classes() -> list[type]:
    return [kind for kind in vars(events).values() if inspect.isclass(kind) and kind.__module__ == events.__name__]


def event_list() -> str:
    rows = [("event", "when", "fields")]
    for kind in event_classes():
        told = comments(kind)
        fields = "; ".join(f"``{name}``: {rst(text).rstrip('.')}" for name, text in told.items())
        rows.append((f"``{kind.__name__}``", rst(kind.__doc__ or ""), fields))
    return table("18 32 50", *rows)


PARTS: dict[str, Callable[[], str]] = {
    "codes": codes,
    "commands": commands,
    "counters": counters,
    "errors": error_tree,
    "events": event_list,
    "http": http,
    "run_statuses": run_statuses,
    "settings": settings,
    "statuses": statuses,
    "variables": variables,
}

if __name__ == "__main__":
    sys.stdout.write(PARTS[sys.argv[1]]())
