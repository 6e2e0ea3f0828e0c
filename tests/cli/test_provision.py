"""`cycles-lite key` and `tenant` on a file."""

from __future__ import annotations

import json

import pytest

from cycles_lite.cli import main
from cycles_lite.local import Authority


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "budgets.db")


def test_a_key_works_until_it_is_revoked(db, capsys):
    assert main(["key", "create", "acme", "--name", "cron", "--db", db]) == 0
    secret = capsys.readouterr().out.strip()
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) == "acme"
    assert main(["key", "list", "--db", db]) == 0
    listed = capsys.readouterr().out
    assert secret not in listed
    header, row = [line.split("  ") for line in listed.splitlines()]
    assert [title.strip() for title in header if title] == ["KEY", "PREFIX", "TENANT", "STATE", "CREATED", "NAME"]
    key_id, _, tenant, state, _, name = [text for text in row if text]
    assert (tenant.strip(), state, name) == ("acme", "active", "cron")
    assert main(["key", "revoke", key_id, "--db", db]) == 0
    assert capsys.readouterr().out == f"{key_id} of tenant acme is revoked\n"
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) is None
    main(["key", "list", "--db", db])
    assert "  revoked  " in capsys.readouterr().out


def test_a_closed_tenants_keys_are_revoked(db, capsys):
    main(["key", "create", "acme", "--db", db])
    secret = capsys.readouterr().out.strip()
    assert main(["tenant", "close", "acme", "--db", db]) == 0
    assert capsys.readouterr().out == "tenant acme is closed\n"
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(secret) is None


def test_all_of_it_in_json(db, capsys):
    """One object for each key or tenant; the secret is told when the key is made, and never again."""

    def told(*arguments):
        assert main([*arguments, "--json", "--db", db]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (made,) = told("key", "create", "acme", "--name", "cron")
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.authenticate(made.pop("key_secret")) == "acme"
    assert told("key", "list") == [made]
    assert (made["tenant_id"], made["revoked_at"], made["permissions"]) == ("acme", None, [])
    (revoked,) = told("key", "revoke", made["key_id"])
    assert revoked == {**made, "revoked_at": revoked["revoked_at"]}
    assert made["created_at"] <= revoked["revoked_at"]
    (closed,) = told("tenant", "close", "acme")
    assert (closed["tenant_id"], closed["status"]) == ("acme", "CLOSED")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["key", "revoke", "key_1", "--db", "DB"], "cycles-lite budget set"),
        (["key", "create", "Acme", "--db", "DB"], "tenant_id"),
        (["tenant", "close", "acme", "--db", "DB"], "cycles-lite budget set"),
        (["key"], "ACTION"),
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments, said, db, capsys):
    try:
        status = main([db if argument == "DB" else argument for argument in arguments])
    except SystemExit as e:  # argparse ends by itself
        status = e.code
    told = capsys.readouterr()
    assert (status, told.out, told.err.count("\n")) == (2, "", 1)
    assert said in told.err


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
