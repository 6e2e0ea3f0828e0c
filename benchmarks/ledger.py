"""What the ledger's file costs beside bare SQLite: the same statements, long lists, and bytes."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
import time
from typing import Any, Callable, Iterator

from cycles_lite import Amount, CommitRequest, CyclesClient
from cycles_lite.local import Authority, connections, replies, rows, schema
from cycles_lite.local.files import _CHECKPOINT_PAGES
from cycles_lite.local.rows import Reservation
from cycles_lite.protocol import wire

from . import work
from .report import Row, Target
from .timing import calls_beside, cpu, wall

SCOPES = ("tenant:acme", "tenant:acme/agent:bot")


def new_authority(folder: str, name: str = "budgets", clock: Any = None) -> Authority:
    """Two budgets in a new file, for the subject that all the work here names."""
    options = {} if clock is None else {"clock": clock}
    authority = Authority(f"sqlite:///{folder}/{name}.db", create=True, **options)
    for scope in SCOPES:
        authority.set_budget(scope, Amount.tokens(10**12))
    return authority


# ---- The same statements ----


class _Recorder:
    """A connection that notes each statement that runs on it, with its values."""

    def __init__(self, db: sqlite3.Connection, noted: list[Any]) -> None:
        self._db = db
        self.noted = noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        self.noted.append((False, statement, tuple(values)))
        return self._db.execute(statement, values)

    def executemany(self, statement: str, values: Any) -> sqlite3.Cursor:
        given = list(map(tuple, values))
        self.noted.append((True, statement, given))
        return self._db.executemany(statement, given)


def _recorded(pair: Callable[[], Any]) -> list[Any]:
    """The statements of one pair, on connections that have compiled them before."""
    pair()
    pair()
    noted: list[Any] = []
    in_use = [(connection, connection.db) for connection in connections.open_connections()]
    for connection, db in in_use:
        recorder: Any = _Recorder(db, noted)
        connection.db = recorder
    try:
        pair()
    finally:
        for connection, db in in_use:
            connection.db = db
    return noted


class SameStatements:
    """The statements that a pair has run, with other ids, keys and times each time, and nothing else.

    The values are made beforehand. The file has the same tables and settings.
    """

    def __init__(self, folder: str, authority: Authority, pair: Callable[[], Any], count: int) -> None:
        noted = _recorded(pair)
        self.count = len(noted)
        self.db = sqlite3.connect(os.path.join(folder, "bare.db"), isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"wal_autocheckpoint={_CHECKPOINT_PAGES}"):
            self.db.execute("PRAGMA " + pragma)
        schema.create(self.db)
        for scope in SCOPES:
            rows.save_budget(self.db, next(one for one in authority.budgets() if one.scope == scope))
        self.db.execute("INSERT OR REPLACE INTO upkeep VALUES ('prune', ?)", (int(time.time() * 1000),))
        self._pairs = iter([list(one) for one in self._fresh(noted, count)])

    def _fresh(self, noted: list[Any], count: int) -> Iterator[list[Any]]:
        inserted = next(values for _, statement, values in noted if statement.startswith("INSERT INTO reserv"))
        names = {value for value in inserted if isinstance(value, str) and len(value) in (32, 36)}
        settled = next(values for _, statement, values in noted if statement.startswith("INSERT INTO settlements"))
        names.add(settled[1])
        for number in range(1, count + 1):
            fresh: dict[Any, Any] = {name: name[:-32] + os.urandom(16).hex() for name in names}
            fresh[settled[0]] = number

            def changed(value: Any, number: int = number, fresh: Any = fresh) -> Any:
                if type(value) is int and value > 10**12:
                    return value + number if value < 10**13 else value
                return fresh.get(value, value) if type(value) in (str, int) else value

            yield [
                (many, statement, [tuple(map(changed, row)) for row in values] if many else tuple(map(changed, values)))
                for many, statement, values in noted
            ]

    def work(self) -> None:
        execute, executemany = self.db.execute, self.db.executemany
        for many, statement, values in next(self._pairs):
            if many:
                executemany(statement, values)
            else:
                execute(statement, values).fetchall()

    def demand_same_work(self) -> None:
        """Fail where the statements did not write what they should."""
        found = self.db.execute(f"SELECT status, count(*) FROM {schema.RESERVATIONS} GROUP BY status").fetchall()
        settlements = self.db.execute("SELECT count(*) FROM settlements").fetchone()[0]
        assert found == [("COMMITTED", settlements)], found
        assert settlements > 0


def same_statements(quick: bool) -> list[Row]:
    """Reserve and commit in this process, beside the very statements that they run."""
    rounds, calls = (2, 20) if quick else (31, 200)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, clock in (("wall", wall), ("CPU", cpu)):
            place = os.path.join(folder, name)
            os.mkdir(place)
            with new_authority(place) as authority, CyclesClient(work.config(authority.url)) as client:
                pair = work.plain(client)
                bare = SameStatements(place, authority, pair, rounds * calls + max(1, calls // 10))
                try:
                    ours, peer = calls_beside(pair, bare.work, rounds, calls, clock)
                    bare.demand_same_work()
                finally:
                    bare.db.close()
            how = f"{name} a pair, in process, two budgeted scopes; medians of {rounds} rounds of {calls}, alternating"
            beside = f"its {bare.count} statements, bare"
            found.append(Row(f"SQLite: reserve + commit, {name}", ours, "us", peer, beside, Target(2.2), how))
    return found


# ---- Long lists ----

_DAY = 24 * 3600 * 1000

LISTS = {
    "status=ACTIVE": {"status": "ACTIVE"},
    "by tenant": {"tenant": "acme"},
    "by an agent that few have": {"agent": "rare"},
    "sorted by reserved": {"sort_by": "reserved"},
    "second page by cursor": {"sort_by": "reserved", "cursor": ""},
}


def _fill(authority: Authority, count: int) -> None:
    """Past reservations of one tenant, of ten agents, and a hundred that are live."""
    for start in range(0, count, 1000):
        _fill_some(authority, range(start, min(start + 1000, count)), count)


def _fill_some(authority: Authority, numbers: range, count: int) -> None:
    with authority._ledger.writing() as (db, now):
        for number in numbers:
            agent = "rare" if number % (count // 10) == 5 else f"bot-{number % 10}"
            created = now - _DAY + number
            made = Reservation(
                id="rsv_" + os.urandom(16).hex(),
                tenant="acme",
                idempotency_key=os.urandom(16).hex(),
                unit="TOKENS",
                reserved=1 + number * 7919 % 1000,
                overage_policy="REJECT",
                created_at_ms=created,
                expires_at_ms=created + 60_000,
                deadline_ms=now + 10**9,
                scope_path=f"tenant:acme/agent:{agent}",
                held="tenant:acme",
                request='{"action":{"kind":"k","name":"n"},"subject":{"agent":"%s","tenant":"acme"}}' % agent,  # noqa: UP031
                reply_until_ms=now,
            )
            made = made._replace(number=rows.add(db, made))
            if number % (count // 100):
                replies.finish(db, now, made, {"idempotency_key": "k"}, "COMMITTED", 1, None, ())


def lists(quick: bool) -> list[Row]:
    """Pages of lists over many reservations, beside the same over few."""
    many, few = (2000, 200) if quick else (100_000, 1000)
    rounds, calls = (2, 5) if quick else (11, 20)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        with new_authority(folder, "many") as large, new_authority(folder, "few") as small:
            _fill(large, many)
            _fill(small, few)
            for name, query in LISTS.items():
                ours, peer = calls_beside(_page(large, query), _page(small, query), rounds, calls)
                how = f"CPU a page of 50; medians of {rounds} rounds of {calls}, alternating"
                what = f"list, {name}: {many:,} reservations"
                found.append(Row(what, ours, "us", peer, f"{few:,} reservations", Target(3.0), how))
    return found


def _page(authority: Authority, query: dict[str, str]) -> Callable[[], Any]:
    def page(query: dict[str, str]) -> Any:
        return _answer(authority, wire.LIST_RESERVATIONS, None, query=query)

    if "cursor" in query:
        first = {name: value for name, value in query.items() if name != "cursor"}
        query = {**query, "cursor": page(first)["next_cursor"]}
    return lambda: page(query)


# ---- Bytes ----


def room(quick: bool) -> list[Row]:
    """How much of the file a committed reservation takes."""
    count = 200 if quick else 10_000
    moved = itertools.count()
    ahead = [0]

    def clock() -> int:
        return 1_800_000_000_000 + ahead[0] + next(moved)

    with tempfile.TemporaryDirectory() as folder, new_authority(folder, clock=clock) as authority:
        for _ in range(count):
            _pair(authority)
        first = _used(authority) / count
        ahead[0] = 2 * _DAY
        for _ in range(count // 100 + 2):  # each of these writes prunes
            authority.fund(SCOPES[0], Amount.tokens(1))
        later = _used(authority) / count
    how = f"pages in use / reservations, {count:,} of them, with every index, two budgeted scopes"
    return [
        Row("bytes of a committed reservation", first, "B", None, "", None, how),
        Row("bytes of it after a day, for 29 more", later, "B", None, "", None, how),
    ]


def _pair(authority: Authority) -> None:
    """The requests of `work.plain`, on the authority's own clock."""
    subject = {"tenant": "acme", "agent": "bot"}
    created = _answer(authority, wire.CREATE_RESERVATION, {**work.request().to_json(), "subject": subject})
    paid = CommitRequest(actual=Amount.tokens(742)).to_json()
    _answer(authority, wire.COMMIT_RESERVATION, paid, created["reservation_id"])


def _answer(
    authority: Authority, operation: wire.Operation, data: Any, id: str | None = None, query: Any = None
) -> Any:
    answer = authority.answer(wire.Call(operation, id, query or {}, data, {}, None, 2.0, 5.0))
    assert answer.status == 200, answer.data
    return answer.data


def _used(authority: Authority) -> int:
    with authority._ledger.reading() as (db, _):
        pages, free, size = [
            db.execute("PRAGMA " + name).fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        ]
    return int((pages - free) * size)
