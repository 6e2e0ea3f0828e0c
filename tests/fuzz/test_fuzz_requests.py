"""Mutated HTTP requests to the served authority: each gets an answer in the protocol's shape, and none is a 500."""

from __future__ import annotations

import io
import json
import re

import pytest
from mutations import TEXTS, body, mutated, mutated_bytes
from serving import ADMIN_KEY, asking, committing, event, keyed, tokens

from cycles_lite import Amount, Caps
from cycles_lite.local import Authority
from cycles_lite.local.application import Application
from cycles_lite.local.rules import Funding

KEY, RIVAL = "acme-secret-1234", "rival-secret-1234"


@pytest.fixture
def application(tmp_path):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(10**12), overdraft_limit=1000)
        authority.set_budget("tenant:acme/agent:bot", Amount.tokens(1000), caps=Caps(max_tokens=500))
        authority.set_budget("tenant:acme/app:usd", Amount.usd("5"))
        authority.create_key("acme", secret=KEY)
        authority.create_key("rival", secret=RIVAL)
        yield Application(authority, ADMIN_KEY)
        assert authority.check() == []


def test_requests(fuzz, application):
    ids = ["rsv_none"]

    def check(case):
        random = case.random
        environ, sent = request(random, ids)
        case.show(environ={**environ, "wsgi.input": sent})
        answers = []
        pieces = application(environ, lambda status, headers: answers.append((status, headers)))
        ((status, headers),) = answers
        return judged(status, headers, b"".join(pieces), environ, ids)

    fuzz.run(check, short=400)


# ---- What is asked ----


FUND = "/v1/admin/budgets/fund"


def legal(random, ids):
    """A legal request: method, path, query, body."""
    id, usd = random.choice(ids[-20:]), {"unit": "USD_MICROCENTS", "amount": random.choice([0, 5])}
    bodies = {
        "/v1/reservations": asking(random.choice([1, 100]), metadata={"run": {"n": [1, None]}}),
        "/v1/decide": asking(5),
        "/v1/events": event(3, metrics={"tokens_input": 5, "latency_ms": 7, "custom": {"a": 1.5}}),
        f"/v1/reservations/{id}/commit": committing(random.choice([0, 42, 100, 1000])),
        f"/v1/reservations/{id}/release": keyed(reason="odd"),
        f"/v1/reservations/{id}/extend": keyed(extend_by_ms=1000),
        "/v1/admin/tenants": {"tenant_id": "acme", "name": "acme"},
        "/v1/admin/api-keys": {"tenant_id": "acme", "name": "k", "permissions": ["decide"], "expires_at": None},
        "/v1/admin/budgets": {
            "tenant_id": "acme", "scope": "tenant:acme/app:x", "unit": "TOKENS", "allocated": tokens(5), "caps": {},
        },
        FUND: keyed(operation=random.choice(list(Funding)), amount=usd, reason="odd", metadata={"a": [1]}),
    }  # fmt: skip
    gets = {
        "/v1/reservations": "tenant=acme&limit=2&sort_by=created_at_ms&sort_dir=asc&status=ACTIVE&include=metadata",
        "/v1/balances": "tenant=acme&include_children=true&limit=1",
        f"/v1/reservations/{id}": "",
        "/v1/evidence/" + "0" * 64: "",
        "/v1/.well-known/cycles-jwks.json": "",
        "/actuator/health": "",
        "/metrics": "",
    }
    if random.random() < 0.7:
        path = random.choice(list(bodies))
        return "POST", path, "scope=tenant:acme/app:usd&unit=USD_MICROCENTS" if path == FUND else "", bodies[path]
    path = random.choice(list(gets))
    return "GET", path, gets[path], None


def request(random, ids):
    method, path, query, data = legal(random, ids)
    if data is not None and random.random() < 0.1:
        data["subject"] = {"tenant": "acme", "agent": "bot"}
    step = random.randrange(12)
    if data is not None and step < 8:
        data = mutated(random, data)
    sent = b"" if data is None else body(random, data)
    if step == 8:
        path = odd_path(random, path)
    if step == 9 or method == "GET":
        query = odd_query(random, query)
    if step == 10:
        method = random.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "", "get", "x" * 300, "P\xd6ST"])
    headers = {"HTTP_X_CYCLES_API_KEY": KEY}
    if "/admin/" in path or random.random() < 0.05:
        headers["HTTP_X_ADMIN_API_KEY"] = ADMIN_KEY
    if data is not None and isinstance(data, dict) and random.random() < 0.5:
        headers["HTTP_X_IDEMPOTENCY_KEY"] = latin(str(data.get("idempotency_key")))
    if step == 11 or random.random() < 0.1:
        name = random.choice(HEADERS)
        headers[name] = latin(
            random.choice([*TEXTS, KEY, RIVAL, ADMIN_KEY, f"Bearer {ADMIN_KEY}", "0" * 32, "00-" + "1" * 32, "1" * 32])
        )
    length = str(len(sent))
    if random.random() < 0.03:
        length = random.choice(["", "0", "-1", "1", "x", "1e3", " 5 ", "9" * 30, str(2**20), str(2**20 + 1), "\u0665"])
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_LENGTH": length,
        "wsgi.input": io.BytesIO(sent),
        **headers,
    }
    return environ, sent


HEADERS = [
    "HTTP_X_CYCLES_API_KEY",
    "HTTP_X_ADMIN_API_KEY",
    "HTTP_X_IDEMPOTENCY_KEY",
    "HTTP_X_CYCLES_TRACE_ID",
    "HTTP_TRACEPARENT",
    "HTTP_AUTHORIZATION",
    "HTTP_ACCEPT",
    "CONTENT_TYPE",
]


def latin(text):
    """As WSGI has it: bytes that are decoded as Latin-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def odd_path(random, path):
    parts = path.split("/")
    parts[random.randrange(len(parts))] = latin(random.choice(TEXTS))
    return random.choice(
        ["/".join(parts), path + "/", path.upper(), "", "/", mutated_bytes(random, path.encode()).decode("latin-1")]
    )


NAMES = (
    "tenant workspace agent status limit cursor sort_by sort_dir include from to expires_from finalized_to "
    "include_children"
)


def odd_query(random, query):
    pairs = [pair.split("=") for pair in query.split("&") if pair]
    for _ in range(random.randint(0, 3)):
        value = random.choice(
            [*TEXTS, "1", "200", "201", "2026-01-01T00:00:00Z", "2026-01-01", "9999-12-31T23:59:60+99:99", "asc"]
        )
        pairs.append([random.choice([*NAMES.split(), "odd", ""]), latin(value)])
    random.shuffle(pairs)
    made = "&".join("=".join(pair) for pair in pairs)
    return mutated_bytes(random, made.encode("latin-1")).decode("latin-1") if random.random() < 0.2 else made


# ---- What must come back ----


def bearer(environ):
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def judged(status, headers, sent, environ, ids):
    """The outcome, once the answer is proven to be in the protocol's shape."""
    code = int(status.split(" ")[0])
    assert re.match(r"[1-5][0-9][0-9] \S", status), status
    named = {name.lower(): value for name, value in headers}
    assert len(named) == len(headers)
    for name, value in headers:
        text = name + value
        assert text.isascii() if hasattr(text, "isascii") else text.encode("ascii")
        assert text.isprintable(), text
    assert named["x-request-id"]
    assert re.match("[0-9a-f]{32}\\Z", named["x-cycles-trace-id"])
    if environ["REQUEST_METHOD"] == "HEAD":
        assert sent == b""
        return "HEAD"
    assert named["content-length"] == str(len(sent))
    if named["content-type"] != "application/json":
        path = environ["PATH_INFO"]
        assert (code, environ["REQUEST_METHOD"]) == (200, "GET")
        assert path in ("/", "/metrics")
        assert path == "/" or ADMIN_KEY in (environ.get("HTTP_X_ADMIN_API_KEY"), bearer(environ))
        return "the page" if path == "/" else "metrics"
    told = json.loads(sent.decode("ascii"), parse_constant=pytest.fail)
    assert code < 500, (status, told)
    if code < 400:
        assert code in (200, 201)
        if told.get("reservation_id") and environ["REQUEST_METHOD"] == "POST":
            ids.append(told["reservation_id"])
        return "accepted"
    assert type(told["error"]) is str
    assert type(told["message"]) is str
    assert told["message"]
    assert told["request_id"] == named["x-request-id"]
    assert told["trace_id"] == named["x-cycles-trace-id"]
    assert KEY not in sent.decode("ascii")
    return f"{code} {told['error']}"
