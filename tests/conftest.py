"""What holds for every test: nothing comes in from outside, and nothing is left behind. And what many ask for."""

from __future__ import annotations

import faulthandler
import os
import platform
import re
import signal
import sqlite3
import tempfile
import threading
import time

import pytest
import urllib3
from hypothesis import HealthCheck, settings
from implementation import collect_on_pypy
from ledgers import ledger_of

from cycles_lite import CyclesClient, CyclesConfig

# The same examples each time where a run is judged, new ones on a desk; no deadline, because the cores are shared;
# no example database, because a run must not depend on the one before.
settings.register_profile(
    "ci",
    max_examples=50,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Programs that tests run print in signal handlers, which a buffered stream refuses while it is being written to; and
# the lines of their two streams come in the order in which a terminal shows them. `cli/test_output.py` tries both.
os.environ["PYTHONUNBUFFERED"] = "1"

SETTINGS_FOR_TESTS = {"CYCLES_TEST_BASE_URL", "CYCLES_TEST_API_KEY"}
SECONDS_TO_END, SECONDS_TO_HANG = 60.0, 400.0
# multiprocessing's own helpers live as long as the process that first needed them.
HELPER_PROCESS = re.compile(rb"from multiprocessing\.(resource_tracker|semaphore_tracker|forkserver) import")


#: Where a test that hangs is told of: standard error, before anything captures it.
STDERR = []


def pytest_configure():
    """Let signals end processes again. `nohup` and a shell's `&` have them ignored, which children would inherit."""
    STDERR.append(os.dup(2))
    for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_unconfigure():
    os.close(STDERR.pop())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """A test that hangs ends its process, after it has shown where every thread stands: pytest-xdist names the test,
    and starts another process for the rest. How long a campaign lasts that was asked for, nobody knows."""
    if not item.config.getoption("--fuzz"):
        faulthandler.dump_traceback_later(SECONDS_TO_HANG, exit=True, file=STDERR[0])
    yield
    faulthandler.cancel_dump_traceback_later()


def _isolate(monkeypatch, homes):
    for name in list(os.environ):
        if name.startswith("CYCLES_") and name not in SETTINGS_FOR_TESTS:
            monkeypatch.delenv(name)
    # Not tmp_path_factory: its numbering looks through all the folders there are, thousands at the end of a run.
    monkeypatch.setenv("HOME", tempfile.mkdtemp(dir=str(homes)))


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory):
    """Where homes are; and one for fixtures of a wider scope than a test, which are made before `isolated` runs."""
    folder = tmp_path_factory.mktemp("homes")
    monkeypatch = pytest.MonkeyPatch()
    _isolate(monkeypatch, folder)
    yield folder
    monkeypatch.undo()


@pytest.fixture(autouse=True)
def isolated(monkeypatch, homes):
    """A home of its own, because the journal's default folder is there."""
    _isolate(monkeypatch, homes)


@pytest.fixture(scope="module", autouse=True)
def nothing_of_other_modules():
    """A guard that an earlier test has left to PyPy's collector would count in a flush of this one's."""
    collect_on_pypy()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fails a test that leaves a thread or a child process; autouse fixtures end after those a test asks for."""
    threads_before, children_before = set(threading.enumerate()), _children()
    yield
    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        threads = [thread for thread in threading.enumerate() if thread not in threads_before]
        children = {pid: name for pid, name in _children().items() if pid not in children_before}
        if not threads and not children:
            return
        collect_on_pypy()  # a client that nobody refers to lets its threads go
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    for pid in children:  # so that only the test that left them fails
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pytest.fail(f"left behind: threads {threads}, child processes {children}")


def pytest_addoption(parser):
    text = "cases of each test in tests/fuzz, such as 100000, in the place of the few hundred that it has by itself"
    parser.addoption("--fuzz", type=int, default=0, metavar="CASES", help=text)
    parser.addoption("--fuzz-seed", default="", metavar="SEED[:FIRST]", help="the cases of that seed, from one on")


def pytest_terminal_summary(terminalreporter):
    """What it was that passed or failed; and what became of the cases in tests/fuzz. Reports bring that from the
    workers of xdist too."""
    here = platform.python_implementation(), platform.python_version(), urllib3.__version__, sqlite3.sqlite_version
    terminalreporter.line("with {} {}, urllib3 {}, SQLite {}".format(*here))
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ended = [report for report in reports if getattr(report, "when", "") == "teardown"]
    lines = [text for report in ended for name, text in report.user_properties if name == "fuzz"]
    if lines:
        terminalreporter.section("fuzz")
    for line in lines:
        terminalreporter.line(line)


@pytest.fixture
def ledger(tmp_path):
    """A budget file of the tenant acme, with 1000 tokens."""
    with ledger_of(tmp_path, 1000) as ledger:
        yield ledger


@pytest.fixture
def client(ledger):
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="acme")) as client:
        yield client


def _children():
    """This process's children by pid, unwaited ones included. Linux tells; elsewhere none are seen."""
    pids = []
    for task in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                pids += [int(pid) for pid in file.read().split()]
        except OSError:  # that thread has just ended
            continue
    named = {pid: _command_line(pid) for pid in pids}
    return {pid: name for pid, name in named.items() if not HELPER_PROCESS.search(name)}


def _command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ")
    except OSError:
        return b"?"
