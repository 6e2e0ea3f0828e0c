"""Asking for a reservation as the settings `mode` and `on_unavailable` say, and making the guard of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..background.worker import worker
from ..errors import BudgetDenied, CyclesError, ResponseError, ServerError, TransportError
from ..guard import Backing, ReservationGuard
from ..protocol import wire
from ..protocol.checks import is_a, refuse
from ..protocol.values import Action, Amount, Subject
from ..runtime.log import log
from ..session import response_in
from ..settlement import flush  # noqa: F401  # it settles what is left at the interpreter's end
from ..settlement.settler import settler_of

if TYPE_CHECKING:
    from ..protocol.models import ReservationCreateRequest
    from ..session import Session


def demand(estimate: Any, action: Any, subject: Any, arguments: str) -> None:
    """Refuse constants that nothing can be reserved with; in the place of each there may be a callable."""
    kinds = ("estimate", estimate, Amount), ("action", action, Action), ("subject", subject, Subject)
    for name, given, kind in kinds:
        if not (callable(given) or is_a(given, kind) or (given is None and kind is Subject)):
            raise refuse(name, given, f"{kind.__name__}(...), or a callable of {arguments}")


def reserve(session: Session, request: ReservationCreateRequest) -> ReservationGuard:
    """A guard on a new reservation. Raises `BudgetDenied` and every other refusal.

    In shadow mode the request is a dry run whose denial is told and stops nothing; in mode `off` nothing is asked.
    """
    if session.config.mode == "off":
        return ReservationGuard(session, request, Backing.NOTHING)
    worker.catch_up()
    settler_of(session).open()
    is_shadow = session.config.mode == "shadow"
    try:
        body = session.body_of(request)
        response = response_in(session.send(wire.CREATE_RESERVATION, body))
        if not (response.is_allowed and (response.reservation_id or is_shadow)):
            raise session.denied(response)
    except BudgetDenied as e:
        if is_shadow:
            log().warning("shadow mode: %s of %s would have been denied: %s", request.action.kind, request.estimate, e)
        session.tell("Denied", request.estimate, request.action, e, is_shadow)
        if not is_shadow:
            raise
        return ReservationGuard(session, request, Backing.NOTHING)
    except CyclesError as e:
        if is_shadow:
            log().warning("shadow mode: the authority could not be asked about %s: %s", request.action.kind, e)
        elif session.config.on_unavailable == "allow" and _is_unavailable(e):
            log().warning("the authority cannot be asked (%s): the work runs, and its spend is recorded afterwards", e)
        else:
            raise
        session.tell("Degraded", request.estimate, request.action, e)
        if is_shadow:
            return ReservationGuard(session, request, Backing.NOTHING)
        return ReservationGuard(session, request, Backing.EVENT, session.body_of(request)["subject"])
    if is_shadow:
        session.watch(response)
        return ReservationGuard(session, request, Backing.NOTHING, None, response)
    # The observer is told before the guard is made. If the observer raises, a log handler may keep the error, whose
    # traceback refers to this frame, and a guard in it would stay alive although nobody has it to finish it.
    try:
        session.tell("Reserved", response.reservation_id, request.estimate, request.action, response)
        session.watch(response)
    except BaseException:  # the observer or a signal handler ends the program, and nobody gets the guard
        ReservationGuard(session, request, Backing.RESERVATION, body["subject"], response).settle_abandoned()
        raise
    return ReservationGuard(session, request, Backing.RESERVATION, body["subject"], response)


def _is_unavailable(error: CyclesError) -> bool:
    """Whether nobody has said no. A 4xx is somebody's no, also where its code is a server's failure."""
    status = getattr(error, "status", 0)
    return isinstance(error, (TransportError, ResponseError, ServerError)) and not 400 <= status < 500
