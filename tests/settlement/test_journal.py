"""The journal: whole records or none, private files, one file per reservation, nothing unreadable in the way."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given, strategies as st
from looks import loaded

from cycles_lite.settlement import journal as journals
from cycles_lite.settlement.claim import Claim
from cycles_lite.settlement.journal import COMMIT, EVENT, Journal, Record, file_name, identity, usable_folder

BODY = {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 5}}


def record(reservation_id="rsv_1", **changes):
    made = Record(reservation_id, "http://h", COMMIT, BODY, {**BODY, "subject": {"tenant": "acme"}}, 1000)
    return made._replace(**changes)


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path / "journal" / "identity"))


def files(journal):
    return sorted(os.listdir(journal.folder))


def put(journal, name, content):
    os.makedirs(journal.folder, exist_ok=True)
    with open(os.path.join(journal.folder, name), "wb") as file:
        file.write(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_a_record_comes_back_as_it_went(journal):
    journal.write(record(not_before_ms=7))
    assert loaded(journal) == ([record(not_before_ms=7)], [])
    journal.remove("rsv_1")
    assert loaded(journal) == ([], [])
    assert files(journal) == []


def test_the_file_is_named_by_the_ids_digest(journal):
    journal.write(record("a/b\u00e9"))
    assert files(journal) == ["v2-" + hashlib.sha256("a/b\u00e9".encode()).hexdigest() + ".json"]


def test_the_fields_are_those_of_the_official_sdks(journal):
    journal.write(record())
    with open(os.path.join(journal.folder, files(journal)[0]), "rb") as file:
        data = json.loads(file.read().decode())
    assert list(data) == [
        "version",
        "reservation_id",
        "base_url",
        "mode",
        "commit_body",
        "event_fallback_body",
        "recorded_at_ms",
        "not_before_ms",
    ]
    assert data["version"] == 1


def test_files_and_folders_are_private(journal):
    journal.write(record())
    assert stat.S_IMODE(os.stat(os.path.join(journal.folder, files(journal)[0])).st_mode) == 0o600
    for folder in (journal.folder, os.path.dirname(journal.folder)):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_later_record_replaces_an_earlier_one(journal):
    journal.write(record())
    journal.write(record(mode=EVENT))
    assert [found.mode for found in loaded(journal)[0]] == [EVENT]
    assert len(files(journal)) == 1


def test_the_oldest_comes_first(journal):
    """By the age of the files."""
    for number in (3, 1, 2):
        made = record(f"rsv_{number}", recorded_at_ms=number)
        journal.write(made)
        os.utime(journal.path_of(made.reservation_id), (number, number))
    assert [found.recorded_at_ms for found in loaded(journal)[0]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, ""),
        ([], "not an object"),
        ({"version": 2}, "version 2, not 1"),
        ({"version": True}, "version True"),
        ({"version": 1}, "reservation_id is None"),
        ({**record()._asdict(), "version": 1, "mode": "both"}, "mode is 'both'"),
        ({**record()._asdict(), "version": 1, "commit_body": None}, "no body for mode commit"),
        ({**record()._asdict(), "version": 1, "commit_body": []}, "commit_body is []"),
        ({**record()._asdict(), "version": 1, "recorded_at_ms": -1}, "recorded_at_ms is -1"),
        ({**record()._asdict(), "version": 1, "not_before_ms": 1.5}, "not_before_ms is 1.5"),
    ],
)
def test_what_cannot_be_read_is_set_aside_and_the_rest_is_read(journal, content, why):
    put(journal, "v2-bad.json", content)
    journal.write(record())
    records, problems = loaded(journal)
    assert records == [record()]
    (problem,) = problems
    assert why in problem
    assert "v2-bad.corrupt" in files(journal)
    assert loaded(journal) == ([record()], [])


def test_legacy_names_migrate(journal):
    """Older SDKs named files by a sanitised id, so that two ids could meet in one name."""
    put(journal, "a_b.json", {"version": 1, **record("a/b")._asdict()})
    assert loaded(journal) == ([record("a/b")], [])
    assert files(journal) == [file_name("a/b")]


def test_a_migration_deletes_no_other_reservations_record(journal):
    journal.write(record("a_b"))
    put(journal, "a_b.json", {"version": 1, **record("a/b")._asdict()})
    assert {found.reservation_id for found in loaded(journal)[0]} == {"a_b", "a/b"}
    assert files(journal) == sorted([file_name("a_b"), file_name("a/b")])


def test_the_standard_file_wins_over_a_legacy_one_of_the_same_reservation(journal):
    journal.write(record(mode=EVENT))
    put(journal, "rsv_1.json", {"version": 1, **record()._asdict()})
    assert [found.mode for found in loaded(journal)[0]] == [EVENT]
    assert len(files(journal)) == 1


def other(key, **changes):
    """Other spend of the same reservation, as a file's content."""
    body = {**BODY, "idempotency_key": key}
    return {"version": 1, **record(commit_body=body, **changes)._asdict()}


def test_other_spend_of_the_same_reservation_waits_until_the_first_is_settled(journal):
    journal.write(record())
    put(journal, "rsv_1.json", other("k2"))
    assert [found.key for found in loaded(journal)[0]] == ["k"]
    journal.remove("rsv_1")
    assert [found.key for found in loaded(journal)[0]] == ["k2"]
    assert files(journal) == [file_name("rsv_1")]


def test_what_a_dead_writer_left_of_other_spend_is_kept(journal):
    journal.write(record())
    put(journal, "v2-x.json.1-1-aa.tmp", other("k2"))
    long_ago = time.time() - 2 * 3600
    os.utime(os.path.join(journal.folder, "v2-x.json.1-1-aa.tmp"), (long_ago, long_ago))
    assert [found.key for found in loaded(journal)[0]] == ["k"]
    journal.remove("rsv_1")
    assert [found.key for found in loaded(journal)[0]] == ["k2"]


def test_nothing_is_set_aside_over_what_was_set_aside_before(journal):
    for key in ("k1", "k2", "k3"):
        put(journal, file_name("rsv_1"), other(key))
        journal.refuse("rsv_1")
        put(journal, "a_b.json", key.encode())
        loaded(journal)
    assert sorted(found.key for found in journal.peek(".refused").values()) == ["k1", "k2", "k3"]
    broken = [name for name in files(journal) if name.endswith(".corrupt")]
    assert broken == ["a_b-2.corrupt", "a_b-3.corrupt", "a_b.corrupt"]


def test_what_dead_writers_left_is_cleared_away_and_what_live_ones_write_is_not(journal):
    put(journal, "v2-x.json.1-1-aa.tmp", b"{")
    put(journal, "v2-x.json.2-1-bb.tmp", b"{")
    long_ago = time.time() - 2 * 3600
    os.utime(os.path.join(journal.folder, "v2-x.json.1-1-aa.tmp"), (long_ago, long_ago))
    assert loaded(journal) == ([], [])
    assert files(journal) == ["v2-x.json.2-1-bb.tmp"]


def test_a_missing_folder_is_an_empty_journal(journal):
    assert journal.names() == set()
    assert loaded(journal) == ([], [])
    assert not journal.remove("rsv_1")
    assert not Claim(journal.folder).is_ours


def test_a_disk_that_refuses_leaves_nothing_half_written(journal, monkeypatch):
    journal.write(record())

    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.write(record("rsv_2"))
    monkeypatch.undo()
    assert loaded(journal) == ([record()], [])
    assert len(files(journal)) == 1


def test_short_writes_are_completed(journal, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, bytes(data)[:7]))
    journal.write(record())
    monkeypatch.undo()
    assert loaded(journal) == ([record()], [])


def test_fsync_reaches_the_file_and_its_folder(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(stat.S_ISDIR(os.fstat(file).st_mode)), real(file)))
    Journal(str(tmp_path / "durable"), fsync=True).write(record())
    Journal(str(tmp_path / "fast")).write(record())
    assert synced == [False, True]


def test_one_looks_at_a_journal_at_a_time(journal):
    """In this process and in others; a claim ends with the look that it is for."""
    journal.write(record())
    script = f"""
from cycles_lite.settlement.claim import Claim
print(Claim({journal.folder!r}).is_ours)
"""

    def elsewhere():
        return subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60).stdout.strip()

    claim = Claim(journal.folder)
    assert (claim.is_ours, Claim(journal.folder).is_ours) == (True, False)
    assert elsewhere() == b"False"
    claim.close()
    assert elsewhere() == b"True"
    assert Claim(journal.folder).is_ours


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_within_a_look_does_not_keep_the_claim(journal):
    journal.write(record())
    reader, writer = os.pipe()
    told, tells = os.pipe()
    claim = Claim(journal.folder)
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.write(tells, b"!")  # from here on it is a process of its own
        os.read(reader, 1)  # until the parent has seen what it wanted to see
        os._exit(0)
    claim.close()
    try:
        assert os.read(told, 1) == b"!"
        assert Claim(journal.folder).is_ours
    finally:
        for file in (writer, reader, told, tells):
            os.close(file)
        os.waitpid(pid, 0)


def test_a_refused_record_is_set_aside_and_never_loaded(journal):
    journal.write(record())
    (name,) = files(journal)
    journal.refuse("rsv_1")
    assert files(journal) == [name.replace(".json", ".refused")]
    assert loaded(journal) == ([], [])
    journal.refuse("rsv_1")  # by another process, with the same answer


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_the_records_keeps_nobody_waiting(journal):
    journal.write(record())
    os.mkfifo(os.path.join(journal.folder, "a.json"))
    (found,), (problem,) = loaded(journal)
    assert found.reservation_id == "rsv_1"
    assert "a.json" in problem
    assert "not a regular file" in problem
    assert len(journal.peek()) == 1


@pytest.mark.parametrize("name", ["actual", "estimate"])
@pytest.mark.parametrize("body", ["commit_body", "event_fallback_body"])
def test_a_body_whose_amount_is_no_object_is_no_record(name, body):
    data = json.loads(record().to_json().decode())
    data[body] = {**(data[body] or {}), name: 5}
    with pytest.raises(ValueError, match=body):
        Record.from_json(json.dumps(data).encode())


# ---- Where it is ----


def test_the_identity_is_the_tenants_whatever_its_key():
    assert identity("http://h", "acme", "key-1") == identity("http://h/", "acme", "key-2")
    different = {
        identity("http://h", "acme", "k"),
        identity("http://h", "other", "k"),
        identity("http://other", "acme", "k"),
        identity("http://h", None, "k"),
        identity("http://h", None, "k2"),
        identity("http://h", None, None),
    }
    assert len(different) == 6


def test_the_identity_shows_no_key():
    assert "sekrit" not in identity("http://h", None, "sekrit")
    assert hashlib.sha256(b"sekrit").hexdigest()[:16] not in identity("http://h", None, "sekrit")


def test_the_default_folder_is_in_the_home():
    folder, notice = usable_folder(None)
    assert (folder, notice) == (os.path.expanduser("~/.cycles-lite/journal"), None)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_named_folder_is_taken_as_it_is(tmp_path):
    assert usable_folder(str(tmp_path / "named")) == (str(tmp_path / "named"), None)


@pytest.fixture
def unusable_home(tmp_path, monkeypatch):
    """A home that is no folder, as good as read-only for every user."""
    home = tmp_path / "home"
    home.write_bytes(b"")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_without_a_home_it_is_in_the_temporary_folder(unusable_home):
    folder, notice = usable_folder(None)
    assert os.path.dirname(folder) == str(unusable_home)
    assert os.path.basename(folder).startswith("cycles-lite-")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert folder in notice
    assert usable_folder(None)[0] == folder


@pytest.mark.parametrize("planted", ["open folder", "link", "file"])
def test_somebody_elses_temporary_folder_is_refused(unusable_home, planted):
    """Anybody may have made it before us: only a real folder of ours that nobody else can enter will do."""
    path = unusable_home / f"cycles-lite-{os.getuid()}"
    if planted == "open folder":
        path.mkdir()
        path.chmod(0o777)
    elif planted == "link":
        private = unusable_home / "private"
        private.mkdir()
        private.chmod(0o700)
        path.symlink_to(private)
    else:
        path.write_bytes(b"")
        path.chmod(0o700)
    with pytest.raises(PermissionError, match="closed to all others"):
        usable_folder(None)


def test_below_a_folder_with_the_group_bit_the_temporary_folder_is_found_again(unusable_home):
    """A new folder there has the bit too."""
    unusable_home.chmod(0o2770)
    folder, _ = usable_folder(None)
    os.chmod(folder, 0o2700)
    assert usable_folder(None)[0] == folder


def test_a_user_whose_home_nobody_knows_has_the_temporary_folder(unusable_home, monkeypatch):
    """No HOME, and no entry for the user: `~` stands for itself then, in whatever folder the program happens to be."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    folder, notice = usable_folder(None)
    assert os.path.dirname(folder) == str(unusable_home)
    assert "home folder is not known" in notice


TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.text(min_size=1, max_size=50).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
    st.dictionaries(TEXT, JSON, min_size=1, max_size=4),
    st.sampled_from([COMMIT, EVENT]),
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(0, 2**63 - 1),
)
def test_every_record_survives_its_json(reservation_id, body, mode, recorded, floor):
    made = Record(reservation_id, "http://h", mode, body, body, recorded, floor)
    assert Record.from_json(made.to_json()) == made


def test_a_record_under_another_records_name_takes_nobodys_place(journal):
    """Its own name has the newer record of its reservation, which is the one that is loaded."""
    journal.write(record(recorded_at_ms=5))
    put(journal, "v2-" + "0" * 64 + ".json", record(recorded_at_ms=1).to_json())
    assert loaded(journal) == ([record(recorded_at_ms=5)], [])
    assert files(journal) == [file_name("rsv_1")]


def test_a_record_takes_its_own_name_from_what_is_no_record(journal):
    put(journal, file_name("rsv_1"), b"{")
    put(journal, "v2-" + "0" * 64 + ".json", record().to_json())
    found, (problem,) = loaded(journal)
    assert "set aside" in problem
    assert loaded(journal) == (found or [record()], [])
    assert files(journal) == [file_name("rsv_1", ".corrupt"), file_name("rsv_1")]


def test_a_record_whose_own_name_a_folder_has_stays(journal):
    put(journal, "old.json", record().to_json())
    os.mkdir(journal.path_of("rsv_1"))
    assert loaded(journal)[0] == []
    assert "old.json" in files(journal)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_link_to_itself_hides_no_folder_beside_it(journal):
    journal.write(record())
    parent = os.path.dirname(journal.folder)
    os.symlink("loop", os.path.join(parent, "loop"))
    assert list(journals.identity_folders(parent)) == [journal.folder]
    other = Journal(os.path.join(parent, "other"))
    assert other.has_neighbours()


def test_a_number_past_all_floats_makes_no_record(journal):
    """It is read as infinity, which could be neither sent nor written again."""
    text = record().to_json().replace(b'"tenant":"acme"', b'"tenant":1e400')
    put(journal, file_name("rsv_1"), text)
    assert journal.peek() == {}
    found, (problem,) = loaded(journal)
    assert found == []
    assert "set aside" in problem
