"""The access log of `cycles-lite serve`: a line for each request, and standard error harms no request."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest
from serving import PATIENCE, ROOT, Http, command_line, process, raw

from cycles_lite.cli import access
from cycles_lite.cli.access import AccessLog, line_of

pytest.importorskip("waitress", reason="the extra [server] is not installed")

from cycles_lite.local.application import Exchange

KEY = "cyc_live_secret-of-acme"
LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<client>\S+) (?P<method>\S+) (?P<path>\S+) (?P<status>\d{3}) "
    r"(?P<code>\S+) (?P<ms>\d+\.\d) (?P<bytes>\d+) (?P<tenant>\S+) (?P<id>req_\w+)\Z"
)

EXCHANGE = Exchange("GET", "/x", "unknown", 404, "NOT_FOUND", 0.0123, 77, "127.0.0.1", None, "req_1")


def arguments_for(folder):
    return ["serve", "--db", os.path.join(str(folder), "b.db"), "--port", "0", "--tenant", "acme", "--api-key", KEY]


def asked(url, times):
    """Ask from eight threads, and return the ids of the answers."""
    ids = []

    def work():
        with Http(url, KEY) as http:
            for _ in range(times):
                ids.append(http("GET", "/v1/reservations?status=ACTIVE").headers["x-request-id"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ids


def test_each_request_is_a_line(tmp_path):
    """With many at a time, with what is no HTTP, and with a path that would write lines of its own."""
    with command_line(arguments_for(tmp_path), tmp_path) as server:
        ids = asked(server.url, 25)
        assert len(set(ids)) == 200
        with Http(server.url, KEY) as http:
            http("GET", "/a%20b%0A%1B%5B2J%E2%80%AE%FF%3Fx?secret=1")
            http("GET", "/" + "p" * 5000)
        raw(server.url, b"GET /v1/decide HTTP/1.1\r\nno colon\r\n\r\n")
        status, out, errors = server.end()
    assert (status, out) == (0, "")
    assert errors.isascii()
    assert KEY not in errors
    assert "ACTIVE" not in errors
    assert "secret" not in errors
    rows = [LINE.match(line).groupdict() for line in errors.splitlines()]
    assert {row["id"] for row in rows if row["path"] == "/v1/reservations"} == set(ids)
    assert {(row["method"], row["status"], row["code"], row["tenant"], row["client"]) for row in rows[:200]} == {
        ("GET", "200", "-", "acme", "127.0.0.1")
    }
    assert [(row["path"], row["status"], row["code"]) for row in rows[200:]] == [
        ("/a%20b%0A%1B%5B2J%E2%80%AE%EF%BF%BD%3Fx", "404", "NOT_FOUND"),
        ("/" + "p" * 499, "404", "NOT_FOUND"),
        (rows[202]["path"], "400", "INVALID_REQUEST"),
    ]


def test_quiet(tmp_path):
    with process(tmp_path, *arguments_for(tmp_path)[5:]) as server:
        asked(server.url, 1)
        assert server.end() == (0, "", "")


def test_a_line():
    assert line_of(1_795_857_302.0625, EXCHANGE) == (
        "2026-11-28T09:15:02.062Z 127.0.0.1 GET /x 404 NOT_FOUND 12.3 77 - req_1\n"
    )
    assert " - - " in line_of(0, EXCHANGE._replace(method="", path=""))


@contextmanager
def serving_with(folder, redirection, **more):
    words = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "cycles_lite", *arguments_for(folder)]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    started = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, **more)
    try:
        yield started, started.stdout.readline().split()[-1]
    finally:
        started.kill()
        started.stdout.close()
        started.wait()


def answers_and_ends(started, url):
    with Http(url, KEY) as http:
        for _ in range(300):  # whose lines are more than a pipe takes
            assert http("GET", "/" + "p" * 500).status == 404
    started.send_signal(signal.SIGTERM)
    assert started.wait(PATIENCE) == 0


@pytest.mark.skipif(os.name == "nt", reason="it is the shell of POSIX that closes the stream")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_standard_error_may_be_closed_or_full(tmp_path, redirection):
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("there is no full device")
    with serving_with(tmp_path, redirection) as (started, url):
        answers_and_ends(started, url)


@pytest.mark.skipif(os.name == "nt", reason="it is the shell of POSIX that starts it")
def test_nobody_waits_for_the_reader_of_standard_error(tmp_path):
    """Not even those who have an error to log."""
    reader, writer = os.pipe()
    try:
        with serving_with(tmp_path, "", stderr=writer) as (started, url):
            break_budget(tmp_path)
            with Http(url, KEY) as http:
                for _ in range(300):
                    assert http("GET", "/v1/balances?tenant=acme").status == 500
            answers_and_ends(started, url)
    finally:
        os.close(reader)
        os.close(writer)


def break_budget(folder):
    amounts = "allocated, spent, reserved, debt, overdraft_limit, is_over_limit, status"
    with closing(sqlite3.connect(os.path.join(str(folder), "b.db"))) as db, db:
        values = "'tenant:acme', 'TOKENS', 'many', 0, 0, 0, 0, 0, 'ACTIVE'"
        db.execute(f"INSERT INTO budgets (scope, unit, {amounts}) VALUES ({values})")


def test_what_is_logged_is_there_too(tmp_path):
    with command_line([*arguments_for(tmp_path), "--quiet"], tmp_path) as server:
        break_budget(tmp_path)
        with Http(server.url, KEY) as http:
            reply = http("GET", "/v1/balances?tenant=acme")
        errors = server.end()[2]
    assert reply.status == 500
    assert errors.startswith(f"the embedded authority failed on get_balances ({reply.headers['x-request-id']})\n")
    assert errors.count(reply.headers["x-request-id"]) == 1
    assert "\nTraceback (most recent call last):\n" in errors


def test_lines_beyond_those_that_may_wait_are_counted(monkeypatch):
    """The reader comes back after a while, and is told how many it has missed, whoever wrote them."""
    monkeypatch.setattr(access, "_MOST", 5)
    reader, writer = os.pipe()
    with open(reader, encoding="ascii") as lines, open(writer, "w", encoding="ascii") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with AccessLog() as log:
            log_from_threads(log, EXCHANGE._replace(path="/" + "p" * 490))
            read = []
            thread = threading.Thread(target=lambda: read.extend(lines))
            thread.start()
            log._queue.put(None)
            log._thread.join(PATIENCE)
        stderr.close()
        thread.join(PATIENCE)
    told = [
        int(re.match(r"cycles-lite: (\d+) lines are not told here", line).group(1))
        for line in read
        if line.startswith("cycles-lite")
    ]
    assert told
    assert sum(told) + len(read) - len(told) == 8000


def log_from_threads(log, exchange):
    """Four of them write 2000 lines each, and take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [log(exchange) for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
