"""The campaign of each test in this folder; `--fuzz` and `--fuzz-seed` are in the conftest above."""

from __future__ import annotations

import logging
import os

import pytest
from answers import Told
from campaign import Campaign


@pytest.fixture
def fuzz(request, record_property):
    """A campaign. Its seed is the same each time where a run is judged, a new one on a desk."""
    given, _, first = request.config.getoption("--fuzz-seed").partition(":")
    seed = int(given) if given else 1 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "big")
    made = Campaign(request.node.name, request.config.getoption("--fuzz"), seed, int(first or 0))
    yield made
    record_property("fuzz", made.summary())
    print(made.summary())  # which pytest shows if the test fails


@pytest.fixture(autouse=True)
def logged():
    """What the package logs, as texts, which go nowhere else."""
    handler, log = Told(), logging.getLogger("cycles_lite")
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    yield handler.texts
    log.propagate = before
    log.removeHandler(handler)
