"""Journal folders with mutated records, and what else may lie there: nothing crashes, what is owed is settled once, and
nothing is deleted that was not settled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil

import pytest
from ledger import Ledger
from mutations import TEXTS, body, mutated, mutated_bytes
from peers import config_of

from cycles_lite import CyclesClient
from cycles_lite.cli import main
from cycles_lite.cli.output import DONE, FAILED, WRONG
from cycles_lite.runtime.clock import now_ms
from cycles_lite.settlement.journal import CORRUPT, PENDING, REFUSED, Record, file_name, identity

URL = "http://127.0.0.1:9"
LATER = {"retry_initial_delay": 600.0, "retry_max_delay": 600.0, "flush_timeout": 0.0}


def record(id, **changes):
    """A record as it is on disk, decoded."""
    spend = {"idempotency_key": "key of " + id, "actual": {"unit": "TOKENS", "amount": 42}}
    event = {**spend, "subject": {"tenant": "acme"}, "action": {"kind": "k", "name": "n"}, "metadata": {"a": 1}}
    made = {
        "version": 1,
        "reservation_id": id,
        "base_url": URL,
        "mode": "commit",
        "commit_body": spend,
        "event_fallback_body": event,
        "recorded_at_ms": now_ms(),
        "not_before_ms": None,
    }
    return {**made, **changes}


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, text in {"BASE_URL": URL, "API_KEY": "k" * 12, "TENANT": "acme", "FLUSH_TIMEOUT": "0"}.items():
        monkeypatch.setenv("CYCLES_" + name, text)
    return str(tmp_path / "journal")


def test_journal(fuzz, logged, place, monkeypatch):
    own = identity(URL, "acme", "k" * 12)
    ledger = [None]
    monkeypatch.setattr("cycles_lite.session._open_transport", lambda config: ledger[0])

    def check(case):
        del logged[:]
        here = os.path.join(place, str(case.number))  # of its own: the worker may still look at the last case's
        folder = os.path.join(here, own)
        os.makedirs(folder, 0o700)
        ledger[0] = Ledger()
        good, odd = filled(case.random, folder)
        case.show(odd=odd)
        before = contents(folder)
        step = case.random.choice(["client", "client", "list", "replay", "retry", "discard", "show", "replay to"])
        case.show(step=step, files=sorted(before))
        word = STEPS[step](case, here, folder)
        after = contents(folder)
        gone = [name for name in before if name.endswith((PENDING, REFUSED)) and name not in after]
        for name in gone if word != "discarded" else ():
            assert (
                before[name] in after.values() or is_settled(before[name], ledger[0]) or moved(before[name], after)
            ), name
        if step in ("client", "replay"):
            assert all(json.dumps("key of " + id) in ledger[0].settled for id in good), logged
            assert not [name for name in good.values() if name in after]
        assert all(times == 1 for times in ledger[0].times.values())
        assert ledger[0].changed == []
        shutil.rmtree(here, ignore_errors=True)
        return f"{step}: {word}"

    fuzz.run(check, short=80)


# ---- What lies in the folder ----


def filled(random, folder):
    """Put good records and odd files into the folder: the good ones' names by their ids, and what the odd ones are."""
    good, odd = {}, []
    for number in range(random.randint(0, 2)):
        id = f"rsv_good_{number}"
        good[id] = file_name(id)
        write(folder, good[id], json.dumps(record(id)).encode())
    for number in range(random.randint(1, 3)):
        odd.append(ODD[random.choice(list(ODD))](random, folder, number))
    return good, odd


def write(folder, name, content):
    path = os.path.join(folder, name)
    if not os.path.islink(path) and (os.path.isfile(path) or not os.path.exists(path)):  # no pipe, which would wait
        with open(path, "wb") as file:
            file.write(content)
    return name, content[:2000]


def any_name(random, number):
    """The name of a record that is not its own; or of another scheme; or of no record at all."""
    some = hashlib.sha256(b"%d" % number).hexdigest()
    return random.choice(
        [f"v2-{some}.json", f"{some}.json", f"v1-{some}.json", f"rsv_{number}.json", f"v3-{some}.json",
         f"{some}.refused",
         f"{some}.corrupt", f".{some}.json", f"{some}.json.tmp", f"\udcff{number}.json", f"a b\n{number}.json", ".json"]
    )  # fmt: skip


def _mutated(random, folder, number):
    id = f"rsv_odd_{number}"
    data = record(id)
    if random.random() < 0.3:
        data.update(random.choice(CHANGES))
    made = body(random, mutated(random, data, 2))
    return write(folder, file_name(id) if random.random() < 0.7 else any_name(random, number), made)


CHANGES = [
    {"version": 2}, {"version": 0}, {"version": True}, {"version": "1"}, {"version": 1.0},
    {"mode": "event"}, {"mode": "event", "event_fallback_body": None}, {"commit_body": None}, {"commit_body": {}},
    {"base_url": "http://other"}, {"base_url": URL + "/"}, {"base_url": " " + URL}, {"base_url": ""},
    {"recorded_at_ms": 0}, {"recorded_at_ms": 2**63 - 1}, {"recorded_at_ms": 1_650_000_000_000},
    {"not_before_ms": 2**63 - 1}, {"not_before_ms": 1}, {"not_before_ms": -1},
    {"reservation_id": ""}, {"reservation_id": "x" * 5000}, {"reservation_id": "\ud800"}, {"reservation_id": "a\nb"},
    {"reservation_id": ".."}, {"reservation_id": "degraded:key"}, {"reservation_id": "rsv_good_0"},
]  # fmt: skip


def _bytes(random, folder, number):
    made = mutated_bytes(random, json.dumps(record(f"rsv_odd_{number}")).encode())
    return write(folder, file_name(f"rsv_odd_{number}"), made)


def _other_text(random, folder, number):
    made = random.choice([b"", b"\0" * 200, b"{", b"[]", b"null", b"1", b"\xff", b"{}", b"[" * 5000, b" " * 70_000])
    return write(folder, any_name(random, number), made)


def _good_under_another_name(random, folder, number):
    return write(folder, any_name(random, number), json.dumps(record(f"rsv_{random.choice(TEXTS)}")).encode())


def _large(random, folder, number):
    data = record(f"rsv_odd_{number}")
    data["commit_body"]["metadata"] = {"x": "y" * 200_000}
    return write(folder, file_name(f"rsv_odd_{number}"), json.dumps(data).encode())


def _folder(random, folder, number):
    name = any_name(random, number)
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(folder, name))
        write(os.path.join(folder, name), "inside.json", b"{}")
    return name


def _pipe(random, folder, number):
    name = any_name(random, number)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(os.path.join(folder, name))
    return name


def _link(random, folder, number):
    name, target = any_name(random, number), random.choice(["nowhere", ".", "..", "/dev/null", "/dev/zero/x", ""])
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.symlink(target or name, os.path.join(folder, name))
    return name, target


def _locked(random, folder, number):
    written = _bytes(random, folder, number)
    if os.path.isfile(os.path.join(folder, written[0])):
        os.chmod(os.path.join(folder, written[0]), random.choice([0, 0o400, 0o200]))
    return written


def _set_aside(random, folder, number):
    id = f"rsv_aside_{number}"
    content = random.choice(
        [json.dumps(record(id)).encode(), b"{", mutated_bytes(random, json.dumps(record(id)).encode())]
    )
    return write(folder, file_name(id, random.choice([REFUSED, CORRUPT])), content)


ODD = {
    made.__name__: made
    for made in (
        _mutated, _bytes, _other_text, _good_under_another_name, _large, _folder, _pipe, _link, _locked, _set_aside,
    )
}  # fmt: skip
ODD.update({f"mutated {number}": _mutated for number in range(6)})


# ---- What is done with it ----


def _client(case, place, folder):
    with CyclesClient(config_of(URL, api_key="k" * 12, journal_dir=place, **LATER)) as client:
        client.flush(60.0)
    return "flushed"


def _command(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    assert "Traceback" not in err.getvalue()
    return status, out.getvalue(), err.getvalue()


def _list(case, place, folder):
    status, out, err = _command("journal", "list", case.random.choice([place, folder]))
    case.show(out=out, err=err)
    assert status == DONE, err
    return "listed"


def _replay(case, place, folder):
    status, out, err = _command("journal", "replay", "--timeout", "60", case.random.choice([place, folder]))
    case.show(out=out, err=err)
    assert status in (DONE, WRONG), err
    return "all" if status == DONE else "some"


def _replay_to(case, place, folder):
    status, out, err = _command("journal", "replay", "--timeout", "60", "--to", "http://127.0.0.1:10", place)
    case.show(out=out, err=err)
    assert status in (DONE, WRONG), err
    return "all" if status == DONE else "some"


def _one(case, folder):
    """The name of one record: its file's, or its reservation's."""
    names = [name for name in os.listdir(folder) if not name.endswith(".tmp")]
    return case.random.choice([*names, "rsv_good_0", "rsv_odd_0", "rsv_aside_0", "nothing", ""])


def _retry(case, place, folder):
    name = _one(case, folder)
    status, out, err = _command("journal", "retry", name, place, "--timeout", "60")
    case.show(id=name, out=out, err=err)
    assert status in (DONE, WRONG, FAILED)
    return f"status {status}"


def _show(case, place, folder):
    name = _one(case, folder)
    status, out, err = _command("journal", "show", name, place)
    case.show(id=name, out=out, err=err)
    assert status in (DONE, FAILED)
    return f"status {status}"


def _discard(case, place, folder):
    name, before = _one(case, folder), set(os.listdir(folder))
    status, out, err = _command("journal", "discard", name, place)
    case.show(id=name, out=out, err=err)
    gone = before - set(os.listdir(folder))
    assert len(gone) == (status == DONE), gone
    assert status in (DONE, FAILED)
    return "discarded" if status == DONE else "not there"


STEPS = {
    "client": _client, "list": _list, "replay": _replay, "replay to": _replay_to, "retry": _retry, "show": _show,
    "discard": _discard,
}  # fmt: skip


# ---- What must hold ----


def contents(folder):
    """The bytes of the regular files, by name."""
    found = {}
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                found[entry.name] = file.read()
    return found


def is_settled(content, ledger):
    """Whether the authority has settled what a record says."""
    try:
        told = Record.from_json(content)
    except ValueError:
        return False
    return (told.body in [data for _, _, data in ledger.settled.values()]) or any(
        id == told.reservation_id for _, id, _ in ledger.settled.values()
    )


def moved(content, after):
    """Whether a record is still there, written anew: for another server, or in event mode."""
    try:
        id = Record.from_json(content).reservation_id
    except ValueError:
        return False
    return any(file_name(id, suffix) in after for suffix in (PENDING, REFUSED, CORRUPT))
