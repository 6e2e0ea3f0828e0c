"""The process that tests of the recovery profile kill and start again: a program, not a test.

    python actor.py '{"config": {...}, "steps": ["commit 42", "wait"]}'

It prints a line for each thing that comes of its steps, at once, so that tests can wait for it.
"""

from __future__ import annotations

import json
import sys

from cycles_lite import Action, Amount, CyclesClient, CyclesConfig, events

ACTION = Action("llm.completion", "gpt-4o")


def say(*words):
    print(*words, flush=True)


def observe(event):
    if isinstance(event, events.JournalFailed):
        say("journal failed:", event.problem)


def commit(client, amount):
    """One guarded piece of work that costs this many tokens."""
    with client.reserve(Amount.tokens(100), ACTION, ttl_ms=60_000, grace_period_ms=0) as guard:
        say("reserved", guard.reservation_id)
        say("commit", guard.commit(Amount.tokens(int(amount))).status)


def start(client):
    """What the first use of a client does: find the journal and take it up."""
    client.flush(0)
    say("started")


def flush(client, seconds="30"):
    say("pending", client.flush(float(seconds)))


def wait(client):
    """Until somebody writes a line to standard input, or kills."""
    say("waiting")
    sys.stdin.readline()


STEPS = {"commit": commit, "start": start, "flush": flush, "wait": wait}


def main(given):
    with CyclesClient(CyclesConfig(**given["config"]), observer=observe) as client:
        for step in given["steps"]:
            name, *words = step.split()
            STEPS[name](client, *words)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
