"""A Flask application with tenants: each request draws on its tenant's budget, and a denial is a 429.

    cycles-lite budget set tenant:acme TOKENS:1000 --db budgets.db
    cycles-lite budget set tenant:other-co TOKENS:10 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/flask_app.py

It asks itself some questions. To serve it: `flask --app examples/flask_app run`.
"""

from __future__ import annotations

from typing import Any, Iterator

from flask import Flask, Response, request

from cycles_lite import Action, Amount, CyclesClient, CyclesError, ReservationGuard, Subject
from cycles_lite.wsgi import http_error

#: What the authentication of a real application knows of a caller.
TENANTS = {"token-of-acme": "acme", "token-of-other": "other-co"}

app = Flask(__name__)
client = CyclesClient.from_env()


def client_of(tenant: str) -> CyclesClient:
    """The client that acts for a tenant; on a server, also with the tenant's own `api_key`. They share connections."""
    return client.with_options(tenant=tenant)


@app.errorhandler(CyclesError)
def refused(error: CyclesError) -> Response:
    status, headers, body = http_error(error)
    return Response(body, status, headers)


@app.route("/complete")
def complete() -> Any:
    tenant = TENANTS.get(request.headers.get("Authorization", ""))
    if tenant is None:
        return "who are you?", 401
    count = int(request.args["words"])
    subject = Subject(app="web")
    with client_of(tenant).reserve(Amount.tokens(count), Action("llm.completion", "words"), subject=subject) as guard:
        return Response(guard.stream(words(guard, count)), mimetype="text/plain")


def words(guard: ReservationGuard, count: int) -> Iterator[str]:
    """Stands for a model that streams."""
    for _ in range(count):
        guard.spend(1)
        yield "word "


def main() -> None:
    browser = app.test_client()
    for token, count in (("token-of-acme", 3), ("token-of-other", 8), ("token-of-other", 8), ("nobody", 1)):
        answer = browser.get(f"/complete?words={count}", headers={"Authorization": token})
        print(answer.status_code, answer.headers.get("Retry-After", "-"), answer.get_data(as_text=True).strip())
    client.close()


if __name__ == "__main__":
    main()
