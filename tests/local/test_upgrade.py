"""Files of version 1 of the tables become files of this version, with all that is in them."""

from __future__ import annotations

import gc
import os
import sqlite3

import pytest
from interrupts import AtLine, Interrupt, in_finalizer

from cycles_lite.errors import ConfigError, TransportError
from cycles_lite.local import files, schema
from cycles_lite.local.authority import Authority
from cycles_lite.local.ledger import Ledger

from .helpers import START, Bench, tokens
from .processes import finish, run_threads, start

#: Makes a file of version 1 as that version did, and ends without closing it, so that most is in the WAL alone.
VERSION_1 = r"""
import hashlib, json, os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
now = int(sys.argv[2])
db.executescript('''
    BEGIN;
    CREATE TABLE budgets (
        scope TEXT NOT NULL, unit TEXT NOT NULL,
        allocated INTEGER NOT NULL, spent INTEGER NOT NULL, reserved INTEGER NOT NULL, debt INTEGER NOT NULL,
        overdraft_limit INTEGER NOT NULL, is_over_limit INTEGER NOT NULL,
        status TEXT NOT NULL,
        caps TEXT,
        PRIMARY KEY (scope, unit)
    ) WITHOUT ROWID;
    CREATE TABLE reservations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL, idempotency_key TEXT NOT NULL,
        status TEXT NOT NULL,
        unit TEXT NOT NULL, reserved INTEGER NOT NULL, committed INTEGER,
        overage_policy TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
        finalized_at_ms INTEGER, forget_at_ms INTEGER,
        extensions INTEGER NOT NULL,
        scope_path TEXT NOT NULL, held TEXT NOT NULL,
        request TEXT NOT NULL, defaults TEXT NOT NULL, answer BLOB NOT NULL, reply_until_ms INTEGER NOT NULL
    );
    CREATE INDEX reservations_due ON reservations (deadline_ms) WHERE status = 'ACTIVE';
    CREATE INDEX reservations_listed ON reservations (tenant, created_at_ms DESC, id);
    CREATE INDEX reservations_by_key ON reservations (tenant, idempotency_key);
    CREATE TABLE settlements (
        number INTEGER PRIMARY KEY,
        idempotency_key TEXT NOT NULL, payload BLOB NOT NULL, answer BLOB NOT NULL,
        metadata TEXT
    );
    CREATE TABLE replies (
        tenant TEXT NOT NULL, operation TEXT NOT NULL, target TEXT NOT NULL, idempotency_key TEXT NOT NULL,
        payload BLOB NOT NULL, defaults TEXT NOT NULL, answer BLOB NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant, operation, target, idempotency_key)
    ) WITHOUT ROWID;
    CREATE INDEX replies_done ON replies (expires_at_ms);
    CREATE TABLE tenants (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL, status TEXT NOT NULL, created_at_ms INTEGER NOT NULL,
        default_ttl_ms INTEGER, max_ttl_ms INTEGER, default_overage_policy TEXT, max_extensions INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE api_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        secret_sha256 BLOB NOT NULL UNIQUE, key_prefix TEXT NOT NULL,
        tenant TEXT NOT NULL, name TEXT, permissions TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER, revoked_at_ms INTEGER
    );
    PRAGMA application_id = 1668899660;
    PRAGMA user_version = 1;
    COMMIT;
    PRAGMA journal_mode = WAL;
''')

def text(data, **how):
    return json.dumps(data, separators=(",", ":"), **how)

def tokens(amount):
    return {"unit": "TOKENS", "amount": amount}

defaults = text({"grace_period_ms": 5000, "overage_policy": "ALLOW_IF_AVAILABLE", "ttl_ms": 60000})
payload = {
    "subject": {"tenant": "acme"}, "action": {"kind": "llm.completion", "name": "gpt-4o"},
    "estimate": tokens(100), "metadata": {"m": 1},
}
asked = text({**json.loads(defaults), **payload}, sort_keys=True)
balance = {
    "scope": "tenant:acme", "scope_path": "tenant:acme", "remaining": tokens(900), "reserved": tokens(100),
    "spent": tokens(0), "allocated": tokens(1000),
}

def reserve(number, status, committed, finalized, forget):
    answer = {
        "decision": "ALLOW", "reservation_id": "rsv_%032x" % number, "reserved": tokens(100),
        "expires_at_ms": now + 60000, "remaining_ttl_ms": 60000, "scope_path": "tenant:acme",
        "affected_scopes": ["tenant:acme"], "balances": [balance],
    }
    db.execute("INSERT INTO reservations VALUES (%s)" % ",".join("?" * 21), (
        number, "rsv_%032x" % number, "acme", "old-%d" % number, status, "TOKENS", 100, committed,
        "ALLOW_IF_AVAILABLE", now, now + 60000, now + 65000, finalized, forget, 0, "tenant:acme", "tenant:acme",
        asked, defaults, text(answer).encode(), now + 86400000,
    ))

month = 30 * 86400000
db.execute("BEGIN")
for number in range(1, 7):
    reserve(number, "ACTIVE", None, None, None)
reserve(7, "COMMITTED", 42, now, now + month)
reserve(8, "RELEASED", None, now, now + month)
reserve(9, "EXPIRED", None, None, now + month)
settled = {"status": "COMMITTED", "charged": tokens(42), "released": tokens(58), "balances": [balance]}
released = {"status": "RELEASED", "released": tokens(100), "balances": [balance]}
paid = hashlib.sha256(text({"actual": tokens(42), "metadata": {"c": 2}}, sort_keys=True).encode()).digest()
nothing = hashlib.sha256(b"{}").digest()
db.execute("INSERT INTO settlements VALUES (?,?,?,?,?)", (7, "paid", paid, text(settled).encode(), text({"c": 2})))
db.execute("INSERT INTO settlements VALUES (?,?,?,?,?)", (8, "freed", nothing, text(released).encode(), None))
event = hashlib.sha256(text({
    "overage_policy": "ALLOW_IF_AVAILABLE", "subject": {"tenant": "acme"}, "action": payload["action"],
    "actual": tokens(5),
}, sort_keys=True).encode()).digest()
db.execute("INSERT INTO replies VALUES (?,?,?,?,?,?,?,?)", (
    "acme", "event", "", "ev", event, text({"overage_policy": "ALLOW_IF_AVAILABLE"}),
    text({"status": "APPLIED", "event_id": "evt_1", "balances": [balance]}).encode(), now + 7 * 86400000,
))
db.execute("INSERT INTO budgets VALUES ('tenant:acme', 'TOKENS', 1000, 47, 600, 0, 0, 0, 'ACTIVE', NULL)")
db.execute("INSERT INTO tenants VALUES ('acme', 'Acme', 'ACTIVE', 0, NULL, NULL, NULL, NULL)")
secret = hashlib.sha256(b"cyc_live_secret").digest()
db.execute("INSERT INTO api_keys VALUES ('k1', ?, 'cyc_live_s', 'acme', NULL, '[]', 0, NULL, NULL)", (secret,))
db.execute("COMMIT")
os._exit(0)
"""

_TABLES = ("budgets", "reservations", "settlements", "replies", "tenants", "api_keys")


@pytest.fixture
def old(path):
    """A file of version 1."""
    finish(start(VERSION_1, path, START))
    return path


def id_of(number):
    return f"rsv_{number:032x}"


def rows_of(path):
    """All that the tables of version 1 have, by table."""
    db = sqlite3.connect(path)
    try:
        known = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        names = {table: schema.RESERVATIONS if table not in known else table for table in _TABLES}
        found = {table: db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for table, name in names.items()}
        # Budgets have other columns since, with nothing in them.
        assert {row[10:] for row in found["budgets"]} <= {(), (None, None, None, "NONE", None, None)}
        found["budgets"] = [row[:10] for row in found["budgets"]]
        return found
    finally:
        db.close()


def version_of(path):
    db = sqlite3.connect(path)
    try:
        return schema.identity(db)[1]
    finally:
        db.close()


def test_every_row_is_kept(old, url):
    """Not a value changes, of what was in the WAL alone neither."""
    before = rows_of(old)
    assert [len(before[table]) for table in _TABLES] == [1, 9, 2, 1, 1, 1]
    with Bench(url, create=False) as bench:
        assert bench.authority.check() == []
        assert version_of(old) == schema.VERSION
        assert rows_of(old) == before
    assert version_of(old) == schema.VERSION
    assert rows_of(old) == before


def test_holds_and_answers_go_on(old, url):
    """What version 1 has reserved is settled here, what it has answered is answered again, and lists show all."""
    with Bench(url, create=False) as bench:
        again = bench.reserve(100, metadata={"m": 1}, idempotency_key="old-1").data
        assert (again["reservation_id"], again["remaining_ttl_ms"]) == (id_of(1), 60_000)
        assert bench.reserve(101, metadata={"m": 1}, idempotency_key="old-1").error == "IDEMPOTENCY_MISMATCH"
        paid = bench.commit(id_of(7), 42, metadata={"c": 2}, idempotency_key="paid").data
        assert (paid["charged"], paid["released"]) == (tokens(42), tokens(58))
        assert paid["balances"] == again["balances"]
        assert bench.release(id_of(8), idempotency_key="freed").data["released"] == tokens(100)
        assert bench.event(5, idempotency_key="ev").data["event_id"] == "evt_1"
        assert bench.amounts() == (353, 600, 47, 0, False)
        assert bench.commit(id_of(1), 60).status == 200
        assert bench.release(id_of(2)).status == 200
        assert bench.amounts() == (493, 400, 107, 0, False)
        for status, count in (("ACTIVE", 4), ("COMMITTED", 2), ("RELEASED", 2), ("EXPIRED", 1)):
            assert len(bench.listed(status=status)) == count
        for sort_by in ("created_at_ms", "expires_at_ms", "reserved", "scope_path", "reservation_id"):
            assert bench.listed(sort_by=sort_by, sort_dir="asc") == [id_of(number) for number in range(1, 10)]
        shown = bench.get(id_of(7)).data
        assert (shown["metadata"], shown["committed_metadata"]) == ({"m": 1}, {"c": 2})
        assert bench.authority.authenticate("cyc_live_secret") == "acme"
        bench.clock.now += 65_001
        assert bench.amounts() == (893, 0, 107, 0, False)
        assert bench.authority.check() == []


def test_the_tables_are_those_of_a_new_file(old, url, tmp_path):
    """Columns, keys and indexes of an upgraded file and of a new one are the same."""
    fresh = str(tmp_path / "fresh.db")
    Ledger("sqlite://" + fresh).close()
    with Bench(url, create=False) as bench:
        bench.balances()
    assert shape_of(old) == shape_of(fresh)


def shape_of(path):
    db = sqlite3.connect(path)
    try:
        shape = {}
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            indexes = sorted(row[1:] for row in db.execute(f"PRAGMA index_list({table})"))
            columns = [db.execute(f"PRAGMA index_xinfo({name[0]})").fetchall() for name in indexes]
            shape[table] = (db.execute(f"PRAGMA table_info({table})").fetchall(), indexes, columns)
        texts = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1"
        shape[""] = [(name, text.replace('"', "")) for name, text in db.execute(texts)]
        return shape
    finally:
        db.close()


def test_every_version_has_its_step():
    """There is a way from each version to this one."""
    assert sorted(schema.STEPS) == list(range(1, schema.VERSION))


OPEN = """
import sys
from cycles_lite.local.authority import Authority
sys.stdin.readline()
with Authority("sqlite://" + sys.argv[1], create=False, clock=lambda: int(sys.argv[2])) as authority:
    print(len(authority.budgets()))
"""


def test_many_upgrade_at_once(old):
    """Processes and threads that find an old file together: one upgrades it, and all go on."""
    before = rows_of(old)
    processes = [start(OPEN, old, START) for _ in range(4)]
    told = []
    run_threads(4, lambda number: told.append(finish(processes[number], b"\n")))
    assert told == [b"1\n"] * 4
    assert rows_of(old) == before
    assert version_of(old) == schema.VERSION


KILLED = """
import os, signal, sys
from cycles_lite.local import files
from cycles_lite.local.authority import Authority
def die(db, statement, *given):
    if statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
    db.execute(statement).fetchall()
files.execute = die
Authority("sqlite://" + sys.argv[1], create=False, clock=lambda: int(sys.argv[2])).budgets()
"""


def test_killed_in_the_middle(old, url):
    """A process that dies before the upgrade is committed leaves a file of version 1; the next one upgrades it."""
    before = rows_of(old)
    process = start(KILLED, old, START)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (-9, b"", b"")
    assert version_of(old) == 1
    assert rows_of(old) == before
    with Bench(url, create=False) as bench:
        assert bench.authority.check() == []
    assert rows_of(old) == before


def test_an_error_at_each_statement(old, url, monkeypatch):
    """Whichever statement of the upgrade fails, the file stays one of version 1, and the next try upgrades it."""
    before = rows_of(old)
    steps = schema.STEPS[1]
    for number in range(len(steps) + 1):
        broken = (*steps[:number], "SELECT no_such_function()", *steps[number:])
        with monkeypatch.context() as patch, Bench(url, create=False) as bench:
            patch.setattr(schema, "STEPS", {1: broken})
            with pytest.raises(TransportError, match="no_such_function"):
                bench.authority.budgets()
        assert version_of(old) == 1
        assert rows_of(old) == before
    with Bench(url, create=False) as bench:
        assert bench.authority.check() == []
    assert version_of(old) == schema.VERSION


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_many_lines(old, url, tmp_path):
    """A signal handler that raises within the upgrade leaves the old file or the new one, with all rows."""
    before = rows_of(old)
    db = sqlite3.connect(old)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    with open(old, "rb") as file:
        content = file.read()

    def upgrade():
        with Bench(url, create=False) as bench:
            bench.authority.budgets()

    with AtLine(skips=in_finalizer) as counting:
        upgrade()
    versions = set()
    for number in range(1, counting.count + 1, 11):
        gc.collect()
        for name in os.listdir(str(tmp_path)):
            os.remove(str(tmp_path / name))
        with open(old, "wb") as file:
            file.write(content)
        try:
            with AtLine(number, skips=in_finalizer):
                upgrade()
        except Interrupt:
            pass
        versions.add(version_of(old))
        assert rows_of(old) == before
    assert versions == {1, schema.VERSION}


def test_a_process_of_version_1_that_has_the_file_open(old, url):
    """It is stopped by the first statement of its next transaction, whatever that is about, and writes nothing."""
    theirs = sqlite3.connect(old, isolation_level=None)
    try:
        due = "SELECT 1 FROM reservations WHERE status = 'ACTIVE' AND deadline_ms < ? LIMIT 1"
        assert theirs.execute(due, (START,)).fetchone() is None
        with Bench(url, create=False) as bench:
            bench.reserve(10)
            theirs.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                theirs.execute(due, (START,))
            theirs.execute("ROLLBACK")
            assert bench.amounts() == (343, 610, 47, 0, False)
    finally:
        theirs.close()


def test_the_upgrade_waits_for_a_lock_no_longer_than_the_call(old, url):
    """Where another holds the lock, the call times out with nothing written; the next one upgrades."""
    theirs = sqlite3.connect(old, isolation_level=None)
    try:
        theirs.execute("BEGIN IMMEDIATE")
        with Bench(url, create=False, timeout=0.1) as bench:
            with pytest.raises(TransportError, match="locked"):
                bench.authority.budgets()
            theirs.execute("ROLLBACK")
            assert version_of(old) == 1
            assert len(bench.authority.budgets()) == 1
    finally:
        theirs.close()
    assert version_of(old) == schema.VERSION


def test_a_newer_version_that_is_in_the_wal_alone(path, url):
    """It is refused as one that is in the file is."""
    Authority(url).shutdown()
    newer = sqlite3.connect(path, isolation_level=None)
    try:
        newer.execute("PRAGMA journal_mode = WAL").fetchall()
        newer.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        authority = Authority(url)
        with pytest.raises(ConfigError, match=f"newer schema version {schema.VERSION + 1}"):
            authority.budgets()
        authority.shutdown()
    finally:
        newer.close()


def test_a_newer_version_that_comes_while_the_upgrade_waits(old, url, monkeypatch):
    """A newer library may be faster. What it has made is refused then, and not marked as of this version."""
    begin = files.execute

    def overtaken(db, statement, *given):
        if statement == "BEGIN IMMEDIATE":
            newer = sqlite3.connect(old, isolation_level=None)
            newer.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
            newer.close()
        begin(db, statement, *given)

    with monkeypatch.context() as patch, Bench(url, create=False) as bench:
        patch.setattr(files, "execute", overtaken)
        with pytest.raises(ConfigError, match=f"newer schema version {schema.VERSION + 1}"):
            bench.authority.budgets()
    assert version_of(old) == schema.VERSION + 1
