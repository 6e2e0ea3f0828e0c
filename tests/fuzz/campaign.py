"""A campaign of random cases against one target: it counts what became of them, and tells how to see a failure again.

    def test_a_target(fuzz):
        fuzz.run(check, short=300)

`check(case)` makes its input by `case.random`, notes it with `case.show(...)`, and returns a word for what became of
it, such as "accepted" or the name of an error's class. Whatever it raises is a failure. Each case has a random source
of its own, which the seed and the case's number make, so that any of them can be run alone.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter

#: Different failures after which a campaign gives up.
MOST_FAILURES = 25


class Case:
    """One case: its number, its random source, and what was done in it."""

    def __init__(self, seed, number):
        self.number = number
        self.random = random.Random(f"{seed}:{number}")
        self.shown = {}

    def show(self, **inputs):
        """Note inputs, to be printed should the case fail."""
        self.shown.update(inputs)


class Campaign:
    """`cases` is how many to run (0: as many as the test's short form has), from number `first`."""

    def __init__(self, name, cases, seed, first):
        self.name, self.cases, self.seed, self.first = name, cases, seed, first
        self.counts = Counter()
        self.failures = {}
        #: The seconds of the case that took the longest, and its number.
        self.slowest = (0.0, 0)

    def numbers(self, short):
        """The numbers of this run's cases."""
        return range(self.first, self.first + (self.cases or short))

    def case(self, number):
        return Case(self.seed, number)

    def run(self, check, short):
        """Run the cases one after the other. Failures are gathered, one of each kind."""
        for number in self.numbers(short):
            case = self.case(number)
            begun = time.monotonic()
            try:
                outcome = check(case)
            except Exception as e:
                self.failed(number, kind_of(e), told(case, e))
            else:
                self.counts[outcome] += 1
            self.slowest = max(self.slowest, (time.monotonic() - begun, number))
            if len(self.failures) >= MOST_FAILURES:
                break
        self.judge()

    def failed(self, number, kind, text):
        self.counts["FAILED"] += 1
        self.failures.setdefault(kind, (number, text))

    def judge(self):
        """Fail if a case did: with each kind's input, and the way to run it alone."""
        again = [
            f"case {number} (--fuzz 1 --fuzz-seed {self.seed}:{number}):\n{text}"
            for number, text in self.failures.values()
        ]
        assert not again, f"{self.name}: {len(again)} kinds of failures\n\n" + "\n\n".join(again)

    def summary(self):
        """One line for the end of the run."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{outcome} {count:,}" for outcome, count in self.counts.most_common())
        cases = f"cases {self.first}..{self.first + total - 1} ({total:,})"
        slowest = f"; the slowest, {self.slowest[1]}, took {self.slowest[0]:.2f} s" if self.slowest[0] else ""
        return f"{self.name}: seed {self.seed}, {cases}: {parts}{slowest}"


def kind_of(error):
    """What tells one failure from another: the class, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return type(error).__name__, last and last.filename, last and last.lineno


def told(case, error):
    lines = [f"  {name} = {value!r:.3000}" for name, value in case.shown.items()]
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-12:])
    whole = "\n".join([*lines, *(line[:400] for line in text.splitlines())])
    return whole.encode("ascii", "backslashreplace").decode("ascii")  # xdist cannot send lone surrogates
