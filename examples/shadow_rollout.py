"""Before a budget may stop anything: run with it in shadow, and count what it would have stopped.

    cycles-lite budget set tenant:acme TOKENS:500 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    CYCLES_MODE=shadow python examples/shadow_rollout.py
    python examples/shadow_rollout.py

The first run stops nothing and charges nothing; the second one does both.
"""

from __future__ import annotations

import logging
from collections import Counter

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient, events

#: What a day's work asks for.
DAY = [("chat", 100), ("chat", 200), ("report", 900), ("chat", 150), ("import", 700)]

denied: Counter[str] = Counter()


def observer(event: events.Event) -> None:
    """Told in the thread in which the thing happens; a real one would count in the metrics of the service."""
    if isinstance(event, events.Denied):
        denied[event.action.name] += 1


def main() -> None:
    logging.getLogger("cycles_lite").setLevel(logging.ERROR)  # the same is logged as a WARNING
    ran = []
    with CyclesClient.from_env(observer=observer) as client:
        for name, tokens in DAY:
            try:
                with client.reserve(Amount.tokens(tokens), Action("job", name)) as guard:
                    ran.append(name)
                    guard.commit(Amount.tokens(tokens))
            except BudgetDenied:
                continue
        print(f"{client.config.mode}: ran {', '.join(ran)}; denied {dict(denied)}")


if __name__ == "__main__":
    main()
