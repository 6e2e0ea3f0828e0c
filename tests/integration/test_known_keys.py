"""Keys that a server has seen before: they cost no transaction of their own, and are refused as soon as they are over,
whoever ended them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from serving import ROOT, Http, asking, committing, event, keyed, process, serving

from cycles_lite.local import Authority, connections
from cycles_lite.local.authority import Caller
from cycles_lite.protocol import wire
from cycles_lite.runtime.clock import now_ms

KEY = "cyc_live_secret-of-acme"


def requests(id):
    """One of each kind, answered and refused ones, with a body that can be read and with one that cannot."""
    return [
        ("POST", "/v1/decide", asking()),
        ("POST", "/v1/reservations", asking()),
        ("POST", "/v1/reservations", asking(dry_run=True)),
        ("POST", "/v1/reservations", asking(1_000_000_000)),
        ("POST", "/v1/events", event()),
        ("POST", f"/v1/reservations/{id}/extend", keyed(extend_by_ms=1)),
        ("POST", f"/v1/reservations/{id}/release", keyed()),
        ("POST", f"/v1/reservations/{id}/commit", committing()),
        ("GET", f"/v1/reservations/{id}", None),
        ("GET", "/v1/reservations", None),
        ("GET", "/v1/balances?tenant=acme", None),
        ("GET", "/v1/balances", None),  # 400
        ("GET", "/v1/reservations?limit=x", None),
        ("GET", "/v1/reservations/" + 200 * "x", None),
        ("GET", "/v1/balances?tenant=rival", None),  # 403
        ("POST", "/v1/decide", asking(tenant="rival")),
        ("POST", "/v1/reservations", {}),
        ("POST", "/v1/reservations", b"{"),
        ("POST", "/v1/events", b"\xff"),
        ("POST", "/v1/admin/budgets", {}),
        ("POST", "/v1/admin/budgets", b"{"),
    ]


def reserve(http, **headers):
    made = http("POST", "/v1/reservations", asking(10), **headers)
    assert made.status == 200
    return made.data["reservation_id"]


def refuses(http, id):
    """Every request is answered as for a key that never was, and changes nothing."""
    for method, path, body in requests(id):
        reply = http(method, path, body)
        assert (reply.status, reply.error) == (401, "UNAUTHORIZED"), (method, path, body)
        assert "x-cycles-tenant" not in reply.headers
        assert "acme" not in reply.body.decode()


def command(*arguments):
    subprocess.run([sys.executable, "-m", "cycles_lite", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("ends", ["revoked", "its tenant closed"])
def test_a_key_that_another_process_ends_is_refused_at_the_next_request(tmp_path, ends):
    """By the command line, while the server runs; each kind of request may be the next one."""
    path = str(tmp_path / "budgets.db")
    with Authority("sqlite:///" + path) as authority:
        authority.create_key("rival", secret="rival's")
        options = ("--tenant", "acme", "--budget", "tenant:acme=TOKENS:1000", "--admin-key", "admin's")
        count = len(requests("x")) if ends == "revoked" else 1
        keys = [authority.create_key("acme", secret=f"key-{number}") for number in range(count)]
        with process(tmp_path, *options) as server, Http(server.url) as http:
            id = reserve(http, X_Cycles_API_Key="key-0")
            if ends == "revoked":
                known = [made.key_id for made in keys]
                for number in range(len(known)):
                    reply = http("GET", "/v1/balances?tenant=acme", X_Cycles_API_Key=f"key-{number}")
                    assert reply.status == 200
                command("key", "revoke", "--db", path, known[0])
                for key_id in known[1:]:
                    authority.revoke_key(key_id)
            else:
                command("tenant", "close", "--db", path, "acme")
            before = authority.budgets()
            for number, (method, target, body) in enumerate(requests(id)):
                key = f"key-{number if ends == 'revoked' else 0}"
                reply = http(method, target, body, X_Cycles_API_Key=key)
                assert (reply.status, reply.error) == (401, "UNAUTHORIZED"), (method, target, body)
                assert "x-cycles-tenant" not in reply.headers
                assert "acme" not in reply.body.decode()
            assert authority.budgets() == before
            assert http("GET", "/v1/balances?tenant=rival", X_Cycles_API_Key="rival's").status == 200


def test_a_key_that_expires_is_refused_from_then_on(tmp_path):
    moved = [0]
    with serving(tmp_path, clock=lambda: now_ms() + moved[0]) as served:
        key = served.authority.create_key("acme", expires_at_ms=now_ms() + 3_600_000).key_secret
        with Http(served.url, key) as http:
            id = reserve(http)
            moved[0] = 3_600_000
            refuses(http, id)


def test_a_key_that_ends_between_being_found_and_the_operation_changes_nothing(tmp_path):
    """The operation's own transaction proves it, so there is no moment in between."""
    url = f"sqlite:///{tmp_path}/budgets.db"
    with serving(tmp_path) as served, Authority(url) as elsewhere:
        made = elsewhere.create_key("acme")
        caller = served.authority.caller(made.key_secret)
        assert caller.tenant == "acme"
        elsewhere.revoke_key(made.key_id)
        before = elsewhere.budgets()
        call = wire.Call(wire.CREATE_RESERVATION, None, {}, asking(10), {}, "acme", 2.0, 5.0)
        answer = served.authority.answer(call, caller)
        assert (answer.status, answer.content["error"]) == (401, "UNAUTHORIZED")
        assert "x-cycles-tenant" not in answer.headers
        assert elsewhere.budgets() == before
        assert served.authority.caller(made.key_secret) is None
        assert not served.authority.is_proven(caller)


def test_a_key_of_another_tenant_is_none_of_this_one(tmp_path):
    with serving(tmp_path) as served:
        key = served.authority.caller(served.key).key
        call = wire.Call(wire.GET_BALANCES, None, {"tenant": "rival"}, None, {}, "rival", 2.0, 5.0)
        assert served.authority.answer(call, Caller("rival", key=key)).status == 401


def test_a_known_key_costs_one_statement_and_no_transaction(tmp_path):
    with serving(tmp_path) as served, Http(served.url, served.key) as http:
        id = reserve(http)
        statements = []
        traced = [one.db for one in connections.open_connections()]
        for db in traced:
            db.set_trace_callback(lambda statement: statements.append(statement))  # Python 3.7 hashes it
        try:
            assert http("POST", f"/v1/reservations/{id}/commit", committing(10)).status == 200
            assert http("GET", "/v1/balances?tenant=acme").status == 200
        finally:
            for db in traced:
                db.set_trace_callback(None)
    assert [statement for statement in statements if statement.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN"]
    assert len([statement for statement in statements if "api_keys" in statement]) == 2


def test_no_secret_is_kept(tmp_path):
    """What is remembered is what the file has, too: a SHA-256."""
    with serving(tmp_path) as served, Http(served.url, served.key) as http:
        reserve(http)
        kept = served.authority._owners
        assert list(kept.values()) == ["acme"]
        assert all(isinstance(key, bytes) and len(key) == 32 for key in kept)
