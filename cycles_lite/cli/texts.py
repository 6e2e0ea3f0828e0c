"""Texts for the demo's agent to read, and its counter: a token is a word."""

from __future__ import annotations

import glob
import os
import re
import sys

from .. import errors
from ..protocol import fields, wire

#: Words that the agent reads at once, at the most.
_LARGEST = 80

#: Parts that a short text is cut into at least, so that a budget can run out in the middle of it.
_FEWEST = 5


def count_words(text: str) -> int:
    """The demo's token counter: one token a word. A real program asks its model's own."""
    return len(text.split())


def paragraphs(text: str) -> list[str]:
    """The text in parts of at most 80 words, cut at blank lines where there are enough of them."""
    words = count_words(text)
    largest = min(_LARGEST, max(1, words // _FEWEST))
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        these = paragraph.split()
        parts += [" ".join(these[start : start + largest]) for start in range(0, len(these), largest)]
    return parts


def default_text() -> str:
    """The package's README, from its source or its metadata; where neither is, what its modules say of themselves."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = [os.path.join(os.path.dirname(package), "README.rst")]
    for folder in [os.path.dirname(package), *sys.path]:
        found += glob.glob(os.path.join(glob.escape(folder), "cycles_lite-*.dist-info", "METADATA"))
    for path in found:
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                return _prose(file.read())
    return "\n\n".join(module.__doc__ or "" for module in (errors, fields, wire))


def _prose(text: str) -> str:
    """The text without metadata lines, headings and blocks of code."""
    if re.match(r"Metadata-Version:", text):
        text = text.partition("\n\n")[2] or text
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(block for block in blocks if not re.match(r"\s{4}|\.\. |.*\n?[=\-~]{3}", block))
