"""The tables of a budget file, and how a file of an earlier version becomes one of this.

SQLite 3.8 is enough. Amounts are int64 and are only ever computed in Python: SQL arithmetic past 2^63 turns into
floats without a word. Times are milliseconds since 1970. JSON is compact text.
"""

from __future__ import annotations

import sqlite3

#: "cycL": how a budget file is told from other SQLite databases.
APPLICATION_ID = 0x6379634C

#: The version of the tables below. A file with a higher one was written by a newer cycles_lite and is not touched.
VERSION = 2

#: The table of the reservations. Every transaction asks it for due holds. So a new name in a new version stops the
#: processes of earlier versions that have the file open, with an error and before they write anything: they do not know
#: what the tables have come to mean.
RESERVATIONS = "reservations_v2"

# Lists are read in the order of one of these, or find few rows by one of them, see `listing`. Rows are made in the
# order of time, so that an index on times grows at its end. Where many rows are equal, the id orders them.
# `reservations_done` is for pruning.
_NEW_INDEXES = (
    f"CREATE INDEX reservations_by_creation ON {RESERVATIONS} (tenant, created_at_ms)",
    f"CREATE INDEX reservations_by_expiry ON {RESERVATIONS} (tenant, expires_at_ms)",
    f"CREATE INDEX reservations_by_amount ON {RESERVATIONS} (tenant, reserved, id)",
    f"CREATE INDEX reservations_by_path ON {RESERVATIONS} (tenant, scope_path, id)",
    *[
        f"CREATE INDEX reservations_{status} ON {RESERVATIONS} (tenant, created_at_ms) WHERE status = '{status}'"
        for status in ("COMMITTED", "RELEASED", "EXPIRED")
    ],
    f"CREATE INDEX reservations_done ON {RESERVATIONS} (forget_at_ms) WHERE forget_at_ms IS NOT NULL",
)

# The idempotency records of reserving, which are dropped long before their reservations. `payload` is the SHA-256 of
# the canonical request after `defaults`, which is the JSON of what the request left to the tenant's settings. The rows
# are in the order in which they are dropped, and are found by what the reservation's row tells.
_PROMISES = """
    CREATE TABLE promises (
        until_ms INTEGER NOT NULL, number INTEGER NOT NULL,
        payload BLOB NOT NULL, defaults TEXT NOT NULL, answer BLOB NOT NULL,
        PRIMARY KEY (until_ms, number)
    ) WITHOUT ROWID
    """

# What budgets with a period have besides the others, see `rules.Budget`. `anchor` is a date-time as text.
_PERIOD_COLUMNS = (
    "period TEXT",
    "period_start_ms INTEGER",
    "period_end_ms INTEGER",
    "rollover_policy TEXT NOT NULL DEFAULT 'NONE'",
    "anchor TEXT",
    "granted INTEGER",
)

# The periods that have ended. No two of a budget end at the same time, and the last ones may be of a clock that was
# ahead. The index is whole, because SQLite 3.8 finds a partial one only for the last table of a compound statement, and
# each transaction asks for holds and periods in one.
_PERIODS = (
    "CREATE INDEX budgets_by_end ON budgets (period_end_ms)",
    """
    CREATE TABLE periods (
        scope TEXT NOT NULL, unit TEXT NOT NULL,
        start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL,
        allocated INTEGER NOT NULL, spent INTEGER NOT NULL, debt INTEGER NOT NULL,
        PRIMARY KEY (scope, unit, end_ms)
    ) WITHOUT ROWID
    """,
)

# When something was last done, by whichever process.
_UPKEEP = "CREATE TABLE upkeep (what TEXT NOT NULL PRIMARY KEY, done_at_ms INTEGER NOT NULL) WITHOUT ROWID"

#: `NULL` settings of a tenant are the protocol's fallbacks. Of an API key's secret only its SHA-256 is kept.
TABLES = (
    f"""
    CREATE TABLE budgets (
        scope TEXT NOT NULL, unit TEXT NOT NULL,
        allocated INTEGER NOT NULL, spent INTEGER NOT NULL, reserved INTEGER NOT NULL, debt INTEGER NOT NULL,
        overdraft_limit INTEGER NOT NULL, is_over_limit INTEGER NOT NULL,
        status TEXT NOT NULL,
        caps TEXT,
        {", ".join(_PERIOD_COLUMNS)},
        PRIMARY KEY (scope, unit)
    ) WITHOUT ROWID
    """,
    *_PERIODS,
    # `number` is the order in which rows were added. `held` has the scopes that were budgeted at reserve, the only ones
    # that the reservation's end touches. `deadline_ms` is the expiry plus grace, when the hold is freed, and
    # `forget_at_ms` is when a finished reservation is pruned. `request` is what lists show of the request, as JSON.
    # `defaults` and `answer` are empty but in rows that version 1 has made, see `promises`.
    f"""
    CREATE TABLE {RESERVATIONS} (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL, idempotency_key TEXT NOT NULL,
        status TEXT NOT NULL,
        unit TEXT NOT NULL, reserved INTEGER NOT NULL, committed INTEGER,
        overage_policy TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
        finalized_at_ms INTEGER, forget_at_ms INTEGER,
        extensions INTEGER NOT NULL,
        scope_path TEXT NOT NULL, held TEXT NOT NULL,
        request TEXT NOT NULL, defaults TEXT NOT NULL, answer BLOB NOT NULL, reply_until_ms INTEGER NOT NULL
    )
    """,
    f"CREATE INDEX reservations_due ON {RESERVATIONS} (deadline_ms) WHERE status = 'ACTIVE'",
    f"CREATE INDEX reservations_by_key ON {RESERVATIONS} (tenant, idempotency_key)",
    *_NEW_INDEXES,
    _PROMISES,
    _UPKEEP,
    # How a reservation was committed or released, under its `number`. Rows that grow would cost more than added ones.
    # `answer` is what the answer is made of, see `replies`; version 1 stored it whole.
    """
    CREATE TABLE settlements (
        number INTEGER PRIMARY KEY,
        idempotency_key TEXT NOT NULL, payload BLOB NOT NULL, answer BLOB NOT NULL,
        metadata TEXT
    )
    """,
    # The idempotency records of what leaves no row of its own: dry runs, decisions, events and extensions.
    # `payload`, here and above, is the SHA-256 of the canonical request after `defaults`.
    """
    CREATE TABLE replies (
        tenant TEXT NOT NULL, operation TEXT NOT NULL, target TEXT NOT NULL, idempotency_key TEXT NOT NULL,
        payload BLOB NOT NULL, defaults TEXT NOT NULL, answer BLOB NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant, operation, target, idempotency_key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX replies_done ON replies (expires_at_ms)",
    """
    CREATE TABLE tenants (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL, status TEXT NOT NULL, created_at_ms INTEGER NOT NULL,
        default_ttl_ms INTEGER, max_ttl_ms INTEGER, default_overage_policy TEXT, max_extensions INTEGER
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE api_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        secret_sha256 BLOB NOT NULL UNIQUE, key_prefix TEXT NOT NULL,
        tenant TEXT NOT NULL, name TEXT, permissions TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER, revoked_at_ms INTEGER
    )
    """,
)


#: How a file of each earlier version becomes one of the next. What these statements make is in `TABLES`, too.
STEPS = {
    1: (
        f"ALTER TABLE reservations RENAME TO {RESERVATIONS}",
        "DROP INDEX reservations_listed",
        *_NEW_INDEXES,
        _PROMISES,
        _UPKEEP,
        *[f"ALTER TABLE budgets ADD COLUMN {column}" for column in _PERIOD_COLUMNS],
        *_PERIODS,
    ),
}


def create(db: sqlite3.Connection) -> None:
    """Write the tables into an empty database, in the caller's transaction."""
    list(map(db.execute, TABLES))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def upgrade(db: sqlite3.Connection) -> None:
    """Make a database of an earlier version one of this, in the caller's transaction, which has the lock to write."""
    for version in range(identity(db)[1], VERSION):
        list(map(db.execute, STEPS[version]))
        db.execute(f"PRAGMA user_version = {version + 1}")


def identity(db: sqlite3.Connection) -> tuple[int, int]:
    """The application id and the schema version that a database says it has."""
    application_id = db.execute("PRAGMA application_id").fetchone()[0]
    return application_id & 0xFFFFFFFF, db.execute("PRAGMA user_version").fetchone()[0]
