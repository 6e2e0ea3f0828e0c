"""`cycles-lite run`: one word guards a cron job, and the job's own behaviour stays as it was."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess

import pytest
from guarded import PYTHON, command, run
from ledgers import spent

from cycles_lite import Amount
from cycles_lite.cli import output


def test_success_commits_the_estimate_and_all_else_passes_through(authority):
    done = run(
        PYTHON, "-c", "import sys; print(sys.stdin.read().upper()); print('err', file=sys.stderr)", input="hello"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO\n", "err\n")
    assert spent(authority) == (100, 0)


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


# ---- Statuses of its own ----


@pytest.fixture
def server(authority, monkeypatch):
    """The authority behind HTTP, with faults on demand."""
    server_module = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    testing = pytest.importorskip("cycles_lite.testing")
    with testing.TestAuthority(authority.url) as faulty, server_module.Server(faulty) as server, server.in_background():
        monkeypatch.setenv("CYCLES_BASE_URL", server.url)
        monkeypatch.setenv("CYCLES_API_KEY", authority.create_key("acme").key_secret)
        monkeypatch.setenv("CYCLES_FLUSH_TIMEOUT", "0.1")
        yield faulty


def refused(status, said):
    """Nothing runs, and one line says why."""
    done = run(PYTHON, "-c", "open('ran', 'w')")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done
    assert said in done.stderr
    assert not os.path.exists("ran")


def test_an_authority_that_cannot_be_reached_is_69(authority, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("CYCLES_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("CYCLES_API_KEY", "key")
        refused(69, "no answer")
        monkeypatch.setenv("CYCLES_ON_UNAVAILABLE", "allow")
        monkeypatch.setenv("CYCLES_FLUSH_TIMEOUT", "0.1")
        assert run(PYTHON, "-c", "open('ran', 'w')").returncode == 0
    assert os.path.exists("ran")


@pytest.mark.parametrize(("status", "code"), [(503, "INTERNAL_ERROR"), (429, "LIMIT_EXCEEDED")])
def test_an_authority_that_gives_no_usable_answer_is_69(server, authority, status, code):
    server.fail_next("create_reservation", times=9, status=status, code=code)
    refused(69, code)
    assert spent(authority) == (0, 0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CYCLES_API_KEY", "wrong", "UNAUTHORIZED"),
        ("CYCLES_TENANT", "other-co", "FORBIDDEN"),
        ("CYCLES_BASE_URL", "sqlite:none.db", "cycles-lite budget set"),
        ("CYCLES_READ_TIMEOUT", "soon", "CYCLES_READ_TIMEOUT"),
    ],
)
def test_a_wrong_configuration_is_78(server, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    refused(78, said)


def test_a_commit_that_is_pending_says_so_and_the_status_stays(server, authority):
    server.fail_next("commit_reservation", times=99, status=503)
    done = run(PYTHON, "-c", "")
    assert done.returncode == 0
    assert "the cost is not settled yet" in done.stderr
    assert "kept on disk" in done.stderr
    server._faults.clear()
    listing = subprocess.run(
        [PYTHON, "-m", "cycles_lite", "journal", "replay"], capture_output=True, timeout=120, text=True
    )
    assert listing.stdout == "everything is settled\n"
    assert spent(authority) == (100, 0)


def test_a_commit_that_is_refused_says_so_and_the_status_stays(server):
    server.fail_next("commit_reservation", status=409, code="BUDGET_EXCEEDED")
    done = run(PYTHON, "-c", "")
    assert done.returncode == 0
    assert "cycles-lite: the cost was refused: BUDGET_EXCEEDED" in done.stderr


def test_help_has_the_table_of_statuses(monkeypatch):
    """So has the documentation, which is made of the same table."""
    monkeypatch.setenv("COLUMNS", "200")  # each row is a line then
    done = subprocess.run([PYTHON, "-m", "cycles_lite", "run", "--help"], capture_output=True, timeout=120, text=True)
    for status, meaning in output.OF_RUN.items():
        assert re.search(rf"^  {re.escape(status)} +{re.escape(meaning)}$", done.stdout, re.MULTILINE)


# ---- What the command is given ----


def test_open_files_are_the_commands(authority, tmp_path):
    """As with a shell's `3>file`."""
    with open(tmp_path / "third", "w") as file:
        os.set_inheritable(file.fileno(), True)
        script = f"import os; os.write({file.fileno()}, b'hello')"
        assert run(PYTHON, "-c", script, close_fds=False).returncode == 0
    assert (tmp_path / "third").read_text() == "hello"


CLOSED = (
    "import os, sys; print([n for n in range(3) if not os.path.exists(f'/proc/self/fd/{n}')], file=open('out', 'w'))"
)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux shows open files so")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_closed_for_the_command_and_its_success_counts(authority, tmp_path, closed):
    """And none of them becomes a file or a connection of `run` itself."""
    script = CLOSED + "; sys.exit(0)"
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(PYTHON, "-S", "-c", script)]
    assert subprocess.run(shell, timeout=120, input=b"").returncode == 0
    numbers = [{"<": 0, ">": 1, "2": 2}[word[0]] for word in closed.split()]
    assert (tmp_path / "out").read_text() == f"{numbers}\n"
    assert spent(authority) == (100, 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
@pytest.mark.parametrize(("words", "status", "amounts"), [(["true"], 0, (100, 0)), (["sh", "-c", "exit 3"], 3, (0, 0))])
def test_full_streams_change_nothing(authority, words, status, amounts):
    with open("/dev/full", "w") as full:
        options = ["--actual-from", "none"]
        done = subprocess.run(command(*words, options=options), stdout=full, stderr=full, timeout=120)
        assert done.returncode == status
        denied = subprocess.run(command("true", options=["--estimate", "TOKENS:5000"]), stderr=full, timeout=120)
        assert denied.returncode == 75
    assert spent(authority) == amounts
