"""A Django project in one file: a middleware answers a denial with a 429, and a view streams on a budget.

    cycles-lite budget set tenant:acme TOKENS:10 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme
    python examples/django_project.py

It asks itself some questions. To serve it: `python examples/django_project.py runserver`.
"""

from __future__ import annotations

import sys
from typing import Any, Iterator

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path

from cycles_lite import Action, Amount, CyclesClient, CyclesError, ReservationGuard
from cycles_lite.wsgi import http_error

client = CyclesClient.from_env()


class CyclesErrors:
    """Answers with what `http_error` makes of an error of the library."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_exception(self, request: Any, error: Exception) -> Any:
        if not isinstance(error, CyclesError):
            return None
        status, headers, body = http_error(error)
        response = HttpResponse(body, status=int(status.split()[0]))
        for name, value in headers:
            response[name] = value
        return response


def words(guard: ReservationGuard, count: int) -> Iterator[str]:
    """Stands for a model that streams."""
    for _ in range(count):
        guard.spend(1)
        yield "word "


def complete(request: Any, count: int) -> StreamingHttpResponse:
    with client.reserve(Amount.tokens(count), Action("llm.completion", "words")) as guard:
        return StreamingHttpResponse(guard.stream(words(guard, count)), content_type="text/plain")


urlpatterns = [path("complete/<int:count>", complete)]


def main() -> None:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        MIDDLEWARE=[__name__ + ".CyclesErrors"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="only-for-this-example",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()
    if len(sys.argv) > 1:
        execute_from_command_line(sys.argv)
        return
    browser = Client()
    for count in (6, 6):
        answer = browser.get(f"/complete/{count}")
        print(answer.status_code, answer.getvalue().decode().strip())
    client.close()


if __name__ == "__main__":
    main()
