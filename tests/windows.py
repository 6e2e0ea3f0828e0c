"""Windows and macOS, as far as they can be played on another system: what they refuse, and what they lack."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

from cycles_lite.runtime import system

fcntl = system.fcntl


class Locks:
    """The module `msvcrt`, over the locks that this system has: they hold between processes, too."""

    LK_NBLCK = 2

    @staticmethod
    def locking(file, mode, count):
        assert (mode, count) == (Locks.LK_NBLCK, 1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


class Held:
    """The files that some program has open: Windows lets nobody rename, replace or remove them.

    `tries[end]` is how often that is still refused for a path with such an end.
    """

    def __init__(self, monkeypatch):
        self.tries = {}
        for name in ("replace", "unlink", "rename"):
            monkeypatch.setattr(os, name, self._refusing(getattr(os, name)))

    def _refusing(self, action):
        def refusing(*paths, **options):
            for end, tries in self.tries.items():
                if tries and any(os.fspath(path).endswith(end) for path in paths):
                    self.tries[end] -= 1
                    raise PermissionError(errno.EACCES, "Access is denied", paths[0])
            return action(*paths, **options)

        return refusing


def be_windows(monkeypatch):
    """Let the package take this system for Windows, as far as files and users go."""
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", Locks)
    monkeypatch.delattr(os, "getuid")


def windows_paths(ntpath):
    """What is in `os` that tells of paths, as it is on Windows."""
    return SimpleNamespace(
        path=ntpath,
        sep="\\",
        fsencode=lambda path: path.encode("utf-8", "surrogatepass"),
        fsdecode=lambda path: path.decode("utf-8", "surrogatepass"),
    )
