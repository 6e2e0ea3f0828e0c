"""The library's logger. `logging` is imported when there is something to log, to keep the package's import cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logging import Logger, LogRecord


def log() -> Logger:
    """The logger `cycles_lite`. What its messages are filled with may come from anywhere: a server's words, an id, the
    name of a file. So each is shown as `escaped` tells."""
    import logging

    logger = logging.getLogger("cycles_lite")
    logger.addFilter(_escape)  # which does nothing where it has been done before
    return logger


def escaped(text: str) -> str:
    """A text without what the file of a log cannot encode, what a terminal obeys, and what begins a new line."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _escape(record: LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(map(_shown, record.args))
    return True


def _shown(value: Any) -> Any:
    if not isinstance(value, (str, BaseException)):
        return value
    try:
        text = str(value)
    except Exception:  # a program's own exception; whoever formats the message meets it again, and can bear it
        return value
    return value if text.isprintable() else escaped(text)
