"""`cycles-lite run`: one word guards a cron job, and the job's own behaviour stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from ledgers import spent

from cycles_lite import Amount, CyclesClient
from cycles_lite.local import Authority

PYTHON = sys.executable


@pytest.fixture
def authority(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/budgets.db"
    monkeypatch.setenv("CYCLES_BASE_URL", url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    monkeypatch.chdir(tmp_path)
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        yield authority
        assert authority.check() == []


def command(*words, options=()):
    named = ["--estimate", "TOKENS:100", "--action", "tool.email:send", *options]
    return [PYTHON, "-m", "cycles_lite", "run", *named, "--", *words]


def run(*words, options=(), **more):
    return subprocess.run(command(*words, options=options), capture_output=True, timeout=120, text=True, **more)


def test_success_commits_the_estimate_and_all_else_passes_through(authority):
    done = run(
        PYTHON, "-c", "import sys; print(sys.stdin.read().upper()); print('err', file=sys.stderr)", input="hello"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO\n", "err\n")
    assert spent(authority) == (100, 0)


@pytest.mark.parametrize(("written", "charged"), [("42", 42), ("TOKENS:7\n", 7), ("0", 0)])
def test_the_cost_may_come_from_a_file(authority, written, charged):
    script = f"open('cost', 'w').write({written!r})"
    assert run(PYTHON, "-c", script, options=["--actual-from", "cost"]).returncode == 0
    assert spent(authority) == (charged, 0)


@pytest.mark.parametrize("script", ["", "open('cost', 'w').write('many')", "open('cost', 'w').write('CREDITS:1')"])
def test_a_cost_that_cannot_be_read_is_the_estimate_and_says_so(authority, script):
    done = run(PYTHON, "-c", script, options=["--actual-from", "cost"])
    assert done.returncode == 0
    assert "the estimate is committed" in done.stderr
    assert spent(authority) == (100, 0)
    with CyclesClient.from_env() as client:
        (row,) = client.list_reservations(include=("committed_metadata",)).reservations
    assert row.committed_metadata == {"actual_source": "estimate"}


@pytest.mark.parametrize("status", [1, 2, 75, 255])
def test_failure_releases_and_the_status_is_the_commands(authority, status):
    assert run(PYTHON, "-c", f"raise SystemExit({status})").returncode == status
    assert spent(authority) == (0, 0)


def test_a_denial_is_75_and_nothing_runs(authority, tmp_path):
    named = ["--estimate", "TOKENS:5000"]
    done = run(PYTHON, "-c", "open('ran', 'w')", options=named)
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "BUDGET_EXCEEDED" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_missing_command_is_127_and_releases(authority):
    done = run("no-such-command-here")
    assert (done.returncode, done.stderr) == (127, "cycles-lite: No such file or directory: no-such-command-here\n")
    assert spent(authority) == (0, 0)


def test_what_cannot_be_executed_is_126(authority, tmp_path):
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    assert run(str(tmp_path / "text")).returncode == 126
    assert spent(authority) == (0, 0)


def test_a_command_killed_by_a_signal_is_as_in_a_shell(authority):
    done = run(PYTHON, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 128 + signal.SIGKILL
    assert spent(authority) == (0, 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_are_the_commands(authority, name):
    """The command decides what a signal does to it, and its exit status is what counts."""
    script = (
        "import signal, sys, threading\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen(
        command(PYTHON, "-c", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, getattr(signal, name))
        assert process.wait(120) == 7
    assert spent(authority) == (0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--estimate", "5"], "UNIT:AMOUNT"),
        (["--action", "send"], "KIND:NAME"),
        (["--action", ":send"], "KIND:NAME"),
        (["--agent", "a b"], "agent"),
    ],
)
def test_bad_arguments_are_one_line_and_2(authority, options, said):
    done = run(PYTHON, "-c", "open('ran', 'w')", options=options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_the_subject_may_be_named(authority):
    authority.set_budget("tenant:acme/agent:cron", Amount.tokens(100))
    assert run(PYTHON, "-c", "", options=["--agent", "cron"]).returncode == 0
    assert {budget.scope: budget.spent for budget in authority.budgets()} == {
        "tenant:acme": 100,
        "tenant:acme/agent:cron": 100,
    }
