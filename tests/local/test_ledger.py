"""Transactions, locks, connections and forks over real files."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import pytest

from cycles_lite.errors import ConfigError, TransportError, TransportTimeout
from cycles_lite.local import connections, failures, location
from cycles_lite.local.ledger import Ledger

from .processes import PATIENCE, finish, run_threads, start

ADD = "INSERT INTO tenants VALUES (?, '', '', 0, 0, 0, '', 0)"


def names(store):
    with store.reading() as (db, _):
        return sorted(name for (name,) in db.execute("SELECT id FROM tenants").fetchall())


def add(store, *names):
    with store.writing() as (db, _):
        for name in names:
            db.execute(ADD, (name,))


@pytest.fixture(params=["file", "memory", "network"])
def store(request, url, monkeypatch):
    """A store on a local disk, in memory, and on what is taken for a network disk."""
    if request.param == "network":
        monkeypatch.setattr(location, "is_on_network", lambda path: True)
    made = Ledger("sqlite://" if request.param == "memory" else url, timeout=PATIENCE)
    yield made
    made.close()


def test_commit_and_roll_back(store):
    """A block that ends commits; one that raises writes nothing, and its exception comes out."""

    def fail():
        with store.writing() as (db, _):
            db.execute(ADD, ("two",))
            raise RuntimeError("two")

    add(store, "one")
    with pytest.raises(RuntimeError):
        fail()
    assert names(store) == ["one"]


def test_each_thread_has_its_turn(store):
    """Although no thread pauses between two transactions, none is left out."""
    done = [0] * 4

    def write(number):
        while sum(done) < 2000:
            with store.writing():
                done[number] += 1

    run_threads(4, write)
    assert min(done) > 100, done


def test_threads_lose_no_update(store):
    """Threads that read and write in one transaction each see what the others wrote."""
    with store.writing() as (db, _):
        db.execute("INSERT INTO settlements VALUES (0, '', '', '', NULL)")

    def count(number):
        for _ in range(25):
            with store.writing() as (db, _):
                (n,) = db.execute("SELECT max(number) FROM settlements").fetchone()
                db.execute("INSERT INTO settlements VALUES (?, '', '', '', NULL)", (n + 1,))
            names(store)

    run_threads(4, count)
    with store.reading() as (db, _):
        assert db.execute("SELECT max(number), count(*) FROM settlements").fetchone() == (100, 101)


@pytest.mark.parametrize(("on_network", "journal"), [(False, "wal"), (True, "delete")])
def test_journal_suits_the_disk(url, monkeypatch, on_network, journal):
    """WAL on a local disk, else DELETE; synchronous as the URL says."""
    monkeypatch.setattr(location, "is_on_network", lambda path: on_network)
    for suffix, level in (("", 1), ("?synchronous=full", 2)):
        store = Ledger(url + suffix)
        with store.reading() as (db, _):
            assert db.execute("PRAGMA journal_mode").fetchone() == (journal,)
            assert db.execute("PRAGMA synchronous").fetchone() == (level,)
            # On macOS, where this is what keeps a power cut from taking transactions. Others ignore it.
            assert db.execute("PRAGMA fullfsync").fetchone() == (int(level == 2),)
        store.close()


def test_journal_follows_a_file_that_moved(url, monkeypatch):
    """A file that comes to a network disk in WAL mode is taken out of it, unless somebody is using it."""
    first = Ledger(url)
    names(first)
    monkeypatch.setattr(location, "is_on_network", lambda path: True)
    second = Ledger(url, timeout=PATIENCE)
    assert names(second) == []  # held back by `first`, and served all the same
    first.close()
    second.close()
    with second.reading() as (db, _):
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_lock_not_had_in_time(url):
    """Whoever waits too long gets a timeout; nothing was written."""
    first, second = Ledger(url), Ledger(url, timeout=0.1)
    with first.writing():
        before = time.monotonic()
        with pytest.raises(TransportTimeout, match="nothing was written"), second.writing():
            pytest.fail("the lock was had twice")
        assert time.monotonic() - before < PATIENCE / 10
        with pytest.raises(TransportTimeout), second.writing(timeout=0.05):
            pytest.fail("the lock was had twice")
        assert names(second) == []  # reading is possible all the while
    with second.writing() as (db, _):
        db.execute(ADD, ("one",))
    first.close()
    second.close()


def test_lock_of_another_thread_not_had_in_time(store):
    """The same within one store, where threads queue."""
    had, done = threading.Event(), threading.Event()

    def hold(number):
        if number == 0:
            with store.writing():
                had.set()
                assert done.wait(PATIENCE)
        else:
            assert had.wait(PATIENCE)
            with pytest.raises(TransportTimeout), store.writing(timeout=0.05):
                pytest.fail("the lock was had twice")
            done.set()

    run_threads(2, hold)


def test_lock_is_had_when_it_is_free(url):
    """A writer that waits gets its turn as soon as the other ends."""
    first, second = Ledger(url), Ledger(url, timeout=PATIENCE)
    trying = threading.Event()

    def write(number):
        if number == 0:
            with first.writing() as (db, _):
                db.execute(ADD, ("one",))
                assert trying.wait(PATIENCE)
        else:
            trying.set()
            with second.writing() as (db, _):
                db.execute(ADD, ("two",))

    run_threads(2, write)
    assert names(first) == ["one", "two"]
    first.close()
    second.close()


def test_readers_do_not_see_half(url):
    """A reader sees one snapshot, also while others write."""
    store = Ledger(url)
    with store.reading() as (reading, _):
        before = reading.execute("SELECT count(*) FROM tenants").fetchone()
        with store.writing() as (writing, _):
            writing.execute(ADD, ("one",))
        assert reading.execute("SELECT count(*) FROM tenants").fetchone() == before
    assert names(store) == ["one"]
    store.close()


def test_connections_are_reused_and_closed(url, path):
    """One thread needs one connection, nested use another; close leaves none, and the file can be used again."""
    store = Ledger(url)
    with store.writing() as (first, _):
        pass
    with store.writing() as (again, _):
        assert again is first
        with store.reading() as (other, _):
            assert other is not first
    store.close()
    for db in (first, other):
        with pytest.raises(sqlite3.ProgrammingError):
            db.execute("SELECT 1")
    assert not os.path.exists(path + "-wal")
    with store.writing() as (db, _):
        db.execute(ADD, ("one",))
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")
    assert names(store) == ["one"]
    assert not os.path.exists(path + "-wal")


def test_closed_while_in_use(url):
    """A connection in use is closed when its transaction ends."""
    store = Ledger(url)
    with store.writing() as (db, _):
        store.close()
        db.execute(ADD, ("one",))
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")
    assert names(store) == ["one"]


def test_dropped_without_close(url):
    """A store that is forgotten takes its connections along, without a warning."""
    store = Ledger(url)
    names(store)
    del store


def test_closed_memory_is_gone():
    """Memory does not come back, and says so."""
    store = Ledger("sqlite://")
    store.close()
    with pytest.raises(TransportError, match="gone"):
        names(store)


FAILURES = [
    # What SQLite says, the error, and what its message must say
    (sqlite3.OperationalError("database is locked"), TransportTimeout, "nothing was written"),
    (sqlite3.OperationalError("locking protocol"), TransportTimeout, "nothing was written"),
    (sqlite3.OperationalError("database or disk is full"), TransportError, "disk is full"),
    (sqlite3.OperationalError("attempt to write a readonly database"), TransportError, "read-only"),
    (sqlite3.OperationalError("disk I/O error"), TransportError, "disk"),
    (sqlite3.OperationalError("unable to open database file"), TransportError, "cannot be opened"),
    (sqlite3.DatabaseError("database disk image is malformed"), TransportError, "damaged"),
    (sqlite3.DatabaseError("file is not a database"), TransportError, "damaged"),
    (sqlite3.IntegrityError("UNIQUE constraint failed: x"), TransportError, "UNIQUE"),
]


@pytest.mark.parametrize(("error", "kind", "message"), FAILURES)
def test_failures_become_ours(error, kind, message):
    """Each of SQLite's errors becomes one of ours that names the file."""
    made = failures.translated(error, "/b.db")
    assert type(made) is kind
    assert "/b.db" in str(made)
    assert message in str(made)


def test_failure_in_a_block_becomes_ours(store):
    """An error that SQLite raises inside a transaction comes out translated, with its cause; the next one works."""
    with pytest.raises(TransportError) as caught, store.writing() as (db, _):
        db.execute("INSERT INTO tenants VALUES (1)")
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert names(store) == []


def test_full_disk(store):
    """A file that cannot grow is a TransportError; nothing was written, and it works again when there is room."""

    def fill():
        with store.writing() as (db, _):
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            (most,) = db.execute("PRAGMA max_page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}").fetchone()
            try:
                db.executemany(ADD, [("x" * 1000 + str(number),) for number in range(1000)])
            finally:
                db.execute(f"PRAGMA max_page_count = {most}").fetchone()

    with pytest.raises(TransportError, match="full"):
        fill()
    assert names(store) == []
    add(store, "one")


def test_damaged_file(url, path):
    """A file that broke after it was opened is a TransportError that names it."""
    Ledger(url).close()
    store = Ledger(url, create=False)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))
    with pytest.raises(TransportError, match=r"budgets\.db"):
        names(store)
    store.close()


def test_replaced_and_removed_file(url, path):
    """A file that another database took the place of, or that is gone, is not used."""
    store = Ledger(url)
    os.remove(path)
    with pytest.raises(TransportError, match="cannot be opened"):
        names(store)
    sqlite3.connect(path).close()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(TransportError, match="replaced"):
        names(store)
    store.close()


def test_readonly_file(url):
    """What may not be written is a TransportError that says so; the connection it came from is not used again."""
    store = Ledger(url)
    with store.reading() as (db, _):
        db.execute("PRAGMA query_only = 1")
    with pytest.raises(TransportError, match="read-only"):
        add(store, "one")
    add(store, "one")
    assert names(store) == ["one"]
    store.close()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORK = """
import os, sqlite3, sys
from cycles_lite.local import connections
from cycles_lite.local.ledger import Ledger
from cycles_lite.errors import ConfigError

ADD = "INSERT INTO tenants VALUES (?, '', '', 0, 0, 0, '', 0)"

def sqlite3_closed(db):
    try:
        db.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True

store, memory = Ledger(sys.argv[1]), Ledger("sqlite://")
with store.writing() as (db, _):
    db.execute(ADD, ("parent",))
inherited = db
pid = os.fork()
if pid == 0:
    with store.writing() as (db, _):
        assert db is not inherited
        db.execute(ADD, ("child",))
    try:
        memory.reading()
    except ConfigError as e:
        assert "fork" in str(e)
    else:
        raise AssertionError("memory was shared")
    store.close()
    memory.close()
    assert sqlite3_closed(inherited)
    assert connections.INHERITED
    dropped = Ledger(sys.argv[1])
    del store, dropped
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
with store.writing() as (db, _):
    assert sorted(db.execute("SELECT id FROM tenants").fetchall()) == [("child",), ("parent",)]
    assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
with memory.reading() as (db, _):
    pass
store.close()
memory.close()
"""


@needs_fork
def test_fork(url):
    """A forked child has connections of its own, leaves the parent's alone, and may not use memory."""
    finish(start(FORK, url))


FORK_UNDER_LOCK = """
import os, sys, threading, warnings
from cycles_lite.local.ledger import Ledger

store = Ledger(sys.argv[1], timeout=60)
had, done = threading.Event(), threading.Event()

def hold():
    with store.writing() as (db, _):
        db.execute("INSERT INTO tenants VALUES ('thread', '', '', 0, 0, 0, '', 0)")
        had.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
had.wait()
warnings.simplefilter("ignore")  # Python's, of a fork with threads
threading.Timer(0.2, done.set).start()
pid = os.fork()  # waits for the thread's transaction
assert done.is_set()
if pid == 0:
    with store.writing() as (db, _):
        assert db.execute("SELECT id FROM tenants").fetchall() == [("thread",)]
    store.close()
    os._exit(0)
thread.join()
with store.writing():
    pass
assert os.waitpid(pid, 0)[1] == 0
store.close()
"""


PARENT_ENDS = """
import os, sys
from cycles_lite.local.ledger import Ledger

ADD = "INSERT INTO tenants VALUES (?, '', '', 0, 0, 0, '', 0)"
store = Ledger(sys.argv[1])
with store.writing() as (db, _):
    db.execute(ADD, ("parent",))
reading, writing = os.pipe()
if os.fork():
    os.close(writing)
    assert os.read(reading, 1) == b"x"  # the child has the file open
    store.close()
    os._exit(0)
with store.writing() as (db, _):
    db.execute(ADD, ("child",))
    os.write(writing, b"x")
    print(sys.stdin.read(), flush=True)  # by then the parent has ended
with store.writing() as (db, _):
    db.execute(ADD, ("orphan",))
store.close()
"""


@needs_fork
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="PyPy has no waitid, which waits and leaves the process")
def test_parent_ends_first(url, path):
    """A parent that closes its last connection does not take the WAL away from under its child."""
    process = start(PARENT_ENDS, url)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    other = Ledger(url, timeout=PATIENCE)
    assert names(other) == ["parent"]
    finish(process, b"go")
    assert names(other) == ["child", "orphan", "parent"]
    other.close()


@needs_fork
def test_fork_while_a_thread_writes(url):
    """A fork waits for the transactions of other threads, so that a child inherits none of their locks."""
    finish(start(FORK_UNDER_LOCK, url))


def test_memory_refuses_a_fork(monkeypatch):
    """Memory belongs to the process that made it."""
    store = Ledger("sqlite://")
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ConfigError, match="fork"):
            store.writing()
    store.close()


def test_fork_without_hooks(url, monkeypatch):
    """A child of a fork that ran no hooks never uses or closes what it inherited, also when the store is dropped."""
    store = Ledger(url)
    with store.writing() as (inherited, _):
        pass
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with store.writing() as (db, _):
            assert db is not inherited
        store.close()
        del store
    assert inherited.execute("SELECT 1").fetchone() == (1,)
    inherited.close()
    connections.INHERITED.clear()
