"""A script for cron on a monthly budget: works until that is used up, and goes on the next time.

    cycles-lite budget set tenant:acme USD:0.05 --every month --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/cron_budget.py || echo "status $?"
    cycles-lite budget credit tenant:acme USD:0.05
    python examples/cron_budget.py && echo "all done"

Here the budget is credited; where nobody does that, the work goes on with the next month. What is done is noted in
`done.txt`, and the status 75 says "try again later".
"""

from __future__ import annotations

import logging
import os
import sys

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient, TransportError

WAITING = ["january", "february", "march", "april", "may"]
DONE = "done.txt"
PRICE = Amount.usd("0.02")


def done() -> list[str]:
    if not os.path.exists(DONE):
        return []
    with open(DONE, encoding="utf-8") as file:
        return file.read().split()


def report(client: CyclesClient, month: str) -> None:
    """One piece of work; where the process dies in it, its reservation expires and the piece is done again."""
    with client.reserve(PRICE, Action("report", month)) as guard:
        print("report for", month)
        guard.commit(PRICE)
    with open(DONE, "a", encoding="utf-8") as file:
        file.write(month + "\n")


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    before = done()
    with CyclesClient.from_env() as client:
        for month in WAITING:
            if month in before:
                continue
            try:
                report(client, month)
            except BudgetDenied as e:
                print("the budget is used up:", e.details["remaining"], "microcents left")
                return 75
            except TransportError as e:
                print("the authority cannot be reached:", e, file=sys.stderr)
                return 69
    return 0


if __name__ == "__main__":
    sys.exit(main())
