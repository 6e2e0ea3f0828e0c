"""What `cycles-lite watch` has seen of an authority, and what differs between two looks at it."""

from __future__ import annotations

from collections import Counter
from typing import Iterator, NamedTuple, Sequence

from ..protocol.models import Balance, ReservationSummary
from . import bars
from .more import Denial, Key, More, key_of


class Seen(NamedTuple):
    """What an authority said."""

    at_ms: int
    balances: Sequence[Balance]
    #: The live ones, the newest first.
    reservations: Sequence[ReservationSummary]
    #: Whether there are more reservations than these.
    has_more: bool
    #: None where the authority speaks the protocol alone.
    more: More | None = None

    @property
    def denials(self) -> Sequence[Denial]:
        """What was denied in the last minute, the oldest first."""
        return () if self.more is None else self.more.denials

    @property
    def lasting(self) -> object:
        """What is the same for as long as nothing changes: all but times, and the denials, which are forgotten."""
        return self._replace(at_ms=0, more=self.more and self.more._replace(denials=()))


class Change(NamedTuple):
    """One thing that became otherwise."""

    at_ms: int
    #: A word for what happened, such as `spent`.
    what: str
    #: Of how much, with the unit; empty where it is about no amount.
    amount: str
    scope: str


def parent_of(scope: str, scopes: frozenset[str]) -> str:
    """The nearest scope above this one that has a budget; empty where there is none."""
    while scope and scope.rpartition("/")[0] not in scopes:
        scope = scope.rpartition("/")[0]
    return scope.rpartition("/")[0]


def tree(seen: Seen) -> list[bars.Row]:
    """Each balance below that of the scope which it is within, labelled by the rest of its own."""
    scopes = frozenset(balance.scope_path for balance in seen.balances)
    notes = {} if seen.more is None else seen.more.notes
    depths = {"": -1}
    rows = []
    for balance in sorted(seen.balances, key=lambda row: (row.scope_path.split("/"), row.remaining.unit)):
        scope = balance.scope_path
        parent = parent_of(scope, scopes)
        depths[scope] = depths[parent] + 1
        label = "  " * depths[scope] + (scope[len(parent) + 1 :] if parent else scope)
        rows.append(bars.Row(label, balance, notes.get(key_of(balance), "")))
    return rows


# ---- What differs ----

#: For each amount of a balance, the words for more of it and for less.
_WORDS = {"spent": ("spent", "unspent"), "allocated": ("funded", "cut"), "debt": ("in debt", "repaid")}


def changes(before: Seen | None, after: Seen) -> Iterator[Change]:
    """What happened between two looks; before the first one, what the authority remembers. What was spent is told of
    the lowest budget that it was taken from."""
    yield from _denied(before, after)
    if before is None:
        return
    was, now = _by_key(before.balances), _by_key(after.balances)
    spent = {key: _more(was[key], now[key], "spent") for key in was.keys() & now.keys()}
    scopes = frozenset(scope for scope, _ in now)
    below: Counter[Key] = Counter()
    for (scope, unit), amount in spent.items():
        below[parent_of(scope, scopes), unit] += max(0, amount)
    for scope, unit in sorted({*was, *now}):
        key = scope, unit
        one = now.get(key) or was[key]
        if key not in spent:
            allocated = bars.with_unit(bars.number(one.allocated), unit)
            yield Change(after.at_ms, "added" if key in now else "removed", allocated, scope)
            continue
        for name, words in _WORDS.items():
            more = _more(was[key], one, name)
            if name == "spent" and more > 0:
                more = max(0, more - below[key])
            if more:
                yield Change(after.at_ms, words[more < 0], bars.with_unit(abs(more), unit), scope)
        if was[key].is_over_limit != one.is_over_limit:
            yield Change(after.at_ms, "over limit" if one.is_over_limit else "in limit", "", scope)
    if not before.has_more and not after.has_more:  # else some are not seen for another reason
        yield from _moved(before, after)


def _denied(before: Seen | None, after: Seen) -> Iterator[Change]:
    """The denials that are new, the newest first. They are news of this look, whatever the authority's clock says."""
    known = set() if before is None else {one.request_id for one in before.denials}
    earliest = 0 if before is None else before.at_ms + 1
    for one in reversed(after.denials):
        if one.request_id not in known:
            yield Change(max(earliest, after.at_ms - one.age_ms), "denied", one.amount, one.scope)


def _by_key(balances: Sequence[Balance]) -> dict[Key, Balance]:
    return {key_of(balance): balance for balance in balances}


def _more(before: Balance, after: Balance, name: str) -> int:
    return bars.number(getattr(after, name)) - bars.number(getattr(before, name))


def _moved(before: Seen, after: Seen) -> Iterator[Change]:
    """The reservations that were made, and those that are live no more."""
    was, now = ({row.reservation_id: row for row in seen.reservations} for seen in (before, after))
    for what, here, there in (("ended", was, now), ("reserved", now, was)):
        for id, row in here.items():
            if id not in there:
                yield Change(after.at_ms, what, bars.worded(row.reserved), row.scope_path)
