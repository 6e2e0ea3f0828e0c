"""What a program does as its budget goes: the large model, then the small one, then only what is in its cache.

    cycles-lite budget set tenant:acme TOKENS:250 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/degradation.py

Each question is tried with every model, the best one first, before the cache is asked.
"""

from __future__ import annotations

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient

#: The models, the best one first, with the tokens of the budget that a question takes.
MODELS = {"large": 100, "small": 20}

cache: dict[str, str] = {}


def ask(client: CyclesClient, model: str, question: str) -> str:
    cost = Amount.tokens(MODELS[model])
    with client.reserve(cost, Action("llm.completion", model)) as guard:
        answer = f"{model}: {question.upper()}"  # the call of the model goes here
        guard.commit(cost)
    cache[question] = answer
    return answer


def answer(client: CyclesClient, question: str) -> str:
    for model in MODELS:
        try:
            return ask(client, model, question)
        except BudgetDenied:  # before the call, so nothing has been paid for
            continue
    if question in cache:
        return cache[question] + " (from the cache)"
    return "come back later"


def main() -> None:
    with CyclesClient.from_env() as client:
        for question in ("who", "what", "when", "where", "who", "why"):
            print(answer(client, question))


if __name__ == "__main__":
    main()
