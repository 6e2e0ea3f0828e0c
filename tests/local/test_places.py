"""A budget file that is removed or replaced while it is open: noticed, and neither file is harmed."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading

import pytest

from cycles_lite.errors import TransportError
from cycles_lite.local import Authority, files
from cycles_lite.protocol.values import Amount

from .helpers import Bench, connections_to
from .processes import PATIENCE, run_threads, start


@pytest.fixture
def used(url):
    """An authority in the midst of its work: what it did is in the WAL alone."""
    with Bench(url, validates=False) as made:
        made.budget(amount=1000)
        made.event(10)
        yield made


def backup(path, name="copy.db"):
    """A copy as SQLite makes it, of what is in the file now."""
    copy = os.path.join(os.path.dirname(path), name)
    with sqlite3.connect("file:" + path + "?mode=ro", uri=True) as source, sqlite3.connect(copy) as target:
        getattr(source, "backup", lambda target: target.executescript("".join(source.iterdump())))(target)
    source.close()
    target.close()
    return copy


def spent(path):
    """What a process that knows nothing of the others finds in a file."""
    with Authority("sqlite://" + path, create=False) as authority:
        assert authority.check() == []
        return authority.budgets()[0].spent


OPERATIONS = {"event": lambda bench: bench.event(5), "balances": lambda bench: bench.balances()}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_backup_that_is_restored_over_it(used, path, operation):
    """Told once; then the client works on the new file, which has nothing of the old one's WAL in it."""
    copy = backup(path)
    used.event(100)
    os.replace(copy, path)
    with pytest.raises(TransportError, match="was replaced by another while it was open; nothing was written"):
        OPERATIONS[operation](used)
    assert used.amounts() == (990, 0, 10, 0, False)
    assert used.event(5).status == 201
    assert used.authority.check() == []
    used.authority.shutdown()
    assert spent(path) == 15


def test_another_authority_of_this_process_opens_the_new_file_first(used, path):
    """It must not take the old one's WAL for the new one's."""
    copy = backup(path)
    used.event(100)
    os.replace(copy, path)
    assert spent(path) == 10
    with Authority("sqlite://" + path) as other:
        assert other.budgets()[0].spent == 10
        with pytest.raises(TransportError, match="replaced"):
            used.event(5)
        used.event(5)
        assert other.budgets()[0].spent == 15
    assert used.authority.check() == []


def test_a_file_that_was_removed(used, path):
    """Told each time, for as long as there is none; and a new one in its place is found like any other."""
    os.remove(path)
    for operate in (*OPERATIONS.values(), *OPERATIONS.values()):
        with pytest.raises(TransportError, match="was removed while it was open; nothing was written"):
            operate(used)
    assert not os.path.exists(path)
    Authority("sqlite://" + path).shutdown()
    with pytest.raises(TransportError, match="was replaced"):
        used.event(1)
    assert used.event(1).status == 404
    used.budget(amount=5)
    assert used.event(1).status == 201
    used.authority.shutdown()
    assert spent(path) == 1


def test_a_file_that_was_away_for_a_moment(used, path):
    """With its WAL left alone meanwhile, nothing is lost."""
    os.rename(path, path + ".away")
    with pytest.raises(TransportError, match="was removed"):
        used.event(1)
    os.rename(path + ".away", path)
    assert used.event(1).status == 201
    used.authority.shutdown()
    assert spent(path) == 11


def test_what_was_moved_away_can_be_made_whole(used, path):
    """The old file's WAL is kept under the name that the message tells, for whoever needs what was in it."""
    copy = backup(path)
    used.event(100)
    os.rename(path, path + ".away")
    os.replace(copy, path)
    with pytest.raises(TransportError) as caught:
        used.event(5)
    (kept,) = [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".old")]
    assert kept in str(caught.value)
    os.rename(os.path.join(os.path.dirname(path), kept), path + ".away-wal")
    assert spent(path + ".away") == 110
    assert spent(path) == 10


def test_a_link_that_leads_elsewhere(used, path, tmp_path):
    """The file that it led to was not replaced, so its WAL stays where it is."""
    Authority(f"sqlite://{tmp_path}/other.db").shutdown()
    link = str(tmp_path / "link.db")
    os.symlink(path, link)
    with Bench("sqlite://" + link, validates=False) as linked:
        linked.event(1)
        os.remove(link)
        os.symlink(str(tmp_path / "other.db"), link)
        with pytest.raises(TransportError, match="replaced"):
            linked.event(1)
        assert linked.event(1).status == 404
    assert used.event(1).status == 201
    used.authority.shutdown()
    assert spent(path) == 12


def test_another_programs_file_in_its_place(used, path):
    """It is not used, and not written."""
    other = sqlite3.connect(path + ".other")
    other.execute("CREATE TABLE notes (text TEXT)")
    other.close()
    with open(path + ".other", "rb") as file:
        content = file.read()
    os.replace(path + ".other", path)
    for _ in range(3):
        with pytest.raises(TransportError, match="replaced"):
            used.event(1)
    with open(path, "rb") as file:
        assert file.read() == content


def test_idle_connections_need_no_look(url, path):
    """A closed file may be replaced as one likes: nothing is open."""
    with Bench(url, validates=False) as used:
        used.budget(amount=1000)
        used.authority.shutdown()
        shutil.copy(path, path + ".copy")
        used.event(10)
        os.replace(path + ".copy", path)
        assert used.event(1).status == 201
        assert used.amounts()[2] == 1


def test_a_name_that_comes_back_while_the_file_is_opened(url, path, monkeypatch):
    """What SQLite has open is what the path led to, or it is opened anew: also where the name was away in between."""
    with Bench(url, validates=False) as used:
        used.budget(amount=1000)
        used.authority.shutdown()
        other = path + ".other"
        with Bench("sqlite://" + other, validates=False) as replaced:
            replaced.budget(amount=7)
        real, todo = sqlite3.connect, [1, 1, 1]

        def connect(*given, **options):
            """The other file has the name just while it is opened."""
            if not todo or "immutable" in given[0]:
                return real(*given, **options)
            todo.pop()
            os.rename(path, path + ".away")
            os.rename(other, path)
            made = real(*given, **options)
            os.rename(path, other)
            os.rename(path + ".away", path)
            return made

        monkeypatch.setattr(sqlite3, "connect", connect)
        used.event(1)
        assert todo == []
        monkeypatch.undo()
        assert spent(path) == 1
        assert spent(other) == 0


def test_threads_on_a_file_that_is_replaced_again_and_again(url, path):
    """What is acknowledged between two replacements is in the file that there is, and no file is ever damaged."""
    with Bench(url) as first:
        first.budget(amount=10**9)
    shutil.copy(path, path + ".master")
    with Bench(url, validates=False, timeout=PATIENCE) as used:
        ending = threading.Event()
        told = []

        def work(number):
            if number == 0:
                for _ in range(40):
                    shutil.copy(path + ".master", path + ".next")
                    threading.Event().wait(random.random() / 200)
                    os.replace(path + ".next", path)
                ending.set()
            while not ending.is_set():
                try:
                    used.event(1)
                except TransportError as e:
                    told.append(str(e))

        run_threads(4, work)
        assert told
        for _ in range(4):  # the idle connections of the last file but one
            try:
                used.event(0)
            except TransportError:
                pass
        assert used.authority.check() == []
        before = used.amounts()[2]
        for _ in range(10):
            assert used.event(1).status == 201
        assert used.amounts()[2] == before + 10
        used.authority.shutdown()
        assert spent(path) == before + 10
        assert connections_to(path) == []


SPEND = """
import sys
from cycles_lite.errors import TransportError
from cycles_lite.local import Authority
from cycles_lite.protocol.values import Amount

with Authority(sys.argv[1], create=False, timeout=60) as authority:
    def spend():
        try:
            authority.fund("tenant:acme", Amount.tokens(1))
            return "+"
        except TransportError as e:
            assert "replaced" in str(e), e
            return "-"
    spend()
    print("ready", flush=True)
    for line in sys.stdin:
        print("".join(spend() for _ in range(20)), flush=True)
"""


def test_processes_on_a_file_that_is_replaced(url, path):
    """Each is told once, and what all of them did afterwards is in the new file."""
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(0))
    shutil.copy(path, path + ".copy")
    processes = [start(SPEND, url) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        for turn in range(3):
            shutil.copy(path + ".copy", path + ".next")
            os.replace(path + ".next", path)
            for process in processes:
                process.stdin.write(b"\n")
                process.stdin.flush()
            told = [process.stdout.readline().strip() for process in processes]
            assert told == [b"-" + b"+" * 19] * 3, turn
            with Authority(url, create=False) as authority:
                assert authority.check() == []
                assert authority.budgets()[0].allocated == 57
    finally:
        for process in processes:
            process.communicate(timeout=PATIENCE)


def test_the_lock_on_the_folder_is_not_waited_for_for_ever(used, path):
    """Another program may hold it for good."""
    fcntl = pytest.importorskip("fcntl")
    copy = backup(path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        os.replace(copy, path)
        place = connections_to(path)[0].place
        with pytest.raises(TransportError, match="stayed locked"):
            files.demand_same(place, 0.0)
    finally:
        os.close(folder)
    with pytest.raises(TransportError, match="replaced"):
        used.event(1)
    assert used.event(1).status == 201
