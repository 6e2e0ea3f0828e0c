"""ISO 8601 date-times by hand."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, strategies as st

from cycles_lite.local import instants

SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01z", SECOND),
        ("1970-01-01T00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("1970-01-01T05:30:00+0530", 0),
        ("1970-01-01T02:00:00+02", 0),
        ("1970-01-01T00:00:00.5Z", SECOND // 2),
        ("1970-01-01T00:00:00,123456789Z", 123456789),
        ("1969-12-31T23:59:59.999Z", -(10**6)),
        ("2024-02-29T12:00:00Z", 1709208000 * SECOND),
        ("0001-01-01T00:00:00Z", -62135596800 * SECOND),
        ("9999-12-31T23:59:59Z", 253402300799 * SECOND),
    ],
)
def test_read(text, nanos):
    """Offsets, fractions and the ends of time."""
    assert instants.nanoseconds(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-05-21",
        "2026-05-21T10:00:00",
        "2026-05-21 10:00:00Z",
        "2026-05-21T10:00:00 02:00",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+01:60",
        "2026-01-01T00:00:00.Z",
        "0000-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
        "1700000000000",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
)
def test_refused(text):
    """What is no date-time with an offset is None, never an exception."""
    assert instants.nanoseconds(text) is None


@given(st.datetimes(), st.integers(min_value=-23 * 60, max_value=23 * 60))
def test_agrees_with_datetime(moment, minutes):
    """Every moment that `datetime` can say reads the same here."""
    aware = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(minutes=minutes)))
    since = aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    micros = (since.days * 86400 + since.seconds) * 10**6 + since.microseconds
    assert instants.nanoseconds(aware.isoformat()) == micros * 1000


def test_bounds_are_inclusive():
    """A bound between two milliseconds excludes the one on the far side."""
    assert (instants.first_ms(1_500_001), instants.last_ms(1_500_001)) == (2, 1)
    assert (instants.first_ms(2_000_000), instants.last_ms(2_000_000)) == (2, 2)
    assert (instants.first_ms(-1), instants.last_ms(-1)) == (0, -1)
