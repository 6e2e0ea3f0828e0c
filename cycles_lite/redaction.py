"""The API key kept out of answers and errors, should a server or a proxy echo it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Iterator

from .wire import API_KEY_HEADER, Answer, Call

#: Shorter keys are no secrets, and occur in words that an answer needs.
_SHORTEST_SECRET = 8


def redacted(call: Call, answer: Answer) -> Answer:
    """The answer with the call's key blotted out."""
    echo = _spellings(call.headers.get(API_KEY_HEADER))
    if echo is None:
        return answer
    in_text, in_bytes = echo
    status, headers, body = answer
    if any(map(in_text.search, headers.values())):
        headers = {name: in_text.sub("***", value) for name, value in headers.items()}
    return Answer(status, headers, in_bytes.sub(b"***", body))


def redacted_text(call: Call, text: str) -> str:
    """The text with the call's key blotted out."""
    echo = _spellings(call.headers.get(API_KEY_HEADER))
    return text if echo is None else echo[0].sub("***", text)


def tells_key(call: Call, error: BaseException) -> bool:
    """Whether the call's key is in an error or in one that it came of."""
    return any(text != redacted_text(call, text) for text in _texts(error))


def _texts(error: BaseException | None) -> Iterator[str]:
    if error is not None:
        yield str(error)
        yield repr(error.args)
        yield from _texts(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _texts(error.__context__)


@lru_cache(maxsize=256)
def _spellings(key: str | None) -> tuple[re.Pattern[str], re.Pattern[bytes]] | None:
    """What finds a key as it is, and as JSON, Python and URLs write it; None where there is nothing to hide."""
    if key is None or len(key) < _SHORTEST_SECRET:
        return None
    spelt = "".join(character if character.isalnum() else _spelling(character) for character in key)
    return re.compile(spelt), re.compile(spelt.encode("ascii"))


def _spelling(character: str) -> str:
    """Each quoting doubles the backslashes, and a few are enough: without a bound, many would take quadratic time."""
    return rf"(?:\\{{0,3}}{re.escape(character)}|(?:\\{{1,4}}(?:u00|x)|%)(?i:{ord(character):02x}))"
