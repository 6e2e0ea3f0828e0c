"""Amounts, subjects, actions, caps and metrics; the protocol's words."""

from __future__ import annotations

import copy
import decimal
import doctest
import json
import pickle
import time

import pytest
from hypothesis import given, strategies as st

from cycles_lite import errors, values
from cycles_lite.checks import INT64_MAX, INT64_MIN
from cycles_lite.errors import ValidationError
from cycles_lite.values import (
    SUBJECT_LEVELS,
    Action,
    Amount,
    Caps,
    CommitOveragePolicy,
    CyclesMetrics,
    Decision,
    ErrorCode,
    ReservationStatus,
    SignedAmount,
    SortDirection,
    Subject,
    Unit,
)

ENUMERATIONS = [Unit, Decision, CommitOveragePolicy, ReservationStatus, SortDirection, ErrorCode]
MEMBERS = [member for enumeration in ENUMERATIONS for member in enumeration]


def test_the_examples_in_docstrings_hold():
    failed, attempted = doctest.testmod(values)
    assert attempted >= 1
    assert failed == 0


# ---- Amount ----


@pytest.mark.parametrize(
    ("make", "unit"),
    [
        (Amount.usd_microcents, Unit.USD_MICROCENTS),
        (Amount.tokens, Unit.TOKENS),
        (Amount.credits, Unit.CREDITS),
        (Amount.risk_points, Unit.RISK_POINTS),
    ],
)
def test_there_is_a_constructor_for_each_unit(make, unit):
    for number in (0, 1, INT64_MAX):
        amount = make(number)
        assert amount == Amount(unit, number)
        assert amount.unit is unit
        assert amount.amount == number
    for illegal in (-1, INT64_MAX + 1, 1.0, True, "1", None):
        with pytest.raises(ValidationError, match=r"^amount: "):
            make(illegal)


def test_there_is_a_constructor_for_no_other_unit():
    assert len(Unit) == 4
    with pytest.raises(
        ValidationError, match=r"^unit: 'EUR' is not one of USD_MICROCENTS, TOKENS, CREDITS, RISK_POINTS$"
    ):
        Amount("EUR", 1)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (-1, "amount: -1 is not in 0..9223372036854775807"),
        (2**63, "amount: 9223372036854775808 is not in 0..9223372036854775807"),
        (0.0, "amount: 0.0 is not an integer"),
        (1e3, "amount: 1000.0 is not an integer"),
        (float("nan"), "amount: nan is not an integer"),
        (decimal.Decimal(1), "amount: Decimal('1') is not an integer"),
        (True, "amount: True is not an integer"),
        (False, "amount: False is not an integer"),
        ("1", "amount: '1' is not an integer"),
        (None, "amount: None is not an integer"),
    ],
)
def test_an_amount_is_an_integer_of_63_bits(amount, message):
    with pytest.raises(ValidationError) as caught:
        Amount(Unit.TOKENS, amount)
    assert str(caught.value) == message


def test_a_signed_amount_may_be_negative():
    for number in (INT64_MIN, -1, 0, INT64_MAX):
        assert SignedAmount(Unit.TOKENS, number).amount == number
    for illegal in (INT64_MIN - 1, INT64_MAX + 1, -1.0):
        with pytest.raises(ValidationError, match=r"^amount: "):
            SignedAmount(Unit.TOKENS, illegal)


def test_amounts_of_different_units_or_classes_differ():
    assert Amount.tokens(1) != Amount.credits(1)
    assert Amount.tokens(1) != SignedAmount(Unit.TOKENS, 1)
    assert len({Amount.tokens(1), Amount("TOKENS", 1), Amount.tokens(2)}) == 2


@pytest.mark.parametrize(
    ("dollars", "microcents"),
    [
        ("0", 0),
        ("0.05", 5_000_000),
        ("1", 100_000_000),
        ("1.0", 100_000_000),
        ("007.50", 750_000_000),
        ("0.00000001", 1),
        ("0.000000010", 1),
        ("0.100000000000000000000", 10_000_000),
        ("1.23456789", 123_456_789),
        ("0." + "0" * 10_000, 0),
        ("0" * 10_000 + "1", 100_000_000),
        ("0.29", 29_000_000),  # 0.29 * 10**8 is 28999999.999999996
        ("90071992.54740993", 9007199254740993),  # 2^53 + 1, which no float holds
        ("92233720368.54775807", INT64_MAX),
    ],
    ids=lambda value: str(value)[:40],
)
def test_dollars_are_exact(dollars, microcents):
    amount = Amount.usd(dollars)
    assert amount == Amount.usd_microcents(microcents)
    assert type(amount.amount) is int


@pytest.mark.parametrize(
    "dollars",
    [
        "",
        " ",
        " 1",
        "1 ",
        "1\n",
        "1.",
        ".5",
        ".",
        "-1",
        "-0",
        "+1",
        "1e3",
        "1E3",
        "1_000",
        "1,000.00",
        "1,5",
        "$1",
        "1$",
        "0x10",
        "inf",
        "nan",
        "1.2.3",
        "0.000000001",
        "0.123456789",
        "1.000000001",
        "\u0663",
        "\uff11",
        "1.\uff15",
        "²",
        "92233720368.54775808",
        "92233720369",
        "100000000000",
        "1000000000000",
        1,
        0.05,
        True,
        None,
        b"1",
        decimal.Decimal("0.05"),
        ["1"],
    ],
    ids=ascii,
)
def test_what_is_no_exact_sum_of_dollars_is_refused(dollars):
    with pytest.raises(
        ValidationError, match=r"^dollars: .+ is not a decimal string such as \"0\.05\", exact to 10\^-8"
    ):
        Amount.usd(dollars)


@pytest.mark.parametrize(
    "dollars",
    ["9" * 10**5, "0." + "9" * 10**5, "0" * 10**5 + "x", "1." + "0" * 10**5 + "1"],
    ids=lambda value: value[:2] + "..." + value[-1],
)
def test_endless_digits_are_refused_at_once(dollars):
    started = time.process_time()
    with pytest.raises(ValidationError) as caught:
        Amount.usd(dollars)
    assert time.process_time() - started < 0.5
    assert len(str(caught.value)) < 200


@given(st.integers(0, INT64_MAX))
def test_every_amount_can_be_written_in_dollars(microcents):
    assert Amount.usd("{}.{:08d}".format(*divmod(microcents, values.MICROCENTS_PER_USD))).amount == microcents


# ---- Subject ----


def test_the_levels_are_in_the_order_of_the_hierarchy():
    assert SUBJECT_LEVELS == ("tenant", "workspace", "app", "workflow", "agent", "toolset")
    assert tuple(entry.name for entry in values.Levels.layout()) == SUBJECT_LEVELS
    assert Subject("t", "w", "a", "f", "g", "s").to_json() == dict(zip(SUBJECT_LEVELS, "twafgs"))


@pytest.mark.parametrize("level", SUBJECT_LEVELS)
def test_one_level_makes_a_subject(level):
    assert Subject(**{level: "x"}).to_json() == {level: "x"}
    assert Subject(**{level: "x" * 128}).to_json() == {level: "x" * 128}
    with pytest.raises(ValidationError, match=rf"^{level}: .+ is not at most 128 characters long$"):
        Subject(**{level: "x" * 129})
    for illegal in ("", "a\n", "\x00", "a\x7f", "\x9f", "\udc80", 7, b"x", ["x"]):
        with pytest.raises(ValidationError, match=rf"^{level}: "):
            Subject(**{level: illegal})


@pytest.mark.parametrize("nothing", [{}, {"tenant": None}, {"dimensions": {}}, {"dimensions": {"cost_center": "17"}}])
def test_a_subject_needs_a_level(nothing):
    """Protocol: a subject containing only `dimensions` is invalid."""
    with pytest.raises(ValidationError) as caught:
        Subject(**nothing)
    message = "subject: at least one of tenant, workspace, app, workflow, agent, toolset is needed"
    assert str(caught.value) == message
    with pytest.raises(ValidationError):
        Subject.parse(nothing)


@pytest.mark.parametrize("value", [" ", "a b", "a/b", "a:b", "é", "A"])
def test_levels_that_only_some_servers_refuse_are_sent(value):
    """Protocol, CHARSET: values SHOULD match a pattern, and servers MAY reject others."""
    assert Subject(tenant=value).tenant == value


def test_a_server_may_send_a_subject_without_levels():
    assert Subject.from_json({"dimensions": {"a": "b"}}).dimensions == {"a": "b"}


# ---- Action, metrics, caps ----


@pytest.mark.parametrize(("name", "longest"), [("kind", 64), ("name", 256)])
def test_an_action_has_a_kind_and_a_name(name, longest):
    usual = {"kind": "llm.completion", "name": "gpt-4o"}
    assert getattr(Action(**{**usual, name: "x" * longest}), name) == "x" * longest
    for illegal in ("x" * (longest + 1), "", "a\r\nb", "\ud800", None, 7, b"x"):
        with pytest.raises(ValidationError, match=rf"^{name}: "):
            Action(**{**usual, name: illegal})


def test_an_action_has_at_most_ten_tags_of_at_most_64_characters():
    assert len(Action("k", "n", ["x" * 64] * 10).tags) == 10
    for illegal in (["x"] * 11, ["x" * 65], ["a\n"], ["\ud800"], [""], [7], [None], "prod", {"prod"}, {"prod": 1}):
        with pytest.raises(ValidationError, match=r"^tags: "):
            Action("k", "n", illegal)


@pytest.mark.parametrize("name", ["tokens_input", "tokens_output", "latency_ms"])
def test_metrics_count(name):
    for number in (0, INT64_MAX):
        assert CyclesMetrics(**{name: number}).to_json() == {name: number}
    for illegal in (-1, INT64_MAX + 1, 1.5, True, "1"):
        with pytest.raises(ValidationError, match=rf"^{name}: "):
            CyclesMetrics(**{name: illegal})


def test_custom_metrics_are_a_json_object_and_copied():
    custom = {"steps": [1, 2.5, None]}
    metrics = CyclesMetrics(model_version="x" * 128, custom=custom)
    custom["steps"].append(3)
    assert metrics.custom == {"steps": [1, 2.5, None]}
    for illegal in ({"a": float("nan")}, {1: 2}, {"a": object()}, [], "x"):
        with pytest.raises(ValidationError, match=r"^custom"):
            CyclesMetrics(custom=illegal)
    with pytest.raises(ValidationError, match=r"^model_version: "):
        CyclesMetrics(model_version="x" * 129)


def test_caps_are_bounded():
    for name in ("max_tokens", "max_steps_remaining", "cooldown_ms"):
        assert Caps(**{name: 0}).to_json() == {name: 0}
        for illegal in (-1, 1.0, True, "1"):
            with pytest.raises(ValidationError, match=rf"^{name}: "):
                Caps(**{name: illegal})
    for name in ("tool_allowlist", "tool_denylist"):
        assert Caps(**{name: ["x" * 256] * 100}).to_json() == {name: ["x" * 256] * 100}
        for illegal in (["x" * 257], [""], ["a\n"], [7], "search"):
            with pytest.raises(ValidationError, match=rf"^{name}: "):
                Caps(**{name: illegal})


@pytest.mark.parametrize(
    ("allowlist", "denylist", "allowed", "refused"),
    [
        (None, None, ["search", ""], []),
        ((), (), ["search"], []),
        (("search",), None, ["search"], ["Search", "search ", "mail", ""]),
        (("search", "mail"), ("search",), ["search", "mail"], ["other"]),
        (("search",), ("search",), ["search"], ["other"]),
        (None, ("search",), ["mail", "Search", "searches", ""], ["search"]),
        ((), ("search",), ["mail"], ["search"]),
    ],
)
def test_a_non_empty_allowlist_wins_over_the_denylist(allowlist, denylist, allowed, refused):
    """Protocol: `Caps`, PRECEDENCE RULES; names are case-sensitive and match exactly."""
    caps = Caps(tool_allowlist=allowlist, tool_denylist=denylist)
    assert [name for name in allowed if not caps.is_tool_allowed(name)] == []
    assert [name for name in refused if caps.is_tool_allowed(name)] == []


# ---- Words ----


def test_a_word_is_a_string_and_prints_as_its_value():
    """On Python 3.7 too, where an enumeration's own `__str__` is easily lost: queries are made of `str(word)`."""
    for member in MEMBERS:
        assert isinstance(member, str)
        assert str(member) == f"{member}" == f"{member:s}" == "%s" % member == member.value == member  # noqa: UP031
        assert f"{member:>40}" == member.value.rjust(40)
        assert json.dumps({"a": member}) == json.dumps({"a": member.value})
        assert member.value in repr(member)
        assert {member.value: 1}[member] == 1


def test_a_copied_or_pickled_word_is_itself():
    for member in MEMBERS:
        assert copy.deepcopy(member) is member
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(member, protocol)) is member


def test_each_error_code_is_known_to_the_errors_table():
    for code in ErrorCode:
        assert errors.error_class(400, code, reserves=True, settles=False) is not errors.ApiError
