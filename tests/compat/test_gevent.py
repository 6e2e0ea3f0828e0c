"""Under gevent, which puts greenlets in the place of threads, before or after this library was imported."""

from __future__ import annotations

import pytest
from hosts import WARNINGS, run

pytest.importorskip("gevent", reason="gevent is not installed")

#: gevent says that it is late for `ssl`, which is the very thing that two of these programs do.
WARNINGS_OF_GEVENT = WARNINGS + ",ignore:Monkey-patching ssl:Warning"

EARLY = """
from gevent import monkey
monkey.patch_all()
from program import *
client = new_client()
"""

LATE = """
from program import *
from cycles_lite import cycles, with_cycles  # with them come the guard and the worker
from gevent import monkey
monkey.patch_all()
client = new_client()
"""

LATE_WITH_CLIENT = """
from program import *
from cycles_lite import cycles, with_cycles
client = new_client()
from gevent import monkey
monkey.patch_all()
"""

GREENLETS = """
import gevent

from gevent.event import Event

at_work, all_at_work = [], Event()

def work(number):
    with reserve(client, ttl_ms=8000) as guard:
        at_work.append(number)
        if len(at_work) == 50:
            all_at_work.set()
        assert all_at_work.wait(PATIENCE)
        while client.get_reservation(guard.reservation_id).expires_at_ms == guard.expires_at_ms:
            gevent.sleep(0.1)
        return guard.commit(Amount.tokens(number)).status.value

greenlets = [gevent.spawn(work, number) for number in range(1, 51)]
gevent.joinall(greenlets, raise_error=True)
assert [greenlet.value for greenlet in greenlets] == ["COMMITTED"] * 50, [g.value for g in greenlets]
say("done")
"""


@pytest.mark.parametrize("when", [EARLY, LATE, LATE_WITH_CLIENT], ids=["early", "late", "late with a client"])
def test_fifty_greenlets(ledger, tmp_path, when):
    """They work at the same time, while heartbeats move all of their reservations' expiries; nobody holds up the
    loop, and the process ends by itself."""
    out = run(when + GREENLETS, tmp_path, PYTHONWARNINGS=WARNINGS_OF_GEVENT, **ledger.over_http)
    assert out == "done\n"
    assert ledger.amounts == (sum(range(1, 51)), 0)
