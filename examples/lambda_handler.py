"""An AWS Lambda function behind an API: budgeted, and a denial is a 429.

    cycles-lite budget set tenant:acme TOKENS:100 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/lambda_handler.py

Here it is called as Lambda would. There, its settings are the function's variables, the handler is
`lambda_handler.handler`, and the authority is a server: a budget file would be one container's.
"""

from __future__ import annotations

import json
from typing import Any

from cycles_lite import Action, Amount, CyclesClient, CyclesError, current_guard
from cycles_lite.aws_lambda import guarded
from cycles_lite.wsgi import http_error

client = CyclesClient.from_env()
client.warm_up()


@guarded(client, estimate=lambda event, context: Amount.tokens(60), action=Action("llm.completion", "summary"))
def summarise(event: Any, context: Any) -> str:
    text = json.loads(event["body"])["text"]
    guard = current_guard()
    assert guard is not None
    guard.spend(len(text.split()))  # what the model would tell
    return str(text.split(".")[0]) + "."


def handler(event: Any, context: Any) -> Any:
    try:
        return {"statusCode": 200, "body": summarise(event, context)}
    except CyclesError as error:
        status, headers, body = http_error(error)
        return {"statusCode": int(status.split()[0]), "headers": dict(headers), "body": body.decode()}


class Context:
    """What Lambda hands to a handler, as far as it matters here."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def main() -> None:
    event = {"body": json.dumps({"text": "Once upon a time. " * 12})}
    for _ in range(2):
        answer = handler(event, Context())
        print(answer["statusCode"], answer["body"])


if __name__ == "__main__":
    main()
