"""`cycles-lite run -- COMMAND …`: a reservation around any command, for cron jobs and shell scripts."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from signal import Signals as Number
from typing import Any

from ..client import CyclesClient
from ..errors import AuthenticationError, BudgetDenied, ConfigError, CyclesError, ForbiddenError
from ..guard import ReservationGuard
from ..protocol.values import Subject
from ..runtime import system
from ..settlement.meaning import SettlementStatus
from . import arguments as given, output
from .arguments import argument, command
from .cost_file import CostFile
from .output import tell
from .signals import Signals


def add_commands(commands: Any) -> None:
    estimate = argument("--estimate", type=given.amount, required=True, metavar="UNIT:AMOUNT", help="what to reserve")
    action = argument("--action", type=given.action, required=True, metavar="KIND:NAME", help="such as tool.email:send")
    text = "a file that the command writes its real cost into, as a number or UNIT:AMOUNT; default: the estimate"
    actual = argument("--actual-from", metavar="FILE", help=text)
    words = argument("words", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    text = "run a command on a budget: reserve, run, commit when it succeeds, release when it fails"
    usage, shape = "%(prog)s [options] -- COMMAND ...", output.epilog(output.OF_RUN)
    command(commands, "run", text, _run, estimate, action, actual, *given.LEVELS, words, usage=usage, **shape)


def _run(arguments: Any) -> int:
    cost = None if arguments.actual_from is None else CostFile(arguments.actual_from)
    subject = Subject(**given.levels(arguments)) if given.levels(arguments) else None
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
    """The exit status where the reservation was not granted, and the command does not run."""
    if isinstance(error, BudgetDenied):
        return output.DENIED
    if isinstance(error, (ConfigError, AuthenticationError, ForbiddenError, OSError)):
        return output.MISCONFIGURED
    return output.UNAVAILABLE if error.is_retryable else output.FAILED


def _execute(words: list[str], signals: Signals) -> int:
    """Run the command and return its exit status as a shell would tell it."""
    early = signals.pending()
    if early:
        tell(f"{Number(early[0]).name} came before the command ran, and it does not run")
        return output.KILLED + early[0]
    try:
        # The command gets every open file that this process was given; those that it opened itself are not inheritable.
        command = subprocess.Popen(words, close_fds=False)
    except OSError as e:
        tell(f"{os.strerror(e.errno or 0)}: {words[0]}")
        return output.NOT_FOUND if isinstance(e, FileNotFoundError) else output.NOT_EXECUTABLE
    status = signals.wait(command)
    if status is None:
        tell("how the command ended is unknown")
        return output.UNKNOWN
    return output.KILLED - status if status < 0 else system.exit_status(status)


def _commit(guard: ReservationGuard, cost: CostFile | None, has_journal: bool) -> None:
    """Commit what the command cost. It has succeeded, and its exit status stays 0 whatever becomes of the commit."""
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
