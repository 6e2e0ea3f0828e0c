"""`python -m benchmarks`: the table of what the library costs."""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
from typing import Callable

from cycles_lite import CyclesClient

from . import authority, backlog, calls, scale, size, startup, work
from .canned import HERE, canned
from .report import Row, Target, as_json, as_text

#: By the name that `--only` takes, in the order of the table.
BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {
    "create-commit": calls.create_commit,
    "guard": calls.guard,
    "decorator": calls.decorator,
    "import": startup.imports,
    "first-commit": startup.first_commit,
    "size": size.size,
    "live-guards": scale.live_guards,
    "threads": scale.threads,
    "sqlite": authority.sqlite,
    "serve": authority.serve,
    "growth": scale.growth,
    "backlog": backlog.backlog,
}

#: Seconds after which a benchmark is ended.
_LIMIT = 900

#: What can be profiled.
_PROFILES = {"create-commit": work.plain, "guard": work.guarded, "decorator": work.decorated}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="show that it runs; its figures say nothing")
    parser.add_argument("--profile", choices=_PROFILES, help="show where the time of one goes, and measure nothing")
    parser.add_argument("--here", choices=BENCHMARKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(BENCHMARKS[given.here](given.quick)))
    elif given.profile:
        _profile(given.profile)
    else:
        rows = [row for name in given.only or BENCHMARKS for row in _alone(name, given.quick)]
        print(as_json(rows) if given.json else as_text(rows))
    return 0


def _alone(name: str, quick: bool) -> list[Row]:
    """Run one benchmark in a process and a home of its own: no thread and no record of another is in its way."""
    print(f"{name} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as home:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CYCLES_")}
        arguments = [sys.executable, "-m", "benchmarks", "--here", name] + ["--quick"] * quick
        done = subprocess.run(
            arguments, cwd=HERE, env={**environment, "HOME": home}, stdout=subprocess.PIPE, timeout=_LIMIT, check=True
        )
    return [_row(*fields) for fields in json.loads(done.stdout.decode())]


def _row(what, ours, unit, peer, beside, target, how) -> Row:  # type: ignore[no-untyped-def]
    return Row(what, ours, unit, peer, beside, Target(*target) if target else None, how)


def _profile(name: str) -> None:
    with tempfile.TemporaryDirectory() as home, canned() as url:
        with CyclesClient(work.config(url, journal_dir=home)) as client:
            one = _PROFILES[name](client)
            for _ in range(100):
                one()
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(2000):
                one()
            profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    sys.exit(main())
