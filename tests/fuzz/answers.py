"""Answers of an authority that are nearly right, and what must hold of the errors that they become."""

from __future__ import annotations

import json
import logging
import pickle
import traceback

from mutations import TEXTS, body, mutated, mutated_bytes
from peers import KEY, allowed, balance, summary
from samples import told

from cycles_lite import errors
from cycles_lite.protocol import wire

OPERATIONS = {operation.name: operation for operation in wire.OPERATIONS}
ANSWERS = {
    name: [told(operation.response), told(operation.response, everything=True)]
    for name, operation in OPERATIONS.items()
}
ANSWERS["create_reservation"] += [allowed(), allowed(balances=[balance()], remaining_ttl_ms=60_000)]
ANSWERS["list_reservations"] += [{"reservations": [summary(), summary("rsv_2")], "has_more": True, "next_cursor": "c"}]
for name, operation in OPERATIONS.items():
    if operation.proof is not None:
        for answer in ANSWERS[name]:
            answer["status"] = operation.proof

CODES = [code for code in errors.CODES if isinstance(code, str)]
STATUSES = [200, 201, 202, 204, 206, 299, 300, 301, 302, 304, 400, 401, 403, 404, 408, 409, 410, 413, 422, 423, 429]
STATUSES += [451, 499, 500, 501, 502, 503, 504, 511, 599]
ODD_STATUSES = [0, 1, 99, 100, 101, 103, 199, 399, 600, 601, 700, 999, 1000, -200]


def refused(random, key):
    """An error's body: a code, known or not, and all that an error may have. It may tell the key."""
    return {
        "error": random.choice([*CODES, *CODES, *TEXTS]),
        "message": random.choice(["no", "", "the key was " + key, "x" * 3000, "\x1b[31mred\n"]),
        "request_id": random.choice(["req_1", key]),
        "trace_id": "0" * 31 + "1",
        "details": {"scope": "tenant:acme", "unit": "TOKENS", "remaining": 5, "requested": key, "retry_after_ms": 5},
        "retry_after_ms": random.choice([0, 1, 1500, -1, 10**30, True, "5"]),
    }


def odd_answer(random, operation):
    """An answer to an operation: its status, headers and body, mutated in one of these or in all. Where the request had
    the API key, they may tell it."""
    key = "no key was sent" if operation.public else KEY
    status = operation.status
    data = random.choice(ANSWERS[operation.name])
    kind = random.randrange(12)
    if kind < 4:
        status = random.choice([400, 404, 409, random.choice(STATUSES), random.choice(STATUSES)])
        data = refused(random, key)
        if kind == 3:
            data = mutated(random, data)
    elif kind < 10:
        data = mutated(random, data)
    if kind == 10 or random.random() < 0.05:
        status = random.choice([*STATUSES, *STATUSES, *ODD_STATUSES])
    content = body(random, data)
    if random.random() < 0.05:
        content = random.choice(
            [b"", b"null", b"[]", b"<html>" + key.encode(), b"\x00" * 50, content * 2, content[:-1], b" "]
        )
    if random.random() < 0.03:
        content = mutated_bytes(random, content)
    return status, odd_headers(random, key), content


def odd_headers(random, key):
    made = {"content-type": "application/json", "x-request-id": "req_7"}
    for _ in range(random.choice([0, 0, 1, 3])):
        name = random.choice(
            "retry-after x-request-id x-cycles-trace-id x-ratelimit-remaining x-ratelimit-reset content-type date "
            "content-encoding x-cycles-tenant location".split()
        )
        values = [
            "1",
            "0",
            "-1",
            "1.5",
            "9" * 30,
            "Wed, 21 Oct 2026 07:28:00 GMT",
            key,
            "gzip",
            "text/html",
            "\u0665",
            *TEXTS,
        ]
        made[name] = random.choice(values)
    return made


# ---- What must hold ----


def hygienic(error):
    """The error tells the key in none of its texts, and survives being logged, sent and read again."""
    texts = [str(error), repr(error), "".join(traceback.format_exception(type(error), error, error.__traceback__))]
    texts += [repr(error.__dict__), repr(error.args)]
    assert str(error).isprintable()
    for text in texts:
        assert KEY not in text, text
        assert json.dumps(KEY)[1:-1] not in text, text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.is_retryable, again.retry_after) == (error.is_retryable, error.retry_after)
    assert error.retry_after is None or error.retry_after >= 0


class Told(logging.Handler):
    """What the package logs, as text."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())
