"""What the demo's agent does: each scene uses one thing that the protocol offers, and expects what must come of it.

Each piece of work is the block of a guard, as in a program of one's own: `reserve` holds the estimate before the work
begins, `commit` settles what the work really took, and an exception that leaves the block gives the estimate back.
"""

from __future__ import annotations

from typing import Any, Callable

from ..client import CyclesClient
from ..errors import BudgetDenied
from ..local import Authority
from ..protocol.models import Balance, EventCreateRequest
from ..protocol.values import Action, Amount, Caps, CommitOveragePolicy, Subject, Unit

#: The tenant whose budgets these are, and the scope of its own one; each agent's scope is below that.
TENANT, TENANT_SCOPE = "demo", "tenant:demo"

#: The agents, each with a budget of its own. The client's configuration adds the tenant.
READER, SUMMARIZER, WRITER = Subject(agent="reader"), Subject(agent="summarizer"), Subject(agent="writer")

#: What each scene shows. Its name is that of the method which plays it.
SCENES = {
    "read": "1. Reserve the estimate before each paragraph, commit what it really took, until the budget says no.",
    "caps": "2. An answer can carry limits: ALLOW_WITH_CAPS.",
    "release": "3. Work that fails gives its reservation back.",
    "event": "4. What was not reserved can still be recorded: an event.",
    "overrun": "5. Work may cost more than was reserved; with an overdraft that is debt, until it is funded.",
    "risk": "6. Not everything that is spent is tokens: an e-mail costs three of five RISK_POINTS.",
}

#: Tokens beyond the reader's that the tenant has for the other agents.
_FOR_OTHERS = 500

#: The longest summary that the caps allow, in tokens.
_SUMMARY = 40


def count_words(text: str) -> int:
    """The demo's token counter, for which a word is a token. A real program asks its model's own."""
    return len(text.split())


def scope_of(agent: Subject) -> str:
    """The scope of an agent's own budget."""
    return f"{TENANT_SCOPE}/agent:{agent.agent}"


class ToolBroke(Exception):
    """What the demo's tool raises."""


class Story:
    """The agent at work, and everything that is told of it."""

    def __init__(self, client: CyclesClient, authority: Authority, parts: list[str], tell: Callable[..., None]) -> None:
        #: The agent works with the client alone; the authority sets the budgets, funds them, and checks its ledger.
        self.client, self.authority = client, authority
        #: The text that the agent reads, in parts that it reads one at a time.
        self.parts = parts
        #: Takes the story, line by line.
        self.tell = tell
        #: The scenes that have been played, each with its name and the facts of its steps.
        self.scenes: list[dict[str, Any]] = []
        #: What had to be so, and whether it was.
        self.checks: dict[str, bool] = {}
        #: Every budget as it is at the end of the story.
        self.balances: list[Balance] = []
        #: The sum of the tokens that the authority said it charged.
        self.charged = 0

    def play(self) -> None:
        """Play every scene and look at the ledger afterwards."""
        self.provision()
        for name, title in SCENES.items():
            self.scenes.append({"scene": name, "steps": []})
            self.tell(f"\n{title}\n")
            getattr(self, name)()
        self.settle_accounts()

    @property
    def held(self) -> bool:
        """Whether all that had to be so was so."""
        return all(self.checks.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "scenes": self.scenes,
            "balances": [balance.to_json() for balance in self.balances],
            "checks": [{"what": what, "held": held} for what, held in self.checks.items()],
            "held": self.held,
        }

    # ---- How it is told ----

    def step(self, line: str, *words: str, **facts: Any) -> None:
        """Tell a line, whose places are filled with words, which are told alone, and facts, which `--json` shows."""
        self.scenes[-1]["steps"].append(facts)
        self.tell("  " + line.format(*words, **facts))

    def count(self, charged: Amount | None) -> int:
        """Remember what the authority said it charged, to compare the ledger with it in the end."""
        charged = charged or Amount.tokens(0)  # while a commit is pending, the authority has not said it
        self.charged += charged.amount if charged.unit == Unit.TOKENS else 0
        return charged.amount

    def attempt(self, what: str, amount: Amount, action: Action, agent: Subject) -> str | None:
        """Do work that takes just its estimate, and tell what the authority said. Returns the code of a denial."""
        try:
            with self.client.reserve(amount, action, subject=agent) as guard:
                self.count(guard.commit(amount).charged)
        except BudgetDenied as e:
            self.step(what + ": DENIED, {denied}", denied=e.code)
            return e.code
        self.step(what + ": {decision}", decision=guard.decision)
        return None

    def account(self, agent: Subject) -> tuple[int, int]:
        """What an agent's budget has left, and its debt, in tokens."""
        (balance,) = self.client.iter_balances(tenant=TENANT, agent=agent.agent)
        return balance.remaining.amount, balance.debt.amount if balance.debt else 0

    # ---- The scenes ----

    def provision(self) -> None:
        words = sum(map(count_words, self.parts))
        reader = max(1, words * 3 // 5)
        self.authority.set_budget(TENANT_SCOPE, Amount.tokens(reader + _FOR_OTHERS))
        self.authority.set_budget(scope_of(READER), Amount.tokens(reader))
        self.authority.set_budget(scope_of(SUMMARIZER), Amount.tokens(200), caps=Caps(max_tokens=_SUMMARY))
        self.authority.set_budget(scope_of(WRITER), Amount.tokens(50), overdraft_limit=100)
        self.authority.set_budget(TENANT_SCOPE, Amount.risk_points(5))
        counter = "(its counter: a word is a token)"
        self.tell(f"An agent shall read {words:,} words, and its budget is {reader:,} tokens {counter}.")

    def read(self) -> None:
        action = Action("llm.completion", "reader")
        for number, part in enumerate(self.parts, 1):
            estimate = -(-count_words(part) * 5 // 4)  # a quarter more than it will be: estimates are rough
            facts: dict[str, Any] = {"paragraph": number, "estimate": estimate}
            try:
                with self.client.reserve(Amount.tokens(estimate), action, subject=READER) as guard:
                    settlement = guard.commit(Amount.tokens(count_words(part)))
            except BudgetDenied as e:
                facts.update(denied=e.code, scope=e.details.get("scope"), remaining=e.details.get("remaining"))
                told = "paragraph {paragraph:3}  needs {estimate:3}  DENIED: {remaining} left in {scope}; "
                self.step(told + "it stays unread", **facts)
                break
            told = "paragraph {paragraph:3}  reserved {estimate:3}  took {charged:3}  {} ..."
            self.step(told, " ".join(part.split()[:6]), **facts, charged=self.count(settlement.charged))
        last = self.scenes[-1]["steps"][-1]
        self.checks["the budget said no before the text was read to its end"] = "denied" in last

    def caps(self) -> None:
        action = Action("llm.completion", "summarizer")
        with self.client.reserve(Amount.tokens(100), action, subject=SUMMARIZER) as guard:
            limit = guard.caps.max_tokens if guard.caps and guard.caps.max_tokens is not None else 100
            summary = " ".join(self.parts).split()[:limit]
            charged = self.count(guard.commit(Amount.tokens(len(summary))).charged)
        told = "asked for 100 tokens: {decision}, at most {max_tokens}; the summary took {charged}"
        self.step(told, decision=guard.decision, max_tokens=limit, charged=charged)
        self.checks["the caps were there, and the work kept to them"] = guard.is_capped and charged <= limit

    def release(self) -> None:
        before = during = self.account(SUMMARIZER)[0]
        try:
            with self.client.reserve(Amount.tokens(60), Action("tool.search", "web"), subject=SUMMARIZER):
                during = self.account(SUMMARIZER)[0]
                raise ToolBroke("the search tool is down")
        except ToolBroke as e:
            reason = type(e).__name__
        after = self.account(SUMMARIZER)[0]
        told = "left before {before}, while held {held}; {reason}: {released} released, left {after}"
        self.step(told, before=before, held=during, released=after - during, after=after, reason=reason)
        self.checks["the released amount came back"] = (during, after) == (before - 60, before)

    def event(self) -> None:
        amount = Amount.tokens(count_words(self.parts[0]))
        request = EventCreateRequest(Action("llm.embedding", "index"), amount, Subject(tenant=TENANT))
        event = self.client.create_event(request)
        charged = self.count(event.charged or amount)
        self.step("an embedding of paragraph 1 took {charged} tokens: {event}", event=event.status, charged=charged)
        self.checks["the event was applied in full"] = charged == amount.amount

    def overrun(self) -> None:
        action, policy = Action("llm.completion", "writer"), CommitOveragePolicy.ALLOW_WITH_OVERDRAFT
        with self.client.reserve(Amount.tokens(40), action, subject=WRITER, overage_policy=policy) as guard:
            charged = self.count(guard.commit(Amount.tokens(90)).charged)
        left, debt = self.account(WRITER)
        told = "reserved {reserved}, took {charged}: {left} left, debt {debt}"
        self.step(told, reserved=40, charged=charged, left=left, debt=debt)
        denied = self.attempt("the next 10", Amount.tokens(10), action, WRITER)
        self.authority.fund(scope_of(WRITER), Amount.tokens(100))
        left, rest = self.account(WRITER)
        self.step("funded with 100: {left} left, debt {debt}", left=left, debt=rest)
        refused = self.attempt("the next 10", Amount.tokens(10), action, WRITER)
        what = "the overrun became debt, stopped the next work, and funding repaid it first"
        self.checks[what] = debt == 40 and denied is not None and rest == 0 and refused is None

    def risk(self) -> None:
        action, cost = Action("tool.email", "send"), Amount.risk_points(3)
        self.attempt("first e-mail", cost, action, READER)
        denied = self.attempt("second e-mail", cost, action, READER)
        self.checks["the second e-mail was not sent"] = denied == "BUDGET_EXCEEDED"

    def settle_accounts(self) -> None:
        """Compare the ledger with what the agent was told, and with its own invariant."""
        self.balances = list(self.client.iter_balances(tenant=TENANT))
        spent = [row.spent for row in self.balances if row.scope_path == TENANT_SCOPE and row.spent]
        what = f"the ledger holds what the agent was told it was charged: {self.charged:,} tokens"
        self.checks[what] = Amount.tokens(self.charged) in spent
        what = "the ledger's invariant: remaining = allocated - spent - reserved - debt, and every hold accounted for"
        self.checks[what] = not self.authority.check()
