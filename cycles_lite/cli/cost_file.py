"""`run --actual-from FILE`: a command tells in a file what it cost. What an earlier run left there tells nothing."""

from __future__ import annotations

import argparse
import os
import stat

from ..errors import ValidationError
from ..protocol.values import Amount
from . import arguments as given

#: Bytes that a file with a cost may have at the most.
_LONGEST = 1024


class CostFile:
    """The file of one run; made before the command runs, read after it."""

    def __init__(self, path: str) -> None:
        """Raises `ValidationError` for what is there and is no regular file: a pipe would be waited for."""
        self._path = path
        #: What tells a file that was written from one that was not; None where there was none.
        self._before: tuple[int, ...] | None = None
        try:
            self._before = self._identity(os.stat(path))
        except FileNotFoundError:
            pass
        except OSError as e:
            raise ValidationError(f"--actual-from: {path} cannot be looked at: {e.strerror or e}") from e

    def _identity(self, found: os.stat_result) -> tuple[int, ...]:
        if not stat.S_ISREG(found.st_mode):
            raise ValidationError(f"--actual-from: {self._path} is not a regular file")
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def read(self, unit: str) -> Amount:
        """What the command wrote. Raises `OSError` or `ValueError` where that is no amount in this unit."""
        text = self._content().decode("utf-8").strip()
        try:
            actual = given.amount(text if ":" in text else f"{unit}:{text}")
        except (argparse.ArgumentTypeError, ValueError) as e:
            raise ValidationError(f"{self._path}: {e}") from e
        if actual.unit != unit:
            raise ValidationError(f"{self._path}: {actual.unit} is not the estimate's unit, {unit}")
        return actual

    def _content(self) -> bytes:
        # What has become of the path meanwhile is unknown: to open a pipe must not wait either.
        file = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if self._identity(os.fstat(file)) == self._before:
                raise ValidationError(f"{self._path} is from before the command ran, which did not write it")
            content = os.read(file, _LONGEST + 1)
        finally:
            os.close(file)
        if len(content) > _LONGEST:
            raise ValidationError(f"{self._path} is longer than {_LONGEST} bytes")
        return content
