"""The pytest fixtures, in a pytest of their own: real budgets, and faults on demand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cycles_lite import (
    Action,
    Amount,
    BudgetExceededError,
    BudgetFrozenError,
    Caps,
    CommitRequest,
    CyclesClient,
    CyclesConfig,
    RateLimitedError,
    ReservationCreateRequest,
    ReservationExpiredError,
    SettlementStatus,
    TransportTimeout,
    ValidationError,
)

ACTION = Action("a", "b")


def request(amount=10):
    return ReservationCreateRequest(action=ACTION, estimate=Amount.tokens(amount))


def test_the_client_draws_on_the_authoritys_budgets(cycles_authority, cycles_client):
    cycles_authority.budget("tenant:acme", Amount.tokens(100), caps=Caps(max_tokens=5))
    with cycles_client.reserve(Amount.tokens(10), ACTION) as guard:
        assert guard.caps.max_tokens == 5
        guard.commit(Amount.tokens(4))
    (budget,) = cycles_authority.budgets()
    assert budget.spent == 4
    with pytest.raises(BudgetExceededError):
        cycles_client.create_reservation(request(1000))
    cycles_authority.freeze("tenant:acme")
    with pytest.raises(BudgetFrozenError):
        cycles_client.create_reservation(request())


def test_a_reservation_can_be_expired(cycles_authority, cycles_client):
    cycles_authority.budget("tenant:acme", Amount.tokens(100))
    held = cycles_client.create_reservation(request())
    cycles_authority.expire(held.reservation_id)
    with pytest.raises(ReservationExpiredError):
        cycles_client.get_reservation(held.reservation_id)
    assert cycles_authority.budgets()[0].reserved == 0
    with pytest.raises(ValidationError, match="rsv_nowhere"):
        cycles_authority.expire("rsv_nowhere")


def test_an_answer_can_be_lost_and_the_spend_is_settled_once(cycles_authority, cycles_client):
    cycles_authority.budget("tenant:acme", Amount.tokens(100))
    cycles_authority.fail_next("commit_reservation", times=2, after=True)
    with cycles_client.reserve(Amount.tokens(10), ACTION) as guard:
        assert guard.commit(Amount.tokens(4)).status is SettlementStatus.PENDING
    assert cycles_client.flush(60) == 0
    assert cycles_authority.budgets()[0].spent == 4


def test_calls_can_be_refused(cycles_authority, cycles_client):
    cycles_authority.budget("tenant:acme", Amount.tokens(100))
    cycles_authority.fail_next(status=429, code="LIMIT_EXCEEDED", retry_after=7)
    with pytest.raises(RateLimitedError) as refused:
        cycles_client.create_reservation(request())
    assert refused.value.retry_after == 7.0
    cycles_authority.fail_next("create_reservation", times=2)
    with pytest.raises(TransportTimeout):
        cycles_client.create_reservation(request())
    assert cycles_client.create_reservation(request()).is_allowed
    with pytest.raises(ValidationError, match="no_such"):
        cycles_authority.fail_next("no_such")


def test_the_server_is_the_same_authority(cycles_authority, cycles_server):
    cycles_authority.budget("tenant:acme", Amount.tokens(100))
    config = CyclesConfig(base_url=cycles_server.url, api_key=cycles_server.api_key, tenant="acme")
    with CyclesClient(config) as client:
        held = client.create_reservation(request())
        cycles_authority.fail_next("commit_reservation", status=503)
        client.commit_reservation(held.reservation_id, CommitRequest(actual=Amount.tokens(3)))
    assert cycles_authority.budgets()[0].spent == 3


def run_pytest(folder, *options):
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=str(folder), env=environment, capture_output=True, timeout=120, text=True)


def test_users_have_the_fixtures_and_others_pay_nothing(tmp_path):
    """The plugin itself loads nothing of the library; a test that asks for a fixture does."""
    (tmp_path / "test_user.py").write_text(
        "import sys\n"
        "from cycles_lite import Amount, Action\n"
        "def test_unused():\n"
        "    assert not {'sqlite3', 'cycles_lite.client', 'urllib3'} & set(sys.modules)\n"
        "def test_used(cycles_authority, cycles_client):\n"
        "    cycles_authority.budget('tenant:acme', Amount.tokens(5))\n"
        "    assert cycles_client.reserve(Amount.tokens(5), Action('a', 'b')).release('x') is None\n",
        encoding="utf-8",
    )
    done = run_pytest(tmp_path, "-p", "cycles_lite.pytest_plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    "name", ["a%2Fb", "100%", "what?", "a#b", "a b", "bücher", "synchronous=full?x", "a+b&c"], ids=ascii
)
def test_the_folder_for_tests_may_be_named_as_one_likes(tmp_path, name):
    """The fixtures' files are below pytest's basetemp, whatever a URL would make of its name."""
    (tmp_path / "test_user.py").write_text(
        "import os\n"
        "from cycles_lite import Action, Amount, CyclesClient\n"
        "def test_used(cycles_authority, cycles_client, tmp_path):\n"
        "    cycles_authority.budget('tenant:acme', Amount.tokens(5))\n"
        "    with CyclesClient(cycles_client.config) as client:\n"
        "        client.reserve(Amount.tokens(5), Action('a', 'b')).commit(Amount.tokens(3))\n"
        "    assert cycles_authority.budgets()[0].spent == 3\n"
        "    assert (tmp_path / 'cycles-budgets.db').is_file()\n",
        encoding="utf-8",
    )
    done = run_pytest(tmp_path, "-p", "cycles_lite.pytest_plugin", "--basetemp", str(tmp_path / name))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_is_found_by_its_entry_point():
    import configparser

    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    assert "cycles_lite = cycles_lite.pytest_plugin" in setup["options.entry_points"]["pytest11"]


@pytest.mark.parametrize(
    "given",
    [
        {"operation": 5},
        {"times": "2"},
        {"times": -1},
        {"status": "503"},
        {"status": 200},
        {"code": 5},
        {"after": 1},
        {"retry_after": 1.5},
        {"retry_after": -1},
    ],
)
def test_a_fault_that_cannot_be_is_refused_where_it_is_asked_for(cycles_authority, given):
    """And not by a client, in the middle of what is tested."""
    (name,) = given
    with pytest.raises(ValidationError, match=name):
        cycles_authority.fail_next(**given)


def test_an_id_that_cannot_be_shown_is_no_reservation(cycles_authority):
    with pytest.raises(ValidationError, match="cannot be expired"):
        cycles_authority.expire("\ud800")
