"""The command line, `cycles-lite`. What cannot be done is one line on standard error and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn, Sequence

from .. import __version__
from ..errors import CyclesError

#: Exit statuses: an error of usage or of what was asked for; Ctrl-C as shells report it.
FAILED = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    from . import check, demo, journal, look, provision, run, serve  # each brings its own arguments

    parser = _Parser(
        prog="cycles-lite", description="Budgets for agents and automation: serve them, manage them, see them work."
    )
    parser.add_argument("--version", action="version", version=f"cycles-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo.add_command(commands)
    serve.add_command(commands)
    provision.add_commands(commands)
    journal.add_command(commands)
    check.add_command(commands)
    look.add_commands(commands)
    run.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except CyclesError as e:
        return _failed(e)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # such as `| head`: what reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _failed(e: Any) -> int:
    print("cycles-lite: " + " ".join(str(e).split()), file=sys.stderr)
    return FAILED
