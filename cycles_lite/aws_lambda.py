"""AWS Lambda: a reservation around every invocation, settled before the handler's answer leaves.

    @guarded(client, estimate=Amount.tokens(1000), action=Action("llm.completion", "gpt-4o"))
    def handler(event, context):
        current_guard().spend(742)

The reservation lives as long as the invocation may, so that it needs no heartbeat. Nothing here needs a thread, and
everything that is sent has to fit into the time that the invocation has left. Lambda may freeze the process after any
answer, so no work is left for the background: spend that could not be settled is in the journal (in the temporary
folder where the home is read-only), and the next invocation settles it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Sequence, TypeVar

from .background.worker import Job, worker
from .guard import ReservationGuard
from .guards.asking import demand
from .guards.costs import settle_call
from .guards.generators import UNDONE, is_generator_function, refuse_asynchronous, refuse_unawaited
from .protocol.checks import is_a
from .runtime.log import log
from .transport.deadline import deadline_in

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from .client import CyclesClient

    P = ParamSpec("P")

T = TypeVar("T")

#: How much longer than the invocation the reservation lives, in milliseconds: time for its last commit.
MARGIN_MS = 5_000

#: How long before the invocation is cut off what was metered is committed, in milliseconds.
LAST_CALL_MS = 500

#: Seconds by which every call's deadline is earlier than the invocation's end, so that the handler can still answer.
_KEPT_BACK = 0.1

#: The protocol's bounds of a TTL, in milliseconds.
_SHORTEST_TTL_MS, _LONGEST_TTL_MS = 1_000, 86_400_000

#: Seconds that an invocation spends on what earlier ones left, at the most; nor is it more than a quarter of its time.
_CATCH_UP = 2.0


def guarded(
    client: CyclesClient,
    *,
    estimate: Any,
    action: Any,
    subject: Any = None,
    actual: Any = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guard every invocation of a handler: reserve before it, settle before its answer leaves.

    `estimate`, `action` and `subject` are constants or callables of (event, context), `actual` a constant or a callable
    of the handler's result; estimate and actual give Amounts. Without `actual`, what was metered is committed, else the
    estimate. A handler that raises is released, or its meter committed. Half a second before the time is up, the meter
    is committed by a timer, or without threads by the next `spend()`.

    Raises what `CyclesClient.reserve` raises: the handler has not run then. A constant of another kind is a
    `ValidationError` at once. Handlers that are coroutine functions or generators are a `TypeError`, because Lambda's
    Python runtime runs neither.
    """
    demand(estimate, action, subject, "event and context")
    return functools.partial(_decorated, client.with_options(heartbeat=False), (estimate, action, subject), actual)


def _decorated(client: CyclesClient, asked: Sequence[Any], actual: Any, handler: Any) -> Any:
    refuse_asynchronous("guarded", handler)
    if is_generator_function(handler):
        raise _never_run(handler)

    @functools.wraps(handler)
    def invoke(event: Any, context: Any, *more: Any) -> Any:
        left_ms = _left_ms(context)
        with deadline_in(max(0.0, left_ms / 1000 - _KEPT_BACK)):
            if client.config.mode != "off":  # what earlier invocations left is settled first
                client._flush(min(_CATCH_UP, left_ms / 4000))
            values: Any = [given(event, context) if callable(given) else given for given in asked]
            estimate, action, subject = values
            ttl_ms = min(max(left_ms + MARGIN_MS, _SHORTEST_TTL_MS), _LONGEST_TTL_MS)
            with client.reserve(estimate, action, subject=subject, ttl_ms=ttl_ms) as guard:
                rest_ms = _left_ms(context) - LAST_CALL_MS
                timer = Job(rest_ms / 1000, functools.partial(_last_call, guard))
                if rest_ms > 0:
                    worker.post(timer)
                try:
                    result = handler(event, context, *more)
                    if is_a(result, UNDONE):  # another decorator hid it until now: nothing of it will ever run
                        refuse_unawaited("guarded", handler, result)
                        result.close()
                        raise _never_run(handler)
                    settle_call(guard, actual, result)
                finally:
                    timer.cancel()
        return result

    return invoke


def _never_run(handler: Any) -> TypeError:
    name = getattr(handler, "__qualname__", repr(handler))
    return TypeError(f"@guarded: {name} is a generator, which Lambda's Python runtime does not run; return its values")


def _last_call(guard: ReservationGuard) -> None:
    """Commit what was metered, shortly before the invocation is cut off."""
    if guard.spent and guard.is_active:
        log().warning("the invocation is about to time out: what guard %r has metered is committed", guard)
        with deadline_in(LAST_CALL_MS / 1000 - _KEPT_BACK):
            guard.cut_off()


def _left_ms(context: Any) -> int:
    """The milliseconds that the invocation has left, never below 0. A context that cannot tell counts as a minute."""
    tell = getattr(context, "get_remaining_time_in_millis", None)
    return max(0, int(tell())) if tell is not None else 60_000
