"""Values of a program that are no proper arguments, or only nearly: numbers, texts, containers, and hostile objects."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import pathlib
import types

from mutations import INT64_MAX, NUMBERS, TEXTS
from samples import Proxy

from cycles_lite import Action, Amount, Caps, CyclesMetrics, Subject, Unit


class Index:
    """As numpy's integers: no int, but with an `__index__`."""

    def __init__(self, value):
        self._value = value

    def __index__(self):
        return self._value

    def __repr__(self):
        return f"Index({self._value!r})"


class Word(str):
    """A string of a subclass, whose own methods lie."""

    def __str__(self):
        return "a lie"

    def __len__(self):
        return 1

    def strip(self, *_):
        raise RuntimeError("stripped")


class Whole(int):
    """An int of a subclass, whose own methods raise."""

    def __index__(self):
        raise RuntimeError("asked for the index")

    def __le__(self, other):
        raise RuntimeError("compared")

    __ge__ = __lt__ = __gt__ = __le__


class Dict(dict):
    def items(self):
        raise RuntimeError("asked for items")

    def __iter__(self):
        raise RuntimeError("iterated")


class Kind(str, enum.Enum):
    TOKENS = "TOKENS"


def _raise(self, *_):
    raise RuntimeError("looked at")


#: Objects of which one special method raises.
HOSTILE = [
    type("Hostile" + name.strip("_").title(), (), {name: _raise})
    for name in (
        "__eq__", "__hash__", "__str__", "__repr__", "__bool__", "__len__", "__iter__", "__index__", "__float__",
        "__int__", "__getattr__", "__getitem__", "__fspath__", "__call__", "__lt__", "__contains__", "__format__",
    )
]  # fmt: skip
UNHASHABLE = type("Unhashable", (), {"__eq__": lambda self, other: True, "__hash__": None})


def recursive(kind):
    made = kind()
    if kind is dict:
        made["self"] = made
    else:
        made.append(made)
    return made


def generator():
    yield 1


#: Functions that make a value, so that no case changes what the next one gets.
MAKERS = [
    *[lambda value=value: value for value in NUMBERS],
    *[lambda value=value: value for value in TEXTS],
    *[lambda kind=kind: kind() for kind in HOSTILE],
    *[lambda value=value: Index(value) for value in (0, 5, -1, 2**70, 1.5, "5")],
    *[lambda value=value: value for value in (float("nan"), float("inf"), float("-inf"), 1j, 10**5000, -(10**400))],
    *[lambda text=text: decimal.Decimal(text) for text in ("NaN", "sNaN", "Infinity", "5", "1e999999", "-0", "1.5")],
    lambda: fractions.Fraction(1, 3),
    lambda: Word("acme"),
    lambda: Word(""),
    lambda: Whole(5),
    lambda: Dict(a="b"),
    lambda: Kind.TOKENS,
    lambda: Unit.TOKENS,
    lambda: Proxy(),
    lambda: UNHASHABLE(),
    lambda: b"acme",
    lambda: bytearray(b"acme"),
    lambda: memoryview(b"acme"),
    lambda: None,
    lambda: [],
    lambda: {},
    lambda: (),
    lambda: set(),
    lambda: frozenset(["a"]),
    lambda: ["a", "b"],
    lambda: ("a", 1),
    lambda: {"a": "b"},
    lambda: {1: 2},
    lambda: {("a",): None},
    lambda: {"a": object()},
    lambda: {"a": {"b": [1, {"c": float("nan")}]}},
    lambda: {"a" * 500: "b" * 500},
    lambda: {"\ud800": "\udfff"},
    lambda: dict.fromkeys(map(str, range(100)), "x"),
    lambda: recursive(list),
    lambda: recursive(dict),
    lambda: {"deep": deep(150)},
    lambda: {"deep": deep(250)},
    lambda: deep(20_000),
    lambda: range(3),
    lambda: generator(),
    lambda: iter([1]),
    lambda: object(),
    lambda: object,
    lambda: int,
    lambda: len,
    lambda: lambda *args, **kwargs: 5,
    lambda: types.MappingProxyType({"a": "b"}),
    lambda: datetime.datetime(2026, 1, 1),
    lambda: datetime.timedelta(seconds=5),
    lambda: pathlib.PurePosixPath("some/where"),
    lambda: NotImplemented,
    lambda: Ellipsis,
    lambda: RuntimeError("an exception"),
    lambda: Amount.tokens(5),
    lambda: Amount.usd("0.01"),
    lambda: Action("a", "b"),
    lambda: Subject(agent="bot"),
    lambda: Caps(),
    lambda: CyclesMetrics(tokens_input=INT64_MAX),
    lambda: "acme",
    lambda: "x" * 100_000,
]


def deep(levels):
    made = []
    for _ in range(levels):
        made = [made]
    return made


def odd(random):
    return random.choice(MAKERS)()


def shown(value):
    """A repr, whatever the value is."""
    try:
        return f"<{type(value).__name__} {value!r:.100}>"
    except BaseException:
        return f"<{type.__name__} that cannot be shown: {object.__repr__(value)}>"
