"""Turns: so many at once, and none that is lost."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from contextlib import contextmanager

import pytest

from cycles_lite.runtime.clock import monotonic
from cycles_lite.runtime.line import Line, Waiter
from cycles_lite.transport.turns import Turns


@contextmanager
def interrupting(handler):
    """Let a signal interrupt what runs here, once it has begun to wait."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_there_are_as_many_turns_as_were_asked_for():
    turns = Turns(2)
    taken = [turns.take(0), turns.take(0)]
    assert None not in taken
    assert turns.take(0) is None
    assert turns.take(0.01) is None


def test_a_turn_that_is_given_back_is_had_by_the_next_once():
    turns = Turns(1)
    turn = turns.take(0)
    turn.give_back()
    turn.give_back()
    again = turns.take(0)
    assert again is not None
    assert turns.take(0) is None
    turn.give_back()
    assert turns.take(0) is None


def test_a_turn_that_an_exception_drops_comes_back():
    turns = Turns(1)

    def interrupted():
        turn = turns.take(0)
        assert turn is not None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert turns.take(10) is not None


def test_whoever_waits_gets_the_turn_that_another_thread_gives_back():
    turns = Turns(1)
    turn = turns.take(0)
    got = []
    thread = threading.Thread(target=lambda: got.append(turns.take(60)))
    thread.start()
    turn.give_back()
    thread.join(60)
    assert got
    assert got[0] is not None


def test_turns_that_nobody_needs_any_more_are_collected():
    turns = Turns(3)
    gone = weakref.ref(turns)
    held = turns.take(0)
    del turns
    gc.collect()
    assert gone() is None
    held.give_back()


@contextmanager
def taken_again_and_again(turns):
    """A thread that takes a turn again as soon as it has given it back. The value has those whom it overtook: who stood
    in the line before it came, and stood there still when it had its turn."""
    overtaken, is_over = [], threading.Event()
    turns.line = Line(1.0, 600.0)  # nobody is passed over because the machine stalls

    def take_again_and_again():
        while not is_over.is_set():
            before = list(turns.line.waiters)
            turn = turns.take(60)
            overtaken.extend(waiter for waiter in before if waiter in turns.line.waiters)
            sum(range(20_000))  # so that others run, if at all, while the turn is taken
            turn.give_back()

    busy = threading.Thread(target=take_again_and_again)
    busy.start()
    try:
        yield overtaken
    finally:
        is_over.set()
        busy.join(60)


def test_a_busy_thread_leaves_turns_to_those_who_wait():
    turns = Turns(1)
    with taken_again_and_again(turns) as overtaken:
        for _ in range(20):
            turn = turns.take(60)
            assert turn is not None
            turn.give_back()
    assert overtaken == []


def test_a_wait_for_a_turn_ends_beside_a_busy_thread_although_its_time_is_up_when_it_is_woken():
    turns = Turns(1)
    ended = []

    def take_a_few_times():
        for _ in range(5):
            turn = turns.take(0.001)
            ended.append(turn)
            if turn is not None:
                turn.give_back()

    with taken_again_and_again(turns) as overtaken:
        waiters = [threading.Thread(target=take_a_few_times) for _ in range(8)]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join(60)
    assert len(ended) == 8 * 5
    assert overtaken == []


def test_turns_are_had_in_the_order_in_which_they_were_waited_for():
    turns = Turns(1)
    turn = turns.take(0)
    served = []

    def take_once(number):
        mine = turns.take(60)
        served.append(number)
        mine.give_back()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=take_once, args=(number,)))
        threads[-1].start()
        while len(turns.line.waiters) <= number:
            threads[-1].join(0.001)
    turn.give_back()
    for thread in threads:
        thread.join(60)
    assert served == [0, 1, 2, 3, 4]


def test_nobody_is_left_in_the_line():
    turns = Turns(1)
    turn = turns.take(0)
    assert turns.take(0.01) is None
    assert turns.line.waiters == []

    class Interrupted(Exception):
        pass

    def interrupted(*_):
        raise Interrupted

    with pytest.raises(Interrupted), interrupting(interrupted):
        turns.take(60)
    assert turns.line.waiters == []
    turn.give_back()
    assert turns.take(0) is not None


def test_a_signal_handler_waits_while_its_own_thread_stands_in_the_line():
    turns = Turns(1)
    turn = turns.take(0)
    got = []

    def handler(*_):
        threading.Timer(0.05, turn.give_back).start()
        mine = turns.take(60)
        got.append(mine is not None)
        mine.give_back()

    with interrupting(handler):
        outer = turns.take(60)
    assert outer is not None
    assert got == [True]


def test_one_that_does_not_look_any_more_is_passed_over():
    line = Line(0.01, 0.02)
    with Waiter(line) as gone, Waiter(line) as behind:
        gone.thread = -1  # another thread, which was interrupted and never looks again
        gone.looked = monotonic()
        assert not behind.is_first()
        behind.wait(monotonic() + 10)
        behind.wait(monotonic() + 10)
        behind.wait(monotonic() + 10)
        assert behind.is_first()
