"""What is sent for the page at `/`, and what the page asks for beside the protocol."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from serving import Http, asking, event, keyed, process, serving

from cycles_lite import Amount, ConfigError
from cycles_lite.local import page

PERIODS = "/v1/budgets/periods"
HOUR = 3600 * 1000


class Clock:
    """Milliseconds since 1970, as the test wants them; first the beginning of 2026 in UTC."""

    def __init__(self):
        self.now = 1_767_225_600_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def served(tmp_path, clock):
    with serving(tmp_path, clock=clock) as served:
        yield served


@pytest.fixture
def http(served):
    """A connection with acme's key."""
    with Http(served.url, served.key) as http:
        yield http


def directives(reply):
    """The policy of an answer: what each of its directives allows."""
    parts = [part.split() for part in reply.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in parts}


# ---- The document ----


def test_the_page_needs_no_key_and_tells_nothing(served):
    """It is the same for everybody, whatever is in the ledger."""
    with Http(served.url) as stranger, Http(served.url, served.key) as http:
        reply = stranger("GET", "/")
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.body == http("GET", "/").body
        assert b"acme" not in reply.body
        assert "x-cycles-tenant" not in reply.headers
        for name, value in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ]:
            assert reply.headers[name] == value
        with Http(served.url) as once:  # waitress 2 hangs up after each HEAD
            head = once("HEAD", "/")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(reply.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_405(http, method):
    reply = http(method, "/", b"{}" if method in ("POST", "PUT", "PATCH") else None)
    assert (reply.status, reply.error, reply.headers["allow"]) == (405, "INVALID_REQUEST", "GET, HEAD")


def test_the_policy_names_the_two_blocks_by_their_hashes_and_allows_nothing_else(http):
    reply = http("GET", "/")
    hashes = {}
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), reply.body, re.DOTALL)
        hashes[tag] = "'sha256-" + base64.b64encode(hashlib.sha256(block).digest()).decode() + "'"
    assert directives(reply) == {
        "default-src": ["'none'"],
        "script-src": [hashes["script"]],
        "style-src": [hashes["style"]],
        "img-src": ["data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_the_document_asks_for_nothing_from_elsewhere_and_writes_texts_alone(http):
    text = http("GET", "/").body.decode()
    outside = re.findall(r"https?://[^\s\"']+|@import|url\(", text)
    assert outside == ["http://www.w3.org/2000/svg"] * 2, "a name space, in an icon and in the script; no resource"
    assert re.findall(r"<(script|link|img|iframe|object|embed)\b[^>]*\b(?:src|href)=\"(?!data:)", text) == []
    assert re.findall(r"\s(on[a-z]+|style)=", text) == []
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage"
    assert re.findall(unsafe, text) == []


def test_line_ends_do_not_change_what_is_hashed(monkeypatch, tmp_path):
    """A checkout on Windows may have others; browsers hash what they have read, which is without them."""
    expected = page.Page(None).document({})
    read = page.pkgutil.get_data
    monkeypatch.setattr(page.pkgutil, "get_data", lambda *given: read(*given).replace(b"\n", b"\r\n"))
    found = page.Page(None).document({})
    assert found.body == expected.body
    assert found.headers["content-security-policy"] == expected.headers["content-security-policy"]


def test_a_package_without_the_page_s_files_is_called_so(monkeypatch):
    monkeypatch.setattr(page, "__package__", "cycles_lite.protocol")
    with pytest.raises(ConfigError, match=r"the package has no page.css, .* or use --no-page"):
        page.Page(None)


def test_without_the_page_there_is_nothing_at_its_paths(served):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with server.Server(served.authority, page=False) as running, running.in_background():
        with Http(running.url, served.key) as http:
            assert [http("GET", path).status for path in ("/", PERIODS, "/v1/reservations")] == [404, 404, 200]
            assert http("POST", "/v1/reservations", asking(10**7)).status == 409, "there is nobody to remember it"


def test_the_command_line_serves_it_unless_told_not_to(tmp_path):
    for options, status in (((), 200), (("--no-page",), 404)):
        with process(tmp_path, *options) as server, Http(server.url) as http:
            assert http("GET", "/").status == status
            assert http("GET", "/actuator/health").status == 200


# ---- What the protocol does not tell ----


def test_periods_need_a_tenants_key(served):
    with Http(served.url) as http:
        for headers in ({}, {"X-Cycles-API-Key": "wrong"}, {"X-Admin-API-Key": served.admin_key}):
            reply = http("GET", PERIODS, **headers)
            assert (reply.status, reply.error) == (401, "UNAUTHORIZED")
            assert "x-cycles-tenant" not in reply.headers
        assert http("GET", PERIODS, X_Cycles_API_Key=served.key).status == 200
        for key in served.authority.keys():  # noqa: SIM118  # no dictionary
            served.authority.revoke_key(key.key_id)
        assert http("GET", PERIODS, X_Cycles_API_Key=served.key).status == 401


def test_periods_that_run_and_have_ended(served, http, clock):
    start = clock.now
    served.authority.set_budget("tenant:acme", Amount.tokens(500), period="6h")
    http("POST", "/v1/events", event(123))
    clock.now += 7 * HOUR
    served.authority.set_budget("tenant:rival", Amount.tokens(500), period="day")
    reply = http("GET", PERIODS)
    assert (reply.status, reply.headers["x-cycles-tenant"]) == (200, "acme")
    place = {"scope": "tenant:acme", "unit": "TOKENS"}
    assert reply.data == {
        "now_ms": clock.now,
        "periods": [
            {**place, "start_ms": start, "end_ms": start + 6 * HOUR, "allocated": 500, "spent": 123, "debt": 0},
        ],
        "running": [
            {
                **place,
                "period": "6h",
                "start_ms": start + 6 * HOUR,
                "end_ms": start + 12 * HOUR,
                "rollover_policy": "NONE",
            }
        ],
        "states": [],
        "denials": [],
        "has_more_denials": False,
        "has_more": False,
    }


def test_a_tenant_is_told_of_its_own_alone(served, http):
    """Also where another one's name begins with its name."""
    served.authority.create_tenant("acme-2")
    for scope in ("tenant:acme-2", "tenant:rival", "tenant:acme/agent:bot"):
        served.authority.set_budget(scope, Amount.tokens(5), period="day")
        served.authority.freeze(scope)
    with Http(served.url, served.rival_key) as rival:
        for tenant, asking_http in (("acme", http), ("rival", rival)):
            assert asking_http("POST", "/v1/reservations", asking(10**7, tenant)).status == 409
            told = asking_http("GET", PERIODS).data
            place = "tenant:acme/agent:bot" if tenant == "acme" else "tenant:rival"
            assert [one["scope"] for one in told["running"]] == [place]
            assert told["states"] == [{"scope": place, "unit": "TOKENS", "status": "FROZEN"}]
            assert [one["scope"] for one in told["denials"]] == [f"tenant:{tenant}"]


def test_what_is_told_has_bounds(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(page, "MOST_BUDGETS", 3)
    with serving(tmp_path, clock=clock) as served, Http(served.url, served.key) as http:
        for number in range(3):
            served.authority.set_budget(f"tenant:acme/app:{number}", Amount.tokens(5), period="1h")
        clock.now += 20 * HOUR
        told = http("GET", PERIODS).data
        assert told["has_more"] is True
        assert [one["scope"] for one in told["running"]] == ["tenant:acme/app:0"]  # the third, after acme and its bot
        ends = [one["end_ms"] for one in told["periods"]]
        assert ends == [clock.now - ago * HOUR for ago in range(page.MOST_PERIODS - 1, -1, -1)], "the newest"


def test_denials_are_remembered_for_a_minute(served, http, monkeypatch):
    """Only those of reservations, and only what denied them."""
    now = 1000.0
    monkeypatch.setattr(page, "monotonic", lambda: now)
    denied = http("POST", "/v1/reservations", asking(10**7))
    assert http("POST", "/v1/reservations", asking(-1)).status == 400
    assert http("POST", "/v1/reservations", asking(1, "rival")).status == 403
    assert http("POST", "/v1/reservations/rsv_1/release", keyed()).status == 404
    assert http("POST", "/v1/events", event(10**7, overage_policy="REJECT")).status == 409
    now += 59
    assert http("GET", PERIODS).data["denials"] == [
        {
            "age_ms": 59_000,
            "request_id": denied.headers["x-request-id"],
            "operation": "create_reservation",
            "code": "BUDGET_EXCEEDED",
            "scope": "tenant:acme",
            "unit": "TOKENS",
            "requested": 10**7,
            "remaining": 1_000_000,
        }
    ]
    now += 2
    assert http("GET", PERIODS).data["denials"] == []


def test_no_more_denials_are_remembered_than_fit(tmp_path, monkeypatch):
    """Of each tenant, whatever the others do, unless there are too many of them."""
    monkeypatch.setattr(page, "MOST_DENIALS", 2)
    monkeypatch.setattr(page, "MOST_TENANTS", 2)
    with serving(tmp_path) as served, Http(served.url, served.key) as http, Http(served.url, served.rival_key) as rival:
        assert rival("POST", "/v1/reservations", asking(10**6, "rival")).status == 409
        assert rival("GET", PERIODS).data["has_more_denials"] is False
        for amount in (10**7, 10**8, 10**9):
            assert http("POST", "/v1/reservations", asking(amount)).status == 409
        told = http("GET", PERIODS).data
        assert [one["requested"] for one in told["denials"]] == [10**8, 10**9]
        assert told["has_more_denials"] is True
        assert [one["requested"] for one in rival("GET", PERIODS).data["denials"]] == [10**6]
        served.authority.set_budget("tenant:third", Amount.tokens(1))
        with Http(served.url, served.authority.create_key("third").key_secret) as third:
            assert third("POST", "/v1/reservations", asking(5, "third")).status == 409
            assert len(third("GET", PERIODS).data["denials"]) == 1
        assert len(http("GET", PERIODS).data["denials"]) == 2
        assert rival("GET", PERIODS).data["denials"] == [], "it was denied the longest ago"
