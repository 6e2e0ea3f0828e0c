"""The base of the models: each field says its kind once, for the constructor, for sending and for reading.

A kind *checks* what a program gives (ranges, lengths, control characters: what the protocol refuses is refused here,
before anything is sent) and *reads* what a server sends (types only: unknown enum values, longer texts and further
fields of a newer server are carried along).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Iterator, Mapping, NamedTuple, TypeVar

from . import checks
from .checks import INT64_MAX, INT64_MIN, refuse, shown
from .errors import ValidationError

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
        return self.check(field, value)

    def parse(self, field: str, value: Any) -> Any:
        """What a request's constructor, which checks it, takes for a decoded JSON value."""
        return value

    def write(self, value: Any) -> Any:
        """What `json` encodes for the value."""
        return value


class Text(Kind):
    """An identifier: 1..longest characters, no control characters."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def check(self, field: str, value: Any) -> str:
        return checks.text(field, value, self.longest)

    def read(self, field: str, value: Any, strict: bool) -> str:
        if type(value) is str:
            return value
        raise refuse(field, value, "a string")


class FreeText(Text):
    """Text of 0..longest characters for people to read."""

    def check(self, field: str, value: Any) -> str:
        return checks.free_text(field, value, self.longest)


class Integer(Kind):
    """A whole number, int64 unless narrower. Floats and bools are refused, read or given."""

    def __init__(self, low: int = 0, high: int = INT64_MAX) -> None:
        self.low, self.high = low, high

    def check(self, field: str, value: Any) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        return checks.integer(field, value, self.low, self.high)


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
        if isinstance(value, str) and value in self.members:
            return self.members[value]
        raise refuse(field, value, "one of " + ", ".join(self.members))

    def read(self, field: str, value: Any, strict: bool) -> Any:
        if type(value) is str:
            return self.members.get(value, value)
        raise refuse(field, value, "a string")


class Object(Kind):
    """Another model."""

    def __init__(self, model: type[Model]) -> None:
        self.model = model

    def check(self, field: str, value: Any) -> Any:
        if isinstance(value, self.model):
            return value
        name = self.model.__name__
        raise refuse(field, value, ("an " if name[0] in "AEIOU" else "a ") + name)

    def read(self, field: str, value: Any, strict: bool) -> Any:
        return self.model.from_json(value, strict, field)

    def parse(self, field: str, value: Any) -> Any:
        return self.model.parse(value, field)

    def write(self, value: Any) -> Any:
        return value.to_json()


class ListOf(Kind):
    """A list of one kind, kept as a tuple."""

    def __init__(self, kind: Kind, most: int | None = None) -> None:
        self.kind, self.most = kind, most

    def check(self, field: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise refuse(field, value, "a list")
        if self.most is not None and len(value) > self.most:
            raise refuse(field, value, f"a list of at most {self.most}")
        return tuple([self.kind.check(field, item) for item in value])

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
    #: Makes what a program leaves out.
    make: Callable[[], Any] | None

    def check(self, value: Any) -> Any:
        """The legal value that a program's value stands for."""
        return None if value is None and self.optional else self.kind.check(self.name, value)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def model(cls: type[T]) -> type[T]:
    """A frozen dataclass of a `Checked`, which has the methods that `dataclass` generates, once for all: to generate
    them for each class took a third of the time that the package takes to import."""
    return dataclasses.dataclass(init=False, repr=False, eq=False)(cls)


class _Parameters:
    """A model's signature, for `inspect` and `help`."""

    def __get__(self, instance: object, cls: type[Checked]) -> Signature:
        from inspect import Parameter, Signature

        return Signature(
            [
                Parameter(
                    entry.name,
                    Parameter.POSITIONAL_OR_KEYWORD,
                    default=entry.make or getattr(cls, entry.name, Parameter.empty),
                    annotation=cls.__dataclass_fields__[entry.name].type,  # type: ignore[attr-defined]
                )
                for entry in cls.layout()
            ]
        )


class Checked:
    """What `model` decorates: objects that are legal if they exist, and stay as they are."""

    __signature__: ClassVar[Any] = _Parameters()

    @classmethod
    def layout(cls) -> tuple[Entry, ...]:
        """The fields, worked out once per class."""
        made: tuple[Entry, ...] | None = cls.__dict__.get("_layout")
        if made is None:
            made = tuple(_entry(field) for field in dataclasses.fields(cls))  # type: ignore[arg-type]
            cls._layout = made  # type: ignore[attr-defined]
        return made

    # None for what is optional is not kept: the class has it.

    def __init__(self, *positional: Any, **given: Any) -> None:
        layout = self.layout()
        if positional:
            given = _named(type(self), positional, given)
        values = self.__dict__
        met = 0
        for name, _, kind, required, optional, _, make in layout:
            if name in given:
                met += 1
                value = given[name]
                if value is not None or not optional:
                    values[name] = kind.check(name, value)
            elif make is not None:
                values[name] = make()
            elif required:
                raise TypeError(f"{type(self).__name__}() needs {name}")
            elif not optional:
                values[name] = getattr(type(self), name)
        if met < len(given):
            stranger = next(name for name in given if name not in {entry.name for entry in layout})
            raise TypeError(f"{type(self).__name__}() has no {stranger}")
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
        values = self.__dict__
        sent = {}
        for name, json_name, kind, _, _, _, _ in self.layout():
            value = values.get(name)
            if value is not None and value is not False:
                sent[json_name] = kind.write(value)
        return sent

    @classmethod
    def from_json(cls: type[M], data: Any, strict: bool = False, field: str = "body") -> M:
        """The object for a decoded answer. `null` counts as absent, unless `strict`; wrong types raise."""
        if type(data) is not dict:
            raise refuse(field, data, "an object")
        values: dict[str, Any] = {}
        for name, json_name, kind, required, _, _, _ in cls.layout():
            value = data.get(json_name)
            if value is not None:
                values[name] = kind.read(json_name, value, strict)
            elif required or (strict and json_name in data):
                raise _absent(field, json_name, data)
        if len(values) < len(data):
            known = {entry.json_name for entry in cls.layout()}
            values["extra"] = {name: value for name, value in data.items() if name not in known}
        made = object.__new__(cls)
        made.__dict__.update(values)
        return made

    @classmethod
    def parse(cls: type[M], data: Any, field: str = "body") -> M:
        """The object for a decoded request: unknown fields are refused, and so is all that a constructor refuses."""
        if type(data) is not dict:
            raise refuse(field, data, "an object")
        values = {}
        for name, json_name, kind, _, _, on_the_wire, _ in cls.layout():
            value = data.get(json_name)
            if value is not None:
                values[name] = kind.parse(json_name, value)
            elif on_the_wire:
                raise _absent(field, json_name, data)
        unknown = sorted(set(data) - {entry.json_name for entry in cls.layout()})
        if unknown:
            raise ValidationError(f"{field}: unknown field {shown(unknown[0])}")
        return cls(**values)


def _absent(field: str, json_name: str, data: Mapping[str, Any]) -> ValidationError:
    return ValidationError("{}: {} is {}".format(field, json_name, "null" if json_name in data else "missing"))


def _named(cls: type[Checked], positional: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    names = [entry.name for entry in cls.layout()]
    if len(positional) > len(names):
        raise TypeError(f"{cls.__name__}() has {len(names)} fields, not {len(positional)}")
    first = dict(zip(names, positional))
    for name in first:
        if name in given:
            raise TypeError(f"{cls.__name__}() got {name} twice")
    return {**first, **given}


def _entry(field: Any) -> Entry:
    facts = field.metadata
    required = field.default is dataclasses.MISSING  # an idempotency key has a factory: made if omitted, never None
    return Entry(
        field.name,
        facts["json_name"] or field.name,
        facts["kind"],
        required,
        field.default is None,
        required or facts["on_the_wire"],
        None if field.default_factory is dataclasses.MISSING else field.default_factory,
    )
