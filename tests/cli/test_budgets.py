"""`cycles-lite budget` on a file."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta, timezone

import pytest

from cycles_lite import Amount
from cycles_lite.cli import main
from cycles_lite.local import Authority
from cycles_lite.runtime.clock import now_ms

DAY = 24 * 3600 * 1000


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "budgets.db")


@pytest.fixture
def run(db, capsys):
    """Runs a command on the file and returns what it printed; it must do what it is asked."""

    def run(*arguments):
        capsys.readouterr()
        assert main(["budget", *arguments, "--db", db]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def rows(run):
    """The objects that a command prints."""
    return lambda *arguments: [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def test_set_makes_the_file_and_the_budget(run, rows):
    assert run("set", "tenant:acme", "TOKENS:100", "--overdraft-limit", "7") == "tenant:acme: 100 of 100 tokens left\n"
    (row,) = rows("list")
    assert row["allocated"] == {"unit": "TOKENS", "amount": 100}
    assert row["overdraft_limit"] == {"unit": "TOKENS", "amount": 7}
    assert (row["status"], row["caps"], row["period"]) == ("ACTIVE", None, None)


def test_a_limit_of_money_has_its_unit(run, rows, db, capsys):
    """A number after USD:20 would be meant in dollars, and be in microcents."""
    refused = [
        ("USD:20", "5", "5 of what"),
        ("USD_MICROCENTS:20", "5", "5 of what"),
        ("USD:20", "TOKENS:5", "the budget's unit"),
        ("USD:20", "5.5", "no whole number"),
        ("TOKENS:20", "1_0", "no whole number"),
        ("TOKENS:20", "-5", "no whole number"),
    ]
    for amount, limit, message in refused:
        arguments = ["budget", "set", "tenant:acme", amount, "--overdraft-limit", limit, "--db", db]
        try:
            status = main(arguments)
        except SystemExit as e:  # argparse's
            status = e.code
        assert status == 2
        assert message in capsys.readouterr().err
    run("set", "tenant:acme", "USD:20", "--overdraft-limit", "0")
    run("set", "tenant:acme", "USD:20", "--overdraft-limit", "USD:5")
    assert rows("list")[0]["overdraft_limit"]["amount"] == 500_000_000


def test_dollars_are_microcents(run, rows):
    assert run("set", "tenant:acme", "USD:0.05") == "tenant:acme: 0.05 of 0.05 USD left\n"
    assert rows("list")[0]["allocated"]["amount"] == 5_000_000
    assert "0.05 of 0.05 USD left" in run("list")
    assert run("credit", "tenant:acme", "USD:19.95") == "tenant:acme: 20.00 of 20.00 USD left\n"


def test_caps_come_and_go(rows):
    (made,) = rows("set", "tenant:acme", "TOKENS:5", "--caps", '{"max_tokens": 3}')
    assert made["caps"] == {"max_tokens": 3}
    assert rows("set", "tenant:acme", "TOKENS:6") == [{**made, **dict.fromkeys(("allocated", "remaining"), tokens(6))}]
    assert rows("set", "tenant:acme", "TOKENS:5", "--caps", "{}")[0]["caps"] is None


def tokens(amount):
    return {"unit": "TOKENS", "amount": amount}


# ---- Funding ----


def test_each_operation_says_what_the_budget_is_now(run):
    run("set", "tenant:acme", "TOKENS:100")
    for arguments, said in (
        (["credit", "tenant:acme", "TOKENS:50"], "150 of 150 tokens left"),
        (["debit", "tenant:acme", "TOKENS:20"], "130 of 130 tokens left"),
        (["reset-spent", "tenant:acme", "TOKENS:60", "--spent", "TOKENS:9"], "51 of 60 tokens left"),
        (["reset", "tenant:acme", "TOKENS:5"], "-4 of 5 tokens left"),
        (["repay", "tenant:acme", "TOKENS:5"], "1 of 10 tokens left"),
        (["reset-spent", "tenant:acme", "TOKENS:60"], "60 of 60 tokens left"),
        (["freeze", "tenant:acme"], "60 of 60 tokens left, FROZEN"),
        (["credit", "tenant:ACME", "tokens:1"], "61 of 61 tokens left, FROZEN"),
        (["unfreeze", "tenant:acme", "--unit", "tokens"], "61 of 61 tokens left"),
        (["close", "tenant:acme"], "61 of 61 tokens left, CLOSED"),
    ):
        assert run(*arguments) == f"tenant:acme: {said}\n"


def test_a_key_lets_it_happen_once(run, rows, db, capsys):
    run("set", "tenant:acme", "TOKENS:100")
    command = ["credit", "tenant:acme", "TOKENS:5", "--idempotency-key", "2026-11 top-up", "--reason", "more work"]
    first = rows(*command)
    run("credit", "tenant:acme", "TOKENS:1")
    assert rows(*command) == first
    assert first[0]["allocated"] == tokens(105)
    assert rows("list")[0]["allocated"] == tokens(106)
    assert main(["budget", *command[:2], "TOKENS:6", *command[3:], "--db", db]) == 2
    assert "idempotency key was used before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["debit", "tenant:acme", "TOKENS:101"], "has 100 TOKENS left"),
        (["credit", "tenant:acme", "CREDITS:1"], "no budget in CREDITS"),
        (["credit", "tenant:other", "TOKENS:1"], "tenant:other"),
        (["credit", "tenant:acme", f"TOKENS:{2**63 - 1}"], "2^63-1"),
        (["credit", "tenant:acme", "TOKENS:1", "--spent", "TOKENS:1"], "unrecognized arguments: --spent"),
        (["reset-spent", "tenant:acme", "TOKENS:1", "--spent", "CREDITS:1"], "CREDITS"),
        (["reset-spent", "tenant:acme", "TOKENS:1", "--spent", "1"], "UNIT:AMOUNT"),
        (["credit", "tenant:acme", "TOKENS:1", "--idempotency-key", ""], "idempotency_key"),
        (["credit", "tenant:acme", "TOKENS:1", "--reason", "x" * 513], "reason"),
        (["credit", "tenant:acme", "TOKENS:1", "--reason", "\udcff"], "reason"),
        (["fund", "tenant:acme", "TOKENS:1"], "invalid choice"),
        (["delete", "tenant:other"], "tenant:other"),
        (["delete", "tenant:acme", "--unit", "CREDITS"], "CREDITS"),
        (["show", "tenant:other"], "tenant:other"),
        (["history", "tenant:acme", "--unit", "EUR"], "--unit"),
        (["set", "tenant:acme", "TOKENS:1", "--from", "2026-11-15T00:00+01:00"], "period"),
        (["set", "tenant:acme", "TOKENS:1", "--rollover", "none"], "period"),
    ],
)
def test_what_a_budget_does_not_allow_is_one_line_and_status_2(arguments, said, run, rows, db, capsys):
    run("set", "tenant:acme", "TOKENS:100")
    before = rows("list")
    status, out, err = failed([*arguments, "--db", db], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert rows("list") == before


def failed(arguments, capsys):
    try:
        status = main(["budget", *arguments])
    except SystemExit as e:  # argparse ends by itself
        status = e.code
    return (status, *capsys.readouterr())


# ---- Periods ----


def test_a_budget_by_the_month(run, rows):
    command = ["set", "tenant:acme", "USD:20", "--every", "month", "--from", "2026-11-15T00:00+01:00"]
    said = run(*command, "--rollover", "cap-at-allocated")
    assert said.startswith("tenant:acme: 20.00 of 20.00 USD left, each month, until ")
    assert said.endswith("-15T00:00:00+01:00\n")
    (row,) = rows("list")
    assert (row["period"], row["rollover_policy"]) == ("month", "CAP_AT_ALLOCATED")
    assert row["anchor"] == "2026-11-15T00:00:00+01:00"
    assert row["period_start_ms"] <= now_ms() < row["period_end_ms"]
    (row,) = rows("set", "tenant:acme", "USD:20", "--every", "never")
    assert (row["period"], row["period_end_ms"], row["rollover_policy"]) == (None, None, "NONE")
    assert rows("set", "tenant:acme", "USD:20", "--every", "12H")[0]["period"] == "12h"


@pytest.fixture
def spent_by_the_day(db, run):
    """A budget whose days begin twelve hours before and after now. Three have ended; in the first, 40 were spent."""
    start = datetime.now(timezone(timedelta(hours=1))).replace(microsecond=0) - timedelta(days=3, hours=12)
    began = now_ms() - 3 * DAY
    with Authority(f"sqlite:///{db}", clock=lambda: began) as authority:
        authority.set_budget("tenant:acme", Amount.usd(100), period="day", starts=start)
        authority.fund("tenant:acme", Amount.usd(100), "RESET_SPENT", spent=Amount.usd(40))
        authority.set_budget("tenant:acme", Amount.tokens(7))
    return start


def test_history(spent_by_the_day, run, rows, capsys):
    """As a table, as values for a spreadsheet, as JSON; times with the offset of the budget's periods."""
    days = [spent_by_the_day + timedelta(days=number) for number in range(4)]
    titles, *lines = [line.split() for line in run("history", "tenant:acme").splitlines()]
    assert titles == ["START", "END", "ALLOCATED", "SPENT", "DEBT", "UNIT"]
    amounts = [["100.00", spent, "0.00", "USD"] for spent in ("40.00", "0.00", "0.00")]
    times = [[first.isoformat(), last.isoformat()] for first, last in zip(days, days[1:])]
    assert lines == [[*a, *b] for a, b in zip(times, amounts)]
    titles, *lines = csv.reader(run("history", "tenant:ACME", "--unit", "USD_MICROCENTS", "--csv").splitlines())
    assert titles == ["scope", "unit", "start", "end", "allocated", "spent", "debt"]
    assert [line[2:4] for line in lines] == times
    assert lines[0][:2] + lines[0][4:] == ["tenant:acme", "USD_MICROCENTS", "10000000000", "4000000000", "0"]
    found = rows("history", "tenant:acme")
    assert [row["spent"] for row in found] == [4_000_000_000, 0, 0]
    assert [row["start_ms"] for row in found] == [day.timestamp() * 1000 for day in days[:3]]
    assert rows("history", "tenant:acme", "--unit", "TOKENS") == []
    run("delete", "tenant:acme")
    utc = days[0].astimezone(timezone.utc).isoformat()
    assert run("history", "tenant:acme").splitlines()[1].startswith(utc)


def test_no_history_says_so(run, db, capsys):
    """On standard error, so that what reads the output finds none."""
    run("set", "tenant:acme", "TOKENS:1")
    assert main(["budget", "history", "tenant:acme", "--db", db]) == 0
    assert capsys.readouterr() == ("", "cycles-lite: tenant:acme: no period of it has ended\n")
    assert run("history", "tenant:acme", "--csv").count("\n") == 1
    assert run("history", "tenant:acme", "--json") == ""


# ---- Showing and deleting ----


@pytest.fixture
def held(db, run):
    """100 TOKENS of the tenant acme, of which two live reservations hold 30."""
    from cycles_lite import Action, CyclesClient, CyclesConfig, ReservationCreateRequest

    run("set", "tenant:acme", "TOKENS:100", "--caps", '{"max_tokens": 5}')
    with CyclesClient(CyclesConfig(base_url=f"sqlite:///{db}", tenant="acme")) as client:
        for amount in (10, 20):
            client.create_reservation(
                ReservationCreateRequest(Action("a", "b"), Amount.tokens(amount), ttl_ms=3_600_000)
            )


def facts(text):
    """What `show` says, by name."""
    title, *lines = text.splitlines()
    return title, {line[2:13].strip(): line[13:] for line in lines}


def test_show_tells_everything(held, spent_by_the_day, run, rows):
    first, second = run("show", "tenant:Acme").split("\n\n")
    title, told = facts(first)
    assert title == "tenant:acme"
    oldest = told.pop("oldest")
    assert abs(datetime.fromisoformat(oldest).timestamp() * 1000 - now_ms()) < 600_000
    assert told == {
        "left": "-23 tokens",
        "allocated": "7 tokens",
        "spent": "0 tokens",
        "reserved": "30 tokens",
        "debt": "0 tokens",
        "overdraft": "0 tokens",
        "held by": "2 live reservations",
        "status": "ACTIVE",
        "caps": '{"max_tokens": 5}',
        "period": "none: it is spent once",
    }
    told = facts(second)[1]
    start = spent_by_the_day
    assert told["period"] == f"day, from {start.isoformat()}"
    assert told["since"] == (start + timedelta(days=3)).isoformat()
    assert told["until"] == (start + timedelta(days=4)).isoformat()
    assert told["then"] == "nothing is spent, and the allocation stays"
    assert (told["left"], told["held by"]) == ("100.00 USD", "0 live reservations")
    by_unit = {row["remaining"]["unit"]: row for row in rows("show", "tenant:acme")}
    assert (by_unit["TOKENS"]["live_reservations"], by_unit["USD_MICROCENTS"]["live_reservations"]) == (2, 0)
    assert by_unit["USD_MICROCENTS"]["oldest_reservation_ms"] is None
    assert by_unit["USD_MICROCENTS"]["period_end_ms"] == (start + timedelta(days=4)).timestamp() * 1000
    run("set", "tenant:acme", "USD:100", "--rollover", "carry-forward")
    said = facts(run("show", "tenant:acme", "--unit", "usd_microcents"))[1]["then"]
    assert said == "nothing is spent, and 100.00 USD are allocated, and what is left now"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_nothing_is_wider_than_the_terminal(held, spent_by_the_day, db, monkeypatch, columns):
    """What does not fit goes on below its own beginning, and no word of it is lost."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    shown = {}
    for command in (["show", "tenant:acme"], ["credit", "tenant:acme", "USD:1"], ["history", "tenant:acme"]):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["budget", *command, "--db", db]) == 0
        shown[command[0]] = terminal.getvalue()
        assert max(map(len, shown[command[0]].splitlines())) <= columns
    words = " ".join(shown["show"].split())
    assert "then nothing is spent, and the allocation stays" in words
    until = (spent_by_the_day + timedelta(days=4)).isoformat()
    assert f"tenant:acme: 101.00 of 101.00 USD left, each day, until {until}" in " ".join(shown["credit"].split())
    assert spent_by_the_day.isoformat() in shown["history"]
    titles = {40: ["START", "SPENT", "UNIT"], 80: ["START", "ALLOCATED", "SPENT", "DEBT", "UNIT"]}
    if columns in titles:
        assert shown["history"].splitlines()[0].split() == titles[columns]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_delete(held, run, rows, db, capsys):
    """A held budget goes by force alone."""
    status, out, err = failed(["delete", "tenant:acme", "--db", db], capsys)
    assert (status, out) == (2, "")
    assert "2 live reservations hold 30 TOKENS" in err
    assert len(rows("list")) == 1
    said = run("delete", "tenant:acme", "--force")
    assert said == "tenant:acme: deleted, it had 70 of 100 tokens left, reserved 30\n"
    assert rows("list") == []
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.check() == []


def test_the_list_draws_bars(run):
    run("set", "tenant:acme/agent:bot", "TOKENS:1000")
    run("freeze", "tenant:acme/agent:bot")
    line = run("list")
    assert line.startswith("tenant:acme/agent:bot  ")
    assert line.endswith("1,000 of 1,000 tokens left, FROZEN\n")


# ---- The file, and what cannot be done ----


def test_the_file_may_come_from_the_environment(db, monkeypatch, capsys):
    monkeypatch.setenv("CYCLES_BASE_URL", f"sqlite:///{db}")
    assert main(["budget", "set", "tenant:acme", "TOKENS:1"]) == 0
    with Authority(f"sqlite:///{db}") as authority:
        assert authority.budgets()[0].allocated == Amount.tokens(1).amount


FAILURES = [
    (["budget", "list"], "which budget file?"),
    (["budget", "list", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "credit", "tenant:acme", "TOKENS:1", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "set", "tenant:acme", "TOKENS:-1", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "TOKENS:1.5", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "TOKENS", "--db", "DB"], "it has no unit"),
    (["budget", "set", "tenant:acme", "EUR:1", "--db", "DB"], "UNIT:AMOUNT"),
    (["budget", "set", "tenant:acme", "USD:-0.01", "--db", "DB"], "dollars"),
    (["budget", "set", "tenant:acme", f"TOKENS:{2**63}", "--db", "DB"], "amount"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--caps", "{", "--db", "DB"], "caps"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--caps", '{"max": 1}', "--db", "DB"], "unknown field 'max'"),
    (["budget", "set", "acme", "TOKENS:1", "--db", "DB"], "LEVEL:VALUE"),
    (["budget", "set", "tenant:A B", "TOKENS:1", "--db", "DB"], "tenant"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--every", "fortnight", "--db", "DB"], "day, week, month"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--every", "8785h", "--db", "DB"], "8784h"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--from", "2026-11-15T00:00", "--db", "DB"], "offset"),
    (["budget", "set", "tenant:acme", "TOKENS:1", "--rollover", "all", "--db", "DB"], "carry-forward"),
    (["budget", "delete", "tenant:acme", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "show", "tenant:acme", "--db", "DB"], "cycles-lite budget set"),
    (["budget", "history", "tenant:acme", "--db", "DB"], "cycles-lite budget set"),
    (["budget"], "ACTION"),
]


@pytest.mark.parametrize(("arguments", "said"), FAILURES, ids=lambda value: value if isinstance(value, str) else "-")
def test_what_cannot_be_done_is_one_line_and_status_2(arguments, said, db, capsys, tmp_path):
    arguments = [db if argument == "DB" else argument for argument in arguments]
    status, out, err = failed(arguments[1:], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []
