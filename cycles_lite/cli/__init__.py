"""The command line, `cycles-lite`. What cannot be done is one line on standard error and a status of `statuses`."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, Sequence

from .. import __version__
from ..errors import CyclesError
from . import statuses
from .streams import NoOutput, safe_streams, tell


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(statuses.FAILED, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    from . import check, demo, journal, look, provision, run, serve  # each brings its own arguments

    parser = _Parser(
        prog="cycles-lite",
        description="Budgets for agents and automation: serve them, manage them, see them work.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=statuses.epilog(statuses.COMMON),
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
    with safe_streams():
        try:
            return _run(argv)
        except NoOutput as e:
            if isinstance(e.__cause__, BrokenPipeError):  # such as `| head`: what reads has enough
                return statuses.DONE
            tell(e)
            return statuses.NO_OUTPUT
        except (CyclesError, OSError) as e:
            tell(e)
            return statuses.FAILED
        except KeyboardInterrupt:
            return statuses.INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    try:
        # Within another program nothing may be changed for good.
        arguments = _parser().parse_args(argv, argparse.Namespace(is_program=argv is None))
        status: int = arguments.run(arguments)
        return status
    finally:
        sys.stdout.flush()  # here, where a failure is still a line and a status
