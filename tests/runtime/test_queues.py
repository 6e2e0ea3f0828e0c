"""The queue that PyPy has in the place of CPython's `SimpleQueue`."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from interrupts import AtLine, Interrupt

from cycles_lite.runtime.queues import Queue, new_queue


def test_it_is_first_in_first_out():
    made = Queue()
    for item in range(3):
        made.put(item)
    assert [made.get(False), made.get(), made.get(True, 1.0)] == [0, 1, 2]


def test_an_empty_one_says_so_at_once_or_in_time():
    made = Queue()
    with pytest.raises(queue.Empty):
        made.get(False)
    started = time.monotonic()
    with pytest.raises(queue.Empty):
        made.get(True, 0.2)
    assert time.monotonic() - started >= 0.2
    assert not made._bells


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_who_waits_is_rung(timeout, monkeypatch):
    """And does not have to look by himself."""
    monkeypatch.setattr(Queue, "LOOK_AGAIN", 60.0)
    made, got = Queue(), []
    threads = [threading.Thread(target=lambda: got.append(made.get(True, timeout))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for item in range(3):
        while len(made._bells) < 3 - item:
            time.sleep(0.001)
        made.put(item)
        while len(got) <= item:
            time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert sorted(got) == [0, 1, 2]
    assert not made._bells


def test_each_item_comes_to_one():
    made, got = Queue(), []

    def consume():
        while True:
            item = made.get()
            if item is None:
                return
            got.append(item)

    consumers = [threading.Thread(target=consume) for _ in range(4)]
    producers = [
        threading.Thread(target=lambda first: [made.put(first + n) for n in range(500)], args=(500 * part,))
        for part in range(4)
    ]
    for thread in (*consumers, *producers):
        thread.start()
    for thread in producers:
        thread.join(60)
    for _ in consumers:
        made.put(None)
    for thread in consumers:
        thread.join(60)
    assert sorted(got) == list(range(2000))


def works(made):
    made.put("a")
    made.get()
    with pytest.raises(queue.Empty):
        made.get(True, 0.001)


def test_an_exception_at_any_line_leaves_it_usable():
    """Nothing stays locked, and nobody waits for a ring that does not come."""
    with AtLine() as counting:
        works(Queue())
    assert counting.count > 20
    interrupted = 0
    for number in range(1, counting.count + 1):
        made = Queue()
        try:
            with AtLine(number):
                works(made)
        except Interrupt:  # it does not come where the wait was over sooner this time
            interrupted += 1
        made._items.clear()  # it may have come after `put`
        works(made)
    assert interrupted > 20


def test_a_signal_handler_may_use_it_at_any_line():
    with AtLine() as counting:
        works(Queue())
    for number in range(1, counting.count + 1):
        made = Queue()
        with AtLine(number, act=lambda made=made: (made.put("b"), made.get(False))):
            works(made)


def test_every_python_has_one_with_the_same_methods():
    made = new_queue()
    made.put(1)
    assert made.get(True, 1.0) == 1
    with pytest.raises(queue.Empty):
        made.get(False)
