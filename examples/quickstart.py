"""Reserve, work, commit: the smallest whole program.

    cycles-lite budget set tenant:acme TOKENS:1000 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/quickstart.py hello
    cycles-lite balances

The model is a function here: put your own in its place.
"""

from __future__ import annotations

import sys

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient


def model(prompt: str) -> tuple[str, int]:
    """Stands for a call of a model: the reply, and the tokens that it took."""
    return prompt[::-1], len(prompt)


def main(prompt: str) -> None:
    with CyclesClient.from_env() as client:
        try:
            with client.reserve(Amount.tokens(100), Action("llm.completion", "mirror")) as guard:
                reply, used = model(prompt)
                settlement = guard.commit(Amount.tokens(used))
        except BudgetDenied as e:
            sys.exit(f"no budget: {e}")
        print(reply)
        print(settlement.status, settlement.charged)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "hello")
