"""A response that streams: whoever reads it to the end pays for all of it, whoever hangs up for what has come.

    cycles-lite budget set tenant:acme TOKENS:1000 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/streaming.py

What `main` does with the response, a web server does with it.
"""

from __future__ import annotations

from typing import Iterator

from cycles_lite import Action, Amount, CyclesClient, ReservationGuard

ACTION = Action("llm.completion", "streaming")


def model(prompt: str) -> Iterator[str]:
    """Stands for a model that streams: a word is a token."""
    yield from prompt.split()


def metered(guard: ReservationGuard, prompt: str) -> Iterator[str]:
    for word in model(prompt):
        guard.spend(1)
        yield word


def respond(client: CyclesClient, prompt: str) -> Iterator[str]:
    """What a view returns: the guard lives as long as the iterator, which outlives the `with` block."""
    with client.reserve(Amount.tokens(100), ACTION) as guard:
        return guard.stream(metered(guard, prompt))


def spent(client: CyclesClient) -> int:
    (balance,) = client.get_balances().balances
    assert balance.spent is not None
    return balance.spent.amount


def main() -> None:
    with CyclesClient.from_env() as client:
        print(*respond(client, "to be or not to be"))
        print(spent(client), "tokens for all of it")
        response = respond(client, "that is the question")
        print(next(response), next(response))
        response.close()  # type: ignore[attr-defined]
        print(spent(client) - 6, "tokens for two words")


if __name__ == "__main__":
    main()
