"""A proxy that harms what passes through it, as bad networks and bad days of servers do.

    faults = Faults(server.url, at_random(seed, {lost_answer: 0.01, slow: 0.03}))
    with Peer(talk=faults.talk) as proxy, client_of(proxy) as client:
        ...
    assert faults.counts[lost_answer] > 0

A fault is a function of the passage, which can `forward` the request, and of the connection (`peers.Line`) that it
answers on.
"""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from urllib.parse import urlsplit

from peers import Gone, answer, refusal

#: Seconds that a server behind the proxy may take.
PATIENCE = 30.0

#: Headers of answers that the proxy makes anew.
_MADE_ANEW = ("connection", "content-length", "content-type", "date", "server", "transfer-encoding")


class Faults:
    """What happens to each request: `choose(request)` picks a fault. `counts` says how often which came."""

    def __init__(self, url, choose):
        self.counts = Counter()
        self._server = urlsplit(url)
        self._choose = choose
        self._lock = threading.Lock()

    def talk(self, line):
        """Serve one connection to the proxy, for `Peer(talk=...)`."""
        upstream = http.client.HTTPConnection(self._server.hostname, self._server.port, timeout=PATIENCE)
        try:
            while True:
                request = line.read_request()
                with self._lock:
                    fault = self._choose(request)
                    self.counts[fault] += 1
                fault(Passage(upstream, request), line)
        finally:
            upstream.close()


class Passage:
    """One request on its way to the server."""

    def __init__(self, upstream, request):
        self._upstream, self._request = upstream, request

    @property
    def target(self):
        return self._request.target

    def forward(self):
        """The server's answer, as bytes."""
        request = self._request
        try:
            self._upstream.request(request.method, request.target, request.body, dict(request.headers))
            response = self._upstream.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):  # it was killed, as some tests do
            self._upstream.close()
            raise Gone from None
        kept = [header for header in response.getheaders() if header[0].lower() not in _MADE_ANEW]
        return answer(body=body, status=response.status, headers=kept)


def at_random(seed, rates):
    """Each fault with its probability, else `intact`. Which request gets which depends on the threads' order too."""
    source = random.Random(seed)

    def choose(request):
        drawn = source.random()
        for fault, rate in rates.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return intact

    return choose


def in_turn(*faults):
    """These faults one after the other; the last one again and again."""
    left = list(faults)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def on(path_end, choose):
    """Faults for the requests to one kind of path alone, such as `/commit`."""
    return lambda request: choose(request) if request.target.endswith(path_end) else intact


# ---- Faults ----


def intact(passage, line):
    line.send(passage.forward())


def lost_request(passage, line):
    """The connection closes before the server sees anything."""
    raise Gone


def lost_answer(passage, line):
    """The server has acted, and the connection closes."""
    passage.forward()
    raise Gone


def reset_request(passage, line):
    line.reset()


def reset_answer(passage, line):
    passage.forward()
    line.reset()


def swallowed_request(passage, line):
    """Nothing happens until the client gives up."""
    line.wait_for_close()


def swallowed_answer(passage, line):
    """The server has acted, and nothing is heard of it until the client gives up."""
    passage.forward()
    line.wait_for_close()


def slow(passage, line):
    line.pause(0.02)
    line.send(passage.forward())


def truncated(passage, line):
    whole = passage.forward()
    line.send(whole[: -max(1, len(whole) // 4)])
    raise Gone


def duplicated(passage, line):
    """The request arrives twice, and the second answer comes back."""
    passage.forward()
    line.send(passage.forward())


def overtaken(passage, line):
    """The client gives up, and only then the request arrives."""
    try:
        line.wait_for_close()
    finally:
        passage.forward()


def failed(passage, line):
    line.send(refusal("INTERNAL_ERROR", 500))


def refused(passage, line):
    """A final no: the authority has no such reservation."""
    line.send(refusal("NOT_FOUND", 404))


def failed_afterwards(passage, line):
    """The server has acted, and something in front of it answers for it."""
    passage.forward()
    line.send(answer(body=b"<html>Bad Gateway</html>", status=502))


def nonsense(passage, line):
    """The server has acted, and a 200 comes back that proves nothing."""
    passage.forward()
    line.send(answer({"status": "OK"}))


def throttled_not_at_all(passage, line):
    line.send(throttling(0))


def throttled_a_second(passage, line):
    line.send(throttling(1))


def throttling(seconds):
    return refusal("LIMIT_EXCEEDED", 429, headers=[("Retry-After", str(seconds))])
