"""What is sent for the page at `/`."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from serving import Http, process

from cycles_lite import ConfigError
from cycles_lite.local import page


def directives(reply):
    """The policy of an answer: what each of its directives allows."""
    parts = [part.split() for part in reply.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in parts}


# ---- The document ----


def test_the_page_needs_no_key_and_tells_nothing(served):
    """It is the same for everybody, whatever is in the ledger."""
    with Http(served.url) as stranger, Http(served.url, served.key) as http:
        reply = stranger("GET", "/")
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.body == http("GET", "/").body
        assert b"acme" not in reply.body
        assert "x-cycles-tenant" not in reply.headers
        for name, value in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ]:
            assert reply.headers[name] == value
        with Http(served.url) as once:  # waitress 2 hangs up after each HEAD
            head = once("HEAD", "/")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(reply.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_405(http, method):
    reply = http(method, "/", b"{}" if method in ("POST", "PUT", "PATCH") else None)
    assert (reply.status, reply.error, reply.headers["allow"]) == (405, "INVALID_REQUEST", "GET, HEAD")


def test_the_policy_names_the_two_blocks_by_their_hashes_and_allows_nothing_else(http):
    reply = http("GET", "/")
    hashes = {}
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), reply.body, re.DOTALL)
        hashes[tag] = "'sha256-" + base64.b64encode(hashlib.sha256(block).digest()).decode() + "'"
    assert directives(reply) == {
        "default-src": ["'none'"],
        "script-src": [hashes["script"]],
        "style-src": [hashes["style"]],
        "img-src": ["data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_the_document_asks_for_nothing_from_elsewhere_and_writes_texts_alone(http):
    text = http("GET", "/").body.decode()
    outside = re.findall(r"https?://[^\s\"']+|@import|url\(", text)
    assert outside == ["http://www.w3.org/2000/svg"] * 2, "a name space, in an icon and in the script; no resource"
    assert re.findall(r"<(script|link|img|iframe|object|embed)\b[^>]*\b(?:src|href)=\"(?!data:)", text) == []
    assert re.findall(r"\s(on[a-z]+|style)=", text) == []
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage"
    assert re.findall(unsafe, text) == []


def test_line_ends_do_not_change_what_is_hashed(monkeypatch, tmp_path):
    """A checkout on Windows may have others; browsers hash what they have read, which is without them."""
    expected = page.Page().document({})
    read = page.pkgutil.get_data
    monkeypatch.setattr(page.pkgutil, "get_data", lambda *given: read(*given).replace(b"\n", b"\r\n"))
    found = page.Page().document({})
    assert found.body == expected.body
    assert found.headers["content-security-policy"] == expected.headers["content-security-policy"]


def test_a_package_without_the_page_s_files_is_called_so(monkeypatch):
    monkeypatch.setattr(page, "__package__", "cycles_lite.protocol")
    with pytest.raises(ConfigError, match=r"the package has no page.css, .* or use --no-page"):
        page.Page()


def test_without_the_page_there_is_nothing_at_its_path(served):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with server.Server(served.authority, page=False) as running, running.in_background():
        with Http(running.url, served.key) as http:
            paths = ("/", "/v1/budgets/periods", "/v1/reservations")
            assert [http("GET", path).status for path in paths] == [404, 200, 200]


def test_the_command_line_serves_it_unless_told_not_to(tmp_path):
    for options, status in (((), 200), (("--no-page",), 404)):
        with process(tmp_path, *options) as server, Http(server.url) as http:
            assert http("GET", "/").status == status
            assert http("GET", "/actuator/health").status == 200
