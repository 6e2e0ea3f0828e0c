"""What the tests of the embedded authority share."""

from __future__ import annotations

import pytest

from .helpers import Bench


@pytest.fixture
def bench():
    """An authority in memory with a budget of 1000 TOKENS for tenant:acme."""
    with Bench() as made:
        made.budget()
        yield made
        assert made.authority.check() == []


@pytest.fixture
def path(tmp_path):
    """Where a budget file may be made."""
    return str(tmp_path / "budgets.db")


@pytest.fixture
def url(path):
    return "sqlite://" + path
