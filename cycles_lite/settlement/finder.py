"""Taking up the spend that other processes have left: when to look for it, and how much of it to hold in memory.

A look goes on in short steps of the background, with pauses between them, so that a program notices nothing of it;
where there are no threads, each call of the library does one step. A record that was found is sent once in a look. If
that fails it is held for the next attempt, as spend of this process is, but only so many are: the rest stays on disk
alone, where the next look finds it again.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from ..background.worker import Job, worker
from ..runtime.clock import monotonic
from ..transport.deadline import seconds_left
from ..transport.turns import Turns
from .journal import Journal, Record, normalised
from .look import Look
from .spend import Spend, until

if TYPE_CHECKING:
    from .settler import Settler

#: Seconds after which a living process looks again for what others have left.
LOOK_AGAIN = 600.0

#: Seconds from a process's first use to its first look, so that this one does not slow that down.
_FIRST_LOOK = 0.1

#: Seconds between two steps of a look; and while there is no room for more records, each time twice as many, up to.
_PAUSE, _LONGEST_PAUSE = 0.005, 0.1

#: Seconds between two looks at the least; and how many times as long as the last one took.
_BETWEEN_LOOKS, _TIMES_ITS_TIME = 1.0, 4

#: How many records that were found wait for their first attempt at the most: where threads send them, and where the
#: program's own calls do.
_IN_HAND, _IN_HAND_INLINE = 32, 1

#: How many more that have failed, or may not be sent yet, are held in memory.
MOST_HELD = 256


class Finder:
    """Looks into the journals of one settler. It refers to that weakly, and goes with it."""

    def __init__(self, settler: Settler) -> None:
        self._settler = weakref.ref(settler)
        #: What was found and is pending, by reservation id. It is not much, however much there is on disk.
        self.found: dict[str, Spend] = {}
        #: The look that is under way, and the turn at its next step.
        self._look: Look | None = None
        self._turns = Turns(1)
        #: The job of its next step, or else of the next look; it is in the second one too once it was posted.
        self._job: Job | None = None
        self._posted: Job | None = None
        #: The pause before the next step.
        self._pause = _PAUSE
        #: How many looks are over.
        self.looks = 0
        #: When the look under way began, by the monotonic clock, and the seconds that the last one took.
        self._since = self._took = 0.0
        #: Whether the last look has left records to other processes or clients.
        self._leaves_some = False
        #: The monotonic time at which records have to be read again that were found and are not held; or None.
        self._left_until: float | None = None

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way."""
        return self._look is not None

    @property
    def has_left(self) -> bool:
        """Whether there are records on disk that this process has found, or may find, and does not hold."""
        return self._look is not None or self._leaves_some or self._left_until is not None

    @property
    def has_room(self) -> bool:
        """Whether one more record that was found may be held until it is due."""
        return len(self.found) <= MOST_HELD

    def leave(self, delay: float) -> None:
        """See to it that a record which is not held is read again, that many seconds from now."""
        again, before = monotonic() + delay, self._left_until
        self._left_until = again if before is None else min(again, before)

    def begin(self) -> None:
        """Look soon if there is anything, else later."""
        settler = self._settler()
        if settler is not None and settler.has_unseen():
            self.look_around(_FIRST_LOOK)
        else:
            self._look_later()

    def make_sure(self) -> None:
        """Look soon if an interruption has left no step to come, while nobody is within one."""
        job = self._job
        if (job is None or not job.is_waiting or job is not self._posted) and self._turns.free:
            self.look_around(_FIRST_LOOK)

    def end(self) -> None:
        """Look no more: the settler is closed."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
        self.go_on()  # it ends the look; where another thread is within a step, that one does

    def is_back(self) -> None:
        """Look at once for what was left on disk: the authority has taken a record that it had not taken before."""
        if self._left_until is not None and self._look is None:
            self.look_around()

    def look_around(self, delay: float = 0.0) -> int:
        """Have the worker look for records. Return the number of the look that does so, which `looks` reaches when it
        is over; it may be under way already."""
        job, number = self._job, self.looks + 1  # counted before the post: that look may be over right after it
        if job is None or not self._is_to_come(job, as_guest=False) or job.due > monotonic() + delay:
            self._post(delay)
        return number

    def _is_to_come(self, job: Job | None, as_guest: bool = True) -> bool:
        """Whether a job is waited for, which may be a guest: a look that is under way needs more than that."""
        return job is not None and job.is_waiting and job is self._posted and (as_guest or not job.is_guest)

    def _look_later(self) -> None:
        delay = LOOK_AGAIN
        if self._left_until is not None:
            delay = min(delay, max(_BETWEEN_LOOKS, self._took * _TIMES_ITS_TIME, self._left_until - monotonic()))
        self._post(delay, is_guest=True)

    def _post(self, delay: float, is_guest: bool = False) -> None:
        """Post the next step in the place of the one that waits. Wherever this is interrupted, a step is to come that
        sees to the next one; where there are two, the second finds that the next one is there."""
        job = _step_of(self, delay)
        job.is_guest = is_guest
        before = self._job
        if is_guest and before is not None and not before.is_guest and before.is_waiting:
            # Somebody has just asked for a look, which must not be put off. Its post may have been interrupted.
            if before is not self._posted:
                worker.post(job)
            return
        self._job = job
        worker.post(job)
        self._posted = job
        if before is not None:
            before.cancel()

    def go_on(self) -> None:
        """One step of the look that is under way, or of a new one; and see to the next step, or the next look."""
        settler, looks, turn = self._settler(), self.looks, self._turns.take(0)
        if settler is None or turn is None:  # another thread is within a step, and sees to the next one
            return
        try:
            if settler.is_open:
                self._step(settler)
            else:
                self._drop_look()
                worker.leave()
        except BaseException:  # of a look that was interrupted nobody knows what it has passed by
            self._drop_look()
            raise
        finally:  # there is a next one, whatever an observer raises
            turn.give_back()
            if not settler.is_open:
                if self._look is not None:  # it was closed during the step
                    self.go_on()
            elif not self._is_to_come(self._job, self._look is None):
                if self._look is not None or self.looks == looks:
                    self._post(self._pause)
                else:
                    self._look_later()

    def _drop_look(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look.close()

    def _step(self, settler: Settler) -> None:
        look = self._look
        if look is None:
            look, self._left_until = settler.new_look(), None
            self._look, self._since = look, monotonic()
        room = self._room(settler)
        self._pause = _PAUSE if room > 0 else min(2 * self._pause, _LONGEST_PAUSE)
        for journal, told in look.step(room) if room > 0 else ():
            if isinstance(told, str):
                settler.tell_once(told)
            else:
                self._take_up(settler, journal, told)
        if look.is_over:
            self._leaves_some = look.leaves_some
            self._look, self._took = None, monotonic() - self._since
            self.looks += 1

    def _room(self, settler: Settler) -> int:
        """How many more records may be taken up now."""
        in_hand = 0
        for id, spend in list(self.found.items()):
            if settler.pending.get(id) is not spend:  # an interruption has left it
                self.found.pop(id, None)
            elif not spend.attempt and not until(spend.record):
                in_hand += 1
                if spend.runner is None and (spend.job is None or spend.job.is_over):  # so was its first attempt
                    settler.retry_later(spend, 0.0)
        is_slow = worker.is_inline and seconds_left() is None  # a flush has a deadline, by which it ends
        return (_IN_HAND_INLINE if is_slow else _IN_HAND) - in_hand

    def _take_up(self, settler: Settler, journal: Journal, record: Record) -> None:
        """Schedule a record, if it is owed to this server and not pending in this process yet."""
        if normalised(record.base_url) != settler.base_url:
            settler.tell_once(f"reservation {record.reservation_id} is owed to {record.base_url}: not sent")
            return
        delay = until(record)
        if delay and not self.has_room:
            self.leave(delay)
            return
        spend = Spend()
        spend.record, spend.journal, spend.place = record, journal, record.reservation_id
        spend.is_kept = spend.is_written = spend.is_found = True
        # An interruption may come in between: a record that is not pending then is dropped by `_room`, and one that has
        # no attempt to come gets one there.
        self.found.setdefault(record.reservation_id, spend)
        if settler.pending.setdefault(record.reservation_id, spend) is spend:
            settler.retry_later(spend, delay)
        elif self.found.get(record.reservation_id) is spend:
            del self.found[record.reservation_id]


def _step_of(finder: Finder, delay: float) -> Job:
    """A step of a look. Its job refers to the finder weakly: it keeps no session alive, and ends with it."""

    def step() -> None:
        alive = held()
        if alive is not None:
            alive.go_on()

    job = Job(delay, step)
    held = weakref.ref(finder, job.go_with)
    return job
