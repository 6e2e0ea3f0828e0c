"""Signals: what kills leaves a record, what raises leaves through the `with` block, and nothing is sent twice."""

from __future__ import annotations

import signal

import peers
import pytest
from desks import requests_of
from hosts import ended_well, run, running

KILLED = """
from program import *

client = new_client()
with reserve(client) as guard:
    guard.commit(Amount.tokens(1))
"""

REPLAY = """
from program import *

assert new_client().flush(30) == 0
"""


def test_killed_by_sigterm_during_a_commit(desk, peer, scripted, records, tmp_path):
    """By default SIGTERM ends a process at once: the record is on disk by then, and the next process sends it again
    under the same key."""
    desk.answers["commit"] = peers.silent
    with running(KILLED, tmp_path, **scripted) as program:
        peer.wait_for(2)
        program.signal(signal.SIGTERM)
        assert program.end().status == -signal.SIGTERM
    assert len(records()) == 1
    del desk.answers["commit"]
    run(REPLAY, tmp_path, **scripted)
    first, second = requests_of(peer, "commit")
    assert (first.target, first.body) == (second.target, second.body)
    assert records() == []


SYSTEM_EXIT = """
from program import *

client = new_client()
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
with reserve(client) as guard:
    guard.spend({})
    say("working")
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("metered", [4, 0])
def test_sigterm_as_system_exit(place, ledger, tmp_path, metered):
    """A handler that calls `sys.exit` leaves through the block: the meter is committed, or the reservation released,
    before the process ends with that status."""
    with running(SYSTEM_EXIT.format(metered), tmp_path, **place) as program:
        program.expect("working")
        program.signal(signal.SIGTERM)
        ended = program.end()
    assert (ended.status, ended.err) == (3, "")
    assert ledger.amounts == (metered, 0)


IN_COMMIT = """
from program import *

client = new_client()
try:
    with reserve(client) as guard:
        guard.commit(Amount.tokens(1))
except KeyboardInterrupt:
    say("interrupted")
assert hear() == "go"
assert client.flush(30) == 0
spend(client)
"""


def test_interrupted_during_a_commit(desk, peer, scripted, records, tmp_path):
    """Ctrl-C while the answer is awaited: whether the commit was served is unknown, so it is kept, and sent again
    under the same key, on another connection."""
    desk.answers["commit"] = peers.silent
    with running(IN_COMMIT, tmp_path, **scripted) as program:
        peer.wait_for(2)
        assert len(records()) == 1
        del desk.answers["commit"]
        program.signal(signal.SIGINT)
        program.expect("interrupted")
        program.say()
        ended_well(program)
    first, second, _ = requests_of(peer, "commit")
    assert (first.target, first.body) == (second.target, second.body)
    assert first.connection != second.connection
    assert records() == []


IN_RESERVE = """
from program import *

client = new_client()
try:
    reserve(client, idempotency_key="first")
except KeyboardInterrupt:
    say("interrupted")
assert spend(client, idempotency_key="second").reservation_id == "rsv_second"
"""


def test_interrupted_during_a_reserve(desk, peer, scripted, tmp_path):
    """Ctrl-C comes out of `reserve`; the next one is not given the interrupted one's answer."""
    desk.answers["create"] = peers.silent
    with running(IN_RESERVE, tmp_path, **scripted) as program:
        peer.wait_for(1)
        del desk.answers["create"]
        program.signal(signal.SIGINT)
        program.expect("interrupted")
        ended_well(program)
    first, second = requests_of(peer, "create")
    assert first.connection != second.connection


HANDLERS = """
from program import *
import itertools

client = new_client(heartbeat=False, flush_timeout=5)
calls = itertools.count(1)
failures = []

def handler(number, frame):
    n = next(calls)
    if at_work:  # one within the other would go on for ever, as the signals do
        return
    at_work.append(n)
    try:
        if n % 4 == 0:
            client.flush(0)
        elif n % 4 == 1:
            guard = guards[-1]
            if guard.is_active:
                guard.spend(1)
        elif n % 4 == 2:
            try:
                inner = reserve(client)
            except TransportError:  # a file that the interrupted transaction has locked
                return
            with inner:
                inner.commit(Amount.tokens(1))
            committed.append(1)
        else:
            client.close()
    except GuardFinalizedError:
        pass
    except BaseException as e:
        failures.append(repr(e))
    finally:
        at_work.clear()

from cycles_lite import GuardFinalizedError, TransportError
at_work, committed, guards = [], [], [reserve(client)]
signal.signal(signal.SIGUSR1, handler)
signal.siginterrupt(signal.SIGUSR1, False)
main = threading.main_thread().ident

def bombard():
    while not ended.is_set():
        signal.pthread_kill(main, signal.SIGUSR1)
        ended.wait({pause})

ended = threading.Event()
bomber = threading.Thread(target=bombard)
bomber.start()
outer = 0
try:
    for round in range({rounds}):
        guards.append(reserve(client))
        guards[-1].spend(1)
        guards[-1].commit(Amount.tokens(2))
        outer += 2
        client.flush(0.05)
        if round % 5 == 0:
            client.close()
finally:
    ended.set()
    bomber.join()
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
guards[0].release("not needed")
assert not failures, failures
assert client.flush(30) == 0
say(outer + len(committed))
"""


def test_a_handler_that_uses_the_library_within_a_call_of_it(place, ledger, tmp_path):
    """It spends, commits, flushes and closes while the main thread is inside any of these: nothing hangs, nothing is
    lost."""
    out = run(HANDLERS.format(rounds=25, pause=0.03), tmp_path, **place)
    assert ledger.amounts == (int(out), 0)
