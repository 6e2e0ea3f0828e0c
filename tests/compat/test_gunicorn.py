"""Below gunicorn, whose workers are forked from a process that has the application, and its client, already."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from contextlib import contextmanager

import hosts
import pytest
from desks import requests_of

if not hasattr(os, "fork"):
    pytest.skip("gunicorn needs fork", allow_module_level=True)
pytest.importorskip("gunicorn", reason="gunicorn is not installed")

APPLICATION = """
import os
from cycles_lite import Action, Amount, CyclesClient

client = CyclesClient.from_env()
before = None

def work():
    with client.reserve(Amount.tokens(10), Action("llm.completion", "gpt-4o"), ttl_ms=4000) as guard:
        status = guard.commit(Amount.tokens(2)).status
    return status.value

if os.environ.get("WARM"):
    # Its heartbeat runs here, and ends with this process: from then on its grace is how long the test may take.
    before = client.reserve(
        Amount.tokens(10), Action("llm.completion", "gpt-4o"), ttl_ms=4000, grace_period_ms=60000
    )
    assert work() == "COMMITTED"

def application(environ, start_response):
    body = "{} {}".format(work(), os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

#: A worker that has not come so far loses a signal: it has its master's handlers.
CONFIGURATION = """
def post_worker_init(worker):
    worker.log.info("ready")
"""

REQUESTS = 40
WORKERS = 2


@contextmanager
def gunicorn(folder, worker_class, **environment):
    """A master and its workers on a free port, once these are ready; their address."""
    (folder / "guarded_app.py").write_text(APPLICATION)
    (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
    arguments = ["-m", "gunicorn", "--preload", f"--workers={WORKERS}", "--threads=4", "--worker-class=" + worker_class]
    options = ["--bind=127.0.0.1:0", "--graceful-timeout=60", "--timeout=60", "guarded_app:application"]
    # Python's defaults, because gunicorn has warnings of its own; what it says is looked at. gevent says that it is
    # late for `ssl`: gunicorn patches in each worker, when the application has been imported already.
    environment = {**environment, "PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore:Monkey-patching ssl"}
    environment["GUNICORN_CMD_ARGS"] = ""
    with hosts.command([*arguments, *options], folder, **environment) as program:
        yield program, _address(program)


def _address(program):
    end = time.monotonic() + hosts.PATIENCE
    while time.monotonic() < end:
        told = program.errors
        if told.count("[INFO] ready") == WORKERS:
            return told.partition("Listening at: ")[2].split()[0]
        threading.Event().wait(0.02)
    raise AssertionError(program.errors)


def _ask(address, answers, count):
    for _ in range(count):
        with urllib.request.urlopen(address, timeout=hosts.PATIENCE) as response:
            answers.append(response.read().decode().split())


@pytest.mark.parametrize(
    ("worker_class", "warm"), [("sync", "1"), ("gthread", ""), ("gevent", "1")], ids=["sync", "gthread", "gevent"]
)
def test_preloaded_workers(ledger, records, tmp_path, worker_class, warm):
    """Workers use the client that the master made, and that in two variants it has used itself and holds a guard of.
    After a graceful SIGTERM the ledger is exact, nothing is pending, and nothing was complained of."""
    if worker_class == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    answers = []
    with gunicorn(tmp_path, worker_class, WARM=warm, **ledger.over_http) as (program, address):
        threads = [threading.Thread(target=_ask, args=(address, answers, REQUESTS // 4)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        program.signal(signal.SIGTERM)
        ended = program.end()
    assert ended.status == 0, ended
    assert [status for status, _ in answers] == ["COMMITTED"] * REQUESTS
    assert str(program.pid) not in {pid for _, pid in answers}
    # A guard that the master holds is not its workers' to end: it is reserved still.
    assert ledger.amounts == ((2 * REQUESTS + 2, 10) if warm else (2 * REQUESTS, 0))
    assert records() == []
    for word in ("Traceback", "Warning", "Exception", "cycles", "reservation"):
        assert word not in ended.err, ended.err


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_a_worker_that_is_told_to_end_asks_a_silent_authority_once(
    desk, peer, scripted, records, tmp_path, worker_class
):
    """The request that it is serving ends with spend that is pending, on disk; nobody waits for a second attempt, and
    the end of the interpreter makes none either."""
    reached = threading.Event()

    def silent(line, request):
        reached.set()
        line.wait_for_close()

    desk.answers["commit"] = silent
    answers = []
    bounds = {"CYCLES_READ_TIMEOUT": "5", "CYCLES_CONNECT_TIMEOUT": "1", "CYCLES_FLUSH_TIMEOUT": "5"}
    with gunicorn(tmp_path, worker_class, **{**scripted, **bounds}) as (program, address):
        thread = threading.Thread(target=_ask, args=(address, answers, 1))
        thread.start()
        assert reached.wait(hosts.PATIENCE)
        start = time.monotonic()
        program.signal(signal.SIGTERM)
        thread.join()
        ended = program.end()
        print(f"{worker_class}: ended {time.monotonic() - start:.1f} s after SIGTERM")
    assert ended.status == 0, ended
    assert [status for status, _ in answers] == ["PENDING"]
    assert len(requests_of(peer, "commit")) == 1
    assert len(records()) == 1
