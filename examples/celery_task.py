"""A Celery task on a budget: what is denied is tried again when there is budget, and gives up in the end.

    cycles-lite budget set tenant:acme TOKENS:100 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/celery_task.py

Here a worker runs in a thread of this program, with a broker in memory. With a real broker, start workers by
`celery -A celery_task worker`. The client is made once for the module, before the workers are forked.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.contrib.testing.worker import start_worker

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient, TransportError

app = Celery("celery_task", broker="memory://", backend="cache+memory://", set_as_current=False)
client = CyclesClient.from_env()


@app.task(bind=True, max_retries=2)
def summarise(self: Any, text: str) -> str:
    cost = Amount.tokens(len(text.split()))
    try:
        with client.reserve(cost, Action("llm.completion", "summary")) as guard:
            summary = text.split()[0]
            guard.commit(cost)
            return summary
    except (BudgetDenied, TransportError) as e:  # the work has not run
        wait = e.retry_after if e.retry_after is not None else 0.1  # a real task would wait for minutes
        raise self.retry(exc=e, countdown=wait) from e


def main() -> None:
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
        print(summarise.delay("one " * 60).get(timeout=60))
        try:
            print(summarise.delay("two " * 60).get(timeout=60))
        except BudgetDenied as e:  # after the last try
            print(e.code, e.details["remaining"])
    client.close()


if __name__ == "__main__":
    main()
