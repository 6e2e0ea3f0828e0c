"""The budget that `cycles-lite run` draws on in these tests."""

from __future__ import annotations

import pytest

from cycles_lite import Amount
from cycles_lite.local import Authority


@pytest.fixture
def authority(tmp_path, monkeypatch):
    """1000 tokens of the tenant acme, in a file that the environment names; the current folder is the test's own."""
    url = f"sqlite:///{tmp_path}/budgets.db"
    monkeypatch.setenv("CYCLES_BASE_URL", url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    monkeypatch.chdir(tmp_path)
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        yield authority
        assert authority.check() == []
