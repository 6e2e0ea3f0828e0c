"""The journal on Windows, where a file that anybody reads can be neither replaced nor removed."""

from __future__ import annotations

import os
import tempfile
import time

import pytest
from looks import loaded
from windows import Held, be_windows

from cycles_lite import Action, Amount, CyclesClient, CyclesConfig, SettlementStatus, events
from cycles_lite.settlement.claim import Claim
from cycles_lite.settlement.journal import COMMIT, EVENT, Journal, Record, usable_folder

BODY = {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 5}}
RECORD = Record("rsv_1", "http://h", COMMIT, BODY, {**BODY, "subject": {"tenant": "acme"}}, 1000)

#: More refusals than are waited for.
FOR_GOOD = 10**6


@pytest.fixture
def held(monkeypatch):
    be_windows(monkeypatch)
    return Held(monkeypatch)


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path / "journal"))


def files(journal):
    return sorted(os.listdir(journal.folder))


def age(journal, seconds=2 * 3600):
    for name in files(journal):
        os.utime(os.path.join(journal.folder, name), (time.time() - seconds,) * 2)


def test_a_record_that_is_read_just_now_is_written_and_removed(journal, held):
    journal.write(RECORD)
    held.tries[".json"] = 3
    journal.write(RECORD._replace(mode=EVENT))
    assert [record.mode for record in journal.peek().values()] == [EVENT]
    held.tries[".json"] = 3
    assert journal.remove("rsv_1")
    assert files(journal) == []


def test_a_record_that_is_read_just_now_is_set_aside(journal, held):
    journal.write(RECORD)
    held.tries[".json"] = 3
    journal.refuse("rsv_1")
    assert files(journal) == [os.path.basename(journal.path_of("rsv_1", ".refused"))]


def test_where_the_older_record_stays_it_must_do(journal, held):
    """It is the same spend with the same key, so that it is settled once whichever of them is found."""
    journal.write(RECORD)
    held.tries[".json"] = FOR_GOOD
    with pytest.raises(PermissionError):
        journal.write(RECORD._replace(mode=EVENT))
    assert [record.mode for record in journal.peek().values()] == [COMMIT]
    held.tries.clear()
    assert loaded(journal)[0] == [RECORD]


def test_a_record_that_gets_no_name_is_whole_and_is_found_later(journal, held):
    """By another process too: whoever looks an hour later takes it up, because its writer may be dead."""
    held.tries[".tmp"] = FOR_GOOD
    journal.write(RECORD)
    assert [name.endswith(".tmp") for name in files(journal)] == [True]
    held.tries.clear()
    other = Journal(journal.folder)
    assert loaded(other) == ([], [])
    age(journal)
    loaded(other)
    assert loaded(other) == ([RECORD], [])
    assert files(journal) == [os.path.basename(journal.path_of("rsv_1"))]


@pytest.mark.parametrize("end", ["remove", "refuse", "write"])
def test_a_record_that_got_no_name_ends_as_any_other(journal, held, end):
    held.tries[".tmp"] = FOR_GOOD
    journal.write(RECORD)
    held.tries.clear()
    if end == "write":
        newer = RECORD._replace(mode=EVENT)
        journal.write(newer)
        assert list(journal.peek().values()) == [newer]
        assert journal.remove("rsv_1")
        journal.remove("rsv_1")
    else:
        getattr(journal, end)("rsv_1")
    age(journal)
    assert loaded(journal) == ([], [])
    assert files(journal) == ([os.path.basename(journal.path_of("rsv_1", ".refused"))] if end == "refuse" else [])


def test_elsewhere_a_refusal_is_an_error_at_once(journal, monkeypatch):
    """A folder that takes no new names is read-only, and nothing in it is a record."""
    held = Held(monkeypatch)
    held.tries[".json"] = 1
    with pytest.raises(PermissionError):
        journal.write(RECORD)
    assert files(journal) == []


def test_what_a_dead_writer_had_written_in_part_is_removed(journal, held):
    held.tries[".tmp"] = FOR_GOOD
    journal.write(RECORD)
    held.tries.clear()
    (name,) = files(journal)
    with open(os.path.join(journal.folder, name), "r+b") as file:
        file.truncate(20)
    age(journal)
    assert loaded(journal) == ([], [])
    assert files(journal) == []


def test_one_process_at_a_time_takes_records_up(journal, held):
    os.makedirs(journal.folder)
    first, second = Claim(journal.folder), Claim(journal.folder)
    assert (first.is_ours, second.is_ours) == (True, False)
    first.close()
    second.close()
    third = Claim(journal.folder)
    assert third.is_ours
    third.close()


def test_the_temporary_folder_is_used_again(tmp_path, monkeypatch):
    """Every folder has the mode 0777 there, and there are no user ids."""
    be_windows(monkeypatch)
    (tmp_path / "home").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, _ = usable_folder(None)
    os.chmod(folder, 0o777)
    assert usable_folder(None)[0] == folder
    os.rmdir(folder)
    os.symlink(str(tmp_path), folder)
    with pytest.raises(PermissionError, match="closed to all others"):
        usable_folder(None)


def test_spend_is_settled_once_whatever_is_held(ledger, held, tmp_path):
    """A whole run of a client, in which a virus scanner holds every new file for good."""
    told = []
    config = CyclesConfig(base_url=ledger.url, tenant="acme", journal_dir=str(tmp_path / "journal"))
    held.tries[".tmp"] = FOR_GOOD
    with CyclesClient(config, observer=told.append) as client:
        with client.reserve(Amount.tokens(10), Action("llm.completion", "gpt-4o")) as guard:
            assert guard.commit(Amount.tokens(7)).status is SettlementStatus.COMMITTED
        assert client.flush(30) == 0
        assert client.get_balances(tenant="acme").balances[0].spent == Amount.tokens(7)
    assert sum(isinstance(event, events.Settled) for event in told) == 1
    (failed,) = [event for event in told if isinstance(event, events.JournalFailed)]
    assert "which was settled, stays on disk" in failed.problem


def test_records_are_written_as_they_are(journal, monkeypatch):
    """Without O_BINARY, Windows writes two bytes for each end of a line."""
    opened, flag = [], os.O_NOCTTY  # a flag that does nothing for files
    monkeypatch.setattr(os, "O_BINARY", flag, raising=False)
    monkeypatch.setattr(os, "open", _noting(opened, os.open))
    journal.write(RECORD)
    assert loaded(journal) == ([RECORD], [])
    assert len(opened) >= 2
    assert all(flags & flag for flags in opened)


def _noting(opened, action):
    def noting(path, flags, mode=0o777):
        opened.append(flags)
        return action(path, flags, mode)

    return noting
