"""The server over real HTTP: routes, headers, keys, tenants, bodies, connections."""

from __future__ import annotations

import json
import logging
import re
import threading
from contextlib import ExitStack

import pytest
from serving import (
    ADMIN_KEY,
    PATIENCE,
    Http,
    asking,
    committing,
    connect,
    event,
    keyed,
    new_key,
    process,
    raw,
    serving,
    tokens,
)

from cycles_lite import (
    Action,
    Amount,
    CommitRequest,
    ConfigError,
    CyclesClient,
    CyclesConfig,
    ReservationCreateRequest,
)
from cycles_lite.local import Authority
from cycles_lite.local.application import Application

MIB = 1024 * 1024
UNKNOWN = "rsv_" + "0" * 32
EVIDENCE = "0" * 64

#: Every route: the methods that it knows, and a path that fits it.
ROUTES = {
    "/actuator/health": "GET, HEAD",
    "/v1/decide": "POST",
    "/v1/reservations": "GET, POST",
    "/v1/reservations/rsv_1": "GET",
    "/v1/reservations/rsv_1/commit": "POST",
    "/v1/reservations/rsv_1/release": "POST",
    "/v1/reservations/rsv_1/extend": "POST",
    "/v1/balances": "GET",
    "/v1/events": "POST",
    "/v1/budgets/periods": "GET",
    f"/v1/evidence/{EVIDENCE}": "GET",
    "/v1/.well-known/cycles-jwks.json": "GET",
    "/v1/admin/tenants": "POST",
    "/v1/admin/api-keys": "POST",
    "/v1/admin/budgets": "POST",
}


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def http(served):
    """A connection with acme's key."""
    with Http(served.url, served.key) as http:
        yield http


def reserve(http, amount=100, **fields):
    made = http("POST", "/v1/reservations", asking(amount, **fields))
    assert made.status == 200, made
    return made.data["reservation_id"]


def proves_ids(reply, tenant=None):
    """Every answer is JSON and says which request and which trace it is of; an error says so in its body too."""
    headers = reply.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert len(headers["x-cycles-trace-id"]) == 32
    assert headers.get("x-cycles-tenant") == tenant
    assert (headers["x-ratelimit-remaining"], headers["x-ratelimit-reset"]) == ("-1", "0")
    assert "server" not in headers
    if reply.status >= 400 and reply.body:
        assert reply.data["request_id"] == headers["x-request-id"]
        assert reply.data["trace_id"] == headers["x-cycles-trace-id"]
        assert reply.data["message"]


# ---- Routes ----


def test_health_needs_no_key(served):
    with Http(served.url) as http:
        reply = http("GET", "/actuator/health")
        assert (reply.status, reply.body) == (200, b'{"status":"UP"}')
        proves_ids(reply)
        head = http("HEAD", "/actuator/health")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "15")


@pytest.mark.parametrize("path", ROUTES)
def test_other_methods_are_405_and_the_answer_names_the_right_ones(served, http, path):
    """HEAD too: the document declares it nowhere. Bodies of such requests do not disturb the connection."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        if method not in ROUTES[path].split(", "):
            reply = http(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None)
            assert (reply.status, reply.error, reply.headers["allow"]) == (405, "INVALID_REQUEST", ROUTES[path])
            proves_ids(reply)
    assert http("GET", "/actuator/health").status == 200
    with Http(served.url, served.key) as once:  # waitress 2 hangs up after each HEAD
        reply = once("HEAD", path)
        assert reply.status == (200 if "HEAD" in ROUTES[path] else 405)
        assert reply.body == b""
        proves_ids(reply)


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/reservations/", "/v1/reservations/a/b", "/v2/decide", "/v1/decide/", "/V1/DECIDE", "/%00"]
)
def test_unknown_routes_are_404(http, path):
    for method in ("GET", "POST"):
        reply = http(method, path, b"{}" if method == "POST" else None)
        assert (reply.status, reply.error) == (404, "NOT_FOUND")
        proves_ids(reply)


def test_evidence_needs_no_key_and_there_is_none(served):
    """A key that is sent anyway, though it be wrong, changes nothing."""
    for key in (None, served.key, "wrong"):
        with Http(served.url, key) as http:
            for path, status in (
                (f"/v1/evidence/{EVIDENCE}", 404),
                ("/v1/evidence/abc", 400),
                ("/v1/.well-known/cycles-jwks.json", 404),
            ):
                reply = http("GET", path)
                assert reply.status == status
                proves_ids(reply)


# ---- What every answer carries ----


def test_every_kind_of_answer_carries_its_ids(served, http):
    id = reserve(http)
    body = committing(1)
    for status, (method, path, *sent) in [
        (200, ("GET", "/v1/balances?tenant=acme")),
        (200, ("GET", "/v1/reservations")),
        (200, ("GET", f"/v1/reservations/{id}")),
        (200, ("POST", "/v1/decide", asking())),
        (200, ("POST", "/v1/reservations", asking(dry_run=True))),
        (200, ("POST", f"/v1/reservations/{id}/extend", keyed(extend_by_ms=1000))),
        (200, ("POST", f"/v1/reservations/{id}/commit", body)),
        (200, ("POST", f"/v1/reservations/{id}/commit", body)),
        (409, ("POST", f"/v1/reservations/{id}/release", keyed())),
        (201, ("POST", "/v1/events", event())),
        (400, ("POST", "/v1/decide", b"{")),
        (400, ("GET", "/v1/balances")),
        (403, ("GET", "/v1/balances?tenant=rival")),
        (404, ("GET", f"/v1/reservations/{UNKNOWN}")),
        (409, ("POST", "/v1/reservations", asking(10**9))),
    ]:
        reply = http(method, path, *sent)
        assert reply.status == status, (method, path, reply)
        proves_ids(reply, "acme")
    assert http("POST", "/v1/decide", asking(), X_Cycles_API_Key=None).status == 401


def test_request_ids_are_new_each_time(http):
    ids = [http("GET", "/v1/balances?tenant=acme").headers["x-request-id"] for _ in range(5)]
    assert len(set(ids)) == 5


GIVEN, FLAT, ZERO = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210", "0" * 32
SPAN = "0123456789abcdef"
TRACES = [
    ({"traceparent": f"00-{GIVEN}-{SPAN}-01"}, GIVEN),
    ({"traceparent": f"00-{GIVEN}-{SPAN}-00", "X_Cycles_Trace_Id": FLAT}, GIVEN),
    ({"X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": "nonsense", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{ZERO}-{SPAN}-01", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{GIVEN}-{'0' * 16}-01", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"01-{GIVEN}-{SPAN}-01", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{GIVEN.upper()}-{SPAN}-01", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{GIVEN}-{SPAN}-01-more", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{GIVEN}-{SPAN}", "X_Cycles_Trace_Id": FLAT}, FLAT),
    ({"traceparent": f"00-{GIVEN[1:]}-{SPAN}-01"}, None),
    ({"X_Cycles_Trace_Id": ZERO}, None),
    ({"X_Cycles_Trace_Id": FLAT.upper()}, None),
    ({"X_Cycles_Trace_Id": FLAT + "0"}, None),
    ({"X_Cycles_Trace_Id": ""}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "trace"), TRACES)
def test_the_trace_is_the_callers_where_it_names_one(served, http, headers, trace):
    """On what succeeds, on errors, on what is refused before it is routed, and on what is no protocol at all."""
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    for reply in (
        http("GET", "/v1/balances?tenant=acme", **headers),
        http("GET", "/v1/balances?tenant=rival", **headers),
        http("GET", "/v1/balances", X_Cycles_API_Key="wrong", **headers),
        http("GET", "/nowhere", **headers),
        http("GET", "/actuator/health", **headers),
        http("POST", "/v1/admin/tenants", b"", **headers),
        raw(served.url, f"POST / HTTP/1.1\r\n{text}Transfer-Encoding: gzip\r\n\r\n".encode()),
    ):
        found = reply.headers["x-cycles-trace-id"]
        if trace is not None:
            assert found == trace
        else:
            assert found not in (GIVEN, FLAT, ZERO)
            assert len(found) == 32


# ---- Keys ----


def every_operation(tenant, id):
    """One request for each operation that needs a key."""
    return [
        ("POST", "/v1/decide", asking(tenant=tenant)),
        ("POST", "/v1/reservations", asking(tenant=tenant)),
        ("POST", "/v1/reservations", asking(tenant=tenant, dry_run=True)),
        ("GET", f"/v1/reservations?tenant={tenant}", None),
        ("GET", f"/v1/reservations/{id}", None),
        ("POST", f"/v1/reservations/{id}/commit", committing()),
        ("POST", f"/v1/reservations/{id}/release", keyed()),
        ("POST", f"/v1/reservations/{id}/extend", keyed(extend_by_ms=1)),
        ("GET", f"/v1/balances?tenant={tenant}", None),
        ("POST", "/v1/events", event(tenant=tenant)),
    ]


def test_no_valid_key_is_401_on_every_operation(served):
    """None, an unknown, a revoked, an expired one, a closed tenant's, two at once: nothing is read or written."""
    with Http(served.url, served.key) as http:
        id = reserve(http)
    authority = served.authority
    revoked = authority.create_key("acme")
    authority.revoke_key(revoked.key_id)
    expired = authority.create_key("acme", expires_at_ms=1)
    closed = authority.create_key("closed")
    authority.close_tenant("closed")
    before = authority.budgets()
    keys = (None, "", "wrong", served.key.upper(), revoked.key_secret, expired.key_secret, closed.key_secret)
    for key in (*keys, served.key + ", " + served.key, "\xe9"):
        with Http(served.url, X_Cycles_API_Key=key) as http:
            for method, path, body in every_operation("acme", id):
                reply = http(method, path, body)
                assert (reply.status, reply.error) == (401, "UNAUTHORIZED"), (key, method, path)
                proves_ids(reply)
    assert authority.budgets() == before


def test_a_key_is_found_whatever_the_case_of_its_headers_name(served):
    for name in ("x-cycles-api-key", "X-CYCLES-API-KEY"):
        with Http(served.url) as http:
            assert http("GET", "/v1/balances?tenant=acme", **{name: served.key}).status == 200


def test_another_tenants_things_are_403_on_every_operation(served, http):
    id = reserve(http)
    before = served.authority.budgets()
    with Http(served.url, served.rival_key) as rival:
        for method, path, body in every_operation("acme", id):
            reply = rival(method, path, body)
            assert (reply.status, reply.error) == (403, "FORBIDDEN"), (method, path)
            proves_ids(reply, "rival")
        assert rival("GET", "/v1/reservations").data["reservations"] == []
        assert all(
            row["scope_path"].startswith("tenant:rival")
            for row in rival("GET", "/v1/balances?agent=bot").data["balances"]
        )
    assert served.authority.budgets() == before
    assert http("GET", f"/v1/reservations/{id}").data["status"] == "ACTIVE"


def test_a_body_that_is_wrong_is_refused_before_its_tenant_is(http):
    """The order of checks: body, header, whether it exists, whose it is, its state."""
    assert http("POST", "/v1/decide", {**asking(tenant="rival"), "extra": 1}).status == 400
    assert http("POST", f"/v1/reservations/{UNKNOWN}/commit", {"idempotency_key": "k"}).status == 400
    assert http("POST", f"/v1/reservations/{UNKNOWN}/commit", committing(), X_Idempotency_Key="other").status == 400
    assert http("POST", f"/v1/reservations/{UNKNOWN}/commit", committing()).status == 404


# ---- The admin's key ----


def test_the_admins_key_lists_reads_and_releases_for_every_tenant(served, http):
    id = reserve(http)
    with Http(served.url, X_Admin_API_Key=ADMIN_KEY) as admin:
        listed = admin("GET", "/v1/reservations?tenant=acme")
        assert [row["reservation_id"] for row in listed.data["reservations"]] == [id]
        proves_ids(listed)
        assert admin("GET", "/v1/reservations?tenant=rival").data["reservations"] == []
        assert admin("GET", f"/v1/reservations/{id}").data["status"] == "ACTIVE"
        assert admin("POST", f"/v1/reservations/{id}/release", keyed(reason="stuck")).data["status"] == "RELEASED"
        for query in ("", "?tenant="):
            reply = admin("GET", "/v1/reservations" + query)
            message = "tenant query parameter is required when using admin key authentication"
            assert (reply.status, reply.error, reply.data["message"]) == (400, "INVALID_REQUEST", message)


def test_the_admins_key_serves_nothing_else(served, http):
    id = reserve(http)
    allowed = {f"/v1/reservations/{id}", f"/v1/reservations/{id}/release", "/v1/reservations?tenant=acme"}
    with Http(served.url, X_Admin_API_Key=ADMIN_KEY) as admin:
        for method, path, body in every_operation("acme", id):
            if path not in allowed:
                assert admin(method, path, body).status == 401, (method, path)


@pytest.mark.parametrize("key", ["", "wrong", ADMIN_KEY + "x", ADMIN_KEY[:-1], "\xe9"])
def test_a_wrong_admin_key_is_401(served, key):
    with Http(served.url, X_Admin_API_Key=key) as admin:
        for method, path, body in every_operation("acme", UNKNOWN):
            assert admin(method, path, body).status == 401


def test_of_two_keys_the_admins_counts(served, http):
    """Where the admin's has a say: lists, reads and releases. Be it right or wrong, and whatever the tenant's is."""
    id = reserve(http)
    for key in (served.key, served.rival_key, "wrong"):
        with Http(served.url, key, X_Admin_API_Key=ADMIN_KEY) as both:
            assert [row["reservation_id"] for row in both("GET", "/v1/reservations?tenant=acme").data["reservations"]]
            assert both("GET", "/v1/reservations").status == 400
            assert both("GET", f"/v1/reservations/{id}").status == 200
            assert both("POST", "/v1/decide", asking()).status == {served.key: 200, "wrong": 401}.get(key, 403)
    with Http(served.url, served.key, X_Admin_API_Key="wrong") as both:
        assert both("GET", "/v1/reservations?tenant=acme").status == 401
        assert both("POST", f"/v1/reservations/{id}/release", keyed()).status == 401
        assert both("POST", "/v1/decide", asking()).status == 200
    with Http(served.url, served.rival_key, X_Admin_API_Key=ADMIN_KEY) as both:
        assert both("POST", f"/v1/reservations/{id}/release", keyed()).data["status"] == "RELEASED"


def test_without_an_admin_key_nobody_is_admin(tmp_path):
    with serving(tmp_path, admin_key=None) as served, Http(served.url, served.key) as http:
        id = reserve(http)
        for key in ("", "None", ADMIN_KEY):
            with Http(served.url, X_Admin_API_Key=key) as admin:
                for method, path, body in every_operation("acme", id):
                    assert admin(method, path, body).status == 401
                for path in ("tenants", "api-keys", "budgets"):
                    assert admin("POST", f"/v1/admin/{path}", {}).status == 404


@pytest.mark.parametrize("key", ["", " ", "a b", "k\xe9y", "a\n"])
def test_an_admin_key_that_no_header_can_carry_is_refused(tmp_path, key):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority, pytest.raises(ConfigError, match="admin key"):
        server.Server(authority, admin_key=key)


# ---- Bodies ----

DEEP = b"[" * 100_000 + b"]" * 100_000
VALID = json.dumps(asking(1, dry_run=True)).encode()
BAD_BODIES = {
    "nothing": b"",
    "white space": b"  \n",
    "cut off": VALID[:-1],
    "more behind it": VALID + b"{}",
    "not UTF-8": VALID.replace(b"gpt-4o", b"\xff\xfe"),
    "UTF-16": VALID.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + VALID,
    "NaN": VALID.replace(b'"amount": 1', b'"amount": NaN'),
    "Infinity": VALID.replace(b'"amount": 1', b'"amount": Infinity'),
    "a fraction": VALID.replace(b'"amount": 1', b'"amount": 1.0'),
    "an exponent": VALID.replace(b'"amount": 1', b'"amount": 1e2'),
    "a huge number": VALID.replace(b'"amount": 1', b'"amount": 1' + b"0" * 5000),
    "beyond int64": VALID.replace(b'"amount": 1', b'"amount": 9223372036854775808'),
    "below zero": VALID.replace(b'"amount": 1', b'"amount": -1'),
    "a number as text": VALID.replace(b'"amount": 1', b'"amount": "1"'),
    "a boolean as number": VALID.replace(b'"amount": 1', b'"amount": true'),
    "an endless fraction": VALID.replace(b'"dry_run"', b'"metadata": {"x": 1e999}, "dry_run"'),
    "a lone surrogate": VALID.replace(b"gpt-4o", b"\\ud800"),
    "no object": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "nested deep": DEEP,
    "metadata nested deep": VALID.replace(b'"dry_run"', b'"metadata": {"x": ' + DEEP + b'}, "dry_run"'),
    "an unknown field": VALID.replace(b'"dry_run"', b'"dryrun"'),
    "a form": b"idempotency_key=a&subject=b",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=list(BAD_BODIES))
def test_a_body_that_is_no_request_is_400(http, body):
    """And the connection lives on, and nothing was kept under the request's key."""
    reply = http("POST", "/v1/reservations", body)
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    proves_ids(reply, "acme")
    assert http("POST", "/v1/reservations", VALID).status == 200


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8", "text/plain", "nonsense", ""])
def test_the_body_counts_and_not_its_content_type(http, content_type):
    assert http("POST", "/v1/decide", VALID.replace(b', "dry_run": true', b""), Content_Type=content_type).status == 200


def test_bodies_over_one_mebibyte_are_413(served, http):
    """Read, refused and forgotten, so that a client that sends first gets its answer; up to the limit they are read."""
    padding = b" " * (MIB - len(VALID))
    assert http("POST", "/v1/reservations", VALID + padding).status == 200
    for size in (MIB + 1, 2 * MIB, 3 * MIB):
        reply = http("POST", "/v1/reservations", VALID + b" " * (size - len(VALID)))
        assert (reply.status, reply.error) == (413, "INVALID_REQUEST")
        proves_ids(reply)
    assert http("GET", "/v1/balances?tenant=acme").status == 200
    head = f"POST /v1/decide HTTP/1.1\r\nContent-Length: {100 * MIB}\r\n\r\n"
    reply = raw(served.url, head.encode())  # not even waited for
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    proves_ids(reply)


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "+5", " 5 ", "\u0665", "9" * 30])
def test_a_length_that_is_none_is_400_behind_servers_that_pass_it_on(served, length):
    """Nothing is read then: reading "-1" bytes would wait for the end of the connection."""
    told = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/decide", "CONTENT_LENGTH": length, "wsgi.input": None}
    (body,) = Application(served.authority)(environ, lambda status, headers: told.append(status))
    assert told == ["400 Bad Request"]
    assert json.loads(body.decode())["error"] == "INVALID_REQUEST"


def test_a_body_in_chunks_is_read_like_another(served):
    def send(*chunks):
        head = f"POST /v1/decide HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
        return raw(served.url, head.encode() + sent)

    body = json.dumps(asking()).encode()
    assert send(body[:10], body[10:]).data["decision"] == "ALLOW"
    assert send().status == 400
    assert send(*[b" " * 65536] * 17).status == 413


def test_a_body_that_is_announced_is_asked_for(served):
    body = json.dumps(asking()).encode()
    head = f"POST /v1/decide HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\nContent-Length: {len(body)}\r\n"
    with connect(served.url) as sock, sock.makefile("rb") as answer:
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert [answer.readline(), answer.readline()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        sock.sendall(body)
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


def test_the_idempotency_header_must_say_what_the_body_says(http):
    for key in ("plain", "with spaces, and commas", "k\xe9y"):
        assert http("POST", "/v1/decide", asking(idempotency_key=key), X_Idempotency_Key=key).status == 200
    utf8 = "鍵".encode().decode("latin-1")  # what http.client puts on the wire as these bytes
    assert http("POST", "/v1/decide", asking(idempotency_key="鍵"), X_Idempotency_Key=utf8).status == 200
    for other in ("Plain", "", "plain,plain"):
        reply = http("POST", "/v1/decide", asking(idempotency_key="plain"), X_Idempotency_Key=other)
        assert (reply.status, reply.error) == (400, "INVALID_REQUEST")


# ---- Paths and queries ----


def test_ids_are_percent_decoded(http):
    id = reserve(http)
    spelled = "".join(f"%{ord(character):02x}" for character in id)
    assert http("GET", f"/v1/reservations/{spelled}").data["reservation_id"] == id
    assert http("POST", f"/v1/reservations/{spelled}/release", keyed()).status == 200


@pytest.mark.parametrize(
    ("id", "status"),
    [
        ("x" * 128, 404),
        ("x" * 129, 400),
        ("%C3%A9" * 128, 404),
        ("%00", 404),
        ("%FF", 404),
        ("%zz", 404),
        ("%20", 404),
        ("%F0%9F%92%B8", 404),
        ("%2e%2e%2f%2e%2e", 404),
        ("..", 404),
        ("'%20OR%201=1--", 404),
    ],
)
def test_ids_that_nobody_has(http, id, status):
    for reply in (http("GET", f"/v1/reservations/{id}"), http("POST", f"/v1/reservations/{id}/release", keyed())):
        assert reply.status == status
        assert reply.error == {400: "INVALID_REQUEST", 404: "NOT_FOUND"}[status]


def test_query_parameters_that_are_given_twice_do_not_widen_anything(http):
    """The last one counts; what a key may see is decided after that."""
    reserve(http)
    assert http("GET", "/v1/balances?tenant=acme&tenant=rival").status == 403
    assert len(http("GET", "/v1/balances?tenant=acme&limit=abc&limit=1").data["balances"]) == 1
    rows = http("GET", "/v1/balances?tenant=rival&tenant=acme").data["balances"]
    assert {row["scope_path"].split("/")[0] for row in rows} == {"tenant:acme"}
    assert http("GET", "/v1/reservations?limit=1&limit=201").status == 400


def test_queries_are_percent_decoded(http):
    id = reserve(http, idempotency_key="a b&c=d+é")
    listed = http("GET", "/v1/reservations?idempotency_key=a+b%26c%3Dd%2B%C3%A9&from=").data
    assert [row["reservation_id"] for row in listed["reservations"]] == [id]
    for query in ("status=%FF", "status=ACTIVE%00", "from=2026-01-01T00:00:00+01:00", "limit=%31%30%30%30"):
        assert http("GET", f"/v1/reservations?{query}").status == 400  # a plus is a space


# ---- Connections ----


def test_one_connection_serves_many_requests(http):
    """Errors included: none of them ends it."""
    http("GET", "/v1/balances?tenant=acme")
    port = http.local_port
    for method, path, body in every_operation("rival", UNKNOWN):
        http(method, path, body)
        http(method, path, b"{" if method == "POST" else None, X_Cycles_API_Key="wrong")
    assert http("GET", "/v1/balances?tenant=acme").status == 200
    assert http.local_port == port


def test_requests_sent_at_once_are_answered_in_order(served):
    request = "GET /v1/balances?tenant={} HTTP/1.1\r\nX-Cycles-API-Key: {}\r\n{}\r\n"
    sent = request.format("acme", served.key, "") + request.format("rival", served.key, "Connection: close\r\n")
    with connect(served.url) as sock, sock.makefile("rb") as answers:
        sock.sendall(sent.encode())
        assert re.findall(rb"HTTP/1\.1 [0-9]+", answers.read()) == [b"HTTP/1.1 200", b"HTTP/1.1 403"]


def test_old_clients_and_those_that_ask_for_it_are_hung_up_on(served):
    for line, header in (("HTTP/1.0", ""), ("HTTP/1.1", "Connection: close\r\n")):
        request = f"GET /v1/balances?tenant=acme {line}\r\nX-Cycles-API-Key: {served.key}\r\n{header}\r\n"
        reply = raw(served.url, request.encode())
        assert (reply.status, reply.headers["connection"]) == (200, "close")


NOT_HTTP = {
    b"get / HTTP/1.1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\n no-name\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": 400,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n": 501,
    b"GET / HTTP/1.1\r\nX: " + b"x" * 262_144 + b"\r\n\r\n": 431,
}


@pytest.mark.parametrize(("sent", "status"), NOT_HTTP.items(), ids=lambda value: repr(value)[:40])
def test_what_is_not_http_gets_an_error_like_any_other(served, sent, status):
    reply = raw(served.url, sent)
    assert reply.status == status
    assert reply.error == ("INTERNAL_ERROR" if status >= 500 else "INVALID_REQUEST")
    proves_ids(reply)


def test_idle_connections_do_not_keep_others_out(served):
    """As many as the pools of a few well-connected client processes keep: waitress's own limit is 100."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(served.url)) for _ in range(150)]
        with Http(served.url, served.key) as http:
            assert http("GET", "/v1/balances?tenant=acme").status == 200
        crowd[-1].sendall(f"GET /actuator/health HTTP/1.1\r\nX-Cycles-API-Key: {served.key}\r\n\r\n".encode())
        assert crowd[-1].recv(15) == b"HTTP/1.1 200 OK"


# ---- A file that fails, and faults of our own ----


def test_a_budget_file_that_cannot_be_used_is_a_500(tmp_path, caplog):
    """While somebody else has it: in time, without its path, and with nothing written. Afterwards all is well."""
    with serving(tmp_path, timeout=0.05) as served, Http(served.url, served.key) as http:
        id = reserve(http)
        with served.authority._ledger.writing():
            for method, path, body in every_operation("acme", id):
                if method == "POST":
                    reply = http(method, path, body)
                    assert (reply.status, reply.error) == (500, "INTERNAL_ERROR")
                    assert str(tmp_path) not in reply.body.decode()
                    proves_ids(reply)
            assert http("GET", f"/v1/reservations/{id}").status == 200  # readers do not wait for writers
        assert str(tmp_path) in caplog.text
        assert http("POST", f"/v1/reservations/{id}/commit", committing()).status == 200


def test_a_fault_of_our_own_is_a_500_and_in_the_log(served, http, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("oh no")

    with caplog.at_level(logging.ERROR), monkeypatch.context() as patched:
        patched.setattr(served.authority, "authenticate", fail)
        reply = http("GET", "/v1/balances?tenant=acme", X_Cycles_Trace_Id=FLAT)
        assert (reply.status, reply.error) == (500, "INTERNAL_ERROR")
        assert reply.headers["x-cycles-trace-id"] == FLAT
        proves_ids(reply)
        assert "oh no" in caplog.text
        assert "oh no" not in reply.body.decode()
    assert http("GET", "/v1/balances?tenant=acme").status == 200


# ---- The server's own life ----


def test_requests_at_work_are_finished_when_it_stops(tmp_path):
    """The clock, which is read under the ledger's lock, holds a request back until the server was told to stop."""
    at_work, go_on, answers = threading.Event(), threading.Event(), []
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    blocks = []

    def clock():
        if blocks:
            at_work.set()
            assert go_on.wait(PATIENCE)
        return 1_700_000_000_000

    def call(url, key):
        with Http(url, key) as http:
            answers.append(http("POST", "/v1/events", event(7)))

    with Authority(f"sqlite:///{tmp_path}/budgets.db", clock=clock) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(100))
        key = authority.create_key("acme").key_secret
        with server.Server(authority) as running:
            caller = threading.Thread(target=call, args=(running.url, key))
            with running.in_background():
                blocks.append(True)
                caller.start()
                assert at_work.wait(PATIENCE)
            go_on.set()  # the loop has ended, the request has not
        caller.join(PATIENCE)
        assert [reply.status for reply in answers] == [201]
        assert [budget.spent for budget in authority.budgets()] == [7]


def test_stopping_twice_or_late_does_nothing(tmp_path):
    """A signal may come at any time; a descriptor that was closed may be another file's by then."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        with server.Server(authority) as running:
            running.stop()
            running.stop()
            running.run()
        running.stop()


def test_a_taken_address_is_a_clear_error(served):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        server.Server(served.authority, "127.0.0.1", port)


def test_two_servers_share_one_authority(served):
    """And what one answers, the other knows."""
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with server.Server(served.authority) as second, second.in_background():
        with Http(served.url, served.key) as one, Http(second.url, served.key) as other:
            id = reserve(one)
            assert other("POST", f"/v1/reservations/{id}/commit", committing()).status == 200


# ---- Many at once ----


def test_two_hundred_settlements_from_eight_threads_are_exact(tmp_path):
    """This package's client against a real process: every reservation is settled once, and nothing is left held."""
    amounts, failed = [], []
    config = {"api_key": "secret", "tenant": "acme"}

    def work(client, number):
        try:
            for turn in range(25):
                request = ReservationCreateRequest(action=Action("test", "work"), estimate=Amount.tokens(10))
                id = client.create_reservation(request).reservation_id
                actual = Amount.tokens(1 + (number + turn) % 15)
                amounts.append(client.commit_reservation(id, CommitRequest(actual=actual)).charged.amount)
        except BaseException as e:
            failed.append(e)

    options = ("--tenant", "acme", "--api-key", "secret", "--budget", "tenant:acme=TOKENS:100000")
    with process(tmp_path, *options) as server:
        with CyclesClient(CyclesConfig(base_url=server.url, **config)) as client:
            threads = [threading.Thread(target=work, args=(client, number)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        assert server.end() == (0, "", "")
    assert failed == []
    assert len(amounts) == 200
    with Authority(f"sqlite:///{tmp_path}/budgets.db", create=False) as authority:
        assert authority.check() == []
        (budget,) = authority.budgets()
    assert (budget.spent, budget.reserved, budget.debt) == (sum(amounts), 0, 0)


def test_one_key_from_many_threads_is_one_reservation(served):
    """The same request at the same time: one does it, the others are replays."""
    body, answers = asking(10, idempotency_key=new_key()), []
    start = threading.Barrier(8)

    def work():
        with Http(served.url, served.key) as http:
            start.wait(PATIENCE)
            answers.append(http("POST", "/v1/reservations", body))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [reply.status for reply in answers] == [200] * 8
    assert len({reply.data["reservation_id"] for reply in answers}) == 1
    (balance,) = [budget for budget in served.authority.budgets() if budget.scope == "tenant:acme"]
    assert (balance.reserved, balance.unit) == (10, tokens(0)["unit"])
