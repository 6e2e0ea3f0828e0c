"""`cycles-lite budget`, `key` and `tenant` on a file."""

from __future__ import annotations

import json

import pytest

from cycles_lite import Amount
from cycles_lite.cli import main
from cycles_lite.local import Authority


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "budgets.db")


def budgets(db, capsys):
    capsys.readouterr()
    assert main(["budget", "list", "--json", "--db", db]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {(row["scope_path"], row["remaining"]["unit"]): row for row in rows}


def test_set_makes_the_file_and_the_budget(db, capsys):
    assert main(["budget", "set", "tenant:acme", "TOKENS:100", "--overdraft-limit", "7", "--db", db]) == 0
    row = budgets(db, capsys)["tenant:acme", "TOKENS"]
    assert row["allocated"] == {"unit": "TOKENS", "amount": 100}
    assert row["overdraft_limit"] == {"unit": "TOKENS", "amount": 7}
    assert row["status"] == "ACTIVE"


def test_dollars_are_microcents(db, capsys):
    assert main(["budget", "set", "tenant:acme", "USD:0.05", "--db", db]) == 0
    assert budgets(db, capsys)["tenant:acme", "USD_MICROCENTS"]["allocated"]["amount"] == 5_000_000
    assert main(["budget", "list", "--db", db]) == 0
    assert "0.05 of 0.05 USD left" in capsys.readouterr().out


def test_caps_come_and_go(db):
    url = f"sqlite:///{db}"
    assert main(["budget", "set", "tenant:acme", "TOKENS:5", "--caps", '{"max_tokens": 3}', "--db", db]) == 0
    with Authority(url) as authority:
        assert authority.budgets()[0].caps == {"max_tokens": 3}
    assert main(["budget", "set", "tenant:acme", "TOKENS:5", "--caps", "{}", "--db", db]) == 0
    with Authority(url) as authority:
        assert not authority.budgets()[0].caps


def test_fund_freeze_unfreeze_close(db, capsys):
    main(["budget", "set", "tenant:acme", "TOKENS:100", "--db", db])
    for arguments, status in (
        (["fund", "tenant:acme", "TOKENS:50"], "ACTIVE"),
        (["freeze", "tenant:acme"], "FROZEN"),
        (["unfreeze", "tenant:acme", "--unit", "tokens"], "ACTIVE"),
        (["close", "tenant:acme"], "CLOSED"),
    ):
        assert main(["budget", *arguments, "--db", db]) == 0
        row = budgets(db, capsys)["tenant:acme", "TOKENS"]
        assert (row["status"], row["allocated"]["amount"]) == (status, 150)
    assert main(["budget", "fund", "tenant:acme", "TOKENS:1", "--db", db]) == 2
    assert "closed" in capsys.readouterr().err


def test_the_list_draws_bars(db, capsys):
    main(["budget", "set", "tenant:acme/agent:bot", "TOKENS:1000", "--db", db])
    main(["budget", "freeze", "tenant:acme/agent:bot", "--db", db])
    assert main(["budget", "list", "--db", db]) == 0
    line = capsys.readouterr().out
    assert line.startswith("tenant:acme/agent:bot  ")
    assert line.endswith("1,000 of 1,000 tokens left, FROZEN\n")


def test_a_key_works_until_it_is_revoked(db, capsys):
    assert main(["key", "create", "acme", "--name", "cron", "--db", db]) == 0
    secret = capsys.readouterr().out.strip()
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) == "acme"
    assert main(["key", "list", "--db", db]) == 0
    listed = capsys.readouterr().out
    assert secret not in listed
    key_id, _, tenant, state, name = listed.strip().split("\t")
    assert (tenant, state, name) == ("acme", "active", "cron")
    assert main(["key", "revoke", key_id, "--db", db]) == 0
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) is None
    main(["key", "list", "--db", db])
    assert "\trevoked\t" in capsys.readouterr().out


def test_a_closed_tenants_keys_are_revoked(db, capsys):
    main(["key", "create", "acme", "--db", db])
    secret = capsys.readouterr().out.strip()
    assert main(["tenant", "close", "acme", "--db", db]) == 0
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) is None


def test_the_file_may_come_from_the_environment(db, monkeypatch, capsys):
    monkeypatch.setenv("CYCLES_BASE_URL", f"sqlite:///{db}")
    assert main(["budget", "set", "tenant:acme", "TOKENS:1"]) == 0
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.budgets()[0].allocated == Amount.tokens(1).amount


FAILURES = [
    (["budget", "list"], "which budget file?"),
    (["budget", "list", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "fund", "tenant:acme", "TOKENS:1", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "set", "tenant:acme", "TOKENS:-1", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "TOKENS:1.5", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "TOKENS", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "EUR:1", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "USD:-0.01", "--db", "DB"], "dollars"),
    (["budget", "set", "tenant:acme", f"TOKENS:{2**63}", "--db", "DB"], "amount"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--caps", "{", "--db", "DB"], "caps"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--caps", '{"max": 1}', "--db", "DB"], "unknown field 'max'"),
    (["budget", "set", "acme", "TOKENS:1", "--db", "DB"], "LEVEL:VALUE"),
    (["budget", "set", "tenant:A B", "TOKENS:1", "--db", "DB"], "tenant"),
    (["key", "revoke", "key_1", "--db", "DB"], "cycles-lite budget set"),
    (["budget"], "ACTION"),
    ([], "COMMAND"),
    (["frobnicate"], "invalid choice"),
]


@pytest.mark.parametrize(("arguments", "said"), FAILURES, ids=lambda value: value if isinstance(value, str) else "-")
def test_what_cannot_be_done_is_one_line_and_status_2(arguments, said, db, capsys, tmp_path):
    arguments = [db if argument == "DB" else argument for argument in arguments]
    try:
        status = main(arguments)
    except SystemExit as e:  # argparse ends by itself
        status = e.code
    told = capsys.readouterr()
    assert status == 2
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_left_alone(tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_bytes(b"these are my notes\n" * 100)
    assert main(["budget", "set", "tenant:acme", "TOKENS:1", "--db", str(notes)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert notes.read_bytes() == b"these are my notes\n" * 100


def test_a_complaint_about_an_argument_of_several_lines_is_one_line(db, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["budget", "list", "--db", db, "--no\r\nsuch", "option\n"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
