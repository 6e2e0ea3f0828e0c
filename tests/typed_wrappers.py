"""What type checkers make of the wrappers: each line that ends in `# refused` is a mistake that they must find."""

from __future__ import annotations

from typing import Any, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from typing_extensions import assert_type

from cycles_lite import Action, Amount, CyclesClient, CyclesMetrics, ReservationGuard, cycles, with_cycles
from cycles_lite.aws_lambda import guarded
from cycles_lite.wsgi import CyclesMiddleware

client = CyclesClient.from_env()
estimate = Amount.tokens(1)
action = Action("llm.completion", "gpt-4o")
metrics = CyclesMetrics(tokens_input=1)


def an_amount(guard: ReservationGuard) -> tuple[str, Amount]:
    return "reply", Amount.tokens(1)


def an_integer(guard: ReservationGuard) -> tuple[list[int], int]:
    return [1], 1


def a_float(guard: ReservationGuard) -> tuple[str, float]:
    return "reply", 1.0


assert_type(with_cycles(client, an_amount, estimate=estimate, action=action), str)
assert_type(with_cycles(client, an_integer, estimate=estimate, action=action, metrics=metrics), "list[int]")
assert_type(with_cycles(client, lambda guard: (1.5, guard.spent), estimate=estimate, action=action), float)
assert_type(with_cycles(client, lambda guard: ("x", guard.estimate), estimate=estimate, action=action), str)
with_cycles(client, a_float, estimate=estimate, action=action)  # refused
with_cycles(client, lambda guard: "reply", estimate=estimate, action=action)  # refused


@cycles(1000, unit="TOKENS", actual=lambda reply: len(reply), action_tags=["a"], agent=lambda prompt, n=1: prompt)
def ask(prompt: str, *, n: int = 1) -> str:
    return prompt


@cycles(lambda n: Amount.tokens(n), action=action, overage_policy="REJECT", dimensions={"team": "a"})
def count(n: int) -> Iterator[int]:
    yield from range(n)


class Agent:
    @cycles(5, tenant=lambda self, n: "acme")
    def method(self, n: int) -> bytes:
        return bytes(n)

    @classmethod
    @cycles(5)
    def above(cls, n: int) -> bytes:
        return bytes(n)


assert_type(ask("x", n=2), str)
assert_type(count(3), "Iterator[int]")
assert_type(Agent().method(1), bytes)
assert_type(Agent.above(1), bytes)
ask(5)  # refused
Agent().method("x")  # refused
cycles(1.5)  # refused
cycles("5")  # refused
cycles(5, client="http://localhost")  # refused


@guarded(client, estimate=estimate, action=action)
def handler(event: dict[str, Any], context: object) -> dict[str, int]:
    return {"statusCode": 200}


assert_type(handler({}, None), "dict[str, int]")
handler(5, None)  # refused


def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return []


application: WSGIApplication = CyclesMiddleware(plain, client, estimate=estimate, action=action)
application = CyclesMiddleware(
    application,
    client,
    estimate=estimate,
    action=action,
    on_error=lambda error, environ: ("402 Payment Required", [("Retry-After", "60")], b"") if error.args else None,
)

clients: dict[str, CyclesClient] = {"acme": client}
application = CyclesMiddleware(
    plain, estimate=estimate, action=action, tenant_header="X-Tenant-ID", client_for=clients.get
)
CyclesMiddleware(plain, estimate=estimate, action=action, tenant_header="X-Tenant-ID", client_for=str)  # refused
CyclesMiddleware(plain, client, estimate=estimate, action=action, tenant_haeder="X-Tenant-ID")  # refused
guarded(client, estimate=estimate, aktion=action)  # refused
