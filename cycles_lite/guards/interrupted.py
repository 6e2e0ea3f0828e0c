"""What a guard's `commit` was told, where a signal handler has raised an exception before it could remember it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..guard import ReservationGuard
    from ..settlement.spend import Told


def interrupted_commit(guard: ReservationGuard, exception: BaseException | None) -> Told | None:
    """What `commit` was told, where a signal handler raised this exception at its very first instruction. Then nothing
    but its frame, which the traceback holds, knows the amount."""
    if exception is None:
        return None
    for frame, _ in traceback.walk_tb(exception.__traceback__):
        told = frame.f_locals if frame.f_code is type(guard).commit.__code__ else {}
        if told.get("self") is guard and guard.can_cost(told["actual"]):
            return told["actual"], told["metrics"], told["metadata"]
    return None
