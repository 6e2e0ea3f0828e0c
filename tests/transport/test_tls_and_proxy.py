"""TLS and proxies: what is verified, what the proxy gets to see, and that neither can hold a call up."""

from __future__ import annotations

import gc
import logging
import os
import socket
import ssl
import threading
import traceback
import warnings
from base64 import b64encode

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the cryptography package, on old Pythons
    import trustme

from peers import (
    KEY,
    PATIENCE,
    Peer,
    allowed,
    answer,
    client_of,
    config_of,
    create_request,
    ends_within,
    head,
    no_descriptors,
    summary,
)

from cycles_lite import ConfigError, TransportError, TransportTimeout
from cycles_lite.protocol import wire
from cycles_lite.protocol.wire import Call
from cycles_lite.transport.http import HttpTransport

GOOD = answer(summary())

ONCE = {"retry_enabled": False, "max_connections": 1}

TIGHT = {"connect_timeout": 0.2, "read_timeout": 0.2, **ONCE}

CREDENTIALS = "proxy-user:pr0xy%2Fs3cret"
AUTHORIZATION = "Basic " + b64encode(b"proxy-user:pr0xy/s3cret").decode()


class Authority:
    """A certificate authority of its own, and server contexts with certificates of it."""

    def __init__(self, folder):
        self.ca = trustme.CA()
        self.file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.file)

    def server(self, *names):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("other-ca"))


@pytest.fixture(scope="session")
def tls(authority):
    return authority.server("127.0.0.1", "localhost", "budgets.invalid")


VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in VARIABLES:
            monkeypatch.delenv(name)


def told(raised):
    """All that a log would have of an exception, but for the lines of code."""
    lines = "".join(traceback.format_exception(raised.type, raised.value, raised.tb)).splitlines()
    return "\n".join(line for line in lines if not line.startswith("    "))


def get(client):
    return client.get_reservation("rsv_1")


# ---- Verification ----


def test_a_certificate_of_the_configured_authority_is_trusted(authority, tls):
    with Peer(GOOD, tls=tls) as peer, client_of(peer, ca_certs=authority.file) as client:
        get(client)
        get(client)
    assert peer.connections == 1


def test_a_folder_of_certificates_can_be_configured(authority, tls, tmp_path):
    """OpenSSL looks for names made of hashes; that it is asked is seen from the missing file's not being an error."""
    with Peer(GOOD, tls=tls) as peer, client_of(peer, ca_certs=str(tmp_path), **ONCE) as client:
        with pytest.raises(TransportError):
            get(client)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_names_the_trusted_authorities(variable, authority, tls, monkeypatch):
    monkeypatch.setenv(variable, authority.file)
    with Peer(GOOD, tls=tls) as peer, client_of(peer) as client:
        assert get(client).reservation_id == "rsv_1"


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_configuration_wins_over_the_environment(variable, authority, other_authority, tls, monkeypatch):
    monkeypatch.setenv(variable, other_authority.file)
    with Peer(GOOD, tls=tls) as peer, client_of(peer, ca_certs=authority.file) as client:
        assert get(client).reservation_id == "rsv_1"


@pytest.mark.parametrize("trusted", [None, "other"])
def test_an_unknown_authority_is_refused_before_anything_is_sent(trusted, other_authority, tls):
    ca_certs = other_authority.file if trusted else None
    with Peer(GOOD, tls=tls) as peer, client_of(peer, ca_certs=ca_certs) as client:
        with pytest.raises(TransportError, match="certificate verify failed"):
            client.create_reservation(create_request())
    assert peer.requests == []
    assert peer.connections == 2  # it may be another server next time


def test_a_certificate_for_another_name_is_refused(authority):
    with Peer(GOOD, tls=authority.server("budgets.invalid")) as peer, client_of(
        peer, ca_certs=authority.file
    ) as client:
        with pytest.raises(TransportError, match=r"certificate verify failed|doesn't match"):
            client.create_reservation(create_request())
    assert peer.requests == []


def test_a_name_that_resolves_here_is_verified_as_that_name(authority, tls, monkeypatch):
    with Peer(GOOD, tls=tls) as peer:
        here = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", peer.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [here])
        with client_of("https://budgets.invalid", ca_certs=authority.file) as client:
            get(client)
        with client_of("https://other.invalid", ca_certs=authority.file, **ONCE) as client:
            with pytest.raises(TransportError):
                get(client)
    assert [request.header("Host") for request in peer.requests] == ["budgets.invalid"]


def test_a_server_without_tls_is_an_error_of_one_line(authority):
    with Peer(GOOD) as peer, client_of(f"https://127.0.0.1:{peer.port}", **ONCE) as client:
        peer._talk = lambda line: line.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(TransportError) as failed:
            get(client)
    assert str(failed.value).isprintable()


def test_a_tls_server_asked_in_plain_text_is_an_error_of_one_line(tls):
    with Peer(GOOD, tls=tls) as peer, client_of(f"http://127.0.0.1:{peer.port}", **ONCE) as client:
        with pytest.raises(TransportError) as failed:
            get(client)
    assert str(failed.value).isprintable()
    assert peer.requests == []


@pytest.mark.parametrize("content", [None, "", "no certificate"])
@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE"])
def test_certificates_that_cannot_be_read_are_a_configuration_error(content, variable, tmp_path, monkeypatch):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    if variable:
        monkeypatch.setenv(variable, str(file))
    with Peer(GOOD) as peer:
        url = f"https://127.0.0.1:{peer.port}"
        with client_of(url, ca_certs=None if variable else str(file)) as client:
            with pytest.raises(ConfigError, match=rf"^{variable or 'ca_certs'}: .*ca\.pem"):
                get(client)
    assert peer.connections == 0


@pytest.mark.skipif(not hasattr(ssl.SSLContext, "keylog_filename"), reason="since Python 3.8")
@pytest.mark.parametrize("configured", [True, False])
def test_a_log_of_tls_secrets_that_cannot_be_written_is_named(configured, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "no-folder" / "keys.log"))
    ca_certs = authority.file if configured else None
    with client_of("https://127.0.0.1:1", ca_certs=ca_certs) as client, pytest.raises(ConfigError) as refused:
        get(client)
    assert str(refused.value).startswith("SSLKEYLOGFILE: ")
    assert "keys.log" in str(refused.value)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs /dev/fd")
@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_that_cannot_be_read_at_the_moment_are_read_later(variable, authority, tls, monkeypatch):
    """Neither is the configuration blamed, nor is a context kept that trusts nobody."""
    if variable:
        monkeypatch.setenv(variable, authority.file)
    with Peer(GOOD, tls=tls) as peer, Peer(GOOD) as plain:
        changes = {} if variable else {"ca_certs": authority.file}
        with client_of(peer, retry_enabled=False, **changes) as client, client_of(plain) as other:
            get(other)  # for what it imports
            with no_descriptors(), pytest.raises(TransportError, match=variable or "ca_certs"):
                get(client)
            assert get(client).reservation_id == "rsv_1"


# ---- Bounds ----


def test_a_handshake_that_never_finishes_is_bounded():
    with Peer(talk=lambda line: line.wait_for_close()) as peer:
        with client_of(f"https://127.0.0.1:{peer.port}", **TIGHT) as client:
            with ends_within(10), pytest.raises(TransportTimeout):
                get(client)


def test_a_dripped_handshake_is_bounded():
    record = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"  # a ServerHello of 16 KiB
    with Peer(talk=lambda line: line.drip(record + b"\x03" * 16384)) as peer:
        with client_of(f"https://127.0.0.1:{peer.port}", **TIGHT) as client:
            with ends_within(10), pytest.raises(TransportTimeout):
                get(client)


def test_a_dripped_answer_over_tls_is_bounded(authority, tls):
    slow = {**TIGHT, "read_timeout": 0.6}
    with Peer(lambda line, request: line.drip(GOOD, 0.1), tls=tls) as peer:
        with client_of(peer, ca_certs=authority.file, **slow) as client, ends_within(12):
            with pytest.raises(TransportTimeout):
                get(client)


# ---- Stale connections ----


def first_connection_ends(finish, tls=None):
    """Answers once on the first connection and ends it when the second request has come; then serves on."""

    def talk(line):
        if tls is not None:
            start_tunnel(line, tls)
        line.read_request()
        line.send(answer(allowed()))
        if line.number == 1:
            line.read_request()
            finish(line)
            return
        while True:
            line.read_request()
            line.send(answer(allowed()))

    return talk


FINISHES = {
    "in order": lambda line: line.sock.unwrap(),
    "without a word": lambda line: None,
    "with a reset": lambda line: line.reset(),
}


@pytest.mark.parametrize("finish", FINISHES)
def test_a_stale_tls_connection_is_replaced_by_one_new_one(finish, authority, tls):
    with Peer(talk=first_connection_ends(FINISHES[finish]), tls=tls) as peer:
        with client_of(peer, ca_certs=authority.file, retry_enabled=False) as client:
            client.create_reservation(create_request())
            again = create_request()
            client.create_reservation(again)
            client.create_reservation(create_request())
    assert peer.connections == 2
    sent = [(request.connection, request.json["idempotency_key"]) for request in peer.requests]
    assert sent[1] == (1, again.idempotency_key)
    assert sent[2] == (2, again.idempotency_key)


def test_a_tls_connection_that_ended_while_idle_is_noticed(authority, tls):
    def talk(line):
        line.read_request()
        line.send(answer(allowed()))
        if line.number > 1:
            line.read_request()
            line.send(answer(allowed()))

    with Peer(talk=talk, tls=tls) as peer, client_of(peer, ca_certs=authority.file, retry_enabled=False) as client:
        client.create_reservation(create_request())
        client.create_reservation(create_request())
    assert peer.connections == 2


# ---- Proxies ----


def start_tunnel(line, tls):
    request = line.read_request()
    assert request.method == "CONNECT", request
    line.send(b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n")
    line.start_tls(tls)


def tunnel(tls):
    """A proxy for CONNECT and, behind it, the server that every tunnel leads to."""

    def talk(line):
        start_tunnel(line, tls)
        while True:
            line.read_request()
            line.send(GOOD)

    return talk


def with_credentials(peer):
    return peer.url.replace("://", f"://{CREDENTIALS}@")


@pytest.mark.parametrize("from_environment", [True, False])
def test_a_forwarding_proxy_is_asked_for_the_whole_url(from_environment, monkeypatch):
    with Peer(GOOD) as proxy:
        if from_environment:
            monkeypatch.setenv("HTTP_PROXY", with_credentials(proxy))
            changes = {}
        else:
            changes = {"proxy": with_credentials(proxy)}
        with client_of("http://budgets.invalid:8080/prefix/", **changes) as client:
            client.get_reservation("a/b")
            get(client)
    assert [request.target for request in proxy.requests] == [
        "http://budgets.invalid:8080/prefix/v1/reservations/a%2Fb",
        "http://budgets.invalid:8080/prefix/v1/reservations/rsv_1",
    ]
    for request in proxy.requests:
        assert request.header("Host") == "budgets.invalid:8080"
        assert request.header("Proxy-Authorization") == AUTHORIZATION
        assert request.header("X-Cycles-API-Key") == KEY
    assert proxy.connections == 1


@pytest.mark.parametrize("from_environment", [True, False])
def test_https_goes_through_a_tunnel_and_the_proxy_sees_neither_key_nor_body(
    from_environment, authority, tls, monkeypatch
):
    with Peer(talk=tunnel(tls)) as proxy:
        if from_environment:
            monkeypatch.setenv("HTTPS_PROXY", with_credentials(proxy))
            changes = {}
        else:
            changes = {"proxy": with_credentials(proxy)}
        with client_of("https://budgets.invalid", ca_certs=authority.file, **changes) as client:
            get(client)
            get(client)
    connect, *requests = proxy.requests
    assert connect.line.startswith("CONNECT budgets.invalid:443 HTTP/1.")
    assert connect.header("Proxy-Authorization") == AUTHORIZATION
    assert connect.header("X-Cycles-API-Key") is None
    assert len(requests) == 2
    for request in requests:
        assert request.target == "/v1/reservations/rsv_1"
        assert request.header("Host") == "budgets.invalid"
        assert request.header("Proxy-Authorization") is None
        assert request.header("X-Cycles-API-Key") == KEY
    assert proxy.connections == 1


def test_the_certificate_behind_a_tunnel_is_verified_as_the_servers_and_not_the_proxys(authority):
    with Peer(talk=tunnel(authority.server("127.0.0.1"))) as proxy:
        with client_of("https://budgets.invalid", ca_certs=authority.file, proxy=proxy.url) as client:
            with pytest.raises(TransportError):
                client.create_reservation(create_request())
    assert {request.method for request in proxy.requests} == {"CONNECT"}


@pytest.mark.parametrize("finish", FINISHES)
def test_a_stale_tunnel_is_replaced_by_one_new_tunnel(finish, authority, tls):
    with Peer(talk=first_connection_ends(FINISHES[finish], tls)) as proxy:
        changes = {"ca_certs": authority.file, "proxy": proxy.url, "retry_enabled": False}
        with client_of("https://budgets.invalid", **changes) as client:
            for _ in range(3):
                client.create_reservation(create_request())
    assert [(request.connection, request.method) for request in proxy.requests] == [
        (1, "CONNECT"),
        (1, "POST"),
        (1, "POST"),
        (2, "CONNECT"),
        (2, "POST"),
        (2, "POST"),
    ]


def test_several_stale_tunnels_cost_one_retry(authority, tls):
    """The retry opens a new tunnel; it does not try the other stale one, and speaks no TLS to the proxy itself."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    together = threading.Barrier(2)

    def talk(line):
        start_tunnel(line, tls)
        line.read_request()
        if line.number <= 2:
            together.wait(10)
            line.send(GOOD)
            line.read_request()
            line.reset()
        while True:
            line.send(GOOD)
            line.read_request()

    with Peer(talk=talk) as proxy:
        changes = {"ca_certs": authority.file, "proxy": proxy.url, "retry_enabled": False}
        with client_of("https://budgets.invalid", **changes) as client:
            with ThreadPoolExecutor(2) as pool:
                for done in [pool.submit(get, client) for _ in range(2)]:
                    done.result()
            get(client)
    assert proxy.connections == 3


def test_a_fresh_connection_is_a_new_tunnel_even_where_an_idle_one_would_do(authority, tls):
    """urllib3 forgets where a tunnel led to when it is closed: reopened as it is, it would lead to the proxy itself."""
    call = Call(wire.GET_RESERVATION, "rsv_1", {}, None, {}, None, 5.0, 10.0)
    with Peer(talk=tunnel(tls)) as proxy:
        changes = {"ca_certs": authority.file, "proxy": proxy.url, "max_connections": 1}
        transport = HttpTransport(config_of("https://budgets.invalid", **changes))
        for fresh in (False, True, False):
            assert transport.send(call._replace(fresh=fresh)).status == 200
        transport.close()
    assert [(request.connection, request.method) for request in proxy.requests] == [
        (1, "CONNECT"),
        (1, "GET"),
        (2, "CONNECT"),
        (2, "GET"),
        (2, "GET"),
    ]


def test_close_also_lets_tunnels_go(authority, tls):
    with Peer(talk=tunnel(tls)) as proxy:
        with client_of("https://budgets.invalid", ca_certs=authority.file, proxy=proxy.url) as client:
            get(client)
            client.close()
            get(client)
    assert [request.method for request in proxy.requests] == ["CONNECT", "GET"] * 2


@pytest.mark.parametrize(
    "script",
    [
        lambda line: line.wait_for_close(),
        lambda line: line.drip(b"HTTP/1.1 200 Connection " + b"o" * 60_000),
        lambda line: [line.send(b"HTTP/1.1 200 OK\r\n"), line.drip(b"X-Slow: " + b"o" * 60_000)],
        lambda line: [line.send(b"HTTP/1.1 200 OK\r\n"), line.drip(b"X-S: o\r\n" * 10_000)],
    ],
    ids=["silent", "dripped status", "a dripped header", "dripped headers"],
)
def test_a_proxy_that_drips_its_answer_to_connect_is_bounded(script):
    with Peer(talk=script) as proxy, client_of("https://budgets.invalid", proxy=proxy.url, **TIGHT) as client:
        with ends_within(10), pytest.raises(TransportTimeout):
            get(client)


@pytest.mark.parametrize(("status", "secured"), [(407, True), (502, True), (403, True), (407, False), (502, False)])
def test_a_proxy_that_refuses_says_so_without_the_credentials(status, secured, caplog):
    caplog.set_level(logging.DEBUG)
    scheme = "https" if secured else "http"
    with Peer(head(status, ("Content-Length", "0"))) as proxy:
        with client_of(scheme + "://budgets.invalid", proxy=with_credentials(proxy), **ONCE) as client:
            with pytest.raises(Exception, match=str(status)) as refused:
                get(client)
            logged = caplog.text
    seen = [repr(client), repr(client.config), repr(HttpTransport(client.config)), logged, told(refused)]
    if secured:
        assert isinstance(refused.value, TransportError)
    for text in seen:
        assert "s3cret" not in text
        assert AUTHORIZATION not in text


@pytest.mark.parametrize("secured", [True, False])
def test_a_refusal_leaves_no_socket_to_the_collector(secured):
    closed = threading.Event()

    def refuse(line):
        line.read_request()
        line.send(head(502, ("Content-Length", "5")) + (b"" if secured else b"sorry"))
        try:
            line.wait_for_close()
        finally:
            closed.set()

    scheme = "https" if secured else "http"
    gc.disable()
    try:
        with Peer(talk=refuse) as proxy, client_of(scheme + "://budgets.invalid", proxy=proxy.url, **ONCE) as client:
            with pytest.raises(Exception, match="502") as refused:
                get(client)
            client.close()
            assert closed.wait(PATIENCE)
            assert refused.value is not None  # it was alive until here, and with it the frames of its traceback
    finally:
        gc.enable()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_fails_at_once(scheme):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        proxy = f"http://{CREDENTIALS}@127.0.0.1:{reserved.getsockname()[1]}"
        with client_of(scheme + "://budgets.invalid", proxy=proxy, **ONCE) as client:
            with pytest.raises(TransportError, match="refused") as failed:
                get(client)
    assert "s3cret" not in told(failed)


@pytest.mark.parametrize(
    "no_proxy",
    ["127.0.0.1", "*", "10.0.0.1, 127.0.0.1", "127.0.0.1:{port}", ".0.0.1"],
)
def test_no_proxy_is_honoured(no_proxy, monkeypatch):
    with Peer(GOOD) as proxy, Peer(GOOD) as peer:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy.format(port=peer.port))
        with client_of(peer) as client:
            get(client)
    assert proxy.connections == 0
    assert peer.requests[0].target == "/v1/reservations/rsv_1"


@pytest.mark.parametrize("no_proxy", ["127.0.0.1:1", "localhost", "10.0.0.1"])
def test_no_proxy_for_others_changes_nothing(no_proxy, monkeypatch):
    with Peer(GOOD) as proxy, Peer(GOOD) as peer:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with client_of(peer) as client:
            get(client)
    assert peer.connections == 0


def test_the_other_schemes_proxy_is_not_used(monkeypatch):
    with Peer(GOOD) as proxy, Peer(GOOD) as peer:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with client_of(peer) as client:
            get(client)
    assert proxy.connections == 0


def test_all_proxy_is_a_fallback_and_a_proxy_may_lack_its_scheme(monkeypatch):
    with Peer(GOOD) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.port}")
        with client_of("http://budgets.invalid") as client:
            get(client)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://user:s3cret@127.0.0.1:1080",
        "http://",
        "http://user:s3cret@",
        "http://user:s3cret@127.0.0.1:port",
        "http://user:s3cret@127.0.0.1:99999",
        "http://user:s3cret@[::1",
        "http://user:s3cret@exa\u2100mple.invalid",
        "http://user:s3cret@b\u00fccher..invalid",
        "http://user:s3cret@a b",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_no_url_is_an_error_without_its_password(proxy, scheme, monkeypatch):
    def unknown(*args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv(scheme + "_proxy", proxy)  # in the configuration it would be refused earlier
    with client_of(scheme + "://budgets.invalid", **ONCE) as client:
        with pytest.raises((ConfigError, TransportError)) as refused:
            get(client)
    assert "s3cret" not in told(refused)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"])
def test_a_proxy_of_another_kind_is_refused_by_the_name_of_its_variable(variable, monkeypatch):
    monkeypatch.setenv(variable, "socks5://user:s3cret@127.0.0.1:1080")
    with client_of("https://budgets.invalid", **ONCE) as client, pytest.raises(ConfigError) as refused:
        get(client)
    assert str(refused.value) == f"{variable}: its value is a socks5 proxy; http:// and https:// proxies are supported"
    assert "s3cret" not in told(refused)


def test_a_proxy_reached_over_tls_is_verified_with_the_same_certificates(authority, other_authority, tls):
    with Peer(GOOD, tls=tls) as proxy:
        with client_of("http://budgets.invalid", ca_certs=authority.file, proxy=proxy.url) as client:
            get(client)
        with client_of("http://budgets.invalid", ca_certs=other_authority.file, proxy=proxy.url, **ONCE) as client:
            with pytest.raises(TransportError):
                get(client)
    assert [request.target for request in proxy.requests] == ["http://budgets.invalid/v1/reservations/rsv_1"]


def test_a_tunnel_through_a_proxy_reached_over_tls(authority, tls):
    """TLS within TLS: the proxy's certificate is verified as the server's is."""
    outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()

    def talk(line):
        assert line.read_request().method == "CONNECT"
        line.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inner = tls.wrap_bio(incoming, outgoing, server_side=True)

        def run(step, *args):
            while True:
                try:
                    return step(*args)
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        line.send(outgoing.read())
                    incoming.write(line.sock.recv(65536))
                finally:
                    if outgoing.pending:
                        line.send(outgoing.read())

        run(inner.do_handshake)
        assert b"GET /v1/reservations/rsv_1" in run(inner.read, 65536)
        run(inner.write, GOOD)
        line.wait_for_close()

    with Peer(talk=talk, tls=tls) as proxy:
        by_name = f"https://localhost:{proxy.port}"
        with client_of("https://budgets.invalid", ca_certs=authority.file, proxy=by_name, **ONCE) as client:
            assert get(client).reservation_id == "rsv_1"
