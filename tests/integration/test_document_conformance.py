"""Every answer of the server against the protocol's document: schemas, statuses, headers, and rules in its prose.

First a script that reaches every status that the document declares, then random operations with bodies that are
right, or wrong in one place.
"""

from __future__ import annotations

import copy
import itertools
import re

import pytest
from hypothesis import given, strategies as st
from serving import ADMIN_KEY, Clock, Http, asking, committing, document, event, keyed, new_key, serving, tokens

from cycles_lite import Amount, Caps, TransportError
from cycles_lite.protocol.checks import INT64_MAX, INT64_MIN

pytestmark = pytest.mark.thorough

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema reads the document's schemas")

UNKNOWN = "rsv_" + "0" * 32


# ---- The document as a judge ----


def bounded(given):
    """The document with its int64 formats as bounds, which a JSON schema validator checks."""
    if isinstance(given, list):
        return [bounded(one) for one in given]
    if not isinstance(given, dict):
        return given
    made = {name: bounded(one) for name, one in given.items()}
    if made.get("format") == "int64":
        made = {"minimum": INT64_MIN, "maximum": INT64_MAX, **made}
    return made


DOCUMENT = bounded(document())
COMPONENTS = DOCUMENT["components"]


def resolved(given):
    while "$ref" in given:
        given = COMPONENTS[given["$ref"].split("/")[2]][given["$ref"].split("/")[3]]
    return given


def validator(schema):
    return jsonschema.Draft202012Validator({**schema, "components": {"schemas": COMPONENTS["schemas"]}})


class Operation:
    """An operation of the document, ready to judge answers and requests."""

    def __init__(self, method, path, declared):
        self.id = declared["operationId"]
        self.method = method.upper()
        self.path = re.compile(re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(path)) + r"\Z")
        answers = {int(status): resolved(answer) for status, answer in declared["responses"].items()}
        self.bodies = {
            status: validator(answer["content"]["application/json"]["schema"]) for status, answer in answers.items()
        }
        self.headers = {status: answer.get("headers", {}) for status, answer in answers.items()}
        sent = declared.get("requestBody")
        self.request = validator(sent["content"]["application/json"]["schema"]) if sent else None
        self.is_public = declared.get("security") == []


OPERATIONS = [
    Operation(method, path, declared)
    for path, operations in DOCUMENT["paths"].items()
    for method, declared in operations.items()
]


def find(method, target):
    path = target.partition("?")[0]
    (found,) = [one for one in OPERATIONS if one.method == method and one.path.match(path)]
    return found


class Judged:
    """A connection whose every answer is held against the document; `seen` is what came, by operation and status."""

    def __init__(self, http, seen=None):
        self._http = http
        self.seen = set() if seen is None else seen

    def __call__(self, method, target, body=None, **headers):
        reply = self._http(method, target, body, **headers)
        operation = find(method, target)
        self.seen.add((operation.id, reply.status))
        judge(operation, body, reply)
        return reply


def judge(operation, sent, reply):
    assert reply.status in operation.bodies, f"{operation.id}: {reply.status} is not declared: {reply}"
    assert reply.headers["content-type"] == "application/json"
    errors = [error.message for error in operation.bodies[reply.status].iter_errors(reply.data)]
    assert not errors, f"{operation.id} {reply.status}: {errors} in {reply.data}"
    for name, declared in operation.headers[reply.status].items():
        judge_header(reply, name, resolved(declared)["schema"])
    if reply.status >= 400:
        judge_error(reply)
    else:
        PROSE.get(operation.id, lambda sent, data: None)(sent, reply.data)
        judge_balances(reply.data.get("balances", ()))
        assert operation.is_public or reply.headers["x-ratelimit-remaining"] == "-1"


def judge_header(reply, name, schema):
    """As the schema says. The ids are mandatory (CORRELATION AND TRACING); the rest is optional in v0."""
    value = reply.headers.get(name.lower())
    if value is None:
        assert name not in ("X-Request-Id", "X-Cycles-Trace-Id", "Date"), f"{name} is missing"
        return
    if schema["type"] == "integer":
        assert re.match(r"-?[0-9]+\Z", value), (name, value)
        value = int(value)
    assert validator(schema).is_valid(value), (name, value)


STATUSES = {
    "INVALID_REQUEST": 400,
    "UNIT_MISMATCH": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "RESERVATION_EXPIRED": 410,
    "INTERNAL_ERROR": 500,
}


def judge_error(reply):
    """ERROR SEMANTICS: each code has its status; UNIT_MISMATCH says what would do."""
    assert reply.status == STATUSES.get(reply.error, 409), reply
    assert reply.data["request_id"] == reply.headers["x-request-id"]
    assert reply.data["trace_id"] == reply.headers["x-cycles-trace-id"]
    if reply.error == "UNIT_MISMATCH":
        assert {"scope", "requested_unit", "expected_units"} <= set(reply.data["details"])


def judge_balances(balances):
    """Balance: UNIT CONSISTENCY and LEDGER INVARIANT."""
    for balance in balances:
        amounts = {name: one["amount"] for name, one in balance.items() if isinstance(one, dict)}
        assert len({one["unit"] for one in balance.values() if isinstance(one, dict)}) == 1
        taken = amounts["spent"] + amounts["reserved"] + amounts.get("debt", 0)
        assert amounts["remaining"] == amounts["allocated"] - taken


def judge_decision(sent, data):
    """Caps come with ALLOW_WITH_CAPS alone, a reason with DENY alone; scopes are in canonical order."""
    assert ("caps" in data) == (data["decision"] == "ALLOW_WITH_CAPS")
    assert ("reason_code" in data) == (data["decision"] == "DENY")
    deepest = data["affected_scopes"][-1].split("/")
    assert data["affected_scopes"] == ["/".join(deepest[: depth + 1]) for depth in range(len(deepest))]


def judge_created(sent, data):
    """DRY-RUN RESPONSE RULES; and a live reservation that is not granted is no 200."""
    judge_decision(sent, data)
    assert data["scope_path"] == data["affected_scopes"][-1]
    assert data["decision"] != "DENY" or sent.get("dry_run")
    live = {"reservation_id", "expires_at_ms", "remaining_ttl_ms"}
    assert live & set(data) == (set() if sent.get("dry_run") else live)


def judge_reservation(sent, data):
    """The end's time is that of a commit or a release; what was charged is a commit's."""
    assert ("finalized_at_ms" in data) == (data["status"] in ("COMMITTED", "RELEASED"))
    assert ("committed" in data) == (data["status"] == "COMMITTED")
    assert data["scope_path"] == data["affected_scopes"][-1]


def judge_list(sent, data):
    for row in data["reservations"]:
        judge_reservation(None, row)
    judge_page(sent, data)


def judge_page(sent, data):
    assert data["has_more"] == ("next_cursor" in data)


PROSE = {
    "decide": judge_decision,
    "createReservation": judge_created,
    "getReservation": judge_reservation,
    "listReservations": judge_list,
    "getBalances": judge_page,
}


# ---- Every declared status, once ----

#: Not to be had from this server, and why.
NEVER = {
    ("getEvidence", 200): "it signs no evidence",
    ("getEvidenceJwks", 200): "it signs no evidence",
    ("getEvidence", 429): "it does not throttle",
    ("getEvidenceJwks", 429): "it does not throttle",
    ("extendReservation", 429): "it does not throttle",
    ("getEvidence", 500): "it reads nothing for this",
    ("getEvidenceJwks", 500): "it reads nothing for this",
}


def on_reservation(id):
    """A good request for each operation on a reservation."""
    path = f"/v1/reservations/{id}"
    return [
        ("GET", path, None),
        ("POST", path + "/commit", committing()),
        ("POST", path + "/release", keyed()),
        ("POST", path + "/extend", keyed(extend_by_ms=1)),
    ]


def on_subject(tenant="acme"):
    """A good request for each of the others that need a key."""
    return [
        ("POST", "/v1/decide", asking(tenant=tenant)),
        ("POST", "/v1/reservations", asking(tenant=tenant)),
        ("POST", "/v1/events", event(tenant=tenant)),
        ("GET", f"/v1/reservations?tenant={tenant}", None),
        ("GET", f"/v1/balances?tenant={tenant}", None),
    ]


def test_every_declared_status_is_reached_and_conforms(served, clock, monkeypatch):
    seen = set()
    with Http(served.url, served.key) as plain, Http(served.url, served.rival_key) as other:
        http, rival = Judged(plain, seen), Judged(other, seen)

        def reserve(**fields):
            return http("POST", "/v1/reservations", asking(**fields)).data["reservation_id"]

        get, commit, _, extend = on_reservation(reserve(metadata={"a": [1, None, {"b": 1.5}]}))
        for request in (get, extend, commit, get, on_reservation(reserve())[2]):
            http(*request)
        for request in on_subject():
            http(*request)
        finished = reserve()
        http("POST", f"/v1/reservations/{finished}/commit", committing(300, metadata={"c": "d"}))
        for request in on_reservation(finished):  # 409
            http(*request)
        for request in [*on_reservation(UNKNOWN), *on_reservation("x" * 129)]:  # 404, 400
            http(*request)
        for request in [*on_reservation(reserve()), *on_subject()]:  # 401, and 403 for another tenant
            http(*request, X_Cycles_API_Key="wrong")
            rival(*request)
        for method, target, body in [*on_reservation(UNKNOWN), *on_subject()]:  # 400
            if method == "POST":
                http(method, target, {**body, "more": 1})
        http("GET", "/v1/reservations?limit=0")
        http("GET", "/v1/balances")
        for method, target, body in on_subject():  # 409: the same key, another payload
            if method == "POST":
                http(method, target, body)
                http(method, target, {**body, "metadata": {}})
        http("POST", "/v1/reservations", asking(10**9))
        http("POST", "/v1/events", event(10**9, overage_policy="REJECT"))
        served.authority.create_key("empty", secret="key-of-empty")
        for request in on_subject("empty"):  # 404
            http(*request, X_Cycles_API_Key="key-of-empty")
        gone = reserve()
        clock.now += 10**6
        for request in on_reservation(gone):  # 410
            http(*request)
        http("GET", "/v1/reservations?status=EXPIRED&include=metadata,committed_metadata,evidence")
        for id in ("0" * 64, "abc"):
            http("GET", f"/v1/evidence/{id}")
        http("GET", "/v1/.well-known/cycles-jwks.json")

        def locked(secret):
            raise TransportError("locked")

        monkeypatch.setattr(served.authority, "caller", locked)
        for request in [*on_reservation(UNKNOWN), *on_subject()]:  # 500
            http(*request)
    declared = {(operation.id, status) for operation in OPERATIONS for status in operation.bodies}
    assert declared - seen == set(NEVER)


def test_what_the_admin_gets_conforms(served):
    """The same operations without a tenant of the caller's own."""
    with Http(served.url, served.key) as http:
        id = http("POST", "/v1/reservations", asking()).data["reservation_id"]
    with Http(served.url, X_Admin_API_Key=ADMIN_KEY) as plain:
        admin = Judged(plain)
        admin("GET", "/v1/reservations?tenant=acme")
        admin("GET", "/v1/reservations")
        for request in on_reservation(id):
            admin(*request)
    assert {status for _, status in admin.seen} == {200, 400, 401}


def test_all_units_and_every_state_of_a_budget_conform(served):
    """Debt, over the limit, frozen, closed, a closed tenant: the answers that say so."""
    authority = served.authority
    agents = ["capped", "owing", "overdrawn", "frozen", "closed"]
    for agent, unit in itertools.product(agents, ("USD_MICROCENTS", "TOKENS", "CREDITS", "RISK_POINTS")):
        limit = 50 if agent == "owing" else 0
        authority.set_budget(f"tenant:acme/agent:{agent}", Amount(unit, 10), overdraft_limit=limit)
    authority.set_budget(
        "tenant:acme/agent:capped", Amount("TOKENS", 10), caps=Caps(tool_allowlist=["a"], max_tokens=1)
    )
    authority.freeze("tenant:acme/agent:frozen")
    authority.close("tenant:acme/agent:closed")
    codes = set()
    with Http(served.url, served.key) as plain:
        http = Judged(plain)
        for agent, policy in itertools.product(agents, ("REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT")):
            subject = {"tenant": "acme", "agent": agent}
            for amount in (5, 30, 100):
                made = http("POST", "/v1/reservations", asking(1, subject=subject, overage_policy=policy))
                for again in (asking(amount, subject=subject), asking(amount, subject=subject, dry_run=True)):
                    codes.add(http("POST", "/v1/reservations", again).data.get("error"))
                codes.add(http("POST", "/v1/decide", asking(amount, subject=subject)).data.get("reason_code"))
                codes.add(
                    http("POST", "/v1/events", event(amount, subject=subject, overage_policy=policy)).data.get("error")
                )
                if made.status == 200:
                    path = "/v1/reservations/{}/commit".format(made.data["reservation_id"])
                    codes.add(http("POST", path, committing(amount)).data.get("error"))
        balances = http("GET", "/v1/balances?tenant=acme&limit=200").data["balances"]
        assert any("debt" in balance for balance in balances)
        assert any(balance.get("is_over_limit") for balance in balances)
        assert (
            http("POST", "/v1/decide", asking(subject={"workspace": "none"})).data["reason_code"] == "BUDGET_NOT_FOUND"
        )
    expected = {"BUDGET_EXCEEDED", "BUDGET_FROZEN", "BUDGET_CLOSED", "OVERDRAFT_LIMIT_EXCEEDED", None}
    assert expected <= codes


# ---- Random operations ----

AMOUNTS = st.sampled_from([0, 1, 2, 7, 10, 20, 50, 100, 1000, 10**6, INT64_MAX])
UNITS = st.sampled_from(["TOKENS"] * 8 + ["CREDITS"])
JSON = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=3), st.lists, max_leaves=3
    ),
)
ACTIONS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["llm.completion", "k" * 64, "ä"]), "name": st.sampled_from(["n", "ñ" * 256])},
    optional={"tags": st.lists(st.sampled_from(["prod", "💸"]), max_size=10)},
)
SUBJECTS = st.fixed_dictionaries(
    {"tenant": st.sampled_from(["acme"] * 8 + ["rival", None])},
    optional={
        "agent": st.sampled_from(["bot", "Bot", "other"]),
        "workspace": st.just("w" * 128),
        "dimensions": st.dictionaries(st.sampled_from("abc"), st.text(max_size=256), max_size=3),
    },
)
METRICS = st.fixed_dictionaries(
    {},
    optional={"tokens_input": AMOUNTS, "latency_ms": AMOUNTS, "model_version": st.text(max_size=128), "custom": JSON},
)
POLICIES = st.sampled_from(["REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT"])
KEYS = st.sampled_from(["NEW"] * 5 + ["one", "ключ"])
MONEY = st.fixed_dictionaries({"unit": UNITS, "amount": AMOUNTS})
METADATA = {"metadata": JSON}


def a_body(required, **optional):
    return st.fixed_dictionaries({"idempotency_key": KEYS, **required}, optional=optional)


ASKED = {"subject": SUBJECTS, "action": ACTIONS, "estimate": MONEY}
BODIES = {
    "/v1/decide": a_body(ASKED, **METADATA),
    "/v1/reservations": a_body(
        ASKED,
        ttl_ms=st.sampled_from([1000, 60_000, 86_400_000]),
        grace_period_ms=st.sampled_from([0, 60_000]),
        overage_policy=POLICIES,
        dry_run=st.booleans(),
        **METADATA,
    ),
    "/v1/events": a_body(
        {"subject": SUBJECTS, "action": ACTIONS, "actual": MONEY},
        overage_policy=POLICIES,
        metrics=METRICS,
        client_time_ms=AMOUNTS,
        **METADATA,
    ),
    "/v1/reservations/{}/commit": a_body({"actual": MONEY}, metrics=METRICS, **METADATA),
    "/v1/reservations/{}/release": a_body({}, reason=st.text(max_size=256)),
    "/v1/reservations/{}/extend": a_body({"extend_by_ms": st.sampled_from([1, 1000, 86_400_000])}, **METADATA),
}

#: What is put in a wrong place. None of it is `null`, which counts as absent and is put in on its own.
WRONG = st.sampled_from(["", "x", "9" * 300, -1, 0, 1.5, 2**63, True, [], {}, ["x"], {"x": 1}])

#: Where something goes wrong, by the turns taken on the way into a body; and how.
FAULTS = (
    st.none()
    | st.none()
    | st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["put", "drop", "add"]), WRONG)
)


def faulty(body, fault):
    """The body with one fault in it."""
    into, name, how, value = fault
    body = copy.deepcopy(body)
    places = [body] + [one for key, one in sorted(body.items()) if isinstance(one, dict) and key != "metadata"]
    place = places[into % len(places)]
    if how == "add" or not place:
        place["more"] = value
    elif how == "drop":
        del place[sorted(place)[name % len(place)]]
    else:
        place[sorted(place)[name % len(place)]] = value
    return body


def without_nulls(value):
    """The body as the server takes it: `null` equals absent (design, section 9, Validation)."""
    if not isinstance(value, dict):
        return value
    return {
        name: one if name in ("metadata", "custom") else without_nulls(one)
        for name, one in value.items()
        if one is not None
    }


POSTS = st.sampled_from(sorted(BODIES)).flatmap(lambda path: st.tuples(st.just(path), BODIES[path], FAULTS))

#: Values for query parameters, good and bad.
INSTANTS = (
    ["", "2023-11-14T22:13:20Z", "2023-11-15T00:13:20.5+02:00"],
    ["yesterday", "2023-11-14", "2023-13-01T00:00:00Z"],
)
QUERIES = {
    "tenant": (["acme", ""], []),
    "agent": (["bot", "BOT", "%", "a/b", ""], []),
    "idempotency_key": (["one", "nobody's"], []),
    "limit": (["1", "200", ""], ["0", "201", "-1", "abc", "1.5", "%30", "99999999999999999999"]),
    "status": (["ACTIVE", "COMMITTED", "RELEASED", "EXPIRED"], ["active", "DONE", ""]),
    "sort_by": (
        ["reservation_id", "tenant", "scope_path", "status", "reserved", "created_at_ms", "expires_at_ms"],
        ["x", ""],
    ),
    "sort_dir": (["asc", "desc"], ["ASC", "up", ""]),
    "include": (["metadata", "METADATA,evidence", "committed_metadata,,x"], []),
    "cursor": ([""], ["x", "AAAA", "%F0%9F%92%B8"]),
    "from": INSTANTS,
    "expires_to": INSTANTS,
    "finalized_from": INSTANTS,
    "unknown": (["x"], []),
}
FOR_BALANCES = ("tenant", "agent", "limit", "cursor", "unknown")


def a_query(path, names):
    one = st.sampled_from(names).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.sampled_from(
                [(value, True) for value in QUERIES[name][0]] + [(value, False) for value in QUERIES[name][1]]
            ),
        )
    )
    return st.tuples(st.just(path), st.lists(one, max_size=4, unique_by=lambda pair: pair[0]))


GETS = a_query("/v1/reservations", sorted(QUERIES)) | a_query(
    "/v1/balances?tenant=acme", sorted(set(FOR_BALANCES) - {"tenant"})
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), POSTS, st.integers(0, 5)),
        st.tuples(st.just("post"), POSTS, st.integers(0, 5)),
        st.tuples(st.just("list"), GETS, st.none()),
        st.tuples(st.just("get"), st.none(), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.sampled_from([1, 999, 60_000, 10**8]), st.none()),
        st.tuples(st.just("fund"), st.integers(0, 2000), st.none()),
    ),
    min_size=6,
    max_size=25,
)


class Scene:
    """A tenant of its own for one example, with some reservations; what is drawn for `acme` is meant for it."""

    def __init__(self, served, clock, foreign, number):
        self.authority, self.clock, self._foreign = served.authority, clock, foreign
        self._tenant = f"tenant-{number}"
        self.fund(1000)
        served.authority.set_budget(f"tenant:{self._tenant}", Amount.tokens(10**6))
        self._http = Http(served.url, served.authority.create_key(self._tenant).key_secret)
        self._judged = Judged(self._http)
        self.own = []
        for _ in range(4):
            self("POST", "/v1/reservations", asking(10))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._http.close()

    def __call__(self, method, target, body=None):
        if body is not None and isinstance(body.get("subject"), dict) and body["subject"].get("tenant") == "acme":
            body = {**body, "subject": {**body["subject"], "tenant": self._tenant}}
        reply = self._judged(method, target.replace("tenant=acme", f"tenant={self._tenant}"), body)
        self.own += [reply.data["reservation_id"]] if "reservation_id" in reply.data else []
        return reply

    def fund(self, amount):
        scope = f"tenant:{self._tenant}/agent:bot"
        self.authority.set_budget(scope, Amount.tokens(amount), overdraft_limit=amount // 2)

    def pick(self, number):
        """One of its reservations, one that nobody has, or another tenant's."""
        return [*self.own[-4:], UNKNOWN, self._foreign][number]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Makes scenes, all on one server."""
    clock, numbers = Clock(), itertools.count()
    with serving(tmp_path_factory.mktemp("stage"), clock=clock) as served:
        with Http(served.url, served.rival_key) as rival:
            foreign = rival("POST", "/v1/reservations", asking(1, tenant="rival")).data["reservation_id"]
        yield lambda: Scene(served, clock, foreign, next(numbers))


@given(steps=STEPS)
def test_random_operations_conform(stage, steps):
    """And a body that the document's schema refuses is a 400, one that is made as it should be never is malformed."""
    with stage() as scene:
        for kind, what, number in steps:
            if kind == "wait":
                scene.clock.now += what
            elif kind == "fund":
                scene.fund(what)
            elif kind == "get":
                scene("GET", "/v1/reservations/" + scene.pick(number))
            elif kind == "list":
                read(scene, *what)
            else:
                post(scene, what, scene.pick(number))
        assert scene.authority.check() == []


def post(http, what, id):
    path, body, fault = what
    body = {name: new_key() if one == "NEW" else one for name, one in body.items()}
    if fault is not None:
        body = faulty(body, fault)
    reply = http("POST", path.format(id), body)
    if not find("POST", path.format(id)).request.is_valid(without_nulls(body)):
        assert (reply.status, reply.error) == (400, "INVALID_REQUEST"), (path, body, reply)
    elif fault is None:
        assert reply.status != 400 or reply.error == "UNIT_MISMATCH" or not names_somebody(body), (path, body, reply)


def names_somebody(body):
    return "subject" not in body or any(isinstance(one, str) for one in body["subject"].values())


def read(http, path, parameters):
    text = "&".join(f"{name}={value.replace('+', '%2B')}" for name, (value, _) in parameters)
    reply = http("GET", path + ("&" if "?" in path else "?") + text)
    assert reply.status == (200 if all(good for _, (_, good) in parameters) else 400), (path, parameters, reply)


def test_pages_follow_each_other(served):
    """Cursors as HTTP carries them: every row once, in order; bound to their sort and filter."""
    with Http(served.url, served.key) as plain:
        http = Judged(plain)
        made = [http("POST", "/v1/reservations", asking(number)).data["reservation_id"] for number in range(7)]
        found, cursor = [], ""
        while True:
            page = http("GET", f"/v1/reservations?limit=3&sort_by=reserved&sort_dir=asc&cursor={cursor}").data
            found += [row["reservation_id"] for row in page["reservations"]]
            if not page["has_more"]:
                break
            cursor = page["next_cursor"]
        assert found == made
        for query in (
            "sort_by=reserved&sort_dir=desc",
            "sort_by=status",
            "sort_by=reserved&sort_dir=asc&status=ACTIVE",
        ):
            assert http("GET", f"/v1/reservations?{query}&cursor={cursor}").status == 400
        last = http("GET", f"/v1/reservations?limit=9&cursor={cursor}").data["reservations"]
        assert [row["reservation_id"] for row in last] == made[6:]
        first = http("GET", "/v1/balances?tenant=acme&limit=1").data
        second = http("GET", "/v1/balances?tenant=acme&limit=1&cursor=" + first["next_cursor"]).data
        paths = [page["balances"][0]["scope_path"] for page in (first, second)]
        assert paths == ["tenant:acme", "tenant:acme/agent:bot"]
        assert second["balances"][0]["allocated"] == tokens(1000)
