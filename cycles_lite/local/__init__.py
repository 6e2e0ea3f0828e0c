"""The embedded authority: a budget ledger in one SQLite file, and the protocol over it.

`Authority` is loaded on first use, so that a program whose budgets are on a server never imports sqlite3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .authority import Authority
    from .funding import FundingRefused
    from .tenants import AlreadyExists

__all__ = ["AlreadyExists", "Authority", "FundingRefused"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import authority, funding, tenants

    return getattr({"Authority": authority, "FundingRefused": funding}.get(name, tenants), name)


def __dir__() -> list[str]:
    return list(__all__)
