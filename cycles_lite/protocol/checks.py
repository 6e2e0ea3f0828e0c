"""What the protocol allows in a field: pure checks that return the legal value or raise `ValidationError`.

Every message names the field, what was given and what is allowed. Values are shown shortened; none of the fields
checked here holds a secret.
"""

from __future__ import annotations

import operator
import re
import reprlib
from typing import TYPE_CHECKING, Any, Callable, Mapping, TypeVar

from ..errors import ValidationError

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

T = TypeVar("T")

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

#: Levels of nesting that metadata may have. Deeper values are cyclic or hostile; `json` fails at about a thousand.
_MAX_DEPTH = 200

#: Bits that an integer in metadata may have: its decimal digits are fewer than the 640 that Python always converts.
_MAX_BITS = 2048

#: How many characters of an error message a value may take, and how many a field's path.
_SHOWN = 60


class _Shortened(reprlib.Repr):
    """A repr that is as quick for a huge value as for a small one, and does not fail for an integer of many digits."""

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
    except Exception:  # the value's `__repr__` has raised, or its class only has the name of a built-in one
        return f"<{type(value).__name__}>"
    if not text.isprintable():  # such as a repr of several lines, or with characters that a log cannot encode
        text = repr(text)[1:-1]
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def refuse(field: str, value: object, expected: str) -> ValidationError:
    """The error for a value that is not what is expected of the field."""
    return ValidationError(f"{field}: {shown(value)} is not {expected}")


def is_a(value: object, kind: type[T] | tuple[type[T], ...]) -> TypeGuard[T]:
    """As `isinstance`, and False where that raises, as it does for `flask.request` outside of a request."""
    try:
        return isinstance(value, kind)
    except Exception:
        return False


def integer(field: str, value: Any, low: int, high: int) -> int:
    """An integer of low..high. Integer-like types (numpy's) are taken, bools and floats are not."""
    if type(value) is not int:
        if is_a(value, bool):
            raise refuse(field, value, "an integer")
        try:
            value = int.__index__(operator.index(value))
        except Exception as e:  # a TypeError, or an error of the program's own `__index__`
            raise refuse(field, value, "an integer") from e
    if low <= value <= high:
        return value  # type: ignore[no-any-return]
    raise refuse(field, value, f"in {low}..{high}")


def rounded(field: str, value: Any, high: int) -> int:
    """A real number of 0..high as the nearest integer, halves to the even one: floats, Decimals, Fractions, numpy's."""
    try:
        # The range is checked before rounding: as an integer, Decimal("1e999999999") would take all memory.
        if 0 <= value <= high:
            return int(operator.index(round(value)))
    except Exception as e:  # no number, or a Decimal's NaN
        raise refuse(field, value, f"a number in 0..{high}") from e
    raise refuse(field, value, f"a number in 0..{high}")


def boolean(field: str, value: Any) -> bool:
    """True or False themselves: what merely counts as one of them (1, "yes", numpy's) is refused."""
    if value is True or value is False:
        return bool(value)
    raise refuse(field, value, "true or false")


def free_text(field: str, value: Any, longest: int) -> str:
    """Any text of at most `longest` characters that can be encoded."""
    if type(value) is not str:
        value = _plain(field, value, "a string", str)
    if len(value) > longest:
        raise refuse(field, value, f"at most {longest} characters long")
    if not value.isprintable() and re.search("[\ud800-\udfff]", value):
        raise refuse(field, value, "free of lone surrogates")
    return value  # type: ignore[no-any-return]


def words(field: str, value: Any, longest: int) -> str:
    """Free text of at least one character."""
    made = free_text(field, value, longest)
    if made:
        return made
    raise refuse(field, value, "at least one character long")


def text(field: str, value: Any, longest: int) -> str:
    """Text for a header, a path or a query: 1..longest characters, none of them a control character."""
    made = words(field, value, longest)
    if not made.isprintable() and re.search("[\x00-\x1f\x7f-\x9f]", value):
        raise refuse(field, value, "free of control characters")
    return made


def dimensions(field: str, value: Any) -> dict[str, str]:
    """At most 16 strings of at most 256 characters, by name (protocol: `Subject.dimensions`)."""
    if type(value) is not dict:
        value = _plain(field, value, "a mapping of strings", Mapping)
    if len(value) > 16:
        raise refuse(field, value, "a mapping of at most 16 entries")
    copied = {}
    for name, entry in list(value.items()):
        name = free_text(field, name, INT64_MAX)
        copied[name] = free_text(_below(field, name), entry, 256)
    return copied


def items(field: str, value: Any) -> Any:
    """The items of a list or a tuple; any other value is refused."""
    return list(value) if type(value) in (list, tuple) else _plain(field, value, "a list", (list, tuple))


def texts(field: str, value: Any) -> tuple[str, ...]:
    """The strings of any iterable, but not the letters of a string."""
    try:
        found = None if is_a(value, (str, bytes)) else tuple(value)
    except Exception as e:  # it is no iterable, or one of the program's own that raises
        raise refuse(field, value, "a list of strings") from e
    if found is None:
        raise refuse(field, value, "a list of strings")
    return tuple([free_text(field, item, INT64_MAX) for item in found])


def json_object(field: str, value: Any) -> dict[str, Any]:
    """A JSON object: string keys, and only values that JSON has. Copied, so that later changes do not reach it.

    A value that is no such object, or whose methods raise anything, is refused with a `ValidationError`.
    """
    if type(value) is not dict:
        value = _plain(field, value, "a mapping", Mapping)
    try:
        copied: dict[str, Any] = _json_value(field, value, _MAX_DEPTH)
    except RecursionError as e:  # the program's own calls are nested nearly as deeply as Python allows
        raise refuse(field, value, "nested less deep") from e
    return copied


def _json_value(field: str, value: Any, depth: int) -> Any:
    kind = type(value)
    if kind not in _JSON:
        value = _plain(field, value, "a JSON value")
        kind = type(value)
    if kind is str:
        return free_text(field, value, INT64_MAX)
    if kind is dict or kind is list:
        if depth == 0:
            raise refuse(field, value, f"nested at most {_MAX_DEPTH} deep")
        if kind is list:
            return [_json_value(field, entry, depth - 1) for entry in value]
        copied = {}
        for name, entry in list(value.items()):  # a list, because another thread may add to the mapping meanwhile
            name = free_text(field, name, INT64_MAX)
            copied[name] = _json_value(_below(field, name), entry, depth - 1)
        return copied
    if kind is int and value.bit_length() > _MAX_BITS:
        raise refuse(field, value, f"an integer of at most {_MAX_BITS} bits")
    if kind is float and value - value != 0.0:  # an infinity or NaN
        raise refuse(field, value, "a finite number")
    return value


_JSON = frozenset((str, bool, int, float, type(None), dict, list))


def plain_text(value: str) -> str:
    """The built-in string of a subclass's, without calling its methods, as `str.__str__` does on PyPy."""
    return str.__add__(value, "")


#: How an instance of a subclass becomes the built-in value, without calling its own methods, which are the program's.
_PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (str, plain_text),
    (int, lambda value: int.__add__(value, 0)),  # on PyPy, `int.__index__` would call the subclass's
    (float, float.__float__),
    (Mapping, dict),
    ((list, tuple), list),
)


def _plain(field: str, value: Any, expected: str, wanted: Any = object) -> Any:
    """The built-in value that a value of another class stands for. Proxies, lazy mappings and the like may raise
    anything when they are looked at; they are refused then.

    This is never called for a built-in value, which raises nothing: an exception there is a signal handler's.
    """
    try:
        if isinstance(value, wanted):
            for kind, plain in _PLAIN:
                if isinstance(value, kind):
                    return plain(value)
    except Exception as e:
        raise refuse(field, value, expected) from e
    raise refuse(field, value, expected)


def _below(field: str, name: str) -> str:
    """The path of an entry, as error messages show it; its parent's path if its own would be long or unreadable."""
    path = f"{field}.{name}"
    return path if len(path) <= _SHOWN and path.isprintable() else field
