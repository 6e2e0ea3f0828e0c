"""Points in time as the protocol's queries write them: ISO 8601 date-times with an offset. Pure.

Python 3.7 reads no `Z` and no odd number of fraction digits, so this is done by hand, in whole nanoseconds.
"""

from __future__ import annotations

import datetime
import re

_FORM = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]"
    r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?"
    r"(?:[Zz]|([+-])([0-9]{2})(?::?([0-9]{2}))?)\Z"
)
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_NANOS = 10**9
_NANOS_PER_MS = 10**6


def nanoseconds(text: str) -> int | None:
    """Nanoseconds since 1970 for a date-time with an offset or `Z`; None for anything else.

    >>> nanoseconds("1970-01-01T01:00:00.5+01:00")
    500000000
    """
    found = with_offset(text)
    return None if found is None else found[0]


def with_offset(text: str) -> tuple[int, int] | None:
    """As `nanoseconds`, and the offset in minutes east of UTC.

    >>> with_offset("1970-01-01T01:00-01:00")
    (7200000000000, -60)
    """
    match = _FORM.match(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    clock = (int(hour), int(minute), int(second or 0))
    offset = (int(off_hour or 0), int(off_minute or 0))
    if clock > (23, 59, 59) or max(clock[1:]) > 59 or offset > (23, 59) or offset[1] > 59:
        return None
    try:
        days = datetime.date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
    east = offset[0] * 60 + offset[1]
    east = -east if sign == "-" else east
    seconds = days * 86400 + clock[0] * 3600 + clock[1] * 60 + clock[2] - east * 60
    return seconds * _NANOS + int((fraction or "").ljust(9, "0")), east


def first_ms(nanos: int) -> int:
    """The first whole millisecond at or after a point in time: an inclusive lower bound."""
    return -(-nanos // _NANOS_PER_MS)


def last_ms(nanos: int) -> int:
    """The last whole millisecond at or before a point in time: an inclusive upper bound."""
    return nanos // _NANOS_PER_MS
