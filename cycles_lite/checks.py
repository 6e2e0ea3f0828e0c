"""What the protocol allows in a field: pure checks that return the legal value or raise `ValidationError`.

Every message names the field, what was given and what is allowed. Values are shown shortened; none of the fields
checked here holds a secret.
"""

from __future__ import annotations

import operator
import os
import re
import reprlib
from typing import Any, Mapping

from .errors import ValidationError

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

#: Nesting that metadata may have; deeper values are cyclic or hostile.
_MAX_DEPTH = 64

#: Bits of an integer in metadata: as decimal digits always fewer than Python may refuse to convert (640).
_MAX_BITS = 2048

#: Characters of an error message that a value may take, and those that a field's path may.
_SHOWN = 60


def new_idempotency_key() -> str:
    """128 random bits from the operating system, read now: a pool would be shared by forked children."""
    return os.urandom(16).hex()


class _Shortened(reprlib.Repr):
    """A repr that takes no longer for a huge value, and that Python's limit on digits does not stop."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, _SHOWN, _SHOWN

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"<an integer of {x.bit_length()} bits>"


_shortened = _Shortened()


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    try:
        text = _shortened.repr(value)
    except Exception:  # the value's own repr, or a class that is named like a built-in one
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def refuse(field: str, value: object, expected: str) -> ValidationError:
    return ValidationError(f"{field}: {shown(value)} is not {expected}")


def integer(field: str, value: Any, low: int, high: int) -> int:
    """An integer of low..high. Integer-like types (numpy's) are taken, bools and floats are not."""
    if type(value) is not int:
        if isinstance(value, bool):
            raise refuse(field, value, "an integer")
        try:
            value = operator.index(value)
        except TypeError as e:
            raise refuse(field, value, "an integer") from e
    if low <= value <= high:
        return int(value)
    raise refuse(field, value, f"in {low}..{high}")


def boolean(field: str, value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise refuse(field, value, "true or false")


def free_text(field: str, value: Any, longest: int) -> str:
    """Any text of at most `longest` characters that can be encoded."""
    if not isinstance(value, str):
        raise refuse(field, value, "a string")
    if len(value) > longest:
        raise refuse(field, value, f"at most {longest} characters long")
    if not value.isprintable() and re.search("[\ud800-\udfff]", value):
        raise refuse(field, value, "free of lone surrogates")
    return value if type(value) is str else str.__str__(value)  # str() of an enumeration's member may be its name


def text(field: str, value: Any, longest: int) -> str:
    """An identifier: 1..longest characters, none of them a control character."""
    value = free_text(field, value, longest)
    if not value:
        raise refuse(field, value, "at least one character long")
    if not value.isprintable() and re.search("[\x00-\x1f\x7f-\x9f]", value):
        raise refuse(field, value, "free of control characters")
    return str(value)


def dimensions(field: str, value: Any) -> dict[str, str]:
    """At most 16 strings of at most 256 characters, by name (protocol: `Subject.dimensions`)."""
    if not isinstance(value, Mapping):
        raise refuse(field, value, "a mapping of strings")
    if len(value) > 16:
        raise refuse(field, value, "a mapping of at most 16 entries")
    copied = {}
    for name, entry in value.items():
        name = text(field, name, INT64_MAX)
        copied[name] = free_text(_below(field, name), entry, 256)
    return copied


def json_object(field: str, value: Any) -> dict[str, Any]:
    """A JSON object: string keys, and only values that JSON has. Copied, so that later changes do not reach it."""
    if not isinstance(value, Mapping):
        raise refuse(field, value, "a mapping")
    return _json_members(field, value, _MAX_DEPTH)


def _json_members(field: str, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth == 0:
        raise refuse(field, value, f"nested at most {_MAX_DEPTH} deep")
    copied = {}
    for name, entry in value.items():
        name = free_text(field, name, INT64_MAX)
        copied[name] = _json_value(_below(field, name), entry, depth - 1)
    return copied


def _json_value(field: str, value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return free_text(field, value, INT64_MAX)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() <= _MAX_BITS:
            return value
        raise refuse(field, value, f"an integer of at most {_MAX_BITS} bits")
    if isinstance(value, float):
        if value - value == 0.0:  # finite: neither an infinity nor NaN
            return value
        raise refuse(field, value, "a finite number")
    if isinstance(value, Mapping):
        return _json_members(field, value, depth)
    if isinstance(value, (list, tuple)):
        if depth == 0:
            raise refuse(field, value, f"nested at most {_MAX_DEPTH} deep")
        return [_json_value(field, entry, depth - 1) for entry in value]
    raise refuse(field, value, "a JSON value")


def _below(field: str, name: str) -> str:
    """The path of an entry, or its parent's where that would be long or unreadable."""
    path = f"{field}.{name}"
    return path if len(path) <= _SHOWN and path.isprintable() else field
