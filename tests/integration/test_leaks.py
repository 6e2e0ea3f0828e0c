"""Nothing grows: file descriptors, threads and journal files stay what they were after many guards and many clients."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest
from faults import Faults, at_random, failed_afterwards, lost_answer, throttled_not_at_all
from peers import ACTION, Peer
from serving import PATIENCE, serving

from cycles_lite import Amount, CyclesClient, CyclesConfig, events

GUARDS, GUARDS_WITH_FAULTS = 1000, 300
CLIENTS = 200

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts what /proc/self/fd shows"),
]


class Failed(Exception):
    """The work of a guard failed."""


def descriptors():
    """What each open descriptor of this process is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except OSError:  # the listing's own
            continue
    return sorted(found)


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


@pytest.fixture(params=["in process", "over http", "over http with faults"])
def settings(request, served, tmp_path):
    """A configuration, on each kind of transport, and where commits are retried in the background."""
    common = {"tenant": "acme", "journal_dir": str(tmp_path / "journal"), "retry_initial_delay": 0.001}
    common.update(retry_max_delay=0.01, retry_max_attempts=50)
    if request.param == "in process":
        yield {"base_url": served.authority.url, **common}
        return
    if request.param == "over http":
        yield {"base_url": served.url, "api_key": served.key, **common}
        return
    faults = Faults(served.url, at_random(1, {lost_answer: 0.05, failed_afterwards: 0.05, throttled_not_at_all: 0.05}))
    with Peer(talk=faults.talk) as proxy:
        yield {"base_url": proxy.url, "api_key": served.key, **common}


def guarded(client, number):
    """One guard, ended in one of the three ways. A reservation may fail, where there are faults."""
    try:
        guard = client.reserve(Amount.tokens(10), ACTION)
    except Exception:
        return
    try:
        with guard:
            if number % 3 == 0:
                guard.commit(Amount.tokens(5))
            elif number % 3 == 1:
                guard.spend(5)
            else:
                raise Failed
    except Failed:
        return


def settle(client):
    end = time.monotonic() + PATIENCE
    while client.flush(1.0):
        assert time.monotonic() < end


def test_a_thousand_guards_leave_nothing_open(settings, request, tmp_path):
    """Counted while the client is still there, after some guards and after all of them."""
    told, count = [], GUARDS_WITH_FAULTS if "faults" in request.node.name else GUARDS
    with CyclesClient(CyclesConfig(**settings), observer=told.append) as client:
        for number in range(50):
            guarded(client, number)
        settle(client)
        before, threads_before = descriptors(), threading.active_count()
        for number in range(count):
            guarded(client, number)
        settle(client)
        assert no_more_than(before, 2)  # a kept-alive connection at each end may come or go
        # Where commits are retried, further workers may have started: seven at the most (see `worker.MAX_THREADS`).
        assert threading.active_count() <= threads_before + 7
        assert [path for path in (tmp_path / "journal").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert len([event for event in told if isinstance(event, events.Reserved)]) > count / 2


def test_two_hundred_clients_leave_nothing_open(settings):
    """Each with one guard. Threads end with the clients, and claims on the journal too."""

    def use(number):
        with CyclesClient(CyclesConfig(**settings)) as client:
            guarded(client, number)
            settle(client)

    use(0)
    end_of_workers()
    before = descriptors()
    for number in range(CLIENTS):
        use(number)
    gc.collect()
    end_of_workers()
    assert no_more_than(before, 2)


def no_more_than(before, slack):
    """Waits for the other ends of connections to be closed too, which other threads do."""
    end = time.monotonic() + PATIENCE
    while len(descriptors()) > len(before) + slack:
        if time.monotonic() > end:
            print(*before, "", *descriptors(), sep="\n")  # pytest shows it when the test fails
            return False
        time.sleep(0.01)
    return True


def end_of_workers():
    end = time.monotonic() + PATIENCE
    while any(thread.name == "cycles-lite-worker" for thread in threading.enumerate()):
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)
