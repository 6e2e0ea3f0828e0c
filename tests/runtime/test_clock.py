"""The two clocks."""

from __future__ import annotations

import time

import pytest

from cycles_lite.runtime import clock


def test_now_is_in_milliseconds_since_1970():
    assert 1_600_000_000_000 < clock.now_ms() < 10_000_000_000_000


def test_the_clock_of_deadlines_goes_forward_in_seconds():
    before, other = clock.monotonic(), time.monotonic()
    assert clock.monotonic() >= before
    assert clock.monotonic() - before < time.monotonic() - other + 60.0


def test_a_frozen_world_does_not_freeze_deadlines():
    """freezegun puts its own `time.monotonic` into every module that has one."""
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2026-01-01"):
        before, frozen = clock.monotonic(), time.monotonic()
        while clock.monotonic() == before:
            pass
        assert time.monotonic() == frozen
