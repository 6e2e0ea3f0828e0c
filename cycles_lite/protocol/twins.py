"""The models as `dataclasses` and `inspect` look at them: made when one of the two asks, because few programs do."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from inspect import Parameter, Signature
from typing import Any


@lru_cache(maxsize=None)
def twin(model: Any) -> Any:
    """A dataclass with the fields of a model, and with all that `dataclasses` looks for in a class."""
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


def signature(model: Any) -> Signature:
    """The parameters of a model's constructor."""
    parameters = []
    for field in dataclasses.fields(model):
        default = getattr(model, field.name, Parameter.empty)
        kind = Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(Parameter(field.name, kind, default=default, annotation=field.type))
    return Signature(parameters)
