"""`cycles-lite demo`: a small agent at work on real budgets, for a newcomer to watch."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

from ..client import CyclesClient
from ..config import CyclesConfig
from ..errors import ValidationError
from ..local import Authority
from ..local.location import Location
from . import bars, story
from .serve import load_server
from .texts import default_text, paragraphs

TENANT = "demo"


def add_command(commands: Any) -> None:
    text = "watch a small agent work within budgets, on an embedded authority that is thrown away afterwards"
    parser = commands.add_parser("demo", help=text, description=text)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="texts for the agent to read; default: this package's own"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the story")
    parser.add_argument(
        "--http", action="store_true", help="talk to it through a loopback server (needs the extra [server])"
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: Any) -> int:
    parts = paragraphs(_texts(arguments.files))
    if not parts:
        raise ValidationError("demo: there is no word in the text to work through")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cycles-lite-demo-"))
        url = Location(os.path.join(folder, "budgets.db")).url
        authority = stack.enter_context(Authority(url))
        client = stack.enter_context(_http_client(authority) if arguments.http else _local_client(url))
        tell = _silent if arguments.json else print
        told = story.run(client, authority, parts, tell)
    if arguments.json:
        print(json.dumps(told.to_json(), indent=2))
    else:
        _show_end(told)
    return 0 if told.held else 1


def _texts(files: list[str]) -> str:
    if not files:
        return default_text()
    texts = []
    for name in files:
        try:
            with open(name, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        except OSError as e:
            raise ValidationError(f"demo: {name} cannot be read: {e.strerror or e}") from e
    return "\n\n".join(texts)


def _local_client(url: str) -> CyclesClient:
    return CyclesClient(CyclesConfig(base_url=url, tenant=TENANT))


@contextmanager
def _http_client(authority: Authority) -> Iterator[CyclesClient]:
    server_class = load_server("demo --http")
    key = authority.create_key(TENANT, name="demo").key_secret
    with server_class(authority) as server, server.in_background():
        with CyclesClient(CyclesConfig(base_url=server.url, api_key=key, tenant=TENANT)) as client:
            yield client


def _silent(line: str = "") -> None:
    pass


def _show_end(told: story.Told) -> None:
    print("\nWhat the budgets say now:\n")
    for line in bars.render(told.balances):
        print("  " + line)
    print()
    for check in told.checks:
        print(f"  {'ok  ' if check.held else 'FAIL'}  {check.what}")
    print("\nAll of it held." if told.held else "\nSomething did not hold.")
