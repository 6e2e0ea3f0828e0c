"""`run --actual-from FILE`: what the command wrote there, and nothing that lay there before."""

from __future__ import annotations

import os

import pytest
from guarded import PYTHON, run
from ledgers import spent

from cycles_lite import CyclesClient

OPTIONS = ("--actual-from", "cost")


@pytest.mark.parametrize(("written", "charged"), [("42", 42), ("TOKENS:7\n", 7), ("0", 0)])
def test_the_cost_may_come_from_a_file(authority, written, charged):
    script = f"open('cost', 'w').write({written!r})"
    assert run(PYTHON, "-c", script, options=OPTIONS).returncode == 0
    assert spent(authority) == (charged, 0)


@pytest.mark.parametrize("script", ["", "open('cost', 'w').write('many')", "open('cost', 'w').write('CREDITS:1')"])
def test_a_cost_that_cannot_be_read_is_the_estimate_and_says_so(authority, script):
    done = run(PYTHON, "-c", script, options=OPTIONS)
    assert done.returncode == 0
    assert "the estimate is committed" in done.stderr
    assert spent(authority) == (100, 0)
    with CyclesClient.from_env() as client:
        (row,) = client.list_reservations(include=("committed_metadata",)).reservations
    assert row.committed_metadata == {"actual_source": "estimate"}


def is_the_estimate(done, authority, said):
    """The command has succeeded, but what it cost is unknown."""
    assert done.returncode == 0
    assert "the estimate is committed" in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert spent(authority) == (100, 0)


def test_a_cost_of_an_earlier_run_is_not_this_runs(authority, tmp_path):
    (tmp_path / "cost").write_text("42")
    is_the_estimate(run("true", options=OPTIONS), authority, "from before the command ran")


def test_a_failed_run_takes_no_cost(authority, tmp_path):
    assert run(PYTHON, "-c", "open('cost', 'w').write('7'); raise SystemExit(1)", options=OPTIONS).returncode == 1
    assert spent(authority) == (0, 0)


@pytest.mark.parametrize(
    "script",
    [
        "open('cost', 'w').write('43')",
        "open('new', 'w').write('43'); os.utime('new', ns=(before.st_mtime_ns,) * 2); os.replace('new', 'cost')",
        "os.unlink('cost'); open('cost', 'w').write('43')",
    ],
    ids=["written over", "replaced", "removed and made"],
)
def test_a_file_that_was_there_counts_when_it_is_written(authority, tmp_path, script):
    (tmp_path / "cost").write_text("42")
    script = "import os; before = os.stat('cost'); " + script
    assert run(PYTHON, "-c", script, options=OPTIONS).returncode == 0
    assert spent(authority) == (43, 0)


def make(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink("/dev/zero", path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_before_anything_is_reserved(authority, tmp_path, kind):
    """A pipe would be waited for, and a device read for ever."""
    make(kind, str(tmp_path / "cost"))
    done = run(PYTHON, "-c", "open('ran', 'w')", options=OPTIONS)
    assert (done.returncode, done.stderr) == (2, "cycles-lite: --actual-from: cost is not a regular file\n")
    assert not (tmp_path / "ran").exists()
    with CyclesClient.from_env() as client:
        assert list(client.iter_reservations()) == []


@pytest.mark.parametrize(
    "script",
    ["os.mkfifo('cost')", "os.mkdir('cost')", "os.symlink('/dev/zero', 'cost')"],
    ids=["pipe", "folder", "device"],
)
def test_what_the_command_made_is_not_waited_for_either(authority, script):
    is_the_estimate(run(PYTHON, "-c", "import os; " + script, options=OPTIONS), authority, "is not a regular file")


def test_a_path_through_a_file_is_refused(authority, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("true", options=["--actual-from", "file/cost"])
    assert done.returncode == 2
    assert "cannot be looked at" in done.stderr


def test_a_huge_file_is_not_read_whole(authority):
    """A sparse one of a terabyte."""
    script = "file = open('cost', 'w'); file.write('42'); file.truncate(2 ** 40); file.close()"
    is_the_estimate(run(PYTHON, "-c", script, options=OPTIONS), authority, "longer than 1024 bytes")


@pytest.mark.parametrize("content", [b"\xff", b"9" * 1000, b"-1", b"1.5", b"TOKENS:1:2"])
def test_what_is_no_amount_is_the_estimate(authority, content):
    script = f"import pathlib; pathlib.Path('cost').write_bytes({content!r})"
    is_the_estimate(run(PYTHON, "-c", script, options=OPTIONS), authority, "cannot be read")
