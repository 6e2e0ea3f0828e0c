"""Lists, balances and single reservations (protocol: listReservations, getBalances, getReservation)."""

from __future__ import annotations

import base64
import json

import pytest

from cycles_lite.local import reads
from cycles_lite.local.authority import Caller
from cycles_lite.protocol.values import Amount

from .helpers import ADMIN, OWNER, START, Bench, tokens

SECOND = 1000


@pytest.fixture
def filled(bench):
    """Seven reservations of acme in four states, a second apart, and one of another tenant; ids by name."""
    bench.authority.set_budget("tenant:other", Amount.tokens(1000))
    bench.authority.set_budget("tenant:acme", Amount.tokens(10_000))
    made = {}
    for name, fields in (
        ("a", {"subject": {"tenant": "acme", "workspace": "Prod", "agent": "bot"}, "amount": 10, "metadata": {"m": 1}}),
        ("b", {"subject": {"tenant": "acme", "workspace": "prod"}, "amount": 30}),
        ("c", {"subject": {"tenant": "acme", "workspace": "pro"}, "amount": 20}),
        ("d", {"subject": {"tenant": "acme", "app": "x_y"}, "amount": 20, "ttl_ms": 2000, "grace_period_ms": 0}),
        ("e", {"subject": {"tenant": "acme", "app": "xzy"}, "amount": 20}),
        ("f", {"subject": {"tenant": "acme", "agent": "bot"}, "amount": 50, "idempotency_key": "key-f"}),
        ("g", {"subject": {"tenant": "acme"}, "amount": 5}),
    ):
        made[name] = bench.reserve(**fields).id
        bench.clock.now += SECOND
    made["other"] = bench.reserve(1, {"tenant": "other"}, caller=Caller("other")).id
    bench.commit(made["b"], 7, metadata={"done": True})
    bench.clock.now += SECOND
    bench.release(made["e"])
    bench.ids = made
    return bench


def names(bench, **query):
    """The names of what a list finds, in its order."""
    found = {id: name for name, id in bench.ids.items()}
    return "".join(found[id] if found[id] != "other" else "o" for id in bench.listed(**query))


LISTS = [
    # query, what it finds, newest first where nothing else is said
    ({}, "gfedcba"),
    ({"tenant": "acme"}, "gfedcba"),
    ({"status": "ACTIVE"}, "gfca"),
    ({"status": "COMMITTED"}, "b"),
    ({"status": "RELEASED"}, "e"),
    ({"status": "EXPIRED"}, "d"),
    ({"workspace": "prod"}, "ba"),
    ({"workspace": "PROD", "agent": "Bot"}, "a"),
    ({"workspace": "pro"}, "c"),
    ({"app": "x_y"}, "d"),
    ({"app": "x%"}, ""),
    ({"agent": "bot"}, "fa"),
    ({"agent": "bot/agent:bot"}, ""),
    ({"workspace": "prod/agent:bot"}, ""),
    ({"workflow": "w"}, ""),
    ({"toolset": "t"}, ""),
    ({"idempotency_key": "key-f"}, "f"),
    ({"idempotency_key": "key-"}, ""),
    ({"idempotency_key": "KEY-F"}, ""),
    # Blank is unset for the windows; what a blank level or key names, nothing has.
    (
        {"from_": "", "to": " ", "expires_from": "", "expires_to": "", "finalized_from": "", "finalized_to": ""},
        "gfedcba",
    ),
    ({"include": "", "limit": "", "cursor": " "}, "gfedcba"),
    ({"workspace": ""}, ""),
    ({"toolset": " "}, ""),
    ({"tenant": ""}, ""),
    ({"tenant": " "}, ""),
    ({"idempotency_key": ""}, ""),
    ({"idempotency_key": " "}, ""),
    ({"unknown": "x"}, "gfedcba"),
    # The three windows; both ends count.
    ({"from_": "2023-11-14T22:13:22Z"}, "gfedc"),
    ({"to": "2023-11-14T22:13:22Z"}, "cba"),
    ({"from_": "2023-11-14T22:13:22Z", "to": "2023-11-14T23:13:22+01:00"}, "c"),
    ({"from_": "2023-11-14T22:13:22.0001Z"}, "gfed"),
    ({"to": "2023-11-14T22:13:21.9999Z"}, "ba"),
    ({"expires_from": "2023-11-14T22:14:25Z"}, "gf"),
    ({"expires_to": "2023-11-14T22:13:25Z"}, "d"),
    ({"finalized_from": "1970-01-01T00:00:00Z"}, "eb"),
    ({"finalized_to": "2023-11-14T22:13:27Z"}, "b"),
    ({"finalized_from": "2023-11-14T22:13:28Z", "status": "COMMITTED"}, ""),
    # Sorting; ties by id, ascending.
    ({"sort_dir": "asc"}, "abcdefg"),
    ({"sort_by": "created_at_ms"}, "gfedcba"),
    ({"sort_by": "expires_at_ms", "sort_dir": "asc"}, "dabcefg"),
    ({"sort_by": "reserved", "sort_dir": "asc", "status": "ACTIVE"}, "gacf"),
    ({"sort_by": "scope_path", "sort_dir": "asc", "agent": "bot"}, "fa"),
    ({"sort_by": "scope_path", "agent": "bot"}, "af"),
]


@pytest.mark.parametrize(("query", "expected"), LISTS)
def test_lists(filled, query, expected):
    """Each filter, window and order finds just what it says."""
    assert names(filled, **query) == expected


@pytest.mark.parametrize(
    "sort_by", ["reservation_id", "tenant", "scope_path", "status", "reserved", "created_at_ms", "expires_at_ms"]
)
@pytest.mark.parametrize("sort_dir", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages(filled, sort_by, sort_dir, limit):
    """Pages follow each other without a gap or a double in every order; ties go by id ascending in both."""
    for _ in range(4):  # more ties
        filled.reserve(20, {"tenant": "acme", "app": "x_y"})
    rows, query = [], {"sort_by": sort_by, "sort_dir": sort_dir, "limit": str(limit)}
    while True:
        page = filled.list(**query).data
        rows += page["reservations"]
        assert page["has_more"] == ("next_cursor" in page)
        if not page["has_more"]:
            break
        assert len(page["reservations"]) == limit
        query = {"limit": str(limit), "cursor": page["next_cursor"]}  # which brings the sort along
    assert len(rows) == 11

    def value(row):
        return {"tenant": "acme", "reserved": row["reserved"]["amount"]}.get(sort_by) or row[sort_by]

    by_id = sorted(rows, key=lambda row: row["reservation_id"])
    assert rows == sorted(by_id, key=value, reverse=sort_dir == "desc")


def test_limits(filled):
    """1 to 200, 50 where nothing is said."""
    for _ in range(60):
        filled.reserve(1)
    assert len(filled.listed()) == 50
    assert len(filled.listed(limit="200")) == 67
    assert filled.list(limit="67").data["has_more"] is False
    assert "next_cursor" not in filled.list(limit="67").data


BAD_QUERIES = [
    {"limit": "0"},
    {"limit": "201"},
    {"limit": "abc"},
    {"limit": "-1"},
    {"limit": "1.5"},
    {"limit": "9" * 400},
    {"limit": "٣"},
    {"status": "ALIVE"},
    {"status": "active"},
    {"status": ""},
    {"status": " "},
    {"sort_by": ""},
    {"sort_dir": " "},
    {"sort_by": "size"},
    {"sort_dir": "up"},
    {"from_": "yesterday"},
    {"to": "2026-05-21"},
    {"from_": "2026-05-21T10:00:00"},
    {"from_": "2026-05-21T10:00:01Z", "to": "2026-05-21T10:00:00Z"},
    {"expires_from": "2026-05-21T10:00:00Z", "expires_to": "2026-05-21T10:00:00+00:01"},
    {"finalized_from": "2026-05-21T10:00:00.002Z", "finalized_to": "2026-05-21T10:00:00.001Z"},
    {"cursor": "x"},
    {"cursor": "é"},
    {"cursor": base64.urlsafe_b64encode(b"[1]").decode()},
    {"cursor": base64.urlsafe_b64encode(b'[1, "x", "y"]').decode()},
    {"cursor": base64.urlsafe_b64encode(b"[" * 5000).decode()},
]


@pytest.mark.parametrize("query", BAD_QUERIES)
def test_bad_queries(bench, query):
    """What cannot be meant is a 400."""
    answer = bench.list(**query)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_cursors_are_bound(filled):
    """A cursor brings its sort along, and goes with its filters in any spelling; `include` and limit are free."""
    cursor = filled.list(limit="2", workspace="prod", sort_by="reserved").data.get("next_cursor")
    assert cursor is None
    cursor = filled.list(limit="1", workspace="prod", sort_by="reserved").data["next_cursor"]
    same = {"workspace": "PROD", "cursor": cursor}
    for sort in ({}, {"sort_by": "reserved"}, {"sort_dir": "desc"}, {"sort_by": "reserved", "sort_dir": "desc"}):
        found = filled.listed(include="metadata", limit="5", tenant="acme", **same, **sort)
        assert found == [filled.ids["a"]]
    for other in (
        {"cursor": cursor},
        {**same, "sort_by": "created_at_ms"},
        {**same, "sort_by": "reserved", "sort_dir": "asc"},
        {**same, "sort_dir": "asc"},
        {**same, "status": "ACTIVE"},
        {**same, "agent": "bot"},
        {**same, "idempotency_key": "k"},
        {**same, "from_": "2020-01-01T00:00:00Z"},
        {**same, "expires_to": "2030-01-01T00:00:00Z"},
    ):
        assert filled.list(**other).error == "INVALID_REQUEST"
    assert filled.list(caller=Caller("other"), **same).error == "INVALID_REQUEST"


def test_mangled_cursors(filled):
    """A cursor that was changed is refused, whatever was changed."""
    cursor = filled.list(limit="2").data["next_cursor"]
    position = json.loads(base64.urlsafe_b64decode(cursor))
    mangled = [cursor[:-4], cursor + "AAAA", cursor.lower()]
    for changed in (
        [position[0] + 1, *position[1:]],
        [str(position[0]), *position[1:]],
        [True, *position[1:]],
        [position[0], "rsv_x", position[2]],
        [2**64, *position[1:]],
        position[:2],
        [*position, 1],
        {"a": 1},
        [*position[:2], "expires_at_ms", *position[3:]],
        [*position[:3], "asc", *position[4:]],
    ):
        mangled.append(base64.urlsafe_b64encode(json.dumps(changed).encode()).decode())
    for text in mangled:
        assert filled.list(limit="2", cursor=text).error == "INVALID_REQUEST"


FORGED = [
    ["\ud800", "x", "scope_path", "desc"],
    ["x", "\udfff", "tenant", "asc"],
    [1, "\ud800", "created_at_ms", "desc"],
    [2**63, "x", "created_at_ms", "desc"],
    [-(2**70), "x", "reserved", "asc"],
    [1, "x", "scope_path", "desc"],
    ["1", "x", "reserved", "desc"],
    [1, "x", "\ud800", "desc"],
    [1, "x", "reserved", "; DROP TABLE budgets"],
    [1, "x", "number", "desc"],
    [True, "x", "reserved", "desc"],
]


@pytest.mark.parametrize("position", FORGED)
def test_forged_cursors(filled, position):
    """A digest is worked out by anybody: what is in a cursor proves nothing, and is a 400 like any other nonsense."""
    asked = reads.list_filters({})
    binding = {**asked._asdict(), "tenant": "acme", "include": None, "limit": None, "cursor": None}
    cursor = reads.make_cursor(position, binding)
    answer = filled.list(cursor=cursor)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    honest = reads.make_cursor([START, "x", "created_at_ms", "desc"], binding)
    assert filled.list(cursor=honest).status == 200  # so that it was not the binding


def test_forged_cursors_of_balances(bench):
    for position in (["\ud800", "TOKENS"], ["tenant:acme", "\udc00"], [1, "x"]):
        cursor = reads.make_cursor(position, {"tenant": "acme", "segments": ["tenant:acme"]})
        assert bench.balances(tenant="acme", cursor=cursor).error == "INVALID_REQUEST"
    honest = reads.make_cursor(["a", "x"], {"tenant": "acme", "segments": ["tenant:acme"]})
    assert bench.balances(tenant="acme", cursor=honest).status == 200


def test_pages_are_steady(filled):
    """A page goes on where the last one ended, whatever was added or ended meanwhile."""
    first = filled.list(limit="3").data
    filled.reserve(1)
    filled.commit(filled.ids["c"], 1)
    second = filled.listed(limit="3", cursor=first["next_cursor"])
    assert second == [filled.ids[name] for name in "dcb"]


def test_rows(filled):
    """What a row shows: an end only where there is one, the amount always, metadata only on request."""
    rows = {row["reservation_id"]: row for row in filled.list().data["reservations"]}
    b = rows[filled.ids["b"]]
    assert b == {
        "reservation_id": filled.ids["b"],
        "status": "COMMITTED",
        "idempotency_key": b["idempotency_key"],
        "subject": {"tenant": "acme", "workspace": "prod"},
        "action": {"kind": "llm.completion", "name": "gpt-4o"},
        "reserved": tokens(30),
        "committed": tokens(7),
        "created_at_ms": START + SECOND,
        "expires_at_ms": START + 61 * SECOND,
        "finalized_at_ms": START + 7 * SECOND,
        "scope_path": "tenant:acme/workspace:prod",
        "affected_scopes": ["tenant:acme", "tenant:acme/workspace:prod"],
    }
    a = rows[filled.ids["a"]]
    assert a["subject"] == {"tenant": "acme", "workspace": "Prod", "agent": "bot"}  # as it was given
    assert a["scope_path"] == "tenant:acme/workspace:prod/agent:bot"
    assert not {"committed", "finalized_at_ms", "metadata"} & set(a)
    assert "committed" not in rows[filled.ids["e"]]
    assert rows[filled.ids["e"]]["finalized_at_ms"] == START + 8 * SECOND


@pytest.mark.parametrize(
    ("include", "shown"),
    [
        ("metadata", {"metadata"}),
        ("committed_metadata", {"committed_metadata"}),
        (" METADATA , Committed_Metadata,,evidence,nonsense", {"metadata", "committed_metadata"}),
        ("", set()),
        (",", set()),
        ("meta", set()),
    ],
)
def test_include(filled, include, shown):
    """Tokens in any case and with blanks; unknown ones are ignored."""
    rows = filled.list(include=include, workspace="prod").data["reservations"]
    heavy = {name for row in rows for name in row} & {"metadata", "committed_metadata", "evidence"}
    assert heavy == shown


def test_tenancy(filled):
    """A tenant sees its own; another tenant's filter is a 403; the file's owner sees all, or whom it asks for."""
    assert names(filled, caller=Caller("other")) == "o"
    answer = filled.list(tenant="other")
    assert (answer.status, answer.error) == (403, "FORBIDDEN")
    assert filled.list(tenant="ACME").error == "FORBIDDEN"
    assert set(names(filled, caller=OWNER)) == set("gfedcbao")
    assert names(filled, caller=OWNER, tenant="other") == "o"
    assert filled.list(tenant="other", limit="0").error == "INVALID_REQUEST"  # 400 comes before 403


def test_admin(filled):
    """An operator lists a tenant that it must name, reads and releases anything, and does nothing else."""
    answer = filled.list(caller=ADMIN)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.data["message"] == "tenant query parameter is required when using admin key authentication"
    assert names(filled, caller=ADMIN, tenant="other") == "o"
    assert names(filled, caller=ADMIN, tenant="nobody") == ""
    assert filled.get(filled.ids["a"], caller=ADMIN).status == 200
    assert filled.release(filled.ids["a"], caller=ADMIN, reason="[INCIDENT_FORCE_RELEASE]").status == 200
    for refused in (
        filled.reserve(caller=ADMIN),
        filled.decide(caller=ADMIN),
        filled.event(caller=ADMIN),
        filled.commit(filled.ids["c"], caller=ADMIN),
        filled.extend(filled.ids["c"], caller=ADMIN),
        filled.balances(caller=ADMIN),
    ):
        assert (refused.status, refused.error) == (401, "UNAUTHORIZED")


# ---- Balances ----


@pytest.fixture
def budgeted():
    with Bench() as bench:
        for scope in (
            "tenant:acme",
            "tenant:acme/workspace:prod",
            "tenant:acme/workspace:prod/agent:bot",
            "tenant:acme/workspace:production",
            "tenant:acme/agent:bot",
            "tenant:acme-corp",
            "tenant:acme-corp/agent:bot",
            "tenant:acme0",
        ):
            bench.authority.set_budget(scope, Amount.tokens(5))
        bench.authority.set_budget("tenant:acme", Amount.credits(5))
        yield bench


ALL = [
    ("tenant:acme", "CREDITS"),
    ("tenant:acme", "TOKENS"),
    ("tenant:acme/agent:bot", "TOKENS"),
    ("tenant:acme/workspace:prod", "TOKENS"),
    ("tenant:acme/workspace:prod/agent:bot", "TOKENS"),
    ("tenant:acme/workspace:production", "TOKENS"),
]


def shown(answer):
    return [(one["scope_path"], one["remaining"]["unit"]) for one in answer.data["balances"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"tenant": "acme"}, ALL),
        ({"workspace": "prod"}, ALL[3:5]),
        ({"workspace": "PROD"}, ALL[3:5]),
        ({"agent": "bot"}, [ALL[2], ALL[4]]),
        ({"tenant": "acme", "workspace": "prod", "agent": "bot"}, ALL[4:5]),
        ({"app": "x"}, []),
        ({"workspace": "prod/agent:bot"}, []),
        ({"tenant": "acme", "include_children": "false", "unknown": "x"}, ALL),
    ],
)
def test_balances(budgeted, query, expected):
    """Every named segment must be in the scope, whole; descendants are there; other tenants never."""
    answer = budgeted.balances(**query)
    assert shown(answer) == expected
    assert answer.data["has_more"] is False


def test_balances_need_a_filter(budgeted):
    """None is a 400; a blank one is one that no scope has."""
    answer = budgeted.balances(include_children="true")
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    for query in ({"tenant": ""}, {"app": " "}, {"tenant": "acme", "agent": ""}):
        assert shown(budgeted.balances(**query)) == []


def test_balance_tenancy(budgeted):
    """Another tenant's filter is a 403; the file's owner sees whom it asks for, or all."""
    assert budgeted.balances(tenant="acme-corp").error == "FORBIDDEN"
    assert len(shown(budgeted.balances(caller=OWNER, tenant="acme-corp"))) == 2
    assert len(shown(budgeted.balances(caller=OWNER, agent="bot"))) == 3
    assert shown(budgeted.balances(caller=Caller("nobody"), tenant="nobody")) == []


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_balance_pages(budgeted, limit):
    """Pages follow each other; cursors are bound to the filters."""
    found, query = [], {"tenant": "acme", "limit": str(limit)}
    while True:
        page = budgeted.balances(**query)
        found += shown(page)
        if not page.data["has_more"]:
            break
        query["cursor"] = page.data["next_cursor"]
    assert found == ALL
    assert budgeted.balances(agent="bot", cursor=query["cursor"]).error == "INVALID_REQUEST"
    assert budgeted.balances(tenant="acme", cursor="x").error == "INVALID_REQUEST"
    assert budgeted.balances(tenant="acme", limit="201").error == "INVALID_REQUEST"
    listed = budgeted.call("list_reservations", query={"cursor": query["cursor"]})
    assert listed.error == "INVALID_REQUEST"


def test_get(filled):
    """One reservation with all that is known of it; 410 once expired."""
    detail = filled.get(filled.ids["b"]).data
    (row,) = filled.list(status="COMMITTED", include="metadata,committed_metadata").data["reservations"]
    assert detail == row
    assert detail["committed_metadata"] == {"done": True}
    expired = filled.get(filled.ids["d"])
    assert (expired.status, expired.error) == (410, "RESERVATION_EXPIRED")
    assert filled.get(filled.ids["b"], caller=Caller("other")).error == "FORBIDDEN"
