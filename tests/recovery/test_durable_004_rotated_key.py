"""CR-DURABLE-004: tenant journal survives API-key rotation."""

from __future__ import annotations

import pytest
from faults import swallowed_request
from stage import Stage, kinds_and_keys

pytestmark = pytest.mark.scenario("CR-DURABLE-004")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A process dies with its spend in the journal; its key is revoked, and the next process has another."""
    with Stage(tmp_path_factory.mktemp("durable-004")) as stage:
        stage.faults["/commit"] = [swallowed_request]
        killed = stage.actor("commit 42")
        stage.wait_for("/commit", 1)
        killed.kill()
        stage.old_key = stage.key
        stage.on_disk = {path: path.read_bytes() for path in stage.files()}
        (old,) = (key for key in stage.authority.keys() if key.tenant_id == "acme")  # noqa: SIM118
        stage.authority.revoke_key(old.key_id)
        stage.key = stage.authority.create_key("acme").key_secret
        stage.pending = stage.actor("flush").hears("pending")
        yield stage


def test_new_tenant_credential_finds_record(played):
    assert played.key != played.old_key
    assert played.pending == "0"
    assert played.files() == []
    assert played.spent() == 42
    first, second = played.sent("/commit")
    assert first.header("X-Cycles-API-Key") == played.old_key
    assert second.header("X-Cycles-API-Key") == played.key


def test_old_api_key_is_not_stored(played):
    """Neither in a file nor in a name."""
    assert played.on_disk
    for path, content in played.on_disk.items():
        assert played.old_key.encode() not in content
        assert played.old_key not in str(path)


def test_the_requests_are_those_expected(played):
    assert kinds_and_keys(played.settlements()) == ["commit", "commit same key"]
