"""What a client tells its observer, for metrics and audit: `CyclesClient(config, observer=callable)`.

The observer is called in the thread in which the thing happens, which may be one of the library's own. An error that it
raises is logged and stops nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

if TYPE_CHECKING:
    from .errors import ApiError, CyclesError
    from .protocol.models import Balance, ReservationCreateResponse
    from .protocol.values import Action, Amount
    from .settlement.meaning import Settlement


class Reserved(NamedTuple):
    """A reservation was granted, and its work is about to run."""

    #: The authority's id of the reservation.
    reservation_id: str
    #: What was asked for, and is held now.
    estimate: Amount
    #: The work that it was asked for.
    action: Action
    #: The authority's whole answer: caps, scopes, balances.
    response: ReservationCreateResponse


class Denied(NamedTuple):
    """A reservation was denied; in shadow mode the work runs all the same."""

    #: What was asked for.
    estimate: Amount
    #: The work that it was asked for.
    action: Action
    #: The denial: a `BudgetDenied`, whose `code` tells the reason.
    error: ApiError
    #: Whether the client is in shadow mode, so that nobody was stopped.
    shadow: bool


class Degraded(NamedTuple):
    """The authority could not be asked, and the work runs without a reservation: `on_unavailable="allow"` lets it
    through, and so does shadow mode."""

    #: What was asked for.
    estimate: Amount
    #: The work that it was asked for.
    action: Action
    #: What went wrong when the authority was asked.
    error: CyclesError


class Settled(NamedTuple):
    """Spend was committed, or recorded by an event."""

    #: The reservation's id; `degraded:` and the idempotency key where there was no reservation.
    reservation_id: str
    #: What the work cost; None for a record of another SDK whose amount this one cannot read.
    actual: Amount | None
    #: How it was settled, and what the authority charged.
    settlement: Settlement


class Pending(NamedTuple):
    """Spend could not be settled now; it is kept and tried again."""

    #: The reservation's id; `degraded:` and the idempotency key where there was no reservation.
    reservation_id: str
    #: Why it could not be settled.
    error: CyclesError
    #: The seconds until it is tried again.
    delay: float


class Rejected(NamedTuple):
    """The authority refused spend for good. Its record is set aside as `*.refused`, and never sent again."""

    #: The reservation's id; `degraded:` and the idempotency key where there was no reservation.
    reservation_id: str
    #: The refused request's body: ids and amounts.
    body: dict[str, Any]
    #: The refusal.
    error: CyclesError


class SpentTooLate(NamedTuple):
    """More was spent on a guard that the library had to end before its work did: it is not settled."""

    #: The reservation's id; None where nothing was reserved.
    reservation_id: str | None
    #: What was spent after the end.
    amount: Amount


class Released(NamedTuple):
    """A reservation was given back unused."""

    #: The reservation's id.
    reservation_id: str
    #: Why it was not used: what `release` was told, or the type of the exception that ended the work.
    reason: str


class HeartbeatFailed(NamedTuple):
    """A reservation could not be extended, or will not be extended any more; its work goes on."""

    #: The reservation's id.
    reservation_id: str
    #: What went wrong; None where the lease is too short to be extended safely.
    error: CyclesError | None
    #: What happens next, in words.
    disposition: str


class JournalFailed(NamedTuple):
    """Something is wrong with the journal: a record could not be written (then spend may be lost if the process dies),
    read or removed, or was found and will not be sent."""

    #: What went wrong, in words.
    problem: str


class RunningLow(NamedTuple):
    """Less is left of a budget than `CyclesConfig.warn_below` says, as the answer to a reservation, a commit, an event
    or a release shows. It is told once, and again after answers have shown that more funds have lifted the budget above
    that line, or that a new period has begun; what holds give back does not count for that."""

    #: The budget, with its `scope_path`, what is `remaining` and what was `allocated`.
    balance: Balance
    #: The part of what was allocated that is left; negative in overdraft.
    fraction: float


#: All that an observer may be told.
Event = Union[
    Reserved,
    Denied,
    Degraded,
    Settled,
    Pending,
    Rejected,
    SpentTooLate,
    Released,
    HeartbeatFailed,
    JournalFailed,
    RunningLow,
]

#: What a client calls with each event. What it returns does not matter.
Observer = Callable[[Event], object]
