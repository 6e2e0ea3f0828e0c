"""`cycles-lite completion`: a script with which bash, zsh or fish complete this command line, made from its parser.

A script holds all that the parser knows: commands, their actions, options, and what each value may be. So completing
starts no Python, and also works where the command is not on the path.
"""

from __future__ import annotations

import argparse
from typing import Any, Iterator

from ..protocol.values import Unit
from .arguments import argument, command
from .shells import SHELLS, Command, Flag

#: What a value is, by what `--help` calls it; words are separated by commas. All else may be anything.
_KINDS = {
    "PATH": "file",
    "FILE": "file",
    "DIR": "folder",
    "COMMAND": "command",
    "UNIT": ",".join(Unit.__members__),
}


def add_commands(commands: Any) -> None:
    text = 'bash: eval "$(cycles-lite completion bash)" in ~/.bashrc; zsh: a file _cycles-lite in a folder of $fpath; '
    shell = argument("shell", choices=list(SHELLS), help=text + "fish: ~/.config/fish/completions/cycles-lite.fish")
    command(commands, "completion", "print the script that lets a shell complete this command line", _print, shell)


def _print(arguments: Any) -> None:
    print(SHELLS[arguments.shell](list(described(arguments.parser))), end="")


def described(parser: argparse.ArgumentParser, at: str = "") -> Iterator[Command]:
    """A parser and those of its actions."""
    flags, places, actions = [], [], {}
    for action in parser._actions:
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        if isinstance(action, argparse._SubParsersAction):
            actions = {name: chosen.description or "" for name, chosen in action.choices.items()}
            for name, chosen in action.choices.items():
                yield from described(chosen, f"{at} {name}".strip())
        elif action.option_strings:
            flags.append(Flag(action.option_strings, text.split(";")[0], _kind(action)))
        else:
            places.append(_kind(action) + ("*" if action.nargs in ("*", "+") else ""))
    yield Command(at, flags, actions, places)


def _kind(action: argparse.Action) -> str:
    """What the value of an option or argument is; empty where there is none."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return ",".join(map(str, action.choices))
    return _KINDS.get(str(action.metavar or action.dest.upper()), "any")
