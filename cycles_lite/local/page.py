"""The page that is served at `/`: it shows a tenant's budgets to whoever has a key of that tenant.

It is static, and the same for everybody: the page asks for the key, and then asks this server as any client would. Its
style and its script are files of their own, and are put into the one document when it is loaded. Its policy names them
by their hashes, so that a browser runs nothing else, whatever a text from the ledger says.

What it shows beside the protocol has a route of its own, `/v1/budgets/periods`.
"""

from __future__ import annotations

import base64
import hashlib
import pkgutil
import sqlite3
import threading
from collections import deque
from typing import Any, Mapping, NamedTuple

from ..errors import ConfigError, known_code
from ..protocol.wire import Answer
from ..runtime.clock import monotonic
from . import rows
from .authority import Authority, Caller
from .messages import new_answer, refusal_answer
from .rules import ACTIVE, Budget, Refused
from .scopes import TENANT_PREFIX

_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
)

#: The budgets of a tenant of which more is told than their balances, and the closed periods of each: the newest.
MOST_BUDGETS = 500
MOST_PERIODS = 12
_NEWEST = (
    "scope = ? AND unit = ? AND end_ms >= (SELECT min(end_ms) FROM"
    " (SELECT end_ms FROM periods WHERE scope = ? AND unit = ? ORDER BY end_ms DESC LIMIT ?))"
)

#: The denials that are remembered of a tenant, the tenants of whom they are, and for how many seconds.
MOST_DENIALS = 50
MOST_TENANTS = 200
_REMEMBERED = 60.0


class _Denial(NamedTuple):
    """A reservation that was denied while this server ran. No file has them: nothing in the ledger has changed."""

    at: float
    #: What is told of it.
    told: Mapping[str, Any]


class Page:
    """The document with its headers, and what the page asks for beside the protocol. Raises `ConfigError` where the
    package came without the page's files."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        #: By their tenants, who do not push out each other's; the tenant that was denied last is the last.
        self._denials: dict[str | None, deque[_Denial]] = {}
        self._lock = threading.Lock()
        blocks = {"style": _text("page.css"), "script": _text("page.js")}
        document = _text("page.html")
        for tag, text in blocks.items():
            document = document.replace(f"<{tag}></{tag}>", f"<{tag}>{text}</{tag}>")
        self._document = document.encode("utf-8")
        self._headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": _POLICY.format(**{tag: _hash(text) for tag, text in blocks.items()}),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",  # else a browser may show the one from before an upgrade
        }

    def document(self, headers: Mapping[str, str]) -> Answer:
        """The page, for a request with these headers."""
        answer = new_answer(200, {}, headers, None)
        return Answer(200, {**answer.headers, **self._headers}, self._document)

    def note(self, caller: Caller, operation: str, answer: Answer) -> None:
        """Remember an answer for a minute, if it is a denial."""
        if not known_code(answer.data["error"]).denies:
            return
        details = answer.data.get("details", {})
        told = {"request_id": answer.headers["x-request-id"], "operation": operation, "code": answer.data["error"]}
        told.update({name: details[name] for name in ("scope", "unit", "requested", "remaining") if name in details})
        with self._lock:
            own = self._denials.pop(caller.tenant, None) or deque(maxlen=MOST_DENIALS)
            own.append(_Denial(monotonic(), told))
            self._denials[caller.tenant] = own
            if len(self._denials) > MOST_TENANTS:
                del self._denials[next(iter(self._denials))]

    def periods(self, headers: Mapping[str, str], caller: Caller) -> Answer:
        """What the protocol does not tell of a tenant's budgets: their periods, those that are not active, and what was
        denied lately. `now_ms` is the ledger's time."""
        try:
            with self._authority.reading_as(caller) as (db, now):
                told = {"now_ms": now, **_told(db, f"{TENANT_PREFIX}{caller.tenant}")}
        except Refused as e:
            return refusal_answer(e, headers, None)
        with self._lock:
            age = [(monotonic() - one.at, one) for one in self._denials.get(caller.tenant, ())]
        denials = [{"age_ms": int(ago * 1000), **one.told} for ago, one in age if ago <= _REMEMBERED]
        told.update(denials=denials, has_more_denials=len(denials) == MOST_DENIALS)  # then there may have been
        return new_answer(200, told, headers, caller.tenant)


def _told(db: sqlite3.Connection, root: str) -> dict[str, Any]:
    """Of the budgets at a scope and below it, whatever their balances do not tell."""
    where = "(scope = ? OR (scope > ? AND scope < ?)) ORDER BY scope, unit LIMIT ?"  # "0" is after "/"
    budgets = rows.find_budgets(db, where, (root, root + "/", root + "0", MOST_BUDGETS + 1))
    shown = budgets[:MOST_BUDGETS]
    places = [(one.scope, one.unit) for one in shown]
    closed = [one for place in places for one in rows.find_closed(db, _NEWEST, [*place, *place, MOST_PERIODS])]
    return {
        "periods": [one._asdict() for one in closed],
        "running": [_running(one) for one in shown if one.period is not None],
        "states": [
            {"scope": one.scope, "unit": one.unit, "status": one.status} for one in shown if one.status != ACTIVE
        ],
        "has_more": len(budgets) > MOST_BUDGETS,
    }


def _running(of: Budget) -> dict[str, Any]:
    return {
        "scope": of.scope,
        "unit": of.unit,
        "period": of.period,
        "start_ms": of.period_start_ms,
        "end_ms": of.period_end_ms,
        "rollover_policy": of.rollover_policy,
    }


def _text(name: str) -> str:
    """A file beside this module, also where the package is in a zip. Browsers hash what has these line ends."""
    try:
        data = pkgutil.get_data(__package__ or "", name)
    except OSError:
        data = None
    if data is None:
        raise ConfigError(f"the package has no {name}, which the page needs: install all of it, or use --no-page")
    return data.decode("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """A block as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
