"""The middleware: one reservation a request, settled once when its body is closed, however the request ends."""

from __future__ import annotations

import json
import random
import threading
from io import BytesIO
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import peers
import pytest
from ledgers import Broken, Ended, ending, ledger_of, spent, tokens

from cycles_lite import (
    Action,
    BudgetClosedError,
    BudgetExceededError,
    BudgetFrozenError,
    CyclesClient,
    CyclesConfig,
    DebtOutstandingError,
    ForbiddenError,
    OverdraftLimitExceededError,
    RateLimitedError,
    ResponseError,
    ServerError,
    Subject,
    TransportError,
    TransportTimeout,
    ValidationError,
    current_guard,
)
from cycles_lite.wsgi import CyclesMiddleware, http_error

ACTION = Action("http.get", "page")


@pytest.fixture
def ledger(tmp_path):
    with ledger_of(tmp_path, 100_000) as ledger:
        yield ledger


def guarded(app, client, **parameters):
    settings = {"estimate": tokens(100), "action": ACTION, **parameters}
    return CyclesMiddleware(app, client, **settings)


class Called:
    """One request as a server makes it, with the standard's own validator on both sides of the middleware."""

    def __init__(self, app, path="/", **headers):
        self.environ = {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": ""}
        setup_testing_defaults(self.environ)
        self.environ.update({"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()})
        self.written = []
        self.body = validator(app)(self.environ, self.start_response)

    def start_response(self, status, headers, exc_info=None):
        self.status, self.headers = status, dict(headers)
        return self.written.append

    def read(self):
        try:
            return b"".join(self.body)
        finally:
            self.body.close()


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_a_request_is_reserved_and_committed(client, ledger):
    called = Called(guarded(validator(hello), client))
    assert spent(ledger) == (0, 100)
    assert called.read() == b"hello"
    assert called.status == "200 OK"
    assert spent(ledger) == (100, 0)


@pytest.mark.parametrize(
    ("actual", "charged"), [(tokens(7), 7), (lambda environ: tokens(len(environ["PATH_INFO"])), 4), (9, 9)]
)
def test_the_actual_is_a_constant_or_a_callable_of_the_environment(client, ledger, actual, charged):
    Called(guarded(hello, client, actual=actual), "/abc").read()
    assert spent(ledger) == (charged, 0)


def test_every_parameter_may_be_a_callable_of_the_environment(client, ledger):
    ledger.set_budget("tenant:acme/agent:abc", tokens(50))
    app = guarded(
        hello,
        client,
        estimate=lambda environ: tokens(5),
        action=lambda environ: Action("http.get", environ["PATH_INFO"]),
        subject=lambda environ: Subject(agent=environ["PATH_INFO"].strip("/")),
    )
    Called(app, "/abc").read()
    assert spent(ledger, "tenant:acme/agent:abc") == (5, 0)
    assert client.list_reservations().reservations[0].action.name == "/abc"


def test_the_application_can_reach_its_guard_while_it_is_called_iterated_and_closed(client, ledger):
    seen = []

    class Body:
        def __init__(self, guard):
            self.guard, self.left = guard, 2

        def __iter__(self):
            return self

        def __next__(self):
            seen.append(current_guard() is self.guard)
            if not self.left:
                raise StopIteration
            self.left -= 1
            self.guard.spend(3)
            return b"x"

        def close(self):
            seen.append(current_guard() is self.guard)

    def app(environ, start_response):
        seen.append(current_guard() is environ["cycles.guard"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body(environ["cycles.guard"])

    called = Called(guarded(app, client))
    assert current_guard() is None
    assert called.read() == b"xx"
    assert seen == [True] * 5
    assert spent(ledger) == (6, 0)


def test_written_bytes_pass_through(client, ledger):
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written ")
        return [b"returned"]

    called = Called(guarded(app, client))
    assert (called.written, called.read()) == ([b"written "], b"returned")
    assert spent(ledger) == (100, 0)


def test_a_file_wrapper_is_read_and_closed(client, ledger):
    file = BytesIO(b"file" * 5000)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return FileWrapper(file)

    assert Called(guarded(app, client)).read() == b"file" * 5000
    assert file.closed
    assert spent(ledger) == (100, 0)


def failing(where, metered=0):
    def app(environ, start_response):
        environ["cycles.guard"].spend(metered)
        if where == "before":
            raise Broken
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body()

    def body():
        try:
            yield b"first"
            if where == "during":
                raise Broken
            yield b"second"
        finally:
            if where == "close":
                raise Broken

    return app


@pytest.mark.parametrize("metered", [0, 8])
@pytest.mark.parametrize("where", ["before", "during"])
def test_an_application_that_raises_is_released_or_its_meter_committed(client, ledger, where, metered):
    with pytest.raises(Broken):
        Called(guarded(failing(where, metered), client)).read()
    assert spent(ledger) == (metered, 0)


def test_a_close_that_raises_is_settled_too(client, ledger):
    body = guarded(failing("close"), client)({"PATH_INFO": "/"}, lambda *_: None)
    next(body)
    with pytest.raises(Broken):
        body.close()
    assert spent(ledger) == (0, 0)


@pytest.mark.parametrize(("metered", "charged"), [(0, 100), (8, 8)])
def test_a_client_that_hangs_up_leaves_the_meter_or_the_estimate(client, ledger, metered, charged):
    """The work has run as far as it has; closing early is no reason to give it away."""
    called = Called(guarded(failing("nowhere", metered), client))
    next(called.body)
    called.body.close()
    assert spent(ledger) == (charged, 0)


def test_closing_twice_settles_once(client, ledger):
    body = guarded(hello, client)({"PATH_INFO": "/"}, lambda *_: None)
    assert list(body) == [b"hello"]
    body.close()
    body.close()
    assert spent(ledger) == (100, 0)


def test_the_application_may_settle_by_itself(client, ledger):
    def app(environ, start_response):
        current_guard().commit(tokens(1))
        return hello(environ, start_response)

    Called(guarded(app, client)).read()
    assert spent(ledger) == (1, 0)


@pytest.mark.parametrize(("metered", "charged"), [(0, 100), (8, 8)])
@pytest.mark.parametrize("is_read", [True, False])
def test_an_actual_that_ends_the_program_does_so_once_the_request_is_settled(client, ledger, metered, charged, is_read):
    body = guarded(failing("nowhere", metered), client, actual=ending)({"PATH_INFO": "/"}, lambda *_: None)
    if is_read:
        list(body)
    with pytest.raises(Ended):
        body.close()
    assert spent(ledger) == (charged, 0)


@pytest.mark.parametrize("metered", [0, 8])
@pytest.mark.parametrize("where", ["start_response", "application", "iter", "next", "close"])
def test_what_ends_the_program_leaves_nothing_reserved_and_loses_no_meter(client, ledger, where, metered):
    class Body:
        def __iter__(self):
            return ending() if where == "iter" else self

        def __next__(self):
            return ending()

        def close(self):
            if where == "close":
                ending()

    def app(environ, start_response):
        current_guard().spend(metered)
        start_response("200 OK", [])
        return ending() if where == "application" else Body()

    def call():
        started = ending if where == "start_response" else lambda *_: None
        body = guarded(app, client)({"PATH_INFO": "/"}, started)
        try:
            if where != "close":
                next(body)
        finally:
            body.close()

    with pytest.raises(Ended):
        call()
    assert spent(ledger) == (metered, 0)


def test_an_estimate_that_ends_the_program_reserves_nothing(client, ledger):
    with pytest.raises(Ended):
        guarded(hello, client, estimate=ending)({"PATH_INFO": "/"}, lambda *_: None)
    assert client.list_reservations().reservations == ()


@pytest.mark.parametrize("call", [next, lambda body: body.close()])
def test_a_body_that_another_thread_is_reading_goes_on(client, ledger, call):
    """A server that hangs up from another thread is told so by the generator; its work is still being done."""
    reached, released = threading.Event(), threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        return parts(environ["cycles.guard"])

    def parts(guard):
        reached.set()
        assert released.wait(60)
        guard.spend(7)
        yield b"part"

    body = guarded(app, client)({"PATH_INFO": "/"}, lambda *_: None)
    thread = threading.Thread(target=lambda: list(body))
    thread.start()
    try:
        assert reached.wait(60)
        with pytest.raises(ValueError, match="already executing"):
            call(body)
        assert spent(ledger) == (0, 100)
    finally:
        released.set()
        thread.join()
    body.close()
    assert spent(ledger) == (7, 0)


@pytest.mark.parametrize(
    ("path", "is_guarded"), [("/health", False), ("/health/deep", False), ("/healthy", True), ("/", True)]
)
def test_paths_can_be_left_out(client, ledger, path, is_guarded):
    Called(guarded(hello, client, exclude=["/health"]), path).read()
    assert spent(ledger) == ((100 if is_guarded else 0), 0)


# ---- Refusals ----


def test_a_denial_is_a_json_answer_and_the_application_does_not_run(client, ledger):
    called = Called(guarded(lambda *_: pytest.fail("it ran"), client, estimate=tokens(10**6)))
    body = json.loads(called.read().decode())
    assert called.status == "429 Too Many Requests"
    assert called.headers["Content-Type"] == "application/json"
    assert called.headers["Retry-After"] == "60"
    assert body["error"] == "BUDGET_EXCEEDED"
    assert "tenant" not in json.dumps(body)


@pytest.mark.parametrize(
    ("error", "status", "wait"),
    [
        (BudgetExceededError("x"), "429 Too Many Requests", "60"),
        (BudgetExceededError("x", retry_after=1.2), "429 Too Many Requests", "2"),
        (BudgetExceededError("x", retry_after=0), "429 Too Many Requests", "0"),
        (DebtOutstandingError("x"), "503 Service Unavailable", None),
        (OverdraftLimitExceededError("x"), "503 Service Unavailable", None),
        (BudgetFrozenError("x", retry_after=5), "503 Service Unavailable", "5"),
        (TransportError("x"), "503 Service Unavailable", None),
        (TransportTimeout("x"), "503 Service Unavailable", None),
        (ResponseError("x"), "503 Service Unavailable", None),
        (ServerError("x", status=500), "503 Service Unavailable", None),
        (RateLimitedError("x", retry_after=9), "503 Service Unavailable", "9"),
        (BudgetClosedError("x"), "500 Internal Server Error", None),
        (ForbiddenError("x"), "500 Internal Server Error", None),
        (ValidationError("x"), "500 Internal Server Error", None),
        (KeyError("x"), "500 Internal Server Error", None),
    ],
)
def test_the_table_of_errors(error, status, wait):
    line, headers, body = http_error(error)
    assert line == status
    assert dict(headers).get("Retry-After") == wait
    assert dict(headers)["Content-Length"] == str(len(body))
    assert set(json.loads(body.decode())) == {"error", "message"}


def test_a_denial_is_a_warning_with_what_the_authority_said(client, caplog):
    Called(guarded(hello, client, estimate=tokens(10**6)), "/chat").read()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("'GET' '/chat'", "BUDGET_EXCEEDED (409)", "scope=tenant:acme", "remaining=100000"):
        assert part in record.getMessage()


def test_a_refusal_over_http_is_logged_with_its_request_id_and_without_the_key(caplog):
    with peers.Peer(peers.refusal("BUDGET_EXCEEDED", request_id="req-17")) as peer, peers.client_of(peer) as client:
        Called(guarded(hello, client)).read()
    assert "request id req-17" in caplog.text
    assert peers.KEY not in caplog.text


def test_what_is_no_denial_is_an_error_in_the_log(ledger, caplog):
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="nobody")) as client:
        called = Called(guarded(hello, client))
        called.read()
    assert called.status == "500 Internal Server Error"
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "NOT_FOUND (404)" in record.getMessage()


def test_hostile_requests_are_shortened_in_the_log(client, caplog):
    Called(guarded(hello, client, estimate=tokens(10**6)), "/\n" + "x" * 10_000).read()
    assert "\n'" not in caplog.records[0].getMessage()
    assert len(caplog.records[0].getMessage()) < 500


def test_a_malformed_tenant_is_a_warning_that_shows_it_shortened(client, caplog):
    Called(guarded(hello, client, tenant_header="X-Tenant-ID"), **{"X-Tenant-ID": "a b" * 1000}).read()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "tenant is 'a ba b" in record.getMessage()
    assert len(record.getMessage()) < 200


def payment_required(error, environ):
    if isinstance(error, BudgetExceededError):
        return "402 Payment Required", [("Content-Type", "text/plain")], environ["PATH_INFO"].encode()
    return None


def test_on_error_may_answer_otherwise(client, ledger):
    called = Called(guarded(hello, client, estimate=tokens(10**6), on_error=payment_required), "/chat")
    assert called.status == "402 Payment Required"
    assert called.headers == {"Content-Type": "text/plain"}
    assert called.read() == b"/chat"
    with CyclesClient(CyclesConfig(base_url=ledger.url, tenant="nobody")) as client:
        called = Called(guarded(hello, client, on_error=payment_required))
        called.read()
    assert called.status == "500 Internal Server Error"


@pytest.mark.parametrize(
    "answer",
    [
        (),
        "402 Payment Required",
        (402, [], b""),
        ("402", [], b""),
        ("Payment Required", [], b""),
        ("402 Payment Required\r\nX: y", [], b""),
        ("402 Payment Required", [], "text"),
        ("402 Payment Required", None, b""),
        ("402 Payment Required", [("Retry-After", 60)], b""),
        ("402 Payment Required", [("X", "a\r\nY: b")], b""),
        ("402 Payment Required", [("X", "a", "b")], b""),
        KeyError("broken"),
    ],
)
def test_an_on_error_that_fails_is_logged_and_the_usual_answer_given(client, answer, caplog):
    def on_error(error, environ):
        if isinstance(answer, Exception):
            raise answer
        return answer

    called = Called(guarded(hello, client, estimate=tokens(10**6), on_error=on_error))
    assert called.status == "429 Too Many Requests"
    assert json.loads(called.read().decode())["error"] == "BUDGET_EXCEEDED"
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "on_error failed" in caplog.text


# ---- Tenants ----


@pytest.fixture
def tenants(ledger):
    """Two tenants with a client each."""
    ledger.set_budget("tenant:other", tokens(1000))
    clients = {name: CyclesClient(CyclesConfig(base_url=ledger.url, tenant=name)) for name in ("acme", "other")}
    yield clients
    for client in clients.values():
        client.close()


@pytest.mark.parametrize("header", ["X-Tenant-ID", lambda environ: environ.get("HTTP_X_TENANT_ID")])
def test_each_request_is_its_tenants(ledger, tenants, header):
    app = guarded(hello, None, tenant_header=header, client_for=tenants.__getitem__)
    Called(app, **{"X-Tenant-ID": "other"}).read()
    assert spent(ledger, "tenant:other") == (100, 0)
    assert spent(ledger) == (0, 0)


def test_one_client_can_serve_every_tenant(ledger):
    ledger.set_budget("tenant:other", tokens(1000))
    with CyclesClient(CyclesConfig(base_url=ledger.url)) as client:
        Called(guarded(hello, client, tenant_header="X-Tenant-ID"), **{"X-Tenant-ID": "other"}).read()
    assert spent(ledger, "tenant:other") == (100, 0)


def test_a_tenant_without_a_client_is_refused(ledger, tenants):
    told = []
    app = guarded(
        lambda *_: pytest.fail("it ran"),
        None,
        tenant_header="X-Tenant-ID",
        client_for=tenants.get,
        on_error=lambda error, environ: told.append(error),
    )
    called = Called(app, **{"X-Tenant-ID": "nobody"})
    assert called.status == "500 Internal Server Error"
    assert json.loads(called.read().decode())["error"] == "INTERNAL_ERROR"
    assert [type(error) for error in told] == [ValidationError]


@pytest.mark.parametrize("tenant", [None, "", "a b", "a/b", "../x", "a\u00e9", "x" * 129, "a\nb", "\0"])
def test_a_missing_or_malformed_tenant_is_a_400_and_nothing_is_sent(ledger, tenant):
    def client_for(tenant):
        pytest.fail("it was asked for")

    app = guarded(lambda *_: pytest.fail("it ran"), None, tenant_header=lambda environ: tenant, client_for=client_for)
    called = Called(app)
    assert called.status == "400 Bad Request"
    assert json.loads(called.read().decode())["error"] == "INVALID_TENANT"


@pytest.mark.parametrize(
    "parameters",
    [{}, {"client_for": lambda tenant: None}, {"client": object(), "exclude": "/health"}],
)
def test_bad_settings_are_refused_when_it_is_made(parameters):
    with pytest.raises(ValidationError):
        guarded(hello, parameters.pop("client", None), **parameters)


# ---- Whatever applications do ----


def test_500_random_applications_leave_the_ledger_exact(client, ledger):
    """Bodies, exceptions, early closes, several threads: what was to be committed is, and nothing stays held."""
    choice = random.Random(20260101)
    plans = [
        {
            "parts": choice.randrange(4),
            "raises": choice.choice([None, None, "before", "during", "close"]),
            "read": choice.randrange(5),
            "metered": choice.choice([0, 0, 3, 17]),
            "actual": choice.choice([None, tokens(11)]),
            "kind": choice.choice(["list", "generator", "write"]),
        }
        for _ in range(500)
    ]
    totals = []

    def work(share):
        totals.append(sum(_play(client, plan) for plan in share))

    threads = [threading.Thread(target=work, args=(plans[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(totals) == 4
    assert spent(ledger) == (sum(totals), 0)


def _play(client, plan):
    """One request; returns what it must have been charged."""

    def parts():
        try:
            for number in range(plan["parts"]):
                if plan["raises"] == "during" and number == plan["parts"] - 1:
                    raise Broken
                yield b"part"
        finally:
            if plan["raises"] == "close":
                raise Broken

    def app(environ, start_response):
        current_guard().spend(plan["metered"])
        if plan["raises"] == "before":
            raise Broken
        write = start_response("200 OK", [])
        if plan["kind"] == "write":
            write(b"part")
            return []
        return list(parts()) if plan["kind"] == "list" else parts()

    body, failed = None, False
    try:
        body = guarded(app, client, actual=plan["actual"])({"PATH_INFO": "/"}, lambda *_: lambda data: None)
        for _ in range(plan["read"]):
            next(body)
    except StopIteration:
        pass
    except Broken:
        failed = True
    try:
        if body is not None:
            body.close()
    except Broken:
        failed = True
    if failed:
        return plan["metered"]
    if plan["actual"] is not None:
        return plan["actual"].amount
    return plan["metered"] or 100


@pytest.mark.parametrize(
    "given",
    [
        *({"exclude": 5}, {"exclude": [5]}, {"exclude": "/x"}, {"tenant_header": 5}),
        *({"estimate": 5}, {"estimate": None}, {"action": "http.get:page"}, {"subject": {}}, {"subject": "acme"}),
    ],
)
def test_what_no_request_could_be_guarded_with_is_refused(given):
    (name,) = given
    with pytest.raises(ValidationError, match=f"^{name}: "):
        CyclesMiddleware(hello, object(), **{"estimate": tokens(5), "action": ACTION, **given})
