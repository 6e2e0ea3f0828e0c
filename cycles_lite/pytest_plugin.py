"""pytest fixtures: test guarded code on real budgets instead of mocks.

    def test_it_stops_when_the_budget_is_used_up(cycles_authority, cycles_client):
        cycles_authority.budget("tenant:acme", Amount.tokens(10))
        with pytest.raises(BudgetExceededError):
            run_my_agent(cycles_client)

`cycles_authority` is an embedded authority of the test's own; `cycles_client` a client of it for tenant `acme`, in
process; `cycles_server` the same behind HTTP (extra `[server]`). Nothing is loaded before a test asks for one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator

import pytest

if TYPE_CHECKING:
    from .client import CyclesClient
    from .local.server import Server
    from .testing import TestAuthority

#: The tenant of the fixtures' clients.
TENANT = "acme"


@pytest.fixture
def cycles_authority(tmp_path: Any) -> Iterator[TestAuthority]:
    """An authority of this test's own, without budgets; see `cycles_lite.testing.TestAuthority`."""
    from .local.location import Location
    from .testing import TestAuthority

    authority = TestAuthority(Location(str(tmp_path / "cycles-budgets.db")).url)
    with authority:
        yield authority


@pytest.fixture
def cycles_client(cycles_authority: TestAuthority, tmp_path: Any) -> Iterator[CyclesClient]:
    """A client of `cycles_authority` for tenant `acme`, in process."""
    from .client import CyclesClient
    from .config import CyclesConfig

    journal = str(tmp_path / "cycles-journal")
    config = CyclesConfig(base_url=cycles_authority.url, tenant=TENANT, journal_dir=journal, retry_initial_delay=0.01)
    with CyclesClient(config, transport=cycles_authority.transport()) as client:
        yield client


@pytest.fixture
def cycles_server(cycles_authority: TestAuthority) -> Iterator[Server]:
    """`cycles_authority` behind HTTP: `url`, and `api_key` for tenant `acme`."""
    from .local.server import Server

    key = cycles_authority.create_key(TENANT).key_secret
    with Server(cycles_authority) as server, server.in_background():
        server.api_key = key
        yield server
