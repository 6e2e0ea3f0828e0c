"""A scripted authority, for what a real one does not do: not to answer, to be down for a while."""

from __future__ import annotations

import os
import threading

import peers

DOWN = peers.answer({"error": "INTERNAL_ERROR", "message": "down", "request_id": "r"}, 503)


class Desk:
    """A scripted authority, which can be told to answer otherwise. A grant's id is `rsv_` and the key that asked."""

    def __init__(self):
        #: By operation: an answer as `peers` takes it, in place of success.
        self.answers = {}

    def __call__(self, line, request):
        name = operation(request)
        given = self.answers.get(name)
        if given is None:
            given = peers.answer(self._success(name, request), 201 if name == "event" else 200)
        if callable(given):
            given(line, request)
        else:
            line.send(given)

    def _success(self, name, request):
        if name == "create":
            reserved = request.json["estimate"]
            return peers.allowed(reservation_id="rsv_" + request.json["idempotency_key"], reserved=reserved)
        return {
            "commit": peers.committed,
            "release": peers.released,
            "extend": peers.extended,
            "event": peers.applied,
        }[name]()


def operation(request):
    last = request.target.rpartition("/")[2]
    return {"reservations": "create", "events": "event"}.get(last, last)


def requests_of(peer, name):
    """What came for one operation."""
    return [request for request in list(peer.requests) if operation(request) == name]


class Gate:
    """An answer that waits until it is let through, and tells that it was asked for."""

    def __init__(self, desk, name):
        self._desk, self._name = desk, name
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, line, request):
        self.reached.set()
        assert self._open.wait(peers.PATIENCE)
        self._desk.answers.pop(self._name, None)
        self._desk(line, request)

    def let_through(self):
        self._open.set()


def journal_files(home):
    """The records below a home."""
    found = []
    for folder, _, names in os.walk(os.path.join(str(home), ".cycles-lite", "journal")):
        found += [os.path.join(folder, name) for name in names if name.endswith(".json")]
    return sorted(found)
