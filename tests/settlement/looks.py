"""What a whole look at a journal finds."""

from __future__ import annotations

from cycles_lite.settlement.look import Look


def loaded(journal):
    """All records of a journal, and all problems with it, as a look finds them."""
    look, records, problems = Look([journal], lambda: ((), ()), claims=False), [], []
    while not look.is_over:
        for of, told in look.step(32):
            assert of is journal
            (problems if isinstance(told, str) else records).append(told)
    return records, problems
