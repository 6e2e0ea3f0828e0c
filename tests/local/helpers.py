"""An authority under test, with a clock that the test moves, and its requests as plain dictionaries."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any, NamedTuple

from cycles_lite.errors import ValidationError
from cycles_lite.local import connections
from cycles_lite.local.authority import Authority, Caller
from cycles_lite.local.messages import error_answer
from cycles_lite.protocol import wire
from cycles_lite.protocol.values import Amount

from . import document

START = 1_700_000_000_000

ACME = Caller("acme")
ADMIN = Caller(admin=True)
OWNER = Caller()

_OPERATIONS = {operation.name: operation for operation in wire.OPERATIONS}
_numbers = itertools.count(1)


def tokens(amount):
    """An amount in JSON."""
    return {"unit": "TOKENS", "amount": amount}


def new_key():
    return f"key-{next(_numbers)}"


class Clock:
    """Milliseconds since 1970, as the test wants them."""

    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now


class Answered(NamedTuple):
    """An answer, decoded."""

    status: int
    data: dict[str, Any]
    headers: dict[str, str]

    @property
    def error(self):
        return self.data.get("error")

    @property
    def id(self):
        return self.data["reservation_id"]


class Bench:
    """An authority and a tenant `acme` that most tests act for."""

    def __init__(self, url="sqlite://", validates=True, **options):
        self.clock = Clock()
        self.authority = Authority(url, clock=self.clock, **options)
        self._validates = validates

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.authority.shutdown()

    def budget(self, scope="tenant:acme", amount=1000, **options):
        return self.authority.set_budget(scope, Amount.tokens(amount), **options)

    def call(self, operation, body=None, id=None, query=None, headers=None, caller=ACME):
        """One request; a dictionary is what a program in this process gives, bytes are what a server gets."""
        operation = _OPERATIONS[operation]
        before = copy.deepcopy(body)
        try:
            given = wire.read_body(body) if isinstance(body, bytes) else body
        except ValidationError as e:
            answer = error_answer(400, "INVALID_REQUEST", e.message, headers or {}, caller.tenant)
        else:
            call = wire.Call(operation, id, query or {}, given, headers or {}, None, 2.0, 5.0)
            answer = self.authority.answer(call, caller)
        assert body == before, "the authority has changed what it was given"
        status, headers, data = answer.status, answer.headers, answer.data
        assert headers["content-type"] == "application/json"
        assert_plain(data)
        assert json.loads(answer.body.decode("ascii")) == data
        if self._validates:
            document.check(operation, status, data)
        if status >= 400:
            assert data["request_id"] == headers["x-request-id"]
            assert data["trace_id"] == headers["x-cycles-trace-id"]
        else:
            assert status == operation.status
        return Answered(status, data, headers)

    # ---- The operations, with the fields that a test does not care about filled in ----

    def reserve(self, amount=100, subject=None, caller=ACME, headers=None, **fields):
        return self.call("create_reservation", request(amount, subject, **fields), headers=headers, caller=caller)

    def decide(self, amount=100, subject=None, caller=ACME, **fields):
        return self.call("decide", request(amount, subject, **fields), caller=caller)

    def event(self, amount=100, subject=None, caller=ACME, **fields):
        body = request(0, subject, **fields)
        del body["estimate"]
        body.setdefault("actual", tokens(amount))
        return self.call("create_event", body, caller=caller)

    def commit(self, id, amount=100, caller=ACME, **fields):
        return self.call(
            "commit_reservation", {**keyed(fields), "actual": fields.get("actual", tokens(amount))}, id, caller=caller
        )

    def release(self, id, caller=ACME, **fields):
        return self.call("release_reservation", keyed(fields), id, caller=caller)

    def extend(self, id, by=1000, caller=ACME, **fields):
        return self.call("extend_reservation", {"extend_by_ms": by, **keyed(fields)}, id, caller=caller)

    def get(self, id, caller=ACME):
        return self.call("get_reservation", id=id, caller=caller)

    def list(self, caller=ACME, **query):
        return self.call(
            "list_reservations", query={name.rstrip("_"): value for name, value in query.items()}, caller=caller
        )

    def listed(self, **query):
        """The ids in a list."""
        return [row["reservation_id"] for row in self.list(**query).data["reservations"]]

    def balances(self, caller=ACME, **query):
        return self.call("get_balances", query=query or {"tenant": "acme"}, caller=caller)

    def amounts(self, scope="tenant:acme", unit="TOKENS"):
        """A budget as (remaining, reserved, spent, debt, is_over_limit)."""
        (found,) = [one for one in self.authority.budgets() if (one.scope, one.unit) == (scope, unit)]
        return found.remaining, found.reserved, found.spent, found.debt, found.is_over_limit


def assert_plain(data):
    """What is answered in this process is what `json` makes of the bytes: its own classes alone, none derived."""
    if type(data) is dict:
        assert all(type(name) is str for name in data)
        data = list(data.values())
    if type(data) is list:
        for entry in data:
            assert_plain(entry)
    else:
        assert type(data) in (str, int, float, bool, type(None)), repr(data)


def request(amount, subject, **fields):
    body = {
        "subject": subject or {"tenant": "acme"},
        "action": {"kind": "llm.completion", "name": "gpt-4o"},
        "estimate": tokens(amount),
    }
    return {**body, **keyed(fields)}


def keyed(fields):
    """The fields with an idempotency key; None takes one out."""
    made = {"idempotency_key": new_key(), **fields}
    return {name: value for name, value in made.items() if value is not _ABSENT}


_ABSENT = object()
ABSENT = _ABSENT


def connections_to(path):
    """The connections that are open to a file; what other tests have left for the garbage collector does not count."""
    return [one for one in connections.open_connections() if one.place.path == path]


#: Whatever comes first after something is due, readers and refused ones too; `made` is a reservation.
READERS = {
    "get": lambda bench, made: bench.get(made.id),
    "list": lambda bench, made: bench.list(),
    "balances": lambda bench, made: bench.balances(),
    "decide": lambda bench, made: bench.decide(),
    "dry run": lambda bench, made: bench.reserve(dry_run=True),
    "refused": lambda bench, made: bench.reserve(5000),
    "provisioning": lambda bench, made: bench.authority.budgets(),
    "history": lambda bench, made: bench.authority.history(),
    "check": lambda bench, made: bench.authority.check(),
}
