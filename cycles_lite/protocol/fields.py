"""The base of the models. Each field has a kind, which serves constructors, sending and reading.

A kind *checks* a program's value: one that is out of range, too long, or impossible in a header is refused before
anything is sent. It *takes* a value from a request that the embedded authority got, by the letter of the protocol. It
*reads* a value from an answer, where the type alone must be right: what a newer server may add is kept as it is.

The models look like dataclasses to `dataclasses.fields`, `replace`, `asdict` and type checkers, but are made without
that module: importing it and generating methods for each class took a third of the package's own import.
"""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import Any, Callable, ClassVar, Mapping, TypeVar

from ..errors import ValidationError
from . import checks
from .checks import INT64_MAX, INT64_MIN, refuse, shown
from .twins import AsDataclass, dataclass_transform

M = TypeVar("M", bound="Model")


class Kind:
    """What may stand in a field. Each check is given the field's name, with which its `ValidationError` begins."""

    #: The function that makes of a value what `json` can encode; None if it can encode the value itself.
    write: Callable[[Any], Any] | None = None
    #: The type of decoded JSON that `read` returns as it is, so that it need not be called for that.
    plain: type | None = None

    def check(self, field: str, value: Any) -> Any:
        """The legal value that a program's value stands for."""
        raise NotImplementedError

    def take(self, field: str, value: Any) -> Any:
        """The legal value for a decoded JSON value in a request that a server got."""
        return self.check(field, value)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        """The value for the decoded JSON in an answer. With `strict`, a null in the place of no value is refused."""
        return self.take(field, value)


class FreeText(Kind):
    """Text of 0..longest characters."""

    plain = str
    _check: Callable[[str, Any, int], str] = staticmethod(checks.free_text)

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def check(self, field: str, value: Any) -> str:
        # Printable text has neither control characters nor surrogates.
        if type(value) is str and 0 < len(value) <= self.longest and value.isprintable():
            return value
        return self._check(field, value, self.longest)

    def read(self, field: str, value: Any, strict: bool) -> str:
        if type(value) is str:
            return value
        raise refuse(field, value, "a string")


class Words(FreeText):
    """Text of 1..longest characters."""

    _check = staticmethod(checks.words)


class Text(FreeText):
    """What a header, a path or a query carries: 1..longest characters, no control characters."""

    _check = staticmethod(checks.text)


class Key(Text):
    """An idempotency key. A program's goes into a header; in a body that a server gets it may be any words."""

    def take(self, field: str, value: Any) -> str:
        is_legal = type(value) is str and 0 < len(value) <= self.longest and value.isprintable()
        return str(value) if is_legal else checks.words(field, value, self.longest)


def new_idempotency_key() -> str:
    """128 random bits, which the operating system makes now; forked children would share a supply of older ones."""
    return os.urandom(16).hex()


class Integer(Kind):
    """A whole number, int64 unless narrower. Floats and bools are refused, read or given."""

    def __init__(self, low: int = 0, high: int = INT64_MAX) -> None:
        self.low, self.high = low, high

    def check(self, field: str, value: Any) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        return checks.integer(field, value, self.low, self.high)


class Milliseconds(Integer):
    """A duration of 0..2^63-1 ms: a program's is rounded, and on the wire it is whole."""

    take = Integer.check

    def check(self, field: str, value: Any) -> int:
        is_whole = type(value) is int or hasattr(type(value), "__index__")
        return super().check(field, value) if is_whole else checks.rounded(field, value, self.high)


class Boolean(Kind):
    """True or false, and nothing that merely counts as one of them."""

    check: Any = staticmethod(checks.boolean)


class OneOf(Kind):
    """A member of an enumeration; an unknown value that a server sends stays the string it is."""

    def __init__(self, enumeration: Any) -> None:
        self.enumeration = enumeration
        self.members: Mapping[str, Any] = {member.value: member for member in enumeration}

    def check(self, field: str, value: Any) -> Any:
        if type(value) is self.enumeration:
            return value
        word = value if type(value) is str else checks.plain_text(value) if checks.is_a(value, str) else ""
        if word in self.members:
            return self.members[word]
        raise refuse(field, value, "one of " + ", ".join(self.members))

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is str:
            return self.members.get(value, value)
        raise refuse(field, value, "a string")


class Object(Kind):
    """Another model."""

    def __init__(self, model: type[Model]) -> None:
        self.model = model
        self.take, self.read = model.take, model.read  # type: ignore[method-assign]  # without a call in between
        self.write = lambda made: made.to_json()

    def check(self, field: str, value: Any) -> Any:
        if type(value) is self.model or checks.is_a(value, self.model):
            return value
        name = self.model.__name__
        raise refuse(field, value, ("an " if name[0] in "AEIOU" else "a ") + name)


class Quantity(Object):
    """A model of a unit and an amount. Answers hold more of these than of anything else, and nearly always just so."""

    def __init__(self, model: type[Model]) -> None:
        super().__init__(model)
        unit, amount = [entry.kind for entry in model.layout()]
        units, least, new = getattr(unit, "members", {}), getattr(amount, "low", 0), object.__new__

        def read(field: str, value: Any, strict: bool) -> Any:  # within, so that all it needs is at hand
            if type(value) is dict and len(value) == 2 and "amount" in value and "unit" in value:
                amount, unit = value["amount"], value["unit"]
                if type(amount) is int and least <= amount <= INT64_MAX and type(unit) is str and unit in units:
                    made = new(model)
                    values = made.__dict__
                    values["unit"], values["amount"] = units[unit], amount
                    return made
            return model.read(field, value, strict)

        self.read = read  # type: ignore[method-assign]


class ListOf(Kind):
    """A list of one kind, kept as a tuple."""

    def __init__(self, kind: Kind, most: int | None = None) -> None:
        self.kind, self.most = kind, most
        self.check = partial(self._all, kind.check)  # type: ignore[method-assign]
        self.take = partial(self._all, kind.take)  # type: ignore[method-assign]
        write = kind.write
        self.write = list if write is None else lambda value: [write(item) for item in value]

    def _all(self, take: Callable[[str, Any], Any], field: str, value: Any) -> tuple[Any, ...]:
        copied = checks.items(field, value)
        if self.most is not None and len(copied) > self.most:
            raise refuse(field, value, f"a list of at most {self.most}")
        return tuple([take(field, item) for item in copied])

    def read(self, field: str, value: Any, strict: bool) -> tuple[Any, ...]:
        if type(value) is not list:
            raise refuse(field, value, "a list")
        return tuple([self.kind.read(field, item, strict) for item in value])


class Json(Kind):
    """Any JSON object. What is written is a copy, so that a call that is sent again sends the same bytes."""

    check: Any = staticmethod(checks.json_object)
    write: Any = staticmethod(copy.deepcopy)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is dict:
            return value
        raise refuse(field, value, "an object")


class Dimensions(Json):
    """At most 16 strings by name."""

    check: Any = staticmethod(checks.dimensions)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is dict and all(type(entry) is str for entry in value.values()):
            return value
        raise refuse(field, value, "a mapping of strings")


COUNT = Integer()
SIGNED = Integer(INT64_MIN)
BOOLEAN = Boolean()
JSON = Json()
SERVER_TEXT = FreeText(INT64_MAX)  # only servers write it, so its length is not limited here
_NOTHING: Any = object()


class Entry:
    """One field of a model: what `field` puts into the class, and what its layout holds."""

    __slots__ = ("default", "json_name", "kind", "make", "name", "on_the_wire", "optional", "required", "shown")

    def __init__(
        self, kind: Kind, default: Any, make: Callable[[], Any] | None, json_name: str, on_the_wire: bool, shown: bool
    ) -> None:
        self.kind, self.default, self.make, self.json_name, self.shown = kind, default, make, json_name, shown
        #: The name of the attribute, which is also that in JSON unless another was given.
        self.name = ""
        #: Whether None stands for an absent value.
        self.optional = default is None
        #: An answer must have it, because it has no default. (Neither has a key, which is made if it is left out.)
        self.required = default is _NOTHING
        #: Whether every request must contain the field.
        self.on_the_wire = self.required or on_the_wire

    def __set_name__(self, model: type[Any], name: str) -> None:
        self.name, self.json_name = name, self.json_name or name

    def check(self, value: Any) -> Any:
        """The legal value that a program's value stands for."""
        return None if value is None and self.optional else self.kind.check(self.name, value)


def field(
    kind: Kind,
    *,
    default: Any = _NOTHING,
    default_factory: Callable[[], Any] | None = None,
    json_name: str = "",
    on_the_wire: bool = False,
    repr: bool = True,
) -> Any:
    """A field of a kind. With the default None it may be absent; with a `default_factory`, which makes the value that a
    program leaves out, it may not. `on_the_wire` marks one that a request must have and a program may leave out."""
    return Entry(kind, default, default_factory, json_name, on_the_wire, repr)


class _Plan:
    """What the generic code needs to know of one class, worked out once."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.entries = entries
        #: By the field's name: the function that checks its value, and whether None stands for an absent one.
        self.checkers = {entry.name: (entry.kind.check, entry.optional) for entry in entries}
        #: By the name in JSON: the field's name, and the function that takes its value from a request.
        self.takers = {entry.json_name: (entry.name, entry.kind.take) for entry in entries}
        #: By the name in JSON: the field's name, the function that reads its value, and what need not be read.
        self.readers = {entry.json_name: (entry.name, entry.kind.read, entry.kind.plain) for entry in entries}
        #: By the field's name: the name in JSON, and the function that writes its value.
        self.writers = {entry.name: (entry.json_name, entry.kind.write) for entry in entries}
        #: The fields that are never absent, because their defaults are not None.
        self.defaults = [entry for entry in entries if not entry.optional]
        #: The fields that a request must have, by their names in JSON.
        self.sent = [entry.json_name for entry in entries if entry.on_the_wire]
        #: The fields that an answer must have.
        self.needed = [entry.name for entry in entries if entry.required]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Checked:
    """The base of the models and the configuration. Their objects are legal from the start and never change."""

    __signature__ = AsDataclass()
    __dataclass_fields__ = AsDataclass()
    __dataclass_params__ = AsDataclass()
    __replace__ = AsDataclass()

    _plan: ClassVar[_Plan] = _Plan(())

    def __init_subclass__(cls) -> None:
        """Collect the fields, those of a base class first, and make each field's default the class's attribute."""
        entries: dict[str, Entry] = {}
        for base in reversed(cls.__mro__):
            entries.update({entry.name: entry for entry in getattr(base, "_plan", cls._plan).entries})
        for entry in [value for value in vars(cls).values() if type(value) is Entry]:
            entries[entry.name] = entry
            if entry.required:
                delattr(cls, entry.name)
            else:
                setattr(cls, entry.name, entry.default)
        type.__setattr__(cls, "__match_args__", tuple(entries))  # mypy lets nobody assign it
        cls._plan = _Plan(tuple(entries.values()))

    @classmethod
    def layout(cls) -> tuple[Entry, ...]:
        """The fields, those of a base class first."""
        return cls._plan.entries

    def __init__(self, *positional: Any, **given: Any) -> None:
        # An optional value that is None is not stored in the object, because the class has None as an attribute.
        values, checkers = self.__dict__, self._plan.checkers
        for name, value in (_named(self, positional, given) if positional else given).items():
            if name not in checkers:
                raise TypeError(f"{type(self).__name__}() has no {name}")
            check, is_optional = checkers[name]
            if value is not None or not is_optional:
                values[name] = check(name, value)
        self._complete()

    def _complete(self) -> None:
        """Store the defaults of the fields that were not given."""
        values = self.__dict__
        for entry in self._plan.defaults:
            if entry.name not in values:
                if entry.required and entry.make is None:
                    raise TypeError(f"{type(self).__name__}() needs {entry.name}")
                values[entry.name] = entry.default if entry.make is None else entry.make()
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the rules that concern several fields. Those of one field are its kind's."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{entry.name}={getattr(self, entry.name)!r}" for entry in self.layout() if entry.shown)
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __setattr__(self, name: str, *value: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"{type(self).__name__}.{name} stays as it is: make another object")

    __delattr__ = __setattr__

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, entry.name) for entry in self.layout()])


class Model(Checked):
    """A protocol object."""

    #: Fields that a newer server sent and this version does not know.
    extra: ClassVar[Mapping[str, Any]] = {}

    def to_json(self) -> dict[str, Any]:
        """The JSON object to send. None and False are left out: absent means the same in this protocol."""
        writers = self._plan.writers
        sent = {}
        for name, value in self.__dict__.items():
            if value is not None and value is not False and name in writers:
                json_name, write = writers[name]
                sent[json_name] = value if write is None else write(value)
        return sent

    @classmethod
    def from_json(cls: type[M], data: Any, strict: bool = False) -> M:
        """The object for a decoded answer. `null` counts as absent, unless `strict`; wrong types raise."""
        return cls.read("body", data, strict)

    @classmethod
    def read(cls: type[M], field: str, value: Any, strict: bool) -> M:
        """As `from_json`, for the value of a field."""
        if type(value) is not dict:
            raise refuse(field, value, "an object")
        readers, needed = cls._plan.readers, cls._plan.needed
        made = object.__new__(cls)
        values = made.__dict__
        unknown: dict[str, Any] = {}
        for json_name, item in value.items():
            if json_name not in readers:
                unknown[json_name] = item
            elif item is not None:
                name, read, plain = readers[json_name]
                values[name] = item if type(item) is plain else read(json_name, item, strict)
            elif strict:
                raise _absent(field, json_name, value)
        for name in needed:
            if name not in values:
                raise _absent(field, name, value)
        if unknown:
            values["extra"] = unknown
        return made

    @classmethod
    def parse(cls: type[M], data: Any, field: str = "body") -> M:
        """The object for a decoded request: unknown fields are refused, and so is all that a constructor refuses."""
        return cls.take(field, data)

    @classmethod
    def take(cls: type[M], field: str, value: Any) -> M:
        """As `parse`, for the value of a field."""
        if type(value) is not dict:
            raise refuse(field, value, "an object")
        plan = cls._plan
        for json_name in plan.sent:
            if value.get(json_name) is None:
                raise _absent(field, json_name, value)
        made = object.__new__(cls)
        for json_name, item in value.items():
            if json_name not in plan.takers:
                raise ValidationError(f"{field}: unknown field {shown(json_name)}")
            if item is not None:
                name, take = plan.takers[json_name]
                made.__dict__[name] = take(json_name, item)
        made._complete()
        return made


def _absent(field: str, json_name: str, data: Mapping[str, Any]) -> ValidationError:
    return ValidationError("{}: {} is {}".format(field, json_name, "null" if json_name in data else "missing"))


def _named(made: Checked, positional: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, the positional ones by their names too."""
    names = made._plan.checkers
    if len(positional) > len(names):
        raise TypeError(f"{type(made).__name__}() has {len(names)} fields, not {len(positional)}")
    first = dict(zip(names, positional))
    twice = sorted(first.keys() & given)
    if twice:
        raise TypeError(f"{type(made).__name__}() got {twice[0]} twice")
    return {**first, **given}
