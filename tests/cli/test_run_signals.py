"""Signals and `cycles-lite run`: the command gets each of them once, and no interruption loses a reservation."""

from __future__ import annotations

import os
import re
import select
import signal
import sqlite3
import subprocess
import time

import pytest
from guarded import PYTHON, command, ended, go, has_children, run, started
from implementation import IS_PYPY
from ledgers import spent

from cycles_lite.cli import signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no signals to pass on")

#: Counts a signal until SIGUSR2 comes.
COUNTING = """
import signal, sys
got = []
signal.signal(signal.{}, lambda number, frame: (got.append(number), print("got", flush=True)))
signal.signal(signal.SIGUSR2, lambda number, frame: (print(len(got), flush=True), sys.exit(7)))
print("ready", flush=True)
while True:
    signal.pause()
"""

#: Gives the process its terminal, as a shell does, and becomes another program.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_are_the_commands(authority, name):
    """The command decides what a signal does to it, and its exit status is what counts."""
    script = (
        "import signal, sys\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with started(script, stdin=subprocess.DEVNULL) as process:
        os.kill(process.pid, getattr(signal, name))
        assert process.wait(120) == 7
    assert spent(authority) == (0, 0)


def send_to_run(pid, number):
    os.kill(pid, number)


def send_to_all(pid, number):
    """As a supervisor stops a job."""
    os.killpg(pid, number)


def send_to_both(pid, number):
    """As `timeout` does."""
    os.kill(pid, number)
    os.killpg(pid, number)


def send_one_by_one(pid, number):
    """As systemd stops a unit: the signal goes to each process that there is."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for process in [*map(int, file.read().split()), pid]:
            os.kill(process, number)


@pytest.mark.parametrize("send", [send_to_run, send_to_all, send_to_both, send_one_by_one])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_the_command_gets_a_signal_once(authority, name, send):
    """Whoever sends it. `run` takes one after the other, so that when SIGUSR2 comes nothing is still to come."""

    def attempt():
        with started(COUNTING.format(name)) as process:
            send(process.pid, getattr(signal, name))
            assert process.stdout.readline() == "got\n"
            return count_of(process)

    assert 1 in attempts(attempt)
    assert spent(authority) == (0, 0)


def attempts(attempt):
    """What up to three attempts find. Where a process of the group is not run for longer than the witness has, the
    command gets a signal twice: a busy machine may do that to a test, but not to each of three."""
    return (attempt() for _ in range(3))


def count_of(process):
    """How many signals the command has got, which ends."""
    os.kill(process.pid, signal.SIGUSR2)
    count = process.stdout.read().split()[-1]
    assert process.wait(120) == 7
    return int(count)


@pytest.mark.parametrize("key", [b"\x03", b"\x1c"], ids=["Ctrl-C", "Ctrl-\\"])
@pytest.mark.parametrize("stdin", ["terminal", "elsewhere"])
def test_the_command_gets_what_is_typed_once(authority, key, stdin):
    """The terminal sends it to all of the foreground group, also where standard input is not the terminal."""
    script = COUNTING.format("SIGINT" if key == b"\x03" else "SIGQUIT")
    assert 1 in attempts(lambda: count_of_typed(script, key, stdin))


def count_of_typed(script, key, stdin):
    controller, terminal = os.openpty()
    with open(controller, "rb", buffering=0) as screen, open(terminal, "r+b", buffering=0) as terminal:
        words = [PYTHON, "-c", ON_A_TERMINAL, *command(PYTHON, "-c", script)]
        with subprocess.Popen(
            words,
            stdin=terminal if stdin == "terminal" else subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        ) as process, ended(process):
            read_until(screen, b"ready")
            os.write(controller, key)
            read_until(screen, b"got")
            os.kill(process.pid, signal.SIGUSR2)
            count = read_until(screen, rb"(\d)\r\n").group(1)
            assert process.wait(120) == 7
            return int(count)


def read_until(screen, pattern):
    seen = b""
    while not re.search(pattern, seen):
        assert select.select([screen], [], [], 60)[0], seen
        seen += screen.read(1024)
    return re.search(pattern, seen)


def test_signals_that_follow_each_other_all_come(authority):
    """One to the group does not stand for those that are sent to `run` alone later on."""

    def attempt():
        with started(COUNTING.format("SIGUSR1")) as process:
            for send in (send_to_all, send_to_run, send_to_run):
                send(process.pid, signal.SIGUSR1)
                assert process.stdout.readline() == "got\n"
                wait_until(is_idle, process.pid)  # the system keeps one signal of a kind for a process, and no second
                time.sleep(2 * signals._GRACE)  # what comes sooner counts as the same, as it must for `timeout`
            return count_of(process)

    assert 3 in attempts(attempt)


def is_idle(pid):
    """Whether a process waits for something, and no signal for the process."""
    with open(f"/proc/{pid}/status") as file:
        told = dict(line.split(":\t", 1) for line in file)
    return told["State"][0] == "S" and int(told["ShdPnd"], 16) == int(told["SigPnd"], 16) == 0


# ---- What is inherited ----

REPORT = "import signal, sys; print(signal.getsignal(signal.{}).name); sys.exit(3)"


def ignoring(*names):
    def prepare():
        for name in names:
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    return prepare


def blocking_sigchld():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})


@pytest.mark.parametrize("prepare", [ignoring("SIGCHLD"), blocking_sigchld], ids=["ignored", "blocked"])
def test_the_status_is_known_whatever_was_done_to_sigchld(authority, prepare):
    """A failed command is not committed because the system was told to forget how it ended."""
    done = run(PYTHON, "-c", REPORT.format("SIGCHLD"), preexec_fn=prepare)
    assert (done.returncode, done.stdout, done.stderr) == (3, "SIG_DFL\n", "")
    assert spent(authority) == (0, 0)
    assert run("true", preexec_fn=prepare).returncode == 0
    assert spent(authority) == (100, 0)


def test_a_status_that_is_unknown_is_no_success():
    program = """
import os, subprocess, sys
from cycles_lite.cli.signals import Signals
with Signals(for_good=False) as signals:
    command = subprocess.Popen(["true"])
    os.waitpid(command.pid, 0)
    sys.exit(signals.wait(command) is not None)
"""
    assert subprocess.run([PYTHON, "-c", program], timeout=120).returncode == 0


@pytest.mark.skipif(IS_PYPY, reason="PyPy does not tell which signals it was started to ignore")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"])
def test_what_was_ignored_stays_ignored(authority, name):
    """As `nohup` and the shell's `&` arrange it: neither `run` nor the command ends."""
    script = (
        f"import signal; print('ready', flush=True); input(); print(signal.getsignal(signal.{name}).name, flush=True)"
    )
    with started(script, preexec_fn=ignoring(name)) as process:
        os.killpg(process.pid, getattr(signal, name))
        os.kill(process.pid, getattr(signal, name))
        go(process)
        assert process.stdout.read() == "SIG_IGN\n"
        assert process.wait(120) == 0
    assert spent(authority) == (100, 0)


def test_a_command_of_another_user_is_waited_for(authority):
    """What may not be passed on is said, and is no reason to leave the command alone."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user, and then it may signal everybody")
    script = "import os; os.setuid(65534); print('ready', flush=True); input()"
    # Root may signal anybody; without that right it is as everybody else.
    drop = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 5); os.execv(sys.argv[1], sys.argv[1:])"
    words = [PYTHON, "-c", drop, *command(PYTHON, "-c", script)]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process, ended(process):
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        said = process.stderr.readline()
        go(process)
        assert (process.wait(120), said) == (
            0,
            "cycles-lite: signal 15 cannot be passed on to the command: Operation not permitted\n",
        )


# ---- Interrupted at any moment ----


def wait_until(condition, *arguments):
    deadline = time.monotonic() + 60
    while not condition(*arguments):
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Lock:
    """Holds up every reservation and commit."""

    def __init__(self, folder):
        self._db = sqlite3.connect(str(folder / "budgets.db"), isolation_level=None)

    def __enter__(self):
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exception):
        self._db.execute("ROLLBACK")
        self._db.close()


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGINT", "SIGTERM", "SIGHUP"]])
def test_interrupted_while_it_reserves(authority, tmp_path, names, monkeypatch):
    """The command does not run, and what was reserved is released."""
    monkeypatch.setenv("CYCLES_READ_TIMEOUT", "60")
    words = command(PYTHON, "-c", "open('ran', 'w')")
    with Lock(tmp_path):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        wait_until(has_children, process.pid, 1)  # the witness, which is there before anything is reserved
        for name in names:
            os.kill(process.pid, getattr(signal, name))
    said = process.communicate(timeout=120)[1]
    assert process.returncode in [128 + getattr(signal, name) for name in names]
    assert "came before the command ran" in said
    assert not (tmp_path / "ran").exists()
    assert spent(authority) == (0, 0)


def test_interrupted_while_it_commits(authority, tmp_path, monkeypatch):
    """The command has succeeded, and that is what counts."""
    monkeypatch.setenv("CYCLES_READ_TIMEOUT", "60")
    with started("print('ready', flush=True); input()") as process:
        with Lock(tmp_path):
            go(process)
            wait_until(has_children, process.pid, 1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(process.pid, number)
        assert process.wait(120) == 0
    assert spent(authority) == (100, 0)


def test_interrupted_while_the_interpreter_ends():
    """Its own handlers are gone by then."""
    program = """
import os, signal
from cycles_lite.cli.signals import Signals

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

with Signals(for_good=True):
    late = Late()
"""
    assert subprocess.run([PYTHON, "-c", program], timeout=120).returncode == 0


def test_another_program_keeps_its_handlers():
    program = """
import signal
from cycles_lite.cli import main
before = [signal.getsignal(number) for number in signal.Signals]
assert main(["run", "--estimate", "TOKENS:1", "--action", "a:b", "--", "true"]) == 0
assert [signal.getsignal(number) for number in signal.Signals] == before
assert signal.set_wakeup_fd(-1) == -1
"""
    assert (
        subprocess.run([PYTHON, "-c", program], env={**os.environ, "CYCLES_MODE": "off"}, timeout=120).returncode == 0
    )


def test_interrupted_at_any_moment(authority):
    """What was spent is what the status says, and nothing stays reserved."""
    start = time.monotonic()
    assert run("true").returncode == 0
    takes = time.monotonic() - start
    for part in range(12):
        before = spent(authority)[0]
        with subprocess.Popen(command("true"), stderr=subprocess.DEVNULL, start_new_session=True) as process:
            time.sleep(takes * part / 12)
            (os.killpg if part % 2 else os.kill)(process.pid, signal.SIGTERM)
        assert spent(authority) == (before + 100 * (process.returncode == 0), 0), (part, process.returncode)


def test_ended_by_force_it_leaves_no_witness(authority):
    with started("print('ready', flush=True); input()") as process:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            pids = file.read().split()
        process.kill()
        process.wait(120)
        go(process)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
