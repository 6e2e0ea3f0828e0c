"""What requests and responses are made of: amounts, subjects, actions, caps, metrics, and the protocol's words."""

from __future__ import annotations

import re
from functools import total_ordering
from typing import TYPE_CHECKING, Any, Mapping, TypeVar

from ..errors import ErrorCode as ErrorCode, ValidationError
from ..runtime.words import WordEnum
from .checks import INT64_MAX, integer, is_a, plain_text, refuse
from .fields import (
    COUNT,
    JSON,
    SERVER_TEXT,
    SIGNED,
    Dimensions,
    FreeText,
    ListOf,
    Milliseconds,
    Model,
    OneOf,
    Text,
    Words,
    field,
)

if TYPE_CHECKING:
    from decimal import Decimal

#: One dollar is 10^8 microcents.
_PLACES = 8
MICROCENTS_PER_USD = 10**_PLACES

#: The levels of a subject, from the root of the budget hierarchy down (protocol: SCOPE DERIVATION).
SUBJECT_LEVELS = ("tenant", "workspace", "app", "workflow", "agent", "toolset")


class Unit(WordEnum):
    """What an amount counts. One USD is 10^8 USD_MICROCENTS."""

    USD_MICROCENTS = "USD_MICROCENTS"
    TOKENS = "TOKENS"
    CREDITS = "CREDITS"
    RISK_POINTS = "RISK_POINTS"


class Decision(WordEnum):
    """The authority's answer to a planned action."""

    ALLOW = "ALLOW"
    ALLOW_WITH_CAPS = "ALLOW_WITH_CAPS"
    DENY = "DENY"


class CommitOveragePolicy(WordEnum):
    """What happens when an action cost more than was reserved."""

    REJECT = "REJECT"
    ALLOW_IF_AVAILABLE = "ALLOW_IF_AVAILABLE"
    ALLOW_WITH_OVERDRAFT = "ALLOW_WITH_OVERDRAFT"


class ReservationStatus(WordEnum):
    """Where a reservation is in its life: ACTIVE until it is committed or released, or its time is over."""

    ACTIVE = "ACTIVE"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


class SortDirection(WordEnum):
    """Which end of a sorted list comes first."""

    ASC = "asc"
    DESC = "desc"


_LEVEL = Text(128)

Q = TypeVar("Q", bound="_Quantity")


@total_ordering
class _Quantity(Model):
    """A number of a unit. Quantities of one unit compare and add up, with or without a sign; `str` is for people."""

    unit: Unit
    amount: int

    @property
    def dollars(self) -> Decimal:
        """An amount of USD_MICROCENTS in dollars, exactly."""
        from decimal import Decimal  # costly, and rarely needed

        if self.unit != Unit.USD_MICROCENTS:
            raise ValidationError(f"dollars: {self} is no amount of USD_MICROCENTS")
        return Decimal(_in_dollars(self.amount))

    def __str__(self) -> str:
        if self.unit == Unit.USD_MICROCENTS:
            return _in_dollars(self.amount) + " USD"
        return f"{self.amount} {self.unit}"

    def __eq__(self, other: Any) -> bool:
        if not is_a(other, _Quantity):
            return NotImplemented
        return self.amount == other.amount and self.unit == other.unit

    __hash__ = Model.__hash__

    def __lt__(self, other: _Quantity) -> bool:
        return self.amount < self._of_one_unit(other) if is_a(other, _Quantity) else NotImplemented

    def __add__(self: Q, other: _Quantity) -> Q:
        return self._summed("sum", other, 1)

    def __sub__(self: Q, other: _Quantity) -> Q:
        return self._summed("difference", other, -1)

    def _summed(self: Q, name: str, other: _Quantity, sign: int) -> Q:
        if not is_a(other, _Quantity):
            return NotImplemented  # type: ignore[no-any-return]
        amount = self.amount + sign * self._of_one_unit(other)
        made = object.__new__(type(self))
        _, counted = self.layout()
        made.__dict__.update(unit=self.unit, amount=counted.kind.check(name, amount))
        return made

    def _of_one_unit(self, other: _Quantity) -> int:
        if other.unit != self.unit:
            raise ValidationError(f"unit: {self} and {other} are not of one unit")
        return other.amount


def _in_dollars(microcents: int) -> str:
    """Microcents as a decimal number of dollars, without an exponent and without zeros at the end."""
    whole, rest = divmod(abs(microcents), MICROCENTS_PER_USD)
    return "-" * (microcents < 0) + f"{whole}.{rest:0{_PLACES}d}".rstrip("0").rstrip(".")


_DOLLARS = 'a decimal string such as "0.05", an integer or a Decimal'

#: A decimal number in ASCII. The parts of the pattern match in one way only, so that many digits take linear time.
_DECIMAL = r"([+-]?)(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?)([0-9]+))?\Z"


def _microcents(text: str) -> int | None:
    """The microcents in a decimal number of dollars, a fraction of one rounded up; None if the text is no number. A
    number of dollars that is out of range gives microcents that are too. No power of ten is computed for the exponent,
    because a hostile one would take all memory."""
    match = re.match(_DECIMAL, text)
    if match is None:
        return None
    sign, whole, fraction, exponent_sign, exponent = match.groups("")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    if sign == "-":
        return -1
    # An exponent of 15 digits is already so large or small that further digits change nothing.
    exponent = exponent_sign + "0" + exponent.lstrip("0")[:15]
    places = max(len(digits) - len(fraction) + int(exponent) + _PLACES, 0)
    if places > len(str(INT64_MAX)):
        return INT64_MAX + 1
    kept, rest = digits[:places], digits[places:]
    return int(kept.ljust(places, "0") or 0) + (rest.strip("0") != "")


class Amount(_Quantity):
    """A quantity of 0..2^63-1 in one unit. Whatever has `__index__` counts as an integer (numpy's); floats and bools
    are refused.

    Amounts of one unit are in order, add up and subtract; `sum` needs a start, such as `Amount.tokens(0)`. What is out
    of range, or of another unit, raises `ValidationError`.

    >>> str(Amount.tokens(1000)), str(Amount.usd("0.05") - Amount.usd_microcents(1))
    ('1000 TOKENS', '0.04999999 USD')
    """

    unit: Unit = field(OneOf(Unit))
    amount: int = field(COUNT)

    @classmethod
    def usd_microcents(cls, amount: int) -> Amount:
        """Money in units of 10^-8 dollars."""
        return cls(unit=Unit.USD_MICROCENTS, amount=amount)

    @classmethod
    def tokens(cls, amount: int) -> Amount:
        """Tokens of a language model."""
        return cls(unit=Unit.TOKENS, amount=amount)

    @classmethod
    def credits(cls, amount: int) -> Amount:
        """Credits, whatever the operator counts by them."""
        return cls(unit=Unit.CREDITS, amount=amount)

    @classmethod
    def risk_points(cls, amount: int) -> Amount:
        """Points for actions that cost no money but do harm where there are too many: e-mails, deletions."""
        return cls(unit=Unit.RISK_POINTS, amount=amount)

    @classmethod
    def usd(cls, dollars: str | int | Decimal) -> Amount:
        """USD_MICROCENTS from dollars: a string in any decimal notation (blanks around it do not count), an integer or
        a `Decimal`, up to 92233720368.54775807. A fraction of a microcent is rounded up.

        >>> Amount.usd("0.05").amount, Amount.usd("9.0E-7").amount, Amount.usd("1e-9").amount
        (5000000, 90, 1)
        """
        microcents = _microcents(_as_text(dollars))
        if microcents is None:
            raise refuse("dollars", dollars, _DOLLARS)
        if 0 <= microcents <= INT64_MAX:
            return cls(Unit.USD_MICROCENTS, microcents)
        raise refuse("dollars", dollars, "in 0..92233720368.54775807")


def _as_text(dollars: Any) -> str:
    """Dollars as `_microcents` reads them."""
    if type(dollars) is str or is_a(dollars, str):
        return plain_text(dollars).strip()
    if is_a(dollars, float):
        raise refuse("dollars", dollars, "exact, because it is a float: give str(x) or a Decimal")
    if hasattr(type(dollars), "__index__") and not is_a(dollars, bool):
        return str(integer("dollars", dollars, 0, INT64_MAX // MICROCENTS_PER_USD))
    from decimal import Decimal  # costly, and rarely needed

    if is_a(dollars, Decimal):
        return Decimal.__str__(dollars)
    raise refuse("dollars", dollars, _DOLLARS)


class SignedAmount(_Quantity):
    """Like `Amount`, but an overdraft makes it negative: -2^63..2^63-1. The two compare; a sum or a difference of both
    is of the left one's class."""

    unit: Unit = field(OneOf(Unit))
    amount: int = field(SIGNED)


class Levels(Model):
    """The six levels, each 1..128 characters."""

    tenant: str | None = field(_LEVEL, default=None)
    workspace: str | None = field(_LEVEL, default=None)
    app: str | None = field(_LEVEL, default=None)
    workflow: str | None = field(_LEVEL, default=None)
    agent: str | None = field(_LEVEL, default=None)
    toolset: str | None = field(_LEVEL, default=None)


class Subject(Levels):
    """Whose budgets an action draws on: at least one of the six levels, each 1..128 characters.

    Portable values match `[a-zA-Z0-9_.-]+`. `dimensions` are up to 16 labels of up to 256 characters for reports;
    they alone make no subject.
    """

    dimensions: Mapping[str, str] | None = field(Dimensions(), default=None)

    def __post_init__(self) -> None:
        if not any(getattr(self, level) for level in SUBJECT_LEVELS):
            raise ValidationError("subject: at least one of {} is needed".format(", ".join(SUBJECT_LEVELS)))


class Action(Model):
    """What is about to be done: a kind such as `llm.completion` (1..64 characters), a name (1..256), up to 10 tags of
    up to 64."""

    kind: str = field(Words(64))
    name: str = field(Words(256))
    tags: tuple[str, ...] | None = field(ListOf(FreeText(64), most=10), default=None)


class Caps(Model):
    """Limits that come with ALLOW_WITH_CAPS (protocol: `Caps`, PRECEDENCE RULES)."""

    max_tokens: int | None = field(COUNT, default=None)
    max_steps_remaining: int | None = field(COUNT, default=None)
    tool_allowlist: tuple[str, ...] | None = field(ListOf(FreeText(256)), default=None)
    tool_denylist: tuple[str, ...] | None = field(ListOf(FreeText(256)), default=None)
    cooldown_ms: int | None = field(COUNT, default=None)

    def is_tool_allowed(self, name: str) -> bool:
        """Whether a tool may be used: a non-empty allowlist decides alone, else the denylist; case counts."""
        if self.tool_allowlist:
            return name in self.tool_allowlist
        return name not in (self.tool_denylist or ())


class CyclesMetrics(Model):
    """What an action measured (protocol: `StandardMetrics`). Counts are 0..2^63-1. `latency_ms` is any real number of
    milliseconds, which is rounded to a whole one, a half to the even one."""

    tokens_input: int | None = field(COUNT, default=None)
    tokens_output: int | None = field(COUNT, default=None)
    latency_ms: int | None = field(Milliseconds(), default=None)
    model_version: str | None = field(FreeText(128), default=None)
    custom: Mapping[str, Any] | None = field(JSON, default=None)


class CyclesEvidenceRef(Model):
    """Where the signed evidence of an operation can be fetched."""

    evidence_id: str = field(SERVER_TEXT)
    cycles_evidence_url: str = field(SERVER_TEXT)
