"""Mutated answers of an authority to every operation of the client: each becomes a response or an error of ours.

What proves success is told by `oracles`, which shares no code with the client.
"""

from __future__ import annotations

import json

import oracles
from answers import OPERATIONS, hygienic, odd_answer
from mutations import mutated_bytes
from peers import KEY, Gone, Peer, client_of, commit_request, config_of, create_request

from cycles_lite import Action, Amount, CyclesClient, CyclesError
from cycles_lite.protocol import models, wire
from cycles_lite.protocol.wire import Answer

ACTION = Action("llm.completion", "gpt-4o")
AMOUNT = Amount.tokens(100)

#: Each operation by its name: how the client is asked for it.
ASK = {
    "create_reservation": lambda client: client.create_reservation(create_request()),
    "commit_reservation": lambda client: client.commit_reservation("rsv_1", commit_request()),
    "release_reservation": lambda client: client.release_reservation("rsv_1", models.ReleaseRequest()),
    "extend_reservation": lambda client: client.extend_reservation(
        "rsv_1", models.ReservationExtendRequest(extend_by_ms=5)
    ),
    "decide": lambda client: client.decide(models.DecisionRequest(ACTION, AMOUNT)),
    "create_event": lambda client: client.create_event(models.EventCreateRequest(ACTION, AMOUNT)),
    "list_reservations": lambda client: client.list_reservations(),
    "get_reservation": lambda client: client.get_reservation("rsv_1"),
    "get_balances": lambda client: client.get_balances(),
    "get_evidence": lambda client: client.get_evidence("0" * 64),
    "get_evidence_keys": lambda client: client.get_evidence_keys(),
    "iter_reservations": lambda client: list(client.iter_reservations()),
    "iter_balances": lambda client: list(client.iter_balances()),
    "warm_up": lambda client: client.warm_up(),
}
ALIASES = {"iter_reservations": "list_reservations", "iter_balances": "get_balances", "warm_up": "get_evidence_keys"}


class Script:
    """A transport that gives the answer of the case at hand."""

    def __init__(self):
        self.answer = None
        self.calls = 0

    def send(self, call):
        self.calls += 1
        if isinstance(self.answer, CyclesError):
            return self.answer
        return Answer(*self.answer)

    def close(self):
        """There is nothing to close."""


def outcome_of(name, client, status, content):
    """What the client made of an answer, once that is proven right."""
    try:
        made = ASK[name](client)
    except CyclesError as e:
        hygienic(e)
        return type(e).__name__
    if name == "warm_up":
        assert type(made) is bool
        return "accepted"
    operation = OPERATIONS[ALIASES.get(name, name)]
    assert status == operation.status
    if name == "commit_reservation":
        assert oracles.commit_is_proven(status, content)
    if name == "create_event":
        assert oracles.event_is_proven(status, content)
    for response in [made] if name not in ALIASES else []:
        assert isinstance(response, operation.response)
        assert response.body == content
        for read in (repr, lambda it: it.to_json(), lambda it: it.rate_limit_reset, lambda it: it.rate_limit_remaining):
            read(response)
        assert response.request_id is None or type(response.request_id) is str
    return "accepted"


# ---- Tests ----


def test_answers(fuzz, logged):
    """At the transport's seam, where most of them go."""
    script = Script()

    with client_of("http://127.0.0.1:9", transport=script, retry_enabled=False, journal_enabled=False) as client:

        def check(case):
            del logged[:]
            name = case.random.choice(list(ASK))
            script.answer = status, headers, content = odd_answer(case.random, OPERATIONS[ALIASES.get(name, name)])
            case.show(name=name, status=status, headers=headers, content=content)
            made = outcome_of(name, client, status, content)
            if made != "accepted" and name == "commit_reservation":
                assert not oracles.commit_is_proven(status, content)
            if made != "accepted" and name == "create_event":
                assert not oracles.event_is_proven(status, content)
            assert not [text for text in logged if KEY in text]
            return made

        fuzz.run(check, short=400)


def test_answers_over_a_socket(fuzz, logged):
    """The head may be broken too, and what follows it may be less or more than it says."""
    sent = {}

    def talk(line):
        while True:
            line.read_request()
            line.send(sent["bytes"])
            if sent["ends"]:
                raise Gone

    with Peer(talk=talk) as peer:
        with client_of(
            peer, connect_timeout=0.5, read_timeout=0.25, retry_enabled=False, journal_enabled=False
        ) as client:

            def check(case):
                del logged[:]
                name = case.random.choice(list(ASK))
                status, headers, content = odd_answer(case.random, OPERATIONS[ALIASES.get(name, name)])
                sent["bytes"], sent["ends"] = on_the_wire(case.random, status, headers, content)
                case.show(name=name, sent=sent["bytes"], ends=sent["ends"])
                try:
                    ASK[name](client)
                except CyclesError as e:
                    hygienic(e)
                    return type(e).__name__
                finally:
                    assert not [text for text in logged if KEY in text]
                return "accepted"

            fuzz.run(check, short=150)


def on_the_wire(random, status, headers, content):
    """An answer as bytes, and whether the connection ends after it."""
    fields = [(name, value.encode("utf-8", "surrogatepass").decode("latin-1")) for name, value in headers.items()]
    fields = [(name, value) for name, value in fields if "\n" not in value and name != "content-encoding"]
    ends = random.random() < 0.9  # one that stays open and says too much costs the whole timeout
    framing = random.randrange(8)
    sent = content
    if framing == 0:
        fields.append(
            ("Transfer-Encoding", random.choice(["chunked", "chunked", "gzip, chunked", "identity", "Chunked "]))
        )
        sent = (
            b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (content[:5], content[5:]) if part) + b"0\r\n\r\n"
        )
    elif framing == 1:
        fields.append(
            ("Content-Length", random.choice(["0", str(len(content) + 5), "-1", "x", "9" * 25, "1, 1", " 3"]))
        )
        ends = True
    elif framing == 2:
        ends = True  # all until the end
    else:
        fields.append(("Content-Length", str(len(content))))
    if random.random() < 0.05:
        fields.append(("Content-Length", str(len(content))))
    version = random.choice(["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/2", "HTTP/0.9", "ICY", "http/1.1"])
    lines = [
        f"{version} {status} {random.choice(['OK', '', 'x' * 200])}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    if random.random() < 0.15:
        head, ends = mutated_bytes(random, head), True
    whole = head + sent
    if random.random() < 0.05:
        whole, ends = whole[: random.randint(0, len(whole))], True
    return whole, ends


def test_reserving(fuzz, logged):
    """The work runs only if an answer proves it may; with `on_unavailable="allow"` also where nobody has said no."""
    script = Script()
    settings = {"retry_enabled": False, "journal_enabled": False, "heartbeat": False, "flush_timeout": 0.0}
    config = config_of("http://127.0.0.1:9", **settings)
    with CyclesClient(config, transport=script) as strict, strict.with_options(on_unavailable="allow") as lenient:

        def check(case):
            status, headers, content = odd_answer(case.random, wire.CREATE_RESERVATION)
            case.show(status=status, headers=headers, content=content)
            allows = case.random.random() < 0.5
            script.answer = status, headers, content
            proven = oracles.may_run(status, content)
            try:
                guard = (lenient if allows else strict).reserve(AMOUNT, ACTION)
            except CyclesError as e:
                hygienic(e)
                return type(e).__name__
            script.answer = (
                200,
                {},
                json.dumps({"status": "RELEASED", "released": {"unit": "TOKENS", "amount": 1}}).encode(),
            )
            for read in (
                repr,
                lambda it: it.caps,
                lambda it: it.balances,
                lambda it: it.reserved,
                lambda it: it.decision,
            ):
                read(guard)
            is_degraded = guard.degraded
            guard.release("seen")
            if proven and not is_degraded:
                return "reserved"
            assert allows
            assert is_degraded
            assert not 400 <= status < 500, status
            return "degraded"

        fuzz.run(check, short=300)
