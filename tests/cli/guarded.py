"""`cycles-lite run` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

PYTHON = sys.executable


def command(*words, options=()):
    named = ["--estimate", "TOKENS:100", "--action", "tool.email:send", *options]
    return [PYTHON, "-m", "cycles_lite", "run", *named, "--", *words]


def run(*words, options=(), **more):
    return subprocess.run(command(*words, options=options), capture_output=True, timeout=120, text=True, **more)


@contextmanager
def started(script, options=(), **more):
    """`run` around a Python program that says `ready` when it is; hand it a line by `go`. Both are a group."""
    words = command(PYTHON, "-c", script, options=options)
    more = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **more}
    with subprocess.Popen(words, start_new_session=True, **more) as process, ended(process):
        assert process.stdout.readline() == "ready\n"
        yield process


@contextmanager
def ended(process):
    """Whatever is left of a process's group in the end is killed."""
    try:
        yield
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # as it should be
            pass


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def children(pid):
    """The processes that a process has started and not waited for."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def has_children(pid, count):
    return os.path.exists(f"/proc/{pid}/task/{pid}/children") and len(children(pid)) == count
