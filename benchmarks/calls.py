"""What a call costs its process, over loopback to a canned answer."""

from __future__ import annotations

import importlib.util
from typing import Any

from cycles_lite import CyclesClient

from . import work
from .canned import canned
from .report import Row, Target
from .timing import calls_beside

BARE = "bare urllib3"
OFFICIAL = "runcycles"


def _size(quick: bool) -> tuple[int, int]:
    """Rounds, and calls in a block."""
    return (2, 10) if quick else (21, 300)


def _how(quick: bool) -> str:
    rounds, calls = _size(quick)
    return f"CPU a pair of requests; medians of {rounds} rounds of {calls}, alternating"


def create_commit(quick: bool) -> list[Row]:
    """`create_reservation` and `commit_reservation`."""
    rows = []
    with canned() as url, CyclesClient(work.config(url)) as client:
        ours, peer = calls_beside(work.plain(client), work.Bare(url).work, *_size(quick))
        rows.append(Row("create + commit", ours, "us", peer, BARE, Target(1.20), _how(quick)))
        if importlib.util.find_spec("runcycles") is None:
            return [*rows, _without_official("create + commit, against the official SDK", None)]
        ours, peer = calls_beside(work.plain(client), work.official(url)[0], *_size(quick))
        rows.append(Row("create + commit, against the official SDK", ours, "us", peer, OFFICIAL, None, _how(quick)))
    return rows


def guard(quick: bool) -> list[Row]:
    """`with client.reserve(...)` and a commit inside."""
    cases: list[tuple[str, Target | None, dict[str, Any]]] = [
        ("guard, journal off", Target(1.30), {"journal_enabled": False}),
        ("guard, journal on", Target(1.55), {}),
        ("guard, journal on with fsync", None, {"journal_fsync": True}),
    ]
    rows = []
    for what, target, changes in cases:
        with canned() as url, CyclesClient(work.config(url, **changes)) as client:
            ours, peer = calls_beside(work.guarded(client), work.Bare(url).work, *_size(quick))
        rows.append(Row(what, ours, "us", peer, BARE, target, _how(quick)))
    return rows


def decorator(quick: bool) -> list[Row]:
    """A function under `@cycles`, journal on, beside the official SDK's."""
    what, target = "@cycles, journal on", Target(0.40)
    if importlib.util.find_spec("runcycles") is None:
        return [_without_official(what, target)]
    with canned() as url, CyclesClient(work.config(url)) as client:
        ours, peer = calls_beside(work.decorated(client), work.official(url)[1], *_size(quick))
    return [Row(what, ours, "us", peer, OFFICIAL, target, _how(quick))]


def _without_official(what: str, target: Target | None) -> Row:
    return Row(what, None, "us", None, OFFICIAL, target, "not measured: runcycles is not installed")
