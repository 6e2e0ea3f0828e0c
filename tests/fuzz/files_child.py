"""A child process that opens mutated budget files. SQLite may crash on one: then the parent reads how far this came.

    python files_child.py FOLDER SEED FIRST COUNT

prints a line for each case: its number before it, then what became of it, or how it failed.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sqlite3
import sys

from campaign import Case, kind_of, told
from mutations import mutated_bytes
from serving import asking, committing, event, keyed

from cycles_lite import Amount, ConfigError, CyclesError, TransportError, ValidationError
from cycles_lite.local import Authority
from cycles_lite.local.authority import Caller
from cycles_lite.protocol import wire

PAGE = 4096


# ---- The files to begin with ----


def templates(folder):
    """A small budget file, one whose WAL holds the last writes, one with more rows, and those of other programs."""
    made = {}
    for name, rows in (("small", 3), ("large", 150)):
        path = os.path.join(folder, name + ".db")
        with Authority(f"sqlite:///{path}") as authority:
            fill(authority, rows)
            if name == "small":
                keep(folder, path, "wal")
        made[name] = [path]
    made["wal"] = sorted(glob.glob(os.path.join(folder, "wal.db*")))
    for name, application in (("other", 0), ("stranger", 0x12345678), ("newer", 0x6379634C)):
        path = os.path.join(folder, name + ".db")
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE budgets (scope TEXT, unit TEXT)")
        db.execute("INSERT INTO budgets VALUES ('mine', 'alone')")
        db.execute(f"PRAGMA application_id = {application}")
        db.execute("PRAGMA user_version = 99")
        db.commit()
        db.close()
        made[name] = [path]
    return made


def keep(folder, path, name):
    """A copy of a file in use, with the WAL that it has at this moment."""
    for suffix in ("", "-wal"):
        shutil.copy(path + suffix, os.path.join(folder, name + ".db" + suffix))


def fill(authority, rows):
    authority.set_budget("tenant:acme", Amount.tokens(10**6), overdraft_limit=50)
    authority.set_budget("tenant:acme/agent:bot", Amount.tokens(1000))
    authority.set_budget("tenant:rival", Amount.usd("5"))
    authority.create_tenant("acme", "Acme", default_ttl_ms=60_000)
    authority.create_key("acme", secret="acme-secret")
    ids = [ask(authority, wire.CREATE_RESERVATION, asking(10)).data["reservation_id"] for _ in range(rows)]
    for id in ids[::3]:
        ask(authority, wire.COMMIT_RESERVATION, committing(5), id)
    ask(authority, wire.CREATE_EVENT, event(3))


def ask(authority, operation, data=None, id=None, **query):
    return authority.answer(wire.Call(operation, id, query, data, {}, "acme", 0.2, 0.2), Caller("acme"))


# ---- Mutations ----


def mutate(random, path):
    """Change a file's bytes: where SQLite keeps what it needs, or anywhere; or its size."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        way = random.randrange(10)
        page = random.randrange(max(1, len(data) // PAGE)) * PAGE
        if way == 0:
            at = random.randrange(100)  # the header: sizes, counters, versions, identity
        elif way < 4:
            at = page + random.randrange(120)  # a page's header and its cell pointers
        elif way < 6:
            at = page + random.randrange(PAGE)
        elif way == 6:
            at = page + PAGE - 1 - random.randrange(400)  # cells fill a page from its end
        elif way == 7:
            del data[random.choice([0, 1, 15, 16, 99, 100, 512, page, len(data) // 2, len(data) - 1]) :]
            continue
        elif way == 8:
            other = random.randrange(max(1, len(data) // PAGE)) * PAGE
            data[page : page + PAGE] = data[other : other + PAGE]
            continue
        else:
            data = bytearray(mutated_bytes(random, bytes(data)))
            continue
        if at < len(data):
            data[at] = random.choice(
                [0, 1, 0x7F, 0x80, 0xFF, data[at] ^ (1 << random.randrange(8)), random.randrange(256)]
            )
    with open(path, "wb") as file:
        file.write(data)


def rewritten(random, path):
    """Change the file by SQL: other types, out of range, no JSON, no table, no index."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA writable_schema = ON")
    for _ in range(random.choice([1, 1, 2])):
        table = random.choice([row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")])
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        value = random.choice(
            [
                None,
                "",
                "x",
                -1,
                1.5,
                2**63 - 1,
                -(2**63),
                b"\xff\xfe",
                "\x00",
                "{}",
                "[]",
                "null",
                "[[]]",
                "TOKENS",
                "1e999",
                '{"a":',
                b"{}",
                "tenant:acme tenant:acme",
            ]
        )
        statement = random.choice(
            [f"UPDATE OR IGNORE {table} SET {random.choice(columns)} = ?", f"DELETE FROM {table} WHERE ? OR 1",
             f"DROP TABLE {table}",
             f"ALTER TABLE {table} ADD COLUMN more TEXT", f"DROP INDEX IF EXISTS {table}_due",
             "UPDATE sqlite_master SET sql = ? WHERE rowid = 2", "PRAGMA user_version = 0",
             "PRAGMA journal_mode = DELETE",
             f"CREATE TRIGGER t{random.randrange(9**9)} AFTER UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END"]
        )  # fmt: skip
        if statement.startswith("UPDATE OR"):
            statement = random.choice([statement] * 3 + [statement + " WHERE random() % 2"])
        try:
            db.execute(statement, (value,) if "?" in statement else ())
        except sqlite3.Error:
            continue
    db.commit()
    db.close()
    return path


# ---- One case ----


def check(case, made, folder):
    random = case.random
    template = random.choice(["small", "small", "small", "wal", "wal", "large", "other", "stranger", "newer"])
    path = os.path.join(folder, "case.db")
    for old in glob.glob(path + "*"):
        os.unlink(old)
    for source in made[template]:
        shutil.copy(source, path + source[len(made[template][0]) :])
    foreign = template in ("other", "stranger", "newer")
    way = "as it is"
    if not foreign or random.random() < 0.3:
        if template in ("small", "large") and random.random() < 0.4:
            way = "by SQL"
            rewritten(random, path)
        else:
            victim = path + "-wal" if template == "wal" and random.random() < 0.6 else path
            way = "bytes of " + os.path.basename(victim)
            mutate(random, victim)
    case.show(template=template, way=way)
    with open(path, "rb") as file:
        before = file.read()
    word = used(random, path)
    with open(path, "rb") as file:
        after = file.read()
    if before and (foreign or before[68:72] != b"cycL"):  # an empty file may be made one of ours
        assert after == before, "a file that is not ours was written"
    return f"{template}: {word}"


def used(random, path):
    """Open the file and use it in every way."""
    words = set()
    try:
        authority = Authority(f"sqlite:///{path}", create=random.random() < 0.5, timeout=0.3)
    except CyclesError as e:
        assert isinstance(e, (ConfigError, TransportError)), repr(e)
        return type(e).__name__
    with authority:
        steps = [
            authority.check,
            authority.budgets,
            authority.keys,
            lambda: authority.authenticate("acme-secret"),
            lambda: authority.tenant("acme"),
            lambda: authority.set_budget("tenant:acme", Amount.tokens(5)),
            lambda: authority.fund("tenant:acme", Amount.tokens(5)),
            lambda: authority.fund("tenant:acme", Amount.tokens(5), "RESET_SPENT", idempotency_key="once"),
            lambda: authority.holds("tenant:acme"),
            lambda: authority.delete_budget("tenant:rival", force=True) if random.random() < 0.1 else None,
            lambda: authority.freeze("tenant:rival"),
            lambda: authority.create_key("acme"),
            lambda: authority.close_tenant("acme") if random.random() < 0.1 else None,
            lambda: answered(ask(authority, wire.CREATE_RESERVATION, asking(1))),
            lambda: answered(ask(authority, wire.CREATE_EVENT, event(1))),
            lambda: answered(ask(authority, wire.DECIDE, asking(1))),
            lambda: answered(ask(authority, wire.LIST_RESERVATIONS, limit="5")),
            lambda: answered(ask(authority, wire.GET_BALANCES, tenant="acme", limit="1")),
            lambda: each_reservation(authority),
        ]
        random.shuffle(steps)
        for step in steps:
            try:
                words.add("answers" if step() != 500 else "500")
            except TransportError:
                words.add("TransportError")
            except (ConfigError, ValidationError) as e:
                words.add(type(e).__name__)
    for name in ("TransportError", "500", "ConfigError"):
        if name in words:
            return name + " at times"
    return "works"


def answered(answer):
    try:
        body = answer.body
    except (
        ValueError
    ):  # a damaged row's infinity: a server answers 500 then, and a client in process refuses the answer
        return 500
    json.loads(body.decode("ascii"))
    assert 200 <= answer.status <= 500
    return answer.status


def each_reservation(authority):
    status = 200
    for row in ask(authority, wire.LIST_RESERVATIONS, limit="3").data.get("reservations", ()):
        id = row["reservation_id"]
        if type(id) is not str:
            continue
        ask(authority, wire.GET_RESERVATION, None, id)
        ask(authority, wire.EXTEND_RESERVATION, keyed(extend_by_ms=5), id)
        status = ask(authority, wire.COMMIT_RESERVATION, committing(12), id).status
        ask(authority, wire.RELEASE_RESERVATION, keyed(), id)
    return status


def main(folder, seed, first, count):
    import logging

    logging.getLogger("cycles_lite").addHandler(logging.NullHandler())
    made = templates(folder)
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"number": number}), flush=True)
        case = Case(int(seed), number)
        try:
            print(json.dumps({"outcome": check(case, made, folder)}), flush=True)
        except Exception as e:
            print(json.dumps({"kind": repr(kind_of(e)), "failure": told(case, e)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
