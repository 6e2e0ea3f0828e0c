"""A child process that calls `cycles_lite.cli.main` with mutated arguments, in a folder of its own.

    python commands_child.py FOLDER SEED FIRST COUNT

prints a line for each case as `files_child` does. From Python 3.8 an audit hook refuses every write outside the folder
before it happens; before that, arguments with other absolute paths are left out.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import shutil
import sys
import tempfile

from campaign import Case, kind_of, told
from mutations import TEXTS, mutated_bytes

from cycles_lite.cli import main as command_line, output

SCOPES = ["tenant:acme", "tenant:acme/agent:bot", "tenant:rival"]
AMOUNTS = ["TOKENS:1000", "USD:0.50", "usd_microcents:5", "RISK_POINTS:3"]
ODD = [
    "", "-", "--", "-x", "--no-such", "--help", "-h", "--version", "--db", "--db=", "--json", "--limit", "0", "-1",
    "1", "201",
    "9" * 30, "nan", "inf", "-inf", "1e400", "0x5", "TOKENS:", ":5", "TOKENS:-1", "TOKENS:1.5", "USD:1e99", "USD:NaN",
    "USD:",
    "tenant:", "tenant:a", "tenant:ACME", "tenant:acme/", "agent:bot", "tenant:acme/tenant:acme", "{}", "[]", "null",
    '{"a":1}',
    '{"max_tokens": 1e999}', '{"max_tokens": "5"}', "[" * 2000, "{" * 2000, "ACTIVE", "a:b", ":", "kind:", ":name",
    "day", "week", "1h", "never", "none", "2026-01-31T00:00+23:59", "0001-01-01T00:00:00-23:59", "--every", "--from",
    "%s", "{0}",
    "%(prog)s", "@args", "@", "2026-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "\udcff\udcfe", "x" * 5000, "~", "~/x.db",
    "budgets.db", "missing.db", "folder", "pipe", "loop", "../outside.db", "folder/new.db", "nowhere/new.db",
    "other.db", "empty",
    "sqlite:budgets.db", "sqlite:missing.db", "sqlite://", "sqlite:", "sqlite:%00",
    "sqlite:budgets.db?synchronous=full",
    "sqlite:budgets.db?mode=ro", "http://127.0.0.1:9", "journal", "text.txt", "binary.txt", "key.txt", ".", "..",
    "/dev/null",
]  # fmt: skip


def legal(random):
    """A command line that works, or nearly. None of them serves: the port is taken out of the range."""
    scope, amount = random.choice(SCOPES), random.choice(AMOUNTS)
    db = ["--db", "budgets.db"]
    commands = [
        ["budget", "set", *db, scope, amount, "--overdraft-limit", "5", "--caps", '{"max_tokens": 5}'],
        ["budget", random.choice(["credit", "debit", "reset", "repay"]), *db, scope, amount, "--idempotency-key", "k"],
        ["budget", "reset-spent", *db, scope, amount, "--spent", amount, "--reason", "odd", "--json"],
        ["budget", "set", *db, scope, amount, "--every", "month", "--from", "2026-01-31T00:00Z", "--rollover", "none"],
        ["budget", random.choice(["show", "history"]), *db, scope, "--unit", "TOKENS", "--json"],
        ["budget", "history", *db, scope, "--csv"],
        ["budget", "delete", *db, scope, "--force"],
        ["budget", random.choice(["freeze", "unfreeze", "close"]), *db, scope, "--unit", "TOKENS"],
        ["budget", "list", *db, "--json"],
        ["key", "create", *db, "acme", "--name", "mine"],
        ["key", "revoke", *db, "key_1"],
        ["key", "list", *db, "--json"],
        ["tenant", "close", *db, "rival"],
        ["balances", "--tenant", "acme", "--json"],
        ["reservations", "--tenant", "acme", "--status", "ACTIVE", "--limit", "5", "--from", "2026-01-01T00:00:00Z",
         "--json"],
        ["release", "rsv_1", "--reason", "odd"],
        ["check"],
        ["journal", random.choice(["list", "replay"]), "journal"],
        ["journal", random.choice(["show", "retry", "discard"]), "rsv_1", "journal"],
        ["run", "--estimate", "TOKENS:5", "--action", "a:b", "--actual-from", "text.txt", "--agent", "bot", "--",
         "true"],
        ["serve", *db, "--port", "70000", "--tenant", "acme", "--api-key", "k" * 9, "--budget", f"{scope}={amount}",
         "--caps", scope + '={"max_tokens": 5}', "--admin-key-file", "key.txt"],
        ["demo", "--json", "text.txt"],
    ]  # fmt: skip
    weights = [3, 2, 2, 2, 2, 1, 2, 3, 2, 3, 2, 2, 2, 3, 3, 3, 0.2, 3, 3, 0.5, 2, 0.1]
    return random.choices(commands, weights)[0]


def mutated(random, argv):
    made = list(argv)
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        at = random.randrange(len(made) + 1)
        step = random.randrange(7)
        if step == 0 and at < len(made):
            del made[at]
        elif step < 3 and at < len(made):
            made[at] = random.choice([*ODD, *TEXTS])
        elif step == 3:
            made.insert(at, random.choice([*ODD, *TEXTS]))
        elif step == 4 and at < len(made):
            made[at] = os.fsdecode(mutated_bytes(random, made[at].encode("utf-8", "surrogatepass"), 2))
        elif step == 5 and at < len(made):
            made.insert(at, made[at])
        elif at < len(made):
            other = random.randrange(len(made))
            made[at], made[other] = made[other], made[at]
    made = [text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for text in made]
    if "serve" in made or "demo" in made:  # no odd port may be a good one; `demo --http` needs none
        made = [text for text in made if text != "--http"]
    return made


def would_serve(argv):
    """Whether the server might start after all."""
    return any(text.startswith("s") for text in argv[:1]) and argv[-2:] != ["--port", "70000"]


# ---- The folder ----


def prepare(folder):
    """What lies in the folder before each case."""
    for entry in os.scandir(folder):
        shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    for name in ("folder", "journal", "tmp", "home"):
        os.mkdir(os.path.join(folder, name))
    os.mkfifo(os.path.join(folder, "pipe"))
    os.symlink("loop", os.path.join(folder, "loop"))
    contents = {
        "text.txt": b"some words to read, and some more of them.\n\nanother paragraph",
        "binary.txt": bytes(range(256)),
        "key.txt": b"admin-key-1234\n",
        "other.db": b"SQLite format 3\x00" + b"\x00" * 200,
        "empty": b"",
    }
    for name, content in contents.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    record = {
        "version": 1, "reservation_id": "rsv_1", "base_url": "http://127.0.0.1:9", "mode": "commit",
        "commit_body": {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 5}}, "event_fallback_body": None,
        "recorded_at_ms": 0,
    }  # fmt: skip
    with open(os.path.join(folder, "journal", "rsv_1.json"), "w", encoding="ascii") as file:
        json.dump(record, file)


class Outside(Exception):
    """A write outside the folder."""


#: Where writes are looked for; nothing while it is empty.
WATCHED = []
FOUND = []


def watch(event, arguments):
    if not WATCHED:
        return
    paths = []
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        paths = [path] if writes else []
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
        paths = [arguments[0]]
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = list(arguments[:2])
    elif event == "sqlite3.connect":
        paths = [re.sub(r"\Afile:(//)?|\?.*", "", str(arguments[0]))]
        paths = [] if "mode=ro" in str(arguments[0]) or ":memory:" in paths[0] else paths
    for path in paths:
        if isinstance(path, (str, bytes)):
            whole = os.path.realpath(os.fsdecode(path))
            if not whole.startswith(WATCHED[0] + os.sep) and whole != WATCHED[0] and whole != os.devnull:
                FOUND.append((event, whole))
                raise Outside(event, whole)


# ---- One case ----


def check(case, folder):
    prepare(folder)
    os.chdir(folder)
    argv = mutated(case.random, legal(case.random))
    if would_serve(argv):
        argv += ["--port", "70000"]
    if not hasattr(sys, "addaudithook") and any(re.search(r"(\A|[=:])/+[^d]", text) for text in argv):
        return "left out"
    environment = {
        "HOME": os.path.join(folder, "home"),
        "CYCLES_BASE_URL": case.random.choice(
            ["sqlite:budgets.db", "sqlite:budgets.db", "http://127.0.0.1:9", "sqlite:missing.db", ""]
        ),
        "CYCLES_API_KEY": "secret-key-of-the-case",
        "CYCLES_TENANT": case.random.choice(["acme", "acme", ""]),
        "CYCLES_RETRY_ENABLED": "false",
        "CYCLES_CONNECT_TIMEOUT": "0.5",
        "CYCLES_FLUSH_TIMEOUT": "0",
    }
    os.environ.update(environment)
    case.show(argv=argv, environment=environment)
    _fill(folder)
    del FOUND[:]
    out, err = io.StringIO(), io.StringIO()
    WATCHED.append(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = command_line(argv)
            except SystemExit as e:  # argparse's own
                status = e.code
    finally:
        del WATCHED[:]
    case.show(status=status, out=out.getvalue()[-500:], err=err.getvalue()[-500:])
    assert FOUND == []
    assert status in KNOWN, status
    assert "Traceback" not in out.getvalue() + err.getvalue()
    assert "secret-key-of-the-case" not in out.getvalue() + err.getvalue()
    if status in (output.FAILED, output.WRONG) and argv[:1] != ["check"] and "journal" not in argv:
        assert err.getvalue().count("\n") == 1 or status == output.WRONG, err.getvalue()
    return f"{argv[0] if argv and argv[0] in NAMES else 'none'} {status}"


NAMES = "budget key tenant balances reservations release check journal run serve demo".split()
KNOWN = {
    0,
    1,
    2,
    output.UNAVAILABLE,
    output.NO_OUTPUT,
    output.DENIED,
    output.MISCONFIGURED,
    output.NOT_EXECUTABLE,
    output.NOT_FOUND,
}
KNOWN |= {output.UNKNOWN}


def _fill(folder):
    """A budget file, copied because making one takes longer."""
    template = os.path.join(os.path.dirname(folder), "template.db")
    if not os.path.exists(template):
        for argv in (
            ["budget", "set", "--db", template, "tenant:acme", "TOKENS:1000"],
            ["key", "create", "--db", template, "acme"],
        ):
            with contextlib.redirect_stdout(io.StringIO()):
                assert command_line(argv) == 0
    for path in glob.glob(template + "*"):
        shutil.copy(path, os.path.join(folder, "budgets.db" + path[len(template) :]))


def main(folder, seed, first, count):
    folder = os.path.join(os.path.realpath(folder), "inside")
    os.mkdir(folder)
    tempfile.tempdir = os.path.join(folder, "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    if hasattr(sys, "addaudithook"):
        sys.addaudithook(watch)
    beside = None
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"number": number}), flush=True)
        case = Case(int(seed), number)
        try:
            word = check(case, folder)
            there = sorted(os.listdir(os.path.dirname(folder)))
            assert beside in (None, there), there
            beside = there
            print(json.dumps({"outcome": word}), flush=True)
        except BaseException as e:
            print(json.dumps({"kind": repr(kind_of(e)), "failure": told(case, e)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
