"""A record of unsettled spend: what it holds, what its file is called, and whose folder it is in.

It is the JSON that the official SDKs write too, so that each can settle what the other left behind; no API key is in
it. The identity of a folder keeps servers and tenants apart.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Callable, NamedTuple

from ..protocol.checks import INT64_MAX
from ..protocol.wire import dumps, loads

VERSION = 1
COMMIT, EVENT = "commit", "event"

#: What a record's name ends in: while it waits to be settled; once the authority has refused it for good; and where it
#: cannot be read.
PENDING, REFUSED, CORRUPT = ".json", ".refused", ".corrupt"


class Record(NamedTuple):
    """Spend that is known and not yet settled."""

    reservation_id: str
    #: The server that the spend is owed to, normalised.
    base_url: str
    #: `commit`, or `event` once the reservation has expired or never was.
    mode: str
    commit_body: dict[str, Any] | None
    event_fallback_body: dict[str, Any] | None
    recorded_at_ms: int
    #: No request before this time, in milliseconds since the epoch: a 429's Retry-After.
    not_before_ms: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """What to send in the record's mode."""
        return (self.commit_body if self.mode == COMMIT else self.event_fallback_body) or {}

    def to_json(self) -> bytes:
        return dumps({"version": VERSION, **self._asdict()})

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """The record in a file. Raises `ValueError` that says why it is none of this version's."""
        data = loads(text)
        if not isinstance(data, dict):
            raise ValueError("not an object")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ValueError(f"version {data.get('version')!r:.40}, not {VERSION}")
        for name, is_legal in _LEGAL.items():
            if not is_legal(data.get(name)):
                raise ValueError(f"{name} is {data.get(name)!r:.40}")
        values: Any = [data.get(name) for name in cls._fields]
        record = cls(*values)
        if not record.body:
            raise ValueError(f"no body for mode {record.mode}")
        record.to_json()  # a number that is no JSON once it was read, such as 1e400, can be neither sent nor written
        return record


def _is_body(value: Any) -> bool:
    """Whether a body can be sent at all. The authority says what else is wrong with it."""
    if value is None:
        return True
    return isinstance(value, dict) and all(isinstance(value.get(name, {}), dict) for name in ("actual", "estimate"))


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT64_MAX


#: What each field of a record may be.
_LEGAL: dict[str, Callable[[Any], bool]] = {
    "reservation_id": lambda value: isinstance(value, str) and value != "",
    "base_url": lambda value: isinstance(value, str),
    "mode": lambda value: value in (COMMIT, EVENT),
    "commit_body": _is_body,
    "event_fallback_body": _is_body,
    "recorded_at_ms": _is_time,
    "not_before_ms": lambda value: value is None or _is_time(value),
}


def file_name(reservation_id: str, suffix: str = PENDING) -> str:
    """The name of a reservation's file, which no other reservation has."""
    return "v2-" + hashlib.sha256(reservation_id.encode("utf-8", "surrogatepass")).hexdigest() + suffix


def normalised(base_url: str) -> str:
    """A base URL in the form that records and identities have, which is the same for every spelling of a server's."""
    return base_url.strip().rstrip("/")


def identity(base_url: str, tenant: str | None, api_key: str | None) -> str:
    """The folder of one server and tenant; without a tenant, of the key, through a slow one-way hash.

    A tenant's folder stays the same when its key is rotated.
    """
    if tenant or not api_key:
        text = f"{normalised(base_url)}\n{tenant or ''}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return _identity_of_key(normalised(base_url), api_key)


@lru_cache(maxsize=256)
def _identity_of_key(base_url: str, api_key: str) -> str:
    """The identity that stands for a key. It is remembered, because programs may make a client for each request."""
    salt = ("cycles-lite journal\n" + base_url).encode("utf-8", "surrogatepass")
    return hashlib.pbkdf2_hmac("sha256", api_key.encode("utf-8"), salt, 20_000).hex()[:32]
