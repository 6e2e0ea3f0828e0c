"""One look at what other processes have left in a journal, in steps, each of which does a bounded amount of work.

After a long outage there may be tens of thousands of records. So a look holds a bounded number of names and no record:
it goes through the folder for the oldest files, reads these, and goes through it again for those that come after them.
The age is that of the file, which is known without reading it. What is oldest comes first, because the authority
forgets keys after a time; and whatever becomes of a record, it comes once in a look, so that none keeps others waiting.
"""

from __future__ import annotations

import heapq
import os
from typing import Any, Callable, Container, List, Sequence, Tuple, Union

from .claim import Claim
from .journal import PENDING, WAITS, Journal, Record, tidy

#: How many files' names a look holds at the most, and how many it goes past in one step.
MOST_NAMES = 4096
_PASSED = 1000

#: A file's place in the order of a look: the time of its last change with a minus sign, and its name.
_Place = Tuple[int, str]

#: The names of files whose spend is being settled: by one client, and by others.
Known = Tuple[Container[str], Container[str]]

#: What a step finds: a record, or a sentence about what is none, with its journal.
Found = List[Tuple[Journal, Union[Record, str]]]


class Look:
    """One look at some journals. The steps of one look come one after the other, from any threads.

    `known` tells the names of the files whose spend is being settled: by the client that looks, and by others of this
    process. With `claims`, journals are passed over that another process is looking at.
    """

    def __init__(self, journals: Sequence[Journal], known: Callable[[], Known], claims: bool) -> None:
        self._journals, self._known, self._claims = list(journals), known, claims
        self._claim: Claim | None = None
        self._search: _Search | None = None
        #: The files that the last search has found, the oldest last; where it ended, and whether there may be more.
        self._found: list[str] = []
        self._after: _Place | None = None
        self._has_more = True
        #: How many more names are to be read: as many in all as there were at first. What is written meanwhile, such as
        #: the records that a server has put off, is the next look's, or this one might have no end.
        self._to_read: int | None = None
        #: Whether there are records that another process or client has, which may give them up, or that came meanwhile.
        self.leaves_some = False

    @property
    def is_over(self) -> bool:
        return not self._journals

    def step(self, room: int) -> Found:
        """The next records, at most so many; there may be none although the look is not over."""
        if self.is_over:
            return []
        journal = self._journals[0]
        try:
            if self._claims and self._claim is None:
                self._claim = Claim(journal.folder)
            if self._claim is not None and not self._claim.is_ours:
                self.leaves_some = self.leaves_some or os.path.isdir(journal.folder)
                self._next_journal()
                return []
            if not self._found and self._has_more:
                self._go_on_searching(journal)
                return []
            found: Found = []
            while self._found and len(found) < room:
                told = journal.read(self._found.pop())
                if told:
                    found.append((journal, told))
                else:
                    room -= 1
                    self.leaves_some = self.leaves_some or told == WAITS
        except OSError as e:
            self._next_journal()
            return [(journal, f"the journal {journal.folder} cannot be read: {e}")]
        if not self._found and not self._has_more:
            self._next_journal()
        return found

    def _go_on_searching(self, journal: Journal) -> None:
        """Go past some more files. Where that was the last, what is found is to be read."""
        search = self._search
        if search is None:
            search = self._search = _Search(journal.folder, self._known(), self._after)
        if not search.go_on():
            return
        self.leaves_some = self.leaves_some or search.leaves_some
        places = sorted(search.places)
        if places:
            self._after = places[0]
        most = search.count if self._to_read is None else self._to_read
        self._found = [name for _, name in places[max(0, len(places) - most) :]]
        self._to_read = most - len(self._found)
        self._has_more = search.has_more and self._to_read > 0
        if len(self._found) < len(places) or search.has_more > self._has_more:
            self.leaves_some = True
        self._search = None
        if not self._found:
            self._next_journal()

    def _next_journal(self) -> None:
        self._end_here()
        self._found, self._after, self._has_more, self._to_read = [], None, True, None
        del self._journals[:1]

    def _end_here(self) -> None:
        search, self._search = self._search, None
        if search is not None:
            search.close()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close()

    def close(self) -> None:
        """End the look where it is, and let others have the claim."""
        del self._journals[:]
        self._end_here()


class _Search:
    """A search of a folder for its oldest records that come after a place, and are not `known`."""

    _entries: Any = None

    def __init__(self, folder: str, known: Known, after: _Place | None) -> None:
        (self._own, self._others), self._after = known, after
        #: Whether there are records that other clients of this process have.
        self.leaves_some = False
        #: A heap of the oldest up to now. Its first entry is the newest of them, which an older one takes the place of.
        self.places: list[_Place] = []
        #: Whether there are more that come after the place, and how many there are in all.
        self.has_more, self.count = False, 0
        try:
            self._entries = os.scandir(folder)
        except FileNotFoundError:
            return

    def go_on(self) -> bool:
        """Go past some files. Return whether they were the last."""
        for _ in range(_PASSED):
            entry = next(self._entries, None) if self._entries is not None else None
            if entry is None:
                self.close()
                return True
            self._see(entry)
        return False

    def _see(self, entry: os.DirEntry[str]) -> None:
        if entry.name.endswith(".tmp"):
            tidy(entry.path)
        if not entry.name.endswith(PENDING) or entry.name in self._own:
            return
        if entry.name in self._others:
            self.leaves_some = True
            return
        try:
            place = (-entry.stat().st_mtime_ns, entry.name)
        except OSError:  # it was settled meanwhile, or leads nowhere
            return
        if self._after is not None and place >= self._after:
            return
        self.count += 1
        if len(self.places) < MOST_NAMES:
            heapq.heappush(self.places, place)
        else:
            heapq.heappushpop(self.places, place)
            self.has_more = True

    def close(self) -> None:
        entries, self._entries = self._entries, None
        if entries is not None:
            entries.close()

    __del__ = close
