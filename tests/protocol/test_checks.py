"""What a field may hold: each check takes all that is legal and names what it refuses."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
import uuid

import pytest
from hypothesis import given
from implementation import needs_cpython
from samples import JSON_OBJECTS, Proxy

from cycles_lite.errors import ValidationError
from cycles_lite.protocol import checks, fields
from cycles_lite.protocol.checks import INT64_MAX, INT64_MIN

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Index:
    """Integer-like, as numpy's integers are."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        if self.value is None:  # as a numpy array of several elements
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return self.value


class Level(enum.IntEnum):
    LOW = 1


class Word(str, enum.Enum):
    ACME = "acme"


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


# ---- Idempotency keys ----


def test_every_idempotency_key_is_new_and_128_bits_of_hexadecimal():
    keys = {fields.new_idempotency_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert {len(key) for key in keys} == {32}
    assert all(set(key) <= set("0123456789abcdef") for key in keys)


def test_idempotency_keys_come_from_the_operating_system_at_that_moment(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\x01" * count)
    assert fields.new_idempotency_key() == "01" * 16
    monkeypatch.setattr(os, "urandom", lambda count: b"\x02" * count)
    assert fields.new_idempotency_key() == "02" * 16


FORKING = """
import os, random
from cycles_lite import Amount, CommitRequest
random.seed(1)
CommitRequest(Amount.tokens(1))  # whatever a pool would hold, both processes would have it now
reader, writer = os.pipe()
pid = os.fork()
key = CommitRequest(Amount.tokens(1)).idempotency_key
if pid == 0:
    os.write(writer, key.encode())
    os._exit(0)
os.waitpid(pid, 0)
print(key, os.read(reader, 100).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_makes_other_keys_than_its_parent():
    """In a process of its own: where this one has threads, forking it is warned about."""
    printed = subprocess.run([sys.executable, "-c", FORKING], cwd=HERE, stdout=subprocess.PIPE, check=True).stdout
    parent, child = printed.decode().split()
    assert len(parent) == len(child) == 32
    assert parent != child


# ---- Values in messages ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("acme", "'acme'"),
        (7, "7"),
        (None, "None"),
        (b"x", "b'x'"),
        ([1, "a"], "[1, 'a']"),
        ("a\nb", r"'a\nb'"),
        ("\ud800", r"'\ud800'"),
        (Word.ACME, "<Word.ACME: 'acme'>"),
        (2**2048 - 1, str(2**2048 - 1)[:57] + "..."),
        (2**2048, "<an integer of 2049 bits>"),
        (Unprintable(), "<Unprintable instance at 0x"),
        (Proxy(), "<samples.Proxy object"),
        (type("Lines", (), {"__repr__": lambda self: "a\nb\ud800"})(), r"a\nb\ud800"),
        (b"x" * 57, repr(b"x" * 57)),
        (b"x" * 58, repr(b"x" * 58)[:28]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_as_its_repr(value, expected):
    assert checks.shown(value).startswith(expected)


HUGE = {
    "text": lambda: "x" * 10**7,
    "bytes": lambda: b"x" * 10**7,
    "list": lambda: list(range(10**6)),
    "dictionary": lambda: {number: "x" * 1000 for number in range(1000)},
    "lists in a list": lambda: [["x" * 1000] * 1000] * 1000,
    "integer": lambda: 10**100_000,
    "negative integer": lambda: -(10**100_000),
    "integers in a list": lambda: [10**100_000] * 100,
    "object of a class with a long name": lambda: type("x" * 1000, (), {})(),
    "object of a class with a misleading name": lambda: type("int", (), {})(),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_value_is_shown_short_and_at_once_whatever_it_is(kind):
    value = HUGE[kind]()
    started = time.process_time()
    text = checks.shown(value)
    assert time.process_time() - started < 0.5
    assert 0 < len(text) <= 60


def test_a_bottomless_or_cyclic_value_is_shown():
    cyclic = []
    cyclic.append(cyclic)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert checks.shown(cyclic) == "[[[...]]]"
    assert checks.shown(deep) == "[[[...]]]"
    while deep:  # taken apart by hand: older Pythons recurse when they free it
        deep = deep.pop()


# ---- Integers and bools ----


def test_the_ends_of_int64():
    assert (INT64_MIN, INT64_MAX) == (-9223372036854775808, 9223372036854775807)


@pytest.mark.parametrize(("low", "high"), [(0, INT64_MAX), (INT64_MIN, INT64_MAX), (1000, 86_400_000), (1, 200)])
def test_integers_are_taken_up_to_their_bounds_and_refused_beyond(low, high):
    for legal in (low, high, low + 1, high - 1):
        assert checks.integer("field", legal, low, high) == legal
        assert checks.integer("field", Index(legal), low, high) == legal
    for illegal in (low - 1, high + 1, low - 10**30, high + 10**30, 2**100_000):
        for value in (illegal, Index(illegal)):
            with pytest.raises(ValidationError, match=rf"^field: .+ is not in {low}\.\.{high}$"):
                checks.integer("field", value, low, high)


@pytest.mark.parametrize("value", [Index(1), Level.LOW])
def test_integer_like_values_become_plain_integers(value):
    """So that neither JSON nor a pickle depends on the program's own class."""
    made = checks.integer("field", value, 0, 10)
    assert type(made) is int
    assert made == 1


@pytest.mark.parametrize(
    "value",
    [True, False, 1.0, 1.5, float("nan"), float("inf"), 1j, "1", b"1", None, [], [1], {}, int, Index, Index(None)],
)
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValidationError, match=r"^field: .+ is not an integer$"):
        checks.integer("field", value, 0, 10)


@pytest.mark.parametrize("value", [0, 1, None, "true", b"", [], 1.0, Index(1)])
def test_only_true_and_false_are_bools(value):
    assert checks.boolean("field", True) is True
    assert checks.boolean("field", False) is False
    with pytest.raises(ValidationError, match=r"^field: .+ is not true or false$"):
        checks.boolean("field", value)


# ---- Text ----

CONTROLS = [chr(code) for code in [*range(32), *range(127, 160)]]
NOT_TEXT = [None, 7, 1.5, True, b"acme", bytearray(b"acme"), ["acme"], {"acme": 1}, object]


@pytest.mark.parametrize("check", [checks.text, checks.free_text])
@pytest.mark.parametrize("value", NOT_TEXT, ids=repr)
def test_what_is_no_string_is_refused(check, value):
    with pytest.raises(ValidationError, match=r"^field: .+ is not a string$"):
        check("field", value, 10)


@pytest.mark.parametrize("check", [checks.text, checks.free_text])
@pytest.mark.parametrize("character", ["x", "é", "字", "😀"], ids=["ascii", "latin", "cjk", "astral"])
def test_text_is_bounded_by_its_characters_and_not_by_its_bytes(check, character):
    assert check("field", character * 128, 128) == character * 128
    with pytest.raises(ValidationError, match=r"^field: .+ is not at most 128 characters long$"):
        check("field", character * 129, 128)


@pytest.mark.parametrize("check", [checks.text, checks.free_text])
@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\ud83d\ude00", "x" * 100 + "\ud800"], ids=ascii)
def test_lone_surrogates_are_refused(check, value):
    """They cannot be encoded. The message can be."""
    with pytest.raises(ValidationError, match=r"is not free of lone surrogates$") as caught:
        check("field", value, 200)
    str(caught.value).encode("ascii")


def test_an_identifier_is_not_empty():
    assert checks.free_text("field", "", 10) == ""
    with pytest.raises(ValidationError, match=r"^field: '' is not at least one character long$"):
        checks.text("field", "", 10)


def test_an_identifier_has_no_control_characters_but_free_text_may():
    for character in CONTROLS:
        for value in (character, character + "a", f"a{character}b", "a" + character):
            assert checks.free_text("field", value, 10) == value
            with pytest.raises(ValidationError, match=r"^field: .+ is not free of control characters$") as caught:
                checks.text("field", value, 10)
            assert character not in str(caught.value)


@pytest.mark.parametrize("value", [" ", "a b", "a:b/c", "é", "\u00a0", "\u200b", "\u2028", "\u202e", "\ue000", "😀"])
def test_what_the_protocol_only_advises_against_is_left_to_the_server(value):
    assert checks.text("field", value, 10) == value


@pytest.mark.parametrize("check", [checks.text, checks.free_text])
def test_a_member_of_an_enumeration_of_strings_is_its_value_and_not_its_name(check):
    made = check("field", Word.ACME, 10)
    assert type(made) is str
    assert made == "acme"


@pytest.mark.parametrize("check", [checks.text, checks.free_text])
def test_long_text_is_checked_at_once(check):
    """Megabytes with a line end in them, as prompts in metadata have, are not gone through by the character."""
    long = "x" * 10**7 + ("\n" if check is checks.free_text else "\u2028")
    started = time.process_time()
    taken = check("field", long, INT64_MAX)
    assert time.process_time() - started < 0.5
    assert taken is long


# ---- Dimensions ----


def test_dimensions_are_at_most_sixteen_texts_of_at_most_256_characters_and_copied():
    given = {f"dimension{number}": "x" * 256 for number in range(16)}
    made = checks.dimensions("dimensions", given)
    assert made == given
    assert made is not given
    with pytest.raises(ValidationError, match=r"^dimensions: .+ is not a mapping of at most 16 entries$"):
        checks.dimensions("dimensions", {**given, "one_more": "x"})
    with pytest.raises(ValidationError, match=r"^dimensions\.a: .+ is not at most 256 characters long$"):
        checks.dimensions("dimensions", {"a": "x" * 257})


def test_dimensions_are_opaque_strings():
    """Protocol: values are opaque strings, and no bound is put on the names."""
    given = {"a": "", "b": "line\nline", "x" * 1000: "1", "": "c", "a\0": "d"}
    assert checks.dimensions("dimensions", types.MappingProxyType(given)) == given


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "dimensions: None is not a mapping of strings"),
        ([("a", "b")], "dimensions: [('a', 'b')] is not a mapping of strings"),
        ("a", "dimensions: 'a' is not a mapping of strings"),
        ({"a": 1}, "dimensions.a: 1 is not a string"),
        ({"a": None}, "dimensions.a: None is not a string"),
        ({"a": b"b"}, "dimensions.a: b'b' is not a string"),
        ({1: "b"}, "dimensions: 1 is not a string"),
        ({None: None}, "dimensions: None is not a string"),
        ({"\ud800": "b"}, r"dimensions: '\ud800' is not free of lone surrogates"),
        ({"a": "\ud800"}, r"dimensions.a: '\ud800' is not free of lone surrogates"),
        ({"x" * 100: 1}, "dimensions: 1 is not a string"),
    ],
)
def test_other_dimensions_are_refused(value, message):
    with pytest.raises(ValidationError) as caught:
        checks.dimensions("dimensions", value)
    assert str(caught.value) == message


# ---- JSON objects ----


def test_a_json_object_is_copied_through_and_through():
    given = {
        "list": [1, {"deep": [2]}],
        "tuple": (1, 2),
        "mapping": types.MappingProxyType({"a": None}),
        "text": Word.ACME,
    }
    made = checks.json_object("metadata", given)
    given["list"][1]["deep"].append(3)
    given["new"] = 1
    assert made == {"list": [1, {"deep": [2]}], "tuple": [1, 2], "mapping": {"a": None}, "text": "acme"}
    assert type(made["mapping"]) is dict
    assert type(made["text"]) is str


def nested(depth, container):
    """An object and what is in it: `depth` containers, each in the one before."""
    value = container()
    for _ in range(depth - 2):
        value = {"a": value} if container is dict else [value]
    return {"a": value}


@pytest.mark.parametrize("container", [dict, list])
def test_a_json_object_is_at_most_200_deep(container):
    """Which `json` can still write and read."""
    deepest = checks.json_object("metadata", nested(200, container))
    assert deepest == nested(200, container)
    assert json.loads(json.dumps(deepest)) == deepest
    with pytest.raises(ValidationError, match=r"is not nested at most 200 deep$") as caught:
        checks.json_object("metadata", nested(201, container))
    assert str(caught.value).startswith("metadata.a")
    assert len(str(caught.value)) < 200


def cyclic_mapping():
    value = {}
    value["itself"] = value
    return value


def cyclic_list():
    value = []
    value.append(value)
    return {"list": value}


@pytest.mark.parametrize("make", [cyclic_mapping, cyclic_list])
def test_a_cyclic_json_object_is_refused_with_a_short_message(make):
    with pytest.raises(ValidationError, match=r"is not nested at most 200 deep$") as caught:
        checks.json_object("metadata", make())
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "metadata: None is not a mapping"),
        ([], "metadata: [] is not a mapping"),
        ("{}", "metadata: '{}' is not a mapping"),
        ({1: 2}, "metadata: 1 is not a string"),
        ({None: 2}, "metadata: None is not a string"),
        ({b"a": 2}, "metadata: b'a' is not a string"),
        ({("a",): object()}, "metadata: ('a',) is not a string"),
        ({"\ud800": 2}, r"metadata: '\ud800' is not free of lone surrogates"),
        ({"a": "\ud800"}, r"metadata.a: '\ud800' is not free of lone surrogates"),
        ({"a": {"b": ["c", "\ud800"]}}, r"metadata.a.b: '\ud800' is not free of lone surrogates"),
        ({"a": float("nan")}, "metadata.a: nan is not a finite number"),
        ({"a": [float("inf")]}, "metadata.a: inf is not a finite number"),
        ({"a": {"b": float("-inf")}}, "metadata.a.b: -inf is not a finite number"),
        ({"a": b"b"}, "metadata.a: b'b' is not a JSON value"),
        ({"a": {1, }}, "metadata.a: {1} is not a JSON value"),
        ({"a": {"b": {2: 3}}}, "metadata.a.b: 2 is not a string"),
        ({"a": 1j}, "metadata.a: 1j is not a JSON value"),
        ({"a": 2**2048}, "metadata.a: <an integer of 2049 bits> is not an integer of at most 2048 bits"),
        ({"a": -(2**2048)}, "metadata.a: <an integer of 2049 bits> is not an integer of at most 2048 bits"),
        ({"x" * 1000: b""}, "metadata: b'' is not a JSON value"),
        ({"a\nb": b""}, "metadata: b'' is not a JSON value"),
    ],
)  # fmt: skip
def test_what_json_does_not_have_is_refused_by_its_path(value, message):
    with pytest.raises(ValidationError) as caught:
        checks.json_object("metadata", value)
    assert str(caught.value) == message


def test_the_names_of_a_json_object_may_be_any_text():
    given = {"": 1, "a\nb": 2, "é😀": 3, "x" * 1000: 4}
    assert checks.json_object("metadata", given) == given


@given(JSON_OBJECTS)
def test_a_legal_json_object_is_equal_to_its_copy(value):
    assert checks.json_object("metadata", value) == value


class LazyMapping(collections.abc.Mapping):
    """A mapping that is no dict, as a framework's headers or settings may be."""

    def __getitem__(self, name):
        return {"a": 1}[name]

    def __iter__(self):
        return iter(["a"])

    def __len__(self):
        return 1


def test_any_mapping_is_taken():
    assert checks.json_object("metadata", LazyMapping()) == {"a": 1}
    assert checks.json_object("metadata", collections.OrderedDict(a={"b": 1})) == {"a": {"b": 1}}


# ---- Whatever a program has ----


def raising(error, *methods):
    """A class whose methods raise it."""

    def fail(self, *arguments):
        raise error

    return {method: fail for method in methods}


class Boom(Exception):
    pass


MAPPING_METHODS = ("__getitem__", "__iter__", "__len__", "keys", "items", "__contains__")
EVERYTHING = (*MAPPING_METHODS, "__repr__", "__str__", "__eq__", "__hash__", "__bool__", "__int__", "__float__")


def of_class(base, value, *methods):
    return type("Strange", (base,), raising(Boom("mine"), *methods))(value)


def changing():
    """A mapping that does not hold still."""

    class Changing(dict):
        def keys(self):
            for key in dict.keys(self):
                self[key + "x"] = 1
                yield key

        __iter__ = keys

    return Changing(a=1)


#: What stands in metadata, and whether it is refused.
STRANGE = {
    "a date": (lambda: datetime.datetime(2026, 1, 1), True),
    "a decimal": (lambda: decimal.Decimal("0.5"), True),
    "a uuid": (lambda: uuid.UUID(int=7), True),
    "a set": (lambda: {1}, True),
    "bytes": (lambda: b"x", True),
    "NaN": (lambda: float("nan"), True),
    "an infinity": (lambda: float("-inf"), True),
    "an integer as a key": (lambda: {1: 2}, True),
    "a cyclic mapping": (cyclic_mapping, True),
    "a cyclic list": (cyclic_list, True),
    "a mapping 70 deep": (lambda: nested(70, dict), False),
    "a list 70 deep": (lambda: nested(70, list), False),
    "a mapping 10,000 deep": (lambda: nested(10_000, dict), True),
    "an endless integer": (lambda: 10**100_000, True),
    "an endless integer of a class": (lambda: type("Huge", (int,), {})(10**100_000), True),
    "a lone surrogate": (lambda: "\ud800", True),
    "a lone surrogate as a key": (lambda: {"\ud800": 1}, True),
    "a class": (lambda: dict, True),
    "a function": (lambda: print, True),
    "a generator": (lambda: (number for number in range(3)), True),
    "an object without a repr": (Unprintable, True),
    "a proxy of nothing": (Proxy, True),
    "an object that can do nothing": (lambda: type("Strange", (), raising(Boom("mine"), *EVERYTHING))(), True),
    "an object with a strange class": (
        lambda: type("Strange", (), {"__class__": property(lambda self: 1 / 0)})(),
        True,
    ),
    "a lazy mapping that fails": (
        lambda: type("Strange", (collections.abc.Mapping,), raising(Boom("mine"), *MAPPING_METHODS))(),
        True,
    ),
    "a lazy mapping without memory": (
        lambda: type("Strange", (collections.abc.Mapping,), raising(MemoryError(), *MAPPING_METHODS))(),
        True,
    ),
    "a list that fails": (lambda: of_class(list, [1], "__iter__", "__len__", "__repr__"), True),
    "a dictionary that fails": (lambda: of_class(dict, {"a": 1}, *EVERYTHING), None),
    "a text that fails": (lambda: of_class(str, "x", *set(EVERYTHING) - {"__hash__", "__eq__"}, "isprintable"), False),
    "an integer that fails": (lambda: of_class(int, 7, *EVERYTHING, "bit_length", "__index__"), False),
    "a float that fails": (lambda: of_class(float, 7.5, *EVERYTHING, "__sub__"), False),
    "a mapping that changes": (changing, None),
    "a member of an enumeration": (lambda: Level.LOW, False),
    "a text of a class": (lambda: Word.ACME, False),
}


def outcome(check):
    """What a check made of a value, or the message that refused it."""
    try:
        return check(), None
    except ValidationError as e:
        return None, str(e)


@pytest.mark.parametrize("where", ["alone", "in a mapping", "in a list", "as a key"])
@pytest.mark.parametrize("name", STRANGE)
def test_whatever_stands_in_metadata_is_copied_or_refused(name, where):
    """Never anything but a `ValidationError` that names the field: decoration must not stop a settlement."""
    make, is_refused = STRANGE[name]
    value = make()
    if where == "as a key":
        try:
            holder = {value: 1}
        except Exception:
            return  # it is no key
    else:
        holder = {"alone": value, "in a mapping": {"a": value}, "in a list": {"a": [value]}}[where]
    made, message = outcome(lambda: checks.json_object("metadata", holder))
    if message is None:
        assert is_refused in (False, None)
        assert json.loads(json.dumps(made, allow_nan=False)) == made
    else:
        assert is_refused in (True, None) or where in ("alone", "as a key")
        assert message.startswith("metadata")
        assert len(message.encode("utf-8")) < 250


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize(
    "check",
    [
        lambda value: checks.text("field", value, 9),
        lambda value: checks.free_text("field", value, 9),
        lambda value: checks.words("field", value, 9),
        lambda value: checks.integer("field", value, 0, 9),
        lambda value: checks.rounded("field", value, 9),
        lambda value: checks.boolean("field", value),
        lambda value: checks.dimensions("field", value),
        lambda value: checks.dimensions("field", {"a": value}),
        lambda value: checks.items("field", value),
    ],
)
def test_no_check_raises_anything_else(check, name):
    _, message = outcome(lambda: check(STRANGE[name][0]()))
    assert message is None or message.startswith("field")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_none_of_the_values_faults(stop):
    strange = type("Strange", (collections.abc.Mapping,), raising(stop(), *MAPPING_METHODS))()
    with pytest.raises(stop):
        checks.json_object("metadata", {"a": strange})


def test_an_exception_of_a_signal_handler_is_none_of_the_values_faults():
    """Where no method of the program's runs, whatever is raised comes from outside, and goes on."""
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Boom("time is up")))
    wide = {"a": [{"b": "c"}] * 50_000}

    def check_for_ever():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        collections.deque((checks.json_object("metadata", wide) for _ in itertools.count()), maxlen=0)

    gc.disable()  # hypothesis has a function called then, out of which nothing is raised
    try:
        with pytest.raises(Boom):
            check_for_ever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


@needs_cpython
def test_a_program_that_is_deep_down_already_gets_a_refusal():
    def below(depth):
        if depth:
            return below(depth - 1)
        return checks.json_object("metadata", nested(199, dict))

    with pytest.raises(ValidationError, match=r"^metadata"):
        below(sys.getrecursionlimit() - 150)


def test_a_mapping_that_another_thread_changes_is_copied():
    shared = {str(number): number for number in range(1000)}
    ended = threading.Event()

    def change():
        while not ended.is_set():
            shared["more"] = 1
            shared.pop("more")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert len(checks.json_object("metadata", {"a": shared})["a"]) in (1000, 1001)
    finally:
        ended.set()
        thread.join()
