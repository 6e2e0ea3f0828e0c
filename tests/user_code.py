"""What users write, for type checkers alone: each line that ends in `# refused` is a mistake that they must find."""

# ruff: noqa: B015, B018, F401, I001

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import cycles_lite
from cycles_lite import (
    Action,
    Amount,
    ApiError,
    Balance,
    BalanceRequest,
    BudgetDenied,
    CommitRequest,
    CyclesClient,
    CyclesConfig,
    CyclesMetrics,
    ReservationStatus,
    SignedAmount,
    SortDirection,
    Subject,
    Unit,
    events,
)
from cycles_lite import CyclesClinet  # refused
from cycles_lite import get_cycles_context  # refused

cycles_lite.nothing  # refused

# ---- Configuration ----

config = CyclesConfig(base_url="sqlite:budgets.db", mode="shadow", on_unavailable="allow", journal_dir="journal")
CyclesConfig(base_url="sqlite:budgets.db", mode="shadwo")  # refused
CyclesConfig(base_url="sqlite:budgets.db", on_unavailable="alow")  # refused
CyclesConfig(base_url="sqlite:budgets.db", tennant="acme")  # refused
CyclesConfig(base_url="sqlite:budgets.db", read_timeout="5 s")  # refused
CyclesConfig.from_env("BILLING_", tenant="acme", mode="enforce", connect_timeout=1, journal_dir=Path("journal"))
CyclesConfig.from_env(tennant="acme")  # refused
CyclesConfig.from_env(mode="on")  # refused
config.replace(tenant=None, api_key=os.environ["KEY"], max_connections=4)
config.replace(max_conections=4)  # refused
config.replace(mode=True)  # refused
is_shadow: bool = config.mode == "shadow"

# ---- Clients ----

client = CyclesClient.from_env(tenant="acme", heartbeat=False, observer=print)
CyclesClient.from_env(tennant="acme")  # refused
CyclesClient.from_env(on_unavailable="never")  # refused
tenants_client: CyclesClient = client.with_options(tenant="acme", api_key="key", ca_certs=Path("ca.pem"))
client.with_options(api_kye="key")  # refused
client.with_options(mode="of")  # refused
client.with_options(read_timeout=None)  # refused
client.stream_reservation()  # refused
client.with_options(warn_below=None)
client.with_options(warn_below="20%")  # refused


def shown_left(then: float, now: float | None) -> None: ...


def observe(event: events.Event) -> None:
    if isinstance(event, events.RunningLow):
        shown_left(event.fraction, event.balance.fraction_left)
        event.nothing  # refused


CyclesClient(config, observer=observe)
CyclesClient(config, observer=observe).with_options(observer=observe)  # refused

# ---- Filters ----

client.get_balances(tenant="acme", include_children=True, limit=10)
client.get_balances(BalanceRequest(agent="bot"))
client.get_balances(tenants="acme")  # refused
client.get_balances(include_children="yes")  # refused
found: list[Balance] = list(client.iter_balances(agent="bot", cursor=None))
client.iter_balances(agnet="bot")  # refused
client.list_reservations(status="ACTIVE", sort_dir="desc", from_="2026-01-01T00:00:00Z", include=["metadata"])
client.list_reservations(status=ReservationStatus.ACTIVE, sort_dir=SortDirection.ASC, include=("metadata",))
client.list_reservations(status="ACTIV")  # refused
client.list_reservations(sort_dir="down")  # refused
client.list_reservations(expires_form="2026-01-01T00:00:00Z")  # refused
for reservation in client.iter_reservations(tenant="acme", limit=200):
    print(reservation.reservation_id, reservation.reserved + Amount.tokens(1))
client.iter_reservations(limit="200")  # refused

# ---- Amounts ----

cost: Amount = Amount.usd("0.05") + Amount.usd(Decimal("0.01")) - Amount.usd(0)
Amount.usd(0.05)  # refused
Amount.tokens(1.5)  # refused
cost + 1  # refused
1 + cost  # refused
total: Amount = sum([cost, cost], Amount.usd(0))
in_dollars: Decimal = cost.dollars
is_cheap: bool = cost < Amount.usd(1) and cost >= Amount.usd(0) and cost != total
cost < 5  # refused
left: SignedAmount = found[0].remaining - cost
can_pay: bool = found[0].remaining >= cost
print(max(cost, total), sorted([cost, total]), f"{cost}")
Amount(unit="EUR", amount=1)  # refused
Amount(unit=Unit.TOKENS, amount=1)

# ---- Guards and errors ----

try:
    with client.reserve(cost, Action("llm.completion", "gpt-4o"), subject=Subject(tenant="acme")) as guard:
        guard.commit(cost, metrics=CyclesMetrics(tokens_input=1, latency_ms=12), metadata={"run": 7})
        guard.commit(7)  # refused
    client.reserve(cost, Action("llm.completion", "gpt-4o"), ttl=1000)  # refused
except BudgetDenied as e:
    print(e.code, e.status, e.details.get("remaining"), e.retry_after, e.request_id, e.is_retryable)
    e.error_code  # refused
    e.is_retryable()  # refused
except ApiError as e:
    print(e.evidence.evidence_id if e.evidence else None)
    e.retry_after_ms  # refused

request, faults = CommitRequest.of_spend(cost, metrics=None, metadata={"run": 7})
print(request.actual.amount, [fault.message for fault in faults])
