"""An agent whose tools are budgeted by risk: what it may break is limited, not only what it may use up.

    cycles-lite budget set tenant:acme RISK_POINTS:200 --db budgets.db
    export CYCLES_BASE_URL=sqlite:budgets.db CYCLES_TENANT=acme CYCLES_AGENT=operator
    cycles-lite budget set tenant:acme/agent:operator RISK_POINTS:60 --caps '{"tool_denylist": ["delete"]}'
    python examples/risk_points.py
    cycles-lite budget list

The tenant's 200 points are for all its agents; the operator may use 60 of them.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

from cycles_lite import Action, Amount, BudgetDenied, CyclesClient


class Tool(NamedTuple):
    #: What one use of it takes of the budget of risk.
    risk: int
    run: Callable[[str], str]


TOOLS = {
    "search": Tool(0, lambda what: f"found {what}"),
    "email": Tool(10, lambda what: f"sent {what}"),
    "deploy": Tool(40, lambda what: f"deployed {what}"),
    "delete": Tool(5, lambda what: f"deleted {what}"),
}

#: What a model would ask for, one after the other.
PLAN = [
    ("search", "the fault"),
    ("email", "the report"),
    ("delete", "the table"),
    ("deploy", "the mend"),
    ("email", "the news"),
    ("email", "more news"),
    ("search", "what to do now"),
]


def use(client: CyclesClient, name: str, what: str) -> str:
    """Use one tool, if the budget of risk and the caps of it allow that; what the model is told comes back."""
    tool = TOOLS[name]
    try:
        with client.reserve(Amount.risk_points(tool.risk), Action("tool." + name, name)) as guard:
            if guard.caps is not None and not guard.caps.is_tool_allowed(name):
                guard.release("the tool is not allowed")
                return f"you may not use {name}"
            result = tool.run(what)
            guard.commit(guard.estimate)  # an action that has run has taken its risk, whatever came of it
            return result
    except BudgetDenied as e:
        return f"too risky now: {e.details['remaining']} points are left, {name} takes {tool.risk}"


def main() -> None:
    with CyclesClient.from_env() as client:
        for name, what in PLAN:
            print(f"{name}: {use(client, name, what)}")


if __name__ == "__main__":
    main()
