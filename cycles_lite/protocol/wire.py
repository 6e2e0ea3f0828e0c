"""The protocol's operations, requests as they are sent, and answers read as responses or errors.

An answer counts as success only with proof: it has exactly the operation's status and the required fields with their
types, and where money moves also the right status word and known units. Anything else is an error.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple

from ..errors import ApiError, BudgetDenied, ResponseError, ValidationError, error_class, known_code
from .checks import INT64_MAX, is_a
from .fields import Model
from .values import Unit

if TYPE_CHECKING:
    from .models import ErrorResponse, ReservationCreateResponse, Response


class Operation(NamedTuple):
    """One operation of the protocol (protocol: `paths`)."""

    name: str
    #: The path; `{id}` stands for the quoted reservation or evidence id.
    path: str
    #: The name of the model of its success.
    response_name: str
    #: The name of the model of its body; None where it has no body.
    request_name: str | None = None
    #: The `status` word that proves success, where the answer moves or holds money.
    proof: str | None = None
    #: The one status that means success.
    status: int = 200
    #: Whether a code that denies is raised as `BudgetDenied`, because the work has not run yet.
    reserves: bool = False
    #: Whether a code that denies is raised as `SettlementRejectedError`, because the work has run.
    settles: bool = False
    #: Whether the request is sent without an API key (protocol: `security: []`).
    public: bool = False
    #: The HTTP method.
    method: str = "POST"

    @property
    def response(self) -> type[Response]:
        """The model of its success."""
        response: type[Response] = _model(self.response_name)
        return response

    @property
    def request(self) -> type[Model] | None:
        """The model of its body, where it has one."""
        return _model(self.request_name) if self.request_name else None


@lru_cache(maxsize=None)
def _model(name: str) -> Any:
    """A model by its name. The module of the models is imported with the first call: it would be half of the package's
    import, and programs name few of its classes themselves."""
    from . import models

    return getattr(models, name)


_RESERVATION = "/v1/reservations/{id}"

CREATE_RESERVATION = Operation(
    "create_reservation", "/v1/reservations", "ReservationCreateResponse", "ReservationCreateRequest", reserves=True
)
COMMIT_RESERVATION = Operation(
    "commit_reservation", _RESERVATION + "/commit", "CommitResponse", "CommitRequest", "COMMITTED", settles=True
)
RELEASE_RESERVATION = Operation(
    "release_reservation", _RESERVATION + "/release", "ReleaseResponse", "ReleaseRequest", "RELEASED"
)
EXTEND_RESERVATION = Operation(
    "extend_reservation", _RESERVATION + "/extend", "ReservationExtendResponse", "ReservationExtendRequest", "ACTIVE"
)
DECIDE = Operation("decide", "/v1/decide", "DecisionResponse", "DecisionRequest", reserves=True)
CREATE_EVENT = Operation(
    "create_event", "/v1/events", "EventCreateResponse", "EventCreateRequest", "APPLIED", status=201, settles=True
)
LIST_RESERVATIONS = Operation("list_reservations", "/v1/reservations", "ReservationListResponse", method="GET")
GET_RESERVATION = Operation("get_reservation", _RESERVATION, "ReservationDetail", method="GET")
GET_BALANCES = Operation("get_balances", "/v1/balances", "BalanceResponse", method="GET")
GET_EVIDENCE = Operation("get_evidence", "/v1/evidence/{id}", "CyclesEvidenceEnvelope", public=True, method="GET")
GET_EVIDENCE_KEYS = Operation(
    "get_evidence_keys", "/v1/.well-known/cycles-jwks.json", "CyclesEvidenceJwks", public=True, method="GET"
)

#: All of those above, in that order.
OPERATIONS = tuple([value for value in list(globals().values()) if isinstance(value, Operation)])

IDEMPOTENCY_KEY_HEADER = "X-Idempotency-Key"
API_KEY_HEADER = "X-Cycles-API-Key"


def is_evidence_id(value: Any) -> bool:
    """Whether a value is what evidence is fetched by: 64 lower-case hexadecimal digits (protocol: CyclesEvidence)."""
    return is_a(value, str) and re.match(r"[0-9a-f]{64}\Z", value) is not None


class Call(NamedTuple):
    """One request, ready to send."""

    operation: Operation
    #: The id in the path, unquoted.
    id: str | None
    #: The parameters of the URL, unquoted.
    query: Mapping[str, str]
    #: The body as decoded JSON; None where the operation has none.
    data: Any
    headers: Mapping[str, str]
    #: The tenant of the configuration, for an authority that has no API key to tell it.
    tenant: str | None
    #: Seconds for a new connection, and for the answer after it; the attempt as a whole is bounded by their sum.
    connect_timeout: float
    read_timeout: float
    #: Whether the attempt must open a new connection.
    fresh: bool = False
    #: Seconds for the attempt if it is made on an old connection, which may be dead; None gives it the whole time.
    reused_bound: float | None = None

    def __repr__(self) -> str:
        return f"<Call {self.operation.name} {self.id or ''}>"  # the API key is among the headers

    @property
    def body(self) -> bytes:
        """The bytes that a socket sends. Raises `TypeError` or `ValueError` where the data is not JSON."""
        return b"" if self.data is None else dumps(self.data)


class Answer(NamedTuple):
    """What came back.

    An authority behind a socket sends bytes, one in this process gives decoded JSON. Either is made of the other only
    for those who ask for it.
    """

    status: int
    #: The headers by their names in lower case.
    headers: Mapping[str, str]
    #: The bytes as they came from a socket, or decoded JSON, which nobody else holds on to.
    content: Any

    @property
    def body(self) -> bytes:
        """The body's bytes."""
        return self.content if isinstance(self.content, bytes) else dumps(self.content)

    @property
    def data(self) -> Any:
        """The body as decoded JSON. Raises `ValueError` for bytes that are none."""
        return loads(self.content) if isinstance(self.content, bytes) else self.content


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(data: Any) -> bytes:
    """Compact JSON, in ASCII."""
    return _encode(data).encode("ascii")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    """An integer that is not endless: int() takes quadratic time for digits, and Python's own limit of 4300 of them
    came late (3.7.14, 3.8.14, ...)."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} characters")
    return int(digits)


#: Digits that an integer may have. The protocol's have 19 at the most; metadata may have longer ones.
_MOST_DIGITS = 640

_decode = json.JSONDecoder(parse_constant=_no_constant).decode
_decode_wary = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer).decode


def loads(body: bytes) -> Any:
    """The JSON in a body, decoded. Raises `ValueError` if it is none, also for NaN, bad UTF-8, deep nesting and long
    integers."""
    # Checking each integer takes a third of the time, and is needed only if the body has enough digits for a long one.
    digits = len(body) - len(body.translate(None, b"0123456789"))
    try:
        data = (_decode if digits <= _MOST_DIGITS else _decode_wary)(body.decode("utf-8"))
    except RecursionError as e:
        raise ValueError("nested too deep") from e
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _is_too_deep(data):
        raise ValueError("nested too deep")
    return data


#: Levels of nesting that JSON may have. Metadata may have 200. What is much deeper can be decoded, but its copy, its
#: repr or its pickle fails with a `RecursionError`.
_DEEPEST = 250


def _is_too_deep(data: Any) -> bool:
    """Whether there is a value below `_DEEPEST` others."""
    level = [data]
    for _ in range(_DEEPEST):
        below = [list(value.values()) if type(value) is dict else value for value in level]
        level = [value for values in below for value in values if type(value) is dict or type(value) is list]
        if not level:
            return False
    return True


def read_body(body: bytes) -> Any:
    """The decoded JSON in a body that a server got. Raises `ValidationError` for whatever is not JSON."""
    try:
        return loads(body)
    except ValueError as e:
        raise ValidationError(f"body: not JSON: {e}") from e


def query(filters: Model) -> dict[str, str]:
    """The query parameters of a list or balance request: true alone of the flags, and lists joined by commas."""
    values = filters.to_json().items()
    return {
        name: "true" if value is True else ",".join(value) if isinstance(value, list) else str(value)
        for name, value in values
    }


def read_answer(
    operation: Operation,
    answer: Answer,
    unit: str | None = None,
    attempt_ms: tuple[float | None, float | None] = (None, None),
) -> Any:
    """The response in an answer; raises what else it says. `unit` is what the request named, for a 404's message;
    `attempt_ms` when the attempt was sent and answered, for a heartbeat."""
    status = answer.status
    if 400 <= status < 600:
        raise _error(operation, answer, unit)
    if status != operation.status:
        raise _unusable(answer, f"status {status} where {operation.status} was expected")
    try:
        response: Any = operation.response.from_json(answer.data, strict=operation.proof is not None)
    except ValueError as e:
        raise _unusable(answer, f"unusable body of {operation.name}: {e}") from e
    values = response.__dict__
    if operation.proof is not None:
        if values["status"] != operation.proof:
            raise _unusable(answer, f"status is {values['status']!r:.60} where {operation.proof} was expected")
        for name in ("charged", "released"):
            if name in values and not isinstance(values[name].unit, Unit):
                raise _unusable(answer, f"{name} is in an unknown unit")
    if operation.method == "GET":  # what is read may have metadata, which the response shares with decoded JSON
        answer = answer._replace(content=answer.body)
    values.update(headers=answer.headers, answer=answer, attempt_ms=attempt_ms)
    return response


def _unusable(answer: Answer, why: str) -> ResponseError:
    return ResponseError(why, **_facts(answer, None))


def _error(operation: Operation, answer: Answer, unit: str | None) -> ApiError:
    try:
        told: ErrorResponse = _model("ErrorResponse").from_json(answer.data)
    except ValueError:
        # The body is a proxy's page or is broken, so the status is all that is known.
        kind = error_class(answer.status, None, reserves=False, settles=False)
        return kind("the answer is not the protocol's", **_facts(answer, None))
    kind = error_class(answer.status, told.error, reserves=operation.reserves, settles=operation.settles)
    note = f"unit sent: {unit}" if unit and answer.status == 404 else ""
    facts = {**_facts(answer, told), "evidence": told.cycles_evidence, "note": note}
    return kind(told.message, code=told.error, details=told.details, **facts)


def _facts(answer: Answer, error: ErrorResponse | None) -> dict[str, Any]:
    """What every error tells of its answer: the status, the ids, and when to come back. The body wins over the headers,
    and `Retry-After` is in whole seconds, because the protocol has no date form (protocol: `headers.Retry-After`)."""
    headers, body = answer.headers, error.extra if error is not None else {}
    details = (error.details if error is not None else None) or {}
    wait, header = body.get("retry_after_ms", details.get("retry_after_ms")), headers.get("retry-after", "").strip()
    retry_after = float(header) if re.match(r"[0-9]{1,9}\Z", header) else None
    if type(wait) is int and 0 <= wait <= INT64_MAX:
        retry_after = wait / 1000.0
    return {
        "status": answer.status,
        "retry_after": retry_after,
        "request_id": (error and error.request_id) or headers.get("x-request-id"),
        "trace_id": (error and error.trace_id) or headers.get("x-cycles-trace-id"),
    }


def denied(response: ReservationCreateResponse) -> ApiError:
    """The `BudgetDenied` for a reservation that the authority answered with anything but an ALLOW and an id."""
    row = known_code(response.reason_code)
    kind = row.kind if row.denies else BudgetDenied
    wait = response.retry_after_ms
    return kind(
        f"the reservation was not allowed: {response.reason_code or response.decision}",
        status=200,
        code=response.reason_code,
        evidence=response.cycles_evidence,
        retry_after=None if wait is None else wait / 1000.0,
        request_id=response.request_id,
        trace_id=response.trace_id,
    )
