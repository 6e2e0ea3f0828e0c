"""Turns: so many at once, and none that is lost."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from cycles_lite.transport.turns import Turns


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
    gone = weakref.ref(turns._free)
    held = turns.take(0)
    del turns
    gc.collect()
    assert gone() is None
    held.give_back()
