"""CR-DURABLE-005: corrupt or unsupported journal record is quarantined."""

from __future__ import annotations

import json

import pytest
from faults import swallowed_request
from stage import Stage, kinds_and_keys

pytestmark = pytest.mark.scenario("CR-DURABLE-005")

CORRUPT = {
    "empty": b"",
    "cut": b'{"version":1,"reservation_id":"rsv_x","base_u',
    "binary": b"\x00\xff\xfe\x80" * 64,
    "a-list": b"[1]",
    "deep": b"[" * 100_000,
    "many-digits": b'{"version":1,"recorded_at_ms":' + b"9" * 10_000 + b"}",
}
UNSUPPORTED = {"newer": 2, "text": "1", "true": True, "float": 1.0, "none": None}
#: Fields that make a record of this version malformed.
MALFORMED = {
    "no-mode": {"mode": None},
    "other-mode": {"mode": "refund"},
    "no-id": {"reservation_id": ""},
    "no-body": {"commit_body": None},
    "listed-body": {"commit_body": []},
    "bare-actual": {"commit_body": {"idempotency_key": "k", "actual": 42}},
    "no-number": {"commit_body": {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": float("nan")}}},
    "text-time": {"recorded_at_ms": "1"},
    "bool-floor": {"not_before_ms": True},
}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two valid records of killed processes, and all the others beside them."""
    with Stage(tmp_path_factory.mktemp("durable-005")) as stage:
        stage.faults["/commit"] = [swallowed_request]
        first = stage.actor("commit 42")
        stage.wait_for("/commit", 1)
        first.kill()
        (valid,) = stage.records().values()
        folder = stage.identity_folder
        stage.put = dict(CORRUPT)
        for name, version in UNSUPPORTED.items():
            stage.put["version-" + name] = json.dumps({**valid, "version": version}).encode()
        for name, change in MALFORMED.items():
            stage.put[name] = json.dumps({**valid, **change}).encode()
        for name, content in stage.put.items():
            (folder / f"{name}.json").write_bytes(content)
        (folder / "a-folder.json").mkdir()
        restarted = stage.actor("flush")
        stage.out = restarted.end()
        stage.log = restarted.complaints()
        stage.folder = folder
        yield stage


@pytest.mark.parametrize("name", [*CORRUPT, *MALFORMED])
def test_corrupt_record_is_quarantined(played, name):
    """Renamed, and not a byte of it changed."""
    assert (played.folder / f"{name}.corrupt").read_bytes() == played.put[name]
    assert not (played.folder / f"{name}.json").exists()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_record_version_is_quarantined(played, name):
    assert (played.folder / f"version-{name}.corrupt").read_bytes() == played.put["version-" + name]
    assert not (played.folder / f"version-{name}.json").exists()


def test_other_valid_records_still_replay(played):
    """Also with something among them that is no file at all."""
    assert "pending 0" in played.out
    assert played.spent() == 42
    assert [path.name for path in played.files() if path.suffix == ".json"] == []
    assert kinds_and_keys(played.settlements()) == ["commit", "commit same key"]


def test_corruption_is_reported(played):
    """In the log and to the observer, each with the file's name, and once."""
    told = [line for line in played.out.splitlines() if line.startswith("journal failed:")]
    for name in [f"{name}.corrupt" for name in played.put] + ["a-folder.json"]:
        assert played.log.count(name) == 1 or "a-folder" in name
        assert len([line for line in told if name in line]) == 1
    assert len(told) == len(played.put) + 1
