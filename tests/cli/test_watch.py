"""`cycles-lite watch`: what it shows is right, fits, and goes on; and the terminal is as it was when it has ended."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from peers import Peer, answer, client_of, refusal
from serving import PATIENCE, ROOT, kept_port, serving
from terminals import on_terminal

from cycles_lite import (
    Action,
    Amount,
    Balance,
    BudgetDenied,
    CyclesClient,
    ReservationCreateRequest,
    ReservationSummary,
    SignedAmount,
    Subject,
    Unit,
)
from cycles_lite.cli import main
from cycles_lite.cli.frame import Sheet, State, frame
from cycles_lite.cli.more import Denial, More
from cycles_lite.cli.screen import Screen
from cycles_lite.cli.seen import Change, Seen, changes, tree
from cycles_lite.cli.terminal import UNICODE, cells
from cycles_lite.cli.watch import _in_lines, look
from cycles_lite.local import Authority
from cycles_lite.local.periods import ClosedPeriod
from cycles_lite.runtime.clock import now_ms

BOT = "tenant:acme/workspace:research/agent:bot"


def balance(scope, allocated, spent=0, reserved=0, debt=0, unit=Unit.TOKENS, **more):
    left = SignedAmount(unit, allocated - spent - reserved - debt)
    amounts = {"allocated": allocated, "spent": spent, "reserved": reserved, "debt": debt}
    return Balance(scope.rpartition("/")[2], scope, left, **{k: Amount(unit, v) for k, v in amounts.items()}, **more)


def reservation(id, scope=BOT, amount=10, name="x", at=0):
    subject, action = Subject(tenant="acme"), Action("llm.completion", name)
    return ReservationSummary(id, "ACTIVE", subject, action, Amount.tokens(amount), at, at + 60_000, scope, [scope])


def seen(*balances, live=(), has_more=False, at=0, more=None):
    return Seen(at, balances, live, has_more, more)


def denial(id, age=0, amount="9 tokens", scope=BOT):
    return Denial(id, age, amount, scope)


# ---- What is seen ----


def test_the_tree():
    """A scope stands below the nearest one that has a budget."""
    rows = tree(seen(*(balance(scope, 1) for scope in (BOT, "tenant:acme", "tenant:acme/a:x", "tenant:acme/a:x/b:y"))))
    assert [row.label for row in rows] == ["tenant:acme", "  a:x", "    b:y", "  workspace:research/agent:bot"]
    two = seen(balance("a:b/c:d", 1), balance("a:b/c:d", 1, unit=Unit.CREDITS))
    assert [row.label for row in tree(two)] == ["a:b/c:d"] * 2


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([balance("a:b", 100, 10, 5)], [balance("a:b", 100, 10, 7)], []),
        ([balance("a:b", 100, 10)], [balance("a:b", 100, 40)], [("spent", "30 tokens", "a:b")]),
        ([balance("a:b", 100, 40)], [balance("a:b", 100, 0)], [("unspent", "40 tokens", "a:b")]),
        ([balance("a:b", 100)], [balance("a:b", 300)], [("funded", "200 tokens", "a:b")]),
        ([balance("a:b", 300)], [balance("a:b", 100)], [("cut", "200 tokens", "a:b")]),
        ([balance("a:b", 9)], [balance("a:b", 9, debt=3)], [("in debt", "3 tokens", "a:b")]),
        ([balance("a:b", 9, debt=3)], [balance("a:b", 9)], [("repaid", "3 tokens", "a:b")]),
        ([balance("a:b", 9)], [balance("a:b", 9, is_over_limit=True)], [("over limit", "", "a:b")]),
        ([balance("a:b", 9, is_over_limit=True)], [balance("a:b", 9)], [("in limit", "", "a:b")]),
        ([], [balance("a:b", 9)], [("added", "9 tokens", "a:b")]),
        ([balance("a:b", 9)], [], [("removed", "9 tokens", "a:b")]),
        ([Balance("a:b", "a:b", SignedAmount(Unit.TOKENS, 1))], [balance("a:b", 9)], [("funded", "9 tokens", "a:b")]),
    ],
)
def test_what_has_changed(before, after, told):
    assert [change[1:] for change in changes(seen(*before), seen(*after, at=7))] == told
    assert {change.at_ms for change in changes(seen(*before), seen(*after, at=7))} <= {7}


def test_what_was_spent_is_told_once():
    """Of the lowest budgets that it was taken from, though those above them have it, too."""
    scopes = "tenant:acme", "tenant:acme/agent:a", "tenant:acme/agent:b"
    before = seen(*(balance(scope, 100) for scope in scopes), balance("tenant:acme", 9, unit=Unit.CREDITS))
    spent = [balance(scope, 100, amount) for scope, amount in zip(scopes, (35, 10, 20))]
    after = seen(*spent, balance("tenant:acme", 9, 1, unit=Unit.CREDITS))
    assert [change[1:] for change in changes(before, after)] == [
        ("spent", "1 credits", "tenant:acme"),
        ("spent", "5 tokens", "tenant:acme"),
        ("spent", "10 tokens", "tenant:acme/agent:a"),
        ("spent", "20 tokens", "tenant:acme/agent:b"),
    ]


def test_reservations_come_and_go():
    one, other = reservation("rsv_1"), reservation("rsv_2", amount=20)
    assert [change[1:] for change in changes(seen(live=[one]), seen(live=[other]))] == [
        ("ended", "10 tokens", BOT),
        ("reserved", "20 tokens", BOT),
    ]
    assert not list(changes(seen(live=[one], has_more=True), seen(live=[other])))


def test_a_denial_is_told_once_and_after_all_that_was_told():
    """Also one that was on its way while the last look came to its end, and where clocks differ."""
    first = seen(more=More(denials=[denial("1", 50), denial("2", 2)]), at=1000)
    assert list(changes(None, first)) == [
        Change(998, "denied", "9 tokens", BOT),
        Change(950, "denied", "9 tokens", BOT),
    ]
    then = seen(more=More(denials=[denial("2", 502), denial("3", 501, "", ""), denial("4", 10)]), at=1500)
    assert list(changes(first, then)) == [Change(1490, "denied", "9 tokens", BOT), Change(1001, "denied", "", "")]
    assert not list(changes(then, seen(more=None, at=1600)))
    assert first.lasting == first._replace(at_ms=7, more=More()).lasting


# ---- What it looks like ----

HOSTILE = "tenant:acme/agent:\x1b[2J\u202e\n中文"
STATE = State(
    seen(
        balance("tenant:acme", 10**6, 10**5, 7, 10**5, is_over_limit=True),
        balance(HOSTILE, 9),
        live=[reservation(f"rsv_{n}", HOSTILE, name="\x1b]0;x\x07") for n in range(50)],
        has_more=True,
        more=More(
            {(HOSTILE, "TOKENS"): "FROZEN\x1b[2J\u202e"},
            {(HOSTILE, f"TOKENS{n}"): [ClosedPeriod(HOSTILE, "TOKENS", n, n + 1, 9, 5, 0)] * 12 for n in range(20)},
            is_cut=True,
        ),
    ),
    [Change(n * 1000, "spent", "5 tokens", HOSTILE) for n in range(30)],
    "no answer \x1b[31m from\nanywhere",
)


@pytest.mark.parametrize("height", [4, 24, 200])
@pytest.mark.parametrize("width", [12, 40, 80, 200])
def test_a_frame_fits_and_holds_no_control_character(width, height):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    lines = frame(STATE, Sheet.of(stream, width, height), "title", 60_000)
    assert len(lines) <= height
    assert max(map(cells, lines)) <= width
    assert all(line.isprintable() for line in lines)
    if height == 24 and width >= 40:
        text = "\n".join(lines)
        sections = "Live reservations: 50 or more", "Last minute", "Closed periods of the first budgets"
        for part in ("title", "no answer", *sections, " more lines"):
            assert part in text
    if height == 200 and width >= 40:
        text = "\n".join(lines)
        assert UNICODE["columns"][4] * 12 in text
        assert "FROZEN" in text


def test_a_stream_that_cannot_encode_a_name_is_not_given_it():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    lines = frame(STATE, Sheet.of(stream, 80, 100), "title", 60_000)
    assert "\n".join(lines).isascii()
    assert max(map(len, lines)) <= 80


# ---- On a terminal ----


@pytest.fixture
def authority(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/budgets.db"
    monkeypatch.setenv("CYCLES_BASE_URL", url)
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(1000))
        authority.set_budget("tenant:acme/workspace:a-rather-long-name/agent:bot", Amount.tokens(500))
        yield authority


def spend(amount, **subject):
    subject = Subject(**subject) if subject else None
    with CyclesClient.from_env(journal_enabled=False) as client:
        with client.reserve(Amount.tokens(amount), Action("a", "b"), subject=subject) as guard:
            guard.commit(Amount.tokens(amount))


def hold(amount, name="b", **subject):
    with CyclesClient.from_env(journal_enabled=False) as client:
        subject = Subject(**subject) if subject else None
        request = ReservationCreateRequest(Action("a", name), Amount.tokens(amount), subject=subject)
        return client.create_reservation(request).reservation_id


WATCH = ["watch", "--interval", "0.2"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_it_is_one_screen(authority, width):
    """It is drawn in place, fits before and after the terminal has another size, and is gone in the end."""
    hold(7, "\x1b[2Jname")
    with on_terminal(WATCH, width) as shown:
        text = shown.see("Live reservations: 1(.|\n)*left")
        assert {"?1049", "?25", "?7"} & shown.picture.modes == {"?1049"}
        assert "993 of 1,000 tokens left, reserved 7" in " ".join(text.split())
        spend(25, agent="bot", workspace="a-rather-long-name")
        shown.see("s  spent +25 tokens")
        assert shown.picture.widest <= width
        shown.resize(width - 9, 20)
        shown.wait(lambda: shown.picture.widest <= width - 9 and "Last minute" in shown.picture.text, "the new size")
        shown.type(b"x")  # is no key of its own, and is not shown
        spend(3)
        shown.see("s  spent +3 tokens")
        assert shown.picture.widest <= width - 9
        assert len(shown.picture.lines) <= 20
        shown.type(b"q")
        assert shown.process.wait(PATIENCE) == 0
        assert shown.settings() == shown.before
        shown.end()
        assert shown.picture.modes == {"?25", "?7"}


@pytest.mark.parametrize(("how", "status"), [("Ctrl-C", 130), ("SIGQUIT", 131), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_it_and_the_terminal_is_as_before(authority, how, status):
    with on_terminal(WATCH, NO_COLOR="1") as shown:
        shown.see("of 1,000 tokens")
        if how == "Ctrl-C":
            shown.type(b"\x03")
        else:
            shown.process.send_signal(getattr(signal, how))
        assert shown.process.wait(PATIENCE) == status
        assert shown.settings() == shown.before
        shown.end()
        assert shown.picture.modes == {"?25", "?7"}
        assert shown.picture.colours == set()


def test_only_lines_that_are_others_are_drawn(capsys):
    """So that nothing flickers; where the size is another one, all are."""
    with Screen() as screen:
        screen.show(["one", "two", "three"], (80, 24))
        capsys.readouterr()
        screen.show(["one", "2"], (80, 24))
        assert capsys.readouterr().out == "\x1b[2H\x1b[K2\x1b[3H\x1b[J"
        screen.show(["one", "2"], (80, 24))
        assert capsys.readouterr().out == ""
        screen.show(["one", "2"], (40, 24))
        assert capsys.readouterr().out == "\x1b[2J\x1b[1H\x1b[Kone\x1b[2H\x1b[K2"


def test_an_exception_leaves_the_terminal_as_it_was(capsys):
    with pytest.raises(ZeroDivisionError), Screen():
        1 / 0  # noqa: B018
    begun, ended = capsys.readouterr().out.split("\x1b[?7l")
    assert "\x1b[?1049h" in begun
    assert ended.endswith("\x1b[?1049l")


def test_a_terminal_that_obeys_nothing_gets_lines(authority):
    with on_terminal(WATCH, TERM="dumb") as shown:
        shown.see("##  1,000 of 1,000 tokens")
        shown.type(b"\x03")
        assert shown.end()[0] == 130
        assert not shown.picture.colours
        assert shown.picture.modes == {"?25", "?7"}
        assert shown.picture.widest <= 80


def test_it_says_that_the_server_is_gone_and_goes_on_when_it_is_back(authority, monkeypatch):
    server_module = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    monkeypatch.setenv("CYCLES_API_KEY", authority.create_key("acme").key_secret)
    monkeypatch.delenv("CYCLES_TENANT")  # the key's tenant is asked for
    with kept_port() as port, on_terminal(WATCH, CYCLES_BASE_URL=f"http://127.0.0.1:{port}") as shown:
        with server_module.Server(authority, port=port) as server, server.in_background():
            shown.see("1,000 of 1,000 tokens left")
        text = shown.see(r"no answer from(.|\n)*shown is what was so")
        assert "1,000 of 1,000 tokens left" in text
        with server_module.Server(authority, port=port) as server, server.in_background():
            authority.set_budget("tenant:acme", Amount.tokens(3000))
            text = shown.see("funded +2,000 tokens")
            assert "no answer" not in text
            shown.type(b"q")
            assert shown.end()[0] == 0


# ---- Where there is no terminal ----


@contextmanager
def in_lines(*arguments, **environment):
    """`watch` in a pipe; what it writes is read line by line."""
    words = [sys.executable, "-m", "cycles_lite", *WATCH, *arguments]
    whole = {**os.environ, "PYTHONPATH": ROOT, "PYTHONUTF8": "1", **environment}
    process = subprocess.Popen(words, env=whole, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8")
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        watch.join()
        process.kill()
        process.stdout.close()
        process.wait()


def read_to(process, pattern):
    """The lines up to one that has what is looked for."""
    lines = [""]
    while not re.search(pattern, lines[-1]):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return "".join(lines)


def test_in_a_pipe_there_is_a_block_for_each_change(authority):
    with in_lines() as process:
        first = read_to(process, "Live reservations: 0")
        assert "1,000 of 1,000 tokens left" in first
        assert "\x1b" not in first
        spend(5)
        assert "995 of 1,000 tokens left" in read_to(process, "spent +5 tokens +tenant:acme")
        authority.set_budget("tenant:acme", Amount.tokens(2000))
        last = read_to(process, "funded +1,000 tokens +tenant:acme")
        assert "1,995 of 2,000 tokens left" in last
        assert "spent" not in last
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows do not tell")
def test_it_ends_when_nobody_reads_any_more(authority):
    """Though there is nothing new to be written."""
    with in_lines() as process:
        read_to(process, "Live reservations: 0")
        process.stdout.close()
        assert process.wait(PATIENCE) == 0


def test_in_json_each_state_is_a_line(authority):
    id = hold(3)
    with in_lines("--json") as process:
        first = json.loads(process.stdout.readline())
        assert first["balances"][0]["scope_path"] == "tenant:acme"
        assert [row["reservation_id"] for row in first["reservations"]] == [id]
        assert (first["changes"], first["has_more"]) == ([], False)
        authority.set_budget("tenant:acme", Amount.tokens(2000))
        (change,) = json.loads(process.stdout.readline())["changes"]
        assert (change["what"], change["amount"], change["scope"]) == ("funded", "1,000 tokens", "tenant:acme")
        process.terminate()
        assert process.wait(PATIENCE) == 143


def test_a_wrong_key_is_said_plainly_and_it_goes_on(authority, monkeypatch):
    server_module = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    told = queue.Queue()
    with server_module.Server(authority, listeners=[told.put]) as server, server.in_background():
        with in_lines(CYCLES_BASE_URL=server.url, CYCLES_API_KEY="cyc_live_later") as process:
            assert server.url in process.stdout.readline()
            assert process.stdout.readline().startswith("the key is not accepted: set CYCLES_API_KEY to a valid one")
            for _ in range(3):
                assert told.get(timeout=PATIENCE).status == 401
            authority.create_key("acme", secret="cyc_live_later")
            assert "not accepted" not in read_to(process, "1,000 of 1,000 tokens left")  # it is said once


def test_one_that_speaks_the_protocol_alone_is_asked_once():
    bodies = {"/v1/reservations": {"reservations": []}, "/v1/balances": {"balances": []}}

    def told(line, request):
        body = bodies.get(request.target.partition("?")[0])
        line.send(refusal("NOT_FOUND", 404) if body is None else answer(body))

    with Peer(told) as peer:
        with in_lines("--tenant=acme", CYCLES_BASE_URL=peer.url, CYCLES_API_KEY="k") as process:
            read_to(process, "no budgets")
            assert peer.wait_for(9, PATIENCE)
        paths = [request.target.partition("?")[0] for request in peer.requests]
    assert paths.count("/v1/budgets/periods") == 1


@pytest.mark.parametrize(
    ("before", "asks"), [(State(), True), (State(seen()), False), (State(seen(), trouble="no answer"), True)]
)
def test_after_trouble_it_may_be_another_one_and_is_asked_again(before, asks):
    steps = [answer({"reservations": []}), answer({"balances": []}), refusal("INTERNAL_ERROR", 500)]
    with Peer(*steps) as peer, client_of(peer, retry_enabled=False) as client:
        assert look(client, {"tenant": "acme"}, before).more is None
        assert len(peer.requests) == 2 + asks


def test_news_is_told_once_whatever_the_clock_does(capsys):
    """Here it is set back by a second, and there is trouble before the last news was seen."""
    first, second = Change(2000, "denied", "1 tokens", BOT), Change(1001, "spent", "2 tokens", BOT)
    looks = [
        State(seen(at=2000), [first]),
        State(seen(balance(BOT, 1), at=1001), [second, first]),
        State(seen(balance(BOT, 1), at=1001), [second, first]),
        State(seen(balance(BOT, 1), at=1001), [second, first], "no answer", "cause"),
        State(seen(balance(BOT, 1), at=1001), [second, first], "no answer", "cause"),
    ]
    last, came = Change(1500, "spent", "3 tokens", BOT), []
    looks += [looks[-1]._replace(changes=[last, second, first]), State(looks[1].seen, [last, second, first])]

    class Poller:
        client, news = None, threading.Event()

        def state(self):
            self.news.set()
            if len(looks) == 1:
                came.append(2)
            return looks.pop(0)

    _in_lines(Poller(), came, True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[one["amount"] for one in each.get("changes", [])] for each in told] == [
        ["1 tokens"],
        ["2 tokens"],
        [],
        ["3 tokens"],
    ]


def test_from_a_file_and_from_a_server_it_shows_the_same(tmp_path, capsys, monkeypatch):
    """But for denials, which only the server remembers."""
    now = [now_ms() - 9_000_000]  # from the file it is read at the real time, half an hour before the server's
    with serving(tmp_path, clock=lambda: now[0]) as served:
        served.authority.set_budget("tenant:acme", Amount.tokens(1000), period="1h")
        monkeypatch.setenv("CYCLES_API_KEY", served.key)
        monkeypatch.setenv("CYCLES_BASE_URL", served.url)
        for amount in (0, 500, 1000):
            spend(amount, tenant="acme")
            now[0] += 3_600_000
        with CyclesClient.from_env() as client, pytest.raises(BudgetDenied):
            client.create_reservation(ReservationCreateRequest(Action("a", "b"), Amount.tokens(1001), Subject("acme")))
        out = {}
        for url in (served.url, served.authority.url):
            monkeypatch.setenv("CYCLES_BASE_URL", url)
            monkeypatch.setenv("CYCLES_TENANT", "acme")
            assert main(["watch", "--once"]) == 0
            out[url] = capsys.readouterr().out
            assert main(["watch", "--once", "--json"]) == 0
            periods = json.loads(capsys.readouterr().out)["periods"]
            assert [one["spent"] for one in periods] == [0, 500, 1000]
    for text in out.values():
        assert re.search(r"tenant:acme +·▄█ +1,000 +1,000 tokens +20", text)
    assert re.search(r"denied +1,001 tokens +tenant:acme", out[served.url])
    assert "denied" not in out[served.authority.url]


def test_once(authority, capsys, monkeypatch):
    hold(3)
    authority.set_budget("tenant:acme", Amount.tokens(1000), period="month")
    authority.freeze("tenant:acme")
    assert main(["watch", "--once"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"997 of 1,000 tokens left, reserved 3, FROZEN, until \d{4}-\d\d-\d\d ", out)
    assert "Live reservations: 1" in out
    monkeypatch.setenv("CYCLES_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CYCLES_API_KEY", "x")
    assert main(["watch", "--once"]) == 2
    assert "no answer from http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "x", "1e9"])
def test_an_interval_that_is_none(interval, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--interval=" + interval])
    assert ended.value.code == 2
    assert "is not a number of seconds in 0.1..86400" in capsys.readouterr().err
