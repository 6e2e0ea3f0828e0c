"""What a client tells its observer, for metrics and audit: `CyclesClient(config, observer=callable)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

if TYPE_CHECKING:
    from .errors import ApiError, CyclesError
    from .protocol.models import ReservationCreateResponse
    from .protocol.values import Action, Amount
    from .settlement.meaning import Settlement


class Reserved(NamedTuple):
    """A reservation was granted."""

    reservation_id: str
    estimate: Amount
    action: Action
    response: ReservationCreateResponse


class Denied(NamedTuple):
    """A reservation was denied; in shadow mode the work runs all the same."""

    estimate: Amount
    action: Action
    error: ApiError
    shadow: bool


class Degraded(NamedTuple):
    """The authority could not be asked, and the work was let through (`on_unavailable="allow"`)."""

    estimate: Amount
    action: Action
    error: CyclesError


class Settled(NamedTuple):
    """Spend was committed, or recorded by an event."""

    reservation_id: str
    #: None for a record of another SDK whose amount this one cannot read.
    actual: Amount | None
    settlement: Settlement


class Pending(NamedTuple):
    """Spend could not be settled now; it is kept and retried after `delay` seconds."""

    reservation_id: str
    error: CyclesError
    delay: float


class Rejected(NamedTuple):
    """The authority refused spend for good. Its record is set aside as `*.refused`, and never sent again."""

    reservation_id: str
    #: The refused request's body: ids and amounts.
    body: dict[str, Any]
    error: CyclesError


class SpentTooLate(NamedTuple):
    """More was spent on a guard that the library had to end before its work did: it is not settled."""

    reservation_id: str | None
    amount: Amount


class Released(NamedTuple):
    """A reservation was given back unused."""

    reservation_id: str
    reason: str


class HeartbeatFailed(NamedTuple):
    """An extension failed; the work goes on."""

    reservation_id: str
    error: CyclesError | None
    #: What happens next, in words.
    disposition: str


class JournalFailed(NamedTuple):
    """Durability is impaired: a record could not be written, read or removed."""

    problem: str


Event = Union[
    Reserved, Denied, Degraded, Settled, Pending, Rejected, SpentTooLate, Released, HeartbeatFailed, JournalFailed
]
Observer = Callable[[Event], object]
