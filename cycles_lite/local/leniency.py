"""The requests as an authority takes them: some of what this package's client refuses to send is legal all the same.

Control characters, empty tags and labels, and metadata that is nested deep harm neither a ledger nor JSON. The client
refuses them because a header or a path could not carry them.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

from .. import fields
from ..checks import free_text, json_object, refuse
from ..fields import Model

#: Nesting of metadata that is taken: encoding it again must not reach Python's own limit, whoever calls.
_MAX_DEPTH = 256


def lenient(model: type[Model]) -> type[Model]:
    """The model of a request with lenient fields; its objects are the model's too."""
    made: type[Model] = _made(model)  # type: ignore[arg-type]
    return made


@lru_cache(maxsize=None)
def _made(model: Any) -> Any:
    members: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    for field in dataclasses.fields(model):
        members["__annotations__"][field.name] = field.type
        members[field.name] = dataclasses.field(
            default=field.default,
            default_factory=field.default_factory,
            metadata={**field.metadata, "kind": _lenient_kind(field.metadata["kind"])},
        )
    return fields.model(type(model.__name__, (model,), members))


def _lenient_kind(kind: fields.Kind) -> fields.Kind:
    if isinstance(kind, fields.Object):
        return fields.Object(lenient(kind.model))
    if isinstance(kind, fields.ListOf):
        inner = kind.kind
        return fields.ListOf(fields.FreeText(inner.longest) if isinstance(inner, fields.Text) else inner, kind.most)
    make = _LENIENT.get(type(kind))
    return kind if make is None else make(kind)


class _Text(fields.Text):
    def check(self, field: str, value: Any) -> str:
        if value == "":
            raise refuse(field, value, "at least one character long")
        return free_text(field, value, self.longest)


class _Dimensions(fields.Dimensions):
    def check(self, field: str, value: Any) -> dict[str, str]:
        given = json_object(field, value)
        if len(given) > 16:
            raise refuse(field, value, "a mapping of at most 16 entries")
        return {name: free_text(field, entry, 256) for name, entry in given.items()}


class _Json(fields.Json):
    def check(self, field: str, value: Any) -> Any:
        """Decoded JSON is JSON already, but for what cannot be encoded again."""
        if type(value) is not dict:
            raise refuse(field, value, "a mapping")
        todo: list[tuple[Any, int]] = [(value, 1)]
        while todo:
            one, depth = todo.pop()
            if depth > _MAX_DEPTH:
                raise refuse(field, value, f"nested at most {_MAX_DEPTH} deep")
            if type(one) is dict:
                json_object(field, dict.fromkeys(one))
                todo += [(entry, depth + 1) for entry in one.values()]
            elif type(one) is list:
                todo += [(entry, depth + 1) for entry in one]
            else:
                json_object(field, {"": one})
        return value


_LENIENT: dict[type, Any] = {
    fields.Text: lambda kind: _Text(kind.longest),
    fields.Dimensions: lambda kind: _Dimensions(),
    fields.Json: lambda kind: _Json(),
}
