"""Idempotency (protocol: IDEMPOTENCY)."""

from __future__ import annotations

import pytest

from cycles_lite.local.authority import Caller

from .helpers import OWNER, START, Bench, new_key, tokens

HOUR = 3600 * 1000
DAY = 24 * HOUR


def repeated(bench, operation, **fields):
    """The same request twice, with one key, and whether the second answer is the first."""
    key = new_key()
    first = getattr(bench, operation)(idempotency_key=key, **fields)
    second = getattr(bench, operation)(idempotency_key=key, **fields)
    return first, second


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("reserve", {}),
        ("reserve", {"dry_run": True}),
        ("reserve", {"dry_run": True, "amount": 2000}),
        ("decide", {}),
        ("decide", {"amount": 2000}),
        ("event", {}),
    ],
)
def test_replay(bench, operation, fields):
    """The stored answer comes again, and nothing happens twice."""
    first, second = repeated(bench, operation, **fields)
    assert first.status == second.status
    assert first.data == second.data
    taken = {"reserve": (900, 100, 0), "event": (900, 0, 100)}.get(operation, (1000, 0, 0))
    assert bench.amounts()[:3] == ((1000, 0, 0) if fields else taken)


@pytest.mark.parametrize("operation", ["commit", "release", "extend"])
def test_replay_on_a_reservation(bench, operation):
    """The same for what happens to a reservation."""
    made = bench.reserve(100)
    first, second = repeated(bench, operation, id=made.id)
    assert first.status == second.status == 200
    assert first.data == second.data
    assert bench.amounts()[1:3] == {"commit": (0, 100), "release": (0, 0), "extend": (100, 0)}[operation]


def test_remaining_ttl_is_fresh(bench):
    """A replayed reservation tells its lifetime as of now; all else comes verbatim, balances included."""
    first = bench.reserve(100, idempotency_key="k")
    bench.event(50)
    bench.clock.now += 20_000
    second = bench.reserve(100, idempotency_key="k")
    assert second.data.pop("remaining_ttl_ms") == 40_000
    assert first.data.pop("remaining_ttl_ms") == 60_000
    assert second.data == first.data
    bench.clock.now += 42_000  # expired, in its grace
    assert bench.reserve(100, idempotency_key="k").data["remaining_ttl_ms"] == 0
    bench.clock.now += 60_000
    assert bench.reserve(100, idempotency_key="k").data["remaining_ttl_ms"] == 0


@pytest.mark.parametrize("end", ["commit", "release"])
def test_remaining_ttl_is_0_once_it_ended(bench, end):
    """A reservation that is no longer active has no lifetime left, nor has an extension of it."""
    made = bench.reserve(100, idempotency_key="k")
    extended = bench.extend(made.id, idempotency_key="e")
    getattr(bench, end)(made.id)
    again = bench.reserve(100, idempotency_key="k")
    assert again.data == {**made.data, "remaining_ttl_ms": 0}
    again = bench.extend(made.id, idempotency_key="e")
    assert again.data == {**extended.data, "remaining_ttl_ms": 0}


def test_extension_replays_with_its_own_expiry(bench):
    """Another extension may have moved the expiry further; the replay of the first understates it."""
    made = bench.reserve(100, ttl_ms=10_000)
    first = bench.extend(made.id, 1000, idempotency_key="e")
    bench.extend(made.id, 5000)
    bench.clock.now += 3000
    again = bench.extend(made.id, 1000, idempotency_key="e")
    assert again.data == {**first.data, "remaining_ttl_ms": 8000}
    assert bench.get(made.id).data["expires_at_ms"] == START + 16_000


def test_extension_is_remembered_as_long_as_the_reservation_lives(bench):
    """An old key does not extend again after its own expiry, once a later one moved it; after expiry it is a 410."""
    made = bench.reserve(100, ttl_ms=10_000)
    bench.extend(made.id, 1000, idempotency_key="e")
    bench.extend(made.id, 5000)
    bench.clock.now += 15_000
    assert bench.extend(made.id, 1000, idempotency_key="e").data["expires_at_ms"] == START + 11_000
    assert bench.get(made.id).data["expires_at_ms"] == START + 16_000
    bench.clock.now += 2000
    assert bench.extend(made.id, 1000, idempotency_key="e").error == "RESERVATION_EXPIRED"


MISMATCHES = [
    ("reserve", {}, {"amount": 101}),
    ("reserve", {}, {"subject": {"tenant": "acme", "agent": "x"}}),
    ("reserve", {}, {"dry_run": True}),
    ("reserve", {"dry_run": True}, {}),
    ("reserve", {}, {"metadata": {}}),
    ("reserve", {}, {"ttl_ms": 59_999}),
    ("decide", {}, {"amount": 101}),
    ("event", {}, {"overage_policy": "REJECT"}),
    ("event", {}, {"client_time_ms": 1}),
]


@pytest.mark.parametrize(("operation", "first", "second"), MISMATCHES)
def test_mismatch(bench, operation, first, second):
    """One key, two payloads: 409, and nothing happens."""
    assert getattr(bench, operation)(idempotency_key="k", **first).status in (200, 201)
    before = bench.amounts()
    answer = getattr(bench, operation)(idempotency_key="k", **second)
    assert (answer.status, answer.error) == (409, "IDEMPOTENCY_MISMATCH")
    assert bench.amounts() == before


@pytest.mark.parametrize(
    ("operation", "other"),
    [("commit", {"amount": 99}), ("release", {"reason": "x"}), ("extend", {"by": 1001})],
)
def test_mismatch_on_a_reservation(bench, operation, other):
    """The same for what happens to a reservation."""
    made = bench.reserve(100)
    assert getattr(bench, operation)(made.id, idempotency_key="k").status == 200
    assert getattr(bench, operation)(made.id, idempotency_key="k", **other).error == "IDEMPOTENCY_MISMATCH"


def test_defaults_are_what_they_stand_for(bench):
    """A field that is left out, null, or said to be its default makes the same payload."""
    first = bench.reserve(idempotency_key="k")
    for fields in (
        {"ttl_ms": 60_000},
        {"grace_period_ms": 5000},
        {"overage_policy": "ALLOW_IF_AVAILABLE"},
        {"dry_run": False},
        {"metadata": None, "ttl_ms": None},
    ):
        assert bench.reserve(idempotency_key="k", **fields).data == first.data
    bench.event(idempotency_key="k")
    assert bench.event(idempotency_key="k", overage_policy="ALLOW_IF_AVAILABLE").status == 201


def test_defaults_of_the_first_time():
    """The same bytes replay also when the tenant's settings have changed meanwhile."""
    with Bench() as bench:
        bench.budget()
        first, event = bench.reserve(idempotency_key="k"), bench.event(idempotency_key="k")
        bench.authority.create_tenant("acme", default_ttl_ms=5000, default_overage_policy="REJECT")
        assert bench.reserve(idempotency_key="k").data == first.data
        assert bench.reserve(idempotency_key="k", ttl_ms=60_000).data == first.data
        assert bench.reserve(idempotency_key="k", ttl_ms=5000).error == "IDEMPOTENCY_MISMATCH"
        assert bench.event(idempotency_key="k").data == event.data


def test_ttl_is_compared_before_it_is_clamped(bench):
    """Two TTLs over the maximum are two payloads."""
    assert bench.reserve(idempotency_key="k", ttl_ms=4_000_000).status == 200
    assert bench.reserve(idempotency_key="k", ttl_ms=3_600_000).error == "IDEMPOTENCY_MISMATCH"


def test_namespaces(bench):
    """One key serves once per operation, and per reservation, and per tenant."""
    bench.authority.set_budget("tenant:other", bench.authority.budgets()[0].balance.allocated)
    made = bench.reserve(100, idempotency_key="k")
    second = bench.reserve(100)
    assert bench.decide(idempotency_key="k").status == 200
    assert bench.event(idempotency_key="k").status == 201
    for id in (made.id, second.id):
        assert bench.extend(id, idempotency_key="k").status == 200
        assert bench.commit(id, 100, idempotency_key="k").status == 200
    other = bench.reserve(100, {"tenant": "other"}, caller=Caller("other"), idempotency_key="k")
    assert other.status == 200
    assert other.id != made.id
    # Whoever acts for a tenant, by a key or by the subject alone, shares its namespace.
    assert bench.reserve(100, caller=OWNER, idempotency_key="k").id == made.id


def test_refusals_are_not_stored(bench):
    """What was refused is evaluated again, with the same key or another payload."""
    assert bench.reserve(2000, idempotency_key="k").error == "BUDGET_EXCEEDED"
    bench.authority.fund("tenant:acme", bench.authority.budgets()[0].balance.allocated)
    assert bench.reserve(2000, idempotency_key="k").status == 200
    made = bench.reserve(0, overage_policy="REJECT")
    assert bench.commit(made.id, 1, idempotency_key="c").error == "BUDGET_EXCEEDED"
    assert bench.commit(made.id, 0, idempotency_key="c").status == 200
    assert bench.event(1, overage_policy="REJECT", idempotency_key="v").error == "BUDGET_EXCEEDED"
    assert bench.event(0, idempotency_key="v").status == 201


@pytest.mark.parametrize(
    ("operation", "fields", "kept"),
    [
        ("reserve", {}, DAY),
        ("reserve", {"dry_run": True}, DAY),
        ("decide", {}, DAY),
        ("event", {}, 7 * DAY),
    ],
)
def test_retention(bench, operation, fields, kept):
    """Answers are kept for as long as the design says, and not longer."""
    name = {"event": "event_id", "reserve": "reservation_id"}.get(operation, "decision")
    first = getattr(bench, operation)(idempotency_key="k", **fields)
    bench.clock.now += kept
    again = getattr(bench, operation)(idempotency_key="k", **fields)
    assert again.data.get(name) == first.data.get(name)
    assert getattr(bench, operation)(idempotency_key="k", **{**fields, "amount": 1}).error == "IDEMPOTENCY_MISMATCH"
    bench.clock.now += 1
    assert getattr(bench, operation)(idempotency_key="k", **{**fields, "amount": 1}).status in (200, 201)


def test_long_reservations_are_remembered_longer():
    """A key is kept for the reservation's lifetime plus grace where that is more than a day."""
    with Bench() as bench:
        bench.authority.create_tenant("acme", max_ttl_ms=DAY)
        bench.budget()
        first = bench.reserve(idempotency_key="k", ttl_ms=DAY, grace_period_ms=60_000)
        bench.clock.now += DAY + 60_000
        assert bench.reserve(idempotency_key="k", ttl_ms=DAY, grace_period_ms=60_000).id == first.id
        bench.clock.now += 1
        assert bench.reserve(idempotency_key="k", ttl_ms=DAY, grace_period_ms=60_000).id != first.id


def test_settlements_replay_for_30_days(bench):
    """A finished reservation, and with it its settlement's answer, is remembered for 30 days."""
    made = bench.reserve(100)
    first = bench.commit(made.id, 100, idempotency_key="c")
    bench.clock.now += 30 * DAY
    assert bench.commit(made.id, 100, idempotency_key="c").data == first.data
    assert bench.get(made.id).status == 200
    bench.clock.now += 1
    assert bench.commit(made.id, 100, idempotency_key="c").status == 404
    assert bench.get(made.id).status == 404
    assert bench.listed() == []


def test_a_key_may_come_again_as_another_reservation(bench):
    """After its day a key makes a new reservation; the old one stays what it was."""
    first = bench.reserve(100, idempotency_key="k")
    bench.clock.now += DAY + 1
    second = bench.reserve(50, idempotency_key="k")
    assert second.id != first.id
    assert bench.reserve(50, idempotency_key="k").id == second.id
    assert set(bench.listed(idempotency_key="k")) == {first.id, second.id}


def test_metadata_is_part_of_the_payload(bench):
    """Canonical: the order of keys does not count, values do."""
    bench.reserve(metadata={"a": 1, "b": {"c": 2, "d": 3}}, idempotency_key="k")
    assert bench.reserve(metadata={"b": {"d": 3, "c": 2}, "a": 1}, idempotency_key="k").status == 200
    assert bench.reserve(metadata={"a": 1.5}, idempotency_key="k").error == "IDEMPOTENCY_MISMATCH"
    assert bench.amounts()[1] == 100


def test_keys_of_all_sorts(bench):
    """Up to 256 characters, also beyond ASCII."""
    for key in ("x" * 256, "é", "😀 ' \" %", "k\u2028"):
        made = bench.reserve(1, idempotency_key=key)
        assert made.status == 200
        assert bench.reserve(1, idempotency_key=key).id == made.id
        assert bench.listed(idempotency_key=key) == [made.id]
        assert bench.get(made.id).data["idempotency_key"] == key
        assert bench.get(made.id).data["reserved"] == tokens(1)
