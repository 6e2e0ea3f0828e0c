"""What a server's listeners are told of each request and its answer, over real HTTP."""

from __future__ import annotations

import logging
import queue
import threading

import pytest
from serving import ADMIN_KEY, PATIENCE, Http, asking, raw, serving

from cycles_lite.local.application import Application

#: What is no request at all, so that it has no path.
BROKEN = b"GET /v1/decide HTTP/1.1\r\nno colon\r\n\r\n"


@pytest.fixture
def told():
    return queue.Queue()


@pytest.fixture
def served(tmp_path, told):
    with serving(tmp_path, listeners=[told.put]) as served:
        yield served


def next_of(told):
    """What was told next. It is told before the answer is sent, so whoever has the answer need not wait for it."""
    return told.get_nowait()


def test_each_answer_is_told_with_what_was_asked_and_by_whom(served, told):
    with Http(served.url, served.key) as http:
        for method, path, body, operation, status, code in [
            ("POST", "/v1/reservations", asking(), "create_reservation", 200, None),
            ("GET", "/v1/reservations", None, "list_reservations", 200, None),
            ("POST", "/v1/decide", asking(-1), "decide", 400, "INVALID_REQUEST"),
            ("GET", "/v1/reservations/rsv_unknown", None, "get_reservation", 404, "NOT_FOUND"),
            ("POST", "/v1/reservations", asking(tenant="rival"), "create_reservation", 403, "FORBIDDEN"),
        ]:
            reply = http(method, path + "?secret=1", body)
            exchange = next_of(told)
            assert exchange[:5] == (method, path, operation, status, code)
            assert reply.status == status
            assert 0 <= exchange.seconds < PATIENCE
            assert (exchange.bytes, exchange.client, exchange.tenant) == (len(reply.body), "127.0.0.1", "acme")
            assert exchange.request_id == reply.headers["x-request-id"]
    assert told.empty()


def test_routes_that_are_not_the_protocols_have_words_of_their_own(served, told):
    with Http(served.url, X_Admin_API_Key=served.admin_key) as http:
        for method, path, operation, status in [
            ("GET", "/actuator/health", "health", 200),
            ("POST", "/v1/admin/tenants", "admin", 400),
            ("PUT", "/v1/admin/tenants", "unknown", 405),
            ("GET", "/nowhere%0A%C3%A4", "unknown", 404),
            ("HEAD", "/actuator/health", "health", 200),
        ]:
            http(method, path)
            exchange = next_of(told)
            assert (exchange.method, exchange.operation, exchange.status) == (method, operation, status)
            assert exchange.tenant is None
            if status == 404:
                assert exchange.path == "/nowhere\nä"


@pytest.mark.parametrize(
    ("sent", "path", "status"),
    [
        (b"POST /v1/decide HTTP/1.1\r\nContent-Length: x\r\n\r\n", "/v1/decide", 400),
        (b"POST /v1/decide HTTP/1.1\r\nTransfer-Encoding: odd\r\n\r\n", "/v1/decide", 501),
        (b"GET http://[half HTTP/1.1\r\n\r\n", "", 400),
        (BROKEN, "", 400),
    ],
)
def test_requests_that_do_not_reach_the_application_are_told_too(served, told, sent, path, status):
    reply = raw(served.url, sent)
    exchange = next_of(told)
    assert (exchange.path, exchange.operation, exchange.status) == (path, "unknown", status)
    assert reply.status == status
    assert (exchange.code, exchange.request_id) == (reply.error, reply.headers["x-request-id"])


@pytest.mark.parametrize("sent", [b"GET /nowhere HTTP/1.0\r\n\r\n", BROKEN])
def test_nobody_has_an_answer_that_was_not_told_of(tmp_path, sent):
    entered, may_go = threading.Event(), threading.Event()

    def listener(exchange):
        entered.set()
        may_go.wait(PATIENCE)

    with serving(tmp_path, listeners=[listener]) as served:
        client = threading.Thread(target=raw, args=(served.url, sent))
        client.start()
        try:
            assert entered.wait(PATIENCE)
            client.join(0.3)  # an answer that was sent before would be there
            assert client.is_alive()
        finally:
            may_go.set()
            client.join(PATIENCE)


def test_an_answer_that_cannot_be_sent_is_told_of_as_well(served, told):
    """Here by hand, with a server that fails as soon as it is given the answer's status."""

    def gone(status, headers):
        raise BrokenPipeError

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/nowhere"}
    with pytest.raises(BrokenPipeError):
        Application(served.authority, listeners=[told.put])(environ, gone)
    exchange = next_of(told)
    assert (exchange.status, exchange.client) == (500, ""), "there was no body to read"


def test_a_listener_that_fails_harms_neither_the_answer_nor_other_listeners(tmp_path, told, caplog):
    def failing(exchange):
        raise ValueError("by intent")

    with serving(tmp_path, listeners=[failing, told.put]) as served, Http(served.url, served.key) as http:
        assert http("GET", "/v1/reservations").status == 200
        assert next_of(told).status == 200
        raw(served.url, BROKEN)
        assert next_of(told).status == 400
        assert http("GET", "/v1/reservations").status == 200
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info[0] for record in logged] == [ValueError] * 3


def test_no_field_has_a_key(served, told):
    secrets = (served.key, served.rival_key, ADMIN_KEY)
    with Http(served.url) as http:
        for headers in (
            {"X-Cycles-API-Key": served.key},
            {"X-Cycles-API-Key": "wrong"},
            {"X-Admin-API-Key": ADMIN_KEY},
        ):
            for method, path in (("GET", "/v1/reservations?tenant=acme"), ("POST", "/v1/admin/budgets"), ("GET", "/x")):
                http(method, path, b"{}" if method == "POST" else None, **headers)
                shown = repr(next_of(told))
                assert not [secret for secret in (*secrets, "wrong") if secret in shown]
