"""The base of the models: each field says its kind once, for the constructor, for sending and for reading.

A kind *checks* what a program gives (ranges, lengths, what a header cannot carry: it is refused here, before anything
is sent), *takes* what a server is sent (by the protocol's letter) and *reads* what a server answers (types only:
unknown enum values, longer texts and further fields of a newer server are carried along).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Iterator, Mapping, NamedTuple, TypeVar

from ..errors import ValidationError
from . import checks
from .checks import INT64_MAX, INT64_MIN, refuse, shown

if TYPE_CHECKING:
    from inspect import Signature

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


M = TypeVar("M", bound="Model")
T = TypeVar("T")


class Kind:
    """What may stand in a field."""

    def check(self, field: str, value: Any) -> Any:
        """The legal value that a program's value stands for; raises `ValidationError`."""
        raise NotImplementedError

    def read(self, field: str, value: Any, strict: bool) -> Any:
        """The value for a decoded JSON value; raises `ValidationError`."""
        return self.take(field, value)

    def parse(self, field: str, value: Any) -> Any:
        """What `take` is given for a decoded JSON value of a request."""
        return value

    def take(self, field: str, value: Any) -> Any:
        """The legal value in a request that a server got; raises `ValidationError`."""
        return self.check(field, value)

    def write(self, value: Any) -> Any:
        """What `json` encodes for the value."""
        return value


class FreeText(Kind):
    """Text of 0..longest characters."""

    _check = staticmethod(checks.free_text)

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def check(self, field: str, value: Any) -> str:
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
        return checks.words(field, value, self.longest)


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

    def check(self, field: str, value: Any) -> int:
        is_whole = type(value) is int or hasattr(type(value), "__index__")
        return super().check(field, value) if is_whole else checks.rounded(field, value, self.high)

    def take(self, field: str, value: Any) -> int:
        return super().check(field, value)


class Boolean(Kind):
    def check(self, field: str, value: Any) -> bool:
        return checks.boolean(field, value)


class OneOf(Kind):
    """A member of an enumeration; an unknown value that a server sends stays the string it is."""

    def __init__(self, enumeration: Any) -> None:
        self.enumeration = enumeration
        self.members: Mapping[str, Any] = {member.value: member for member in enumeration}

    def check(self, field: str, value: Any) -> Any:
        if type(value) is self.enumeration:
            return value
        word = str.__str__(value) if checks.is_a(value, str) else ""
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
        # The method itself: nothing in an answer is read more often.
        self.read = model.read  # type: ignore[method-assign]

    def check(self, field: str, value: Any) -> Any:
        if checks.is_a(value, self.model):
            return value
        name = self.model.__name__
        raise refuse(field, value, ("an " if name[0] in "AEIOU" else "a ") + name)

    def parse(self, field: str, value: Any) -> Any:
        return self.model.parse(value, field)

    def write(self, value: Any) -> Any:
        return value.to_json()


class ListOf(Kind):
    """A list of one kind, kept as a tuple."""

    def __init__(self, kind: Kind, most: int | None = None) -> None:
        self.kind, self.most = kind, most

    def check(self, field: str, value: Any) -> tuple[Any, ...]:
        return self._of(self.kind.check, field, value)

    def take(self, field: str, value: Any) -> tuple[Any, ...]:
        return self._of(self.kind.take, field, value)

    def _of(self, take: Callable[[str, Any], Any], field: str, value: Any) -> tuple[Any, ...]:
        copied = checks.items(field, value)
        if self.most is not None and len(copied) > self.most:
            raise refuse(field, value, f"a list of at most {self.most}")
        return tuple([take(field, item) for item in copied])

    def read(self, field: str, value: Any, strict: bool) -> tuple[Any, ...]:
        if type(value) is not list:
            raise refuse(field, value, "a list")
        return tuple([self.kind.read(field, item, strict) for item in value])

    def parse(self, field: str, value: Any) -> Any:
        return [self.kind.parse(field, item) for item in value] if type(value) is list else value

    def write(self, value: Any) -> Any:
        return [self.kind.write(item) for item in value]


class Dimensions(Kind):
    """At most 16 strings by name."""

    def check(self, field: str, value: Any) -> dict[str, str]:
        return checks.dimensions(field, value)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is dict and all(type(entry) is str for entry in value.values()):
            return value
        raise refuse(field, value, "a mapping of strings")


class Json(Kind):
    """Any JSON object."""

    def check(self, field: str, value: Any) -> Any:
        return checks.json_object(field, value)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is dict:
            return value
        raise refuse(field, value, "an object")


COUNT = Integer()
SIGNED = Integer(INT64_MIN)
BOOLEAN = Boolean()
JSON = Json()
#: Text that only servers write, so that nothing here bounds it.
SERVER_TEXT = FreeText(INT64_MAX)


def of(kind: Kind, json_name: str = "", on_the_wire: bool = False) -> Mapping[str, Any]:
    """The metadata of a model's field; `on_the_wire` marks what a request must send though a program may omit it."""
    return {"kind": kind, "json_name": json_name, "on_the_wire": on_the_wire}


class Entry(NamedTuple):
    """One field of a model, as the generic code below needs it."""

    name: str
    json_name: str
    kind: Kind
    #: Without a default: an answer must have it.
    required: bool
    #: None stands for absent.
    optional: bool
    #: A request must send it.
    on_the_wire: bool
    #: Makes what a program leaves out; None where it may not.
    make: Callable[[], Any] | None

    def check(self, value: Any) -> Any:
        """The legal value that a program's value stands for."""
        return None if value is None and self.optional else self.kind.check(self.name, value)


class _Plan:
    """What the generic code needs of one class, worked out once."""

    __slots__ = ("checkers", "defaults", "entries", "needed", "parsers", "readers", "sent", "takers", "writers")

    def __init__(self, cls: type[Any]) -> None:
        self.entries = tuple([_entry(field) for field in dataclasses.fields(cls)])
        #: By the field's name: what checks it, or takes it in a request, and whether None stands for absent.
        self.checkers = {entry.name: (entry.kind.check, entry.optional) for entry in self.entries}
        self.takers = {entry.name: (entry.kind.take, entry.optional) for entry in self.entries}
        #: The fields for which absent is not None: their names, and what makes them.
        self.defaults = [(entry.name, entry.make) for entry in self.entries if not entry.optional]
        #: By the name in JSON: the field's name, and what reads it.
        self.readers = {entry.json_name: (entry.name, entry.kind.read) for entry in self.entries}
        #: By the field's name: the name in JSON, and what writes it.
        self.writers = {entry.name: (entry.json_name, entry.kind.write) for entry in self.entries}
        #: By the name in JSON: the field's name, and what parses it.
        self.parsers = {entry.json_name: (entry.name, entry.kind.parse) for entry in self.entries}
        #: The fields that a request must have, by their names in JSON.
        self.sent = [entry.json_name for entry in self.entries if entry.on_the_wire]
        #: The fields that an answer must have, likewise.
        self.needed = [entry.json_name for entry in self.entries if entry.required]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def model(cls: type[T]) -> type[T]:
    """A frozen dataclass of a `Checked`, which has the methods that `dataclass` generates, once for all: to generate
    them for each class took a third of the time that the package takes to import."""
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    made._plan = _Plan(made)
    return cls


class _Parameters:
    """A model's signature, for `inspect` and `help`."""

    def __get__(self, instance: object, cls: type[Checked]) -> Signature:
        from inspect import Parameter, Signature

        parameters = []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            default = getattr(cls, field.name, _entry(field).make or Parameter.empty)
            kind = Parameter.POSITIONAL_OR_KEYWORD
            parameters.append(Parameter(field.name, kind, default=default, annotation=field.type))
        return Signature(parameters)


class Checked:
    """What `model` decorates: objects that are legal if they exist, and stay as they are."""

    __signature__: ClassVar[Any] = _Parameters()

    _plan: ClassVar[_Plan]

    @classmethod
    def layout(cls) -> tuple[Entry, ...]:
        """The fields, those of a base class first."""
        return cls._plan.entries

    # None for what is optional is not kept: the class has it.

    def __init__(self, *positional: Any, **given: Any) -> None:
        self._hold(_named(self, positional, given) if positional else given, self._plan.checkers)

    def _hold(self, given: Mapping[str, Any], checkers: Mapping[str, tuple[Callable[[str, Any], Any], bool]]) -> None:
        """Hold the values that were given, checked, and the defaults of those that were not."""
        values = self.__dict__
        for name, value in given.items():
            if name not in checkers:
                raise TypeError(f"{type(self).__name__}() has no {name}")
            check, is_optional = checkers[name]
            if value is not None or not is_optional:
                values[name] = check(name, value)
        for name, make in self._plan.defaults:
            if name not in values:
                if make is None:
                    raise TypeError(f"{type(self).__name__}() needs {name}")
                values[name] = make()
        self.__post_init__()

    def __post_init__(self) -> None:
        """For rules that concern several fields; those of one are its kind's."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields if field.repr)
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return tuple(self._items()) == tuple(other._items())

    def __hash__(self) -> int:
        return hash(tuple(self._items()))

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be set: make another object")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be deleted")

    def _items(self) -> Iterator[tuple[str, Any]]:
        return ((entry.name, getattr(self, entry.name)) for entry in self.layout())


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
                sent[json_name] = write(value)
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
        plan = cls._plan
        readers = plan.readers
        values: dict[str, Any] = {}
        unknown: dict[str, Any] = {}
        for json_name, item in value.items():
            if json_name not in readers:
                unknown[json_name] = item
            elif item is not None:
                name, read = readers[json_name]
                values[name] = read(json_name, item, strict)
            elif strict:
                raise _absent(field, json_name, value)
        for json_name in plan.needed:
            if value.get(json_name) is None:
                raise _absent(field, json_name, value)
        if unknown:
            values["extra"] = unknown
        made = object.__new__(cls)
        made.__dict__.update(values)
        return made

    @classmethod
    def parse(cls: type[M], data: Any, field: str = "body") -> M:
        """The object for a decoded request: unknown fields are refused, and so is all that a constructor refuses."""
        if type(data) is not dict:
            raise refuse(field, data, "an object")
        plan = cls._plan
        for json_name in plan.sent:
            if data.get(json_name) is None:
                raise _absent(field, json_name, data)
        values = {}
        for json_name, item in data.items():
            if json_name not in plan.parsers:
                raise ValidationError(f"{field}: unknown field {shown(json_name)}")
            if item is not None:
                name, parse = plan.parsers[json_name]
                values[name] = parse(json_name, item)
        made = object.__new__(cls)
        made._hold(values, plan.takers)
        return made


def _absent(field: str, json_name: str, data: Mapping[str, Any]) -> ValidationError:
    return ValidationError("{}: {} is {}".format(field, json_name, "null" if json_name in data else "missing"))


def _named(made: Checked, positional: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    names = made._plan.checkers
    if len(positional) > len(names):
        raise TypeError(f"{type(made).__name__}() has {len(names)} fields, not {len(positional)}")
    first = dict(zip(names, positional))
    twice = sorted(first.keys() & given)
    if twice:
        raise TypeError(f"{type(made).__name__}() got {twice[0]} twice")
    return {**first, **given}


def _entry(field: Any) -> Entry:
    facts = field.metadata
    required = field.default is dataclasses.MISSING  # an idempotency key has a factory: made if omitted, never None
    make = field.default_factory if required else lambda: field.default
    return Entry(
        field.name,
        facts["json_name"] or field.name,
        facts["kind"],
        required,
        field.default is None,
        required or facts["on_the_wire"],
        None if make is dataclasses.MISSING else make,
    )
