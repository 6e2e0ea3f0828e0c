"""`cycles-lite run -- COMMAND …`: a reservation around any command, for cron jobs and shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from ..client import CyclesClient
from ..errors import BudgetDenied, CyclesError, ValidationError
from ..guard import ReservationGuard
from ..values import Amount, Subject
from . import arguments as given

#: Exit statuses beside the command's own: the budget says no (EX_TEMPFAIL); what shells use for a command that is
#: missing, cannot be executed, or was killed by signal N (128 + N).
DENIED, NOT_FOUND, NOT_EXECUTABLE, KILLED = 75, 127, 126, 128

#: What is passed on to the command; Ctrl-C reaches it from the terminal by itself.
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def add_command(commands: Any) -> None:
    text = "run a command on a budget: reserve, run, commit when it succeeds, release when it fails"
    parser = commands.add_parser("run", help=text, description=text, usage="%(prog)s [options] -- COMMAND ...")
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
    levels = given.levels(arguments)
    with CyclesClient.from_env() as client:
        try:
            guard = client.reserve(arguments.estimate, arguments.action, subject=Subject(**levels) if levels else None)
        except BudgetDenied as e:
            print(f"cycles-lite: {e}", file=sys.stderr)
            return DENIED
        with guard:
            status = _execute(arguments.words)
            if status == 0:
                _commit(guard, arguments)
            else:
                guard.release(f"exit status {status}")
    return status


def _commit(guard: ReservationGuard, arguments: Any) -> None:
    """The command has succeeded, and its exit status stays 0, whatever becomes of the commit."""
    try:
        actual, metadata = _actual(arguments), None
    except (OSError, ValueError) as e:
        print(f"cycles-lite: what it cost cannot be read, the estimate is committed: {e}", file=sys.stderr)
        actual, metadata = arguments.estimate, {"actual_source": "estimate"}
    try:
        guard.commit(actual, metadata=metadata)
    except CyclesError as e:
        print(f"cycles-lite: the cost was refused: {e}", file=sys.stderr)


def _actual(arguments: Any) -> Amount:
    if arguments.actual_from is None:
        return arguments.estimate  # type: ignore[no-any-return]
    with open(arguments.actual_from, encoding="utf-8") as file:
        text = file.read().strip()
    unit = arguments.estimate.unit
    try:
        actual = given.amount(text if ":" in text else f"{unit}:{text}")
    except Exception as e:
        raise ValidationError(f"{arguments.actual_from}: {e}") from e
    if actual.unit != unit:
        raise ValidationError(f"{arguments.actual_from}: {actual.unit} is not the estimate's unit, {unit}")
    return actual


def _execute(words: list[str]) -> int:
    """The command's exit status as a shell tells it; signals that come meanwhile are the command's."""
    handlers = {}
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        if child is None:
            early.append(signum)
        elif not (signum == signal.SIGINT and _terminal_tells_it()):
            child.send_signal(signum)

    for name in _SIGNALS:
        if hasattr(signal, name):
            handlers[getattr(signal, name)] = signal.signal(getattr(signal, name), forward)
    try:
        child = subprocess.Popen(words)
        for signum in early:
            child.send_signal(signum)
        status = child.wait()
    except FileNotFoundError as e:
        print(f"cycles-lite: {os.strerror(e.errno or 0)}: {words[0]}", file=sys.stderr)
        return NOT_FOUND
    except OSError as e:
        print(f"cycles-lite: {os.strerror(e.errno or 0)}: {words[0]}", file=sys.stderr)
        return NOT_EXECUTABLE
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return KILLED - status if status < 0 else status


def _terminal_tells_it() -> bool:
    """Whether Ctrl-C goes to the whole foreground group, of which the command is one."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False
