"""Enumerations of words, which are strings in every Python alike."""

from __future__ import annotations

from enum import Enum


class WordEnum(str, Enum):
    """Members are strings, print as their value, and are JSON as they are."""

    # These are defined here because Python before 3.12 would use those of `Enum`, and not those of `str`.
    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)
