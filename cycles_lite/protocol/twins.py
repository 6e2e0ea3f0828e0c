"""The models as `dataclasses` and `inspect` look at them.

A model has no such thing until one of the two asks for it: few programs do, and the two take long to import.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Signature

    from typing_extensions import dataclass_transform as dataclass_transform
else:

    def dataclass_transform(**_):
        """What tells type checkers that a class is a dataclass, and does nothing at run time."""
        return lambda decorator: decorator


class AsDataclass:
    """An attribute that a model has because it is a dataclass for whoever asks: that of its twin."""

    def __set_name__(self, model: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: object, model: Any) -> Any:
        if not model.layout():
            raise AttributeError(f"{model.__name__} has no fields: it is but a base of dataclasses")
        if self._name == "__signature__":
            return _signature(model)
        found = getattr(_twin(model), self._name)
        return found if instance is None or not callable(found) else found.__get__(instance, model)


@lru_cache(maxsize=None)
def _twin(model: Any) -> Any:
    """A dataclass with the fields of a model, and with all that `dataclasses` looks for in a class."""
    import dataclasses

    annotations: dict[str, Any] = {}
    for base in reversed(model.__mro__):
        annotations.update(getattr(base, "__annotations__", {}))
    fields = []
    for entry in model.layout():
        made: Any = dataclasses.field(repr=entry.shown)
        if entry.make is not None:
            made.default_factory = entry.make
        elif not entry.required:
            made.default = entry.default
        fields.append((entry.name, annotations[entry.name], made))
    return dataclasses.make_dataclass(model.__name__, fields, init=False, repr=False, eq=False)


def _signature(model: Any) -> Signature:
    """The parameters of a model's constructor."""
    from inspect import Parameter, Signature

    parameters = []
    for entry in model.layout():
        default = entry.make or getattr(model, entry.name, Parameter.empty)
        annotation = _twin(model).__dataclass_fields__[entry.name].type
        kind = Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(Parameter(entry.name, kind, default=default, annotation=annotation))
    return Signature(parameters)
