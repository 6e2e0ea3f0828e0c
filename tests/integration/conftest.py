"""Where the client's integration tests run: on a budget file in process, over HTTP, or on a server that is named.

With CYCLES_TEST_BASE_URL and CYCLES_TEST_API_KEY set they run against that server instead. It needs a tenant `acme`
whose key that is, and a TOKENS budget at `tenant:acme` of at least 10,000.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from serving import Clock, Http, serving

from cycles_lite import Amount, CyclesClient, CyclesConfig
from cycles_lite.local import Authority

NAMED = os.environ.get("CYCLES_TEST_BASE_URL")

PLACES = ("named server",) if NAMED else ("in process", "over http")


@pytest.fixture(params=PLACES)
def client(request, tmp_path):
    """A client of tenant acme."""
    if NAMED:
        key = os.environ["CYCLES_TEST_API_KEY"]
        with CyclesClient(CyclesConfig(base_url=NAMED, api_key=key, tenant="acme")) as client:
            yield client
        return
    url = f"sqlite:///{tmp_path}/budgets.db"
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(100_000))
        authority.set_budget("tenant:acme/agent:bot", Amount.tokens(50_000))
        if request.param == "in process":
            config = CyclesConfig(base_url=url, tenant="acme")
            with CyclesClient(config) as client:
                yield client
        else:
            with _served(authority) as client:
                yield client
        assert authority.check() == []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def served(tmp_path, clock):
    """A server whose clock the test moves."""
    with serving(tmp_path, clock=clock) as served:
        yield served


@pytest.fixture
def http(served):
    """A connection with acme's key."""
    with Http(served.url, served.key) as http:
        yield http


@contextmanager
def _served(authority):
    """A client of a server in a thread."""
    server_module = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    key = authority.create_key("acme").key_secret
    with server_module.Server(authority) as server, server.in_background():
        with CyclesClient(CyclesConfig(base_url=server.url, api_key=key, tenant="acme")) as client:
            yield client
