"""`cycles-lite journal`: what is on disk can be seen and settled, this library's records and the official SDK's."""

from __future__ import annotations

import json
import os
import re

import pytest
from terminals import on_terminal

from cycles_lite import Action, Amount, CyclesClient, CyclesConfig, ReservationCreateRequest
from cycles_lite.cli import main
from cycles_lite.local import Authority
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement.journal import COMMIT, EVENT, Journal, Record
from cycles_lite.settlement.settler import settler_of


@pytest.fixture
def url(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/budgets.db"
    monkeypatch.setenv("CYCLES_BASE_URL", url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
    return url


def ledger(url):
    with Authority(url) as authority:
        (budget,) = authority.budgets()
        return budget.spent, budget.reserved


def held(url, amount=10):
    with CyclesClient(CyclesConfig(base_url=url, tenant="acme")) as client:
        request = ReservationCreateRequest(Action("a", "b"), Amount.tokens(amount))
        return client.create_reservation(request).reservation_id


def left_behind(url, reservation_id, amount=7, **changes):
    body = {"idempotency_key": "key-" + reservation_id, "actual": {"unit": "TOKENS", "amount": amount}}
    event = {**body, "subject": {"tenant": "acme"}, "action": {"kind": "a", "name": "b"}}
    return Record(reservation_id, url, COMMIT, body, event, now_ms() - 5000)._replace(**changes)


def test_replay_settles_what_is_there(url, tmp_path, capsys):
    folder = str(tmp_path / "journal" / "one")
    Journal(folder).write(left_behind(url, held(url)))
    Journal(folder).write(left_behind(url, "degraded:x", 5, mode=EVENT, commit_body=None))
    assert main(["journal", "replay", str(tmp_path / "journal")]) == 0
    assert capsys.readouterr().out == "everything is settled\n"
    assert ledger(url) == (12, 0)
    assert main(["journal", "replay", folder]) == 0
    assert ledger(url) == (12, 0)


def test_replay_settles_what_the_official_sdk_left(url, tmp_path):
    """Its records in its own file, written by the SDK's own code."""
    journal = pytest.importorskip("runcycles.journal", reason="the official SDK needs Python 3.10")
    from pathlib import Path

    folder = tmp_path / "commit-journal" / "0123456789abcdef"
    record = left_behind(url, held(url))
    journal.CommitJournal(Path(folder)).record(journal.PendingCommitRecord(*record))
    assert main(["journal", "replay", str(folder)]) == 0
    assert ledger(url) == (7, 0)
    assert os.listdir(folder) == []


def test_records_of_another_server_are_reported_and_never_sent(url, tmp_path, capsys, caplog):
    folder = str(tmp_path / "journal")
    Journal(folder).write(left_behind("https://other.example.com", held(url)))
    assert main(["journal", "replay", folder]) == 1
    assert "1 on disk" in capsys.readouterr().out
    assert "other.example.com: not sent" in caplog.text
    assert ledger(url) == (0, 10)


def test_list_and_show(url, tmp_path, capsys):
    folder = str(tmp_path / "journal" / "one")
    Journal(folder).write(left_behind(url, "rsv_1"))
    (tmp_path / "journal" / "one" / "v2-x.corrupt").write_bytes(b"{")
    assert main(["journal", "list", str(tmp_path / "journal")]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "STATE", "AMOUNT", "AGE", "MODE", "SERVER"]
    reservation_id, state, amount, age, mode, server = re.split("  +", first)
    assert (reservation_id, state, amount, mode, server) == ("rsv_1", "pending", "7 tokens", "commit", url)
    assert re.match(r"\d+ (s|min)\Z", age)
    assert second.split() == ["v2-x.corrupt", "corrupt"]
    assert main(["journal", "show", "rsv_1", folder]) == 0
    assert json.loads(capsys.readouterr().out)["commit_body"]["idempotency_key"] == "key-rsv_1"


def test_what_was_refused_is_listed_and_sent_again_when_that_makes_sense(url, tmp_path, capsys):
    """Such as spend whose budget had been closed; it is charged to the new one."""
    folder = str(tmp_path / "journal" / "one")
    gone = left_behind(url, "rsv_gone")
    Journal(folder).write(gone)
    Journal(folder).refuse("rsv_gone")
    Journal(folder).write(left_behind(url, "degraded:x", 5, mode=EVENT, commit_body=None))
    Journal(folder).refuse("degraded:x")
    parent = str(tmp_path / "journal")
    assert main(["journal", "list", parent]) == 0
    rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(row[:3] for row in rows) == [
        ["degraded:x", "refused", "5 tokens"],
        ["rsv_gone", "refused", "7 tokens"],
    ]
    assert main(["journal", "replay", parent]) == 0  # sends no refused one by itself
    assert ledger(url) == (0, 0)
    assert "2 refused" in capsys.readouterr().out
    assert main(["journal", "retry", "degraded:x", parent]) == 0
    assert ledger(url) == (5, 0)
    assert main(["journal", "retry", "rsv_gone", parent]) == 0  # there is no such reservation: refused again
    assert "1 refused" in capsys.readouterr().out
    assert ledger(url) == (5, 0)


@pytest.mark.parametrize("state", ["pending", "refused", "corrupt"])
def test_discard_shows_a_record_once_more_and_deletes_it(url, tmp_path, capsys, state):
    journal = Journal(str(tmp_path / "journal"))
    id = "rsv_1"
    journal.write(left_behind(url, id))
    if state == "refused":
        journal.refuse(id)
    elif state == "corrupt":
        id = "v2-x.corrupt"
        (tmp_path / "journal" / id).write_bytes(b'{"key-rsv_1": "\xff')
    assert main(["journal", "discard", id, journal.folder]) == 0
    assert "key-rsv_1" in capsys.readouterr().out
    assert len(os.listdir(journal.folder)) == (1 if state == "corrupt" else 0)
    assert main(["journal", "discard", id, journal.folder]) == 2


def test_a_repaired_record_is_sent_by_retry(url, tmp_path):
    journal = Journal(str(tmp_path / "journal"))
    journal.write(left_behind(url, held(url)))
    (name,) = journal.names()
    aside = name.replace(".json", ".corrupt")
    os.rename(os.path.join(journal.folder, name), os.path.join(journal.folder, aside))
    assert main(["journal", "retry", aside, journal.folder]) == 0
    assert ledger(url) == (7, 0)


def test_a_retry_takes_no_pending_record_s_place(url, tmp_path, capsys):
    journal = Journal(str(tmp_path / "journal"))
    journal.write(left_behind(url, held(url)))
    (name,) = journal.names()
    aside = name.replace(".json", ".corrupt")
    (tmp_path / "journal" / aside).write_bytes(b"{")
    assert main(["journal", "retry", aside, journal.folder]) == 2
    assert "is pending under the same name" in capsys.readouterr().err
    assert sorted(os.listdir(journal.folder)) == sorted([name, aside])
    assert main(["journal", "replay", journal.folder]) == 0
    assert ledger(url) == (7, 0)


@pytest.mark.parametrize("suffix", [".json", ".refused", ".corrupt"])
def test_a_file_whose_name_is_a_suffix_alone_is_a_record_too(url, tmp_path, capsys, suffix):
    journal = Journal(str(tmp_path / "journal"))
    journal.write(left_behind(url, held(url)))
    os.rename(os.path.join(journal.folder, journal.names().pop()), os.path.join(journal.folder, suffix))
    assert main(["journal", "list", journal.folder]) == 0
    assert {".json": "pending", ".refused": "refused"}.get(suffix, "corrupt") in capsys.readouterr().out
    assert main(["journal", "retry", suffix, journal.folder]) == 0
    assert ledger(url) == (7, 0)
    assert os.listdir(journal.folder) == []


def test_replay_to_a_server_that_has_taken_the_others_place(url, tmp_path):
    folder = str(tmp_path / "journal")
    Journal(folder).write(left_behind("https://old.example.com", held(url)))
    assert main(["journal", "replay", folder, "--to", url]) == 0
    assert ledger(url) == (7, 0)
    assert Journal(folder).names() == set()


def test_replay_to_takes_every_spend_of_a_reservation_along(url, tmp_path, capsys):
    folder = str(tmp_path / "journal")
    first = left_behind("https://old.example.com", held(url))
    second = first._replace(commit_body={**first.commit_body, "idempotency_key": "second"})
    Journal(folder).write(first)
    Journal(folder).write(second, second.other_place)
    for left in (1, 0):  # the second waits until the first is settled
        assert main(["journal", "replay", folder + os.sep, "--to", url]) == left
    assert "1 refused" in capsys.readouterr().out
    assert ledger(url) == (7, 0)


@pytest.mark.parametrize("to", ["htp:/typo", ""])
def test_replay_to_what_is_no_server_leaves_the_records_as_they_are(url, tmp_path, monkeypatch, capsys, to):
    monkeypatch.delenv("CYCLES_BASE_URL")
    journal = Journal(str(tmp_path / "journal"))
    record = left_behind("https://old.example.com", "rsv_1")
    journal.write(record)
    assert main(["journal", "replay", journal.folder, "--to", to]) != 0
    assert capsys.readouterr().err
    assert list(journal.peek().values()) == [record]


def test_the_default_folder_is_the_clients(url, capsys):
    with CyclesClient(CyclesConfig(base_url=url, tenant="acme")) as client:
        settler = settler_of(client._session)
        settler.open()
        journal = settler._journal
    journal.write(left_behind(url, held(url)))
    assert main(["journal", "list"]) == 0
    assert "  pending  7 tokens  " in capsys.readouterr().out
    assert main(["journal", "replay"]) == 0
    assert ledger(url) == (7, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "/nowhere"], "no folder /nowhere"),
        (["show", "rsv_9"], "no record of reservation rsv_9"),
        (["replay", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(url, arguments, said, capsys):
    assert main(["journal", *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert said in told.err


@pytest.mark.parametrize("action", ["show", "discard"])
def test_a_record_in_an_older_schemes_file_is_found_there(url, tmp_path, capsys, action):
    folder = tmp_path / "journal"
    folder.mkdir()
    old = folder / "rsv_1.json"
    old.write_bytes(left_behind(url, "rsv_1").to_json())
    assert main(["journal", action, "rsv_1", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["reservation_id"] == "rsv_1"
    assert old.exists() is (action == "show")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("action", ["show", "discard"])
def test_a_pipe_that_looks_like_a_record_keeps_nobody_waiting(url, tmp_path, capsys, action):
    os.mkfifo(str(tmp_path / "odd.corrupt"))
    assert main(["journal", action, "odd.corrupt", str(tmp_path)]) == 2
    assert "not a regular file" in capsys.readouterr().err
    assert (tmp_path / "odd.corrupt").exists()


def test_in_json_each_record_is_a_line(url, tmp_path, capsys):
    """With its file and its state; a corrupt one has its text, and what settles tells numbers."""
    folder = str(tmp_path / "journal")
    Journal(folder).write(left_behind(url, held(url)))
    (tmp_path / "journal" / "v2-x.corrupt").write_bytes(b'{"a": "\xff\x1b')
    assert main(["journal", "list", folder, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["state"], first["commit_body"]["actual"]["amount"]) == ("pending", 7)
    assert os.path.exists(first["file"])
    assert second == {"file": os.path.join(folder, "v2-x.corrupt"), "state": "corrupt", "text": '{"a": "\\xff\x1b'}
    assert main(["journal", "show", "v2-x.corrupt", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == second
    assert main(["journal", "replay", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pending": 0, "on_disk": 0, "refused": 0}


def test_a_terminal_does_not_obey_a_corrupt_record(tmp_path, capsys):
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "v2-\x1b[2Jx.corrupt").write_bytes(b"a\x1b[2J\nb\x07")
    assert main(["journal", "list", str(folder)]) == 0
    assert r"v2-\x1b[2Jx.corrupt" in capsys.readouterr().out
    with on_terminal(["journal", "show", "v2-\x1b[2Jx.corrupt", str(folder)]) as shown:
        assert shown.end() == (0, "a\\x1b[2J\nb\\x07")
