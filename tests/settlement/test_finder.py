"""What other processes have left: all of it is settled, in bounded steps, and a bounded part of it is in memory."""

from __future__ import annotations

import os
import threading
import time

import pytest
from implementation import collect_on_pypy
from interrupts import IS_LONG, AtLine, Interrupt, is_finalizer, needs_tracing
from ledgers import tokens
from peers import FakeTransport, allowed, client_of, committed, replied

from cycles_lite import Action, SettlementStatus, TransportError
from cycles_lite.background import worker as workers
from cycles_lite.background.worker import Job, worker
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement import finder as finders, journal as journals, look as looks, settler as settlers
from cycles_lite.settlement.claim import Claim
from cycles_lite.settlement.journal import COMMIT, Journal, Record, identity
from cycles_lite.settlement.settler import open_settlers, settler_of

ACTION = Action("llm.completion", "gpt-4o")
URL = "http://fake.invalid"
PATIENCE = 60.0
DENIED = replied({"error": "UNAUTHORIZED", "message": "no", "request_id": "r"}, 401)
DOWN = TransportError("down")

#: Nothing is retried by itself while a test looks.
LATER = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "heartbeat": False}


class Authority(FakeTransport):
    """Grants what is asked for, and answers each commit as it is told to, by the reservation's id."""

    def __init__(self, answer_of=lambda id: replied(committed())):
        super().__init__(self._answer)
        self.answer_of = answer_of

    def _answer(self, call):
        return replied(allowed(reservation_id="rsv_own")) if call.id is None else self.answer_of(call.id)

    @property
    def commits(self):
        return [call.id for call in list(self.calls) if call.operation.name == "commit_reservation"]


@pytest.fixture
def journal(tmp_path):
    return Journal(os.path.join(str(tmp_path), identity(URL, "acme", "key")))


@pytest.fixture
def small(monkeypatch):
    """Bounds that a few records pass."""
    monkeypatch.setattr(finders, "MOST_HELD", 5)
    monkeypatch.setattr(finders, "_IN_HAND", 3)
    monkeypatch.setattr(looks, "MOST_NAMES", 4)
    monkeypatch.setattr(looks, "_PASSED", 3)


def leave(journal, count, **changes):
    """Records as another process leaves them, a second from one to the next; their ids, the oldest first."""
    ids = []
    for number in range(count):
        body = {"actual": {"unit": "TOKENS", "amount": 1}, "idempotency_key": f"key-{number}"}
        event = {**body, "subject": {"tenant": "acme"}, "action": {"kind": "a", "name": "b"}}
        made = Record(f"rsv_{number}", URL, COMMIT, body, event, now_ms())._replace(**changes)
        journal.write(made)
        os.utime(journal.path_of(made.reservation_id), (1_000_000_000 + number, 1_000_000_000 + number))
        ids.append(made.reservation_id)
    return ids


def client_with(journal, transport, **changes):
    settings = {"journal_dir": os.path.dirname(journal.folder), "flush_timeout": 0.0, **LATER, **changes}
    return client_of(URL, transport=transport, **settings)


@pytest.fixture
def no_first_look(monkeypatch):
    """Nothing is looked for before somebody flushes, however long that takes to come."""
    monkeypatch.setattr(finders, "_FIRST_LOOK", 600.0)


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, condition
        threading.Event().wait(0.002)


@pytest.fixture
def read_by(monkeypatch):
    """How many records each thread has read, and how many files it has gone past."""
    counted = {"read": {}, "seen": {}}

    def count(kind):
        counted[kind][threading.get_ident()] = counted[kind].get(threading.get_ident(), 0) + 1

    read, scan = journals.read_file, os.scandir

    class Entries:
        def __init__(self, folder):
            self._entries = scan(folder)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def __iter__(self):
            return self

        def __next__(self):
            count("seen")
            return next(self._entries)

        def close(self):
            self._entries.close()

    monkeypatch.setattr(journals, "read_file", lambda path: (count("read"), read(path))[1])
    monkeypatch.setattr(os, "scandir", Entries)
    return counted


# ---- The program notices nothing of it ----


def test_the_first_reserve_reads_no_record_and_goes_past_few_files(journal, read_by):
    """The background does, and that in steps."""
    leave(journal, 300, not_before_ms=now_ms() + 3_600_000)
    with client_with(journal, Authority()) as client:
        client.reserve(tokens(5), ACTION).release("")
        me = threading.get_ident()
        assert read_by["read"].get(me, 0) == 0
        assert read_by["seen"].get(me, 0) < 80
        wait_until(lambda: sum(read_by["read"].values()) >= 300)


@pytest.mark.parametrize("is_answered", [True, False])
def test_close_without_time_touches_little_however_much_is_due(journal, read_by, monkeypatch, is_answered):
    """Not one record is read, few files are gone past, and few jobs are cancelled before the end."""
    leave(journal, 500)
    client = client_with(journal, Authority(lambda id: replied(committed()) if is_answered else DOWN))
    settler = settler_of(client._session)
    for number in range(1000):  # and this process itself has much that is pending
        with client.reserve(tokens(5), ACTION) as guard:
            guard.reservation_id = f"rsv_own_{number}"
            guard.commit_later(tokens(1))
    me = threading.get_ident()
    read_by["read"].pop(me, None)
    read_by["seen"].pop(me, None)
    cancelled, cancel = [], Job.cancel
    monkeypatch.setattr(Job, "cancel", lambda job: (cancelled.append(threading.get_ident()), cancel(job))[1])
    client.close()
    assert read_by["read"].get(me, 0) == 0
    assert read_by["seen"].get(me, 0) < 200
    assert cancelled.count(me) < 300
    wait_until(lambda: not settler.pending)


def test_flush_without_time_counts_every_record(journal):
    leave(journal, 300)
    with client_with(journal, Authority(lambda id: DOWN)) as client:
        assert client.flush(0.0) == 300


def test_a_bounded_part_is_held_in_memory(journal, small):
    leave(journal, 40, not_before_ms=now_ms() + 3_600_000)
    with client_with(journal, Authority()) as client:
        assert client.flush(PATIENCE) == 40
        assert len(client._session.settler.pending) <= 7
        assert client.flush(PATIENCE) == 40


# ---- All of it is settled ----


def test_all_is_settled_the_oldest_first(journal, small, monkeypatch):
    monkeypatch.setattr(finders, "_IN_HAND", 1)
    monkeypatch.setattr(workers, "MAX_THREADS", 1)  # a second thread might overtake the first before it has sent
    ids = leave(journal, 30)
    transport = Authority()
    with client_with(journal, transport) as client:
        assert client.flush(PATIENCE) == 0
    assert transport.commits == ids
    assert journal.names() == set()


def test_what_nobody_can_settle_keeps_nothing_else_waiting(journal, small, no_first_look):
    """Nor is it sent more than once in a look."""
    ids = leave(journal, 40)
    bad = set(ids[:20])
    transport = Authority(lambda id: DENIED if id in bad else replied(committed()))
    with client_with(journal, transport) as client:
        assert client.flush(PATIENCE) == 20
        assert sorted(transport.commits) == sorted(ids)
        assert len(client._session.settler.pending) <= 7
        bad.clear()
        assert client.flush(PATIENCE) == 0
    assert journal.names() == set()


def test_when_the_authority_is_back_what_was_left_on_disk_follows(journal, small):
    """By itself, once the first that is held in memory has gone through."""
    leave(journal, 40)
    answer = [DOWN]
    transport = Authority(lambda id: answer[0])
    with client_with(journal, transport, retry_initial_delay=0.2, retry_max_delay=0.2, retry_max_attempts=10**6) as c:
        assert c.flush(PATIENCE) == 40
        answer[0] = replied(committed())
        wait_until(lambda: not journal.names())
        assert c.flush(PATIENCE) == 0


def test_what_may_be_sent_later_is_found_again_then(journal, small):
    leave(journal, 20, not_before_ms=now_ms() + 1500)
    with client_with(journal, Authority(), heartbeat=True) as client:
        guard = client.reserve(tokens(5), ACTION, ttl_ms=600_000)  # its heartbeat keeps a thread
        wait_until(lambda: not journal.names())
        guard.release("")


def test_a_flush_that_joins_a_look_tries_what_that_has_passed_by(journal, small):
    ids = leave(journal, 30)
    answer, reached = [DENIED], threading.Event()

    def answer_of(id):
        if id == ids[-1]:
            reached.set()
            assert may_go_on.wait(PATIENCE)
        return answer[0]

    may_go_on, transport = threading.Event(), Authority(answer_of)
    with client_with(journal, transport) as client:
        settler = settler_of(client._session)
        settler.open()
        assert reached.wait(PATIENCE)  # the last one is on its way, and most are on disk alone
        others = [spend for id, spend in list(settler.pending.items()) if id != ids[-1]]
        wait_until(lambda: all(spend.runner is None for spend in others))  # and no other is being refused just now
        answer[0] = replied(committed())
        threading.Timer(0.1, may_go_on.set).start()
        assert client.flush(PATIENCE) == 0
    assert journal.names() == set()


def test_what_another_process_is_looking_at_is_counted(journal):
    leave(journal, 3)
    claim = Claim(journal.folder)
    transport = Authority()
    with client_with(journal, transport) as client:
        assert client.flush(PATIENCE) == 3
        assert transport.commits == []
        claim.close()
        assert client.flush(PATIENCE) == 0


def test_a_client_that_is_closed_within_a_look_leaves_all_of_it_to_another(journal):
    """The claim is given up, and what it has read counts as nobody's."""
    leave(journal, 300)
    for _ in range(5):
        with client_with(journal, Authority(lambda id: DOWN)) as client:
            client.flush(0.0)
    # The last steps and attempts have ended.
    wait_until(lambda: all(each.finder._turns.free and each.finder._look is None for each in open_settlers()))
    wait_until(lambda: not any(settler.pending for settler in open_settlers()))
    transport = Authority()
    with client_with(journal, transport) as client:
        assert client.flush(PATIENCE) == 0
    assert journal.names() == set()
    assert len(transport.commits) == 300


def test_a_flush_waits_for_no_other_look_than_its_own_although_that_is_over_at_once(journal, monkeypatch):
    """A thread that starts with it may look around before it goes on."""
    leave(journal, 1)
    claim, post = Claim(journal.folder), finders.Finder._post
    with client_with(journal, Authority()) as client:
        settler_of(client._session).open()
        finder = settler_of(client._session).finder
        wait_until(lambda: finder.looks == 1 and finder._is_to_come(finder._job))

        def post_and_wait(finder, *args, **settings):
            looks = finder.looks
            post(finder, *args, **settings)
            if not finder._job.is_guest:
                wait_until(lambda: finder.looks > looks)

        monkeypatch.setattr(finders.Finder, "_post", post_and_wait)
        begun = time.monotonic()
        assert client.flush(PATIENCE) == 1
        assert time.monotonic() - begun < PATIENCE / 2
        monkeypatch.undo()
    claim.close()


def test_a_look_that_is_asked_for_while_the_last_one_ends_is_not_put_off(journal, monkeypatch, no_first_look):
    leave(journal, 1)
    with client_with(journal, Authority(lambda id: DOWN)) as client:
        finder, step_of = settler_of(client._session).finder, finders._step_of
        settler_of(client._session).open()

        def asked_for_first(finder, delay):
            if delay == finders.LOOK_AGAIN:
                monkeypatch.setattr(finders, "_step_of", step_of)
                leave(journal, 2)  # a look of more than one step
                finder.look_around()
            return step_of(finder, delay)

        monkeypatch.setattr(finders, "_step_of", asked_for_first)
        first = finder.look_around()
        wait_until(lambda: finder.looks > first)


def test_a_look_that_is_being_asked_for_is_not_put_off_either(journal, monkeypatch, no_first_look):
    """Where the thread that asks has said so, and has not come to post it yet."""
    leave(journal, 1)
    with client_with(journal, Authority(lambda id: DOWN)) as client:
        finder, posts = settler_of(client._session).finder, []
        settler_of(client._session).open()
        post = finders.worker.post

        def overtaken(job):
            posts.append(job)
            if len(posts) == 1:
                finder._look_later()
            post(job)

        monkeypatch.setattr(finders.worker, "post", overtaken)
        first = finder.look_around()
        wait_until(lambda: finder.looks >= first)
        assert [job.is_guest for job in posts[:2]] == [False, True]


def test_a_look_under_way_goes_on_although_the_next_one_was_put_in_its_place(
    journal, small, monkeypatch, no_first_look
):
    leave(journal, 9)
    with client_with(journal, Authority(lambda id: DOWN)) as client:
        finder, posts = settler_of(client._session).finder, []
        settler_of(client._session).open()
        post = finders.worker.post
        monkeypatch.setattr(finders.worker, "post", posts.append)
        finder.look_around()
        posts[-1].run()
        assert finder.is_looking
        step = posts[-1]
        finder._job = finder._posted = guest = finders._step_of(finder, 600.0)
        guest.is_guest = True
        step.run()
        assert finder.is_looking
        assert not posts[-1].is_guest
        assert not guest.is_waiting
        monkeypatch.setattr(finders.worker, "post", post)
        post(posts[-1])
        assert client.flush(PATIENCE) == 9


def test_a_look_ends_although_the_authority_puts_all_off_at_once(journal, small, monkeypatch):
    """What is put off is written again, and so comes after all others; it must not come twice in one look."""
    monkeypatch.setattr(finders, "_BETWEEN_LOOKS", 600.0)  # there is one look
    ids = leave(journal, 30)
    refused = {"error": "LIMIT_EXCEEDED", "message": "no", "request_id": "r"}
    transport = Authority(lambda id: replied(refused, 429, retry_after="0"))
    with client_with(journal, transport) as client:
        settler_of(client._session).open()
        finder = settler_of(client._session).finder
        wait_until(lambda: finder.looks == 1)
        assert finder.has_left
        assert len(transport.commits) < 2 * len(ids)


# ---- Without threads, and interrupted ----


@pytest.fixture
def inline(monkeypatch):
    """No thread is to be had."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    wait_until(lambda: not worker._threads or worker.leave())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    yield
    worker._after_fork()


@pytest.mark.parametrize("takes", [0.0, 2 * finders._PAUSE])
def test_without_threads_each_call_sends_one_record_and_flush_all(journal, inline, takes):
    """However long it takes to send: the next step may be due by then."""
    leave(journal, 12)
    transport = Authority(lambda id: (time.sleep(takes), DOWN)[1])
    with client_with(journal, transport) as client:
        sent, end = [0], time.monotonic() + PATIENCE
        while sent[-1] < 5:
            assert time.monotonic() < end
            client.reserve(tokens(5), ACTION).release("")
            sent.append(len(transport.commits))
        assert max(later - before for before, later in zip(sent, sent[1:])) == 1
        transport.answer_of = lambda id: replied(committed())
        assert client.flush(PATIENCE) == 0
    assert journal.names() == set()


def interrupted_look(settler, at, calls):
    """Begin a look, and go on with it in so many calls, up to where it is interrupted."""
    try:
        with at:
            settler.finder.look_around()
            for _ in range(calls):
                worker.catch_up()
    except Interrupt:
        pass
    collect_on_pypy()


@needs_tracing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
def test_wherever_a_step_is_interrupted_a_flush_settles_all(journal, inline, small):
    nth, at = 0, None
    while at is None or at.where is not None:
        nth += 1 if IS_LONG else 7
        leave(journal, 2)
        with client_with(journal, Authority()) as client:
            settler = settler_of(client._session)
            settler.open()
            at = AtLine(nth, files=finders.__file__.rpartition(os.sep)[0])
            interrupted_look(settler, at, 2)
            assert client.flush(PATIENCE) == 0, at.where
        assert journal.names() == set(), at.where


def _grows(frame):
    """Whether more and more lines are reached here with each client that was made before."""
    return is_finalizer(frame) or frame.f_code.co_name in ("_known", "<setcomp>", "open_settlers", "<listcomp>")


@needs_tracing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer has lines too
def test_wherever_a_step_is_interrupted_later_calls_settle_all(journal, inline, small):
    """Nobody flushes: the program goes on as before."""
    package = os.path.dirname(os.path.dirname(finders.__file__)) + os.sep
    nth, at = 0, None
    while at is None or at.where is not None:
        nth += 1 if IS_LONG else 23
        leave(journal, 2)
        with client_with(journal, Authority()) as client:
            settler = settler_of(client._session)
            settler.open()
            at = AtLine(nth, files=(package + "settlement", package + "background"), skips=_grows)
            interrupted_look(settler, at, 6)
            end = time.monotonic() + PATIENCE
            while journal.names():
                assert time.monotonic() < end, at.where
                client.reserve(tokens(5), ACTION).release("")
        worker._after_fork()
        worker._is_refused = True


def test_a_flush_without_threads_is_not_held_up_by_pauses(journal, inline, monkeypatch):
    """It has a deadline, so that it need not take one record at a time."""
    leave(journal, 100)
    steps, take_step = [], finders.Finder._step
    monkeypatch.setattr(finders.Finder, "_step", lambda *args: (steps.append(1), take_step(*args))[1])
    with client_with(journal, Authority()) as client:
        assert client.flush(PATIENCE) == 0
    assert len(steps) < 20


def test_what_is_found_while_a_flush_counts_is_counted(journal, inline, monkeypatch):
    """As by a look in another thread. It is neither held when that is counted, nor unknown when files are."""
    leave(journal, 3)
    with client_with(journal, Authority(lambda id: DOWN)) as client:
        settler, opened = settler_of(client._session), settlers.open_settlers

        def find_first():
            monkeypatch.setattr(settlers, "open_settlers", opened)
            for _ in range(2):  # past the files, and to the first record
                settler.finder.go_on()
            return opened()

        monkeypatch.setattr(settlers, "open_settlers", find_first)
        assert client.flush(0.0) == 3
        assert settler.pending  # it has found one of them by then


def test_a_flush_sees_what_came_after_the_look_that_it_joins(journal, small):
    reached, may_go_on = threading.Event(), threading.Event()

    def answer_of(id):
        if id == "rsv_0":
            reached.set()
            assert may_go_on.wait(PATIENCE)
        return replied(committed())

    leave(journal, 8)
    transport = Authority(answer_of)
    with client_with(journal, transport) as client:
        finder = settler_of(client._session).finder
        settler_of(client._session).open()
        assert reached.wait(PATIENCE)
        search = finder._look
        wait_until(lambda: len(transport.commits) >= 7 or finder._look is not search)
        body = {"actual": {"unit": "TOKENS", "amount": 1}, "idempotency_key": "late"}
        late = Record("rsv_late", URL, COMMIT, body, body, now_ms())
        journal.write(late)
        os.utime(journal.path_of(late.reservation_id), (1, 1))  # it is older than what has been looked at
        threading.Timer(0.2, may_go_on.set).start()
        assert client.flush(PATIENCE) == 0
    assert "rsv_late" in transport.commits


def test_spend_of_this_process_is_not_dropped_for_what_is_found(journal, small):
    """However many records there are: its own is retried from memory."""
    leave(journal, 20)
    transport = Authority(lambda id: DOWN)
    with client_with(journal, transport) as client:
        assert client.flush(PATIENCE) == 20
        with client.reserve(tokens(5), ACTION) as guard:
            assert guard.commit(tokens(1)).status is SettlementStatus.PENDING
        assert guard.reservation_id in client._session.settler.pending
