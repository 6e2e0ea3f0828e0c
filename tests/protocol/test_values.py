"""Amounts, subjects, actions, caps and metrics; the protocol's words."""

from __future__ import annotations

import copy
import decimal
import doctest
import fractions
import json
import operator
import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import given, strategies as st

from cycles_lite import errors
from cycles_lite.errors import ErrorCode, ValidationError
from cycles_lite.protocol import values
from cycles_lite.protocol.checks import INT64_MAX, INT64_MIN
from cycles_lite.protocol.values import (
    SUBJECT_LEVELS,
    Action,
    Amount,
    Caps,
    CommitOveragePolicy,
    CyclesMetrics,
    Decision,
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


def test_amounts_are_equal_in_unit_and_number():
    """With or without a sign, so that the order below is one."""
    assert Amount.tokens(1) != Amount.credits(1)
    assert Amount.tokens(1) == SignedAmount(Unit.TOKENS, 1)
    assert len({Amount.tokens(1), Amount("TOKENS", 1), Amount.tokens(2), SignedAmount(Unit.TOKENS, 1)}) == 2
    for other in (1, (Unit.TOKENS, 1), "1 TOKENS", None):
        assert Amount.tokens(1) != other


class Count:
    """Integer-like, as numpy's integers are."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_whatever_has_an_index_counts_as_an_integer():
    for make in (Amount.tokens, Amount.usd):
        assert make(Count(7)) == make(7)
        assert type(make(Count(7)).amount) is int
        with pytest.raises(ValidationError, match=r"is not in 0\.\."):
            make(Count(-1))


def test_integers_of_numpy_count_and_its_floats_and_bools_do_not():
    numpy = pytest.importorskip("numpy")
    for kind in (numpy.int8, numpy.int64, numpy.uint64, numpy.intp):
        assert Amount.tokens(kind(7)) == Amount.tokens(7)
        assert Amount.usd(kind(7)) == Amount.usd("7")
    assert Amount.tokens(numpy.arange(9).sum()) == Amount.tokens(36)
    for value in (numpy.float64(7), numpy.float32(7), numpy.bool_(True), numpy.array([7, 8]), numpy.array(7.0)):
        for make in (Amount.tokens, Amount.usd):
            with pytest.raises(ValidationError):
                make(value)
    for kind in (numpy.float64, numpy.float32):
        assert CyclesMetrics(latency_ms=kind(12.7)).latency_ms == 13


# ---- Arithmetic ----


def test_amounts_of_one_unit_add_and_subtract():
    assert Amount.tokens(2) + Amount.tokens(3) == Amount.tokens(5)
    assert Amount.tokens(3) - Amount.tokens(3) == Amount.tokens(0)
    assert sum([Amount.usd("0.1")] * 3, Amount.usd(0)) == Amount.usd("0.3")
    left = SignedAmount(Unit.TOKENS, 2) - Amount.tokens(3)
    assert (left, type(left)) == (SignedAmount(Unit.TOKENS, -1), SignedAmount)
    assert type(Amount.tokens(2) + SignedAmount(Unit.TOKENS, -1)) is Amount
    made = Amount.tokens(2) + Amount.tokens(3)
    assert (made.to_json(), hash(made)) == ({"unit": "TOKENS", "amount": 5}, hash(Amount.tokens(5)))
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("calculate", "message"),
    [
        (lambda: Amount.tokens(1) - Amount.tokens(2), "difference: -1 is not in 0..9223372036854775807"),
        (
            lambda: Amount.tokens(INT64_MAX) + Amount.tokens(1),
            "sum: 9223372036854775808 is not in 0..9223372036854775807",
        ),
        (
            lambda: SignedAmount(Unit.TOKENS, INT64_MIN) - Amount.tokens(1),
            "difference: -9223372036854775809 is not in -9223372036854775808..9223372036854775807",
        ),
        (lambda: Amount.tokens(1) + Amount.credits(1), "unit: 1 TOKENS and 1 CREDITS are not of one unit"),
        (lambda: Amount.usd(1) - Amount.credits(1), "unit: 1 USD and 1 CREDITS are not of one unit"),
        (lambda: Amount.tokens(1) < Amount.credits(2), "unit: 1 TOKENS and 2 CREDITS are not of one unit"),
        (lambda: max(Amount.usd(1), Amount.credits(2)), "unit: 2 CREDITS and 1 USD are not of one unit"),
    ],
)
def test_what_cannot_be_calculated_is_refused(calculate, message):
    with pytest.raises(ValidationError) as caught:
        calculate()
    assert str(caught.value) == message


@pytest.mark.parametrize("other", [0, 1, 1.0, "1", None, True, decimal.Decimal(1)])
def test_an_amount_and_a_bare_number_are_of_no_one_unit(other):
    for calculate in (operator.add, operator.sub, operator.lt, operator.le, operator.gt, operator.ge):
        for pair in ((Amount.tokens(1), other), (other, Amount.tokens(1))):
            with pytest.raises(TypeError):
                calculate(*pair)
    with pytest.raises(TypeError):
        sum([Amount.tokens(1)])


@given(
    st.lists(
        st.builds(SignedAmount, st.just(Unit.TOKENS), st.integers(-9, 9)) | st.builds(Amount.tokens, st.integers(0, 9)),
        max_size=6,
    )
)
def test_amounts_of_one_unit_are_in_one_order(amounts):
    assert [found.amount for found in sorted(amounts)] == sorted(found.amount for found in amounts)
    for one in amounts:
        for other in amounts:
            assert (one < other) + (one == other) + (one > other) == 1
            assert (one <= other) == (one < other or one == other)
            assert (one >= other) == (one > other or one == other)


@given(st.integers(0, 2**62), st.integers(0, 2**62 - 1))
def test_sums_are_exact(one, other):
    both = Amount.tokens(one) + Amount.tokens(other)
    assert both.amount == one + other
    assert both - Amount.tokens(other) == Amount.tokens(one)


# ---- For people ----


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Amount.tokens(1000), "1000 TOKENS"),
        (Amount.tokens(0), "0 TOKENS"),
        (Amount.credits(5), "5 CREDITS"),
        (Amount.risk_points(INT64_MAX), "9223372036854775807 RISK_POINTS"),
        (SignedAmount(Unit.TOKENS, -7), "-7 TOKENS"),
        (Amount.usd("0.05"), "0.05 USD"),
        (Amount.usd("0"), "0 USD"),
        (Amount.usd("9e-7"), "0.0000009 USD"),
        (Amount.usd_microcents(1), "0.00000001 USD"),
        (Amount.usd("10"), "10 USD"),
        (Amount.usd("1.50"), "1.5 USD"),
        (Amount.usd_microcents(INT64_MAX), "92233720368.54775807 USD"),
        (SignedAmount(Unit.USD_MICROCENTS, -1), "-0.00000001 USD"),
        (SignedAmount(Unit.USD_MICROCENTS, INT64_MIN), "-92233720368.54775808 USD"),
        (Amount.from_json({"unit": "EUROS", "amount": 7}), "7 EUROS"),
    ],
)
def test_an_amount_reads_as_people_write_it(amount, text):
    assert str(amount) == f"{amount}" == text
    assert repr(amount).startswith(f"{type(amount).__name__}(unit=")


@given(st.integers(INT64_MIN, INT64_MAX))
def test_dollars_come_back_exactly(microcents):
    with decimal.localcontext() as context:
        context.prec = 3
        dollars = SignedAmount(Unit.USD_MICROCENTS, microcents).dollars
    assert fractions.Fraction(dollars) == fractions.Fraction(microcents, 10**8)
    if microcents >= 0:
        assert Amount.usd(dollars) == Amount.usd(str(dollars)) == Amount.usd_microcents(microcents)


@pytest.mark.parametrize("amount", [Amount.tokens(5), SignedAmount(Unit.CREDITS, -5)])
def test_only_money_has_dollars(amount):
    with pytest.raises(ValidationError, match=rf"^dollars: {amount} is no amount of USD_MICROCENTS$"):
        _ = amount.dollars


# ---- From dollars ----


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
        # Any decimal notation.
        ("9.0E-7", 90),
        ("1e-8", 1),
        ("1e-08", 1),
        ("5E+1", 5_000_000_000),
        ("12.5e1", 12_500_000_000),
        ("0.0000125e+3", 1_250_000),
        ("0e999999999999999999999999", 0),
        ("-0.00", 0),
        ("+1", 100_000_000),
        ("1.", 100_000_000),
        (".5", 50_000_000),
        (" 0.05 ", 5_000_000),
        ("0.05\n", 5_000_000),
        ("1" + "0" * 10_000 + "e-10000", 100_000_000),
        ("0." + "0" * 10_000 + "1e10001", 100_000_000),
        # A fraction of a microcent is rounded up, however small it is.
        ("0.000000001", 1),
        ("0.123456781", 12_345_679),
        ("1.000000001", 100_000_001),
        ("1." + "0" * 100_000 + "1", 100_000_001),
        ("0." + "9" * 100_000, 100_000_000),
        ("1e-999999999999999999999999", 1),
        ("92233720368.547758069999", INT64_MAX),
        # Numbers.
        (0, 0),
        (7, 700_000_000),
        (92233720368, 9223372036800000000),
        (decimal.Decimal("0.05"), 5_000_000),
        (decimal.Decimal("9.0E-7"), 90),
        (decimal.Decimal("1e-9"), 1),
        (decimal.Decimal("-0"), 0),
        (decimal.Decimal("1e-999999"), 1),
        (decimal.Decimal.from_float(0.1), 10_000_001),  # its exact value, which is a little more
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_dollars_are_exact(dollars, microcents):
    amount = Amount.usd(dollars)
    assert amount == Amount.usd_microcents(microcents)
    assert type(amount.amount) is int


NO_DOLLARS = [
    *["", " ", ".", "+", "-", "1e", "e5", ".e5", "1 e5", "1e 5", "1e5.0", "--1", "1-", "1_000", "1,000.00", "1,5"],
    *["$1", "0x10", "inf", "Infinity", "-inf", "nan", "sNaN1", "1.2.3", "1..2", "\u0663", "\uff11", "1.\uff15", "²"],
    *["1e\u0663", "1\0", "\ud800", True, None, b"1", ["1"], fractions.Fraction(1, 2), 1j, object],
    *[decimal.Decimal(word) for word in ("NaN", "sNaN", "Infinity", "-Infinity")],
]


@pytest.mark.parametrize("dollars", NO_DOLLARS, ids=ascii)
def test_what_is_no_number_of_dollars_is_refused(dollars):
    with pytest.raises(
        ValidationError, match=r"^dollars: .+ is not a decimal string such as \"0\.05\", an integer or a Decimal$"
    ):
        Amount.usd(dollars)


@pytest.mark.parametrize(
    "dollars",
    [
        *["-1", "-0.00000001", "-1e-999999999999999999", "92233720368.54775808", "92233720368.547758070001"],
        *["92233720369", "1e11", "1e999999999", "1e999999999999999999999999", "9" * 100_000],
        *[-1, 92233720369, 2**100_000],
        *[decimal.Decimal(word) for word in ("-1", "-1e-9", "1e11", "1e999999")],
    ],
    ids=lambda value: ascii(value)[:40] if not isinstance(value, int) else "",
)
def test_dollars_that_no_amount_holds_are_refused(dollars):
    with pytest.raises(ValidationError, match=r"^dollars: .+ is not in 0\.\.92233720368") as caught:
        Amount.usd(dollars)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("dollars", [0.05, 1.0, float("nan"), float("inf")])
def test_a_float_is_told_what_to_give_instead(dollars):
    with pytest.raises(ValidationError) as caught:
        Amount.usd(dollars)
    assert str(caught.value) == (f"dollars: {dollars!r} is not exact, because it is a float: give str(x) or a Decimal")


@pytest.mark.parametrize(
    "dollars",
    [
        *["0" * 10**5 + "x", "1." + "0" * 10**5 + "x", "1e" + "0" * 10**5 + "x", "." * 10**5, "+" * 10**5],
        *["1" * 10**5 + "." + "1" * 10**5 + "e" + "1" * 10**5 + "x", "1e" + "9" * 10**5],
    ],
    ids=lambda value: value[:3] + "..." + value[-1],
)
def test_endless_digits_are_refused_at_once(dollars):
    started = time.process_time()
    with pytest.raises(ValidationError) as caught:
        Amount.usd(dollars)
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 200


@given(st.integers(0, INT64_MAX))
def test_every_amount_can_be_written_in_dollars(microcents):
    assert Amount.usd("{}.{:08d}".format(*divmod(microcents, values.MICROCENTS_PER_USD))).amount == microcents


@given(st.decimals(0, 92233720368, allow_nan=False), st.integers(1, 50))
def test_dollars_are_rounded_up_exactly_in_any_context(dollars, precision):
    """To the least amount that is not below them, whatever precision the program calculates with."""
    with decimal.localcontext() as context:
        context.prec, context.rounding = precision, decimal.ROUND_DOWN
        found = {Amount.usd(dollars), Amount.usd(str(dollars)), Amount.usd(f"{dollars:f}")}
    exact = fractions.Fraction(dollars) * 10**8
    assert [amount.amount for amount in found] == [-(-exact.numerator // exact.denominator)]


def test_decimal_is_imported_only_where_it_is_needed():
    program = "import sys; from cycles_lite import Amount; print(Amount.usd('9e-7') + Amount.usd(7)); "
    program += "print('decimal' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.splitlines() == ["7.0000009 USD", "False"]


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
    assert getattr(Action(**{**usual, name: "a\r\nb\0"}), name) == "a\r\nb\0"  # no header carries it
    for illegal in ("x" * (longest + 1), "", "\ud800", None, 7, b"x"):
        with pytest.raises(ValidationError, match=rf"^{name}: "):
            Action(**{**usual, name: illegal})


def test_an_action_has_at_most_ten_tags_of_at_most_64_characters():
    assert len(Action("k", "n", ["x" * 64] * 10).tags) == 10
    assert Action("k", "n", ["", "a\n"]).tags == ("", "a\n")
    for illegal in (["x"] * 11, ["x" * 65], ["\ud800"], [7], [None], "prod", {"prod"}, {"prod": 1}):
        with pytest.raises(ValidationError, match=r"^tags: "):
            Action("k", "n", illegal)


@pytest.mark.parametrize("name", ["tokens_input", "tokens_output", "latency_ms"])
def test_metrics_count(name):
    for number in (0, INT64_MAX):
        assert CyclesMetrics(**{name: number}).to_json() == {name: number}
    for illegal in (-1, INT64_MAX + 1, float("nan"), True, "1", *([] if name == "latency_ms" else [1.5])):
        with pytest.raises(ValidationError, match=rf"^{name}: "):
            CyclesMetrics(**{name: illegal})


@pytest.mark.parametrize(
    ("latency", "rounded"),
    [
        (12.7, 13),
        (0.0, 0),
        (0.5, 0),
        (1.5, 2),
        (2.5, 2),
        (2.0**62, 2**62),
        (Count(7), 7),
        (decimal.Decimal("12.7"), 13),
        (decimal.Decimal("2.5"), 2),
        (decimal.Decimal("1e-999999"), 0),
        (fractions.Fraction(7, 2), 4),
    ],
    ids=lambda value: "" if isinstance(value, Count) else repr(value),
)
def test_a_latency_is_any_real_number_and_is_rounded(latency, rounded):
    made = CyclesMetrics(latency_ms=latency)
    assert made.to_json() == {"latency_ms": rounded}
    assert type(made.latency_ms) is int


@pytest.mark.parametrize(
    "latency",
    [
        *[float("nan"), float("inf"), float("-inf"), -0.1, -1, 2.0**63, 1e300, 1j, True, False, "12.7", b"1", [12.7]],
        *[decimal.Decimal(word) for word in ("NaN", "sNaN", "Infinity", "-1", "1e999999")],
        *[fractions.Fraction(-1, 2), object],
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused(latency):
    with pytest.raises(ValidationError, match=r"^latency_ms: .+ is not (an integer$|(a number )?in 0\.\.92233720)"):
        CyclesMetrics(latency_ms=latency)


def test_a_latency_on_the_wire_is_whole():
    for told in (12.7, "13", True):
        for read in (CyclesMetrics.parse, CyclesMetrics.from_json):
            with pytest.raises(ValidationError, match=r"^latency_ms: .+ is not an integer$"):
                read({"latency_ms": told})


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
        assert Caps(**{name: ["x" * 256, "", "a\n"] * 50}).to_json() == {name: ["x" * 256, "", "a\n"] * 50}
        for illegal in (["x" * 257], ["\ud800"], [7], "search"):
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
