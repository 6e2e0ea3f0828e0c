"""The settler: acts on what `settlement` says an answer means, for a client's guards and for what processes left.

From the moment that an amount is handed to it, the amount is settled once or reported as refused, and never released.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from . import events, wire
from .clock import monotonic, now_ms
from .deadline import deadline_in, seconds_left
from .errors import CyclesError, ValidationError
from .journal import COMMIT, EVENT, Journal, Record, identity, normalised, usable_folder
from .log import log
from .settlement import (
    LONGEST_WAIT,
    SLOW_RETRY,
    Meaning,
    Settlement,
    SettlementStatus,
    is_too_old,
    meaning_of,
    retry_in,
)
from .values import Amount
from .worker import Job, metered, worker

if TYPE_CHECKING:
    from .client import CyclesClient

#: Attempts while the caller waits.
_INLINE_ATTEMPTS = 2


class _Pending:
    """A record that waits for its next attempt."""

    __slots__ = ("attempt", "is_running", "job", "record")

    def __init__(self, record: Record, attempt: int = 0) -> None:
        self.record = record
        self.attempt = attempt
        self.job: Job | None = None
        self.is_running = False


class Settler:
    """Settles the spend of one client's guards, and what earlier processes left in its journal."""

    def __init__(self, client: CyclesClient, journal: Journal | None = None) -> None:
        self._client = client
        #: A journal to settle that is not the client's own.
        self._given = journal
        self._config = client.config
        self._base_url = normalised(client.config.base_url or "")
        self._begin()

    def _begin(self) -> None:
        """Nothing of a parent process's: its pending spend is its own to settle."""
        self._pid = os.getpid()
        self._progress = threading.Event()
        self._journal: Journal | None = None
        self._is_open = False
        #: One entry until a thread has taken up what the journal holds. Popping it is atomic.
        self._untaken = [True]
        #: Ids of records that are in memory alone.
        self._unwritten: set[str] = set()
        #: By reservation id. Single operations of a dictionary are atomic, so that no lock is held over I/O.
        self._pending: dict[str, _Pending] = {}

    # ---- From the guard ----

    def settle(self, record: Record) -> Settlement:
        """Settle now if the authority answers, else keep the record and retry. Raises the authority's final no."""
        try:
            self.open()
            self._keep(record)
            return self._settle_inline(record)
        except CyclesError:
            raise
        except BaseException:  # Ctrl-C, a signal handler's exception: how far it came is unknown
            self._keep(record)
            self._retry_later(_Pending(record), 0.0)
            raise

    def _settle_inline(self, record: Record) -> Settlement:
        attempt = 0
        while True:
            attempt += 1
            try:
                settlement = self._send(record)
            except CyclesError as e:
                meaning = meaning_of(record.mode, e)
                if meaning is Meaning.EXPIRED and record.event_fallback_body:
                    record, attempt = self._turn_to_event(record), 0
                elif meaning is Meaning.REJECTED:
                    self._report_rejection(record, e)
                    raise
                elif meaning is not Meaning.UNKNOWN or attempt >= _INLINE_ATTEMPTS or not has_time():
                    self._hold(_Pending(record, attempt), meaning, e)
                    return Settlement(SettlementStatus.PENDING)
            else:
                self._finish(record, settlement)
                return settlement

    # ---- Sending, and what follows ----

    def _send(self, record: Record) -> Settlement:
        """One request in the record's mode."""
        if record.mode == COMMIT:
            done = self._client.send_once(wire.COMMIT_RESERVATION, record.body, record.reservation_id)
            return Settlement(SettlementStatus.COMMITTED, done.charged, done.released, done.balances, done)
        applied = self._client.send_once(wire.CREATE_EVENT, record.body)
        charged = applied.charged or _amount(record.body)
        return Settlement(SettlementStatus.RECORDED, charged, None, applied.balances, applied)

    def _finish(self, record: Record, settlement: Settlement) -> None:
        self._pending.pop(record.reservation_id, None)
        self._forget(record)
        if self._client.is_observed:
            self._client.observe(events.Settled(record.reservation_id, _amount(record.body), settlement))

    def _turn_to_event(self, record: Record) -> Record:
        """The record in event mode, with the same key: on disk before the event is sent.

        It counts as recorded now, because no event with this key can have been sent before (see `is_too_old`).
        """
        turned = record._replace(mode=EVENT, not_before_ms=None, recorded_at_ms=now_ms())
        self._keep(turned)
        return turned

    def _hold(self, pending: _Pending, meaning: Meaning, error: CyclesError) -> None:
        """Keep the record and try again later."""
        record = pending.record
        delay = retry_in(self._config, meaning, pending.attempt, error.retry_after)
        if meaning is Meaning.WAIT:
            pending.record = record._replace(not_before_ms=now_ms() + int(delay * 1000))
            self._keep(pending.record)
        say = log().error if meaning is Meaning.HELD else log().warning
        say(
            "spend of reservation %s is not settled yet (%s; %s); it is kept and tried again in %.1f s",
            record.reservation_id,
            meaning.value,
            error,
            delay,
        )
        self._retry_later(pending, delay)
        self._client.observe(events.Pending(record.reservation_id, error, delay))

    def _retry_later(self, pending: _Pending, delay: float) -> None:
        id = pending.record.reservation_id
        if not self._is_open and id not in self._unwritten:  # closed meanwhile: whoever opens the journal takes it up
            self._pending.pop(id, None)
            return
        self._pending[id] = pending
        pending.job = worker.schedule(delay, lambda: self._retry(pending))

    def _retry(self, pending: _Pending) -> None:
        """One attempt in the background."""
        if is_too_old(pending.record, now_ms()):
            self._pending.pop(pending.record.reservation_id, None)
            self._give_up(pending.record)
            return
        pending.attempt += 1
        pending.is_running = True
        try:
            settlement = self._send(pending.record)
        except CyclesError as e:
            self._retry_failed(pending, e)
        except BaseException:
            self._retry_later(pending, SLOW_RETRY)
            raise
        else:
            self._finish(pending.record, settlement)
        finally:
            pending.is_running = False
            self._progress.set()

    def _retry_failed(self, pending: _Pending, error: CyclesError) -> None:
        record = pending.record
        meaning = meaning_of(record.mode, error)
        if meaning is Meaning.EXPIRED and record.event_fallback_body:
            pending.record, pending.attempt = self._turn_to_event(record), 0
            self._retry_later(pending, 0.0)
        elif meaning is Meaning.REJECTED:
            self._report_rejection(record, error)
        else:
            self._hold(pending, meaning, error)

    def _report_rejection(self, record: Record, error: CyclesError) -> None:
        """The last word of this spend: everything that is known goes to the log and the observer."""
        log().error(
            "spend of reservation %s was refused for good: %s; what was to be settled: %s",
            record.reservation_id,
            error,
            wire.dumps(record.body).decode("ascii"),
        )
        self._client.observe(events.Rejected(record.reservation_id, dict(record.body), error))
        self._pending.pop(record.reservation_id, None)
        self._forget(record)

    def _give_up(self, record: Record) -> None:
        self._journal_failed(
            f"spend of reservation {record.reservation_id} is too old to be sent: the authority may have settled it "
            f"and forgotten its key; it stays on disk: {wire.dumps(record.body).decode('ascii')}"
        )

    # ---- The journal ----

    def open(self) -> None:
        """Find the journal and take up what earlier processes left in it; once in a process."""
        if self._pid != os.getpid():
            self._begin()
        worker.catch_up()
        if self._is_open:
            return
        # Of threads that come together each finds the journal, because none may settle without it; one takes it up.
        journal, notice = self._find_journal()
        self._journal = journal
        self._is_open = True
        try:
            self._untaken.pop()
        except IndexError:
            return
        _open_settlers.add(self)
        if notice is not None:
            (self._journal_failed if journal is None else log().warning)(notice)
        if journal is not None:
            self._take_up(journal)

    def _find_journal(self) -> tuple[Journal | None, str | None]:
        """The journal, unless there is none; and what there is to say about it."""
        config = self._config
        if self._given is not None or not config.journal_enabled:
            return self._given, None
        try:
            folder, notice = usable_folder(config.journal_dir)
        except OSError as e:
            return None, f"there is no journal: {e}"
        name = identity(self._base_url, config.tenant, config.api_key)
        return Journal(os.path.join(folder, name), config.journal_fsync), notice

    def _take_up(self, journal: Journal) -> None:
        """Schedule what a journal holds, unless another process is at it."""
        if journal is self._given:
            self.replay(journal)
            return
        try:
            if journal.is_empty() or not journal.claim():
                return
            weakref.finalize(self, journal.release).atexit = False  # of a client that nobody closes
            self.replay(journal)
        except OSError as e:
            self._journal_failed(f"the journal {journal.folder} cannot be read: {e}")

    def replay(self, journal: Journal) -> int:
        """Schedule every record of a journal that is owed to this server; says how many."""
        records, problems = journal.load()
        for problem in problems:
            self._journal_failed(problem)
        ours = 0
        for record in records:
            if normalised(record.base_url) != self._base_url:
                self._journal_failed(f"reservation {record.reservation_id} is owed to {record.base_url}: not sent")
                continue
            ours += 1
            if record.reservation_id not in self._pending:
                self._retry_later(_Pending(record), _until(record))
        return ours

    def _keep(self, record: Record) -> None:
        """Put the record on disk. A disk that refuses does not stop the settlement."""
        self._unwritten.add(record.reservation_id)
        if self._journal is None:
            return
        try:
            self._journal.write(record)
        except OSError as e:
            self._journal_failed(f"spend of reservation {record.reservation_id} is not on disk: {e}")
        else:
            self._unwritten.discard(record.reservation_id)

    def _forget(self, record: Record) -> None:
        self._unwritten.discard(record.reservation_id)
        if self._journal is None:
            return
        try:
            self._journal.remove(record.reservation_id)
        except OSError as e:
            self._journal_failed(f"the settled record of reservation {record.reservation_id} stays on disk: {e}")

    def _journal_failed(self, problem: str) -> None:
        log().error("%s", problem)
        self._client.observe(events.JournalFailed(problem))

    # ---- The end ----

    def flush(self, timeout: float) -> int:
        """Try whatever waits and may be sent now, for at most `timeout` seconds; says how many are left."""
        end = monotonic() + timeout
        return self._wait_for(self._hasten_all(timeout), end)

    def _hasten_all(self, timeout: float) -> dict[str, int]:
        """Let whatever may be sent now be tried at once; says which attempt each has seen before."""
        with deadline_in(timeout):  # for what runs inline, where there are no threads
            self.open()
            pending_now = list(self._pending.items())
            tried = {id: pending.attempt - pending.is_running for id, pending in pending_now}
            for _, pending in pending_now:
                self._hasten(pending)
            worker.catch_up()
        return tried

    def _wait_for(self, tried: dict[str, int], end: float) -> int:
        while True:
            self._progress.clear()
            left = end - monotonic()
            if left <= 0 or not (self._is_untried(tried) or worker.is_busy()):
                return len(self._pending)
            self._progress.wait(min(left, 0.05))

    def _is_untried(self, tried: dict[str, int]) -> bool:
        """Whether one of these still waits for an attempt that may be made now."""
        for id, attempt in tried.items():
            pending = self._pending.get(id)
            if (
                pending is not None
                and _until(pending.record) == 0.0
                and (pending.attempt, pending.is_running) == (attempt, False)
            ):
                return True
        return False

    def _hasten(self, pending: _Pending) -> None:
        """Have its attempt made now, unless one is being made, or would come before the time that the server named."""
        if pending.job is not None and _until(pending.record) == 0.0 and pending.job.cancel():
            self._retry_later(pending, 0.0)

    def close(self) -> None:
        """Let another client of this process, or another process, take up what is left on disk."""
        self._is_open = False
        self._untaken = [True]
        for id, pending in list(self._pending.items()):
            if id not in self._unwritten:
                self._pending.pop(id, None)
                if pending.job is not None:
                    pending.job.cancel()
        if self._journal is not None:
            self._journal.release()
        worker.leave()


_open_settlers: weakref.WeakSet[Settler] = weakref.WeakSet()


def _after_fork() -> None:
    for settler in list(_open_settlers):
        settler._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# What registers last runs first: finalizers close connections at exit too, and this must come before.
weakref.finalize(_open_settlers, int).detach()


@atexit.register
def _at_exit() -> None:
    """The interpreter's end waits for pending spend as long as its client's `flush_timeout` says, and no longer: for
    all clients at once, and not for what closed ones have left on disk."""
    worker.expect_refusal()
    for held in metered.valuerefs():
        guard = held()
        if guard is not None:
            guard.hand_over()
    start = monotonic()
    begun = []
    for settler in list(_open_settlers):
        if settler._pid == os.getpid() and (settler._is_open or settler._pending):
            end = start + settler._config.flush_timeout
            begun.append((settler, settler._hasten_all(max(0.0, end - monotonic())), end))
    for settler, tried, end in begun:
        settler._wait_for(tried, end)


def _until(record: Record) -> float:
    """Seconds until a record may be sent, an hour at the most."""
    if record.not_before_ms is None:
        return 0.0
    return min(max(0.0, (record.not_before_ms - now_ms()) / 1000), LONGEST_WAIT)


def _amount(body: dict[str, Any]) -> Amount | None:
    """The amount in a settlement's body; None for one that another SDK wrote in a way of its own."""
    try:
        return Amount.parse(body.get("actual"), "actual")
    except ValidationError:
        return None


def has_time() -> bool:
    """Whether the ambient deadline leaves any."""
    left = seconds_left()
    return left is None or left > 0
