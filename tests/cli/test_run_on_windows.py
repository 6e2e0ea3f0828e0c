"""`cycles-lite run` where processes cannot be forked: on Windows, as far as another system can play it.

The console gives Ctrl-C to all its processes, as a terminal's group gets a signal here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from guarded import PYTHON, ended, go
from ledgers import spent

from cycles_lite.cli import main, terminal
from cycles_lite.cli.signals import Signals
from cycles_lite.runtime import system

#: Becomes `run` without the functions that Windows lacks; the first argument is a line that is executed before.
WITHOUT_FORK = """
import os, signal, sys
del os.fork, signal.pthread_sigmask
signal.SIGBREAK = signal.SIGALRM
exec(sys.argv.pop(1))
from cycles_lite.cli import main
sys.exit(main(sys.argv[1:]))
"""

#: Tells of each signal, and ends when it is told to.
LASTING = """
import signal, sys
for name in ("SIGINT", "SIGALRM"):
    signal.signal(getattr(signal, name), lambda number, frame: print("got", flush=True))
print("ready", flush=True)
sys.exit(0 if sys.stdin.readline() == "go\\n" else 1)
"""


def without_fork(*words, before="pass", **more):
    named = ["--estimate", "TOKENS:100", "--action", "tool.email:send", "--"]
    return subprocess.Popen([PYTHON, "-c", WITHOUT_FORK, before, "run", *named, *words], text=True, **more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM], ids=["Ctrl-C", "Ctrl-Break"])
def test_the_command_decides_and_is_waited_for(authority, number):
    """Nothing is released while it goes on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with without_fork(PYTHON, "-c", LASTING, start_new_session=True, **pipes) as process, ended(process):
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            os.killpg(process.pid, number)
            assert process.stdout.readline() == "got\n"
        assert spent(authority) == (0, 100)
        assert process.poll() is None
        go(process)
        assert process.wait(120) == 0
    assert spent(authority) == (100, 0)


def test_interrupted_while_it_reserves(authority, tmp_path):
    """The command does not run, and what was reserved is released."""
    before = (
        "from cycles_lite.cli.run import CyclesClient as C; reserve = C.reserve\n"
        "C.reserve = lambda *a, **k: (os.kill(os.getpid(), signal.SIGINT), reserve(*a, **k))[1]"
    )
    with without_fork(PYTHON, "-c", "open('ran', 'w')", before=before, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "SIGINT came before the command ran" in said
    assert not (tmp_path / "ran").exists()
    assert spent(authority) == (0, 0)


def test_another_program_keeps_its_handlers(monkeypatch):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setenv("CYCLES_MODE", "off")
    before = [signal.getsignal(number) for number in signal.Signals]
    assert main(["run", "--estimate", "TOKENS:1", "--action", "a:b", "--", sys.executable, "-c", ""]) == 0
    assert [signal.getsignal(number) for number in signal.Signals] == before


def test_what_was_ignored_stays_ignored(monkeypatch):
    monkeypatch.delattr(os, "fork")
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with Signals(for_good=False):
            assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler)
    finally:
        signal.signal(signal.SIGUSR2, before)


class Terminal:
    encoding = "cp1252"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, False), ({"WT_SESSION": "1"}, True), ({"TERM": "xterm"}, True)]
)
def test_the_old_terminal_of_windows_has_no_colours_and_no_blocks(monkeypatch, variables, coloured):
    for name in ("TERM", "WT_SESSION", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(system, "WINDOWS", True)
    assert terminal.is_coloured(Terminal()) is coloured
    assert terminal.look_of(Terminal()) is terminal.ASCII
