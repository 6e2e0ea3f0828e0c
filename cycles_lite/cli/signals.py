"""How `cycles-lite run` waits for the command that it guards, and passes on the signals that come meanwhile.

The handlers of these signals do nothing, and never raise. The interpreter writes each signal as a byte into a pipe
(`signal.set_wakeup_fd`), and this module reads them there, one after the other, when it is ready for them. Signals that
were ignored from the start, as `nohup` and `&` arrange it, stay ignored.

A signal is sent to this process alone, and then the command must be given it; or to the whole group (Ctrl-C, a hangup,
`timeout`, a supervisor that stops all there is), and then the command has it already. The system does not tell which.
So a witness, another process of the group, reports the signals that it gets: what it got, the command got too.

On Windows there is nothing to pass on. Ctrl-C and Ctrl-Break reach every process of the console, the command among
them, and no other signal can be sent to a process. There the handlers only note what came, and the command is waited
for, whatever it makes of it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from typing import Any, Callable, Iterable

from ..runtime.clock import monotonic
from .output import tell

#: The signals that the command decides about, of those that this system has. SIGBREAK is of Windows.
_NAMES = "SIGTERM SIGHUP SIGINT SIGQUIT SIGUSR1 SIGUSR2 SIGBREAK".split()
_FORWARDED = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

#: Seconds that the witness has to report a signal which it got too.
_GRACE = 0.25


def _nothing(signum: int, frame: Any) -> None:
    """A handler that does nothing: the wakeup pipe gets the signal's number, and that is what is read."""


class Signals:
    """Keeps the signals that are passed on from ending this process, while this context manager is entered.

    With `for_good` they are ignored after that too, because the exit status is known by then and nothing may change it.
    """

    def __init__(self, for_good: bool) -> None:
        self._for_good = for_good
        #: The handlers that were there before.
        self._handlers: dict[int, Any] = {}
        #: The pipes to read: one with the signals that came here, and one with those that came to the witness.
        self._pipes: list[int] = []
        #: The witness's process id; 0 where there is none.
        self._witness = 0
        #: When the witness last reported each signal.
        self._reported: dict[int, float] = {}
        #: The signals that came and were not asked for yet, where there is no pipe.
        self._noted: list[int] = []

    def __enter__(self) -> Signals:
        if not hasattr(os, "fork"):
            self._handle(_FORWARDED, lambda signum, frame: self._noted.append(signum))
            return self
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        # SIGCHLD must come, or the command's end is never heard of. And it must not be ignored, as it may be from the
        # start: the system would forget how the command ended, and the command what becomes of its own children.
        mask = set(before) - {signal.SIGCHLD}
        try:
            self._handle(_FORWARDED, _nothing)
            self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
            self._start_witness(mask)
            self._came, self._comes = os.pipe()
            _report_to(self._comes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._pipes = [self._came, self._told]
        return self

    def _handle(self, signums: Iterable[int], handler: Callable[[int, Any], None]) -> None:
        for signum in signums:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self._handlers[signum] = signal.signal(signum, handler)

    def _start_witness(self, mask: set[Any]) -> None:
        self._told, told = os.pipe()
        alive, self._held = os.pipe()
        self._witness = os.fork()
        if not self._witness:
            try:
                os.close(self._held)
                _report_to(told)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                os.read(alive, 1)  # this returns when the parent has ended, in whatever way: nothing is ever written
            finally:
                os._exit(0)
        os.close(told)
        os.close(alive)

    def __exit__(self, *exception: object) -> None:
        if self._witness:
            os.kill(self._witness, signal.SIGKILL)
            os.waitpid(self._witness, 0)
            signal.set_wakeup_fd(-1)
            for pipe in (self._came, self._comes, self._told, self._held):
                os.close(pipe)
        for signum, handler in self._handlers.items():
            # `for_good` ignores: the interpreter resets handlers well before its end, but leaves ignored what is.
            signal.signal(signum, signal.SIG_IGN if self._for_good else handler)

    def pending(self) -> list[int]:
        """The signals that have come and were not asked for yet."""
        if self._pipes:
            return self._listen(0.0)
        noted, self._noted = self._noted, []
        return noted

    def wait(self, command: subprocess.Popen[bytes]) -> int | None:
        """Pass signals on until the command ends. Its status as `Popen` tells it; None where the system does not."""
        if not self._witness:
            return command.wait()  # none of the handlers raises, so that nothing ends this but the command's end
        # Signals that came while the command was being started may not have reached it, even if the group got them.
        for signum in self.pending():
            _send(command.pid, signum)
        # For each signal that came here, until when the witness may report that it got it too.
        due: dict[int, float] = {}
        while not _has_ended(command):
            left = min(due.values()) - monotonic() if due else None
            for signum in self._listen(None if left is None else max(0.0, left)):
                due.setdefault(signum, monotonic() + _GRACE)
            self._pass_on(command.pid, due)
        return command.returncode

    def _listen(self, timeout: float | None) -> list[int]:
        """Wait for signals and return those that came here; remember those that the witness reports."""
        ready = select.select(self._pipes, [], [], timeout)[0]
        if self._told in ready:
            reports = os.read(self._told, 4096)
            self._reported.update(dict.fromkeys(reports, monotonic()))
            if not reports:  # the pipe is at its end: somebody has ended the witness
                self._pipes.remove(self._told)
        came = os.read(self._came, 4096) if self._came in ready else b""
        return [signum for signum in came if signum != signal.SIGCHLD]

    def _pass_on(self, pid: int, due: dict[int, float]) -> None:
        """Send the command each signal that the witness has not reported in time: it came to this process alone."""
        for signum, end in list(due.items()):
            is_shared = self._reported.get(signum, 0.0) >= end - 2 * _GRACE
            if is_shared or monotonic() >= end:
                del due[signum]
                if not is_shared:
                    _send(pid, signum)


def _report_to(pipe: int) -> None:
    """Let the interpreter write each signal that comes to this process into a pipe."""
    os.set_blocking(pipe, False)
    signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)


def _send(pid: int, signum: int) -> None:
    """Send a signal to the command, which has not been waited for, so that its id is still its own."""
    try:
        os.kill(pid, signum)
    except OSError as e:  # such as a command that has become another user's
        tell(f"signal {signum} cannot be passed on to the command: {e.strerror}")


def _has_ended(command: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended. If so its `returncode` is set, to None where the system does not tell how it
    ended; `Popen.wait` would take that for success."""
    try:
        pid, status = os.waitpid(command.pid, os.WNOHANG)
    except ChildProcessError:
        return True
    if pid:
        command.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return bool(pid)
