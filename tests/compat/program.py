"""What the programs of these tests have in common. Imported in their processes, never by pytest's."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback

from cycles_lite import Action, Amount, CyclesClient

#: Seconds after which a program, or a child of it, shows where it stands and ends.
PATIENCE = 60

ACTION = Action("llm.completion", "gpt-4o")


def arm():
    """Alarms are not inherited, so that children call this too."""
    signal.alarm(PATIENCE)


faulthandler.register(signal.SIGALRM, chain=True)
arm()


def new_client(**changes):
    """A client that the environment describes."""
    return CyclesClient.from_env(**changes)


def reserve(client, **options):
    return client.reserve(Amount.tokens(10), ACTION, **options)


def spend(client, tokens=1, **options):
    """One guarded piece of work."""
    with reserve(client, **options) as guard:
        settlement = guard.commit(Amount.tokens(tokens))
    assert settlement.status.value == "COMMITTED", settlement
    return guard


def fork(work):
    """Run `work` in a forked child, which ends by `os._exit`; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        arm()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def join(*pids):
    """Wait for children, which must end well."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with {status}"


def wait_until(condition):
    """For what happens elsewhere: looks every few milliseconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, condition
        threading.Event().wait(0.005)


def say(line):
    print(line, flush=True)


def hear():
    return sys.stdin.readline().strip()
