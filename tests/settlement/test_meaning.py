"""What an answer to a settlement means: the table, row by row."""

from __future__ import annotations

import pytest

from cycles_lite import CyclesConfig, errors
from cycles_lite.settlement.journal import COMMIT, EVENT, Record
from cycles_lite.settlement.meaning import (
    LONGEST_WAIT,
    SLOW_RETRY,
    Meaning,
    is_too_old,
    meaning_of,
    retry_in,
)

BOTH = (COMMIT, EVENT)


def api(status, code=None):
    kind = errors.error_class(status, code, reserves=False, settles=True)
    return kind("no", status=status, code=code)


ROWS = [
    (BOTH, errors.TransportError("x"), Meaning.UNKNOWN),
    (BOTH, errors.TransportTimeout("x"), Meaning.UNKNOWN),
    (BOTH, errors.ResponseError("x", status=200), Meaning.UNKNOWN),
    (BOTH, errors.ResponseError("x", status=202), Meaning.UNKNOWN),
    (BOTH, api(500, "INTERNAL_ERROR"), Meaning.UNKNOWN),
    (BOTH, api(502), Meaning.UNKNOWN),
    (BOTH, api(503, "BUDGET_EXCEEDED"), Meaning.UNKNOWN),
    (BOTH, api(409, "INTERNAL_ERROR"), Meaning.UNKNOWN),
    (BOTH, api(400, "LIMIT_EXCEEDED"), Meaning.UNKNOWN),
    ((COMMIT,), api(410), Meaning.EXPIRED),
    ((COMMIT,), api(410, "RESERVATION_EXPIRED"), Meaning.EXPIRED),
    ((COMMIT,), api(409, "RESERVATION_EXPIRED"), Meaning.EXPIRED),
    ((EVENT,), api(410, "RESERVATION_EXPIRED"), Meaning.HELD),
    (BOTH, api(429), Meaning.WAIT),
    (BOTH, api(429, "LIMIT_EXCEEDED"), Meaning.WAIT),
    (BOTH, api(401, "UNAUTHORIZED"), Meaning.HELD),
    (BOTH, api(401, "INVALID_REQUEST"), Meaning.HELD),
    (BOTH, api(403, "FORBIDDEN"), Meaning.HELD),
    (BOTH, api(404), Meaning.HELD),
    (BOTH, api(409, "SOMETHING_NEWER"), Meaning.HELD),
    (BOTH, api(418), Meaning.HELD),
    ((EVENT,), api(409, "BUDGET_FROZEN"), Meaning.HELD),
    ((COMMIT,), api(409, "BUDGET_FROZEN"), Meaning.REJECTED),
    ((COMMIT,), api(409, "RESERVATION_FINALIZED"), Meaning.REJECTED),
    (BOTH, errors.ConfigError("x"), Meaning.HELD),
    (BOTH, errors.ValidationError("x"), Meaning.HELD),
]
ROWS += [
    (BOTH, api(status, code), Meaning.REJECTED)
    for status, code in (
        (400, "INVALID_REQUEST"),
        (404, "NOT_FOUND"),
        (400, "UNIT_MISMATCH"),
        (409, "IDEMPOTENCY_MISMATCH"),
        (409, "TENANT_CLOSED"),
        (409, "BUDGET_EXCEEDED"),
        (409, "OVERDRAFT_LIMIT_EXCEEDED"),
        (409, "DEBT_OUTSTANDING"),
        (409, "BUDGET_CLOSED"),
    )
]


@pytest.mark.parametrize(("modes", "error", "meaning"), ROWS, ids=lambda value: str(value)[:60])
def test_meaning(modes, error, meaning):
    for mode in modes:
        assert meaning_of(mode, error) is meaning


CONFIG = CyclesConfig(base_url="sqlite:x", retry_initial_delay=0.5, retry_multiplier=2.0, retry_max_delay=3.0)


@pytest.mark.parametrize(
    ("meaning", "attempt", "retry_after", "delay"),
    [
        (Meaning.UNKNOWN, 1, None, 0.5),
        (Meaning.UNKNOWN, 2, None, 1.0),
        (Meaning.UNKNOWN, 4, None, 3.0),
        (Meaning.UNKNOWN, 5, None, SLOW_RETRY),
        (Meaning.UNKNOWN, 500, None, SLOW_RETRY),
        (Meaning.HELD, 1, None, SLOW_RETRY),
        (Meaning.WAIT, 1, 7.0, 7.0),
        (Meaning.WAIT, 1, 0.0, 0.0),
        (Meaning.WAIT, 1, 10**9, LONGEST_WAIT),
        (Meaning.WAIT, 2, None, 1.0),
    ],
)
def test_when_the_next_attempt_is_due(meaning, attempt, retry_after, delay):
    """Growing delays, then every ten minutes; a server's wait is kept to, up to an hour."""
    assert retry_in(CONFIG, meaning, attempt, retry_after) == delay


def test_without_retries_the_next_attempt_is_slow():
    assert retry_in(CONFIG.replace(retry_enabled=False), Meaning.UNKNOWN, 1, None) == SLOW_RETRY


NOW = 1_800_000_000_000
DAY = 86_400_000


@pytest.mark.parametrize(("mode", "days"), [(COMMIT, 30), (EVENT, 7)])
def test_a_record_whose_key_may_be_forgotten_is_too_old(mode, days):
    record = Record("r", "http://x", mode, {}, {}, recorded_at_ms=NOW)
    assert not is_too_old(record, NOW + days * DAY)
    assert is_too_old(record, NOW + days * DAY + 1)


@pytest.mark.parametrize("mode", BOTH)
def test_an_age_by_a_clock_that_was_not_set_is_none(mode):
    """A machine that starts in 1970 and learns the time later has no old spend; nor has one that forgets the time."""
    of_1970 = Record("r", "http://x", mode, {}, {}, recorded_at_ms=5000)
    assert not is_too_old(of_1970, NOW)
    assert not is_too_old(of_1970._replace(recorded_at_ms=NOW), 5000)
