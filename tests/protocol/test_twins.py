"""Models are dataclasses for whoever asks, though none of them is made by `dataclasses`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
import typing

import pytest
from samples import MODELS, named, told

from cycles_lite import Amount, CommitRequest, CyclesConfig, Subject
from cycles_lite.protocol.fields import Model
from cycles_lite.protocol.models import Response


@pytest.mark.parametrize("model", [*MODELS, CyclesConfig], ids=lambda model: model.__name__)
def test_fields_are_those_of_the_layout(model):
    assert dataclasses.is_dataclass(model)
    fields = dataclasses.fields(model)
    assert [field.name for field in fields] == [entry.name for entry in model.layout()]
    for field, entry in zip(fields, model.layout()):
        assert (field.default is None) == entry.optional
        assert isinstance(field.type, str)


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_each_object_can_be_taken_apart_and_made_again(model):
    made = model.from_json(told(model, everything=True))
    assert dataclasses.replace(made) == made
    assert list(dataclasses.asdict(made)) == [entry.name for entry in model.layout()]
    assert list(inspect.signature(model).parameters) == [entry.name for entry in model.layout()]


def test_a_signature_tells_types_and_defaults():
    assert str(inspect.signature(Amount)) == "(unit: 'Unit', amount: 'int')"
    parameters = inspect.signature(CommitRequest).parameters
    assert parameters["actual"].default is inspect.Parameter.empty
    assert parameters["metadata"].default is None
    assert len(parameters["idempotency_key"].default()) == 32


def test_a_base_without_fields_is_no_dataclass():
    assert not dataclasses.is_dataclass(Model)
    assert not dataclasses.is_dataclass(Response)


def test_patterns_name_fields_by_position():
    assert Amount.__match_args__ == ("unit", "amount")
    assert Subject.__match_args__[0] == "tenant"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is newer")
def test_copies_with_other_values():
    assert copy.replace(Amount.tokens(1), amount=2) == Amount.tokens(2)
    assert Amount.tokens(1).__replace__(amount=2) == Amount.tokens(2)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="older Pythons cannot read the annotations")
def test_type_hints_are_those_of_the_fields():
    hints = typing.get_type_hints(Amount)
    assert {"unit", "amount"} <= set(hints) <= {"unit", "amount", "extra", "_plan", "__signature__"}


class Bid(Subject):
    """A subclass that a program makes of a model, without fields of its own."""


def test_a_subclass_has_the_fields_of_its_base():
    dataclasses.fields(Subject)
    assert [field.name for field in dataclasses.fields(Bid)] == [field.name for field in dataclasses.fields(Subject)]
    assert Bid("acme") != Subject("acme")
