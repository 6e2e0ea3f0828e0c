"""The Lambda decorator inside the real runtime client: cold, warm, frozen, failing, timed out and killed."""

from __future__ import annotations

import os
import random
import textwrap
import time

import pytest

from cycles_lite import Amount
from cycles_lite.local import Authority

pytest.importorskip("awslambdaric", reason="awslambdaric needs Python 3.9 and Linux")
from lambda_host import PATIENCE, Environment, RuntimeApi
from ledgers import spent

#: How often an environment is killed; `.ci/run` takes fewer on some interpreters.
KILLS = int(os.environ.get("LAMBDA_KILLS", "50"))

#: Where a server comes back on its port: nobody's outgoing connection takes that meanwhile.
COMES_BACK = "127.0.0.2"

HANDLER = """
    import os, time
    from cycles_lite import Action, Amount, CyclesClient, current_guard
    from cycles_lite.aws_lambda import guarded

    client = CyclesClient.from_env(connect_timeout=1.0, read_timeout=2.0)

    @guarded(client, estimate=Amount.tokens(100), action=Action("llm.completion", "x"),
             actual=lambda result: Amount.tokens(result["cost"]) if "cost" in result else Amount.tokens(1))
    def handler(event, context):
        guard = current_guard()
        guard.spend(event.get("meter", 0))
        if "mark" in event:
            open(event["mark"], "w").close()
        time.sleep(event.get("sleep", 0))
        while not os.path.exists(event.get("until", "/")):
            time.sleep(0.01)
        if event.get("fails"):
            raise KeyError("broken")
        return {"cost": event.get("cost", 7), "pid": os.getpid(), "pending": client.flush(0)}
"""


@pytest.fixture
def authority(tmp_path):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1_000_000))
        yield authority
        assert authority.check() == []


@pytest.fixture
def api():
    with RuntimeApi() as api:
        yield api


@pytest.fixture
def folder(tmp_path):
    """The function's code."""
    made = tmp_path / "code"
    made.mkdir()
    (made / "app.py").write_text(textwrap.dedent(HANDLER), encoding="utf-8")
    return made


def environment(api, folder, authority, **variables):
    settings = {"CYCLES_BASE_URL": authority.url, "CYCLES_TENANT": "acme", **variables}
    return Environment(api, folder, "app.handler", **settings)


def left_on_disk(folder):
    found = []
    for path, _, names in os.walk(str(folder)):
        found += [os.path.join(path, name) for name in names if name.endswith(".json")]
    return found


def test_cold_and_warm_starts_leave_nothing_pending(api, folder, authority):
    with environment(api, folder, authority) as function:
        answers = [function.invoke({"cost": cost}) for cost in (5, 6, 7)]
        assert spent(authority) == (18, 0)
    assert [kind for kind, _ in answers] == ["response"] * 3
    assert {answer["pending"] for _, answer in answers} == {0}
    assert len({answer["pid"] for _, answer in answers}) == 1
    assert left_on_disk(os.path.expanduser("~")) == []


@pytest.mark.parametrize(("meter", "charged"), [(0, 0), (9, 9)])
def test_a_handler_that_raises_is_released_or_its_meter_committed(api, folder, authority, meter, charged):
    with environment(api, folder, authority) as function:
        kind, details = function.invoke({"fails": True, "meter": meter})
        assert spent(authority) == (charged, 0)
    assert (kind, details["errorType"]) == ("error", "KeyError")


def test_the_reservation_lives_as_long_as_the_invocation_may(api, folder, authority, tmp_path):
    with environment(api, folder, authority) as function:
        before = time.time() * 1000
        function.invoke({}, seconds=20)
    from cycles_lite import CyclesClient, CyclesConfig

    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        (row,) = client.list_reservations().reservations
    lifetime = row.expires_at_ms - row.created_at_ms
    assert 5_000 < lifetime <= 25_000
    assert row.created_at_ms >= before


def test_a_denial_is_the_handlers_error_and_it_does_not_run(api, folder, authority, tmp_path):
    authority.set_budget("tenant:acme", Amount.tokens(1))
    with environment(api, folder, authority) as function:
        kind, details = function.invoke({"mark": str(tmp_path / "ran")})
    assert (kind, details["errorType"]) == ("error", "BudgetExceededError")
    assert not (tmp_path / "ran").exists()


def test_a_frozen_environment_wakes_with_a_dead_connection(api, folder, authority):
    """The server goes and comes back on its port while the environment is frozen."""
    server_module = pytest.importorskip("cycles_lite.local.server")
    key = authority.create_key("acme").key_secret
    with server_module.Server(authority, COMES_BACK) as server:
        port = int(server.url.rsplit(":", 1)[1])
        function = environment(api, folder, authority, CYCLES_BASE_URL=server.url, CYCLES_API_KEY=key)
        with function:
            with server.in_background():
                assert function.invoke({})[0] == "response"
                function.freeze()
            server.close()
            with server_module.Server(authority, COMES_BACK, port) as again, again.in_background():
                function.thaw()
                kind, answer = function.invoke({})
    assert (kind, answer["pending"]) == ("response", 0)
    assert spent(authority) == (14, 0)


def test_an_invocation_about_to_time_out_commits_its_meter(api, folder, authority, tmp_path):
    """Lambda kills at the deadline; half a second before, the meter is committed."""
    mark = tmp_path / "at-work"
    with environment(api, folder, authority) as function:
        function.invoke({})  # so that the start is not part of the race
        function.begin({"meter": 33, "sleep": PATIENCE, "mark": str(mark)}, seconds=5.0)
        end = time.monotonic() + PATIENCE
        while spent(authority)[0] < 40 and time.monotonic() < end:
            time.sleep(0.02)
    assert spent(authority) == (40, 0)


def test_a_read_only_home_and_an_authority_that_was_away(api, folder, authority, tmp_path):
    """What could not be settled is in the temporary folder, and the next invocation settles it."""
    home = tmp_path / "no-home"
    home.write_bytes(b"")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server_module = pytest.importorskip("cycles_lite.local.server")
    key = authority.create_key("acme").key_secret
    variables = {"CYCLES_API_KEY": key, "HOME": str(home), "TMPDIR": str(temporary)}
    mark, gone = tmp_path / "at-work", tmp_path / "server-gone"
    with server_module.Server(authority, COMES_BACK) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with environment(api, folder, authority, CYCLES_BASE_URL=server.url, **variables) as function:
            with server.in_background():
                function.begin({"cost": 11, "mark": str(mark), "until": str(gone)})
                end = time.monotonic() + PATIENCE
                while not mark.exists() and time.monotonic() < end:
                    time.sleep(0.01)
            server.close()
            gone.touch()
            assert function.answer()[0] == "response"
            assert len(left_on_disk(temporary)) == 1
            function.kill()
    with server_module.Server(authority, COMES_BACK, port) as server, server.in_background():
        with environment(api, folder, authority, CYCLES_BASE_URL=server.url, **variables) as function:
            assert function.invoke({"cost": 2})[0] == "response"
        assert spent(authority) == (13, 0)
    assert left_on_disk(temporary) == []


def test_kills_lose_nothing(api, folder, authority, tmp_path):
    """Killed at any moment: what was answered is charged once; what was on disk is settled by whoever comes next."""
    seed = random.randrange(2**32)
    choice = random.Random(seed)
    answered = 0
    for _ in range(KILLS):
        with environment(api, folder, authority) as function:
            for number in range(3):
                function.begin({"cost": 7, "sleep": 0.0})
                if number < 2 and choice.random() < 0.5:
                    assert function.answer()[0] == "response", f"seed {seed}"
                    answered += 1
                    continue
                time.sleep(choice.uniform(0.0, 0.03 if number else 0.5))
                break
        while not api.answers.empty():
            answered += api.answers.get()[1] == "response"
        while not api.invocations.empty():
            api.invocations.get()
    with environment(api, folder, authority) as function:
        assert function.invoke({"cost": 7})[0] == "response"
        answered += 1
    charged, _ = spent(authority)
    assert charged % 7 == 0
    assert charged >= 7 * answered, f"seed {seed}"
    from cycles_lite import CyclesClient, CyclesConfig

    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        committed = sum(1 for _ in client.iter_reservations(status="COMMITTED"))
        released = sum(1 for _ in client.iter_reservations(status="RELEASED"))
    assert charged == 7 * committed, f"seed {seed}"
    assert released == 0, f"seed {seed}"
    assert left_on_disk(os.path.expanduser("~")) == []
