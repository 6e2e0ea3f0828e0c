"""Programs in processes of their own: started, talked to, and ended with all that they have forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

import serving

HERE = os.path.dirname(os.path.abspath(__file__))

#: Seconds after which a test gives up on a program.
PATIENCE = 90.0

#: Warnings are errors in the programs too. Python 3.12 and later warn of each fork of a process that has threads: to
#: fork while there are some is what several of these programs are for.
WARNINGS = "error,ignore:This process:DeprecationWarning"


class Ended(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


class Program:
    """A running program. Its standard error goes to a file, so that it never waits for us."""

    def __init__(self, process, errors):
        self._process, self._errors = process, errors

    @property
    def pid(self):
        return self._process.pid

    def hear(self):
        """The next line that it prints, without its end; what there is when it ends or the patience does."""
        watch = threading.Timer(PATIENCE, self.kill)
        watch.start()
        try:
            return self._process.stdout.readline().rstrip("\n")
        finally:
            watch.cancel()
            watch.join()

    def expect(self, line):
        heard = self.hear()
        assert heard == line, (heard, self.errors)

    def say(self, line="go"):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def signal(self, number):
        self._process.send_signal(number)

    @property
    def errors(self):
        """What it has complained about so far."""
        self._errors.seek(0)
        return self._errors.read()

    def end(self, within=PATIENCE):
        """Wait for it. Fails if it takes longer."""
        start = time.monotonic()
        try:
            out, _ = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.communicate()
            raise AssertionError("it hangs:\n" + self.errors) from None
        took = time.monotonic() - start
        assert took < within, f"ended after {took:.1f} s\n{self.errors}"
        return Ended(self._process.returncode, out, self.errors)

    def kill(self):
        """End it and what it has forked."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@contextmanager
def command(arguments, folder, **environment):
    """A Python program, in a session of its own. It can import the package and the modules of these tests."""
    path = os.pathsep.join([serving.ROOT, os.path.join(serving.ROOT, "tests"), HERE, str(folder)])
    whole = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": WARNINGS, **environment}
    with open(os.path.join(str(folder), "program-stderr.txt"), "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=whole,
            cwd=str(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            universal_newlines=True,
            start_new_session=True,
        )
        program = Program(process, errors)
        try:
            yield program
        finally:
            program.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def running(text, folder, **environment):
    """The text of a program, as a process."""
    return command(["-c", text], folder, **environment)


def run(text, folder, **environment):
    """What a program prints that runs to its end, and complains of nothing."""
    with running(text, folder, **environment) as program:
        ended = program.end()
    assert (ended.status, ended.err) == (0, ""), ended
    return ended.out


def ended_well(program):
    """What else it prints, once it has ended and complained of nothing."""
    ended = program.end()
    assert (ended.status, ended.err) == (0, ""), ended
    return ended.out
