"""A running sum that threads, and signal handlers in the midst of it, add to without losing anything.

`sum += n` is several instructions; what is added between them is lost, and a lock around them would be met a second
time by a signal handler that adds too. Appending to a list is one instruction. So the meter is a list whose sum is what
it shows. Where it has grown long, one thread at a time replaces its first entries by their sum, which is one
instruction too; should an interruption keep that from ever being done again, the list grows and the sum stays right.
"""

from __future__ import annotations

#: Entries that are summed up at once.
_FOLD = 256


class Meter:
    """A sum of whole numbers from 0 up."""

    __slots__ = ("_entries", "_may_fold")

    def __init__(self) -> None:
        self._entries: list[int] = []
        #: One entry while nobody sums up. Popping it is atomic.
        self._may_fold = [True]

    @property
    def total(self) -> int:
        return sum(self._entries)

    def add(self, n: int) -> None:
        self._entries.append(n)
        if len(self._entries) > _FOLD:
            self._fold()

    def _fold(self) -> None:
        try:
            self._may_fold.pop()
        except IndexError:  # another thread does it, or the code that this signal handler interrupts
            return
        self._entries[:_FOLD] = [sum(self._entries[:_FOLD])]
        self._may_fold.append(True)
