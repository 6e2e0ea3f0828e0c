"""Four processes on one budget file: together they never spend more than there is.

    cycles-lite budget set tenant:acme TOKENS:100 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/workers.py

The pieces are seven tokens each, so that two tokens are left in the end.
"""

from __future__ import annotations

import multiprocessing

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient


def work(_: int) -> int:
    """Take pieces of seven tokens until the budget says no; return how many there were."""
    pieces = 0
    with CyclesClient.from_env() as client:  # a client for each process
        while True:
            try:
                with client.reserve(Amount.tokens(7), Action("piece", "of-work")) as guard:
                    guard.commit(Amount.tokens(7))
            except BudgetDenied:
                return pieces
            pieces += 1


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pieces = pool.map(work, range(4), chunksize=1)
        pool.close()
        pool.join()
    with CyclesClient.from_env() as client:
        (balance,) = client.get_balances().balances
    print(sum(pieces), "pieces,", balance.spent, "spent,", balance.remaining, "left")


if __name__ == "__main__":
    main()
