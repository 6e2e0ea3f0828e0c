"""CR-DURABLE-007: journal filenames preserve distinct arbitrary reservation identifiers."""

from __future__ import annotations

import hashlib
import json

import pytest
from faults import failed
from peers import Peer, allowed, answer, config_of, refusal
from stage import ACTION, Stage

from cycles_lite import Amount, CyclesClient

pytestmark = pytest.mark.scenario("CR-DURABLE-007")

#: Ids that name the same file where an id is turned into a name by replacing what is awkward, cutting, or case folding.
COLLIDING = [
    "a/b",
    "a_b",
    "a\\b",
    "a:b",
    "a b",
    "A_B",
    "a_b ",
    "a_b.json",
    "../a_b",
    "a%2Fb",
    "ä_b",
    "a\u0308_b",
    "x" * 127 + "1",
    "x" * 127 + "2",
    "CON",
    "日本語/①",
]


def standard(reservation_id):
    return "v2-" + hashlib.sha256(reservation_id.encode("utf-8")).hexdigest() + ".json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Reservations with these ids, whose commits the server does not answer for."""
    folder, ids = tmp_path_factory.mktemp("durable-007"), iter(COLLIDING)

    def serve(line, request):
        if request.target == "/v1/reservations":
            line.send(answer(allowed(reservation_id=next(ids))))
        else:
            line.send(refusal("INTERNAL_ERROR", 500))

    with Peer(serve) as peer:
        config = config_of(peer, journal_dir=str(folder), heartbeat=False, flush_timeout=0.0, retry_initial_delay=60.0)
        with CyclesClient(config.replace(retry_max_delay=60.0)) as client:
            for amount in range(len(COLLIDING)):
                with client.reserve(Amount.tokens(100), ACTION) as guard:
                    guard.commit(Amount.tokens(amount))
            yield {path.name: json.loads(path.read_bytes().decode()) for path in folder.glob("*/*.json")}


def test_standard_filename_is_sha256_of_exact_utf8_identifier(written):
    assert {name: record["reservation_id"] for name, record in written.items()} == {
        standard(reservation_id): reservation_id for reservation_id in COLLIDING
    }


def test_distinct_identifiers_never_share_a_journal_file(written):
    assert len({name.lower() for name in written}) == len(COLLIDING)
    amounts = {record["reservation_id"]: record["commit_body"]["actual"]["amount"] for record in written.values()}
    assert amounts == {reservation_id: amount for amount, reservation_id in enumerate(COLLIDING)}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """Two killed processes' records. The first is under a legacy name that the second's id would have had too; a third
    file has a legacy name, and is the older state of the second's."""
    with Stage(tmp_path_factory.mktemp("durable-007")) as stage:
        stage.faults["/commit"] = [failed] * 1000
        slow = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "flush_timeout": 0.0}
        for amount in (1, 2):
            killed = stage.actor(f"commit {amount}", "wait", **slow)
            killed.hears("waiting")
            killed.kill()
        by_amount = {record["commit_body"]["actual"]["amount"]: record for record in stage.records().values()}
        folder = stage.identity_folder
        stage.one, stage.two = by_amount[1]["reservation_id"], by_amount[2]["reservation_id"]
        (folder / standard(stage.one)).rename(folder / "shared_legacy_name.json")
        (folder / f"{stage.two}.json").write_bytes(json.dumps({**by_amount[2], "recorded_at_ms": 1}).encode())
        stage.before = stage.records()
        # The next process can settle the second, and not yet the first.
        stage.faults = {f"{stage.one}/commit": [failed] * 1000}
        restarted = stage.actor("flush", "wait", **slow)
        stage.pending = [restarted.hears("pending")]
        stage.meanwhile = stage.records()
        stage.spent_meanwhile = stage.spent()
        restarted.kill()
        stage.faults.clear()
        stage.pending.append(stage.actor("flush").hears("pending"))
        yield stage


def test_matching_legacy_record_migrates_without_deleting_collision(migrated):
    one, two = migrated.one, migrated.two
    assert sorted(migrated.before) == sorted(["shared_legacy_name.json", f"{two}.json", standard(two)])
    assert migrated.pending[0] == "1"
    assert migrated.spent_meanwhile == 2
    assert migrated.meanwhile == {standard(one): migrated.before["shared_legacy_name.json"]}


def test_migrated_records_are_settled_like_any_other(migrated):
    assert migrated.pending[1] == "0"
    assert migrated.files() == []
    assert migrated.spent() == 3
