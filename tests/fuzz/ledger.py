"""An authority that remembers what was settled by key, and answers badly as long as it is told to."""

from __future__ import annotations

import json

from answers import odd_answer

from cycles_lite.protocol import wire
from cycles_lite.protocol.wire import Answer


class Ledger:
    """A transport. `bad` is the number of commits and events that it answers with mutated answers; of these it carries
    some out before, unless the answer says no."""

    def __init__(self, random=None, bad=0):
        self.random, self.bad = random, bad
        #: What was carried out, by idempotency key: the operation's name, the reservation's id, the body.
        self.settled = {}
        #: How often each key was carried out; a replay does not count.
        self.times = {}
        self.released = []
        #: Payloads that came under the key of another.
        self.changed = []
        self.has_lied = False
        #: The answers to commits and events, in their order: the operation, the status, the body.
        self.answers = []

    def send(self, call):
        operation = call.operation
        data = json.loads(call.body.decode("ascii")) if call.data is not None else {}
        if operation is wire.CREATE_RESERVATION:
            id = "rsv_" + data["idempotency_key"]
            return reply(200, decision="ALLOW", reservation_id=id, affected_scopes=["tenant:acme"])
        if operation is wire.RELEASE_RESERVATION:
            self.released.append(call.id)
            return reply(200, status="RELEASED", released={"unit": "TOKENS", "amount": 1})
        if operation not in (wire.COMMIT_RESERVATION, wire.CREATE_EVENT):
            return reply(404, error="NOT_FOUND", message="there is nothing else")
        if self.bad:
            self.bad -= 1
            answer = Answer(*odd_answer(self.random, operation))
            if not 400 <= answer.status < 500 and self.random.random() < 0.5:
                self._carry_out(operation, call.id, data)
        else:
            self._carry_out(operation, call.id, data)
            answer = good(operation, data)
        self.answers.append((operation.name, answer.status, answer.body))
        return answer

    def close(self):
        """There is nothing to close."""

    def _carry_out(self, operation, id, data):
        key, wanted = json.dumps(data.get("idempotency_key")), (operation.name, id, data)
        known = self.settled.setdefault(key, wanted)
        if known is wanted:
            self.times[key] = self.times.get(key, 0) + 1
        elif known[0] != operation.name:  # a commit was carried out, and then called expired
            self.has_lied = True
        elif known != wanted:
            self.changed.append((known, wanted))


def good(operation, data):
    if operation is wire.COMMIT_RESERVATION:
        return reply(200, status="COMMITTED", charged=data.get("actual") or {"unit": "TOKENS", "amount": 0})
    return reply(201, status="APPLIED", event_id="evt_1")


def reply(code, **data):
    return Answer(code, {}, json.dumps(data).encode("ascii"))
