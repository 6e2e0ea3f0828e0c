"""How lists are found: the same rows as by looking at each, without looking at each."""

from __future__ import annotations

import itertools
import random

import pytest

from cycles_lite.local import listing, reads, rows
from cycles_lite.local.rows import Reservation
from cycles_lite.local.rules import Budget
from cycles_lite.local.schema import RESERVATIONS

from .helpers import OWNER, START, Bench

STATUSES = ["ACTIVE", "COMMITTED", "EXPIRED", "RELEASED"]
PATHS = ["", "/agent:a", "/agent:b", "/workspace:w", "/workspace:w/agent:a", "/workspace:w2/agent:a"]


def fill(bench, count, seed, tenants=("acme", "beta", "gamma"), weights=(2, 5, 2, 2), amounts=5):
    """Rows of many kinds, with many ties, straight into the table. Returns them as `Reservation`s."""
    dice = random.Random(seed)
    made = []
    for number in range(1, count + 1):
        status = dice.choices(STATUSES, weights)[0]
        tenant = dice.choice(tenants)
        created = START - dice.randrange(20) * 1000
        ended = None if status in ("ACTIVE", "EXPIRED") else created + dice.randrange(5) * 500
        expires = START + dice.randrange(8) * 1000
        forget = None if status == "ACTIVE" else START + dice.choice([-1, 10**9, 10**9])
        path = f"tenant:{tenant}" + dice.choice(PATHS)
        made.append(
            Reservation(
                id=f"rsv_{dice.getrandbits(32):08x}{number:06x}",
                tenant=tenant,
                idempotency_key=f"k{dice.randrange(count // 4 + 1)}",
                unit="TOKENS",
                reserved=dice.randrange(amounts),
                overage_policy="REJECT",
                created_at_ms=created,
                expires_at_ms=expires,
                deadline_ms=expires,
                scope_path=path,
                held=f"tenant:{tenant}",
                request='{"action":{"kind":"k","name":"n"},"subject":{"tenant":"%s"}}' % tenant,  # noqa: UP031
                reply_until_ms=0,
                status=status,
                committed=1 if status == "COMMITTED" else None,
                finalized_at_ms=ended,
                forget_at_ms=forget,
                number=number,
            )
        )
    columns = ", ".join(Reservation._fields)
    add = "INSERT INTO {} ({}, defaults, answer) VALUES ({}, '', x'')".format(
        RESERVATIONS, columns, ",".join("?" * len(Reservation._fields))
    )
    with bench.authority._ledger.writing() as (db, _):
        db.executemany(add, made)
    return made


def row_is(row, column, sign, value):
    return getattr(row, column) >= value if sign == ">=" else getattr(row, column) <= value


def expected(made, owner, query):
    """The ids that a list must have, by looking at each row."""
    asked = reads.list_filters(query)
    found = [
        row
        for row in made
        if (row.forget_at_ms is None or row.forget_at_ms >= START)
        and owner in (None, row.tenant)
        and asked.status in (None, row.status)
        and asked.idempotency_key in (None, row.idempotency_key)
        and all(f"/{segment}/" in f"/{row.scope_path}/" for segment in asked.segments)
        and all(
            getattr(row, column) is not None and row_is(row, column, sign, value)
            for column, sign, value in asked.bounds
        )
    ]
    column = reads.SORTS[asked.sort_by or "created_at_ms"][0]
    found.sort(key=lambda row: row.id)
    found.sort(key=lambda row: getattr(row, column), reverse=asked.sort_dir != "asc")
    return [row.id for row in found]


FILTERS = [
    {},
    *[{"status": status} for status in STATUSES],
    {"agent": "a"},
    {"workspace": "w", "agent": "a"},
    {"agent": "nobody"},
    {"agent": "a/b"},
    {"idempotency_key": "k3"},
    {"from": "2023-11-14T22:13:05Z", "to": "2023-11-14T22:13:12Z"},
    {"expires_from": "2023-11-14T22:13:22Z", "expires_to": "2023-11-14T22:13:25Z"},
    {"finalized_to": "2023-11-14T22:13:08Z"},
    {"status": "RELEASED", "agent": "a", "from": "2023-11-14T22:13:05Z"},
    {"status": "ACTIVE", "expires_to": "2023-11-14T22:13:22Z"},
]


@pytest.mark.parametrize("few", [0, 7, 2000])
@pytest.mark.parametrize("sort_by", list(reads.SORTS))
def test_every_page_of_every_list(sort_by, few, monkeypatch):
    """Whatever is asked and however it is found: each row once and in its order; of one tenant and of all."""
    monkeypatch.setattr(listing, "FEW", few)
    with Bench(validates=False) as bench:
        made = fill(bench, 150, seed=sort_by)
        for sort_dir, filters, owner in itertools.product(["asc", "desc"], FILTERS, ["acme", None]):
            query = {**filters, "sort_by": sort_by, "sort_dir": sort_dir}
            assert pages(bench, query, owner) == expected(made, owner, query), (query, owner)


@pytest.mark.parametrize("most", [1, 4])
def test_more_paths_than_are_looked_through(most, monkeypatch):
    """A tenant with too many scopes is walked over instead."""
    monkeypatch.setattr(listing, "MOST_PATHS", most)
    monkeypatch.setattr(listing, "_PATHS_AT_ONCE", 1)
    with Bench(validates=False) as bench:
        made = fill(bench, 150, seed=most)
        for query in ({"agent": "a"}, {"agent": "nobody"}, {"agent": "a/b"}, {"workspace": "w", "sort_by": "reserved"}):
            assert pages(bench, query, "acme") == expected(made, "acme", query)


def pages(bench, query, owner, limit=13):
    found, asked = [], {**query, "limit": str(limit)}
    query = {"tenant": owner, **asked} if owner else asked
    while True:
        answer = bench.call("list_reservations", query=query, caller=OWNER)
        assert answer.status == 200, answer
        found += [row["reservation_id"] for row in answer.data["reservations"]]
        if not answer.data["has_more"]:
            return found
        query = {**query, "cursor": answer.data["next_cursor"]}


class Explained:
    """A connection that tells how SQLite goes about each statement."""

    def __init__(self, db):
        self._db, self.plans = db, []

    def __getattr__(self, name):
        return getattr(self._db, name)

    def execute(self, statement, values=()):
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
            rows = self._db.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()
            self.plans += [(row[-1], statement) for row in rows]
        return self._db.execute(statement, values)

    def executemany(self, statement, values):
        for row in values:
            self.execute(statement, row)


LONG_LISTS = [
    *[{"status": status} for status in STATUSES],
    *[{"sort_by": sort_by, "sort_dir": sort_dir} for sort_by in reads.SORTS for sort_dir in ("asc", "desc")],
    *[{"status": "EXPIRED", "sort_by": sort_by} for sort_by in reads.SORTS],
    {"agent": "a"},
    {"agent": "nobody"},
    {"idempotency_key": "k1"},
    {"from": "2023-11-14T22:13:05Z", "to": "2023-11-14T22:13:06Z", "sort_by": "reserved"},
    {"expires_from": "2023-11-14T22:13:27Z"},
]


@pytest.fixture(scope="module")
def long():
    """Six thousand rows of one tenant, hardly any of them expired or live."""
    with Bench(validates=False) as bench:
        bench.made = fill(bench, 6000, seed=1, tenants=["acme"], weights=(1, 500, 1, 498), amounts=3)
        yield bench


@pytest.mark.parametrize("owner", ["acme", None])
@pytest.mark.parametrize("query", LONG_LISTS, ids=str)
def test_no_list_looks_at_every_row(long, query, owner, monkeypatch):
    """No plan has a scan, and neither the first page nor the second takes the instructions that one would need."""
    monkeypatch.setattr(listing, "FEW", 60)
    asked = reads.list_filters({**query, "limit": "5"})
    with long.authority._ledger.reading() as (db, now):
        looked = Explained(db)
        page = reads.list_reservations(looked, now, asked, owner)
        scans = [plan for plan in looked.plans if plan[0].startswith("SCAN") and RESERVATIONS in plan[0]]
        assert not scans
        assert [row["reservation_id"] for row in page["reservations"]] == expected(long.made, owner, query)[:5]
        for filters in [asked] + [asked._replace(cursor=page.get("next_cursor"))] * page["has_more"]:
            assert steps(db, lambda filters=filters: reads.list_reservations(db, now, filters, owner)) < 12_000
        scan = f"SELECT count(*) FROM {RESERVATIONS} WHERE instr(scope_path, 'nobody') > 0"
        assert steps(db, lambda: db.execute(scan).fetchall()) > 20_000


def steps(db, work):
    """About how many instructions SQLite runs."""
    count = [0]

    def step():
        count[0] += 50

    db.set_progress_handler(step, 50)
    try:
        work()
    finally:
        db.set_progress_handler(None, 0)
    return count[0]


def test_no_operation_looks_at_every_row():
    """Nor does freeing holds or pruning: each statement of theirs goes by an index."""
    with Bench() as bench:
        bench.budget()
        connection = bench.authority._ledger.pool()._only
        connection.db = looked = Explained(connection.db)
        for _ in range(2):
            made = bench.reserve(1, idempotency_key="k", ttl_ms=1000)
            bench.extend(made.id, idempotency_key="e")
            bench.commit(made.id, 1, idempotency_key="c")
            bench.release(bench.reserve(1).id)
            bench.event(1, idempotency_key="v")
            bench.decide(1, idempotency_key="d")
            bench.get(made.id)
            bench.reserve(1, ttl_ms=1000)
        for days in (1, 400, 1):
            bench.clock.now += days * 24 * 3600 * 1000
            bench.decide(1)
        assert [plan for plan in looked.plans if plan[0].startswith("SCAN")] == []
        used = {" ".join(statement.split()[:3]) for _, statement in looked.plans}
        assert {f"UPDATE {RESERVATIONS} SET", f"DELETE FROM {RESERVATIONS}", "DELETE FROM promises"} <= used


BALANCES = [
    ({"tenant": "acme"}, "acme"),
    ({"tenant": "acme", "workspace": "w1"}, "acme"),
    ({"tenant": "acme", "workspace": "w1", "agent": "a"}, None),
]


@pytest.mark.parametrize(("query", "owner"), BALANCES)
def test_no_page_of_balances_looks_at_every_budget(query, owner):
    """Among thousands of budgets, those of a tenant or of a workspace are found where they are."""
    with Bench() as bench:
        names = [f"tenant:{tenant}" for tenant in ("acme", "acme-2", "beta")]
        names += [f"{name}/workspace:w{number}" for name in names for number in range(1500)]
        names += ["tenant:acme/workspace:w1/agent:a", "tenant:acme/workspace:w1/app:x/agent:a"]
        with bench.authority._ledger.writing() as (db, _):
            for name in names:
                rows.save_budget(db, Budget(name, "TOKENS", 1))
        asked = reads.balance_filters({**query, "limit": "2"})
        segments = {f"{level}:{value}" for level, value in query.items()}
        wanted = sorted(name for name in names if segments <= set(name.split("/")))
        found = []
        with bench.authority._ledger.reading() as (db, now):
            for _ in range(4):
                page = reads.get_balances(db, now, asked, owner)
                assert steps(db, lambda asked=asked: reads.get_balances(db, now, asked, owner)) < 2000
                found += [one["scope_path"] for one in page["balances"]]
                if not page["has_more"]:
                    assert found == wanted
                    return
                asked = asked._replace(cursor=page["next_cursor"])
        assert found == wanted[:8]
