"""The settler acts on what an answer means (`meaning`), for a session's guards and for what earlier processes left.

An amount belongs to the settler from the moment that its `Spend` is marked as kept. From then on it is settled once or
reported as refused, and never released: whatever is raised afterwards, it stays among the pending ones, which are tried
again. The program's threads hold no lock here, because a signal handler may flush, commit or raise at any instruction.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import deque
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, Callable, Iterable

from ..background.worker import Job, worker
from ..errors import CyclesError, TransportTimeout
from ..protocol import wire
from ..runtime import shutdown
from ..runtime.clock import monotonic, now_ms
from ..runtime.log import log
from ..transport.deadline import has_time
from .finder import LOOK_AGAIN, Finder
from .journal import COMMIT, EVENT, Journal, file_name, identity, normalised, usable_folder
from .look import Look
from .meaning import SLOW_RETRY, Meaning, Settlement, SettlementStatus, is_too_old, meaning_of, retry_in
from .spend import Spend, amount_of

if TYPE_CHECKING:
    from ..session import Session

#: Seconds that an attempt takes at the least, if it has met with silence.
_SILENCE = 1.0

#: How many of the pending spends are gone through at once.
_AT_ONCE = 256


class _Mark:
    """What a thread refers to while it is somewhere; however it leaves, nobody refers to it afterwards."""

    __slots__ = ("__weakref__",)


class Settler:
    """Settles the spend of one session's guards, and what earlier processes left in its journal."""

    def __init__(self, session: Session, journal: Journal | None = None) -> None:
        self.session = session
        #: A journal that is to be settled in the place of the session's own, as `cycles-lite journal replay` does.
        self._given = journal
        #: The server that spend is owed to, as records name it.
        self.base_url = normalised(session.config.base_url or "")
        self._begin()

    def _begin(self) -> None:
        """Begin anew, also in a forked child: what was pending in its parent is the parent's to settle."""
        self.pid = os.getpid()
        self._journal: Journal | None = None
        self.is_open = False
        #: Whether the client is being closed.
        self.is_ending = False
        #: One entry until a thread has told where the journal is and looked into it. Popping it is atomic.
        self._unsaid = [True]
        #: The problems of the journal that were reported, by their hash; each look would find and report them again.
        self._told: set[int] = set()
        #: The spend that is not settled yet, by its place. Single operations of a dictionary are atomic.
        self.pending: dict[str, Spend] = {}
        #: What finds spend that other processes have left.
        self.finder = Finder(self)
        #: The threads that are telling the observer of a failed attempt. Each keeps its entry alive while it does so.
        self._tellers: weakref.WeakValueDictionary[int, _Mark] = weakref.WeakValueDictionary()
        #: Numbers attempts, and flushes among them.
        self.numbers = count(1)
        #: The guards that were collected unfinished and are being released, or will be, by `id`.
        self.releasing: dict[int, object] = {}

    # ---- From the guard ----

    def accept(self, spend: Spend) -> None:
        """Take spend over: in memory first, then on disk. It is not sent yet."""
        if not self.is_open or self.pid != os.getpid():  # else its reserve has opened it
            self.open()
        id, journal = spend.record.reservation_id, self._journal
        spend.runner, spend.journal = get_ident(), journal
        # A key that was reserved with before leads to the same reservation, and perhaps to spend that waits there.
        spend.place, spend.is_kept = spend.record.other_place, True
        if not (journal is not None and journal.has(id)) and self.pending.setdefault(id, spend) is spend:
            spend.place = id
        self.pending[spend.place] = spend
        self._write(spend)

    def has(self, id: str) -> bool:
        """Whether spend of a reservation waits to be settled, in this process or on disk."""
        return id in self.pending or (self._journal is not None and self._journal.has(id))

    def settle(self, spend: Spend) -> Settlement:
        """Settle accepted spend now if the authority answers, else retry later. Raises the authority's final no.

        While the caller waits there are two attempts at the most in each of the record's modes; one where the client
        or the process is ending, because the record is on disk.
        """
        if sys.is_finalizing() and spend.is_written:  # an interpreter that ends cannot send
            self._drop(spend)
            return Settlement(SettlementStatus.PENDING)
        told, repeated = None, ""
        while told is None:
            mode = spend.record.mode
            told = self._try(spend, mode != repeated)
            if spend.record.mode == mode:
                repeated = mode
        if isinstance(told, Settlement):
            return told
        try:
            raise told
        finally:
            del told  # else this frame and the error's traceback would keep each other alive

    def resume(self, spend: Spend) -> None:
        """Settle accepted spend in the background. After an interruption of `accept` or `settle` nobody knows how far
        they came, so it is sent again; the key makes a second commit a replay."""
        if spend.is_done:
            return
        try:
            if not spend.is_written:
                self._write(spend)
        finally:
            self.retry_later(spend, 0.0)

    def release(self, guard: object, run: Callable[[], None]) -> None:
        """Have a collected guard released in the background; a flush waits for it. Each guard has one entry, because
        after an interruption it is asked for again."""

        def release() -> None:
            try:
                run()
            finally:
                self.releasing.pop(id(guard), None)

        self.releasing[id(guard)] = guard
        worker.schedule(0.0, release)

    # ---- Sending, and what follows ----

    def _try(self, spend: Spend, may_repeat: bool) -> Settlement | CyclesError | None:
        """One attempt, and what follows from its answer: how the spend was settled or is kept, the authority's final
        no, or None where the next attempt is to follow at once."""
        spend.attempt += 1
        spend.number = next(self.numbers)
        record, is_commit = spend.record, spend.record.mode == COMMIT
        operation = wire.COMMIT_RESERVATION if is_commit else wire.CREATE_EVENT
        body = (record.commit_body if is_commit else record.event_fallback_body) or {}
        begun = monotonic()
        told = self.session.send(operation, body, record.reservation_id, retries=False)
        if not isinstance(told, CyclesError):
            if is_commit:
                done = Settlement(SettlementStatus.COMMITTED, told.charged, told.released, told.balances, told)
            else:
                done = Settlement(SettlementStatus.RECORDED, told.charged or amount_of(body), None, told.balances, told)
            # Only the process that removes the record tells its observer; another may have sent it with the same key.
            is_first = self._end(spend, Journal.remove) or not spend.is_written
            if spend.is_found and spend.attempt > 1:
                self.finder.is_back()
            if is_first and self.session.observer is not None:
                self.session.tell("Settled", record.reservation_id, amount_of(body), done)
                self.session.watch(told)
            return done
        meaning = meaning_of(record.mode, told)
        if meaning is Meaning.EXPIRED and self._turn_to_event(spend):
            return None
        if meaning is Meaning.REJECTED:
            self._rejected(spend, told)
            return told
        if meaning is Meaning.UNKNOWN and may_repeat and has_time() and not self._is_last_attempt(spend):
            return None
        is_silent = isinstance(told, TransportTimeout) and monotonic() - begun >= _SILENCE
        spend.silent_at = monotonic() if is_silent else Spend.silent_at
        self._hold(spend, meaning, told)
        return Settlement(SettlementStatus.PENDING)

    def _is_last_attempt(self, spend: Spend) -> bool:
        """Whether there is to be no other attempt while the caller waits, who wants to end."""
        return spend.is_written and (self.is_ending or not self.is_open or shutdown.is_under_way())

    def _turn_to_event(self, spend: Spend) -> bool:
        """Put the record into event mode, with the same key, on disk before the event is sent. False where it has none.

        It counts as recorded now, because no event with this key can have been sent before (see `is_too_old`).
        """
        if not spend.record.event_fallback_body:
            return False
        spend.record = spend.record._replace(mode=EVENT, not_before_ms=None, recorded_at_ms=now_ms())
        self._write(spend)
        return True

    def _hold(self, spend: Spend, meaning: Meaning, error: CyclesError) -> None:
        """Keep the record and try again later."""
        record = spend.record
        delay = retry_in(self.session.config, meaning, spend.attempt, error.retry_after)
        is_left = spend.is_found and not self.finder.has_room
        if is_left and meaning is not Meaning.WAIT:
            delay = LOOK_AGAIN
        if meaning is Meaning.WAIT:
            spend.record = record._replace(not_before_ms=now_ms() + int(delay * 1000))
            self._write(spend)
        say = log().error if meaning is Meaning.HELD else log().warning
        text = "spend of reservation %s is not settled yet (%s; %s); it is kept and tried again in %.1f s"
        say(text, record.reservation_id, meaning.value, error, delay)
        if is_left:  # the next look reads it again
            self.finder.leave(delay)
            self._drop(spend)
        elif self.is_open or spend.job is None or not spend.is_written:
            self.retry_later(spend, delay)
        else:  # the client was closed meanwhile: whoever looks at the journal next takes the record up
            self._drop(spend)
        self._tellers[get_ident()] = mark = _Mark()
        try:
            self.session.tell("Pending", record.reservation_id, error, delay)
        finally:
            self._tellers.pop(get_ident(), None)
            del mark

    @property
    def is_telling(self) -> bool:
        """Whether this very thread is telling the observer of a failed attempt."""
        return get_ident() in self._tellers

    def retry_later(self, spend: Spend, delay: float) -> None:
        if spend.job is not None:
            spend.job.cancel()
        job = Job(delay, lambda: self._retry(spend))
        try:
            spend.runner, spend.job = None, job
            self.pending[spend.place] = spend
            worker.post(job)
        except BaseException:  # an interruption; a job that is posted twice runs once
            worker.post(job)
            raise
        if not self.is_open and spend.is_written and job.cancel():  # `close` may have been too early to see it
            self._drop(spend)

    def _retry(self, spend: Spend) -> None:
        """One attempt in the background."""
        # It may have been settled while this was asked for; or its client was closed, and `close` has not come to it.
        if spend.is_done or (not self.is_open and spend.is_written):
            self._drop(spend)
            return
        spend.runner, record = get_ident(), spend.record
        if is_too_old(record, now_ms()):
            self._end(spend)
            stays, body = "stays" if spend.is_written else "is not", wire.dumps(record.body).decode("ascii")
            why = "is too old to be sent: the authority may have settled it and forgotten its key"
            self.tell_once(f"spend of reservation {record.reservation_id} {why}; it {stays} on disk: {body}")
            return
        if spend.is_found and spend.journal is not None and not spend.journal.has(spend.place):
            self._end(spend)  # another process that found the record too has settled it, and tells of it
            return
        try:
            if self._try(spend, False) is None:  # the record is an event's now
                spend.attempt = spend.number = 0  # a flush waits for the event's first attempt too
                self.retry_later(spend, 0.0)
        except BaseException:  # an observer may end the program, say
            if spend.runner == get_ident():  # it is not settled, and nobody else tries it
                self.retry_later(spend, SLOW_RETRY)
            raise

    def _rejected(self, spend: Spend, error: CyclesError) -> None:
        """Report spend that is refused for good: all that is known of it goes to the log and the observer."""
        record = spend.record
        text = "spend of reservation %s was refused for good: %s; what was to be settled: %s"
        log().error(text, record.reservation_id, error, wire.dumps(record.body).decode("ascii"))
        try:
            self.session.tell("Rejected", record.reservation_id, dict(record.body), error)
        finally:
            self._end(spend, Journal.refuse)

    def _end(self, spend: Spend, take_away: Callable[[Journal, str], Any] | None = None) -> bool:
        """Take the record away, then end the spend, of which nothing is sent any more. Return whether this process is
        the one to tell of a settlement: it has removed the record, or could not."""
        id, was_ours = spend.record.reservation_id, False
        if take_away is not None and spend.journal is not None and spend.is_written:
            try:
                was_ours = bool(take_away(spend.journal, spend.place))
            except OSError as e:
                was_ours = True
                became = "refused" if take_away is Journal.refuse else "settled"
                self._journal_failed(f"the record of reservation {id}, which was {became}, stays on disk: {e}")
        self._drop(spend)
        spend.is_done = True  # after an interruption before this, it is sent again, which is a replay
        return was_ours

    def _drop(self, spend: Spend) -> None:
        """Hold spend no longer: it is settled, or is on disk, where the next look finds it."""
        for place in (spend.place, spend.record.reservation_id):  # an interrupted `accept` has left it at the latter
            for held in (self.finder.found, self.pending):
                if held.get(place) is spend:
                    held.pop(place, None)
        spend.runner = None
        if not self.is_open:  # the job that was posted for it has undone what `close` told the threads
            worker.leave()

    # ---- The journal ----

    def open(self) -> None:
        """Find the journal, and have what earlier processes left in it taken up. Both are done once in a
        process, and again after `close`."""
        if self.pid != os.getpid():
            self._begin()
        if self.is_open:
            self.finder.make_sure()
            return
        # Threads that come at the same time each find the journal, because none of them may settle without it.
        journal, notice = self._find_journal()
        self._journal = journal
        _settlers[id(self)] = self  # first: what is open is waited for at the interpreter's end
        self.is_open, self.is_ending = True, False
        try:
            self._unsaid.pop()
        except IndexError:
            return
        if notice is not None:
            (self._journal_failed if journal is None else log().warning)(notice)
        self.finder.begin()

    def _find_journal(self) -> tuple[Journal | None, str | None]:
        """The journal, or None where there is none, and a sentence for the log where there is something to say."""
        config = self.session.config
        if self._given is not None or not config.journal_enabled:
            return self._given, None
        try:
            folder, notice = usable_folder(config.journal_dir)
        except OSError as e:
            return None, f"there is no journal: {e}"
        name = identity(self.base_url, config.tenant, config.api_key)
        return Journal(os.path.join(folder, name), config.journal_fsync), notice

    def journals(self) -> list[Journal]:
        """The journal, and that in which the same API key's records are while no tenant is configured."""
        journal, config = self._journal, self.session.config
        if journal is None:
            return []
        journals = [journal]
        if self._given is None and config.tenant and config.api_key and journal.has_neighbours():
            name = identity(self.base_url, None, config.api_key)
            journals.append(Journal(os.path.join(os.path.dirname(journal.folder), name), config.journal_fsync))
        return journals

    def new_look(self) -> Look:
        """A look at the journals. A journal that was given is another's, which nobody else looks at."""
        return Look(self.journals(), lambda: (_known([self]), _known(open_settlers())), claims=self._given is None)

    def has_unseen(self) -> bool:
        """Whether there may be records on disk that this client does not hold, as far as a glance tells."""
        try:
            seen = [journal.glance() for journal in self.journals()]
        except OSError as e:
            self.tell_once(f"the journal cannot be read: {e}")
            return False
        if None in seen:
            return True
        names = {name for some in seen for name in some or ()}
        return bool(names) and not names.issubset([file_name(id) for id in list(self.pending)[:_AT_ONCE]])

    def unseen(self, held: Iterable[str]) -> int:
        """How many files may hold records that no other client of this process holds, nor this one at the places
        `held`, which the caller has counted: what it has found since counts here. This reads the whole folder."""
        try:
            known = {file_name(id) for id in held} | _known(one for one in open_settlers() if one is not self)
            return sum(journal.count(known) for journal in self.journals())
        except OSError as e:
            self.tell_once(f"the journal cannot be read: {e}")
            return 0

    def _write(self, spend: Spend) -> None:
        """Put the record on disk. A disk that refuses does not stop the settlement."""
        if spend.journal is None:
            return
        try:
            spend.journal.write(spend.record, spend.place)
        except OSError as e:
            self._journal_failed(f"spend of reservation {spend.record.reservation_id} is not on disk: {e}")
        else:
            spend.is_written = True

    def tell_once(self, problem: str) -> None:
        if hash(problem) not in self._told:
            self._told.add(hash(problem))
            self._journal_failed(problem)

    def _journal_failed(self, problem: str) -> None:
        log().error("%s", problem)
        self.session.tell("JournalFailed", problem)

    # ---- The end ----

    @property
    def is_waited_for(self) -> bool:
        """Whether the interpreter's end waits for it; not if the client is closed and all spend is on disk."""
        return self.is_open or not all(spend.is_written for spend in list(self.pending.values()))

    def close(self) -> None:
        """Let another client of this process, or another process, take up what is left on disk."""
        self.is_open, self._unsaid = False, [True]
        self.finder.end()
        self._let_go(deque(list(self.pending.values())))

    def _let_go(self, left: deque[Spend]) -> None:
        """Drop what is on disk, so much at once; the rest in the background, which may take its time, because nothing
        of it is sent meanwhile."""
        for _ in range(_AT_ONCE):
            if self.is_open or not left:
                worker.leave()
                return
            spend = left.popleft()
            if spend.is_written and spend.job is not None and spend.job.cancel():
                self._drop(spend)
        worker.schedule(0.0, lambda: self._let_go(left))


#: The settlers that were opened, by their `id`. A set could not be copied while another thread adds to it.
_settlers: weakref.WeakValueDictionary[int, Settler] = weakref.WeakValueDictionary()


def settler_of(session: Session) -> Settler:
    """The settler of a session, which is made when it is first asked for."""
    ours: dict[str, Any] = session.__dict__
    # `setdefault` is atomic: there is one for all threads.
    settler: Settler = ours.get("settler") or ours.setdefault("settler", Settler(session))
    return settler


def open_settlers() -> list[Settler]:
    """The settlers that have been opened in this process, or before it was forked, closed ones included."""
    return [settler for settler in [held() for held in _settlers.valuerefs()] if settler is not None]


def _known(settlers: Iterable[Settler]) -> set[str]:
    """The names of the files whose spend these clients are settling."""
    return {file_name(id) for settler in settlers for id in list(settler.pending)}


def _after_fork() -> None:
    for settler in open_settlers():
        settler._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
