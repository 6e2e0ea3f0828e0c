"""`run --actual-from FILE`: the file through which the command that is run tells what it cost. What an earlier run has
left there is not believed."""

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
        """Raises `ValidationError` where something else than a regular file is there: reading a pipe would wait."""
        self._path = path
        #: The identity of the file that was there before the command ran, to tell whether it was written.
        self._before: tuple[int, ...] | None
        try:
            self._before = self._identity(os.stat(path))
        except FileNotFoundError:
            self._before = None
        except OSError as e:
            raise ValidationError(f"--actual-from: {path} cannot be looked at: {e.strerror or e}") from e

    def _identity(self, found: os.stat_result) -> tuple[int, ...]:
        """What is another one once the file has been written, or another file is in its place."""
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
        # By now the command may have put anything there. Opening a pipe, for one, must not wait for a writer.
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
