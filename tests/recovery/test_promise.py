"""The promise about spend (design: section 5) where the profile's scenarios do not look: bad moments, bad disks, bad
observers, bad servers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from faults import failed, intact, lost_answer, refused, swallowed_answer
from peers import Peer, allowed, answer, client_of, committed, ends_within, refusal, silent
from serving import PATIENCE, ROOT
from stage import ACTION, Stage, key_of, kinds_and_keys

from cycles_lite import Amount, SettlementStatus, Subject, events
from cycles_lite.background import heartbeat
from cycles_lite.runtime import system
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement import finder, journal
from cycles_lite.settlement.journal import Journal

ESTIMATE, ACTUAL = Amount.tokens(100), Amount.tokens(42)

#: No retry in the background while a test looks.
SLOW = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0}

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path) as stage:
        yield stage


def leave_pending(stage, count=1, subject=None, **changes):
    """Guards whose commits failed, and whose client is closed: their records are on disk."""
    stage.faults["/commit"] = [failed] * 1000
    with stage.client(**SLOW, flush_timeout=0.0, **changes) as client:
        for _ in range(count):
            with client.reserve(ESTIMATE, ACTION, subject=subject) as guard:
                assert guard.commit(ACTUAL).status is SettlementStatus.PENDING
    end = time.monotonic() + PATIENCE
    while client._session.settler.pending:  # its close may have begun an attempt, which is not to succeed
        assert time.monotonic() < end
        time.sleep(0.005)
    stage.faults["/commit"] = []
    assert len(stage.records()) == count


def wait_for(told, kind, count):
    """So many events of a kind, and no more. A worker tells of a settlement after it has ended it, so that a flush may
    be over a moment before."""
    end = time.monotonic() + PATIENCE
    while True:
        found = [event for event in told if isinstance(event, kind)]
        if len(found) >= count:
            assert len(found) == count
            return found
        assert time.monotonic() < end, told
        time.sleep(0.005)


# ---- Bad moments ----


def test_threads_that_use_a_new_client_at_once_all_write_before_they_send(stage):
    """Finding the journal takes a while, without a tenant more; nobody settles before it is found."""
    unwritten = []

    def look(passage, line):
        id = passage.target.split("/")[-2]
        if id not in [record["reservation_id"] for record in stage.records().values()]:
            unwritten.append(id)
        intact(passage, line)

    for number in range(5):
        stage.faults["/commit"] = [look] * 6
        start = threading.Barrier(6)
        with stage.client(tenant=None, agent="bot", journal_dir=str(stage.journal / str(number))) as client:

            def work(start=start):
                start.wait(PATIENCE)
                with client.reserve(ESTIMATE, ACTION, subject=Subject(tenant="acme")) as guard:
                    guard.commit(Amount.tokens(1))

            run_together([work] * 6)
    assert unwritten == []
    assert stage.spent() == 30


def test_a_record_is_tried_by_one_thread_at_a_time(stage):
    """A flush right after the start does not send what the worker is about to send."""
    leave_pending(stage, 20)
    told, before = [], len(stage.sent("/commit"))
    with stage.client(observer=told.append) as client:
        assert client.flush(PATIENCE) == 0
    assert len(stage.sent("/commit")) - before == 20
    wait_for(told, events.Settled, 20)
    assert stage.spent() == 20 * 42


@pytest.mark.parametrize(("more", "left"), [([], 0), ([failed], 1)])
def test_a_flush_waits_for_an_attempt_that_began_after_it(stage, more, left):
    """One that was under way may have begun when the authority was down. It does not wait for any after that, which
    are minutes away."""
    leave_pending(stage)
    reached, release = threading.Event(), threading.Event()

    def hold(passage, line):
        reached.set()
        assert release.wait(PATIENCE)
        failed(passage, line)

    stage.faults["/commit"] = [hold, *more]
    with stage.client(**SLOW, flush_timeout=0.0) as client:
        assert client.flush(0.0) == 1
        assert reached.wait(PATIENCE)
        with ends_within(PATIENCE / 2):
            release_soon = threading.Timer(0.2, release.set)  # once the flush waits
            release_soon.start()
            assert client.flush(PATIENCE) == left
            release_soon.join()


def test_ctrl_c_while_the_record_is_written_loses_nothing(stage, monkeypatch):
    """The exception goes on, and the spend is settled in the background."""
    replace, interrupts = os.replace, [KeyboardInterrupt()]

    def interrupted(*paths):
        if interrupts:
            raise interrupts.pop()
        replace(*paths)

    with stage.client() as client:
        monkeypatch.setattr(journal.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            with client.reserve(ESTIMATE, ACTION) as guard:
                guard.commit(ACTUAL)
        assert client.flush(PATIENCE) == 0
    assert stage.spent() == 42
    assert stage.sent("/release") == []
    assert stage.files() == []


def test_an_expired_commit_of_last_week_is_still_recorded(stage):
    """The authority remembers events for seven days, counted from the first; none was sent before."""
    leave_pending(stage)
    age(stage, 8)
    with stage.client() as client:
        assert client.flush(PATIENCE) == 0
    assert kinds_and_keys(stage.settlements())[-2:] == ["commit same key", "event same key"]
    assert stage.spent() == 42
    assert stage.files() == []


def test_a_commit_whose_key_may_be_forgotten_is_reported_and_not_sent(stage):
    leave_pending(stage)
    age(stage, 31)
    told, sent = [], len(stage.proxy.requests)
    with stage.client(observer=told.append) as client:
        client.flush(PATIENCE)
    assert len(stage.proxy.requests) == sent
    ((problem,),) = wait_for(told, events.JournalFailed, 1)
    assert "too old" in problem
    assert "it stays on disk" in problem
    assert '"amount":42' in problem
    assert len(stage.records()) == 1


def age(stage, days):
    """Let days pass since the record was written."""
    stage.ahead_ms = days * DAY_MS
    (path,) = (path for path in stage.files() if path.suffix == ".json")
    record = json.loads(path.read_bytes().decode())
    path.write_bytes(json.dumps({**record, "recorded_at_ms": now_ms() - days * DAY_MS}).encode())


# ---- Two spends of one reservation ----


@pytest.mark.parametrize("where", ["another client", "the same client", "memory"])
def test_a_second_commit_of_a_reservation_takes_no_place_of_the_first(stage, where):
    """Work that is done again with the key of its reservation gets that one again. Both costs are known: one is
    charged, and the other reported."""
    heard = []
    stage.faults["/commit"] = [failed] * 1000
    with ExitStack() as clients:

        def client():
            made = stage.client(**SLOW, observer=heard.append, flush_timeout=0.0, journal_enabled=where != "memory")
            return clients.enter_context(made)

        first = client()
        for amount in (40, 45):
            guard = first.reserve(ESTIMATE, ACTION, idempotency_key="job-1")
            assert guard.commit(Amount.tokens(amount)).status is SettlementStatus.PENDING
            if where == "another client":
                first.close()
                first = client()
        stage.faults.clear()
        while first.flush(PATIENCE):  # the second may wait until the first is settled
            pass
        told = {type(event): event for event in heard if isinstance(event, (events.Settled, events.Rejected))}
        amounts = told[events.Settled].actual.amount, told[events.Rejected].body["actual"]["amount"]
        assert sorted(amounts) == [40, 45]
        assert stage.spent() == amounts[0]
        assert [path.suffix for path in stage.files()] == [".refused"] * (where != "memory")


@pytest.mark.parametrize("where", ["another client", "the same client", "memory"])
def test_a_reservation_of_which_spend_waits_is_not_released(stage, where):
    """Nor by work that is done again with its key, and fails."""
    settings = {**SLOW, "flush_timeout": 0.0, "journal_enabled": where != "memory"}
    stage.faults["/commit"] = [failed] * 1000
    with stage.client(**settings) as first, stage.client(**settings) as other:
        first.reserve(ESTIMATE, ACTION, idempotency_key="job-1").commit(ACTUAL)
        again = other if where == "another client" else first
        again.reserve(ESTIMATE, ACTION, idempotency_key="job-1").release("it failed")
        stage.faults.clear()
        assert first.flush(PATIENCE) == 0
    assert stage.spent() == 42


# ---- Bad disks ----


@pytest.fixture(params=["a full disk", "no journal"])
def forgetful(request, stage, monkeypatch):
    """A client whose spend is nowhere but in memory."""
    if request.param == "a full disk":

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Journal, "write", full)
    with stage.client(**SLOW, flush_timeout=0.0, journal_enabled=request.param != "no journal") as client:
        yield client
        assert client.flush(PATIENCE) == 0


def test_what_is_in_memory_alone_survives_the_clients_close(stage, forgetful):
    """Nobody else could take it up."""
    stage.faults["/commit"] = [failed, failed]
    with forgetful.reserve(ESTIMATE, ACTION) as guard:
        assert guard.commit(ACTUAL).status is SettlementStatus.PENDING
    forgetful.close()
    assert stage.spent() == 0
    assert forgetful.flush(PATIENCE) == 0
    assert stage.spent() == 42


def test_a_file_system_without_locks_is_replayed_all_the_same(stage, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    leave_pending(stage)
    monkeypatch.setattr(system.fcntl, "flock", unsupported)
    with stage.client() as client:
        assert client.flush(PATIENCE) == 0
    assert stage.spent() == 42


def test_a_record_that_a_killed_process_leaves_is_settled_while_its_sibling_lives(stage):
    """By the sibling's next flush: nobody has the folder for itself for longer than a look takes."""
    with stage.client() as sibling:
        with sibling.reserve(ESTIMATE, ACTION) as guard:
            guard.commit(ACTUAL)
        leave_pending(stage, 3)
        assert sibling.flush(PATIENCE) == 0
        assert stage.spent() == 4 * 42
        assert stage.records() == {}


def test_a_process_that_starts_beside_a_living_one_settles_what_a_killed_one_left(stage):
    with stage.client() as sibling:
        with sibling.reserve(ESTIMATE, ACTION) as guard:
            guard.commit(ACTUAL)
        leave_pending(stage, 3)
        stage.actor("flush").end()
        assert stage.spent() == 4 * 42
        assert sibling.flush(0.0) == 0


def test_two_clients_that_share_a_journal_settle_each_record_once(stage):
    """And each settlement is told once, whoever of them made it."""
    leave_pending(stage, 10)
    told, before = [], len(stage.sent("/commit"))
    with stage.client(observer=told.append) as first, stage.client(observer=told.append) as second:
        for client in (first, second):
            with client.reserve(ESTIMATE, ACTION) as guard:
                guard.commit(ACTUAL)
        run_together([lambda: first.flush(PATIENCE), lambda: second.flush(PATIENCE)])
        assert first.flush(PATIENCE) + second.flush(PATIENCE) == 0
    assert len({event.reservation_id for event in wait_for(told, events.Settled, 12)}) == 12
    assert len(stage.sent("/commit")) - before == 12
    assert stage.spent() == 12 * 42


def test_a_living_process_looks_again_by_itself(stage, monkeypatch):
    """A fresh process is not needed, nor a call: the thread that its heartbeats keep does it."""
    monkeypatch.setattr(finder, "LOOK_AGAIN", 0.05)
    with stage.client(heartbeat=True) as sibling:
        with sibling.reserve(ESTIMATE, ACTION) as guard:
            guard.commit(ACTUAL)
        stage.faults["/commit"] = [failed] * 2
        stage.actor("commit 42", **SLOW, flush_timeout=0.0).end()
        end = time.monotonic() + PATIENCE
        while stage.records():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert sibling.flush(PATIENCE) == 0
    assert stage.spent() == 2 * 42


def test_what_was_left_without_a_tenant_is_found_with_one(stage):
    """The folder is another then, the server and the key are the same."""
    leave_pending(stage, tenant=None, agent="bot", subject=Subject(tenant="acme"))
    with stage.client() as client:
        assert client.flush(PATIENCE) == 0
    assert stage.spent() == 42
    assert stage.files() == []


def test_spend_of_another_server_is_reported_and_not_sent(stage):
    leave_pending(stage)
    (path,) = (path for path in stage.files() if path.suffix == ".json")
    record = json.loads(path.read_bytes().decode())
    path.write_bytes(json.dumps({**record, "base_url": "http://other.example.com"}).encode())
    told, before = [], len(stage.settlements())
    with stage.client(observer=told.append) as client:
        for _ in range(3):
            client.flush(PATIENCE)
    assert len(stage.settlements()) == before
    (problem,) = (event.problem for event in told if isinstance(event, events.JournalFailed))
    assert "other.example.com: not sent" in problem
    assert len(stage.records()) == 1


def test_a_refused_record_is_set_aside_and_not_deleted(stage):
    """With all that was to be settled in it; nobody sends it again."""
    leave_pending(stage)
    stage.faults["/commit"] = [refused]
    told = []
    with stage.client(observer=told.append) as client:
        assert client.flush(PATIENCE) == 0
    assert any(isinstance(event, events.Rejected) for event in told)
    (path,) = stage.files()
    assert path.suffix == ".refused"
    assert json.loads(path.read_bytes().decode())["commit_body"]["actual"]["amount"] == 42
    with stage.client() as client:
        before = len(stage.settlements())
        assert client.flush(PATIENCE) == 0
        assert len(stage.settlements()) == before


def test_close_in_one_thread_strands_nothing_of_the_others(stage):
    """While others commit through a short outage: afterwards the server is well, and nothing is left on disk."""
    with stage.client() as client:
        guards = [client.reserve(ESTIMATE, ACTION) for _ in range(8)]
        stage.faults["/commit"] = [failed] * 12
        run_together([*(lambda guard=guard: guard.commit(ACTUAL) for guard in guards), client.close])
        assert client.flush(PATIENCE) == 0
        assert stage.records() == {}
    assert stage.spent() == 8 * 42


# ---- Bad observers ----


def test_an_observer_that_exits_does_not_end_the_retries(stage):
    """In the background there is nobody to exit."""
    seen = []

    def observe(event):
        if isinstance(event, events.Pending) and threading.current_thread().name == "cycles-lite-worker":
            seen.append(event)
            raise SystemExit

    stage.faults["/commit"] = [failed] * 3
    with stage.client(observer=observe) as client:
        with client.reserve(ESTIMATE, ACTION) as guard:
            guard.commit(ACTUAL)
        settle(client)
        wait_for(seen, events.Pending, 1)
        stage.faults["/commit"] = [failed] * 2
        with client.reserve(ESTIMATE, ACTION) as guard:
            guard.commit(ACTUAL)
        settle(client)
    assert stage.spent() == 84


def settle(client):
    for _ in range(100):
        if client.flush(1.0) == 0:
            return
    raise AssertionError("still pending")


def test_an_observer_that_flushes_does_not_defeat_the_backoff(stage):
    """Told of a failure, it flushes: what has just failed, and what else waits, is not tried again for that."""
    stage.faults["/commit"] = [failed] * 1000
    told, clients = [], []

    def observe(event):
        if isinstance(event, events.Pending):
            told.append(event)
            clients[0].flush(5.0)

    with stage.client(observer=observe, retry_initial_delay=0.4, retry_max_delay=0.4, flush_timeout=0.0) as client:
        clients.append(client)
        start = time.monotonic()
        for _ in range(3):
            with client.reserve(ESTIMATE, ACTION) as guard:
                guard.commit(ACTUAL)
        while len(told) < 9:  # the first failures, and two retries of each
            assert time.monotonic() - start < PATIENCE
            time.sleep(0.01)
        sent = len(stage.sent("/commit"))
        assert sent <= 6 + 3 * ((time.monotonic() - start) / 0.4 + 1)
        stage.faults["/commit"] = []
        settle(client)


# ---- Bad servers ----


def test_a_server_that_says_retry_after_0_for_ever_is_not_hammered():
    """Once at once, then with a growing delay."""
    came = []

    def serve(line, request):
        if request.target == "/v1/reservations":
            line.send(answer(allowed()))
        elif len(came) < 6:
            came.append(now_ms())
            line.send(refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", "0")]))
        else:
            line.send(answer(committed()))

    with Peer(serve) as peer:
        with client_of(peer, retry_initial_delay=0.1, retry_max_delay=0.2, heartbeat=False) as client:
            with client.reserve(ESTIMATE, ACTION) as guard:
                assert guard.commit(ACTUAL).status is SettlementStatus.PENDING
            peer.wait_for(8)
            settle(client)
    gaps = [after - before for before, after in zip(came, came[1:])]
    assert all(gap >= 190 for gap in gaps[1:]), gaps


def test_spend_of_a_degraded_guard_survives_a_kill(stage):
    """It has no reservation: it is an event from the start, and on disk before it is sent."""
    stage.faults["/v1/reservations"] = [failed, failed]
    stage.faults["/events"] = [stage.looking_first(swallowed_answer), lost_answer]
    killed = stage.actor("commit 42", on_unavailable="allow")
    stage.wait_for_look()
    killed.kill()
    (record,) = stage.at_request.values()
    assert record["reservation_id"] == "degraded:" + key_of(stage.sent("/events")[0])
    assert (record["mode"], record["commit_body"]) == ("event", None)
    restarted = stage.actor("flush", "flush", "flush")
    restarted.end()
    assert len({key_of(request) for request in stage.sent("/events")}) == 1
    assert stage.spent() == 42
    assert stage.files() == []


def test_an_extension_of_the_programs_own_leaves_one_heartbeat(stage, monkeypatch):
    """Also where a beat is under way meanwhile: two chains of beats would use up the extensions twice as fast."""
    jobs, post = [], heartbeat.worker.post
    monkeypatch.setattr(heartbeat.worker, "post", lambda job: (job.is_guest or jobs.append(job), post(job)))
    reached, release = threading.Event(), threading.Event()

    def hold(passage, line):
        reached.set()
        assert release.wait(PATIENCE)
        intact(passage, line)

    stage.faults["/extend"] = [hold]
    with stage.client(heartbeat=True) as client:
        with client.reserve(ESTIMATE, ACTION, ttl_ms=4000, grace_period_ms=60_000) as guard:
            assert reached.wait(PATIENCE)
            guard.extend(60_000)
            release.set()
            end = time.monotonic() + PATIENCE
            while not all(job.is_over or job.is_waiting for job in jobs):  # the beat that was held
                assert time.monotonic() < end
                time.sleep(0.01)
            assert [job.is_waiting for job in jobs].count(True) == 1
            guard.commit(ACTUAL)
    assert not any(job.is_waiting for job in jobs)


# ---- The interpreter's end ----

ENDING = """
import atexit, sys, time
ends = []
atexit.register(lambda: print("exit took", time.monotonic() - ends[0]))  # the first one in is the last one out
sys.path[:0] = {path!r}
from peers import ACTION, client_of
from cycles_lite import Amount
clients = []
for number in range({count}):
    client = client_of({url!r}, tenant="t{{}}".format(number), journal_dir={folder!r}, heartbeat=False,
                       flush_timeout={flush}, read_timeout=60.0, retry_initial_delay=600.0, retry_max_delay=600.0)
    clients.append(client)
    with client.reserve(Amount.tokens(100), ACTION) as guard:
        print(guard.commit(Amount.tokens(42)).status)
    if {close}:
        client.close()
ends.append(time.monotonic())
"""


def seconds_at_the_end(tmp_path, count, flush, close):
    """How long the exit handlers of a process take whose commits failed, and are not answered when tried again."""
    failures = [refusal("INTERNAL_ERROR", 500)] * (2 * count)

    def serve(line, request):
        if request.target == "/v1/reservations":
            line.send(answer(allowed()))
        elif failures:
            line.send(failures.pop())
        else:
            silent(line, request)

    with Peer(serve) as peer:
        path = [ROOT, os.path.join(ROOT, "tests")]
        program = ENDING.format(
            path=path, count=count, url=peer.url, folder=str(tmp_path / "journal"), flush=flush, close=close
        )
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONWARNINGS": "error"},
            capture_output=True,
            timeout=PATIENCE,
        )
    assert ran.returncode == 0, ran.stderr.decode()
    *statuses, last = ran.stdout.decode().splitlines()
    assert statuses == ["PENDING"] * count
    assert len(list((tmp_path / "journal").glob("*/*.json"))) == count
    return float(last.replace("exit took ", ""))


def test_the_exit_waits_for_all_clients_together(tmp_path):
    """Not for one after the other. What is left is on disk."""
    assert seconds_at_the_end(tmp_path, count=20, flush=1.5, close=False) < 15.0


def test_the_exit_does_not_wait_for_closed_clients_again(tmp_path):
    assert seconds_at_the_end(tmp_path, count=1, flush=6.0, close=True) < 5.0


def run_together(work):
    failures = []

    def run(one):
        try:
            one()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
