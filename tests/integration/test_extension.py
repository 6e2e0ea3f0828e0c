"""What the authority tells beside the protocol: periods, states and denials, over HTTP and from a file."""

from __future__ import annotations

from serving import Http, asking, event, keyed, serving

from cycles_lite import Amount, CyclesClient, CyclesConfig
from cycles_lite.local import extension
from cycles_lite.local.extension import GET_PERIODS
from cycles_lite.session import response_in

PERIODS = GET_PERIODS.path
HOUR = 3600 * 1000


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
    monkeypatch.setattr(extension, "MOST_BUDGETS", 3)
    with serving(tmp_path, clock=clock) as served, Http(served.url, served.key) as http:
        for number in range(3):
            served.authority.set_budget(f"tenant:acme/app:{number}", Amount.tokens(5), period="1h")
        clock.now += 20 * HOUR
        told = http("GET", PERIODS).data
        assert told["has_more"] is True
        assert [one["scope"] for one in told["running"]] == ["tenant:acme/app:0"]  # the third, after acme and its bot
        ends = [one["end_ms"] for one in told["periods"]]
        assert ends == [clock.now - ago * HOUR for ago in range(extension.MOST_PERIODS - 1, -1, -1)], "the newest"


def test_denials_are_remembered_for_a_minute(served, http, monkeypatch):
    """Only those of reservations, and only what denied them."""
    now = 1000.0
    monkeypatch.setattr(extension, "monotonic", lambda: now)
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
    monkeypatch.setattr(extension, "MOST_DENIALS", 2)
    monkeypatch.setattr(extension, "MOST_TENANTS", 2)
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


def test_a_tenant_may_be_named_and_is_its_own(served, http):
    assert http("GET", PERIODS + "?tenant=acme").status == 200
    reply = http("GET", PERIODS + "?tenant=rival")
    assert (reply.status, reply.error) == (403, "FORBIDDEN")


def test_from_a_file_all_is_told_but_denials(served):
    """A client without a tenant is told of all, as the file's owner."""
    for scope in ("tenant:acme", "tenant:rival"):
        served.authority.set_budget(scope, Amount.tokens(5), period="day")
    for given, named, told in [
        (None, {}, ["tenant:acme", "tenant:rival"]),
        (None, {"tenant": "rival"}, ["tenant:rival"]),
        ("acme", {}, ["tenant:acme"]),
    ]:
        with CyclesClient(CyclesConfig(base_url=served.authority.url, tenant=given)) as client:
            found = response_in(client._session.send(GET_PERIODS, query=named)).answer.data
        assert [one["scope"] for one in found["running"]] == told
        assert "denials" not in found
