"""Keeping the API key out of errors, where a server or a proxy echoes it, and out of the frames of tracebacks."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from ..protocol.wire import API_KEY_HEADER, Answer, Call

if TYPE_CHECKING:
    from ..errors import CyclesError

#: Shorter keys are not blotted out: they are no secrets, and may be part of words that an answer needs.
_SHORTEST_SECRET = 8


def redacted(call: Call, answer: Answer) -> Answer:
    """An answer that is an error, with the call's key blotted out: the same one where the key is not in it."""
    return without_key(call.headers.get(API_KEY_HEADER), answer)


def without_key(key: str | None, answer: Answer) -> Answer:
    """An answer with a key blotted out: the same one where the key is not in it."""
    echo = _spellings(key)
    if echo is None:
        return answer
    in_text, in_bytes = echo
    headers, body = answer.headers, answer.body
    if not in_bytes.search(body) and not any(map(in_text.search, headers.values())):
        return answer
    blotted = {name: in_text.sub("***", value) for name, value in headers.items()}
    return Answer(answer.status, blotted, in_bytes.sub(b"***", body))


def redacted_text(call: Call, text: str) -> str:
    """The text with the call's key blotted out."""
    echo = _spellings(call.headers.get(API_KEY_HEADER))
    return text if echo is None else echo[0].sub("***", text)


def tells_key(call: Call, error: BaseException) -> bool:
    """Whether the call's key is in an error, or in its cause or context."""
    texts = [text for each in _chain(error) for text in (str(each), repr(each.args))]
    return any(text != redacted_text(call, text) for text in texts)


def without_frames(error: CyclesError) -> CyclesError:
    """The error, its causes and its contexts without their tracebacks. These lead through frames that hold the key, and
    error trackers send the variables of frames."""
    for each in _chain(error):
        each.__traceback__ = None
    return error


def _chain(error: BaseException) -> list[BaseException]:
    """An error, its causes and its contexts, each once, because such a chain may lead back to where it began."""
    found: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        if each is not None and each not in found:
            found.append(each)
            ahead += (each.__cause__, each.__context__)
    return found


@lru_cache(maxsize=256)
def _spellings(key: str | None) -> tuple[re.Pattern[str], re.Pattern[bytes]] | None:
    """Patterns that find a key as it is, and as JSON, Python and URLs write it; None where there is nothing to hide."""
    if key is None or len(key) < _SHORTEST_SECRET:
        return None
    spelt = "".join(character if character.isalnum() else _spelling(character) for character in key)
    return re.compile(spelt), re.compile(spelt.encode("ascii"))


def _spelling(character: str) -> str:
    """A pattern for one character as it may be written. Each quoting doubles the backslashes before it; their number is
    bounded, because a text of many backslashes would take quadratic time."""
    return rf"(?:\\{{0,3}}{re.escape(character)}|(?:\\{{1,4}}(?:u00|x)|%)(?i:{ord(character):02x}))"
