"""The same work by each of the peers: hold an estimate, then settle it with what it cost."""

from __future__ import annotations

import http.client
import json
import os
import threading
from typing import Any, Callable
from urllib.parse import urlsplit

import urllib3

from cycles_lite import (
    Action,
    Amount,
    CommitRequest,
    CyclesClient,
    CyclesConfig,
    ReservationCreateRequest,
    Unit,
    cycles,
)

KEY = "cyc_live_0123456789abcdef"
Work = Callable[[], Any]


def config(url: str, **changes: Any) -> CyclesConfig:
    return CyclesConfig(**{"base_url": url, "api_key": KEY, "tenant": "acme", "agent": "bot", **changes})


# ---- This library ----


def request() -> ReservationCreateRequest:
    return ReservationCreateRequest(
        action=Action("llm.completion", "gpt-4o"), estimate=Amount.tokens(1000), ttl_ms=60_000
    )


def plain(client: CyclesClient) -> Work:
    """The programmatic client."""

    def work() -> None:
        created = client.create_reservation(request())
        client.commit_reservation(created.reservation_id or "", CommitRequest(actual=Amount.tokens(742)))

    return work


def guarded(client: CyclesClient) -> Work:
    """The guard."""

    def work() -> None:
        with client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o")) as guard:
            guard.commit(Amount.tokens(742))

    return work


def decorated(client: CyclesClient) -> Work:
    """The decorator."""

    @cycles(
        estimate=1000,
        actual=lambda value: value,
        unit=Unit.TOKENS,
        action_kind="llm.completion",
        action_name="gpt-4o",
        client=client,
    )
    def work() -> int:
        return 742

    return work


# ---- Bare urllib3, and bare http.client ----


class Bare:
    """The two requests and no more: JSON encoded and decoded each time, through a pool."""

    def __init__(self, url: str, maxsize: int = 1) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._pool = urllib3.HTTPConnectionPool(self._host, self._port, maxsize=maxsize, block=True)

    def _sent(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        return self._pool.urlopen("POST", path, body=body, headers=headers).data

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {
            "X-Cycles-API-Key": KEY,
            "X-Idempotency-Key": body["idempotency_key"],
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        return json.loads(self._sent(path, json.dumps(body).encode("utf-8"), headers))

    def work(self) -> None:
        created = self._post(
            "/v1/reservations",
            {
                "idempotency_key": os.urandom(16).hex(),
                "subject": {"tenant": "acme", "agent": "bot"},
                "action": {"kind": "llm.completion", "name": "gpt-4o"},
                "estimate": {"unit": "TOKENS", "amount": 1000},
                "ttl_ms": 60_000,
            },
        )
        self._post(
            "/v1/reservations/{}/commit".format(created["reservation_id"]),
            {"idempotency_key": os.urandom(16).hex(), "actual": {"unit": "TOKENS", "amount": 742}},
        )


class BareHttp(Bare):
    """The same through the standard library: a connection for each thread, because they cannot be shared."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._own = threading.local()

    def _sent(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._host, self._port)
        self._own.connection.request("POST", path, body, headers)
        return self._own.connection.getresponse().read()


# ---- The official SDK ----


def official(url: str) -> tuple[Work, Work]:
    """Its programmatic client and its decorator. Raises `ImportError` where it is not installed."""
    import runcycles

    client = runcycles.CyclesClient(runcycles.CyclesConfig(base_url=url, api_key=KEY, tenant="acme", agent="bot"))
    subject = runcycles.Subject(tenant="acme", agent="bot")

    def tokens(amount: int) -> Any:
        return runcycles.Amount(unit=runcycles.Unit.TOKENS, amount=amount)

    def programmatic() -> None:
        created = client.create_reservation(
            runcycles.ReservationCreateRequest(
                idempotency_key=os.urandom(16).hex(),
                subject=subject,
                action=runcycles.Action(kind="llm.completion", name="gpt-4o"),
                estimate=tokens(1000),
                ttl_ms=60_000,
            )
        )
        client.commit_reservation(
            created.body["reservation_id"],
            runcycles.CommitRequest(idempotency_key=os.urandom(16).hex(), actual=tokens(742)),
        )

    @runcycles.cycles(
        1000,
        actual=lambda value: value,
        unit=runcycles.Unit.TOKENS,
        action_kind="llm.completion",
        action_name="gpt-4o",
        client=client,
    )
    def wrapped() -> int:
        return 742

    return programmatic, wrapped
