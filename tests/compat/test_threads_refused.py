"""Where no thread is to be had, everything works inline, with one warning.

A real refusal is awkward: RLIMIT_NPROC does not bind root, and uWSGI needs a compiler. So these programs make
`Thread.start` raise what it raises at a limit, or have a module `uwsgi` as uWSGI without threads has.
"""

from __future__ import annotations

import peers
import pytest
from desks import DOWN, requests_of
from hosts import ended_well, run, running

AT_A_LIMIT = """
import threading

def start(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
reason = "can't start new thread"
"""

UWSGI = """
import sys, types

sys.modules["uwsgi"] = types.ModuleType("uwsgi")
sys.modules["uwsgi"].opt = {"http": b":8000", b"workers": b"2"}
reason = "uWSGI runs without --enable-threads"
"""

BEGIN = """
from program import *
import gc, logging, warnings

said = []

class Ear(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("cycles_lite").addHandler(Ear())

def told_once():
    assert threading.active_count() == 1, threading.enumerate()
    told = [line for line in said if "thread" in line]
    assert told == ["no background thread is to be had ({}): heartbeats and retries run inline".format(reason)], said
"""

EVERYTHING = """
client = new_client()
for _ in range(3):
    spend(client)
with reserve(client) as guard:
    guard.spend(4)
reserve(client).release("not needed")
warnings.simplefilter("ignore", ResourceWarning)
reserve(client).spend(5)  # and forgotten
gc.collect()
assert client.flush() == 0
client.close()
spend(client)
told_once()
"""


@pytest.mark.parametrize("host", [AT_A_LIMIT, UWSGI], ids=["limit", "uwsgi"])
def test_everything_works_inline(place, ledger, tmp_path, host):
    """Commits, meters, releases, what was forgotten, flush, close and exit; and one warning for all of it."""
    run(host + BEGIN + EVERYTHING, tmp_path, **place)
    assert ledger.amounts == (3 + 4 + 5 + 1, 0)


PENDING = """
client = new_client(retry_initial_delay=0)

def pending():
    with reserve(client) as guard:
        assert guard.commit(Amount.tokens(1)).status.value == "PENDING"
    say("pending")
    assert hear() == "go"

pending()
reserve(client).release("")  # on this occasion what is due is tried
say("called")
assert hear() == "go"
pending()
assert client.flush(30) == 0
told_once()
"""


@pytest.mark.parametrize("host", [AT_A_LIMIT, UWSGI], ids=["limit", "uwsgi"])
def test_pending_spend_is_retried_by_later_calls_and_by_flush(desk, peer, scripted, records, tmp_path, host):
    """Each pending settlement is sent again, with its key, when the library is next called, and at `flush`."""
    desk.answers["commit"] = DOWN
    with running(host + BEGIN + PENDING, tmp_path, **scripted) as program:
        program.expect("pending")
        assert len(requests_of(peer, "commit")) == 2
        del desk.answers["commit"]
        program.say()
        program.expect("called")
        assert len(requests_of(peer, "commit")) == 3
        assert records() == []
        desk.answers["commit"] = DOWN
        program.say()
        program.expect("pending")
        assert len(requests_of(peer, "commit")) == 5
        del desk.answers["commit"]
        program.say()
        ended_well(program)
    keys = [request.json["idempotency_key"] for request in requests_of(peer, "commit")]
    assert len(keys) == 6
    assert len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert records() == []


BEAT = """
client = new_client()
with reserve(client) as guard:
    say("reserved")
    assert hear() == "go"
    guard.spend(1)
    say("spent")
    assert hear() == "go"
told_once()
"""


def test_heartbeats_are_sent_by_later_calls(desk, peer, scripted, tmp_path):
    """A beat that is due goes out when the work meters."""
    # One second is less than what is kept for two attempts: the first beat is due at once. The next is not.
    desk.answers["create"] = peers.answer(peers.allowed(remaining_ttl_ms=1000))
    desk.answers["extend"] = peers.answer(peers.extended(remaining_ttl_ms=61_000))
    with running(AT_A_LIMIT + BEGIN + BEAT, tmp_path, **scripted) as program:
        program.expect("reserved")
        assert requests_of(peer, "extend") == []
        program.say()
        program.expect("spent")
        assert len(requests_of(peer, "extend")) == 1
        program.say()
        ended_well(program)


FORGOTTEN = """
warnings.simplefilter("ignore", ResourceWarning)
client = new_client()
guards = [reserve(client) for _ in range(300)]
for guard in guards:
    guard.spend(1)
del guard, guards
gc.collect()
assert client.flush(30) == 0
told_once()
assert len(said) == 1, said
"""


def test_much_to_do_inline_does_not_pile_up_on_the_stack(ledger, tmp_path):
    """A settlement that runs inline takes up no further one within itself."""
    run(AT_A_LIMIT + BEGIN + FORGOTTEN, tmp_path, **ledger.on_file)
    assert ledger.amounts == (300, 0)
