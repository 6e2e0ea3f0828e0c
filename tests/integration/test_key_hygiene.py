"""The API key is nowhere but in the header that it belongs to, whatever fails and whoever echoes it."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import traceback
import warnings
from urllib.parse import quote

import pytest
from peers import ACTION, Peer, allowed, answer, chunk, committed, head, refusal, silent

from cycles_lite import (
    Amount,
    CommitRequest,
    CyclesClient,
    CyclesConfig,
    CyclesError,
    EventCreateRequest,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationExtendRequest,
    cycles,
    with_cycles,
)
from cycles_lite.protocol.wire import COMMIT_RESERVATION, EXTEND_RESERVATION
from cycles_lite.transport.deadline import deadline_in

pytestmark = pytest.mark.thorough

#: One such as servers make, and one that JSON, URLs and Python write in several ways.
KEYS = {"plain": "cyc_live_HyG1eNe0123456789abcdef", "awkward": "cyc_live_HyG1eNe/\"+=\\%41&<'>"}

ESTIMATE = Amount.tokens(100)


# ---- Servers that echo: each makes the bytes of an answer from the key ----


def in_the_message(key):
    return refusal("FORBIDDEN", 403, f"the key {key} may not do this")


def in_the_message_of_a_final_refusal(key):
    return refusal("BUDGET_EXCEEDED", 409, f"too little for {key}", details={"scope": key, "requested": key})


def in_every_field(key):
    data = {"error": key, "message": key, "request_id": key, "trace_id": key, "details": {"scope": key, key: key}}
    return answer({**data, "cycles_evidence": {"evidence_id": key, "cycles_evidence_url": key}, key: key}, 400)


def in_escaped_json(key):
    escaped = "".join(character if character.isalnum() else f"\\u{ord(character):04x}" for character in key)
    return answer(body=b'{"error":"FORBIDDEN","message":"%s","request_id":"r"}' % escaped.encode(), status=403)


def in_slashed_json(key):
    body = json.dumps({"error": "FORBIDDEN", "message": key, "request_id": "r"}).replace("/", "\\/")
    return answer(body=body.encode(), status=403)


def in_headers(key):
    names = ("X-Request-Id", "X-Cycles-Trace-Id", "X-Cycles-Tenant", "Retry-After", "X-RateLimit-Remaining")
    return refusal("INTERNAL_ERROR", 500, headers=[(name, key) for name in names])


def in_a_page(key):
    return answer(body=f"<h1>{key}</h1>".encode(), status=502)


def in_a_success(key):
    """Which it is not: what it says is wrong is shown."""
    return answer({"status": key, "decision": key, "charged": key, "event_id": key, "expires_at_ms": key})


def in_broken_json(key):
    return answer(body=json.dumps({"error": key, "message": key}).encode()[:-1], status=400)


def in_the_status_line(key):
    return f"HTTP/1.1 {key}\r\n\r\n".encode()


def in_the_reason(key):
    return f"HTTP/1.1 500 {key}\r\nContent-Length: 0\r\n\r\n".encode()


def instead_of_http(key):
    return f"GET / HTTP/1.1\r\nX-Cycles-API-Key: {key}\r\n\r\n".encode()


def in_a_header_without_a_colon(key):
    return f"HTTP/1.1 400 Bad Request\r\nX-Echo {key}\r\nContent-Length: 0\r\n\r\n".encode()


def in_a_chunks_length(key):
    return head(200, ("Transfer-Encoding", "chunked")) + f"{key}\r\n".encode()


def in_a_cut_chunk(key):
    return head(200, ("Transfer-Encoding", "chunked")) + chunk(key.encode())[:-4]


def in_a_length(key):
    return head(500, ("Content-Length", key)) + b"x"


def in_a_redirect(key):
    return answer(status=307, headers=[("Location", f"http://127.0.0.1:1/{quote(key)}?key={key}")])


ECHOES = (
    in_the_message,
    in_the_message_of_a_final_refusal,
    in_every_field,
    in_escaped_json,
    in_slashed_json,
    in_headers,
    in_a_page,
    in_a_success,
    in_broken_json,
    in_the_status_line,
    in_the_reason,
    instead_of_http,
    in_a_header_without_a_colon,
    in_a_chunks_length,
    in_a_cut_chunk,
    in_a_length,
    in_a_redirect,
)


# ---- What is looked through ----


class Trail(logging.Handler):
    """Everything that a run leaves behind, as text, with where it was."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.found = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(stack_info)s"))

    def add(self, where, text):
        self.found.append((where, str(text)))

    def emit(self, record):
        self.add("log of " + record.name, self.format(record))
        self.add("arguments of log of " + record.name, repr(record.args))

    def error(self, e):
        """An exception in all the forms that programs show, keep or send exceptions in."""
        self.add("str", str(e))
        self.add("repr", repr(e))
        self.add("traceback", "".join(traceback.format_exception(type(e), e, e.__traceback__)))
        self.add("attributes", repr(vars(e)))
        if isinstance(e, CyclesError):
            self.add("pickle", pickle.dumps(e, 2).decode("latin-1"))
            self.add("copy", repr(vars(copy.copy(e))))

    def observer(self, event):
        """An observer that fails with what it was told."""
        self.add("event", repr(event))
        raise RuntimeError(f"cannot store {event!r}")

    def tell(self, key):
        """Where the key is, in any of the ways that it is written."""
        ways = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key), quote(key, safe="")}
        told = [(where, text) for where, text in self.found if any(way in text for way in ways)]
        for where, text in told:
            print(where, text, sep=": ")  # pytest shows it when the test fails
        return sorted({where for where, _ in told})


@pytest.fixture
def trail():
    made = Trail()
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("", "cycles_lite", "urllib3")}
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(made)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield made
    logging.getLogger().removeHandler(made)
    for logger, level in loggers.items():
        logger.setLevel(level)
    for warning in caught:
        made.add("warning", warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno))


def settings(url, key, tmp_path, **changes):
    return {
        "base_url": url,
        "api_key": key,
        "agent": "bot",  # without a tenant, so that the journal's identity is the key's
        "connect_timeout": 0.3,
        "read_timeout": 0.3,
        "retry_max_attempts": 2,
        "retry_initial_delay": 0.001,
        "retry_max_delay": 0.001,
        "flush_timeout": 0.1,
        "journal_dir": str(tmp_path / "journal"),
        **changes,
    }


def run(client, trail):
    """Every operation and every end of a guard."""
    for attempt in attempts(client):
        try:
            trail.add("result", repr(attempt()))
        except Exception as e:
            trail.error(e)
    gc.collect()  # the guard that nobody finished
    client.flush(5.0)
    trail.add("client", repr(client))
    trail.add("config", repr(client.config) + str(client.config))
    trail.add("transport", repr(client._session.transport) + repr(client._session) + repr(client._session.settler))


def attempts(client):
    request = ReservationCreateRequest(action=ACTION, estimate=ESTIMATE)
    yield lambda: client.create_reservation(request)
    yield lambda: client.commit_reservation("rsv_1", CommitRequest(ESTIMATE))
    yield lambda: client.release_reservation("rsv_1", ReleaseRequest())
    yield lambda: client.extend_reservation("rsv_1", ReservationExtendRequest(1000))
    yield lambda: client.create_event(EventCreateRequest(ACTION, ESTIMATE))
    yield client.list_reservations
    yield lambda: client.get_reservation("rsv_1")
    yield lambda: client.get_balances(agent="bot")
    yield client.warm_up
    yield client.get_evidence_keys
    yield lambda: commit(client)
    yield lambda: client.reserve(ESTIMATE, ACTION).release("not needed")
    yield lambda: client.reserve(ESTIMATE, ACTION).extend(1000)  # and left unfinished
    yield lambda: with_cycles(client, lambda guard: (1, ESTIMATE), estimate=ESTIMATE, action=ACTION)
    yield cycles(ESTIMATE, client=client)(lambda: 1)
    yield cycles(ESTIMATE, client=client)(lambda: 1 // 0)


def commit(client):
    with client.reserve(ESTIMATE, ACTION) as guard:
        found = repr(guard)
        return found, guard.commit(ESTIMATE)


def assert_clean(trail, key, tmp_path, capfd):
    for path in tmp_path.rglob("*"):
        trail.add("name of a file", path)
        if path.is_file():
            trail.add("file", path.read_bytes().decode("utf-8", "replace"))
    out, err = capfd.readouterr()
    trail.add("standard output", out)
    trail.add("standard error", err)
    assert trail.tell(key) == []


# ---- The tests ----


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
@pytest.mark.parametrize("echo", ECHOES, ids=lambda echo: echo.__name__)
@pytest.mark.parametrize("granted", [True, False], ids=["after a grant", "at once"])
def test_a_server_that_echoes_the_key_tells_nobody(echo, key, granted, trail, tmp_path, capfd):
    """All calls are answered with the key somewhere; guards get that far where their reservations are granted."""

    def serve(line, request):
        if granted and request.target == "/v1/reservations" and request.method == "POST":
            line.send(answer(allowed(reservation_id=f"rsv_{len(line.peer.requests)}")))
            return
        if "well-known" in request.target:  # public: no key is sent, so there is none to echo
            assert request.header("X-Cycles-API-Key") is None
            line.send(refusal("NOT_FOUND", 404))
            return
        assert request.header("X-Cycles-API-Key") == key
        line.send(echo(key))
        if echo not in (in_the_message, in_headers):
            line.reset()  # what is not HTTP leaves nothing to go on with

    with Peer(serve) as peer:
        with CyclesClient(CyclesConfig(**settings(peer.url, key, tmp_path)), observer=trail.observer) as client:
            run(client, trail)
    assert len(peer.requests) > 10
    assert_clean(trail, key, tmp_path, capfd)


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
@pytest.mark.parametrize("problem", ["silence", "nobody there", "no journal", "a bad proxy"])
def test_what_goes_wrong_tells_nobody(problem, key, trail, tmp_path, capfd):
    """Timeouts, refused connections, and a journal that cannot be written."""

    def serve(line, request):
        if request.target == "/v1/reservations" and request.method == "POST":
            line.send(answer(allowed(reservation_id=f"rsv_{len(line.peer.requests)}")))
        elif mended:
            line.send(answer(committed()))
        elif problem == "silence":
            silent(line, request)
        else:
            line.send(refusal("INTERNAL_ERROR", 500))

    patience = 0.05 if problem == "silence" else 30.0  # nothing else is waited for
    changes = {"connect_timeout": patience, "read_timeout": patience}
    if problem == "no journal":
        (tmp_path / "a-file").write_text("")
        changes["journal_dir"] = str(tmp_path / "a-file" / "journal")
    mended = []
    with Peer(serve) as peer, Peer(lambda line, request: line.send(refusal("X", 407))) as proxy:
        url = peer.url if problem != "nobody there" else "http://127.0.0.1:1"
        if problem == "a bad proxy":
            changes["proxy"] = f"http://user:{quote(key, safe='')}@127.0.0.1:{proxy.port}"
        config = CyclesConfig(**settings(url, key, tmp_path, **changes))
        with CyclesClient(config, observer=trail.observer) as client:
            run(client, trail)
            mended.append(True)
            assert client.flush(5.0) == 0 or problem != "no journal"  # what is in memory alone would be tried for ever
    assert_clean(trail, key, tmp_path, capfd)


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_settings_that_are_refused_do_not_show_the_key(key, trail, tmp_path, monkeypatch):
    for changes in (
        {"api_key": key + "\n" + key},
        {"api_key": key + "\u00e9"},
        {"base_url": f"http://user:{quote(key, safe='')}@host"},
        {"proxy": f"ftp://user:{quote(key, safe='')}@host"},
    ):
        with pytest.raises(CyclesError) as refused:
            CyclesConfig(**settings("http://127.0.0.1:1", key, tmp_path, **changes))
        trail.error(refused.value)
    monkeypatch.setenv("CYCLES_API_KEY", key + " " + key)
    monkeypatch.setenv("CYCLES_BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(CyclesError) as refused:
        CyclesClient.from_env()
    trail.error(refused.value)
    assert trail.tell(key) == []


# ---- Frames ----


def frames_that_hold(key, error):
    """Where the key is among the variables of all frames that an exception and what it came of lead through, as deep as
    error trackers look: the variables, what is in them, and the attributes of objects. The test's own frames are not
    looked at."""
    found, seen, left = [], [], [error]
    while left:
        each = left.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        left += [each.__cause__, each.__context__]
        frames = [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
        for frame in frames:
            if frame.f_code.co_filename != __file__:
                found += [(frame.f_code.co_name, name) for name, value in frame.f_locals.items() if holds(key, value)]
        if any(key in repr(value) for value in (each.args, vars(each))):
            found.append((type(each).__name__, "itself"))
    return found


def holds(key, value):
    inside = [value]
    if isinstance(value, dict):
        inside += value.values()
    elif isinstance(value, (list, tuple)):
        inside += value
    inside += getattr(value, "__dict__", {}).values()
    return any(key in repr(each) for each in inside)


def large(line, request):
    line.send(head(200, ("Content-Length", str(10**10))))


def too_much(line, request):
    line.send(head(200))
    line.pour(b" " * 65536)


ENDS = {
    "a timeout": silent,
    "a hang-up": lambda line, request: line.reset(),
    "a broken head": lambda line, request: line.send(b"HTTP/1.1 nonsense\r\n\r\n"),
    "a broken body": answer(body=b"<html>"),
    "an unproven success": answer({"status": "PERHAPS"}),
    "a cut body": lambda line, request: [line.send(head(200, ("Content-Length", "100"))), line.reset()],
    "a large body": large,
    "an endless body": too_much,
    "400": refusal("INVALID_REQUEST", 400),
    "401": refusal("UNAUTHORIZED", 401),
    "409": refusal("BUDGET_EXCEEDED", 409),
    "500": refusal("INTERNAL_ERROR", 500),
    "a page": answer(body=b"<html>", status=502),
    "nobody there": None,
    "TLS that is none": refusal("INTERNAL_ERROR", 500),
    "a certificate file that is none": answer({}),
    "a proxy that is none": answer({}),
    "a deadline that has passed": answer({}),
}


@pytest.mark.parametrize("what", ENDS)
def test_no_frame_of_an_error_holds_the_key(what, tmp_path, monkeypatch):
    key = KEYS["plain"]
    changes = {"journal_enabled": False}
    if what == "a certificate file that is none":
        changes["ca_certs"] = str(tmp_path / "none.pem")
    if what == "a proxy that is none":
        monkeypatch.setenv("HTTP_PROXY", "socks5://user:password@127.0.0.1:1")
    with Peer(ENDS[what] or silent) as peer:
        url = peer.url if what != "nobody there" else "http://127.0.0.1:1"
        if what in ("TLS that is none", "a certificate file that is none"):
            url = url.replace("http:", "https:")
        with CyclesClient(CyclesConfig(**settings(url, key, tmp_path, **changes))) as client:
            deadline = deadline_in(-1.0 if what == "a deadline that has passed" else 600.0)
            with deadline:
                failed = list(failures(client))
    assert len(failed) == 7
    assert {place for error in failed for place in frames_that_hold(key, error)} == set()


def throw(error):
    raise error


def failures(client):
    session = client._session
    request = ReservationCreateRequest(action=ACTION, estimate=ESTIMATE)
    for call in (
        lambda: client.create_reservation(request),
        lambda: client.commit_reservation("rsv_1", CommitRequest(ESTIMATE)),
        lambda: client.create_event(EventCreateRequest(ACTION, ESTIMATE)),
        lambda: client.get_reservation("rsv_1"),
        lambda: throw(session.send(EXTEND_RESERVATION, {"extend_by_ms": 1000}, "rsv_1", retries=False)),
        lambda: throw(session.send(COMMIT_RESERVATION, {"actual": ESTIMATE.to_json()}, "rsv_1", retries=False)),
        lambda: client.reserve(ESTIMATE, ACTION),
    ):
        with pytest.raises(CyclesError) as failed:
            call()
        yield failed.value


def test_the_search_of_frames_is_not_blind():
    def outer(headers):
        try:
            raise ValueError("within")
        except ValueError as e:
            raise CyclesError("no") from e

    code = "def f(outer, headers):\n    call = (1, headers['key'])\n    outer(headers)\n"
    namespace = {}
    exec(compile(code, "elsewhere.py", "exec"), namespace)
    with pytest.raises(CyclesError) as failed:
        namespace["f"](outer, {"key": "the-key"})
    assert frames_that_hold("the-key", failed.value) == [("f", "headers"), ("f", "call")]


def test_the_trail_is_not_blind(trail):
    """It finds a key in each of the places that it looks at."""
    key = KEYS["awkward"]
    logging.getLogger("urllib3.connectionpool").debug("sent %s", key)
    trail.error(CyclesError(key, request_id=key))
    try:
        raise CyclesError("no") from ValueError(key)
    except CyclesError as e:
        trail.error(e)
    assert trail.tell(key) == [
        "arguments of log of urllib3.connectionpool",
        "attributes",
        "copy",
        "log of urllib3.connectionpool",
        "pickle",
        "repr",
        "str",
        "traceback",
    ]
