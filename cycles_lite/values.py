"""What requests and responses are made of: amounts, subjects, actions, caps, metrics, and the protocol's words."""

from __future__ import annotations

import re
from dataclasses import field
from enum import Enum
from typing import Any, ClassVar, Mapping, TypeVar

from .checks import INT64_MAX, INT64_MIN, refuse
from .errors import ValidationError
from .fields import COUNT, JSON, SERVER_TEXT, SIGNED, Dimensions, FreeText, ListOf, Model, OneOf, Text, model, of

MICROCENTS_PER_USD = 10**8

#: The levels of a subject, from the root of the budget hierarchy down (protocol: SCOPE DERIVATION).
SUBJECT_LEVELS = ("tenant", "workspace", "app", "workflow", "agent", "toolset")


class _Words(str, Enum):
    """Members are strings, print as their value, and are JSON as they are."""

    # Functions of its own: Python 3.7 puts Enum's in the place of str's.
    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)


class Unit(_Words):
    """What an amount counts. One USD is 10^8 USD_MICROCENTS."""

    USD_MICROCENTS = "USD_MICROCENTS"
    TOKENS = "TOKENS"
    CREDITS = "CREDITS"
    RISK_POINTS = "RISK_POINTS"


class Decision(_Words):
    """The authority's answer to a planned action."""

    ALLOW = "ALLOW"
    ALLOW_WITH_CAPS = "ALLOW_WITH_CAPS"
    DENY = "DENY"


class CommitOveragePolicy(_Words):
    """What happens when an action cost more than was reserved."""

    REJECT = "REJECT"
    ALLOW_IF_AVAILABLE = "ALLOW_IF_AVAILABLE"
    ALLOW_WITH_OVERDRAFT = "ALLOW_WITH_OVERDRAFT"


class ReservationStatus(_Words):
    ACTIVE = "ACTIVE"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


class SortDirection(_Words):
    ASC = "asc"
    DESC = "desc"


class ErrorCode(_Words):
    """The codes that this version knows; the set is open."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    BUDGET_FROZEN = "BUDGET_FROZEN"
    BUDGET_CLOSED = "BUDGET_CLOSED"
    RESERVATION_EXPIRED = "RESERVATION_EXPIRED"
    RESERVATION_FINALIZED = "RESERVATION_FINALIZED"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    UNIT_MISMATCH = "UNIT_MISMATCH"
    OVERDRAFT_LIMIT_EXCEEDED = "OVERDRAFT_LIMIT_EXCEEDED"
    DEBT_OUTSTANDING = "DEBT_OUTSTANDING"
    MAX_EXTENSIONS_EXCEEDED = "MAX_EXTENSIONS_EXCEEDED"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    TENANT_CLOSED = "TENANT_CLOSED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


_COUNT = of(COUNT)
_LEVEL = of(Text(128))
_new = object.__new__
_UNITS = {unit.value: unit for unit in Unit}

Q = TypeVar("Q", bound="_Quantity")


class _Quantity(Model):
    """A number of a unit."""

    _least: ClassVar[int]

    @classmethod
    def read(cls: type[Q], field: str, value: Any, strict: bool) -> Q:
        # Answers hold more of these than of anything else, nearly always just so.
        if type(value) is dict and len(value) == 2:
            amount, unit = value.get("amount"), value.get("unit")
            if type(amount) is int and cls._least <= amount <= INT64_MAX and type(unit) is str and unit in _UNITS:
                made = _new(cls)
                values = made.__dict__
                values["unit"], values["amount"] = _UNITS[unit], amount
                return made
        return super().read(field, value, strict)


@model
class Amount(_Quantity):
    """A quantity of 0..2^63-1 in one unit. Floats and bools are refused."""

    _least = 0

    unit: Unit = field(metadata=of(OneOf(Unit)))
    amount: int = field(metadata=_COUNT)

    @classmethod
    def usd_microcents(cls, amount: int) -> Amount:
        return cls(unit=Unit.USD_MICROCENTS, amount=amount)

    @classmethod
    def tokens(cls, amount: int) -> Amount:
        return cls(unit=Unit.TOKENS, amount=amount)

    @classmethod
    def credits(cls, amount: int) -> Amount:
        return cls(unit=Unit.CREDITS, amount=amount)

    @classmethod
    def risk_points(cls, amount: int) -> Amount:
        return cls(unit=Unit.RISK_POINTS, amount=amount)

    @classmethod
    def usd(cls, dollars: str) -> Amount:
        """USD_MICROCENTS from a decimal string with at most eight decimal places that count.

        >>> Amount.usd("0.05").amount
        5000000
        """
        # Eleven digits of dollars are as many as an amount holds; int() need not see more of them.
        match = re.match(r"0*([0-9]{1,11})(?:\.([0-9]{1,8})0*)?\Z", dollars) if isinstance(dollars, str) else None
        if match is not None:
            microcents = int(match.group(1) + (match.group(2) or "").ljust(8, "0"))
            if microcents <= INT64_MAX:
                return cls(Unit.USD_MICROCENTS, microcents)
        raise refuse("dollars", dollars, 'a decimal string such as "0.05", exact to 10^-8, up to 92233720368.54775807')


@model
class SignedAmount(_Quantity):
    """Like `Amount`, but an overdraft makes it negative: -2^63..2^63-1."""

    _least = INT64_MIN

    unit: Unit = field(metadata=of(OneOf(Unit)))
    amount: int = field(metadata=of(SIGNED))


@model
class Levels(Model):
    """The six levels, each 1..128 characters."""

    tenant: str | None = field(default=None, metadata=_LEVEL)
    workspace: str | None = field(default=None, metadata=_LEVEL)
    app: str | None = field(default=None, metadata=_LEVEL)
    workflow: str | None = field(default=None, metadata=_LEVEL)
    agent: str | None = field(default=None, metadata=_LEVEL)
    toolset: str | None = field(default=None, metadata=_LEVEL)


@model
class Subject(Levels):
    """Whose budgets an action draws on: at least one of the six levels, each 1..128 characters.

    Portable values match `[a-zA-Z0-9_.-]+`. `dimensions` are up to 16 labels of up to 256 characters for reports;
    they alone make no subject.
    """

    dimensions: Mapping[str, str] | None = field(default=None, metadata=of(Dimensions()))

    def __post_init__(self) -> None:
        if not any(getattr(self, level) for level in SUBJECT_LEVELS):
            raise ValidationError("subject: at least one of {} is needed".format(", ".join(SUBJECT_LEVELS)))


@model
class Action(Model):
    """What is about to be done: a kind such as `llm.completion` (1..64 characters), a name (1..256), up to 10 tags."""

    kind: str = field(metadata=of(Text(64)))
    name: str = field(metadata=of(Text(256)))
    tags: tuple[str, ...] | None = field(default=None, metadata=of(ListOf(Text(64), most=10)))


@model
class Caps(Model):
    """Limits that come with ALLOW_WITH_CAPS (protocol: `Caps`, PRECEDENCE RULES)."""

    max_tokens: int | None = field(default=None, metadata=_COUNT)
    max_steps_remaining: int | None = field(default=None, metadata=_COUNT)
    tool_allowlist: tuple[str, ...] | None = field(default=None, metadata=of(ListOf(Text(256))))
    tool_denylist: tuple[str, ...] | None = field(default=None, metadata=of(ListOf(Text(256))))
    cooldown_ms: int | None = field(default=None, metadata=_COUNT)

    def is_tool_allowed(self, name: str) -> bool:
        """Whether a tool may be used: a non-empty allowlist decides alone, else the denylist; case counts."""
        if self.tool_allowlist:
            return name in self.tool_allowlist
        return name not in (self.tool_denylist or ())


@model
class CyclesMetrics(Model):
    """What an action measured (protocol: `StandardMetrics`). Counts are 0..2^63-1, `latency_ms` in milliseconds."""

    tokens_input: int | None = field(default=None, metadata=_COUNT)
    tokens_output: int | None = field(default=None, metadata=_COUNT)
    latency_ms: int | None = field(default=None, metadata=_COUNT)
    model_version: str | None = field(default=None, metadata=of(FreeText(128)))
    custom: Mapping[str, Any] | None = field(default=None, metadata=of(JSON))


@model
class CyclesEvidenceRef(Model):
    """Where the signed evidence of an operation can be fetched."""

    evidence_id: str = field(metadata=of(SERVER_TEXT))
    cycles_evidence_url: str = field(metadata=of(SERVER_TEXT))
