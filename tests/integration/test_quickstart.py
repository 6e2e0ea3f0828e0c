"""The official quickstart's provisioning calls, with only the port replaced: tenant, key, budget, first reservation."""

from __future__ import annotations

import re

import pytest
from serving import ADMIN_KEY, Http, asking, committing, process, serving, tokens

ADMIN = {"X_Admin_API_Key": ADMIN_KEY}

TENANT = {"tenant_id": "acme-corp", "name": "Acme Corporation"}
PERMISSIONS = ["reservations:create", "reservations:commit", "balances:read"]
#: As the official script sends them; the official server has more fields than this one has uses for.
KEY = {"tenant_id": "acme-corp", "name": "dev-key", "description": "for a try", "permissions": PERMISSIONS}
BUDGET = {"scope": "tenant:acme-corp", "unit": "USD_MICROCENTS", "allocated": {"unit": "USD_MICROCENTS", "amount": 500}}


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def http(served):
    """A connection without any key."""
    with Http(served.url) as http:
        yield http


@pytest.fixture
def corp(http):
    """The key's secret of a tenant that the first two calls have made."""
    assert http("POST", "/v1/admin/tenants", TENANT, **ADMIN).status == 201
    return http("POST", "/v1/admin/api-keys", KEY, **ADMIN).data["key_secret"]


def test_the_official_flow_on_a_real_server(tmp_path):
    """From an empty file to a committed reservation, the secret taken from the answer as the script does: by grep."""
    with process(tmp_path, "--admin-key", ADMIN_KEY) as server, Http(server.url) as http:
        assert http("POST", "/v1/admin/tenants", TENANT, **ADMIN).status == 201
        made = http("POST", "/v1/admin/api-keys", KEY, **ADMIN)
        assert made.status == 201
        (found,) = re.findall(rb'"key_secret":"[^"]*"', made.body)
        secret = {"X_Cycles_API_Key": found.decode().split('"')[3]}
        assert http("POST", "/v1/admin/budgets", BUDGET, **secret).status == 201
        assert "key_secret" not in http("GET", "/v1/balances?tenant=acme-corp", **secret).body.decode()
        estimate = {"unit": "USD_MICROCENTS", "amount": 300}
        held = http("POST", "/v1/reservations", asking(tenant="acme-corp", estimate=estimate), **secret)
        assert held.data["decision"] == "ALLOW"
        path = "/v1/reservations/{}/commit".format(held.data["reservation_id"])
        assert http("POST", path, committing(actual={**estimate, "amount": 200}), **secret).status == 200
        (balance,) = http("GET", "/v1/balances?tenant=acme-corp", **secret).data["balances"]
        assert (balance["spent"]["amount"], balance["remaining"]["amount"]) == (200, 300)
        assert server.end() == (0, "", "")


# ---- Tenants ----


def test_a_tenant_is_made_once(http):
    """201, then 200 for the same; another name is a conflict, and changes nothing."""
    first = http("POST", "/v1/admin/tenants", TENANT, **ADMIN)
    assert first.status == 201
    assert first.data["status"] == "ACTIVE"
    assert re.match(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z\Z", first.data["created_at"])
    again = http("POST", "/v1/admin/tenants", TENANT, **ADMIN)
    assert (again.status, again.data) == (200, first.data)
    assert http("POST", "/v1/admin/tenants", {**TENANT, "max_reservation_ttl_ms": 5000}, **ADMIN).data == first.data
    assert http("POST", "/v1/admin/tenants", {**TENANT, "max_reservation_ttl_ms": 5}, **ADMIN).status == 400
    other = http("POST", "/v1/admin/tenants", {**TENANT, "name": "Other"}, **ADMIN)
    assert (other.status, other.error) == (409, "DUPLICATE_RESOURCE")
    assert http("POST", "/v1/admin/tenants", TENANT, **ADMIN).data == first.data


def test_a_tenants_settings_hold(served, http):
    settings = {"default_reservation_ttl_ms": 500_000, "max_reservation_ttl_ms": 700_000}
    policy = {"max_reservation_extensions": 0, "default_commit_overage_policy": "REJECT"}
    assert http("POST", "/v1/admin/tenants", {**TENANT, **settings, **policy}, **ADMIN).status == 201
    with Http(served.url, http("POST", "/v1/admin/api-keys", KEY, **ADMIN).data["key_secret"]) as corp:
        assert corp("POST", "/v1/admin/budgets", BUDGET).status == 201
        estimate = {"unit": "USD_MICROCENTS", "amount": 10}
        for given, expected in (({}, 500_000), ({"ttl_ms": 600_000}, 600_000), ({"ttl_ms": 800_000}, 700_000)):
            made = corp("POST", "/v1/reservations", asking(tenant="acme-corp", estimate=estimate, **given)).data
            assert expected - 1000 < made["remaining_ttl_ms"] <= expected
        path = "/v1/reservations/{}/".format(made["reservation_id"])
        extended = corp("POST", path + "extend", {"idempotency_key": "k", "extend_by_ms": 1})
        assert extended.error == "MAX_EXTENSIONS_EXCEEDED"
        too_much = committing(actual={**estimate, "amount": 11})
        assert corp("POST", path + "commit", too_much).error == "BUDGET_EXCEEDED"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        {},
        {"name": "x"},
        {"tenant_id": None, "name": "x"},
        {"tenant_id": 5, "name": "x"},
        {"tenant_id": "ab", "name": "x"},
        {"tenant_id": "Acme", "name": "x"},
        {"tenant_id": "a" * 65, "name": "x"},
        {"tenant_id": "a/b/c", "name": "x"},
        {"tenant_id": "\ud800", "name": "x"},
        {"tenant_id": "new"},
        {"tenant_id": "new", "name": None},
        {"tenant_id": "new", "name": "x", "colour": "red"},
        {"tenant_id": "new", "name": "x", "\ud800": "red"},
        {"tenant_id": "new", "name": " "},
        {"tenant_id": "new", "name": "\ud800"},
        {"tenant_id": "new", "name": "a\nb"},
        {"tenant_id": "new", "name": "x", "max_reservation_ttl_ms": "long"},
        {"tenant_id": "new", "name": "x", "default_reservation_ttl_ms": 1.5},
        {"tenant_id": "new", "name": "x", "max_reservation_extensions": -1},
        {"tenant_id": "new", "name": "x", "default_commit_overage_policy": "ALLOW"},
        {"tenant_id": "new", "name": "x", "default_commit_overage_policy": ["REJECT"]},
    ],
)
def test_a_tenant_that_cannot_be_is_400(served, http, body):
    reply = http("POST", "/v1/admin/tenants", body, **ADMIN)
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert served.authority.tenant("new") is None


# ---- Keys ----


def test_a_key_says_what_it_is_and_works(served, http, corp):
    made = http("POST", "/v1/admin/api-keys", KEY, **ADMIN)
    assert made.status == 201
    told = made.data
    assert list(told) == [
        "key_id", "key_secret", "key_prefix", "tenant_id", "permissions", "created_at", "expires_at"
    ]  # fmt: skip
    assert told["key_secret"].startswith(told["key_prefix"])
    assert (told["tenant_id"], told["permissions"], told["expires_at"]) == ("acme-corp", PERMISSIONS, None)
    assert told["key_secret"] != corp
    with Http(served.url, told["key_secret"]) as http:
        assert http("GET", "/v1/balances?tenant=acme-corp").status == 200
        assert http("GET", "/v1/balances?tenant=acme").status == 403


def test_a_key_ends_when_it_was_asked_to(served, http, corp):
    for expires_at, status in (
        ("2001-01-01T00:00:00Z", 401),
        ("2999-12-31T23:59:59+01:00", 200),
        ("9999-12-31T23:59:59.999Z", 200),
    ):
        made = http("POST", "/v1/admin/api-keys", {**KEY, "expires_at": expires_at}, **ADMIN).data
        assert made["expires_at"][:4] == expires_at[:4]
        with Http(served.url, made["key_secret"]) as ours:
            assert ours("GET", "/v1/balances?tenant=acme-corp").status == status


def test_a_key_needs_a_tenant_that_is_there_and_open(served, http, corp):
    reply = http("POST", "/v1/admin/api-keys", {**KEY, "tenant_id": "nobody"}, **ADMIN)
    assert (reply.status, reply.error) == (404, "TENANT_NOT_FOUND")
    assert served.authority.tenant("nobody") is None
    served.authority.close_tenant("acme-corp")
    assert http("POST", "/v1/admin/api-keys", KEY, **ADMIN).status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant_id": None},
        {"tenant_id": 5},
        {"tenant_id": "\ud800"},
        {"tenant_id": "a\x00b"},
        {"name": ""},
        {"name": 5},
        {"name": None},
        {"colour": "red"},
        {"permissions": ["reservations:create", "reservations:forge"]},
        {"permissions": ["everything"]},
        {"permissions": [None]},
        {"expires_at": "9999-12-31T23:59:59-00:01"},
        {"expires_at": "9999-12-31T23:59:59.9999Z"},
        {"expires_at": "1969-12-31T23:59:59Z"},
        {"expires_at": "0001-01-01T00:00:00+14:00"},
        {"permissions": "balances:read"},
        {"permissions": {}},
        {"permissions": False},
        {"permissions": [5]},
        {"permissions": [""]},
        {"expires_at": "tomorrow"},
        {"expires_at": 5},
    ],
)
def test_a_key_that_cannot_be_is_400(served, http, corp, fields):
    before = len(served.authority.keys())
    reply = http("POST", "/v1/admin/api-keys", {**KEY, **fields}, **ADMIN)
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert len(served.authority.keys()) == before


# ---- Budgets ----


def test_a_budget_by_the_tenants_key(served, http, corp):
    """The body names no tenant; a second budget in the same scope and unit is a conflict and changes nothing."""
    with Http(served.url, corp) as ours:
        made = ours("POST", "/v1/admin/budgets", BUDGET)
        assert made.status == 201
        assert made.headers["x-cycles-tenant"] == "acme-corp"
        told = {name: made.data[name] for name in ("scope", "unit", "allocated", "tenant_id", "status")}
        assert told == {**BUDGET, "tenant_id": "acme-corp", "status": "ACTIVE"}
        again = ours("POST", "/v1/admin/budgets", {**BUDGET, "allocated": {**BUDGET["allocated"], "amount": 9}})
        assert (again.status, again.error) == (409, "DUPLICATE_RESOURCE")
        (balance,) = ours("GET", "/v1/balances?tenant=acme-corp").data["balances"]
        assert balance["allocated"]["amount"] == 500
        deeper = {**BUDGET, "scope": "tenant:acme-corp/agent:Bot", "unit": None, "allocated": tokens(7)}
        limits = {"overdraft_limit": tokens(3), "caps": {"max_tokens": 5}}
        assert ours("POST", "/v1/admin/budgets", {**deeper, **limits}).data["scope"] == "tenant:acme-corp/agent:bot"
        asked = asking(7, subject={"tenant": "acme-corp", "agent": "BOT"})
        assert ours("POST", "/v1/decide", asked).data["caps"] == {"max_tokens": 5}


def test_a_budget_by_the_admins_key(http, corp):
    """The body says whose it is, and whose it is must be there."""
    body = {**BUDGET, "tenant_id": "acme-corp"}
    assert http("POST", "/v1/admin/budgets", body, **ADMIN).status == 201
    assert http("POST", "/v1/admin/budgets", body, **ADMIN).status == 409
    assert http("POST", "/v1/admin/budgets", BUDGET, **ADMIN).status == 400
    unknown = {**BUDGET, "tenant_id": "nobody", "scope": "tenant:nobody"}
    reply = http("POST", "/v1/admin/budgets", unknown, **ADMIN)
    assert (reply.status, reply.error) == (404, "TENANT_NOT_FOUND")


def test_of_two_keys_the_admins_counts(served, corp):
    """Whatever the tenant's is: the body says whose the budget is, as with the admin's alone."""
    for key in (corp, served.rival_key, "wrong"):
        with Http(served.url, key, **ADMIN) as both:
            assert both("POST", "/v1/admin/budgets", BUDGET).status == 400
            scope = "tenant:acme-corp/agent:" + key[-4:]
            made = both("POST", "/v1/admin/budgets", {**BUDGET, "scope": scope, "tenant_id": "acme-corp"})
            assert made.status == 201
    with Http(served.url, corp, X_Admin_API_Key="wrong") as both:
        assert both("POST", "/v1/admin/budgets", BUDGET).status == 401


@pytest.mark.parametrize("scope", ["tenant:rival", "tenant:acme-corpse", "tenant:acme", "tenant:acme-corp2/agent:a"])
def test_a_budget_of_another_tenant_is_400(served, http, corp, scope):
    before = served.authority.budgets()
    with Http(served.url, corp) as ours:
        reply = ours("POST", "/v1/admin/budgets", {**BUDGET, "scope": scope})
        assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert (
        http("POST", "/v1/admin/budgets", {**BUDGET, "scope": scope, "tenant_id": "acme-corp"}, **ADMIN).status == 400
    )
    assert served.authority.budgets() == before


@pytest.mark.parametrize("fields", [{"unit": "TOKENS"}, {"overdraft_limit": tokens(1)}])
def test_a_budget_of_two_units_is_a_mismatch(served, corp, fields):
    before = served.authority.budgets()
    with Http(served.url, corp) as ours:
        reply = ours("POST", "/v1/admin/budgets", {**BUDGET, **fields})
    assert (reply.status, reply.error) == (400, "UNIT_MISMATCH")
    assert served.authority.budgets() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant_id": "acme-corp"},
        {"scope": None},
        {"scope": ""},
        {"scope": 5},
        {"scope": "agent:bot"},
        {"scope": "tenant:acme-corp/bot"},
        {"scope": "tenant:acme-corp/agent:a/workspace:b"},
        {"scope": "tenant:acme-corp/agent:\ud800"},
        {"colour": "red"},
        {"unit": "EUR"},
        {"unit": ["USD_MICROCENTS"]},
        {"allocated": None},
        {"allocated": 5},
        {"allocated": {"unit": "USD_MICROCENTS", "amount": -1}},
        {"allocated": {"unit": "USD_MICROCENTS", "amount": 2**63}},
        {"allocated": {"unit": "EUR", "amount": 1}},
        {"overdraft_limit": 5},
        {"caps": []},
        {"caps": {"max": 1}},
    ],
)
def test_a_budget_that_cannot_be_is_400(served, corp, fields):
    before = served.authority.budgets()
    with Http(served.url, corp) as ours:
        reply = ours("POST", "/v1/admin/budgets", {**BUDGET, **fields})
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert served.authority.budgets() == before


# ---- Who may ----


@pytest.mark.parametrize("key", [None, "", "wrong", ADMIN_KEY + "x"])
def test_without_the_admins_key_nothing_is_done(served, key):
    """401 before a word of the body is read; a tenant's key does not help, but for that tenant's own budgets."""
    before = served.authority.budgets(), served.authority.keys()
    for tenants_key in (None, "wrong", served.key):
        with Http(served.url, tenants_key, X_Admin_API_Key=key) as http:
            for path, body in (("tenants", TENANT), ("api-keys", {**KEY, "tenant_id": "acme"}), ("budgets", BUDGET)):
                if (path, tenants_key) == ("budgets", served.key):
                    continue
                for sent in (body, b"{"):
                    reply = http("POST", f"/v1/admin/{path}", sent)
                    assert (reply.status, reply.error) == (401, "UNAUTHORIZED")
    assert served.authority.tenant("acme-corp") is None
    assert (served.authority.budgets(), served.authority.keys()) == before


def test_without_an_admin_key_configured_there_are_no_such_paths(tmp_path):
    with serving(tmp_path, admin_key=None) as served, Http(served.url, served.key, **ADMIN) as http:
        for path in ("tenants", "api-keys", "budgets"):
            reply = http("POST", f"/v1/admin/{path}", {**BUDGET, "scope": "tenant:acme/agent:new"})
            assert (reply.status, reply.error) == (404, "NOT_FOUND")
    with process(tmp_path, "--tenant", "other", "--api-key", "other-key") as server, Http(server.url) as http:
        assert http("POST", "/v1/admin/tenants", TENANT, **ADMIN).status == 404
