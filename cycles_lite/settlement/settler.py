"""The settler acts on what an answer means (`meaning`), for a session's guards and for what earlier processes left.

An amount belongs to the settler from the moment that its `Spend` is marked as kept. From then on it is settled once or
reported as refused, and never released: whatever is raised afterwards, it stays among the pending ones, which are tried
again. The program's threads hold no lock here, because a signal handler may flush, commit or raise at any instruction.
"""

from __future__ import annotations

import os
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any, Callable

from ..background.worker import Job, worker
from ..errors import CyclesError
from ..protocol import wire
from ..runtime.clock import monotonic, now_ms
from ..runtime.log import log
from ..transport.deadline import has_time
from .journal import COMMIT, EVENT, Journal, file_name, identity, normalised, usable_folder
from .meaning import SLOW_RETRY, Meaning, Settlement, SettlementStatus, is_too_old, meaning_of, retry_in
from .spend import Spend, amount_of, until

if TYPE_CHECKING:
    from ..session import Session

#: Seconds after which a living process looks again for what others have left.
LOOK_AGAIN = 600.0


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
        #: One entry until a thread has told where the journal is and looked into it. Popping it is atomic.
        self._unsaid = [True]
        #: The problems of the journal that were reported; each look at it would find and report them again.
        self._told: set[str] = set()
        #: The next look at the journal, and when it is due.
        self._look: Job | None = None
        #: The spend that is not settled yet, by reservation id. Single operations of a dictionary are atomic.
        self.pending: dict[str, Spend] = {}
        #: The guards that were collected unfinished and are being released, or will be, by `id`.
        self.releasing: dict[int, object] = {}

    # ---- From the guard ----

    def accept(self, spend: Spend) -> None:
        """Take spend over: in memory first, then on disk. It is not sent yet."""
        self.open()
        spend.runner = get_ident()
        spend.journal = self._journal
        spend.is_kept = True
        self.pending[spend.record.reservation_id] = spend
        self._write(spend)

    def settle(self, spend: Spend) -> Settlement:
        """Settle accepted spend now if the authority answers, else retry later. Raises the authority's final no.

        While the caller waits there are two attempts at the most in each of the record's modes.
        """
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
        record, is_commit = spend.record, spend.record.mode == COMMIT
        operation = wire.COMMIT_RESERVATION if is_commit else wire.CREATE_EVENT
        body = (record.commit_body if is_commit else record.event_fallback_body) or {}
        told = self.session.send(operation, body, record.reservation_id, retries=False)
        if not isinstance(told, CyclesError):
            if is_commit:
                done = Settlement(SettlementStatus.COMMITTED, told.charged, told.released, told.balances, told)
            else:
                charged = told.charged or amount_of(body)
                done = Settlement(SettlementStatus.RECORDED, charged, None, told.balances, told)
            # Only the process that removes the record tells its observer; another may have sent it with the same key.
            is_first = self._end(spend, Journal.remove) or not spend.is_written
            if is_first and self.session.observer is not None:
                self.session.tell("Settled", record.reservation_id, amount_of(body), done)
            return done
        meaning = meaning_of(record.mode, told)
        if meaning is Meaning.EXPIRED and self._turn_to_event(spend):
            return None
        if meaning is Meaning.REJECTED:
            self._rejected(spend, told)
            return told
        if meaning is Meaning.UNKNOWN and may_repeat and has_time():
            return None
        self._hold(spend, meaning, told)
        return Settlement(SettlementStatus.PENDING)

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
        if meaning is Meaning.WAIT:
            spend.record = record._replace(not_before_ms=now_ms() + int(delay * 1000))
            self._write(spend)
        say = log().error if meaning is Meaning.HELD else log().warning
        say(
            "spend of reservation %s is not settled yet (%s; %s); it is kept and tried again in %.1f s",
            record.reservation_id,
            meaning.value,
            error,
            delay,
        )
        if self.is_open or spend.job is None or not spend.is_written:
            self.retry_later(spend, delay)
        else:  # the client was closed meanwhile: whoever looks at the journal next takes the record up
            self.pending.pop(record.reservation_id, None)
            spend.runner = None
        spend.teller = get_ident()
        try:
            self.session.tell("Pending", record.reservation_id, error, delay)
        finally:
            spend.teller = None

    def retry_later(self, spend: Spend, delay: float) -> None:
        if spend.job is not None:
            spend.job.cancel()
        job = Job(delay, lambda: self._retry(spend))
        spend.runner, spend.teller, spend.job = None, None, job
        self.pending[spend.record.reservation_id] = spend
        worker.post(job)

    def _retry(self, spend: Spend) -> None:
        """One attempt in the background."""
        if spend.is_done:  # this attempt was asked for while another one was settling
            self._end(spend)
            return
        spend.runner = get_ident()
        record = spend.record
        if is_too_old(record, now_ms()):
            self._end(spend)
            self._tell_once(
                f"spend of reservation {record.reservation_id} is too old to be sent: the authority may have settled "
                f"it and forgotten its key; it stays on disk: {wire.dumps(record.body).decode('ascii')}"
            )
            return
        if spend.is_found and spend.journal is not None and not spend.journal.has(record.reservation_id):
            self._end(spend)  # another process that found the record too has settled it, and tells of it
            return
        try:
            if self._try(spend, False) is None:  # the record is an event's now
                spend.attempt = 0
                self.retry_later(spend, 0.0)
        except BaseException:  # an observer may end the program, say
            if spend.runner == get_ident():  # it is not settled, and nobody else tries it
                self.retry_later(spend, SLOW_RETRY)
            raise

    def _rejected(self, spend: Spend, error: CyclesError) -> None:
        """Report spend that is refused for good: all that is known of it goes to the log and the observer."""
        record = spend.record
        log().error(
            "spend of reservation %s was refused for good: %s; what was to be settled: %s",
            record.reservation_id,
            error,
            wire.dumps(record.body).decode("ascii"),
        )
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
                was_ours = bool(take_away(spend.journal, id))
            except OSError as e:
                was_ours = True
                became = "refused" if take_away is Journal.refuse else "settled"
                self._journal_failed(f"the record of reservation {id}, which was {became}, stays on disk: {e}")
        self.pending.pop(id, None)
        spend.is_done, spend.runner = True, None
        return was_ours

    # ---- The journal ----

    def open(self) -> None:
        """Find the journal, and have what earlier processes left in it taken up. Both are done once in a
        process, and again after `close`."""
        if self.pid != os.getpid():
            self._begin()
        if self.is_open:
            return
        # Threads that come at the same time each find the journal, because none of them may settle without it.
        journal, notice = self._find_journal()
        self._journal = journal
        self.is_open = True
        _settlers[id(self)] = self
        try:
            self._unsaid.pop()
        except IndexError:
            return
        if notice is not None:
            (self._journal_failed if journal is None else log().warning)(notice)
        self.look_around(journal is not None and self.unseen() > 0)

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

    def look_around(self, is_needed: bool) -> Job:
        """Have the worker look for records that other processes have left: at once if that `is_needed`, else later."""
        look = self._look
        if look is not None and (look.is_waiting or (is_needed and not look.is_over)):
            if not is_needed or look.due <= monotonic():
                return look
            look.cancel()
        look = _look_of(self, 0.0 if is_needed else LOOK_AGAIN)
        look.is_guest = not is_needed
        self._look = look
        worker.post(look)
        if not self.is_open:  # the client was closed meanwhile
            look.cancel()
        return look

    def take_up(self) -> None:
        """Take up the records that other processes have left, unless one of them is doing that just now."""
        for journal in self._journals():
            try:
                if journal is self._given:
                    self._take_up(journal)
                    continue
                with journal.claimed() as is_ours:
                    if is_ours:
                        self._take_up(journal)
            except OSError as e:
                self._tell_once(f"the journal {journal.folder} cannot be read: {e}")

    def _journals(self) -> list[Journal]:
        """The journal, and that in which the same API key's records are while no tenant is configured."""
        journal, config = self._journal, self.session.config
        if journal is None:
            return []
        journals = [journal]
        if self._given is None and config.tenant and config.api_key and journal.has_neighbours():
            name = identity(self.base_url, None, config.api_key)
            journals.append(Journal(os.path.join(os.path.dirname(journal.folder), name), config.journal_fsync))
        return journals

    def _take_up(self, journal: Journal) -> None:
        """Schedule every record of a journal that is owed to this server and not pending in this process yet."""
        records, problems = journal.load(_known())
        for problem in problems:
            self._tell_once(problem)
        for record in records:
            if normalised(record.base_url) != self.base_url:
                self._tell_once(f"reservation {record.reservation_id} is owed to {record.base_url}: not sent")
                continue
            spend = Spend()
            spend.record, spend.journal = record, journal
            spend.is_kept = spend.is_written = spend.is_found = True
            if self.pending.setdefault(record.reservation_id, spend) is spend:
                self.retry_later(spend, until(record))

    def unseen(self) -> int:
        """How many files may hold records that no client of this process has taken up."""
        try:
            return sum(len(journal.names().difference(_known())) for journal in self._journals())
        except OSError as e:
            self._tell_once(f"the journal cannot be read: {e}")
            return 0

    def _write(self, spend: Spend) -> None:
        """Put the record on disk. A disk that refuses does not stop the settlement."""
        if spend.journal is None:
            return
        try:
            spend.journal.write(spend.record)
        except OSError as e:
            self._journal_failed(f"spend of reservation {spend.record.reservation_id} is not on disk: {e}")
        else:
            spend.is_written = True

    def _tell_once(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
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
        for id, spend in list(self.pending.items()):
            if spend.is_written and spend.job is not None and spend.job.cancel():
                self.pending.pop(id, None)
        look, self._look = self._look, None
        if look is not None:
            look.cancel()
        worker.leave()


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


def _known() -> set[str]:
    """The names of the files whose spend the clients of this process are settling."""
    return {file_name(id) for settler in open_settlers() for id in list(settler.pending)}


def _look_of(settler: Settler, delay: float) -> Job:
    """A look at the journal. Its job refers to the settler weakly: it keeps no session alive, and ends with it."""

    def look() -> None:
        alive = held()
        if alive is None:
            return
        try:
            alive.take_up()
        finally:  # there is another look, whatever an observer raises
            if alive.is_open:
                alive.look_around(False)

    job = Job(delay, look)
    held = weakref.ref(settler, job.go_with)
    return job


def _after_fork() -> None:
    for settler in open_settlers():
        settler._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
