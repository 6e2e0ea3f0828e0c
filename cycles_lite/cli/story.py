"""What the demo's agent does: each scene uses one thing that the protocol offers, and expects what must come of it.

The scenes use the programmatic client alone, so that every call can be read off.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from ..client import CyclesClient
from ..errors import BudgetDenied, CyclesError
from ..local import Authority
from ..protocol.models import (
    Balance,
    CommitRequest,
    EventCreateRequest,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationCreateResponse,
)
from ..protocol.values import Action, Amount, Caps, CommitOveragePolicy, Decision, Subject
from .texts import count_words

#: Tokens beyond the reader's that the tenant has for the other agents.
_FOR_OTHERS = 500

#: The longest summary that the caps allow, in tokens.
_SUMMARY = 40

TENANT_SCOPE = "tenant:demo"
READER, SUMMARIZER, WRITER = "reader", "summarizer", "writer"


class Check(NamedTuple):
    """Something that had to be so."""

    what: str
    held: bool


class Told:
    """What happened."""

    def __init__(self) -> None:
        self.scenes: list[dict[str, Any]] = []
        self.checks: list[Check] = []
        self.balances: list[Balance] = []
        #: Tokens that the authority said it charged.
        self.charged = 0

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "scenes": self.scenes,
            "balances": [balance.to_json() for balance in self.balances],
            "checks": [check._asdict() for check in self.checks],
            "held": self.held,
        }


class _Stage:
    """Where the scenes play."""

    def __init__(self, client: CyclesClient, authority: Authority, parts: list[str], tell: Callable[..., None]) -> None:
        self.client, self.authority, self.parts, self.tell = client, authority, parts, tell
        self.told = Told()

    def scene(self, name: str, title: str) -> None:
        self.told.scenes.append({"scene": name, "steps": []})
        self.tell()
        self.tell(title)
        self.tell()

    def step(self, line: str, **facts: Any) -> None:
        self.told.scenes[-1]["steps"].append(facts)
        self.tell("  " + line)

    def expect(self, what: str, held: bool) -> None:
        self.told.checks.append(Check(what, held))

    def reserve(self, agent: str, amount: Amount, action: Action, **more: Any) -> ReservationCreateResponse:
        request = ReservationCreateRequest(action=action, estimate=amount, subject=Subject(agent=agent), **more)
        return self.client.create_reservation(request)

    def commit(self, held: ReservationCreateResponse, amount: Amount) -> Amount:
        charged = self.client.commit_reservation(str(held.reservation_id), CommitRequest(actual=amount)).charged
        if amount.unit == "TOKENS":
            self.told.charged += charged.amount
        return charged


def run(client: CyclesClient, authority: Authority, parts: list[str], tell: Callable[..., None]) -> Told:
    """Play every scene and look at the ledger afterwards."""
    stage = _Stage(client, authority, parts, tell)
    _provision(stage)
    for scene in (_read, _summarize, _fail, _record, _overrun, _risk):
        scene(stage)
    _settle_accounts(stage)
    return stage.told


def _provision(stage: _Stage) -> None:
    words = sum(count_words(part) for part in stage.parts)
    reader = max(1, words * 3 // 5)
    budgets = stage.authority
    budgets.set_budget(TENANT_SCOPE, Amount.tokens(reader + _FOR_OTHERS))
    budgets.set_budget(f"{TENANT_SCOPE}/agent:{READER}", Amount.tokens(reader))
    budgets.set_budget(f"{TENANT_SCOPE}/agent:{SUMMARIZER}", Amount.tokens(200), caps=Caps(max_tokens=_SUMMARY))
    budgets.set_budget(f"{TENANT_SCOPE}/agent:{WRITER}", Amount.tokens(50), overdraft_limit=100)
    budgets.set_budget(TENANT_SCOPE, Amount.risk_points(5))
    stage.tell(
        f"An agent shall read {words:,} words, and its budget is {reader:,} tokens (its counter: a word is a token)."
    )


def _read(stage: _Stage) -> None:
    stage.scene(
        "read", "1. Reserve the estimate before each paragraph, commit what it really took, until the budget says no."
    )
    denied = False
    for number, part in enumerate(stage.parts, 1):
        estimate = -(-count_words(part) * 5 // 4)  # a quarter more than it will be: estimates are rough
        opening = " ".join(part.split()[:6])
        try:
            held = stage.reserve(READER, Amount.tokens(estimate), Action("llm.completion", "reader"))
        except BudgetDenied as e:
            scope, remaining = e.details.get("scope"), e.details.get("remaining")
            stage.step(
                f"paragraph {number:3}  needs {estimate:3}  DENIED: {remaining} left in {scope}; it stays unread",
                paragraph=number,
                estimate=estimate,
                denied=e.code,
                scope=scope,
                remaining=remaining,
            )
            denied = True
            break
        charged = stage.commit(held, Amount.tokens(count_words(part))).amount
        stage.step(
            f"paragraph {number:3}  reserved {estimate:3}  took {charged:3}  {opening} ...",
            paragraph=number,
            estimate=estimate,
            charged=charged,
        )
    stage.expect("the budget said no before the text was read to its end", denied)


def _summarize(stage: _Stage) -> None:
    stage.scene("caps", "2. An answer can carry limits: ALLOW_WITH_CAPS.")
    held = stage.reserve(SUMMARIZER, Amount.tokens(100), Action("llm.completion", "summarizer"))
    limit = held.caps.max_tokens if held.caps and held.caps.max_tokens is not None else 100
    summary = " ".join(" ".join(stage.parts).split()[:limit])
    charged = stage.commit(held, Amount.tokens(count_words(summary))).amount
    stage.step(
        f"asked for 100 tokens: {held.decision}, at most {limit}; the summary took {charged}",
        decision=held.decision,
        max_tokens=limit,
        charged=charged,
    )
    stage.expect(
        "the caps were there, and the work kept to them", held.decision is Decision.ALLOW_WITH_CAPS and charged <= limit
    )


class _ToolBroke(Exception):
    """What the demo's tool raises."""


def _fail(stage: _Stage) -> None:
    stage.scene("release", "3. Work that fails gives its reservation back.")
    before = _left(stage, SUMMARIZER)
    held = stage.reserve(SUMMARIZER, Amount.tokens(60), Action("tool.search", "web"))
    during = _left(stage, SUMMARIZER)
    try:
        raise _ToolBroke("the search tool is down")
    except _ToolBroke as e:
        reason = type(e).__name__
        released = stage.client.release_reservation(str(held.reservation_id), ReleaseRequest(reason=reason)).released
    after = _left(stage, SUMMARIZER)
    stage.step(
        f"left before {before}, while held {during}; {reason}: {released.amount} released, left {after}",
        before=before,
        held=during,
        released=released.amount,
        after=after,
        reason=reason,
    )
    stage.expect("the released amount came back", (during, after) == (before - 60, before))


def _record(stage: _Stage) -> None:
    stage.scene("event", "4. What was not reserved can still be recorded: an event.")
    amount = Amount.tokens(count_words(stage.parts[0]))
    event = stage.client.create_event(
        EventCreateRequest(action=Action("llm.embedding", "index"), actual=amount, subject=Subject(tenant="demo"))
    )
    charged = (event.charged or amount).amount
    stage.told.charged += charged
    stage.step(
        f"an embedding of paragraph 1 took {charged} tokens: {event.status}", event=event.status, charged=charged
    )
    stage.expect("the event was applied in full", charged == amount.amount)


def _overrun(stage: _Stage) -> None:
    stage.scene(
        "overrun", "5. Work may cost more than was reserved; with an overdraft that is debt, until it is funded."
    )
    policy = CommitOveragePolicy.ALLOW_WITH_OVERDRAFT
    action = Action("llm.completion", "writer")
    held = stage.reserve(WRITER, Amount.tokens(40), action, overage_policy=policy)
    charged = stage.commit(held, Amount.tokens(90)).amount
    stage.step(
        f"reserved 40, took {charged}: {_left(stage, WRITER)} left, debt {_debt(stage)}",
        reserved=40,
        charged=charged,
        left=_left(stage, WRITER),
        debt=_debt(stage),
    )
    in_debt = _debt(stage) == 40
    try:
        stage.reserve(WRITER, Amount.tokens(10), action)
        denied = None
    except BudgetDenied as e:
        denied = e.code
    stage.step(f"the next 10: {'DENIED, ' + denied if denied else 'allowed'}", denied=denied)
    stage.authority.fund(f"{TENANT_SCOPE}/agent:{WRITER}", Amount.tokens(100))
    stage.step(
        f"funded with 100: {_left(stage, WRITER)} left, debt {_debt(stage)}",
        left=_left(stage, WRITER),
        debt=_debt(stage),
    )
    held = stage.reserve(WRITER, Amount.tokens(10), action)
    stage.commit(held, Amount.tokens(10))
    stage.step(f"the next 10: {held.decision}", decision=held.decision)
    stage.expect(
        "the overrun became debt, stopped the next work, and funding repaid it first",
        bool(in_debt and denied and _debt(stage) == 0),
    )


def _risk(stage: _Stage) -> None:
    stage.scene("risk", "6. Not everything that is spent is tokens: an e-mail costs three of five RISK_POINTS.")
    action = Action("tool.email", "send")
    held = stage.reserve(READER, Amount.risk_points(3), action)
    stage.commit(held, Amount.risk_points(3))
    stage.step(f"first e-mail: {held.decision}", decision=held.decision)
    try:
        stage.reserve(READER, Amount.risk_points(3), action)
        denied = None
    except BudgetDenied as e:
        denied = e.code
    stage.step(f"second e-mail: {'DENIED, ' + denied if denied else 'allowed'}", denied=denied)
    stage.expect("the second e-mail was not sent", denied == "BUDGET_EXCEEDED")


def _settle_accounts(stage: _Stage) -> None:
    """The ledger against what the agent was told, and against its own invariant."""
    told = stage.told
    told.balances = list(stage.client.iter_balances(tenant="demo"))
    whole = [row for row in told.balances if row.scope_path == TENANT_SCOPE and row.remaining.unit == "TOKENS"]
    spent = whole[0].spent.amount if whole and whole[0].spent else -1
    stage.expect(
        f"the ledger holds what the agent was told it was charged: {told.charged:,} tokens", spent == told.charged
    )
    violations = stage.authority.check()
    stage.expect(
        "the ledger's invariant: remaining = allocated - spent - reserved - debt, and every hold accounted for",
        not violations,
    )


def _balance(stage: _Stage, agent: str) -> Balance:
    for balance in stage.client.iter_balances(tenant="demo", agent=agent):
        if balance.remaining.unit == "TOKENS":
            return balance
    raise CyclesError(f"there is no budget for agent {agent}")


def _left(stage: _Stage, agent: str) -> int:
    return _balance(stage, agent).remaining.amount


def _debt(stage: _Stage) -> int:
    debt = _balance(stage, WRITER).debt
    return debt.amount if debt else 0
