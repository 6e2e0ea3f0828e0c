"""The base of the models, on models made for it: what a constructor, an answer and a request's body may hold."""

from __future__ import annotations

import copy
import enum
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from samples import MODELS

from cycles_lite.errors import ValidationError
from cycles_lite.protocol import fields
from cycles_lite.protocol.checks import INT64_MAX, INT64_MIN
from cycles_lite.protocol.fields import Model, field


class Colour(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class OtherColour(str, enum.Enum):
    RED = "red"
    GREEN = "green"


class Inner(Model):
    number: int = field(fields.COUNT)
    note: str | None = field(fields.FreeText(5), default=None)


class Plum(Model):
    """Another model. Its name begins with a consonant."""

    size: int = field(fields.COUNT)


class Outer(Model):
    name: str = field(fields.Text(8))
    inner: Inner = field(fields.Object(Inner))
    key: str = field(fields.Text(8), default_factory=lambda: "made")
    subject: Inner | None = field(fields.Object(Inner), on_the_wire=True, default=None)
    colour: Colour | None = field(fields.OneOf(Colour), default=None)
    from_: str | None = field(fields.Text(8), default=None, json_name="from")
    tags: tuple[str, ...] | None = field(fields.ListOf(fields.Text(3), most=2), default=None)
    inners: tuple[Inner, ...] = field(fields.ListOf(fields.Object(Inner)), default=())
    labels: dict[str, str] | None = field(fields.Dimensions(), default=None)
    free: dict[str, object] | None = field(fields.JSON, default=None)
    signed: int | None = field(fields.SIGNED, default=None)
    flag: bool = field(fields.BOOLEAN, default=False)


INNER = {"number": 1}
WHOLE = {
    "name": "n",
    "inner": {"number": 1, "note": "x"},
    "key": "k",
    "subject": {"number": 2},
    "colour": "red",
    "from": "f",
    "tags": ["a", "b"],
    "inners": [{"number": 3}, {"number": 4}],
    "labels": {"a": "b"},
    "free": {"a": [1, None]},
    "signed": -5,
    "flag": True,
}
SAME = Outer(
    "n",
    Inner(1, "x"),
    "k",
    Inner(2),
    Colour.RED,
    "f",
    ("a", "b"),
    (Inner(3), Inner(4)),
    {"a": "b"},
    {"a": [1, None]},
    -5,
    True,
)


# ---- Constructors ----


def test_what_a_constructor_made_is_what_it_was_given():
    assert SAME.name == "n"
    assert SAME.inner.note == "x"
    assert SAME.flag is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name: None is not a string"),
        ({"name": ""}, "name: '' is not at least one character long"),
        ({"name": "x" * 9}, "name: 'xxxxxxxxx' is not at most 8 characters long"),
        ({"name": b"n"}, "name: b'n' is not a string"),
        ({"inner": None}, "inner: None is not an Inner"),
        ({"inner": {"number": 1}}, "inner: {'number': 1} is not an Inner"),
        ({"inner": Plum(1)}, "inner: Plum(size=1) is not an Inner"),
        ({"key": None}, "key: None is not a string"),
        ({"key": ""}, "key: '' is not at least one character long"),
        ({"subject": "acme"}, "subject: 'acme' is not an Inner"),
        ({"colour": "green"}, "colour: 'green' is not one of red, blue"),
        ({"colour": "RED"}, "colour: 'RED' is not one of red, blue"),
        ({"colour": 1}, "colour: 1 is not one of red, blue"),
        ({"colour": []}, "colour: [] is not one of red, blue"),
        ({"colour": OtherColour.GREEN}, "colour: <OtherColour.GREEN: 'green'> is not one of red, blue"),
        ({"from_": "\n"}, r"from_: '\n' is not free of control characters"),
        ({"tags": "ab"}, "tags: 'ab' is not a list"),
        ({"tags": {"a"}}, "tags: {'a'} is not a list"),
        ({"tags": ["a", "b", "c"]}, "tags: ['a', 'b', 'c'] is not a list of at most 2"),
        ({"tags": ["a", "long"]}, "tags: 'long' is not at most 3 characters long"),
        ({"tags": [None]}, "tags: None is not a string"),
        ({"tags": ["a\0"]}, r"tags: 'a\x00' is not free of control characters"),
        ({"inners": None}, "inners: None is not a list"),
        ({"inners": [Inner(1), {"number": 1}]}, "inners: {'number': 1} is not an Inner"),
        ({"labels": {"a": 1}}, "labels.a: 1 is not a string"),
        ({"free": []}, "free: [] is not a mapping"),
        ({"signed": 1.5}, "signed: 1.5 is not an integer"),
        ({"signed": INT64_MIN - 1}, f"signed: {INT64_MIN - 1} is not in {INT64_MIN}..{INT64_MAX}"),
        ({"flag": None}, "flag: None is not true or false"),
        ({"flag": 1}, "flag: 1 is not true or false"),
    ],
)
def test_a_constructor_refuses_and_names_the_field_the_value_and_what_is_allowed(changes, message):
    with pytest.raises(ValidationError) as caught:
        replace(SAME, **changes)
    assert str(caught.value) == message


def test_the_article_fits_the_class():
    with pytest.raises(ValidationError, match=r"^x: 1 is not a Plum$"):
        fields.Object(Plum).check("x", 1)
    with pytest.raises(ValidationError, match=r"^x: 1 is not an Inner$"):
        fields.Object(Inner).check("x", 1)


def test_none_stands_for_an_absent_field_where_none_is_the_default():
    made = replace(SAME, subject=None, colour=None, from_=None, tags=None, labels=None, free=None, signed=None)
    assert made == Outer("n", Inner(1, "x"), "k", inners=(Inner(3), Inner(4)), flag=True)


def test_members_of_an_enumeration_may_be_given_by_their_value():
    assert Outer("n", Inner(1), colour="red").colour is Colour.RED
    assert Outer("n", Inner(1), colour=OtherColour.RED).colour is Colour.RED


def test_lists_become_tuples():
    made = Outer("n", Inner(1), tags=["a"], inners=[Inner(1)])
    assert made.tags == ("a",)
    assert made.inners == (Inner(1),)


def test_what_is_mutable_is_copied():
    labels, free, tags = {"a": "b"}, {"a": [1]}, ["a"]
    made = Outer("n", Inner(1), labels=labels, free=free, tags=tags)
    labels["c"] = "d"
    free["a"].append(2)
    tags.append("b")
    assert (made.labels, made.free, made.tags) == ({"a": "b"}, {"a": [1]}, ("a",))


def test_each_object_gets_its_own_default_from_a_factory():
    keys = iter("ab")

    class Keyed(Model):
        key: str = field(fields.Text(8), default_factory=lambda: next(keys))

    assert (Keyed().key, Keyed().key) == ("a", "b")


def test_fields_of_a_base_class_come_first_and_each_class_has_its_own_layout():
    class Derived(Inner):
        more: int | None = field(fields.COUNT, default=None)

    assert [entry.name for entry in Inner.layout()] == ["number", "note"]
    assert [entry.name for entry in Derived.layout()] == ["number", "note", "more"]
    assert Derived(1, more=2).to_json() == {"number": 1, "more": 2}
    assert Inner.layout() is Inner.layout()


# ---- To JSON ----


def test_the_whole_object_is_written_with_the_names_of_the_wire():
    assert SAME.to_json() == WHOLE


def test_absent_fields_and_false_are_not_written_but_empty_values_are():
    made = Outer("n", Inner(0, ""), tags=(), labels={}, free={}, signed=0)
    assert made.to_json() == {
        "name": "n",
        "inner": {"number": 0, "note": ""},
        "key": "made",
        "tags": [],
        "inners": [],
        "labels": {},
        "free": {},
        "signed": 0,
    }


# ---- From an answer ----


def test_the_whole_object_is_read():
    read = Outer.from_json(WHOLE)
    assert read == SAME
    assert type(read.colour) is Colour
    assert type(read.inners) is tuple
    assert read.extra == {}


def test_unknown_fields_are_carried_along_at_every_level():
    told = {**WHOLE, "new": None, "inner": {**INNER, "newer": [1]}, "inners": [{"number": 3, "newest": {"a": 1}}]}
    read = Outer.from_json(told)
    assert read.extra == {"new": None}
    assert read.inner.extra == {"newer": [1]}
    assert read.inners[0].extra == {"newest": {"a": 1}}
    assert read.subject.extra == {}


def test_an_unknown_member_of_an_enumeration_stays_the_string_it_is():
    read = Outer.from_json({**WHOLE, "colour": "infrared"})
    assert read.colour == "infrared"
    assert type(read.colour) is str
    assert read.to_json()["colour"] == "infrared"


def test_an_answer_may_be_longer_than_a_request():
    """A newer server's texts and lists are taken as they are; numbers still have to fit."""
    read = Outer.from_json(
        {**WHOLE, "name": "x" * 1000, "from": "\n", "tags": ["long"] * 100, "labels": {"": "x" * 1000}}
    )
    assert len(read.name) == 1000
    assert len(read.tags) == 100


def test_null_counts_as_absent_in_an_answer():
    read = Outer.from_json({"name": "n", "inner": INNER, "key": "k", "signed": None, "inners": None, "flag": None})
    assert read == Outer("n", Inner(1), "k")
    assert read.extra == {}


@pytest.mark.parametrize("told", [{"name": None}, {"inner": {"number": None}}, {"key": None}])
def test_null_is_no_value_for_what_an_answer_must_have(told):
    with pytest.raises(ValidationError, match=r"is null$"):
        Outer.from_json({**WHOLE, **told})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"signed": None}, "body: signed is null"),
        ({"inner": {"number": 1, "note": None}}, "inner: note is null"),
        ({"inners": [{"number": 1, "note": None}]}, "inners: note is null"),
        ({"tags": [None]}, "tags: None is not a string"),
    ],
)
def test_where_nulls_are_not_allowed_they_are_refused_at_every_level(told, message):
    Outer.from_json(WHOLE, strict=True)
    with pytest.raises(ValidationError) as caught:
        Outer.from_json({**WHOLE, **told}, strict=True)
    assert str(caught.value) == message


def test_a_strict_reading_still_takes_nulls_in_what_it_does_not_know():
    """The protocol may add fields, and free JSON may hold nulls."""
    told = {**WHOLE, "new": None, "free": {"a": None}, "inner": {**INNER, "new": None}}
    assert Outer.from_json(told, strict=True).free == {"a": None}


@pytest.mark.parametrize("name", ["name", "inner", "key"])
def test_what_an_answer_must_have_is_demanded(name):
    told = {other: value for other, value in WHOLE.items() if other != name}
    with pytest.raises(ValidationError, match=rf"^body: {name} is missing$"):
        Outer.from_json(told)


@pytest.mark.parametrize("data", [None, [], [WHOLE], "x", 1, True, 1.5])
def test_only_an_object_is_an_object(data):
    with pytest.raises(ValidationError, match=r"^body: .+ is not an object$"):
        Outer.from_json(data)
    with pytest.raises(ValidationError, match=r"^body: .+ is not an object$"):
        Outer.parse(data)


@pytest.mark.parametrize("value", [INT64_MIN, -1, 0, INT64_MAX])
def test_integers_are_exact_up_to_both_ends_of_int64(value):
    assert Outer.from_json({**WHOLE, "signed": value}).signed == value
    assert Outer.parse({**WHOLE, "signed": value}).signed == value


@pytest.mark.parametrize("read", [Outer.from_json, Outer.parse], ids=["answer", "request"])
@pytest.mark.parametrize(
    "value", [INT64_MIN - 1, INT64_MAX + 1, 10**100, 0.0, 1.5, 1e18, "100", "", True, False, [], {}]
)
def test_only_integers_of_64_bits_are_integers(read, value):
    with pytest.raises(ValidationError, match=r"^signed: "):
        read({**WHOLE, "signed": value})


# ---- From a request's body ----


def test_a_request_is_parsed_whole():
    assert Outer.parse(WHOLE) == SAME


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new": 1}, "body: unknown field 'new'"),
        ({"new": None}, "body: unknown field 'new'"),
        ({"from_": "f"}, "body: unknown field 'from_'"),
        ({"x" * 1000: 1}, "body: unknown field 'xxx"),
        ({"inner": {"number": 1, "new": 1}}, "inner: unknown field 'new'"),
        ({"subject": {"number": 1, "new": 1}}, "subject: unknown field 'new'"),
        ({"inner": {}}, "inner: number is missing"),
        ({"inner": {"number": None}}, "inner: number is null"),
        ({"inner": []}, "inner: [] is not an object"),
        ({"inner": {"number": "1"}}, "number: '1' is not an integer"),
        ({"inner": {"number": 1.0}}, "number: 1.0 is not an integer"),
        ({"inner": {"number": True}}, "number: True is not an integer"),
        ({"name": "x" * 9}, "name: 'xxxxxxxxx' is not at most 8 characters long"),
        ({"name": "\ud800"}, r"name: '\ud800' is not free of lone surrogates"),
        ({"colour": "green"}, "colour: 'green' is not one of red, blue"),
        ({"tags": ["a", "b", "c"]}, "tags: ['a', 'b', 'c'] is not a list of at most 2"),
        ({"labels": {"a": 1}}, "labels.a: 1 is not a string"),
        ({"free": {"a": float("inf")}}, "free.a: inf is not a finite number"),
        ({"free": "x"}, "free: 'x' is not a mapping"),
        ({"flag": "true"}, "flag: 'true' is not true or false"),
        ({"flag": 0}, "flag: 0 is not true or false"),
    ],
)
def test_a_request_is_refused_for_what_the_protocol_does_not_have(changes, message):
    with pytest.raises(ValidationError) as caught:
        Outer.parse({**WHOLE, **changes})
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["name", "inner", "key", "subject"])
def test_a_request_must_send_what_a_program_may_leave_to_a_default(name):
    told = {other: value for other, value in WHOLE.items() if other != name}
    with pytest.raises(ValidationError, match=rf"^body: {name} is missing$"):
        Outer.parse(told)
    with pytest.raises(ValidationError, match=rf"^body: {name} is null$"):
        Outer.parse({**told, name: None})


def test_null_equals_absent_in_a_request():
    least = {"name": "n", "inner": {"number": 1, "note": None}, "key": "k", "subject": INNER}
    nulls = {name: None for name in WHOLE if name not in least}
    assert Outer.parse({**least, **nulls}) == Outer.parse(least) == Outer("n", Inner(1), "k", Inner(1))


# ---- As values ----


@pytest.mark.parametrize("make", [lambda: SAME, lambda: Outer.from_json(WHOLE)], ids=["made", "read"])
def test_objects_are_frozen(make):
    made = make()
    for name in ("name", "flag", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, "other")
    with pytest.raises(FrozenInstanceError):
        del made.name


def test_equality_is_by_the_fields_and_the_class():
    assert Outer.from_json(WHOLE) == Outer.from_json({**WHOLE, "new": 1}) == SAME
    assert replace(SAME, signed=4) != SAME
    assert Inner(1) != Plum(1)
    assert Inner(1) != (1, None)


def test_objects_without_mappings_are_hashable():
    assert hash(Inner(1)) == hash(Inner(1))
    assert len({Inner(1), Inner(1), Inner(2), Inner.from_json({"number": 1, "new": 2})}) == 2
    with pytest.raises(TypeError):
        hash(SAME)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_keep_what_a_newer_server_added(protocol):
    read = Outer.from_json({**WHOLE, "colour": "infrared", "new": [1], "inner": {"number": 1, "newer": 2}})
    for again in (pickle.loads(pickle.dumps(read, protocol)), copy.copy(read), copy.deepcopy(read)):
        assert again == read
        assert again is not read
        assert type(again) is Outer
        assert again.extra == {"new": [1]}
        assert again.inner.extra == {"newer": 2}


def test_a_repr_shows_the_class_and_every_field():
    assert repr(Inner.from_json({"number": 1, "new": 2})) == "Inner(number=1, note=None)"


def test_every_model_says_what_it_is():
    for each in MODELS:
        assert len(each.__doc__) > 20
        assert not each.__doc__.startswith(each.__name__ + "(")  # what dataclasses put there by themselves
