"""`cycles-lite serve` as a process: what it says, how it ends, and what it refuses to start on."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import threading

import pytest
from serving import PATIENCE, Http, asking, command_line, committing, connect, process

from cycles_lite import Amount
from cycles_lite.cli import main
from cycles_lite.local import Authority

KEY, ADMIN_KEY = "cyc_live_secret-of-acme", "secret-of-the-admin"
OPTIONS = ("--tenant", "acme", "--api-key", KEY, "--admin-key", ADMIN_KEY, "--budget", "tenant:acme=TOKENS:1000000")

#: Seconds in which a server must be gone; it takes some milliseconds on an idle machine.
QUICKLY = 20.0


def url_of(folder):
    return f"sqlite:///{folder}/budgets.db"


def spend(http, amount=100):
    """Reserve and commit."""
    made = http("POST", "/v1/reservations", asking(amount))
    assert made.status == 200, made
    done = http("POST", "/v1/reservations/{}/commit".format(made.data["reservation_id"]), committing(amount))
    assert done.status == 200, done
    return amount


def spent(folder, scope="tenant:acme"):
    with Authority(url_of(folder), create=False) as authority:
        assert authority.check() == []
        return next(budget.spent for budget in authority.budgets() if budget.scope == scope)


# ---- Starting ----


def test_the_options_make_what_a_start_from_nothing_needs(tmp_path):
    """The first line says where; then the key, the budgets, their caps and the admin key all work."""
    options = ("--budget", "tenant:acme/agent:bot=USD:0.50", "--caps", 'tenant:acme/agent:Bot={"max_tokens": 7}')
    with process(tmp_path, *OPTIONS, *options) as server, Http(server.url, KEY) as http:
        assert re.match(r"listening on http://127\.0\.0\.1:[1-9][0-9]*\n\Z", server.first_line)
        assert http("GET", "/actuator/health").body == b'{"status":"UP"}'
        estimate = {"unit": "USD_MICROCENTS", "amount": 50_000_000}
        made = http("POST", "/v1/reservations", asking(subject={"agent": "bot", "tenant": "acme"}, estimate=estimate))
        assert (made.data["decision"], made.data["caps"]) == ("ALLOW_WITH_CAPS", {"max_tokens": 7})
        tenant = {"tenant_id": "other", "name": "other"}
        assert http("POST", "/v1/admin/tenants", tenant, X_Admin_API_Key=ADMIN_KEY).status == 201
        assert server.end() == (0, "", "")
    assert oct((tmp_path / "budgets.db").stat().st_mode & 0o777) == "0o600"


def test_it_listens_on_ipv6_too(tmp_path):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as e:
        pytest.skip(f"this machine has no IPv6 on loopback: {e}")
    with process(tmp_path, *OPTIONS, "--host", "::1") as server, Http(server.url, KEY) as http:
        assert re.match(r"listening on http://\[::1\]:[1-9][0-9]*\n\Z", server.first_line)
        assert spend(http) == 100
        assert server.end() == (0, "", "")


def test_a_restart_keeps_what_was_spent(tmp_path):
    """The same command line again, as service managers do, after an orderly end and after SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        with process(tmp_path, *OPTIONS) as server, Http(server.url, KEY) as http:
            spend(http)
            status, out, errors = server.end(number)
            assert (status, out, errors) == (0 if number == signal.SIGTERM else -number, "", "")
    assert spent(tmp_path) == 300
    with Authority(url_of(tmp_path), create=False) as authority:
        assert len(authority.keys()) == 1
        assert [budget.allocated for budget in authority.budgets()] == [1_000_000]


def test_a_restart_takes_another_allocation(tmp_path):
    with process(tmp_path, *OPTIONS) as server, Http(server.url, KEY) as http:
        spend(http)
    with process(tmp_path, "--budget", "tenant:acme=TOKENS:150") as server, Http(server.url, KEY) as http:
        (balance,) = http("GET", "/v1/balances?tenant=acme").data["balances"]
        assert (balance["spent"]["amount"], balance["remaining"]["amount"]) == (100, 50)


# ---- Ending ----

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@SIGNALS
def test_a_signal_ends_an_idle_server(tmp_path, number):
    """With a connection kept alive, one that never said anything and one in the middle of a request."""
    with process(tmp_path, *OPTIONS) as server, Http(server.url, KEY) as http, connect(server.url), connect(
        server.url
    ) as slow:
        slow.sendall(b"POST /v1/decide HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert http("GET", "/actuator/health").status == 200
        assert server.end(number, within=QUICKLY) == (0, "", "")


@SIGNALS
def test_a_signal_ends_a_busy_server(tmp_path, number):
    """Callers at work lose their connection and nothing else: all that was answered is in the file."""
    acknowledged = []
    enough = threading.Event()

    def work(url):
        try:
            with Http(url, KEY) as http:
                while True:
                    acknowledged.append(spend(http, 1))
                    if len(acknowledged) >= 40:
                        enough.set()
        except OSError:  # http.client's RemoteDisconnected is one
            pass

    with process(tmp_path, *OPTIONS) as server:
        threads = [threading.Thread(target=work, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            assert enough.wait(PATIENCE)
        finally:
            status, out, errors = server.end(number, within=QUICKLY)
            for thread in threads:
                thread.join()
    assert (status, out) == (0, "")
    assert "Traceback" not in errors
    # An answer may be lost on its way, but never what was answered; each thread had one at the most.
    assert len(acknowledged) <= spent(tmp_path) <= len(acknowledged) + len(threads)


def test_two_signals_are_one(tmp_path):
    with process(tmp_path, *OPTIONS) as server:
        server.send(signal.SIGINT)
        server.send(signal.SIGTERM)
        assert server.end(None, within=QUICKLY) == (0, "", "")


# ---- What it does not start on ----


def content(folder):
    """Every file, with what is in it: a refused start changes nothing and leaves nothing."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "stderr.txt"}


@pytest.fixture
def failing(capsys, monkeypatch):
    """Runs a command that cannot be done, in this very process; the one line that it prints."""
    pytest.importorskip("waitress", reason="the extra [server] is not installed")

    def run(*arguments):
        try:
            status = main(["serve", *arguments])
        except SystemExit as e:  # argparse ends by itself
            status = e.code
        told = capsys.readouterr()
        assert (status, told.out) == (2, "")
        assert re.match(r"cycles-lite[^\n]*: [^\n]+\n\Z", told.err)
        assert KEY not in told.err
        assert ADMIN_KEY not in told.err
        return told.err

    monkeypatch.setattr("cycles_lite.cli.serve._stop_on_signals", lambda server: pytest.fail("it has started"))
    return run


WRONG_OPTIONS = [
    (["--budget", "tenant:acme"], "SCOPE=UNIT:AMOUNT"),
    (["--budget", "tenant:acme=100"], "UNIT:AMOUNT"),
    (["--budget", "tenant:acme=TOKENS:-1"], "UNIT:AMOUNT"),
    (["--budget", "acme=TOKENS:1"], "LEVEL:VALUE"),
    (["--budget", "agent:bot=TOKENS:1"], "must begin with tenant:"),
    (["--budget", f"tenant:acme=TOKENS:{2**63}"], "amount"),
    (["--caps", "tenant:acme"], "SCOPE=JSON"),
    (["--caps", "tenant:acme={"], "JSON"),
    (["--caps", 'tenant:acme={"max_tokens": -1}'], "max_tokens"),
    (["--caps", 'tenant:acme={"max": 1}'], "unknown field 'max'"),
    (["--api-key", KEY], "--api-key needs --tenant"),
    (["--tenant", "acme", "--api-key"], "expected one argument"),
    (["--port", "http"], "invalid int value"),
]


@pytest.mark.parametrize(
    ("options", "said"), WRONG_OPTIONS, ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:40]
)
def test_wrong_options_are_one_line_and_make_no_file(tmp_path, failing, options, said):
    assert said in failing("--db", str(tmp_path / "budgets.db"), "--port", "0", *options)
    assert content(tmp_path) == {}


WRONG_FOR_THE_FILE = [
    (["--caps", "tenant:acme/agent:none={}"], "no budget at tenant:acme/agent:none"),
    (["--tenant", "A"], "tenant_id"),
    (["--tenant", "acme", "--api-key", ""], "secret"),
    (["--tenant", "acme", "--api-key", "two words"], "secret"),
    (["--tenant", "acme", "--api-key", "key-of-rival"], "--api-key: the key is another tenant's"),
    (["--budget", "tenant:acme/agent:closed=TOKENS:1"], "closed"),
    (["--admin-key", ""], "--admin-key: the secret of the admin key is empty"),
    (["--admin-key", "two words"], "admin key"),
    (["--port", "65536"], "cannot listen on 127.0.0.1:65536"),
    (["--port", "-1"], "cannot listen"),
    (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    (["--host", "a..b"], "cannot listen"),
    (["--host", ""], "cannot listen"),
]


@pytest.mark.parametrize(
    ("options", "said"), WRONG_FOR_THE_FILE, ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:40]
)
def test_what_cannot_be_done_leaves_budgets_and_keys_alone(tmp_path, failing, options, said):
    url = url_of(tmp_path)
    with Authority(url) as authority:
        authority.set_budget("tenant:acme", Amount.tokens(5))
        authority.set_budget("tenant:acme/agent:closed", Amount.tokens(5))
        authority.close("tenant:acme/agent:closed")
        authority.create_key("rival", secret="key-of-rival")
        before = authority.budgets(), authority.keys()
    assert said in failing("--db", url, "--port", "0", *options)
    with Authority(url, create=False) as authority:
        assert (authority.budgets(), authority.keys()) == before


def test_which_file_must_be_said(failing):
    assert "which budget file? Name it with --db PATH" in failing()


def test_a_taken_port_changes_nothing(tmp_path, failing):
    """A second start by mistake must not set the budgets of the server that runs."""
    with process(tmp_path, *OPTIONS) as server:
        port = server.url.rpartition(":")[2]
        again = ("--db", str(tmp_path / "budgets.db"), "--port", port, "--budget", "tenant:acme=TOKENS:1")
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in failing(*again)
        with Http(server.url, KEY) as http:
            (balance,) = http("GET", "/v1/balances?tenant=acme").data["balances"]
    assert balance["allocated"]["amount"] == 1_000_000


def make_text(path):
    path.write_bytes(b"these are my notes\n" * 100)


def make_foreign(path):
    db = sqlite3.connect(str(path))
    with db:
        db.execute("CREATE TABLE notes (text TEXT)")
    db.close()


def make_newer(path):
    Authority(f"sqlite:///{path}").shutdown()
    db = sqlite3.connect(str(path))
    with db:
        db.execute("PRAGMA user_version = 99")
    db.execute("PRAGMA journal_mode = DELETE").fetchall()
    db.close()


def make_unreadable(path):
    Authority(f"sqlite:///{path}").shutdown()
    path.chmod(0)
    if os.access(str(path), os.R_OK):
        path.chmod(0o600)
        pytest.skip("nothing is unreadable for this user")


def make_folder(path):
    path.mkdir()


FILES = [
    (make_text, "not a budget file"),
    (make_foreign, "another program"),
    (make_newer, "newer schema version 99"),
    (make_unreadable, "budgets.db"),
    (make_folder, "is a folder"),
]


@pytest.mark.parametrize(("make", "said"), FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_that_is_not_a_budget_file_is_left_alone(tmp_path, failing, make, said):
    path = tmp_path / "budgets.db"
    make(path)
    mode = path.stat().st_mode
    path.chmod(0o700)
    before = content(tmp_path)
    path.chmod(mode)
    assert said in failing("--db", str(path), "--port", "0", *OPTIONS)
    path.chmod(0o700)
    assert content(tmp_path) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path, failing):
    assert "cannot be made" in failing("--db", str(tmp_path / "none" / "budgets.db"), "--port", "0")
    assert list(tmp_path.iterdir()) == []


def test_a_process_fails_as_this_one_does(tmp_path):
    """Exit status and streams of the real thing, once."""
    with command_line(["serve", "--db", str(tmp_path / "budgets.db"), "--budget", "x"], tmp_path) as server:
        assert server.first_line == ""
        status, _, errors = server.end(None)
    assert status == 2
    assert errors.count("\n") == 1
    assert content(tmp_path) == {}


def test_without_the_extra_it_says_what_to_install(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "waitress.py").write_text("raise ModuleNotFoundError('no', name='waitress')\n", encoding="utf-8")
    path = os.pathsep.join([str(hidden), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))])
    with command_line(["serve", "--db", str(tmp_path / "budgets.db")], tmp_path, PYTHONPATH=path) as server:
        status, _, errors = server.end(None)
    assert (status, errors) == (2, "cycles-lite: serve needs waitress: pip install 'cycles_lite[server]'\n")
    assert content(tmp_path) == {}


# ---- Secrets ----


@pytest.fixture
def key_files(tmp_path):
    """Two files with the keys, as editors and `echo` write them."""
    (tmp_path / "api").write_bytes(KEY.encode() + b"\n")
    (tmp_path / "admin").write_bytes(b"  " + ADMIN_KEY.encode() + b"\r\n")
    return ["--api-key-file", str(tmp_path / "api"), "--admin-key-file", str(tmp_path / "admin")]


ENVIRONMENT = {"CYCLES_SERVE_API_KEY": KEY, "CYCLES_SERVE_ADMIN_KEY": ADMIN_KEY}


@pytest.mark.parametrize("place", ["files", "variables"])
def test_keys_from_files_and_variables(tmp_path, key_files, place):
    """Where other users of the machine do not see them."""
    files, variables = (key_files, {}) if place == "files" else ([], ENVIRONMENT)
    options = ["--tenant", "acme", "--budget", "tenant:acme=TOKENS:1000"]
    with process(tmp_path, *options, *files, **variables) as server, Http(server.url, KEY) as http:
        assert spend(http) == 100
        body = {"tenant_id": "other", "name": "other"}
        assert http("POST", "/v1/admin/tenants", body, X_Admin_API_Key=ADMIN_KEY).status == 201
        assert server.end() == (0, "", "")


TWO_PLACES = [
    ("--api-key", "--api-key-file"),
    ("--admin-key", "--admin-key-file"),
    ("--api-key", "CYCLES_SERVE_API_KEY"),
    ("--admin-key-file", "CYCLES_SERVE_ADMIN_KEY"),
]


@pytest.mark.parametrize(("first", "second"), TWO_PLACES)
def test_one_key_has_one_place(tmp_path, failing, monkeypatch, first, second):
    """Whichever would win, somebody would believe in the other."""
    options = [first, "x"]
    if second.startswith("--"):
        options += [second, "x"]
    else:
        monkeypatch.setenv(second, KEY)
    told = failing("--db", str(tmp_path / "budgets.db"), "--tenant", "acme", *options)
    assert f"{first} and {second} are given" in told
    assert content(tmp_path) == {}


def unusable_keys(folder):
    """Options that name no usable key, and what is said of them."""
    contents = {"empty": b"", "blank": b" \n", "two": b"two words", "binary": b"\xff\x00", "long": b"k" * 257}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        what = "is empty" if name in ("empty", "blank") else "visible ASCII"
        yield "file", str(folder / name), what
    yield "file", str(folder / "none"), "No such file or directory"
    yield "file", str(folder), "Is a directory"
    yield "file", "a\0b", "cannot be read"
    yield "variable", "", "is empty"
    yield "variable", "two words", "visible ASCII"
    yield "variable", "k\u00e9y", "visible ASCII"


@pytest.mark.parametrize("name", ["api", "admin"])
def test_unusable_keys_are_named_by_their_place(tmp_path, failing, monkeypatch, name):
    folder = tmp_path / "keys"
    folder.mkdir()
    for kind, value, said in unusable_keys(folder):
        place = f"--{name}-key-file" if kind == "file" else f"CYCLES_SERVE_{name.upper()}_KEY"
        with monkeypatch.context() as patched:
            if kind == "variable":
                patched.setenv(place, value)
            options = [place, value] if kind == "file" else []
            told = failing("--db", str(tmp_path / "budgets.db"), "--tenant", "acme", *options)
        assert place + ": " in told
        assert said in told
        assert "two words" not in told
        assert content(tmp_path) == {}


def test_a_key_needs_its_tenant_wherever_it_is_said(tmp_path, failing, monkeypatch):
    monkeypatch.setenv("CYCLES_SERVE_API_KEY", KEY)
    assert "CYCLES_SERVE_API_KEY needs --tenant" in failing("--db", str(tmp_path / "budgets.db"))
    assert content(tmp_path) == {}


def test_no_key_is_ever_printed(tmp_path):
    """Neither its own keys nor those that callers try, whatever they send and however it ends."""
    tried = "tried-" + KEY
    with process(tmp_path, *OPTIONS) as server:
        with Http(server.url) as http:
            for key in (KEY, tried, None):
                assert http("POST", "/v1/decide", b"{", X_Cycles_API_Key=key).status in (400, 401)
                assert http("GET", f"/v1/{key}", X_Cycles_API_Key=key).status == 404
                assert http("POST", "/v1/admin/tenants", b"{", X_Admin_API_Key=key).status == 401
            assert http("POST", "/v1/admin/tenants", b"\xff", X_Admin_API_Key=ADMIN_KEY).status == 400
        with connect(server.url) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nX-Cycles-API-Key: {KEY}\r\nContent-Length: x\r\n\r\n".encode())
            assert KEY.encode() not in sock.recv(65536)
        _, out, errors = server.end()
    for text in (server.first_line, out, errors):
        assert KEY not in text
        assert ADMIN_KEY not in text
