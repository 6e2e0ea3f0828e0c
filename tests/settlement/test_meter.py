"""The meter: nothing that is added is lost, whoever adds and whenever."""

from __future__ import annotations

import threading

from hypothesis import given, strategies as st

from cycles_lite.settlement.spend import Meter


@given(st.lists(st.integers(0, 2**63 - 1), max_size=600))
def test_it_shows_the_sum_of_what_was_added(amounts):
    meter = Meter()
    for amount in amounts:
        meter.add(amount)
    assert meter.total == sum(amounts)


def test_threads_that_add_at_once_lose_nothing():
    meter = Meter()

    def add():
        for _ in range(20_000):
            meter.add(1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert 0 <= meter.total <= 80_000
    for thread in threads:
        thread.join()
    for _ in range(400):  # what came while a thread that was stopped had the turn to sum up is summed up now
        meter.add(0)
    assert meter.total == 80_000
    assert len(meter._entries) < 2_000


def test_what_a_signal_handler_adds_within_an_addition_counts():
    """Also where it comes in the midst of the summing up, which is interrupted here by the sum of a list."""

    class Interrupted(list):
        def __setitem__(self, key, value):
            other.add(5)
            super().__setitem__(key, value)

    other = Meter()
    other._entries = Interrupted([1] * 256)
    other.add(1)
    assert other.total == 257 + 5


def test_a_summing_up_that_an_exception_ended_leaves_the_sum_right():
    meter = Meter()
    meter._may_fold.clear()
    for _ in range(1000):
        meter.add(2)
    assert meter.total == 2000
