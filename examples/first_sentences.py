"""A script on a budget: prints the first sentence of each file, and pays for the words that it has read and written.

    cycles-lite budget set tenant:acme TOKENS:20 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    echo "Short indeed. And more of it." > short.txt
    echo "One, two, three, four, five, six. And more." > long.txt
    python examples/first_sentences.py short.txt long.txt || echo "status $?"

Exit status 75, "try again later", when the budget says no.
"""

from __future__ import annotations

import sys

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient

ACTION = Action("text.summary", "first-sentence")


def first_sentence(text: str) -> str:
    return " ".join(text.partition(".")[0].split()) + "."


def main(paths: list[str]) -> int:
    with CyclesClient.from_env() as client:
        for path in paths:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            words = len(text.split())
            try:
                with client.reserve(Amount.tokens(2 * words), ACTION) as guard:
                    sentence = first_sentence(text)
                    guard.commit(Amount.tokens(words + len(sentence.split())))
            except BudgetDenied as e:
                print(f"{path}: {e}", file=sys.stderr)
                return 75
            print(f"{path}: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
