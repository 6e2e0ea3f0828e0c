"""Cursors: where a page ended, opaque to clients (protocol: Cursor; design: section 9, Reads).

A cursor is bound to what it pages through: with another filter it is refused, as is one that was changed. Anybody can
work out its digest, so what is in it proves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Mapping, Sequence

from ..protocol.checks import INT64_MAX
from .rules import Refusal, Refused

_DIGEST = 16
_SURROGATE = re.compile("[\ud800-\udfff]")


def make(position: Sequence[Any], binding: Mapping[str, Any]) -> str:
    """The cursor for the place after a row; `position` is a list of strings and integers."""
    text = json.dumps([*list(position), _digest(position, binding)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii")


def read(cursor: str, binding: Mapping[str, Any], types: Sequence[type]) -> list[Any]:
    """The position in a cursor, of values of these types."""
    try:
        data = json.loads(base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode("ascii"))
    except (ValueError, RecursionError):  # binascii's and JSON's errors are ValueErrors
        raise unusable() from None
    if type(data) is not list or [type(value) for value in data] != [*types, str]:
        raise unusable()
    position = data[:-1]
    if data[-1] != _digest(position, binding) or not all(map(_is_storable, position)):
        raise unusable()
    return position


def _is_storable(value: object) -> bool:
    """Whether SQLite takes a value: no integer beyond its own, no half of a surrogate pair."""
    if isinstance(value, str):
        return _SURROGATE.search(value) is None
    return not isinstance(value, int) or abs(value) <= INT64_MAX


def _digest(position: Sequence[Any], binding: Mapping[str, Any]) -> str:
    text = json.dumps([list(position), binding], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGEST]


def unusable() -> Refused:
    return Refused(Refusal("INVALID_REQUEST", "The cursor is not one of this list with this sort and these filters."))
