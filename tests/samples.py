"""What the tests of the models share: every model, legal objects of each, the JSON that their layouts call for, and a
value that cannot be looked at."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from cycles_lite.protocol import fields, models, values, wire

#: Every protocol object. `Levels` is only what the three that name levels have in common.
MODELS = sorted(
    {
        found
        for module in (values, models)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, fields.Model) and dataclasses.is_dataclass(found)
    }
    - {values.Levels},
    key=lambda model: model.__name__,
)
#: What the body of a request is; the other requests are queries.
BODIES = [operation.request for operation in wire.OPERATIONS if operation.request is not None]
QUERIES = [models.ReservationListRequest, models.BalanceRequest]
RESPONSES = [model for model in MODELS if issubclass(model, models.Response)]


def named(model):
    """The id of a test that is parametrized with classes."""
    return model.__name__


class Proxy:
    """As flask's `request` outside of one: every look at it raises, `isinstance` included."""

    @property
    def __class__(self):
        raise RuntimeError("working outside of request context")

    def __getattr__(self, name):
        raise RuntimeError("working outside of request context")


# ---- Objects, as a program makes them ----

ANY_TEXT = st.characters(blacklist_categories=("Cs",))
NO_CONTROLS = st.characters(blacklist_categories=("Cs", "Cc"))

JSON_OBJECTS = st.dictionaries(
    st.text(ANY_TEXT, max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(ANY_TEXT, max_size=5),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(ANY_TEXT, max_size=5), below, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


def legal(model):
    """Objects that the model's constructor takes. What it may be called without is sometimes left out."""
    needed, optional = {}, {}
    for entry in model.layout():
        is_needed = entry.on_the_wire and entry.name != "idempotency_key"
        (needed if is_needed else optional)[entry.name] = _legal(entry.kind)
    if model is values.Subject:
        needed["agent"] = optional.pop("agent")
    return st.fixed_dictionaries(needed, optional=optional).map(lambda given: model(**given))


def _legal(kind):
    if isinstance(kind, fields.Text):
        return st.text(NO_CONTROLS, min_size=1, max_size=min(kind.longest, 20))
    if isinstance(kind, fields.FreeText):
        return st.text(ANY_TEXT, min_size=isinstance(kind, fields.Words), max_size=min(kind.longest, 20))
    if isinstance(kind, fields.Integer):
        return st.integers(kind.low, kind.high)
    if isinstance(kind, fields.Boolean):
        return st.booleans()
    if isinstance(kind, fields.OneOf):
        return st.sampled_from(list(kind.enumeration))
    if isinstance(kind, fields.Object):
        return legal(kind.model)
    if isinstance(kind, fields.ListOf):
        return st.lists(_legal(kind.kind), max_size=min(kind.most or 3, 3))
    if isinstance(kind, fields.Dimensions):
        return st.dictionaries(st.text(ANY_TEXT, max_size=5), st.text(ANY_TEXT, max_size=5), max_size=3)
    assert isinstance(kind, fields.Json), kind
    return JSON_OBJECTS


# ---- JSON, as a server sends it ----


def told(model, everything=False):
    """The JSON of an answer: with the fields that it must have, or with every field that the model knows."""
    needed = {
        entry.json_name: _told(entry.kind, everything) for entry in model.layout() if everything or entry.required
    }
    return needed or {entry.json_name: _told(entry.kind, everything) for entry in model.layout()[:1]}


def _told(kind, everything):
    if isinstance(kind, fields.FreeText):
        return "word"
    if isinstance(kind, fields.Integer):
        return max(kind.low, 7)
    if isinstance(kind, fields.Boolean):
        return True
    if isinstance(kind, fields.OneOf):
        return next(iter(kind.members))
    if isinstance(kind, fields.Object):
        return told(kind.model, everything)
    if isinstance(kind, fields.ListOf):
        return [_told(kind.kind, everything)]
    if isinstance(kind, fields.Dimensions):
        return {"cost_center": "17"}
    assert isinstance(kind, fields.Json), kind
    return {"nested": [{"deep": None}, 1.5]}


def wrong(kind):
    """JSON values that are not of the kind."""
    nothing_like_it = [True, False, 0, 1, -1, 1.0, 1.5, "", "1", [], [1], {}, {"a": 1}]
    if isinstance(kind, (fields.FreeText, fields.OneOf)):
        return [value for value in nothing_like_it if not isinstance(value, str)]
    if isinstance(kind, fields.Integer):
        floats_and_such = [value for value in nothing_like_it if type(value) is not int]
        return [*floats_and_such, kind.low - 1, kind.high + 1, 10**30, -(10**30), 1e300]
    if isinstance(kind, fields.Boolean):
        return [value for value in nothing_like_it if not isinstance(value, bool)]
    not_objects = [value for value in nothing_like_it if not isinstance(value, dict)]
    if isinstance(kind, fields.Object):
        lacks_a_field = [{"unknown": 1}] if any(entry.required for entry in kind.model.layout()) else []
        return [*not_objects, [told(kind.model)], *lacks_a_field]
    if isinstance(kind, fields.ListOf):
        not_lists = [value for value in nothing_like_it if not isinstance(value, list)]
        return [*not_lists, [None], *[[value] for value in wrong(kind.kind)]]
    if isinstance(kind, fields.Dimensions):
        return [*not_objects, {"a": 1}, {"a": None}, {"a": ["b"]}]
    assert isinstance(kind, fields.Json), kind
    return not_objects
