"""What cannot leave its process says what to do instead; what can, does."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle

import pytest
from ledgers import tokens
from peers import FakeTransport, allowed, client_of, released, replied

from cycles_lite import Action, CyclesClient, CyclesConfig, cycles
from cycles_lite.local import Authority

ACTION = Action("llm.completion", "gpt-4o")


@cycles(estimate=tokens(5), action_kind="llm.completion")
def decorated():
    """A function at the top of a module."""


WAYS = {
    "pickled": pickle.dumps,
    "pickled within a partial": lambda it: pickle.dumps(functools.partial(print, it)),
    "copied": copy.copy,
    "deep-copied": lambda it: copy.deepcopy([it]),
    "passed to a process": lambda it: multiprocessing.get_context("spawn").Process(target=print, args=(it,)).start(),
}


@pytest.fixture(params=["http", "sqlite"])
def client(request, tmp_path):
    if request.param == "http":
        transport = FakeTransport(replied(allowed()), replied(released()))
        made = client_of("http://fake.invalid", transport=transport, heartbeat=False)
    else:
        url = f"sqlite:///{tmp_path}/budgets.db"
        with Authority(url) as authority:
            authority.set_budget("tenant:acme", tokens(100))
        made = CyclesClient(CyclesConfig(base_url=url, tenant="acme", heartbeat=False))
    with made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_a_client_says_to_make_one_in_each_process(client, way):
    with pytest.raises(
        TypeError, match=r"neither pickled nor copied: make one in each process.*from_env.*with_options"
    ):
        WAYS[way](client)


@pytest.mark.parametrize("way", WAYS)
def test_a_guard_says_where_to_settle(client, way):
    with client.reserve(tokens(5), ACTION) as guard:
        with pytest.raises(TypeError, match=r"neither pickled nor copied: settle here.*commit_reservation"):
            WAYS[way](guard)
        assert guard.is_active
        guard.release("")


def test_a_decorated_function_pickles_by_its_name():
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert copy.deepcopy(decorated) is decorated


def test_a_decorator_says_so_of_its_client(client):
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(cycles(estimate=tokens(5), client=client))


def test_a_configuration_pickles_with_its_key():
    config = CyclesConfig(base_url="http://h", api_key="key", tenant="acme")
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
