"""The in-process transport, with the real client on it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from cycles_lite.client import CyclesClient
from cycles_lite.config import CyclesConfig
from cycles_lite.errors import BudgetExceededError, ConfigError, ForbiddenError, InvalidRequestError
from cycles_lite.local import Authority
from cycles_lite.local.authority import LocalTransport
from cycles_lite.protocol.models import CommitRequest, ReservationCreateRequest
from cycles_lite.protocol.values import Action, Amount, Subject

ACTION = Action("llm.completion", "gpt-4o")


@pytest.fixture
def authority(url):
    with Authority(url) as made:
        made.set_budget("tenant:acme", Amount.tokens(1000))
        yield made


def test_a_reservation_from_end_to_end(authority):
    """The client needs no key and no server; what it does is in the file."""
    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        made = client.create_reservation(ReservationCreateRequest(ACTION, Amount.tokens(100)))
        done = client.commit_reservation(made.reservation_id, CommitRequest(Amount.tokens(60)))
        assert done.charged == Amount.tokens(60)
        assert authority.budgets()[0].spent == 60
        with pytest.raises(BudgetExceededError) as caught:
            client.create_reservation(ReservationCreateRequest(ACTION, Amount.tokens(941)))
        assert caught.value.details["remaining"] == 940
        assert client.warm_up()


def test_the_configured_tenant_rules(authority):
    """With a tenant in the configuration, another one's subject is forbidden; without, the subject says."""
    authority.set_budget("tenant:other", Amount.tokens(1000))
    request = ReservationCreateRequest(ACTION, Amount.tokens(1), Subject(tenant="other"))
    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        with pytest.raises(ForbiddenError):
            client.create_reservation(request)
    with CyclesClient(CyclesConfig(base_url=authority.url)) as client:
        made = client.create_reservation(request)
        assert client.get_reservation(made.reservation_id).subject.tenant == "other"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {1: 2}, object], ids=["NaN", "set", "int key", "class"])
def test_what_is_no_json_is_refused(authority, value):
    """The checks of a request are over when it is made; what its owner puts into its metadata later meets others."""
    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        request = ReservationCreateRequest(ACTION, Amount.tokens(1), metadata={"deep": {}})
        request.metadata["deep"]["a"] = value
        with pytest.raises(InvalidRequestError, match="metadata"):
            client.create_reservation(request)
    assert authority.budgets()[0].reserved == 0


def test_what_is_changed_afterwards_changes_nothing(authority):
    """A response keeps the bytes as they were answered, and the ledger what was asked for."""
    with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
        request = ReservationCreateRequest(ACTION, Amount.tokens(1), metadata={"list": [1]})
        made = client.create_reservation(request)
        request.metadata["list"].append(2)
        shown = client.get_reservation(made.reservation_id)
        before = shown.body
        shown.metadata["list"].append(3)
        assert shown.body == before
        assert client.get_reservation(made.reservation_id).metadata == {"list": [1]}
        assert json.loads(made.body.decode())["reservation_id"] == made.reservation_id


def test_the_client_makes_no_file(url, path, tmp_path):
    """A missing file is a configuration error that names the command."""
    with pytest.raises(ConfigError, match="cycles-lite budget set --db"):
        LocalTransport(CyclesConfig(base_url=url))
    assert list(tmp_path.iterdir()) == []


def test_nothing_here_pickles(authority):
    """And what is pickled with it says what to do instead, not what is deep inside."""
    client = CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme"))
    store = authority._ledger
    for one in (client, LocalTransport(CyclesConfig(base_url=authority.url)), authority, store):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match=r"connection.*pickle.*: make one in each process"):
                pickle.dumps(one, protocol)
        with pytest.raises(TypeError, match="pickle"):
            copy.deepcopy(one)


def test_close_lets_go(authority, path):
    """After `close` nothing is open, and a later call works all the same."""
    import os

    authority.shutdown()
    client = CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme"))
    client.get_balances(tenant="acme")
    assert os.path.exists(path + "-wal")
    client.close()
    assert not os.path.exists(path + "-wal")
    assert client.get_balances(tenant="acme").balances[0].allocated == Amount.tokens(1000)
    assert not os.path.exists(path + "-wal")
    assert authority.url in repr(LocalTransport(CyclesConfig(base_url=authority.url)))
