"""`POST /v1/admin/budgets/fund`: the official admin server's call, its answers and its refusals."""

from __future__ import annotations

import re
import signal

import pytest
from serving import ADMIN_KEY, Http, asking, committing, new_key, process, serving, tokens

from cycles_lite import Amount

PATH = "/v1/admin/budgets/fund?scope=tenant:acme&unit=TOKENS"
ELSEWHERE = "/v1/admin/budgets/fund?scope=tenant:rival&unit=TOKENS"
MAX = 2**63 - 1


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def http(served):
    """A connection with the admin's key."""
    with Http(served.url, X_Admin_API_Key=ADMIN_KEY) as http:
        yield http


def funding(operation="CREDIT", amount=5, **fields):
    made = {"operation": operation, "amount": tokens(amount), "idempotency_key": new_key(), **fields}
    return {name: value for name, value in made.items() if value is not ...}


def acme(served):
    """The budget of the tenant acme itself."""
    (found,) = [one for one in served.authority.budgets() if (one.scope, one.unit) == ("tenant:acme", "TOKENS")]
    return found


NAMES = ("allocated", "remaining", "debt", "spent")
STEPS = [
    # operation, amount; allocated, remaining, debt, spent after it
    ("CREDIT", 10, (110, -20, 20, 110)),
    ("REPAY_DEBT", 5, (110, -15, 15, 110)),
    ("REPAY_DEBT", 20, (115, 5, 0, 110)),
    ("DEBIT", 5, (110, 0, 0, 110)),
    ("RESET", 30, (30, -80, 0, 110)),
    ("RESET_SPENT", 40, (40, 40, 0, 0)),
    ("RESET_SPENT", (40, 15), (40, 25, 0, 15)),
]


def test_each_operation_tells_what_was_and_what_is(served, http):
    """One after the other, on a budget that has spent and owes."""
    served.authority.set_budget("tenant:acme", Amount.tokens(100), overdraft_limit=50)
    with Http(served.url, served.key) as ours:
        held = ours("POST", "/v1/reservations", asking(60, overage_policy="ALLOW_WITH_OVERDRAFT")).data
        path = "/v1/reservations/{}/commit".format(held["reservation_id"])
        assert ours("POST", path, committing(130)).status == 200  # of which 30 are owed
    before = (100, -30, 30, 100)
    for operation, amount, after in STEPS:
        fields = {"spent": tokens(amount[1])} if isinstance(amount, tuple) else {}
        reply = http("POST", PATH, funding(operation, amount[0] if fields else amount, **fields))
        assert reply.status == 200
        told = dict(reply.data)
        assert re.match(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z\Z", told.pop("timestamp"))
        expected = {"operation": operation}
        for name, old, new in zip(NAMES, before, after):
            expected.update({f"previous_{name}": tokens(old), f"new_{name}": tokens(new)})
        assert told == expected
        found = acme(served)
        assert (found.allocated, found.remaining, found.debt, found.spent) == after
        before = after


def test_an_operation_happens_once(served, http):
    """A replay has the same answer, whatever happened meanwhile, and another payload under the key is a mismatch."""
    body = funding("CREDIT", 5, reason="a top-up", metadata={"ticket": 5})
    first = http("POST", PATH, body)
    served.authority.fund("tenant:acme", Amount.tokens(1))
    served.authority.close("tenant:acme")
    again = http("POST", PATH, {**body, "metadata": None}, X_Idempotency_Key=body["idempotency_key"])
    assert (again.status, again.data) == (200, first.data)
    for changed in ({"amount": tokens(6)}, {"operation": "REPAY_DEBT"}, {"reason": "another"}):
        reply = http("POST", PATH, {**body, **changed})
        assert (reply.status, reply.error) == (409, "IDEMPOTENCY_MISMATCH")
    deeper = PATH.replace("&", "/agent:bot&")
    assert http("POST", deeper, body).error == "IDEMPOTENCY_MISMATCH"
    assert http("POST", ELSEWHERE, body).status == 200  # the keys of another tenant are its own
    assert acme(served).allocated == 1_000_006


def test_a_tenants_own_key_is_enough(served):
    """For its own budgets, upper case or not; the admin's counts where both are sent."""
    with Http(served.url, served.key) as ours:
        reply = ours("POST", PATH.replace("tenant:acme", "TENANT:Acme/agent:Bot"), funding("DEBIT", 400))
        assert (reply.status, reply.headers["x-cycles-tenant"]) == (200, "acme")
        assert reply.data["new_remaining"] == tokens(600)
        reply = ours("POST", ELSEWHERE, funding())
        assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
        assert ours("POST", ELSEWHERE, funding(), X_Admin_API_Key=ADMIN_KEY).status == 200
        assert ours("POST", PATH, funding(), X_Admin_API_Key="wrong").status == 401
        keys = served.authority.keys()
        served.authority.revoke_key(next(one.key_id for one in keys if one.tenant_id == "acme"))
        assert ours("POST", PATH, funding()).status == 401
    with Http(served.url) as nobody:
        assert nobody("POST", PATH, b"{").status == 401


def test_what_the_budget_does_not_allow(served, http):
    """Each refusal has its code, and its facts in `details`; nothing changes."""
    before, credits = served.authority.budgets(), {"unit": "CREDITS", "amount": 5}
    for target, body, status, code in (
        (PATH, funding("DEBIT", 1_000_001), 409, "BUDGET_EXCEEDED"),
        (PATH.replace("TOKENS", "CREDITS"), funding(amount=5), 400, "UNIT_MISMATCH"),
        (PATH.replace("TOKENS", "CREDITS"), {**funding(), "amount": credits}, 400, "UNIT_MISMATCH"),
        (PATH, funding("RESET_SPENT", spent=credits), 400, "UNIT_MISMATCH"),
        (PATH.replace("acme", "nobody"), funding(), 404, "NOT_FOUND"),
        (PATH, funding(amount=MAX), 400, "INVALID_REQUEST"),
        (PATH, funding("REPAY_DEBT", amount=MAX), 400, "INVALID_REQUEST"),
    ):
        reply = http("POST", target, body)
        assert (reply.status, reply.error) == (status, code)
    details = http("POST", PATH, funding("DEBIT", 1_000_001)).data["details"]
    assert details == {"scope": "tenant:acme", "unit": "TOKENS", "requested": 1_000_001, "remaining": 1_000_000}
    assert served.authority.budgets() == before
    served.authority.freeze("tenant:acme")
    assert http("POST", PATH, funding()).data["new_remaining"] == tokens(1_000_005)
    served.authority.close("tenant:acme")
    reply = http("POST", PATH, funding())
    assert (reply.status, reply.error) == (409, "BUDGET_CLOSED")
    served.authority.delete_budget("tenant:acme")
    reply = http("POST", PATH, funding())
    assert (reply.status, reply.error) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (PATH, b""),
        (PATH, b"[]"),
        (PATH, {}),
        (PATH, funding(operation=...)),
        (PATH, funding(operation=None)),
        (PATH, funding(operation="credit")),
        (PATH, funding(operation=["CREDIT"])),
        (PATH, funding(operation="WITHDRAW")),
        (PATH, funding(amount=-1)),
        (PATH, funding(amount=1.5)),
        (PATH, funding(amount=True)),
        (PATH, funding(amount=2**63)),
        (PATH, {**funding(), "amount": 5}),
        (PATH, {**funding(), "amount": {"unit": "EUR", "amount": 5}}),
        (PATH, {**funding(), "amount": {"amount": 5}}),
        (PATH, funding(spent=tokens(5))),
        (PATH, funding("RESET_SPENT", spent=5)),
        (PATH, funding("RESET_SPENT", spent=tokens(-1))),
        (PATH, funding(reason=5)),
        (PATH, funding(reason="x" * 513)),
        (PATH, funding(reason="\ud800")),
        (PATH, funding(idempotency_key=...)),
        (PATH, funding(idempotency_key=None)),
        (PATH, funding(idempotency_key="")),
        (PATH, funding(idempotency_key=5)),
        (PATH, funding(idempotency_key="x" * 257)),
        (PATH, funding(idempotency_key="\ud800")),
        (PATH, funding(colour="red")),
        (PATH, funding(scope="tenant:acme", unit="TOKENS")),
        ("/v1/admin/budgets/fund", funding()),
        (PATH.replace("&unit=TOKENS", ""), funding()),
        (PATH.replace("scope=tenant:acme&", ""), funding()),
        (PATH.replace("TOKENS", "EUR"), funding()),
        (PATH.replace("TOKENS", ""), funding()),
        (PATH.replace("tenant:acme", ""), funding()),
        (PATH.replace("tenant:acme", "agent:bot"), funding()),
        (PATH.replace("tenant:acme", "tenant:acme/agent:%00"), funding()),
    ],
)
def test_what_cannot_be_meant_is_400(served, http, target, body):
    before = served.authority.budgets()
    reply = http("POST", target, body)
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert served.authority.budgets() == before


def test_the_header_must_have_the_same_key(served, http):
    before = served.authority.budgets()
    reply = http("POST", PATH, funding(), X_Idempotency_Key="another")
    assert (reply.status, reply.error) == (400, "INVALID_REQUEST")
    assert served.authority.budgets() == before
    assert http("GET", PATH).status == 405


def test_without_an_admin_key_there_is_no_such_path(tmp_path):
    with serving(tmp_path, admin_key=None) as served, Http(served.url, served.key) as http:
        assert http("POST", PATH, funding()).status == 404


def test_two_servers_on_one_file_fund_once(tmp_path):
    """Real processes: the second finds the answer that the first has stored, after that one was killed."""
    arguments = ["--tenant", "acme", "--api-key", "acme-key", "--budget", "tenant:acme=TOKENS:10"]
    body = funding("CREDIT", 5)
    with process(tmp_path, "--admin-key", ADMIN_KEY, *arguments) as server, Http(server.url, "acme-key") as http:
        first = http("POST", PATH, body)
        assert first.status == 200
        server.end(signal.SIGKILL)
    with process(tmp_path, "--admin-key", ADMIN_KEY) as server, Http(server.url, "acme-key") as http:
        again = http("POST", PATH, body)
        assert (again.status, again.data) == (200, first.data)
        (balance,) = http("GET", "/v1/balances?tenant=acme").data["balances"]
        assert balance["allocated"] == tokens(15)
