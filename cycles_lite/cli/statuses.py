"""The exit statuses of `cycles-lite`, all of them. `--help` shows these tables, and so does the documentation."""

from __future__ import annotations

from typing import Iterable, Tuple

DONE, WRONG, FAILED = 0, 1, 2
UNAVAILABLE, UNKNOWN, NO_OUTPUT, DENIED, MISCONFIGURED = 69, 70, 74, 75, 78  # of <sysexits.h>
NOT_EXECUTABLE, NOT_FOUND, KILLED, INTERRUPTED = 126, 127, 128, 130  # of shells; 128 is only a beginning

_Row = Tuple[str, str]

#: The statuses of every command but `run`.
COMMON: tuple[_Row, ...] = (
    (f"{DONE}", "done; also where the reader of the output has had enough, such as head"),
    (f"{WRONG}", "check, demo and journal replay: something is wrong, or left to settle"),
    (f"{FAILED}", "the arguments cannot be used, or what they ask for cannot be done"),
    (f"{NO_OUTPUT}", "standard output is closed or full"),
    (f"{INTERRUPTED}", "Ctrl-C"),
)

#: The statuses of `run`, beside those of the command that it runs.
OF_RUN: tuple[_Row, ...] = (
    ("any", "the command's own: 0 is committed, all else is released"),
    (f"{FAILED}", "the arguments cannot be used, or there is no such budget; nothing ran"),
    (f"{UNAVAILABLE}", "the authority cannot be reached, or gives no usable answer; nothing ran"),
    (f"{UNKNOWN}", "how the command ended is unknown; released"),
    (f"{DENIED}", "the budget says no; nothing ran"),
    (f"{MISCONFIGURED}", "the configuration or the API key is wrong; nothing ran"),
    (f"{NOT_EXECUTABLE}", "the command cannot be executed; released"),
    (f"{NOT_FOUND}", "the command is not found; released"),
    (f"{KILLED}+N", "signal N ended the command, or came before it ran; released"),
)


def epilog(rows: Iterable[_Row]) -> str:
    """A table as `--help` shows it."""
    return "exit status:\n" + "\n".join(f"  {status:<7} {meaning}" for status, meaning in rows)
