"""An authority for tests: real budgets, a clock that can be moved, and faults on demand."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from .errors import TransportTimeout, ValidationError
from .local.authority import Authority, Caller, LocalTransport
from .local.messages import error_answer
from .protocol.checks import INT64_MAX, boolean, integer, is_a, refuse, shown, words
from .protocol.values import Amount, Caps
from .protocol.wire import GET_RESERVATION, OPERATIONS, Answer, Call
from .runtime.clock import now_ms


class _Fault(NamedTuple):
    """What is to go wrong with one of the next calls."""

    operation: str | None
    status: int | None
    code: str
    is_served: bool
    retry_after: int | None


class TestAuthority(Authority):
    """The embedded authority, with three more methods for tests: `budget`, `expire` and `fail_next`."""

    __test__ = False  # its name begins as test classes' names do

    def __init__(self, url: str) -> None:
        self._ahead_ms = 0
        self._faults: deque[_Fault] = deque()
        super().__init__(url, clock=lambda: now_ms() + self._ahead_ms)

    def budget(
        self, scope: str, amount: Amount, *, caps: Caps | None = None, overdraft_limit: int | Amount | None = None
    ) -> None:
        """Set a budget, such as `budget("tenant:acme", Amount.tokens(1000), caps=Caps(max_tokens=50))`."""
        self.set_budget(scope, amount, overdraft_limit=overdraft_limit, caps=caps)

    def expire(self, reservation_id: str) -> None:
        """Move the authority's clock just past a reservation's expiry and grace period; all else ages with it."""
        call = Call(GET_RESERVATION, reservation_id, {}, None, {}, None, 2.0, 5.0)
        answer = super().answer(call, Caller(None, admin=True))
        if answer.status != 200:
            raise ValidationError(
                f"reservation {shown(reservation_id)} cannot be expired: {answer.body.decode('utf-8')}"
            )
        expires_at_ms: int = answer.data["expires_at_ms"]
        longest_grace_ms = 60_000
        self._ahead_ms = max(self._ahead_ms, expires_at_ms + longest_grace_ms + 1 - now_ms())

    def fail_next(
        self,
        operation: str | None = None,
        *,
        times: int = 1,
        status: int | None = None,
        code: str = "INTERNAL_ERROR",
        after: bool = False,
        retry_after: int | None = None,
    ) -> None:
        """Let the next calls fail: of one operation, such as "commit_reservation", or of any.

        Without a status the answer is lost: a timeout in process, a 500 over HTTP; with one, the answer is that error.
        With `after` the request is served first, so that only its answer is lost. `status` is 400..599, `retry_after`
        whole seconds.
        """
        names = [known.name for known in OPERATIONS]
        if operation is not None and not (is_a(operation, str) and operation in names):
            raise refuse("operation", operation, "one of " + ", ".join(names))
        boolean("after", after)
        fault = _Fault(
            operation,
            None if status is None else integer("status", status, 400, 599),
            words("code", code, 128),
            after,
            None if retry_after is None else integer("retry_after", retry_after, 0, INT64_MAX),
        )
        self._faults.extend([fault] * integer("times", times, 0, 1_000_000))

    def answer(self, call: Call, caller: Caller = Caller()) -> Answer:  # noqa: B008
        fault = self._due(call.operation.name)
        if fault is None:
            return super().answer(call, caller)
        if fault.is_served:
            super().answer(call, caller)
        if fault.status is None:
            raise TransportTimeout(f"{call.operation.name}: this answer was lost on demand")
        answer = error_answer(fault.status, fault.code, "This call failed on demand.", call.headers)
        if fault.retry_after is not None:
            answer = answer._replace(headers={**answer.headers, "retry-after": str(fault.retry_after)})
        return answer

    def _due(self, operation: str) -> _Fault | None:
        for fault in self._faults:
            if fault.operation in (None, operation):
                self._faults.remove(fault)
                return fault
        return None

    def transport(self) -> Any:
        """A transport to this very object, so that clients meet its faults."""
        return _Transport(self)


class _Transport(LocalTransport):
    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def close(self) -> None:
        """Do nothing: the test closes the authority itself."""
