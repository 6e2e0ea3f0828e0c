"""`cycles-lite demo`: a small agent at work on real budgets, for a newcomer to watch."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

from .. import errors
from ..client import CyclesClient
from ..config import CyclesConfig
from ..errors import ValidationError
from ..local import Authority
from ..local.location import Location
from ..protocol import fields, wire
from . import bars
from .arguments import argument, command
from .output import DONE, WRONG
from .serve import load_server
from .story import TENANT, Story, count_words

#: Words that the agent reads at once, at the most.
_LARGEST = 80

#: A short text is cut into this many parts at least, so that a budget can run out in the middle of it.
_FEWEST = 5


def add_commands(commands: Any) -> None:
    text = "texts for the agent to read; default: this package's own"
    files = argument("files", nargs="*", metavar="FILE", help=text)
    as_json = argument("--json", action="store_true", help="one JSON object instead of the story")
    text = "talk to it through a loopback server (needs the extra [server])"
    http = argument("--http", action="store_true", help=text)
    text = "watch a small agent work within budgets, on an embedded authority that is thrown away afterwards"
    command(commands, "demo", text, _demo, files, as_json, http, also=[WRONG])


def _demo(arguments: Any) -> int:
    parts = paragraphs("\n\n".join(map(_content, arguments.files)) if arguments.files else default_text())
    if not parts:
        raise ValidationError("demo: there is no word in the text to work through")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cycles-lite-demo-"))
        authority = stack.enter_context(Authority(Location(os.path.join(folder, "budgets.db")).url))
        # Without a journal: spend on a budget file that is thrown away must not stay in the user's own one.
        config = CyclesConfig(base_url=authority.url, tenant=TENANT, journal_enabled=False)
        if arguments.http:
            server = stack.enter_context(load_server("demo --http")(authority))
            stack.enter_context(server.in_background())
            config = config.replace(base_url=server.url, api_key=authority.create_key(TENANT, name="demo").key_secret)
        client = stack.enter_context(CyclesClient(config))
        story = Story(client, authority, parts, (lambda line: None) if arguments.json else print)
        story.play()
    if arguments.json:
        print(json.dumps(story.to_json()))
    else:
        _show_end(story)
    return DONE if story.held else WRONG


def _show_end(story: Story) -> None:
    print("\nWhat the budgets say now:\n")
    for line in bars.render([bars.Row(balance.scope_path, balance) for balance in story.balances]):
        print(line)
    print()
    for what, held in story.checks.items():
        print(f"  {'ok  ' if held else 'FAIL'}  {what}")
    print("\nAll of it held." if story.held else "\nSomething did not hold.")


# ---- The text that the agent reads ----


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as e:
        raise ValidationError(f"demo: {path} cannot be read: {e.strerror or e}") from e


def paragraphs(text: str) -> list[str]:
    """The text in parts of at most 80 words, cut at blank lines where there are enough of them."""
    largest = min(_LARGEST, max(1, count_words(text) // _FEWEST))
    blocks = [block.split() for block in re.split(r"\n\s*\n", text)]
    return [" ".join(block[start : start + largest]) for block in blocks for start in range(0, len(block), largest)]


def default_text() -> str:
    """The package's README, from its source or its metadata; where neither is, what its modules say of themselves."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = [os.path.join(root, "README.rst")]
    for folder in [root, *sys.path]:
        found += glob.glob(os.path.join(glob.escape(folder), "cycles_lite-*.dist-info", "METADATA"))
    for path in found:
        if os.path.isfile(path):
            return _prose(_content(path))
    return "\n\n".join(module.__doc__ or "" for module in (errors, fields, wire))


def _prose(text: str) -> str:
    """The text without metadata lines, headings and blocks of code."""
    if text.startswith("Metadata-Version:"):
        text = text.partition("\n\n")[2] or text
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(block for block in blocks if not re.match(r"\s{4}|\.\. |.*\n?[=\-~]{3}", block))
