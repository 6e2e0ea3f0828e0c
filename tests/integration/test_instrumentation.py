"""What watches or replaces urllib3 and http.client sees every request, and may answer it: the real OpenTelemetry,
vcrpy, freezegun and sentry-sdk, where they are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import urllib3
from peers import KEY, Peer, allowed, answer, client_of, commit_request, committed, create_request, ends_within, silent
from serving import ROOT, serving

from cycles_lite import ConfigError, CyclesClient, CyclesConfig, TransportError, TransportTimeout


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


def client_at(served):
    return CyclesClient(CyclesConfig(base_url=served.url, api_key=served.key, tenant="acme", agent="bot"))


def reserve_and_commit(client, key):
    """Two requests, the same for the same key."""
    created = client.create_reservation(create_request(idempotency_key="create " + key))
    committed = client.commit_reservation(created.reservation_id, commit_request(idempotency_key="commit " + key))
    return created.reservation_id, committed.charged


# ---- OpenTelemetry ----


def test_opentelemetry_has_a_span_of_each_request(served):
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.urllib3")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.URLLib3Instrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with client_at(served) as client:
            for number in range(3):
                reserve_and_commit(client, str(number))
            with pytest.raises(Exception, match="NOT_FOUND"):
                client.get_reservation("rsv_of_nobody")
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    spans = exporter.get_finished_spans()
    assert [span.name.split()[-1] for span in spans] == ["POST"] * 6 + ["GET"]
    assert [span.attributes["http.status_code"] for span in spans] == [200] * 6 + [404]
    assert KEY not in json.dumps([dict(span.attributes) for span in spans])


def test_opentelemetry_sends_its_trace_along():
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.urllib3")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    instrumentor = instrumentation.URLLib3Instrumentor()
    instrumentor.instrument(tracer_provider=trace.TracerProvider())
    try:
        with Peer(answer(allowed())) as peer, client_of(peer) as client:
            client.create_reservation(create_request())
            client.create_reservation(create_request())
    finally:
        instrumentor.uninstrument()
    traces = [request.header("traceparent") for request in peer.requests]
    assert None not in traces
    assert len(set(traces)) == 2


# ---- vcrpy ----


@pytest.mark.parametrize("used_before", [False, True], ids=["a new client", "a client that made calls before"])
def test_vcrpy_records_every_call_and_plays_it_again(used_before, served, tmp_path):
    vcr = pytest.importorskip("vcr")
    cassette = str(tmp_path / "cassette.yaml")
    with client_at(served) as client:
        if used_before:
            reserve_and_commit(client, "before")
        with vcr.use_cassette(cassette, record_mode="once") as recorded:
            first = [reserve_and_commit(client, str(number)) for number in range(3)]
        assert len(recorded) == 6
        assert recorded.play_count == 0
        in_between = reserve_and_commit(client, "in between")
        with vcr.use_cassette(cassette, record_mode="none") as played:
            assert [reserve_and_commit(client, str(number)) for number in range(3)] == first
        assert played.play_count == 6
        with vcr.use_cassette(cassette, record_mode="none"), pytest.raises(TransportError, match="Cassette"):
            client.with_options(retry_enabled=False).get_reservation("of no cassette")
        assert reserve_and_commit(client, "in between") == in_between  # by the server again


def test_vcrpy_plays_to_a_client_whose_server_is_gone(served, tmp_path):
    vcr = pytest.importorskip("vcr")
    cassette = str(tmp_path / "cassette.yaml")
    with Peer(answer(allowed()), answer(committed())) as peer, client_of(peer) as client:
        with vcr.use_cassette(cassette):
            first = reserve_and_commit(client, "1")
    with vcr.use_cassette(cassette, record_mode="none"), client_of(peer) as another:
        assert reserve_and_commit(another, "1") == first
    assert len(peer.requests) == 2


# ---- Others ----


def test_whoever_replaces_urlopen_answers_each_request(monkeypatch):
    """As pook and the like do; no connection is opened."""
    seen = []

    def urlopen(pool, method, url, body=None, headers=None, **options):
        seen.append((method, url, json.loads(body.decode()), headers["X-Cycles-API-Key"]))
        data = allowed() if url == "/v1/reservations" else committed()
        return urllib3.HTTPResponse(json.dumps(data).encode(), {"X-Request-Id": "req_1"}, 200)

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)
    with client_of("http://127.0.0.1:1") as client:
        reserve_and_commit(client, "1")
        assert client.create_reservation(create_request()).request_id == "req_1"
    assert [(method, url, key) for method, url, _, key in seen] == [
        ("POST", "/v1/reservations", KEY),
        ("POST", "/v1/reservations/rsv_1/commit", KEY),
        ("POST", "/v1/reservations", KEY),
    ]
    assert seen[1][2]["actual"] == {"unit": "TOKENS", "amount": 42}


@pytest.mark.parametrize("error", [AssertionError, TypeError, AttributeError, RuntimeError, LookupError, ImportError])
def test_what_a_replaced_connection_raises_is_an_error_of_ours(error, monkeypatch):
    class Broken(urllib3.HTTPConnectionPool.ConnectionCls):
        __module__ = "somebody.elses"

        def request(self, *args, **kwargs):
            raise error("not that way")

    with Peer(answer(allowed())) as peer, client_of(peer, retry_enabled=False) as client:
        client.create_reservation(create_request())
        with monkeypatch.context() as patched:
            patched.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", Broken)
            with pytest.raises(TransportError, match=f"{error.__name__}: not that way"):
                client.create_reservation(create_request())
        client.create_reservation(create_request())
    assert len(peer.requests) == 2


def test_a_fork_of_urllib3_that_cannot_be_driven_is_named(monkeypatch):
    class HTTPConnection:
        __module__ = "urllib3.connection"

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", HTTPConnection)
    with pytest.raises(ConfigError, match=f"urllib3 {urllib3.__version__} .*urllib3-future"):
        client_of("http://127.0.0.1:1")


def test_an_attempt_ends_in_time_under_a_frozen_clock():
    freezegun = pytest.importorskip("freezegun")
    with Peer(silent) as peer, freezegun.freeze_time("2026-01-01"), ends_within(60):
        with client_of(peer, connect_timeout=0.2, read_timeout=0.1) as client, pytest.raises(TransportTimeout):
            client.create_reservation(create_request())


# ---- Sentry, in a process of its own, for what it patches stays so ----

SENTRY = """
    import logging, sys
    import sentry_sdk
    from sentry_sdk.transport import Transport
    from cycles_lite import Action, Amount, CyclesClient, CyclesConfig, ReservationCreateRequest

    class Kept(Transport):
        def __init__(self, options=None):
            super().__init__(options)
            self.told = []
        def capture_envelope(self, envelope):
            self.told.append(envelope.serialize())
        capture_event = None

    def fails(client):
        request = ReservationCreateRequest(Action("llm.completion", "gpt-4o"), Amount.tokens(1))
        for call in (
            lambda: client.create_reservation(request),
            lambda: client.get_reservation("rsv_1"),
            lambda: client.reserve(Amount.tokens(1), Action("llm.completion", "gpt-4o")),
            lambda: client.get_balances(),
        ):
            try:
                call()
            except Exception as e:
                logging.getLogger("app").exception("failed")
                sentry_sdk.capture_exception(e)

    kept = Kept()
    sentry_sdk.init("http://public@127.0.0.1:1/1", transport=kept)
    for url in sys.argv[1:]:
        config = CyclesConfig(
            base_url=url, api_key="cyc_live_" + "S3cr3t" * 4, tenant="acme", retry_max_attempts=2,
            retry_initial_delay=0.01, connect_timeout=0.5, read_timeout=0.5,
        )
        with CyclesClient(config, traceparent=lambda: 1 // 0) as client:
            del config
            fails(client)
    sys.stdout.buffer.write(b"".join(kept.told))
"""


def test_sentry_sees_each_request_and_never_the_key():
    """With its defaults, which are to send the variables of all frames that an exception came through."""
    pytest.importorskip("sentry_sdk")
    echo = answer({"error": "FORBIDDEN", "message": "cyc_live_" + "S3cr3t" * 4, "request_id": "r"}, 403)
    ends = [echo, answer({"x": 1}), answer(body=b"<html>"), answer(status=503), lambda line, request: line.reset()]
    peers = [Peer(end) for end in [*ends, silent]]
    try:
        urls = [peer.__enter__().url for peer in peers] + ["http://127.0.0.1:1", "https://127.0.0.1:1"]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SENTRY), *urls],
            env={**os.environ, "PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
    finally:
        for peer in peers:
            peer.__exit__(None)
    sent = done.stdout.decode()
    assert sent.count('"exception"') >= 4 * len(urls)
    assert sent.count('"vars"') >= 4 * len(urls)
    assert "/v1/reservations/rsv_1" in sent  # its integration of http.client has seen the requests
    assert "S3cr3t" not in sent
