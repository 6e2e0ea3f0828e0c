"""`cycles-lite run -- COMMAND …`: a reservation around any command, for cron jobs and shell scripts."""

from __future__ import annotations

import argparse
import os
import subprocess
from contextlib import ExitStack
from signal import Signals as Number
from typing import Any

from ..client import CyclesClient
from ..errors import AuthenticationError, BudgetDenied, ConfigError, CyclesError, ForbiddenError
from ..guard import ReservationGuard
from ..protocol.values import Subject
from ..settlement.meaning import SettlementStatus
from . import arguments as given, statuses
from .costs import CostFile
from .signals import Signals
from .streams import tell


def add_command(commands: Any) -> None:
    text = "run a command on a budget: reserve, run, commit when it succeeds, release when it fails"
    parser = commands.add_parser(
        "run",
        help=text,
        description=text,
        usage="%(prog)s [options] -- COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=statuses.epilog(statuses.OF_RUN),
    )
    parser.add_argument("--estimate", type=given.amount, required=True, metavar="UNIT:AMOUNT", help="what to reserve")
    parser.add_argument(
        "--action", type=given.action, required=True, metavar="KIND:NAME", help="such as tool.email:send"
    )
    parser.add_argument(
        "--actual-from",
        metavar="FILE",
        help="a file that the command writes its real cost into, as a number or UNIT:AMOUNT; default: the estimate",
    )
    given.add_levels(parser)
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    parser.set_defaults(run=_run)


def _run(arguments: Any) -> int:
    cost = None if arguments.actual_from is None else CostFile(arguments.actual_from)
    levels = given.levels(arguments)
    subject = Subject(**levels) if levels else None
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(for_good=arguments.is_program))
        try:
            client = stack.enter_context(CyclesClient.from_env())
            guard = stack.enter_context(client.reserve(arguments.estimate, arguments.action, subject=subject))
        except (CyclesError, OSError) as e:
            tell(e)
            return _status_of(e)
        status = _execute(arguments.words, signals)
        if status == 0:
            _commit(guard, cost, client.config.journal_enabled)
        else:
            guard.release(f"exit status {status}")
    return status


def _status_of(error: CyclesError | OSError) -> int:
    """What a reservation that was not had ends with."""
    if isinstance(error, BudgetDenied):
        return statuses.DENIED
    if isinstance(error, (ConfigError, AuthenticationError, ForbiddenError, OSError)):
        return statuses.MISCONFIGURED
    return statuses.UNAVAILABLE if error.is_retryable else statuses.FAILED


def _execute(words: list[str], signals: Signals) -> int:
    """The command's exit status as a shell tells it."""
    early = signals.pending()
    if early:
        tell(f"{Number(early[0]).name} came before the command ran, and it does not run")
        return statuses.KILLED + early[0]
    try:
        # The command gets every open file that this process was given; those that it opened itself are not inheritable.
        command = subprocess.Popen(words, close_fds=False)
    except OSError as e:
        tell(f"{os.strerror(e.errno or 0)}: {words[0]}")
        return statuses.NOT_FOUND if isinstance(e, FileNotFoundError) else statuses.NOT_EXECUTABLE
    status = signals.wait(command)
    if status is None:
        tell("how the command ended is unknown")
        return statuses.UNKNOWN
    return statuses.KILLED - status if status < 0 else status


def _commit(guard: ReservationGuard, cost: CostFile | None, has_journal: bool) -> None:
    """The command has succeeded, and its exit status stays 0, whatever becomes of the commit."""
    actual, metadata = guard.estimate, None
    try:
        if cost is not None:
            actual = cost.read(actual.unit)
    except (OSError, ValueError) as e:
        tell(f"what it cost cannot be read, the estimate is committed: {e}")
        metadata = {"actual_source": "estimate"}
    try:
        if guard.commit(actual, metadata=metadata).status is SettlementStatus.PENDING:
            kept = "it is kept on disk" if has_journal else "without a journal it is lost when this process ends"
            tell(f"the cost is not settled yet, and tried again: {kept}")
    except CyclesError as e:
        tell(f"the cost was refused: {e}")
