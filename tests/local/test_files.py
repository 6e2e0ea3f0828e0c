"""Budget files: made whole, told from others, and nothing foreign ever touched."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile

import pytest

from cycles_lite.errors import ConfigError, TransportError
from cycles_lite.local import Authority, files, schema
from cycles_lite.local.ledger import Ledger
from cycles_lite.protocol.values import Amount

from .processes import finish, run_threads, start


def foreign(path, journal="WAL"):
    """Another program's database."""
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA journal_mode = {journal}")
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()


def newer(path):
    Ledger("sqlite://" + path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def garbage(path):
    with open(path, "wb") as file:
        file.write(b"not a database at all, but long enough to be read as one" * 100)


def cut_off(path):
    Ledger("sqlite://" + path).close()
    with open(path, "r+b") as file:
        file.truncate(50)


UNUSABLE = [
    (foreign, "another program"),
    (lambda path: foreign(path, "DELETE"), "another program"),
    (newer, "newer schema version 3"),
    (garbage, "not a budget file"),
    (cut_off, "not a budget file"),
    (os.mkdir, "is a folder"),
    (os.mkfifo, "not a regular file"),
]


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(("prepare", "message"), UNUSABLE)
def test_unusable_files_stay_as_they_are(path, url, prepare, message, create):
    """What is not ours is refused with its reason; not a byte of it changes, and nothing appears beside it."""
    prepare(path)
    before = _snapshot(path)
    with pytest.raises(ConfigError, match=message):
        Ledger(url, create=create)
    assert _snapshot(path) == before


def _snapshot(path):
    names = sorted(os.listdir(os.path.dirname(path)))
    if not os.path.isfile(path):
        return names, None, None
    with open(path, "rb") as file:
        return names, file.read(), os.stat(path).st_mtime_ns


@pytest.mark.parametrize("prepare", [lambda path: None, lambda path: open(path, "wb").close()])
def test_missing_file_names_the_command(tmp_path, prepare):
    """A client makes no file; it says which command does, quoted for a shell."""
    path = str(tmp_path / "my budgets.db")
    prepare(path)
    before = os.listdir(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        Ledger("sqlite://" + path.replace(" ", "%20"), create=False)
    assert f"cycles-lite budget set --db '{path}' tenant:acme TOKENS:100000" in str(caught.value)
    assert os.listdir(str(tmp_path)) == before


def test_made_for_the_owner_alone(path, url):
    """The file, and what SQLite puts beside it, are 0600; no draft is left."""
    store = Ledger(url)
    with store.writing() as (db, _):
        db.execute("INSERT INTO tenants VALUES ('acme', '', '', 0, 0, 0, '', 0)")
    made = sorted(os.listdir(os.path.dirname(path)))
    assert made == ["budgets.db", "budgets.db-shm", "budgets.db-wal"]
    for name in made:
        assert stat.S_IMODE(os.stat(os.path.join(os.path.dirname(path), name)).st_mode) == 0o600
    store.close()
    assert os.listdir(os.path.dirname(path)) == ["budgets.db"]


def test_empty_file_is_filled(path, url):
    """An empty file that somebody provided is used, with the mode it has."""
    open(path, "wb").close()
    os.chmod(path, 0o640)
    Ledger(url).close()
    Ledger(url, create=False).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.parametrize("is_known", [True, False])
def test_without_hard_links(path, url, monkeypatch, is_known):
    """Where the file system has no hard links, or the system does not know any, the file is filled in place."""

    def link(source, target):
        raise OSError("no hard links here")

    monkeypatch.delattr(os, "link")
    if is_known:
        monkeypatch.setattr(os, "link", link, raising=False)
    Ledger(url).close()
    assert os.listdir(os.path.dirname(path)) == ["budgets.db"]
    Ledger(url, create=False).close()


def test_no_folder(tmp_path):
    """A file cannot be made in a folder that is not there, and a path through a file leads nowhere."""
    with pytest.raises(ConfigError, match="cannot be made"):
        Ledger(f"sqlite://{tmp_path}/no/such/budgets.db")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be looked at"):
        Ledger(f"sqlite://{tmp_path}/file/budgets.db")


def test_symbolic_links_are_followed(tmp_path, path, url):
    """A link to a budget file is that file."""
    Ledger(url).close()
    os.symlink(path, str(tmp_path / "link.db"))
    Ledger(f"sqlite://{tmp_path}/link.db", create=False).close()


UNREADABLE = """
import os, sys
from cycles_lite.errors import ConfigError
from cycles_lite.local.ledger import Ledger
if os.geteuid() == 0:
    os.setuid(65534)
for create in (True, False):
    try:
        Ledger("sqlite://" + sys.argv[1], create=create)
    except ConfigError as e:
        print(e)
"""


def test_unreadable_file():
    """A file that may not be read, or looked at, is a configuration error, and stays as it is."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "budgets.db")
        Ledger("sqlite://" + path).close()
        os.chmod(path, 0)
        told = finish(start(UNREADABLE, path)).decode()
        assert told.count("cannot be read") == 2 or told.count("cannot be looked at") == 2, told
        os.chmod(path, 0o600)
        Ledger("sqlite://" + path, create=False).close()


def test_many_make_it_at_once(path, url):
    """Threads that all find no file make one, and all use it."""
    stores = []
    run_threads(8, lambda number: stores.append(Ledger(url)))
    assert len(stores) == 8
    for store in stores:
        with store.reading() as (db, _):
            assert db.execute("SELECT count(*) FROM budgets").fetchone() == (0,)
        store.close()
    assert os.listdir(os.path.dirname(path)) == ["budgets.db"]


TRY = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1], timeout=0)) as db:
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as e:
        print(e)
"""


def test_looking_keeps_locks(url):
    """Opening a file a second time in one process does not drop the locks of the first (POSIX locks would)."""
    first = Ledger(url, timeout=0.2)
    with first.writing():
        Ledger(url, create=False).close()
        told = finish(start(TRY, first.name))
    assert b"locked" in told
    first.close()


def test_identity_of_a_file_in_use(path, url):
    """The numbers that identify a file are in the file itself from the start, not only in its WAL."""
    with open(_made(url, path), "rb") as file:
        header = file.read(100)
    assert int.from_bytes(header[68:72], "big") == schema.APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == schema.VERSION
    files.prepare(path, False, 1.0)


def _made(url, path):
    Ledger(url).close()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE api_keys SET permissions = '{'",
        "UPDATE api_keys SET expires_at_ms = 'soon'",
        "UPDATE budgets SET allocated = 'much'",
        "UPDATE budgets SET caps = '{'",
    ],
)
def test_a_row_that_no_row_of_ours_is_like_is_an_error_of_ours(path, url, damage):
    """Another program may have written it, or SQLite did not see that it is damaged."""
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(5))
        authority.create_key("acme", secret="a-secret-key")
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    table = damage.split()[1]
    with Authority(url) as authority:
        read = authority.budgets if "caps" in damage else authority.check
        if table == "api_keys":  # a key is known by what tells whose it is, and until when
            read = authority.keys if "permissions" in damage else lambda: authority.authenticate("a-secret-key")
        with pytest.raises(TransportError, match="holds what cannot be read"):
            read()
        assert authority.tenant("acme") is not None
