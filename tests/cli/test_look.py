"""`cycles-lite balances`, `reservations`, `release` and `check`, on a file and on a server."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
from terminals import Picture, started

from cycles_lite import Action, Amount, CyclesClient, ReservationCreateRequest, Subject
from cycles_lite.cli import main
from cycles_lite.local import Authority


@pytest.fixture
def authority(tmp_path):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        authority.set_budget("tenant:acme/agent:bot", Amount.tokens(500))
        yield authority


@pytest.fixture(params=["file", "server"])
def place(request, authority, monkeypatch):
    """The environment of a user of either."""
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    if request.param == "file":
        monkeypatch.setenv("CYCLES_BASE_URL", authority.url)
        yield request.param
        return
    server_module = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with server_module.Server(authority) as server, server.in_background():
        monkeypatch.setenv("CYCLES_BASE_URL", server.url)
        monkeypatch.setenv("CYCLES_API_KEY", authority.create_key("acme").key_secret)
        yield request.param


def hold(amount, **subject):
    with CyclesClient.from_env() as client:
        request = ReservationCreateRequest(
            Action("llm.completion", "x"), Amount.tokens(amount), subject=Subject(**subject) if subject else None
        )
        return client.create_reservation(request).reservation_id


def said(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_balances(place, capsys):
    hold(10)
    lines = said(capsys, "balances").splitlines()
    assert lines[0].endswith("990 of 1,000 tokens left, reserved 10")
    assert lines[1].startswith("tenant:acme/agent:bot ")
    (line,) = said(capsys, "balances", "--agent", "bot", "--json").splitlines()
    assert json.loads(line)["remaining"] == {"unit": "TOKENS", "amount": 500}


@pytest.mark.parametrize("place", ["server"], indirect=True)
def test_a_key_alone_tells_the_tenant(place, capsys, monkeypatch):
    monkeypatch.delenv("CYCLES_TENANT")
    assert len(said(capsys, "balances").splitlines()) == 2


@pytest.mark.parametrize("place", ["file"], indirect=True)
@pytest.mark.parametrize("command", [["balances"], ["watch", "--once"]])
def test_where_nothing_tells_the_tenant_it_says_how_to_name_one(place, command, capsys, monkeypatch):
    monkeypatch.delenv("CYCLES_TENANT")
    status, _, errors = run(capsys, *command)
    assert (status, errors) == (2, ["cycles-lite: whose budgets? Name a tenant with --tenant, or set CYCLES_TENANT"])
    assert run(capsys, *command, "--tenant", "acme")[0] == 0


def test_reservations(place, capsys):
    first, second = hold(10), hold(20, agent="bot")
    header, *lines = said(capsys, "reservations").splitlines()
    assert header.split() == ["ID", "STATUS", "AMOUNT", "ACTION", "SCOPE", "CREATED", "UNTIL"]
    assert {line.split()[0] for line in lines} == {first, second}
    line = said(capsys, "reservations", "--agent", "bot").splitlines()[1]
    cells, times = line.split("  ")[:5], line.split("  ")[5:]
    assert cells == [second, "ACTIVE", "20 tokens", "llm.completion:x", "tenant:acme/agent:bot"]
    created, until = (time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S")) for text in times)
    assert 59 <= until - created <= 61
    assert len(said(capsys, "reservations", "--limit", "1").splitlines()) == 2
    assert len(said(capsys, "reservations", "--status", "COMMITTED").splitlines()) == 1
    assert json.loads(said(capsys, "reservations", "--agent", "bot", "--json"))["reservation_id"] == second


def test_release(place, capsys, authority):
    reservation_id = hold(10)
    assert said(capsys, "release", reservation_id) == "released 10 tokens\n"
    assert main(["release", reservation_id]) == 2
    assert "RESERVATION_FINALIZED" in capsys.readouterr().err


def test_check_finds_all_well(place, capsys):
    lines = said(capsys, "check").splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", step] for step in ("configuration", "reachability", "key", "tenant", "clock", "latency")
    ]


@pytest.mark.parametrize(
    ("changes", "step", "advice"),
    [
        ({"CYCLES_BASE_URL": "http://127.0.0.1:1"}, "reachability", "no answer from http://127.0.0.1:1"),
        ({"CYCLES_API_KEY": "wrong"}, "key", "set CYCLES_API_KEY to a valid one"),
        ({"CYCLES_TENANT": "other-co"}, "key", "mend CYCLES_TENANT or CYCLES_API_KEY"),
        ({"CYCLES_TENANT": ""}, "tenant", "set CYCLES_TENANT"),
    ],
)
@pytest.mark.parametrize("place", ["server"], indirect=True)
def test_check_tells_what_to_do(place, changes, step, advice, capsys, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert main(["check"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[:2] == ["FAIL", step]
    assert advice in last


def test_check_misses_budgets(tmp_path, capsys, monkeypatch):
    with Authority(f"sqlite:///{tmp_path}/empty.db") as authority:
        monkeypatch.setenv("CYCLES_BASE_URL", authority.url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    assert main(["check"]) == 1
    assert "tenant acme has no budget" in capsys.readouterr().out


def test_check_tells_how_to_make_a_missing_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CYCLES_BASE_URL", f"sqlite:///{tmp_path}/none.db")
    assert main(["check"]) == 1
    assert "cycles-lite budget set" in capsys.readouterr().out


def test_check_lists_variables_that_look_like_settings_and_are_none(capsys, caplog, monkeypatch):
    monkeypatch.setenv("CYCLES_MODE", "off")
    for name in ("CYCLES_TENANTS", "CYCLES_RETRY_FLUSH_TIMEOUT", "CYCLES_APIKEY", "CYCLES_SERVE_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    *warnings, last = said(capsys, "check").splitlines()
    assert last == "ok    configuration  mode off"
    assert [" ".join(line.split()) for line in warnings] == [
        "warn variable CYCLES_APIKEY is set, which is no setting: did you mean CYCLES_API_KEY?",
        "warn variable CYCLES_RETRY_FLUSH_TIMEOUT is set, which is no setting: did you mean CYCLES_FLUSH_TIMEOUT?",
        "warn variable CYCLES_TENANTS is set, which is no setting: did you mean CYCLES_TENANT?",
    ]
    assert caplog.records == []


def test_check_without_configuration_is_one_line_and_2(capsys):
    assert main(["check"]) == 2
    assert capsys.readouterr().err.startswith("cycles-lite: CYCLES_BASE_URL is not set")


def test_check_in_mode_off(capsys, monkeypatch):
    monkeypatch.setenv("CYCLES_MODE", "off")
    assert said(capsys, "check") == "ok    configuration  mode off\n"


# ---- --warn-below ----


def run(capsys, *arguments):
    """The exit status, and the lines of both streams."""
    capsys.readouterr()
    status = main(list(arguments))
    told = capsys.readouterr()
    return status, told.out.splitlines(), told.err.splitlines()


def test_balances_warns_of_budgets_of_which_less_is_left(place, capsys):
    hold(401, agent="bot")
    assert run(capsys, "balances", "--warn-below", "19%")[::2] == (0, [])
    status, lines, warnings = run(capsys, "balances", "--warn-below", "20%")
    assert (status, len(lines)) == (3, 2)
    assert warnings == ["cycles-lite: tenant:acme/agent:bot: 99 of 500 tokens left, reserved 401, below 20%"]
    status, _, warnings = run(capsys, "balances", "--warn-below", "0.6")
    assert (status, len(warnings)) == (3, 2)
    assert run(capsys, "balances")[::2] == (0, [])


def test_what_is_just_as_much_is_not_below(place, capsys, authority):
    """7 of 100 are 7 percent, whatever binary fractions make of it."""
    authority.set_budget("tenant:acme/app:web", Amount.tokens(100))
    hold(93, app="web")
    assert run(capsys, "balances", "--app", "web", "--warn-below", "7%")[0] == 0
    assert run(capsys, "balances", "--app", "web", "--warn-below", "0.07")[0] == 0
    assert run(capsys, "balances", "--app", "web", "--warn-below", "7.01%")[0] == 3


def test_the_filters_apply_to_the_warning(place, capsys):
    hold(450, agent="bot")
    assert run(capsys, "balances", "--agent", "other", "--warn-below", "20%") == (0, [], [])
    assert run(capsys, "balances", "--agent", "bot", "--warn-below", "20%")[0] == 3


def test_json_stays_json_when_there_is_a_warning(place, capsys):
    hold(450, agent="bot")
    status, lines, warnings = run(capsys, "balances", "--json", "--warn-below", "20%")
    assert status == 3
    assert [json.loads(line)["scope_path"] for line in lines] == ["tenant:acme", "tenant:acme/agent:bot"]
    assert len(warnings) == 1


def test_a_budget_of_nothing_is_never_low(place, capsys, authority):
    authority.set_budget("tenant:acme", Amount.credits(0))
    assert run(capsys, "balances", "--warn-below", "100%")[::2] == (0, [])


def test_check_warns_once_all_else_is_well(place, capsys):
    hold(450, agent="bot")
    assert run(capsys, "check")[0] == 0
    status, lines, warnings = run(capsys, "check", "--warn-below", "20%")
    assert (status, warnings) == (3, [])
    assert lines[-1] == "LOW   budgets        tenant:acme/agent:bot: 50 of 500 tokens left, reserved 450, below 20%"
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * 6
    assert run(capsys, "check", "--warn-below", "10%")[0] == 0


@pytest.mark.parametrize("place", ["server"], indirect=True)
def test_what_is_wrong_comes_first(place, capsys, monkeypatch):
    hold(450, agent="bot")
    monkeypatch.setenv("CYCLES_API_KEY", "wrong")
    status, lines, _ = run(capsys, "check", "--warn-below", "20%")
    assert status == 1
    assert "LOW" not in "".join(lines)


@pytest.mark.parametrize("command", ["check", "balances"])
@pytest.mark.parametrize("text", ["20", "0", "-1%", "120%", "off", ""])
def test_a_part_that_is_none_is_a_mistake(command, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, f"--warn-below={text}"])
    assert ended.value.code == 2
    assert f"{text!r} is not a part of a whole, such as 0.2 or 20%" in " ".join(capsys.readouterr().err.split())


def test_help_tells_the_status(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "  3       check and balances: less is left of a budget than --warn-below says" in capsys.readouterr().out


def test_check_and_release_in_json(place, capsys):
    rows = [json.loads(line) for line in said(capsys, "check", "--json").splitlines()]
    assert [(row["result"], row["step"]) for row in rows] == [
        ("ok", step) for step in ("configuration", "reachability", "key", "tenant", "clock", "latency")
    ]
    assert rows[3]["text"] == "acme, with 2 budgets"
    answer = json.loads(said(capsys, "release", hold(10), "--json"))
    assert (answer["status"], answer["released"]) == ("RELEASED", {"unit": "TOKENS", "amount": 10})


@pytest.mark.parametrize("place", ["file"], indirect=True)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_nothing_wraps(place, authority, width):
    """And no name steers the terminal; an id can be copied from 80 columns on."""
    authority.set_budget("tenant:acme/workspace:a-rather-long-name/agent:another-rather-long-name", Amount.tokens(5))
    with CyclesClient.from_env(journal_enabled=False) as client:
        action = Action("llm.completion", "\x1b[2Jname\u202e")
        id = client.create_reservation(ReservationCreateRequest(action, Amount.tokens(7))).reservation_id
    program = "from cycles_lite.cli import main; exit(main(['balances']) or main(['reservations']))"
    with started([sys.executable, "-c", program], Picture(), width) as shown:
        status, text = shown.end()
    assert (status, shown.picture.widest <= width) == (0, True)
    bars, rows = re.split("█ left  ▒ reserved.*\n", text)
    assert "993 of 1,000 tokens left, reserved 7" in bars
    assert len(rows.splitlines()) == 2
    assert (id in rows) == (width >= 80)
    assert ("2Jname" in rows) == (width == 200)
