"""The authorities that the programs use: a real one behind HTTP and on its file, and a scripted one."""

from __future__ import annotations

import itertools
import os

import desks
import peers
import pytest
import serving

from cycles_lite import Amount
from cycles_lite.local import Authority

ALLOCATED = 1_000_000

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """`cycles-lite serve` for all tests of this process: its URL, and the authority on its file."""
    folder = tmp_path_factory.mktemp("served")
    with serving.process(folder) as process:
        with Authority(f"sqlite:///{folder}/budgets.db") as authority:
            yield process.url, authority
        assert process.end()[0] == 0


class Ledger:
    """A tenant of its own on the real authority, and how a program gets there."""

    def __init__(self, url, authority):
        self.authority = authority
        self.tenant = f"tenant-{next(_numbers)}"
        self.scope = "tenant:" + self.tenant
        self.key = authority.create_key(self.tenant).key_secret
        authority.set_budget(self.scope, Amount.tokens(ALLOCATED))
        self.over_http = {"CYCLES_BASE_URL": url, "CYCLES_API_KEY": self.key, "CYCLES_TENANT": self.tenant}
        self.over_http["CYCLES_READ_TIMEOUT"] = "20"  # of a slow machine
        self.on_file = {"CYCLES_BASE_URL": authority.url, "CYCLES_TENANT": self.tenant}

    @property
    def amounts(self):
        """What was spent, and what is still reserved."""
        (budget,) = [budget for budget in self.authority.budgets() if budget.scope == self.scope]
        assert budget.allocated == ALLOCATED
        assert budget.debt == 0
        return budget.spent, budget.reserved


@pytest.fixture
def ledger(served):
    """Whatever a test does, the ledger is consistent afterwards."""
    made = Ledger(*served)
    yield made
    assert made.authority.check() == []


@pytest.fixture(params=["http", "file"])
def place(request, ledger):
    """The environment of a program that uses the ledger over HTTP, or in process on its file."""
    return ledger.over_http if request.param == "http" else ledger.on_file


@pytest.fixture
def desk():
    return desks.Desk()


@pytest.fixture
def peer(desk):
    with peers.Peer(desk) as peer:
        yield peer


@pytest.fixture
def scripted(peer):
    """The environment of a program that uses the scripted authority. It retries nothing by itself in the background
    for as long as a test lasts, and takes no answer for lost that only comes late."""
    return {
        "CYCLES_BASE_URL": peer.url,
        "CYCLES_API_KEY": peers.KEY,
        "CYCLES_TENANT": "acme",
        "CYCLES_READ_TIMEOUT": "50",
        "CYCLES_RETRY_INITIAL_DELAY": "3000",
        "CYCLES_RETRY_MAX_DELAY": "3000",
    }


@pytest.fixture
def records():
    """What is in the journal at present."""
    return lambda: desks.journal_files(os.environ["HOME"])
