"""Tenants and their keys, and what a closed tenant may still do."""

from __future__ import annotations

import pytest
from samples import Proxy

from cycles_lite.errors import ValidationError
from cycles_lite.local import AlreadyExists
from cycles_lite.protocol.values import Amount

from .helpers import START, Bench


@pytest.fixture
def authority(bench):
    return bench.authority


def test_create_tenant(authority):
    """The same tenant again is the same; another name or other settings are a conflict."""
    made = authority.create_tenant("acme", "Acme Inc", max_ttl_ms=5000)
    assert (made.tenant_id, made.name, made.status, made.created_at_ms) == ("acme", "Acme Inc", "ACTIVE", START)
    assert authority.create_tenant("acme", "Acme Inc") == made
    assert authority.create_tenant("acme", max_ttl_ms=5000) == made
    assert authority.tenant("acme") == made
    with pytest.raises(AlreadyExists, match="name"):
        authority.create_tenant("acme", "Other")
    with pytest.raises(AlreadyExists, match="settings"):
        authority.create_tenant("acme", max_extensions=3)
    assert authority.tenant("other") is None
    assert authority.create_tenant("other").name == "other"


@pytest.mark.parametrize(
    "arguments",
    [
        {"tenant_id": "Acme"},
        {"tenant_id": "ab"},
        {"name": ""},
        {"name": "a\nb"},
        {"default_ttl_ms": 999},
        {"default_ttl_ms": 1.5},
        {"max_ttl_ms": 86_400_001},
        {"max_extensions": -1},
        {"default_overage_policy": "MAYBE"},
    ],
)
def test_bad_tenants(authority, arguments):
    """Settings are checked where they are made."""
    with pytest.raises(ValidationError):
        authority.create_tenant(**{"tenant_id": "acme", **arguments})
    assert authority.tenant("acme") is None


def test_keys(authority, bench):
    """A key authenticates its tenant until it is revoked or expires; only its hash is kept."""
    made = authority.create_key("acme", name="ci", permissions=["reservations:create"], expires_at_ms=START + 1000)
    assert made.key_id.startswith("key_")
    assert made.key_secret.startswith(made.key_prefix)
    assert (made.tenant_id, made.permissions, made.created_at) == ("acme", ("reservations:create",), START)
    assert (made.expires_at, made.revoked) == (START + 1000, False)
    assert made.key_secret not in repr(made)
    assert authority.authenticate(made.key_secret) == "acme"
    (listed,) = authority.keys()
    assert listed.key_secret is None
    assert listed.key_id == made.key_id
    for wrong in ("", made.key_secret + "x", made.key_secret[:-1], made.key_prefix, made.key_id, "é", "\ud800"):
        assert authority.authenticate(wrong) is None
    with authority._ledger.reading() as (db, _):
        assert made.key_secret not in str(db.execute("SELECT * FROM api_keys").fetchall())
    bench.clock.now += 1000
    assert authority.authenticate(made.key_secret) is None
    lasting = authority.create_key("acme")
    assert authority.authenticate(lasting.key_secret) == "acme"
    assert authority.revoke_key(lasting.key_id).revoked
    assert authority.revoke_key(lasting.key_id).revoked_at == bench.clock.now
    assert authority.authenticate(lasting.key_secret) is None


def test_own_secrets(authority):
    """A secret of one's own may be said at each start, by one tenant, until it is revoked."""
    made = authority.create_key("acme", secret="my-own-secret")
    assert made.key_prefix == "my-o"
    again = authority.create_key("acme", secret="my-own-secret")
    assert (again.key_id, again.key_secret) == (made.key_id, "my-own-secret")
    assert len(authority.keys()) == 1
    with pytest.raises(AlreadyExists) as caught:
        authority.create_key("other", secret="my-own-secret")
    assert "my-own-secret" not in str(caught.value)
    authority.revoke_key(made.key_id)
    with pytest.raises(AlreadyExists):
        authority.create_key("acme", secret="my-own-secret")


@pytest.mark.parametrize(
    "arguments",
    [
        {"tenant_id": "ACME"},
        {"secret": ""},
        {"secret": "two words"},
        {"secret": "é"},
        {"secret": 5},
        {"permissions": "all"},
        {"permissions": [1]},
        {"expires_at_ms": -1},
        {"name": ""},
    ],
)
def test_bad_keys(authority, arguments):
    """What cannot be a key is refused, without showing a secret."""
    with pytest.raises(ValidationError):
        authority.create_key(**{"tenant_id": "acme", **arguments})
    assert authority.keys() == []


def test_unknown(authority):
    """Keys and tenants that are not there are errors that name them."""
    with pytest.raises(ValidationError, match="key_x"):
        authority.revoke_key("key_x")
    with pytest.raises(ValidationError, match="nobody"):
        authority.close_tenant("nobody")
    with pytest.raises(ValidationError):
        authority.close_tenant("No One")


def test_close_tenant(authority):
    """Closing revokes the keys and is final; a tenant that only has budgets can be closed as well."""
    key = authority.create_key("acme")
    other = authority.create_key("other")
    assert authority.close_tenant("acme").status == "CLOSED"
    assert authority.close_tenant("acme").status == "CLOSED"
    assert authority.authenticate(key.key_secret) is None
    assert authority.authenticate(other.key_secret) == "other"
    with pytest.raises(ValidationError, match="closed"):
        authority.create_key("acme")
    assert authority.create_tenant("acme").status == "CLOSED"
    authority.set_budget("tenant:third/agent:x", Amount.tokens(1))
    assert authority.close_tenant("third").status == "CLOSED"


def test_closed_tenant(bench):
    """Everything that persists is refused with TENANT_CLOSED, evaluations are denied with it, reads go on."""
    made, done, late = bench.reserve(100), bench.reserve(100), bench.reserve(100, ttl_ms=1000)
    bench.commit(done.id, 100, idempotency_key="c")
    bench.authority.close_tenant("acme")
    for answer in (
        bench.reserve(1),
        bench.event(1),
        bench.commit(made.id),
        bench.release(made.id),
        bench.extend(made.id),
        bench.commit(done.id),  # before the state errors
        bench.release(done.id),
        bench.commit(made.id, actual={"unit": "CREDITS", "amount": 1}),  # and before the unit
        bench.reserve(1, estimate={"unit": "CREDITS", "amount": 1}),
    ):
        assert (answer.status, answer.error) == (409, "TENANT_CLOSED")
    denied = {"decision": "DENY", "reason_code": "TENANT_CLOSED", "affected_scopes": ["tenant:acme"]}
    assert bench.decide(1).data == denied
    assert bench.reserve(1, dry_run=True).data == {**denied, "scope_path": "tenant:acme"}
    assert bench.reserve(1, dry_run=True, estimate={"unit": "CREDITS", "amount": 1}).data["decision"] == "DENY"
    assert bench.get(made.id).status == 200
    assert len(bench.listed()) == 3
    assert bench.balances().status == 200
    bench.clock.now += 6001
    assert bench.commit(late.id).error == "TENANT_CLOSED"
    assert bench.amounts()[1] == 100  # its hold was freed all the same
    assert bench.commit("rsv_" + "0" * 32).error == "NOT_FOUND"


def test_replays_of_a_closed_tenant(bench):
    """What succeeded before the close replays after it; another payload is a mismatch still."""
    made = bench.reserve(100, idempotency_key="r")
    extended = bench.extend(made.id, idempotency_key="x")
    committed = bench.commit(made.id, 100, idempotency_key="c")
    event = bench.event(1, idempotency_key="v")
    decided = bench.decide(1, idempotency_key="d")
    bench.authority.close_tenant("acme")
    assert bench.reserve(100, idempotency_key="r").id == made.id
    assert bench.extend(made.id, idempotency_key="x").data["expires_at_ms"] == extended.data["expires_at_ms"]
    assert bench.commit(made.id, 100, idempotency_key="c").data == committed.data
    assert bench.event(1, idempotency_key="v").data == event.data
    assert bench.decide(1, idempotency_key="d").data == decided.data
    assert bench.reserve(99, idempotency_key="r").error == "IDEMPOTENCY_MISMATCH"
    assert bench.commit(made.id, 99, idempotency_key="c").error == "IDEMPOTENCY_MISMATCH"


@pytest.mark.parametrize(
    "damage",
    ["status = 'SUSPENDED?'", "status = ''", "max_ttl_ms = 'x'", "default_overage_policy = 'y'", "max_extensions = -1"],
)
def test_malformed_records_fail_closed(damage):
    """A record that cannot be read could be a closed tenant's: 500 on all that asks for it, evaluations too."""
    with Bench() as bench:
        bench.budget()
        made = bench.reserve(100)
        bench.authority.create_tenant("acme")
        with bench.authority._ledger.writing() as (db, _):
            db.execute("UPDATE tenants SET " + damage)
        for answer in (
            bench.reserve(1),
            bench.reserve(1, dry_run=True),
            bench.decide(1),
            bench.event(1),
            bench.commit(made.id),
            bench.release(made.id),
            bench.extend(made.id),
        ):
            assert (answer.status, answer.error) == (500, "INTERNAL_ERROR")
        assert bench.get(made.id).status == 200
        assert bench.amounts()[1] == 100


def test_names_that_no_file_can_have(bench):
    """As a command line passes them on where it is not what the locale says."""
    assert bench.authority.tenant("\udcff") is None
    with pytest.raises(ValidationError):
        bench.authority.revoke_key("\udcff")


@pytest.mark.parametrize("make", [int, lambda: None, bytes, list, Proxy])
def test_what_is_no_text_names_no_tenant_and_is_no_key(authority, make):
    odd = make()
    assert authority.tenant(odd) is None
    assert authority.authenticate(odd) is None
    with pytest.raises(ValidationError):
        authority.create_tenant(odd)
    authority.create_tenant("acme")
    if odd is not None:
        with pytest.raises(ValidationError, match="name"):
            authority.create_tenant("acme", odd)
    if odd is not None:
        with pytest.raises(ValidationError):
            authority.create_key("acme", secret=odd)
        with pytest.raises(ValidationError):
            authority.set_budget("tenant:acme", odd)


def test_a_keys_id_is_shown_readably(authority):
    with pytest.raises(ValidationError, match=r"no key '\\u202e'"):
        authority.revoke_key("\u202e")
