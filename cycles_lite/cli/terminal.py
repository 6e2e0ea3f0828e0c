"""What a stream shows: how wide it is, which glyphs and colours it has, and how a text is made safe and short for it.

Names come from the ledger, where other people have put them. No control character of theirs reaches a terminal: it
could move the cursor, change what stands there already, or turn the text around.
"""

from __future__ import annotations

import os
import shutil
from typing import Any, Mapping

from ..runtime import system

#: What the parts of a bar are drawn with, and the columns of a chart from nothing to all; and what stands for that
#: which is left out of a text.
UNICODE = {"left": "█", "reserved": "▒", "spent": "░", "debt": "!", "columns": "·▁▂▃▄▅▆▇█", "cut": "…"}
ASCII = {"left": "#", "reserved": "+", "spent": ".", "debt": "!", "columns": ".123456789#", "cut": "..."}


def look_of(stream: Any) -> Mapping[str, str]:
    """Blocks where the stream can encode them, else ASCII."""
    try:
        "".join(UNICODE.values()).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE if os.environ.get("TERM") != "dumb" else ASCII


def is_coloured(stream: Any) -> bool:
    """Whether to colour: a terminal that can, and nobody asked not to (NO_COLOR)."""
    return is_obeying(stream) and not os.environ.get("NO_COLOR")


def is_obeying(stream: Any) -> bool:
    """Whether it is a terminal that obeys escape sequences. The old one of Windows does not."""
    can = os.environ.get("TERM") != "dumb"
    if system.WINDOWS:
        can = bool(os.environ.get("WT_SESSION") or os.environ.get("TERM", "dumb") != "dumb")
    return can and bool(stream.isatty())


def painted(text: str, colour: str) -> str:
    """A text in a colour, by its number in a terminal's escape sequences; an empty one stays empty."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text and colour else text


def width_of(stream: Any) -> int | None:
    """The cells of a line on a terminal; None for what is no terminal, where nothing is cut."""
    if not stream.isatty():
        return None
    # Consoles of Windows go to the next line as soon as the last cell is written.
    return max(1, shutil.get_terminal_size().columns - system.WINDOWS)


def printable(text: str, stream: Any = None) -> str:
    """A text with escaped control characters, line ends, marks of direction, and what is no text at all; and with what
    the stream cannot encode, if one is given."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cells(text: str) -> int:
    """How many cells of a terminal a printable text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    import unicodedata  # only a name in another script needs it

    wide, marks = ("W", "F"), ("Mn", "Me")
    return sum(0 if unicodedata.category(c) in marks else 1 + (unicodedata.east_asian_width(c) in wide) for c in text)


def shortened(text: str, width: int, cut: str) -> str:
    """A text that takes at most `width` cells, both its ends and `cut` in its middle where it was longer."""
    if cells(text) <= width:
        return text
    if width <= cells(cut):
        return cut[:width]
    tail = (width - cells(cut) + 1) // 2
    return _fitting(text, width - cells(cut) - tail) + cut + _fitting(text[::-1], tail)[::-1]


def _fitting(text: str, width: int) -> str:
    """The longest beginning of a text that takes at most `width` cells."""
    end = 0
    while end < len(text) and cells(text[: end + 1]) <= width:
        end += 1
    return text[:end]
