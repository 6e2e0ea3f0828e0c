"""A budget file of the tenant acme, and what work raises, for tests of what stands on a client."""

from __future__ import annotations

from contextlib import contextmanager

from cycles_lite import Amount
from cycles_lite.local import Authority


class Broken(Exception):
    pass


class Ended(BaseException):
    """As `SystemExit`, which pytest would take for its own."""


def ending(*arguments):
    raise Ended


def tokens(amount):
    return Amount.tokens(amount)


@contextmanager
def ledger_of(folder, allocated):
    """An authority on a new file, with a budget of so many tokens; consistent in the end."""
    with Authority(f"sqlite:///{folder}/budgets.db") as authority:
        authority.set_budget("tenant:acme", tokens(allocated))
        yield authority
        assert authority.check() == []


def spent(ledger, scope="tenant:acme"):
    """What was spent at a scope, and what is still reserved."""
    (budget,) = [budget for budget in ledger.budgets() if budget.scope == scope]
    return budget.spent, budget.reserved


def last(client):
    """The newest reservation."""
    (row,) = client.list_reservations(limit=1, include=("committed_metadata",)).reservations
    return row
