"""The interpreter's end: bounded, without a complaint, and with everything settled or on disk."""

from __future__ import annotations

import json
import pathlib
import sys

import peers
import pytest
from desks import DOWN, requests_of
from hosts import WARNINGS, run, running

#: Guards that a program deliberately leaves open; that they are told of in development is proven elsewhere.
UNFINISHED = WARNINGS + ",ignore:<ReservationGuard:ResourceWarning"

#: Seconds that an exit may take over its `flush_timeout`, on a machine that does other things too. Without a bound the
#: programs here would take their requests' timeouts, which are a minute, or for ever.
MARGIN = 25.0


def quiet(ended):
    """Whether nothing but the library's own log was written."""
    lines = ended.err.splitlines()
    return ended.status == 0 and all(line.startswith("spend of reservation ") for line in lines)


PENDING = """
from program import *

client = new_client(connect_timeout=60, read_timeout=60)

def pending(client):
    with reserve(client) as guard:
        assert guard.commit(Amount.tokens(1)).status.value == "PENDING"
"""

UNREACHABLE = (
    PENDING
    + """
clients = [client] + [client.with_options(tenant="tenant-{}".format(number)) for number in range(11)]
for each in clients:
    pending(each)
say("pending")
assert hear() == "go"
"""
)

NAMELESS = (
    PENDING
    + """
import socket

other = client.with_options(tenant="other")
for each in (client, client, client, other):
    pending(each)

def hang(*args, **kwargs):
    threading.Event().wait()

socket.getaddrinfo = hang  # in place of a resolver that hangs, which a test cannot have
assert client.flush(0.2) == 3
other.close()
say("pending")
assert hear() == "go"
"""
)


@pytest.mark.parametrize("how", ["refusing", "silent"])
def test_exit_is_bounded_while_the_authority_is_down(desk, scripted, records, tmp_path, how):
    """Twelve clients with pending spend: the exit waits for `flush_timeout` once, not for each, and not for the
    requests' timeouts; what is left is on disk."""
    with peers.Peer(desk) as peer:
        desk.answers["commit"] = DOWN
        environment = {**scripted, "CYCLES_BASE_URL": peer.url, "CYCLES_FLUSH_TIMEOUT": "3"}
        with running(UNREACHABLE, tmp_path, **environment) as program:
            program.expect("pending")
            desk.answers["commit"] = peers.silent if how == "silent" else peers.reset
            program.say()
            ended = program.end(within=3 + MARGIN)  # twelve times 3 would be more
    assert quiet(ended), ended
    assert len(records()) == 12


def test_flush_close_and_exit_are_bounded_while_the_resolver_hangs(desk, peer, scripted, records, tmp_path):
    """Name resolution cannot be interrupted: flush, close and exit leave it to threads, and do not wait for those."""
    desk.answers["commit"] = peers.answer({}, 503, headers=[("Connection", "close")])
    with running(NAMELESS, tmp_path, CYCLES_FLUSH_TIMEOUT="0.5", **scripted) as program:
        program.expect("pending")
        program.say()
        ended = program.end(within=MARGIN)
    assert quiet(ended), ended
    assert len(records()) == 4


ORDER = """
import atexit

atexit.register(lambda: last())  # the first to register runs last
from program import *

def last():
    spend(client, idempotency_key="last")
    client.close()

client = new_client(flush_timeout=40)
with reserve(client, idempotency_key="pending") as guard:
    assert guard.commit(Amount.tokens(1)).status.value == "PENDING"
say("pending")
assert hear() == "go"
"""


def test_pending_spend_is_settled_at_exit(desk, peer, scripted, records, tmp_path):
    """Where the authority is back: while connections can still be had, which finalizers close at exit too. And an exit
    handler of the program's that runs later can use the client."""
    desk.answers["commit"] = DOWN
    with running(ORDER, tmp_path, **scripted) as program:
        program.expect("pending")
        del desk.answers["commit"]
        program.say()
        ended = program.end(within=30)
    assert quiet(ended), ended
    commits = [request.target for request in requests_of(peer, "commit")]
    assert commits == ["/v1/reservations/rsv_pending/commit"] * 3 + ["/v1/reservations/rsv_last/commit"]
    assert records() == []


OPEN = """
from program import *

client = new_client()
metered, plain = reserve(client), reserve(client)
metered.spend(1)

class Cycle:
    pass

cycle = Cycle()
cycle.itself, cycle.guard = cycle, reserve(client)
cycle.guard.spend(2)
del cycle

def steps(tokens):
    with reserve(client) as guard:
        guard.spend(tokens)
        yield

suspended, suspended_plain = steps(4), steps(0)
next(suspended), next(suspended_plain)

def work():
    with reserve(client) as guard:
        guard.spend(8)
        at_work.set()
        threading.Event().wait()

at_work = threading.Event()
threading.Thread(target=work, daemon=True).start()
at_work.wait()
"""


def test_guards_that_are_open_at_exit(place, ledger, tmp_path):
    """In a module's globals, in a cycle, in a suspended generator, in a daemon thread: what they have metered is
    committed; those without a meter are left to expire, because nobody knows what their work costs."""
    run(OPEN, tmp_path, PYTHONWARNINGS=UNFINISHED, **place)
    assert ledger.amounts == (1 + 2 + 4 + 8, 2 * 10)


FIRST_THREAD = """
from program import *

client = new_client(heartbeat=False)
reserve(client).spend(3)  # and forgotten: what it leaves to do waits for the next call
assert threading.active_count() == 1
"""


def test_a_first_thread_at_exit(place, ledger, tmp_path):
    """Python 3.12 and later start none then: what there is to do is done inline, and nobody is warned."""
    run(FIRST_THREAD, tmp_path, PYTHONWARNINGS=UNFINISHED, **place)
    assert ledger.amounts == (3, 0)


LAST_THREAD = """
from program import *

client = new_client()

def work():
    threading.main_thread().join()
    spend(client)

threading.Thread(target=work).start()
"""

REFUSED = (
    "no background thread is to be had (can't create new thread at interpreter shutdown): "
    "heartbeats and retries run inline\n"
)


def test_threads_that_outlive_the_main_one(ledger, tmp_path):
    """A thread that reserves for the first time while the interpreter waits for it gets what it needs; where Python is
    3.12.0 or 3.12.1, which start no thread then, without one in the background, of which it is told."""
    with running(LAST_THREAD, tmp_path, **ledger.over_http) as program:
        ended = program.end()
    assert (ended.status, ended.err) == (0, REFUSED if (3, 12) <= sys.version_info < (3, 12, 2) else "")
    assert ledger.amounts == (1, 0)


METERS = """
from program import *

client = new_client(connect_timeout=60, read_timeout=60, flush_timeout=0.5)
guards = [reserve(client, idempotency_key=str(number)) for number in range(20)]
for guard in guards:
    guard.spend(1)
say("metered")
assert hear() == "go"
"""


def test_every_meter_is_on_disk_before_the_first_is_sent(desk, peer, scripted, records, tmp_path):
    """An authority that hangs keeps a few threads busy, and the end does not wait for it."""
    with running(METERS, tmp_path, PYTHONWARNINGS=UNFINISHED, **scripted) as program:
        program.expect("metered")
        desk.answers["commit"] = peers.silent
        program.say()
        assert program.end(within=MARGIN).status == 0
    found = [json.loads(pathlib.Path(path).read_text()) for path in records()]
    assert [record["commit_body"]["actual"]["amount"] for record in found] == [1] * 20


AFTER_CLOSE = """
from program import *
import gc

client = new_client()
alive, dropped = reserve(client), reserve(client)
alive.spend(3)
dropped.spend(4)
client.close()
if {drops}:
    del dropped
    gc.collect()
"""


@pytest.mark.parametrize("drops", [True, False])
def test_a_meter_that_outlives_its_client_is_settled_at_the_exit(place, ledger, tmp_path, drops):
    """Whether its guard is still there then or was dropped after the close."""
    run(AFTER_CLOSE.format(drops=drops), tmp_path, PYTHONWARNINGS=UNFINISHED, **place)
    assert ledger.amounts == (7, 0)


LATE = """
import atexit, weakref
from program import *

client = new_client(heartbeat=False)

class Owner:
    def __del__(self):
        if "{how}" == "a finalizer":
            self.guard.commit(Amount.tokens(1))

def use():
    spend(client)

owner = Owner()
if "{how}" == "an exit handler":
    atexit.register(use)  # before the first use, and so it runs after the library's own
elif "{how}" == "a weak finalizer":
    weakref.finalize(owner, use)
spend(client)
if "{how}" == "a thread":
    threading.Thread(target=lambda: (threading.main_thread().join(), use())).start()
owner.guard = reserve(client) if "{how}" == "a finalizer" else None
"""


@pytest.mark.parametrize("how", ["an exit handler", "a weak finalizer", "a thread"])
def test_a_use_after_the_librarys_own_exit_leaves_no_connection_open(place, ledger, records, tmp_path, how):
    """Warnings are errors, so that an unclosed socket or database would be complained of."""
    run(LATE.format(how=how), tmp_path, **place)
    assert ledger.amounts == (2, 0)
    assert records() == []


def test_a_commit_while_modules_are_taken_apart_is_on_disk(place, ledger, records, tmp_path):
    """In a finalizer of an object that lives until then. Nothing can be sent, imported or started any more."""
    run(LATE.format(how="a finalizer"), tmp_path, **place)
    assert ledger.amounts == (1, 10)
    (path,) = records()
    assert json.loads(pathlib.Path(path).read_text())["commit_body"]["actual"]["amount"] == 1
