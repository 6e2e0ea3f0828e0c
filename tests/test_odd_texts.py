"""Texts and metadata that only look illegal arrive as they were sent, and are kept."""

from __future__ import annotations

import pytest

from cycles_lite import Action, Amount, CyclesClient, CyclesConfig, Subject
from cycles_lite.local import Authority


def nested(depth, container):
    value = container()
    for _ in range(depth - 2):
        value = {"a": value} if container is dict else [value]
    return {"a": value}


def below(frames, call):
    """The call as it is in a program that is that deep down."""
    return below(frames - 1, call) if frames else call()


@pytest.fixture
def client(tmp_path):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        with CyclesClient(CyclesConfig(base_url=authority.url, tenant="acme")) as client:
            yield client


@pytest.mark.parametrize("frames", [0, 250])
@pytest.mark.parametrize("depth", [70, 200])
@pytest.mark.parametrize("container", [dict, list])
def test_metadata_that_is_nested_deep_is_settled_and_kept(client, container, depth, frames):
    metadata = nested(depth, container)

    def settle():
        with client.reserve(Amount.tokens(10), Action("llm.completion", "x"), metadata=metadata) as guard:
            guard.commit(Amount.tokens(3), metadata=metadata)
        return client.get_reservation(guard.reservation_id)

    read = below(frames, settle)
    assert read.committed == Amount.tokens(3)
    assert (read.metadata, read.committed_metadata) == (metadata, metadata)


def test_texts_that_no_header_could_carry_arrive_unchanged(client):
    """The reference takes control characters, and empty tags and labels."""
    action, subject = Action("llm\n\0", "gpt\x7f", ["", "a\tb"]), Subject(agent="bot", dimensions={"": "x", "a\0": "y"})
    with client.reserve(Amount.tokens(10), action, subject=subject) as guard:
        guard.commit(Amount.tokens(3))
    read = client.get_reservation(guard.reservation_id)
    assert (read.action, read.subject.dimensions) == (action, subject.dimensions)
