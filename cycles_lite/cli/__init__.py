"""The command line, `cycles-lite`. A command that cannot do what it is asked says so in one line on standard error, and
ends with one of the exit statuses in `output`."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, Sequence

from .. import __version__
from ..errors import CyclesError
from . import output
from .output import NoOutput, safe_streams, tell
from .terminal import printable


class _Parser(argparse.ArgumentParser):
    """A parser that tells in one line what is wrong, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(output.FAILED, printable(" ".join(f"{self.prog}: {message} (see --help)".split())) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    with safe_streams():
        try:
            return _run(argv)
        except NoOutput as e:
            if isinstance(e.__cause__, BrokenPipeError):  # the reader, such as `head`, has had enough
                return output.DONE
            tell(e)
            return output.NO_OUTPUT
        except (CyclesError, OSError) as e:
            tell(e)
            return output.FAILED
        except KeyboardInterrupt:
            return output.INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    from . import budgets, completion, demo, journal, look, provision, run, serve, watch  # each declares commands

    text = "Budgets for agents and automation: serve them, manage them, see them work."
    parser = _Parser(prog="cycles-lite", description=text, **output.epilog(output.COMMON))
    parser.add_argument("--version", action="version", version=f"cycles-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, serve, budgets, provision, journal, look, watch, run, completion):
        module.add_commands(commands)
    try:
        # `is_program`: where another program calls `main`, nothing of its process may be changed for good.
        given = argparse.Namespace(is_program=argv is None, parser=parser)
        arguments = parser.parse_args(argv, given)
        return arguments.run(arguments) or output.DONE
    finally:
        sys.stdout.flush()  # a failure here still becomes a line and a status; at the interpreter's end it would not
