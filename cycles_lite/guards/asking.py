"""Asking for a reservation, as the client's mode and `on_unavailable` say: what comes of it is a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import events
from ..background.worker import worker
from ..errors import BudgetDenied, CyclesError, ResponseError, ServerError, TransportError
from ..guard import Backing, ReservationGuard
from ..protocol import wire
from ..runtime.log import log

if TYPE_CHECKING:
    from ..client import CyclesClient
    from ..protocol.models import ReservationCreateRequest, ReservationCreateResponse


def reserve(client: CyclesClient, request: ReservationCreateRequest) -> ReservationGuard:
    """A guard on a new reservation, as the client's mode says. Raises `BudgetDenied` and every other refusal."""
    if client.config.mode == "off":
        return ReservationGuard(client, request, Backing.NOTHING, None)
    worker.catch_up()
    client.settler.open()
    if client.config.mode == "shadow":
        return ReservationGuard(client, request, Backing.NOTHING, _ask(client, request))
    try:
        response = client.create_reservation(request)
        if not response.is_allowed or not response.reservation_id:
            raise wire.denied(response)
    except BudgetDenied as e:
        client.observe(events.Denied(request.estimate, request.action, e, False))
        raise
    except (TransportError, ResponseError, ServerError) as e:
        if client.config.on_unavailable != "allow":
            raise
        log().warning("the authority cannot be asked (%s): the work runs, and its spend is recorded afterwards", e)
        client.observe(events.Degraded(request.estimate, request.action, e))
        return ReservationGuard(client, request, Backing.EVENT, None)
    try:
        client.observe(events.Reserved(response.reservation_id, request.estimate, request.action, response))
    except BaseException:  # it ends the program, or a signal handler does: nobody will have the guard
        ReservationGuard(client, request, Backing.RESERVATION, response).settle_abandoned()
        raise
    return ReservationGuard(client, request, Backing.RESERVATION, response)


def _ask(client: CyclesClient, request: ReservationCreateRequest) -> ReservationCreateResponse | None:
    """Shadow mode: what the authority would have said, for the log. Nothing that it says stops the work."""
    try:
        response = client.create_reservation(request)
        if not response.is_allowed:
            raise wire.denied(response)
        return response
    except BudgetDenied as e:
        log().warning("shadow mode: %s of %s would have been denied: %s", request.action.kind, request.estimate, e)
        client.observe(events.Denied(request.estimate, request.action, e, True))
    except CyclesError as e:
        log().warning("shadow mode: the authority could not be asked about %s: %s", request.action.kind, e)
        client.observe(events.Degraded(request.estimate, request.action, e))
    return None
