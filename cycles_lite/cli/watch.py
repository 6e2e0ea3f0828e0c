"""`cycles-lite watch`: budgets, live reservations and what has changed, again and again, on one screen.

It asks over the public protocol, as any client does. A thread asks, so that keys and a new size of the terminal are
heeded while an authority lets it wait. Where standard output is no terminal that obeys escape sequences, what there is
to see is printed as plain lines whenever something has changed.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from typing import Any

from ..client import CyclesClient
from ..errors import CyclesError
from ..protocol.values import ReservationStatus
from ..runtime.clock import now_ms
from . import output
from .arguments import JSON, LEVELS, argument, command, levels, seconds
from .frame import NEW, Sheet, State, frame
from .look import advice, of_key
from .more import ask
from .output import DONE
from .screen import Screen, keys, noted_signals
from .seen import Change, Seen, changes
from .terminal import is_obeying, width_of

#: Reservations that are asked for: as many as a page of the protocol has.
_MOST = 200

#: Milliseconds for which a change is shown.
_RECENT = 60_000

#: Seconds from one look at keys, size and news to the next.
_TICK = 0.25

#: Seconds that the end waits for an answer that is due.
_PATIENCE = 1.0

#: Keys that end it. The last is Ctrl-D, or a terminal that is gone.
_ENDS = set("qQ\x04")


def add_commands(commands: Any) -> None:
    text = "seconds from one answer to the next question; default: %(default)s"
    interval = argument("--interval", type=seconds(0.1), default=2, metavar="SECONDS", help=text)
    once = argument("--once", action="store_true", help="print what there is now, and end")
    text = "watch budgets, live reservations and changes on one screen, until q (status 0) or Ctrl-C"
    command(commands, "watch", text, _watch, *LEVELS, interval, once, JSON, also=[f"{output.KILLED}+N"])


def _watch(arguments: Any) -> int:
    with CyclesClient.from_env(retry_enabled=False, journal_enabled=False) as client:
        if arguments.once:
            seen = look(client, levels(arguments))
            _print(State(seen, list(changes(None, seen))), client, arguments.json)
            return DONE
        with noted_signals() as came, Poller(client, levels(arguments), arguments.interval) as poller:
            if is_obeying(sys.stdout) and not arguments.json:
                _on_screen(poller, came, _title(client))
            else:
                _in_lines(poller, came, arguments.json)
    return output.KILLED + came[0] if came else DONE


def _title(client: CyclesClient) -> str:
    return f"cycles-lite watch  {client.config.base_url}"


def _on_screen(poller: Poller, came: list[int], title: str) -> None:
    """Draw until a signal or a key ends it."""
    pressed, shown = "", None
    with keys() as wait, Screen() as screen:
        while not came and not _ENDS & set(pressed):
            size, now, state = shutil.get_terminal_size(), now_ms(), poller.state()
            if (size, now // 1000, state) != shown:  # ages are told in seconds
                sheet = Sheet.of(sys.stdout, width_of(sys.stdout), size.lines)
                screen.show(frame(state, sheet, title, now), size)
                shown = size, now // 1000, state
            pressed = wait(_TICK)


def _in_lines(poller: Poller, came: list[int], as_json: bool) -> None:
    """Print a block whenever something has changed, until a signal ends it, or nobody reads any more."""
    last: object = None
    told: frozenset[Change] = frozenset()
    while not came and output.is_read(sys.stdout):
        state = poller.state()
        news = [] if state.trouble else [change for change in state.changes if change not in told]
        what = state.cause or (state.seen and state.seen.lasting)
        if what and (what != last or news):
            _print(state._replace(changes=news), poller.client, as_json)
            last, told = what, told if state.trouble else frozenset(state.changes)
        poller.news.wait(_TICK)
        poller.news.clear()


def _print(state: State, client: CyclesClient, as_json: bool) -> None:
    """A block of lines, or an object in JSON."""
    now = now_ms()
    if not as_json:
        seen = None if state.trouble else state.seen
        sheet = Sheet.of(sys.stdout, width_of(sys.stdout))
        print("\n".join([*frame(state._replace(seen=seen), sheet, _title(client), now), ""]), flush=True)
        return
    told: dict[str, Any] = {"at_ms": now}
    if state.trouble or state.seen is None:
        told["error"] = state.trouble
    else:
        for name in ("balances", "reservations"):
            told[name] = [row.to_json() for row in getattr(state.seen, name)]
        periods = () if state.seen.more is None else state.seen.more.closed.values()
        told["periods"] = [one._asdict() for of_budget in periods for one in of_budget]
        told.update(has_more=state.seen.has_more, changes=[change._asdict() for change in state.changes])
    print(json.dumps(told), flush=True)


def look(client: CyclesClient, filters: dict[str, Any], before: State = NEW) -> Seen:
    """What the authority says now; beside the protocol, too, unless it said nothing there at the look before. After
    trouble it may be another one, and is asked again."""
    newest: Any = {"status": ReservationStatus.ACTIVE, "sort_by": "created_at_ms", "sort_dir": "desc", "limit": _MOST}
    page = client.list_reservations(**filters, **newest)
    filters = filters or of_key(client, page)
    balances = list(client.iter_balances(**filters, include_children=True))
    known = None if before.trouble else before.seen
    more = None if known and known.more is None else ask(client, filters.get("tenant"), balances, known is not None)
    return Seen(now_ms(), balances, page.reservations, page.has_more, more)


class Poller:
    """Looks at the authority again and again, in a thread of its own, while the `with` block runs."""

    def __init__(self, client: CyclesClient, filters: dict[str, Any], interval: float) -> None:
        self.client = client
        self._filters, self._interval = filters, interval
        self._state = NEW
        #: What has ended the thread, and is nobody's mistake but ours.
        self._failure: BaseException | None = None
        #: Set after each look.
        self.news = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cycles-lite-watch", daemon=True)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(_PATIENCE)

    def state(self) -> State:
        """What is known, with the changes of the last minute."""
        if self._failure is not None:
            raise self._failure
        state, since = self._state, now_ms() - _RECENT
        return state._replace(changes=[change for change in state.changes if change.at_ms > since])

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._look()
                self.news.set()
                self._ended.wait(self._interval)
        except BaseException as e:
            self._failure = e

    def _look(self) -> None:
        before = self._state
        try:
            seen = look(self.client, self._filters, before)
        except CyclesError as e:
            cause = type(e), getattr(e, "code", None)
            self._state = before._replace(trouble=advice(e, self.client.config.tenant), cause=cause)
            return
        new = changes(before.seen, seen)
        recent = [change for change in before.changes if change.at_ms > seen.at_ms - _RECENT]
        self._state = State(seen, [*new, *recent])
