"""The command line wherever it is started: with other encodings, streams that take nothing, a folder that is gone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from guarded import go, started
from implementation import IS_PYPY
from ledgers import spent

pytestmark = pytest.mark.thorough

PYTHON = sys.executable

#: Names outside ASCII, and one that is no text at all.
BOOKS, ODD = "bücher.db", os.fsdecode(b"b\xff\xfe.db")

ENCODINGS = {
    "utf-8": {"PYTHONUTF8": "1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def cli(*arguments, **more):
    """A command's status, and what it wrote, as bytes."""
    done = subprocess.run([PYTHON, "-m", "cycles_lite", *arguments], capture_output=True, timeout=120, **more)
    assert b"Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(params=list(ENCODINGS))
def encoded(request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    for name, value in ENCODINGS[request.param].items():
        monkeypatch.setenv(name, value)
    return request.param


# ---- Encodings ----


@pytest.mark.parametrize("name", [BOOKS, ODD], ids=["text", "no text"])
def test_a_budget_files_name_may_be_anything(encoded, tmp_path, monkeypatch, name):
    """Made, reserved from, looked at: by path and by URL it is the same file."""
    if sys.platform == "darwin" and name == ODD:
        pytest.skip("the file system takes text alone")
    assert cli("budget", "set", "tenant:acme", "TOKENS:1000", "--db", name).returncode == 0
    assert os.path.exists(name)
    monkeypatch.setenv("CYCLES_BASE_URL", "sqlite:" + name)
    monkeypatch.setenv("CYCLES_JOURNAL_DIR", name + ".journal")
    done = cli("run", "--estimate", "TOKENS:10", "--action", "a:b", "--", "echo", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, os.fsencode(name) + b"\n", b"")
    for command in (["balances"], ["check"], ["journal", "list"]):
        done = cli(*command)
        assert (done.returncode, done.stderr) == (0, b""), command
    assert b"990 of 1,000 tokens left" in cli("budget", "list", "--db", name).stdout


def test_a_journals_name_may_be_anything(encoded, tmp_path, monkeypatch):
    """What could not be settled is found there again, listed and replayed."""
    assert cli("budget", "set", "tenant:acme", "TOKENS:1000", "--db", BOOKS).returncode == 0
    monkeypatch.setenv("CYCLES_BASE_URL", "sqlite:" + BOOKS)
    monkeypatch.setenv("CYCLES_JOURNAL_DIR", "jürnal")
    monkeypatch.setenv("CYCLES_FLUSH_TIMEOUT", "0.1")
    with started("print('ready', flush=True); input()", stderr=subprocess.DEVNULL) as process:
        os.rename(BOOKS, "away")
        go(process)
        assert process.wait(120) == 0
        os.rename("away", BOOKS)
    assert os.listdir("jürnal")
    listed = cli("journal", "list")
    assert re.search(rb"  pending  100 tokens +\d+ s  commit ", listed.stdout)
    assert cli("journal", "replay").stdout == b"everything is settled\n"
    assert b"900 of 1,000 tokens left" in cli("balances").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["budget", "list", "--db", "ü.db"],
        ["demo", "ü"],
        ["ü"],
        ["journal", "list", "ü"],
        ["release", "ü"],
        ["key", "revoke", os.fsdecode(b"\xff")],
        ["key", "create", "acme", "--name", os.fsdecode(b"\xff")],
        ["run", "--estimate", "TOKENS:1", "--action", "a:ü", "--actual-from", "/dev/null/ü", "--", "true"],
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_one_line_whatever_it_names(encoded, authority, arguments):
    done = cli(*arguments)
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count(b"\n")) == (b"", 1), done
    assert done.stderr.startswith(b"cycles-lite")


# ---- Streams that take nothing ----

COMMANDS = ["budget list", "check", "demo --json", "key create acme", "run --help"]

#: For each way in which standard output takes nothing: how the shell arranges it, and what becomes of the command.
DEAF = {
    "closed": (">&-", 74, b"cycles-lite: standard output cannot be written: Bad file descriptor\n"),
    "full": (">/dev/full", 74, b"cycles-lite: standard output cannot be written: No space left on device\n"),
    "full at once": (">/dev/full", 74, b"cycles-lite: standard output cannot be written: No space left on device\n"),
    "both closed": (">&- 2>&-", 74, b""),
    "both full": (">/dev/full 2>/dev/full", 74, b""),
    "all closed": ("<&- >&- 2>&-", 74, b""),
}


def shell(arguments, redirections, **more):
    words = ["sh", "-c", f'exec "$@" {redirections}', "sh", PYTHON, "-m", "cycles_lite", *shlex.split(arguments)]
    return subprocess.run(words, stderr=subprocess.PIPE, timeout=120, **more)


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")


@needs_full
@pytest.mark.parametrize("way", list(DEAF))
@pytest.mark.parametrize("arguments", COMMANDS)
def test_output_that_cannot_be_written_is_a_line_and_74(authority, arguments, way):
    redirections, status, said = DEAF[way]
    unbuffered = "1" if way == "full at once" else ""
    done = shell(arguments, redirections, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (status, said)


@needs_full
@pytest.mark.parametrize("redirections", [">&-", ">/dev/full", "2>&-", "2>/dev/full"])
def test_where_nothing_is_written_nothing_is_wrong(authority, redirections):
    assert shell("budget history tenant:acme", redirections, stdout=subprocess.DEVNULL).returncode == 0
    assert shell("key list --json", redirections, stdout=subprocess.DEVNULL).returncode == 0


@needs_full
@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("arguments", ["nonsense", "budget list --db none.db", "release nothing"])
def test_an_error_that_cannot_be_told_is_its_status_all_the_same(authority, arguments, redirections):
    assert shell(arguments, redirections, stdout=subprocess.DEVNULL).returncode == 2


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_reader_that_has_enough_is_no_error(authority, arguments):
    """As `| head`: nothing is said, and the status is 0."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = shell(arguments, "", stdout=closed)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- A folder that is gone ----


def in_a_folder_that_is_gone(tmp_path, *arguments, **more):
    if IS_PYPY:
        pytest.skip("PyPy itself does not start there")
    words = [PYTHON, "-m", "cycles_lite", *arguments]
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    return subprocess.run(
        ["sh", "-c", script, "sh", *words], cwd=str(tmp_path), capture_output=True, timeout=120, text=True, **more
    )


RUN = ("run", "--estimate", "TOKENS:5", "--action", "a:b", "--", "echo", "ran")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["budget", "list", "--db", "b.db"], 2),
        (["budget", "set", "tenant:acme", "TOKENS:5", "--db", "b.db"], 2),
        (["balances"], 2),
        (["check"], 2),
        (["journal", "replay"], 2),
        (RUN, 78),
    ],
    ids=lambda value: " ".join(value) if not isinstance(value, int) else "",
)
def test_relative_names_in_a_folder_that_is_gone_are_one_line(tmp_path, monkeypatch, arguments, status):
    monkeypatch.setenv("CYCLES_BASE_URL", "sqlite:b.db")
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    done = in_a_folder_that_is_gone(tmp_path, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert "the current folder is" in done.stderr


def test_a_relative_journal_in_a_folder_that_is_gone_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CYCLES_JOURNAL_DIR", "journal")
    done = in_a_folder_that_is_gone(tmp_path, "journal", "list")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the current folder is gone" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["balances"], ["budget", "list"], ["check"], ["demo"], ["--help"], ["journal", "list"], RUN],
    ids=" ".join,
)
def test_absolute_names_do_not_need_the_folder(authority, tmp_path, arguments):
    done = in_a_folder_that_is_gone(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments is RUN:
        assert spent(authority) == (5, 0)
