"""Where the scenarios of the recovery profile are played: an authority behind HTTP, a proxy with faults before it, a
journal, and actors (`actor.py`) to kill."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

from faults import Faults, intact
from peers import Peer
from serving import PATIENCE, ROOT, serving

from cycles_lite import Action, CyclesClient, CyclesConfig
from cycles_lite.runtime.clock import now_ms

_HERE = os.path.dirname(os.path.abspath(__file__))

ACTION = Action("llm.completion", "gpt-4o", ("recovery",))


class Stage(ExitStack):
    """`faults[path_end]` are the coming faults of one kind of request, in turn; what has none left passes intact."""

    def __init__(self, folder):
        super().__init__()
        self.folder = pathlib.Path(str(folder))
        self.journal = self.folder / "journal"
        self.faults = {}
        #: Milliseconds that the server's clock is ahead.
        self.ahead_ms = 0
        #: When each request came, in milliseconds since the epoch.
        self.came_at_ms = []
        self._looked = threading.Event()

    def __enter__(self):
        super().__enter__()
        served = self.enter_context(serving(self.folder, clock=lambda: now_ms() + self.ahead_ms))
        self.authority, self.key, self.server_url = served.authority, served.key, served.url
        self.proxy = self.enter_context(Peer(talk=Faults(served.url, self._choose).talk))
        return self

    def _choose(self, request):
        self.came_at_ms.append(now_ms())
        for path_end, faults in self.faults.items():
            if request.target.endswith(path_end) and faults:
                return faults.pop(0)
        return intact

    def looking_first(self, fault):
        """A fault before which the journal is read, into `at_request`, while the sender waits."""

        def look_first(passage, line):
            self.at_request = self.records()
            self._looked.set()
            fault(passage, line)

        return look_first

    def wait_for_look(self):
        """Until it has been read; the request is seen before that, and whoever has sent it may be killed after it."""
        assert self._looked.wait(PATIENCE), self.proxy.requests

    # ---- Actors ----

    def settings(self, **changes):
        return {
            "base_url": self.proxy.url,
            "api_key": self.key,
            "tenant": "acme",
            "journal_dir": str(self.journal),
            "connect_timeout": 5.0,
            "read_timeout": 30.0,
            "retry_initial_delay": 0.01,
            "retry_max_delay": 0.05,
            "heartbeat": False,
            **changes,
        }

    def client(self, observer=None, **changes):
        return CyclesClient(CyclesConfig(**self.settings(**changes)), observer=observer)

    def actor(self, *steps, **changes):
        """A process at work, which ends with the stage."""
        return self.enter_context(Actor(self.settings(**changes), steps, self.folder))

    # ---- What there is to see ----

    def sent(self, path_end=""):
        """The requests to one kind of path that the proxy has seen."""
        return [request for request in self.proxy.requests if request.target.endswith(path_end)]

    def settlements(self):
        """The commits and events, in their order."""
        return [request for request in self.proxy.requests if kind_of(request) in ("commit", "event")]

    def wait_for(self, path_end, count):
        """Until so many requests to a path have come."""
        end = time.monotonic() + PATIENCE
        while len(self.sent(path_end)) < count:
            assert time.monotonic() < end, self.proxy.requests
            time.sleep(0.005)

    def records(self):
        """What the journal holds, by file name."""
        found = {}
        for path in sorted(self.journal.rglob("*.json")):
            try:
                found[path.name] = json.loads(path.read_bytes().decode())
            except FileNotFoundError:  # settled meanwhile
                continue
        return found

    def files(self):
        """Every file of the journal but its locks."""
        return sorted(path for path in self.journal.rglob("*") if path.is_file() and path.name != ".lock")

    @property
    def identity_folder(self):
        (folder,) = (path for path in self.journal.iterdir() if path.is_dir())
        return folder

    def spent(self):
        """What the tenant's budget says was spent."""
        return next(budget.spent for budget in self.authority.budgets() if budget.scope == "tenant:acme")

    def reservations(self):
        """The ledger's own word on each reservation."""
        url = self.authority.url
        with CyclesClient(CyclesConfig(base_url=url, tenant="acme", journal_enabled=False)) as client:
            return {row.reservation_id: row for row in client.iter_reservations()}


class Actor:
    """A process of `actor.py`."""

    def __init__(self, settings, steps, folder):
        given = json.dumps({"config": settings, "steps": steps})
        self._errors = open(os.path.join(str(folder), f"actor-{id(self):x}.txt"), "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(_HERE, "actor.py"), given],
            env={**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            universal_newlines=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._process.stdin.close()
        self._errors.close()

    def hears(self, words):
        """The rest of the next line that begins with these words."""
        watch = threading.Timer(PATIENCE, self._process.kill)
        watch.start()
        try:
            for line in self._process.stdout:
                if line.startswith(words):
                    return line[len(words) :].strip()
        finally:
            watch.cancel()
            watch.join()
        raise AssertionError(f"it ended without {words!r}: {self.complaints()}")

    def go_on(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self):
        """SIGKILL, and wait until it is dead."""
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait(PATIENCE) == -signal.SIGKILL

    def end(self):
        """Until it ends by itself, well; what else it printed."""
        out, _ = self._process.communicate("\n", timeout=PATIENCE)
        assert self._process.returncode == 0, self.complaints()
        return out

    def complaints(self):
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read()


def kind_of(request):
    """What the profile calls a request."""
    names = {"reservations": "create", "events": "event"}
    last = request.target.split("?")[0].rsplit("/", 1)[-1]
    return names.get(last, last)


def key_of(request):
    """The idempotency key, which the header and the body must agree on."""
    assert request.header("X-Idempotency-Key") == request.json["idempotency_key"]
    return request.json["idempotency_key"]


def kinds_and_keys(requests):
    """The kinds of some requests, each marked `same` where its key came before in this list."""
    seen, found = set(), []
    for request in requests:
        found.append(kind_of(request) + (" same key" if key_of(request) in seen else ""))
        seen.add(key_of(request))
    return found
