"""Odd values for every public constructor and method: each works, or is refused by an error of ours.

A `TypeError` is for calls of a wrong shape alone: names that do not exist, or that are missing.
"""

from __future__ import annotations

import json
import os

import pytest
from oddities import MAKERS, odd, shown
from peers import FakeTransport, allowed, committed, config_of, extended, released, replied
from samples import BODIES, MODELS, QUERIES, named, told  # noqa: F401

from cycles_lite import (
    Action,
    Amount,
    Caps,
    ConfigError,
    CyclesClient,
    CyclesConfig,
    CyclesError,
    CyclesMetrics,
    Subject,
    ValidationError,
    cycles,
    set_default_client,
    with_cycles,
)
from cycles_lite.protocol import fields, models, wire
from cycles_lite.testing import TestAuthority
from cycles_lite.wsgi import CyclesMiddleware

ACTION = Action("llm.completion", "gpt-4o")


# ---- Models ----

PATH = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))), "shared"
)
DOCUMENT = os.path.join(PATH, "protocol", "cycles-protocol-v0.yaml")


def validators():
    """By class: what validates its JSON by the protocol's document; nothing where that is not at hand."""
    if not os.path.exists(DOCUMENT):
        return {}
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    with open(DOCUMENT, encoding="utf-8") as file:
        components = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]
    kinds = [kind for kind in [*BODIES, Subject, Action, Amount, Caps, CyclesMetrics] if kind is not None]
    names = {kind: "StandardMetrics" if kind is CyclesMetrics else kind.__name__ for kind in kinds}
    return {
        kind: jsonschema.Draft7Validator({"$ref": "#/components/schemas/" + name, "components": components})
        for kind, name in names.items()
    }


def arguments(random, model):
    """Legal arguments of a model by their names."""
    made = {}
    for entry in model.layout():
        if entry.required or (model is Subject and entry.name == "agent") or random.random() < 0.3:
            made[entry.name] = legal(random, entry.kind)
    return made


def legal(random, kind):
    if isinstance(kind, fields.FreeText):
        return random.choice(["word", "acme", "a-b_c.D", "x" * min(kind.longest, 64)])
    if isinstance(kind, fields.Integer):
        return random.choice([kind.low, min(kind.high, max(kind.low, 1000)), kind.high])
    if isinstance(kind, fields.Boolean):
        return random.random() < 0.5
    if isinstance(kind, fields.OneOf):
        return random.choice([random.choice(list(kind.enumeration)), next(iter(kind.members))])
    if isinstance(kind, fields.Object):
        return kind.model(**arguments(random, kind.model))
    if isinstance(kind, fields.ListOf):
        return [legal(random, kind.kind)] * random.randrange(3)
    if isinstance(kind, fields.Dimensions):
        return {"cost_center": "17"}
    return {"run": {"number": [1, 2.5, None, True, "x"]}}


def test_models(fuzz):
    checks = validators()

    def check(case):
        random = case.random
        model = random.choice(MODELS)
        given = arguments(random, model)
        is_misshapen = False
        for _ in range(random.randint(1, 2)):
            if random.random() < 0.05:
                given.pop(random.choice([*given, ""]), None)
                is_misshapen = True
            elif random.random() < 0.02:
                given["no_such_field"] = 1
                is_misshapen = True
            else:
                given[random.choice(model.layout()).name] = odd(random)
        case.show(model=model, given={name: shown(value) for name, value in given.items()})
        try:
            made = model(**given)
        except ValidationError as e:
            assert str(e).isprintable(), str(e)
            assert len(str(e)) < 1000
            return "ValidationError"
        except TypeError:
            assert is_misshapen
            return "TypeError"
        sound(made, model, checks)
        return "accepted"

    fuzz.run(check, short=400)


def sound(made, model, checks):
    """The object is legal: it can be looked at and copied, and its JSON is the document's."""
    repr(made)
    assert made == made
    data = made.to_json()
    text = wire.dumps(data)
    assert wire.loads(text) == json.loads(text.decode("ascii"))
    assert type(made)(**{entry.name: getattr(made, entry.name) for entry in model.layout()}) == made
    if model in BODIES:
        assert model.parse({"subject": {"agent": "bot"}, **data} if "subject" in vars(model) else data) is not None
    elif model not in QUERIES:
        assert model.from_json(json.loads(text.decode("ascii"))).to_json() == data
    else:
        wire.query(made)
    if model in checks:
        if "subject" in {entry.name for entry in model.layout()}:
            data.setdefault("subject", {"agent": "bot"})
        checks[model].validate(data)


# ---- Methods ----


def answering(call):
    """A good answer to whatever is asked."""
    operation = call.operation
    known = {
        "create_reservation": allowed(reservation_id="rsv_" + os.urandom(6).hex()),
        "commit_reservation": committed(),
        "release_reservation": released(),
        "extend_reservation": extended(),
    }
    data = known.get(operation.name) or told(operation.response)
    if operation.name == "create_event":
        data["status"] = "APPLIED"
    assert wire.loads(call.body or b"{}") is not None
    for name, value in call.headers.items():
        assert (name + value).isprintable()
    return replied(data, operation.status)


def pick(random, rate, legal):
    """The legal value, or with some probability an odd one."""
    return odd(random) if random.random() < rate else legal


def asked(random, rate=0.2):
    """Arguments of what reserves."""
    made = {
        "estimate": pick(random, rate, Amount.tokens(5)),
        "action": pick(random, rate, ACTION),
    }
    more = {
        "subject": Subject(agent="bot"),
        "ttl_ms": 60_000,
        "grace_period_ms": 5,
        "overage_policy": "REJECT",
        "metadata": {"a": 1},
        "idempotency_key": "key",
    }
    for name, value in more.items():
        if random.random() < 0.2:
            made[name] = pick(random, rate + 0.3, value)
    return made


def _reserve(random, client):
    with client.reserve(**asked(random)) as guard:
        repr(guard)
        for _ in range(random.randrange(3)):
            step = random.randrange(4)
            if step == 0:
                guard.spend(odd(random))
            elif step == 1:
                guard.extend(odd(random))
            elif step == 2:
                guard.release(odd(random))
                break
            else:
                more = {"metrics": odd(random), "metadata": odd(random)}
                guard.commit(pick(random, 0.5, Amount.tokens(5)), **more)
                break


def _with_cycles(random, client):
    cost = odd(random)
    more = {"metrics": odd(random)} if random.random() < 0.2 else {}
    pair = ("value", cost)
    made = with_cycles(client, lambda guard: pair, **asked(random, 0.05), **more)
    assert made is pair or made == "value"


def given_to_a_decorator(random):
    """An odd value, or a callable that gives one; another callable's own errors are the program's."""
    value = odd(random)
    if callable(value) or random.random() < 0.3:
        return lambda *_: value
    return value


def _cycles(random, client):
    names = "unit action action_kind action_name action_tags ttl_ms grace_period_ms overage_policy tenant app".split()
    names += "dry_run toolset dimensions client use_estimate_if_actual_not_provided actual estimate".split()
    given = {"estimate": 5, "client": client}
    for _ in range(random.randint(1, 2)):
        given[random.choice(names)] = given_to_a_decorator(random)
    set_default_client(client)
    try:
        decorated = cycles(**given)(lambda prompt: "value")
        made = decorated("prompt")
        assert made == "value" or given.get("dry_run") is True
    finally:
        set_default_client(None)


def _lists(random, client):
    kind = random.choice(QUERIES)
    filters = {random.choice(kind.layout()).name: odd(random) for _ in range(random.randint(1, 2))}
    name = "reservations" if kind is models.ReservationListRequest else "balances"
    call = client.list_reservations if name == "reservations" else client.get_balances
    random.choice([lambda **given: call(**given), lambda **given: list(getattr(client, "iter_" + name)(**given))])(
        **filters
    )


def _operations(random, client):
    id, request = pick(random, 0.7, "rsv_1"), None
    name = random.choice("commit release extend get create decide event evidence".split())
    if name == "get":
        client.get_reservation(id)
    elif name == "evidence":
        client.get_evidence(id)
    elif name in ("create", "decide", "event"):
        request = odd(random)
        {"create": client.create_reservation, "decide": client.decide, "event": client.create_event}[name](request)
    else:
        request = {
            "commit": models.CommitRequest(Amount.tokens(1)),
            "release": models.ReleaseRequest(),
            "extend": models.ReservationExtendRequest(5),
        }[name]
        getattr(client, name + "_reservation")(id, pick(random, 0.2, request))


def _amounts(random, client):
    made = odd(random)
    step = random.randrange(6)
    if step == 0:
        Amount.usd(made)
    elif step == 1:
        random.choice([Amount.tokens, Amount.credits, Amount.risk_points, Amount.usd_microcents])(made)
    elif step == 2:
        Amount(made, odd(random))
    elif step == 3 and "Eq" not in type(made).__name__:  # whose own comparison raises
        assert (Amount.tokens(5) == made) in (True, False)
    elif step == 4:
        models.Balance.from_json(made)
    else:
        Caps(tool_allowlist=["a"]).is_tool_allowed("a")
        Amount.parse(made, "amount")


def _configuration(random, client):
    names = [entry.name for entry in CyclesConfig.layout()]
    given = {random.choice(names): odd(random) for _ in range(random.randint(1, 2))}
    usual = {"base_url": "http://127.0.0.1:9", "api_key": "k" * 9}
    step = random.randrange(3)
    if step == 0:
        made = CyclesConfig(**{**usual, **given})
    elif step == 1:
        made = client.config.replace(**given)
    else:
        made = CyclesConfig.from_env(**{**usual, **given})
    assert made.replace() == made
    assert "kkkkkkkkk" not in repr(made)
    hash(made)


def _clients(random, client):
    CyclesClient(
        pick(random, 0.3, client.config),
        traceparent=pick(random, 0.5, None),
        transport=FakeTransport(answering),
    ).get_evidence_keys()


def _default_client(random, client):
    set_default_client(odd(random))
    set_default_client(None)


def constant(random, rate, legal):
    made = pick(random, rate, legal)
    return (lambda environ: made) if callable(made) else made


def _middleware(random, client):
    given = {
        "estimate": constant(random, 0.2, Amount.tokens(5)),
        "action": constant(random, 0.2, ACTION),
        "subject": constant(random, 0.1, None),
        "actual": pick(random, 0.2, None),
        "tenant_header": constant(random, 0.2, None),
        "exclude": pick(random, 0.2, ()),
        "ttl_ms": pick(random, 0.2, 60_000),
    }
    application = CyclesMiddleware(lambda environ, start: [b"ok"], client, **given)
    body = application({"PATH_INFO": "/", "REQUEST_METHOD": "GET"}, lambda status, headers: None)
    list(body)
    if hasattr(body, "close"):
        body.close()


METHODS = [
    _reserve, _reserve, _with_cycles, _cycles, _lists, _operations, _amounts, _configuration, _clients,
    _default_client, _middleware,
]  # fmt: skip


def test_methods(fuzz, logged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of("http://127.0.0.1:9", journal_enabled=False, heartbeat=False, flush_timeout=0.0)
    with CyclesClient(config, transport=FakeTransport(answering)) as client:

        def check(case):
            del logged[:]
            recorded = Recorded(case.random)
            case.show(oddities=recorded.seen)
            method = recorded.choice(METHODS)
            case.show(method=method.__name__)
            try:
                method(recorded, client)
            except CyclesError as e:
                assert isinstance(e, (ValidationError, ConfigError)) or type(e).__name__ == "GuardFinalizedError", repr(
                    e
                )
                assert str(e).isprintable()
                return f"{method.__name__} {type(e).__name__}"
            return method.__name__ + " accepted"

        fuzz.run(check, short=400)


class Recorded:
    """A random source that notes which odd values it has chosen."""

    def __init__(self, random):
        self._random, self.seen = random, []

    def choice(self, values):
        chosen = self._random.choice(values)
        if values is MAKERS:
            self.seen.append(shown(chosen()))
        return chosen

    def __getattr__(self, name):
        return getattr(self._random, name)


# ---- The embedded authority ----


def test_authority_methods(fuzz):
    with TestAuthority("sqlite://") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(10**9))
        calls = {
            "set_budget": (["tenant:acme", Amount.tokens(5)], ["overdraft_limit", "caps"]),
            "add_budget": (["tenant:acme", Amount.tokens(5)], ["overdraft_limit", "caps"]),
            "budget": (["tenant:acme", Amount.tokens(5)], ["overdraft_limit", "caps"]),
            "fund": (["tenant:acme", Amount.tokens(5)], ["operation", "spent", "idempotency_key", "reason"]),
            "delete_budget": (["tenant:other"], ["unit", "force"]),
            "holds": (["tenant:acme"], ["unit"]),
            "freeze": (["tenant:acme"], ["unit"]),
            "unfreeze": (["tenant:acme"], ["unit"]),
            "close": (["tenant:other"], ["unit"]),
            "create_tenant": (
                ["acme"], ["name", "default_ttl_ms", "max_ttl_ms", "default_overage_policy", "max_extensions"],
            ),
            "tenant": (["acme"], []),
            "close_tenant": (["other"], []),
            "create_key": (["acme"], ["secret", "name", "permissions", "expires_at_ms"]),
            "revoke_key": (["key_1"], []),
            "authenticate": (["secret"], []),
            "expire": (["rsv_1"], []),
            "fail_next": ([], ["operation", "times", "status", "code", "after", "retry_after"]),
        }  # fmt: skip
        with CyclesClient(
            CyclesConfig(base_url="sqlite://", tenant="acme", retry_enabled=False), transport=authority.transport()
        ) as client:

            def check(case):
                random = Recorded(case.random)
                name = random.choice(list(calls))
                positional, names = calls[name]
                given = [pick(random, 0.4, value) for value in positional]
                more = {each: odd(random) for each in names if random.random() < 0.3}
                if type(more.get("times")) is int:
                    more["times"] = min(more["times"], 3)
                case.show(name=name, oddities=random.seen)
                try:
                    getattr(authority, name)(*given, **more)
                except (ValidationError, ConfigError) as e:
                    assert str(e).isprintable()
                    return f"{name} {type(e).__name__}"
                finally:
                    while authority._faults:
                        try:
                            client.get_evidence_keys() if random.random() < 0.5 else client.get_balances()
                        except CyclesError as e:
                            assert str(e)
                    assert authority.check() == []
                return f"{name} accepted"

            fuzz.run(check, short=300)
