"""A forked child has everything of its own, and leaves its parent's guards and pending spend to its parent."""

from __future__ import annotations

import importlib
import os

import pytest
from desks import DOWN, Gate, requests_of
from hosts import ended_well, run, running

from cycles_lite import client as clients

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


GENERATIONS = """
from program import *

client = new_client()
spend(client)

def child():
    spend(client)
    join(fork(grandchild))
    spend(client)

def grandchild():
    for _ in range(2):
        spend(client)
    client.close()
    spend(client)

join(fork(child), fork(child))
spend(client)
"""


def test_children_and_grandchildren_of_a_warmed_parent_work(place, ledger, tmp_path):
    """One client, warmed before the fork, serves parent, children and grandchildren; nothing is lost or doubled."""
    run(GENERATIONS, tmp_path, **place)
    assert ledger.amounts == (2 + 2 * (2 + 3), 0)


CONNECTIONS = """
from program import *

client = new_client()
spend(client, idempotency_key="parent-before")
join(fork(lambda: spend(client, idempotency_key="child")))
spend(client, idempotency_key="parent-after")
"""


def test_a_child_has_connections_of_its_own(peer, scripted, tmp_path):
    """The child opens its own; the parent goes on with the one that it had, which the child has neither used nor
    closed."""
    run(CONNECTIONS, tmp_path, **scripted)
    asked = {request.json["idempotency_key"]: request.connection for request in requests_of(peer, "create")}
    assert asked["parent-before"] == asked["parent-after"]
    assert asked["child"] != asked["parent-before"]
    assert peer.connections == 2


MID_REQUEST = """
from program import *

client = new_client()
answered = []
thread = threading.Thread(target=lambda: answered.append(spend(client, idempotency_key="thread").reservation_id))
thread.start()
assert hear() == "the thread's request has arrived"

def child():
    assert spend(client, idempotency_key="child").reservation_id == "rsv_child"

join(fork(child))
say("the child is done")
thread.join()
assert answered == ["rsv_thread"], answered
assert spend(client, idempotency_key="after").reservation_id == "rsv_after"
"""


def test_a_request_under_way_in_a_thread_at_the_fork(desk, peer, scripted, tmp_path):
    """The child's request is answered while the thread's still waits, and each gets its own answer."""
    desk.answers["create"] = gate = Gate(desk, "create")
    with running(MID_REQUEST, tmp_path, **scripted) as program:
        assert gate.reached.wait(60)
        del desk.answers["create"]
        program.say("the thread's request has arrived")
        program.expect("the child is done")
        gate.let_through()
        ended_well(program)


LOCKS = """
from program import *
import logging
from cycles_lite.background.worker import worker

handler = logging.StreamHandler()
logging.getLogger("cycles_lite").addHandler(handler)
client = new_client()
spend(client)  # from here on there are a pool, a settler and the worker's threads
locks = {
    "the worker's lead": threading.Lock(),  # held anyway, by the thread that leads
    "the log handler's": handler.lock,
}
for name, lock in locks.items():
    held, forked = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        arm()
        sys.argv = [name]  # for whoever reads where it hangs
        logging.getLogger("cycles_lite").info("hello")
        reserve(client).release("done")
        spend(client)
        assert client.flush() == 0
        client.close()
        sys.exit()
    forked.set()
    thread.join()
    join(pid)
spend(client)
"""


def test_locks_that_a_thread_holds_at_the_fork(ledger, tmp_path):
    """They are never free again in the child, which works, flushes, closes and ends without them."""
    run(LOCKS, tmp_path, **ledger.over_http)
    assert ledger.amounts == (1 + 2 + 1, 0)


OPEN_GUARD = """
from program import *
import gc
from cycles_lite import GuardFinalizedError, with_cycles

client = new_client()
metered, plain, dropped = reserve(client), reserve(client), reserve(client)
metered.spend(3)
dropped.spend(1)

def explicit():
    for guard in (metered, plain):
        assert not guard.is_active
        for end in (lambda: guard.commit(Amount.tokens(1)), lambda: guard.release("no"), lambda: guard.extend(1000)):
            try:
                end()
            except GuardFinalizedError as e:
                assert "belongs to process {}".format(os.getppid()) in str(e), e
            else:
                raise AssertionError("a child ended its parent's guard")

def collected():
    global dropped
    del dropped
    gc.collect()
    assert client.flush() == 0
    spend(client)

def left_by_sys_exit():
    pid = os.fork()
    if pid == 0:
        arm()
        sys.exit()  # through all `with` blocks, to the exit handlers
    join(pid)

def body(guard):
    left_by_sys_exit()
    assert guard.is_active
    return "value", Amount.tokens(2)

join(fork(explicit), fork(collected))
with metered:
    with plain:
        left_by_sys_exit()
        join(fork(lambda: None))  # ends by os._exit
        assert with_cycles(client, body, estimate=Amount.tokens(10), action=ACTION) == "value"
        for guard in (metered, plain, dropped):
            assert client.get_reservation(guard.reservation_id).status.value == "ACTIVE"
        assert plain.commit(Amount.tokens(5)).status.value == "COMMITTED"
dropped.release("done")
"""


def test_a_child_never_ends_its_parents_guards(place, ledger, tmp_path):
    """Neither by commit, release, leaving the block, garbage collection, `sys.exit` nor `os._exit`."""
    run(OPEN_GUARD, tmp_path, **place)
    assert ledger.amounts == (1 + 2 + 3 + 5, 0)


BEATS = """
from program import *

client = new_client()
parents = reserve(client, ttl_ms=8000)

def moved(guard):
    return client.get_reservation(guard.reservation_id).expires_at_ms > guard.expires_at_ms

def child():
    with reserve(client, ttl_ms=8000) as guard:
        wait_until(lambda: moved(guard))
        guard.commit(Amount.tokens(1))

pid = fork(child)
wait_until(lambda: moved(parents))
join(pid)
parents.commit(Amount.tokens(1))
"""


def test_a_child_keeps_its_own_guards_alive(ledger, tmp_path):
    """Its worker is its own: the heartbeats of both processes move their reservation's expiry."""
    run(BEATS, tmp_path, **ledger.over_http)
    assert ledger.amounts == (2, 0)


PENDING = """
from program import *
from cycles_lite import events

seen = []
client = CyclesClient.from_env(observer=seen.append)
with reserve(client, idempotency_key="parent") as guard:
    assert guard.commit(Amount.tokens(1)).status.value == "PENDING"

def child():
    say("in the child's memory: {}".format(list(client._session.settler.pending)))
    with reserve(client, idempotency_key="child") as guard:
        assert guard.commit(Amount.tokens(1)).status.value == "PENDING"

join(fork(child))
say("the child is done")
assert hear() == "the authority is back"
left = client.flush(30)
assert left == 0, left
say(sorted(event.reservation_id for event in seen if isinstance(event, events.Settled)))
"""


def test_pending_spend_stays_its_processs(desk, peer, scripted, records, tmp_path):
    """A child has none of its parent's in memory, and what it finds on disk it sends with the key that it had: the
    parent settles its own, and what the child has left when it ended."""
    desk.answers["commit"] = DOWN
    with running(PENDING, tmp_path, **scripted) as program:
        program.expect("in the child's memory: []")
        program.expect("the child is done")
        before = len(requests_of(peer, "commit"))
        del desk.answers["commit"]
        program.say("the authority is back")
        program.expect("['rsv_child', 'rsv_parent']")
        program.end()
    keys = {}
    for request in requests_of(peer, "commit"):
        keys.setdefault(request.target, set()).add(request.json["idempotency_key"])
    assert all(len(each) == 1 for each in keys.values()), keys
    assert len(requests_of(peer, "commit")) - before == 2
    assert records() == []


IMPORTING = """
from program import *
import importlib.abc

importing, forking = threading.Event(), threading.Event()

class Slowly(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "{late}":
            importing.set()
            forking.wait()
            threading.Event().wait(0.2)  # for the fork, which is not to come before this import has ended

sys.meta_path.insert(0, Slowly())
client = new_client()
thread = threading.Thread(target=spend, args=(client,))
thread.start()
importing.wait()
forking.set()
join(fork(lambda: spend(client)))
thread.join()
"""


@pytest.mark.parametrize("late", ["cycles_lite.background.heartbeat", "encodings.idna"])
def test_a_fork_while_a_thread_imports_what_the_child_needs(ledger, tmp_path, late):
    """Much of the package is imported when it is first used, and so is what Python looks an address up with. A module
    that is half imported at the fork would never be whole in the child; so the fork waits for it."""
    run(IMPORTING.replace("{late}", late), tmp_path, **ledger.over_http)
    assert ledger.amounts == (2, 0)


MEMORY = """
from program import *
from cycles_lite import ConfigError

client = new_client()

def child():
    for use in (lambda: reserve(client), client.get_balances):
        try:
            use()
        except ConfigError as e:
            assert "does not survive a fork" in str(e), e
        else:
            raise AssertionError("memory was shared")

assert client.get_balances().balances == ()
join(fork(child))
assert client.get_balances().balances == ()
"""


def test_memory_is_refused_in_a_child(tmp_path):
    """Budgets in memory are one process's: the child is told so, the parent goes on."""
    run(MEMORY, tmp_path, CYCLES_BASE_URL="sqlite://", CYCLES_TENANT="acme")


MANY = """
from program import *

client = new_client()
done = threading.Event()
counts = []

def busy():
    count = 0
    while not done.is_set():
        spend(client)
        count += 1
    counts.append(count)

threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(50):
    children.append(fork(lambda: spend(client)))
    if len(children) == 5:
        join(*children)
        del children[:]
done.set()
for thread in threads:
    thread.join()
say(sum(counts))
"""


def test_fifty_forks_of_a_busy_process_leave_the_ledger_exact(ledger, tmp_path):
    """While two threads spend from the file, each of fifty children spends once."""
    spent = int(run(MANY, tmp_path, **ledger.on_file))
    assert spent > 0
    assert ledger.amounts == (spent + 50, 0)


DEFAULT_CLIENT = """
from program import *
from cycles_lite import cycles, lifecycle, set_default_client

@cycles(Amount.tokens(1))
def work():
    pass

ended = threading.Event()

def first_calls():
    while not ended.is_set():
        set_default_client(None)
        lifecycle.default_client().close()

lifecycle.default_client().close()  # whatever is imported late, is by now
thread = threading.Thread(target=first_calls)
thread.start()
try:
    for _ in range(15):
        join(*[fork(work) for _ in range(4)])
finally:
    ended.set()
    thread.join()
"""


def test_children_that_are_forked_while_a_thread_makes_the_default_client(ledger, tmp_path):
    """Each of sixty gets through its first call: no lock of the parent's thread is held for it.

    Over HTTP: SQLite has locks of its own, which a fork during a thread's `sqlite3.connect` leaves held."""
    run(DEFAULT_CLIENT, tmp_path, **ledger.over_http)
    assert ledger.amounts == (60, 0)


@pytest.mark.parametrize("name", clients._LATE)
def test_what_is_imported_before_a_fork_is_there(name):
    """A name that is wrong would be passed over in silence, and its module be imported by a child."""
    importlib.import_module("cycles_lite." + name)
