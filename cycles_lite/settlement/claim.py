"""Which process takes up what others have left in a journal's folder."""

from __future__ import annotations

import os
import weakref

from ..runtime import system


class Claim:
    """The claim of one process on a folder's records, which lasts until it is closed or nobody refers to it any more.

    Without it nothing would break, because records are sent with their own keys; it saves a fleet of workers that start
    together from all sending the same.
    """

    def __init__(self, folder: str) -> None:
        #: The open lock file, in a list from which exactly one caller pops it to close it.
        self._file: list[int] = []
        #: Whether this process has the claim. Somebody else may have it, or there is no such folder.
        self.is_ours = False
        try:
            self._file.append(os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o600))
        except FileNotFoundError:
            return
        _claims[id(self)] = self
        self.is_ours = _lock(self._file[0])

    def close(self) -> None:
        """Let others have the claim."""
        self.is_ours = False
        try:
            file = self._file.pop()
        except IndexError:  # it was closed before, perhaps because this is a forked child
            return
        os.close(file)

    __del__ = close


#: The claims that this process has at the moment, by their `id`.
_claims: weakref.WeakValueDictionary[int, Claim] = weakref.WeakValueDictionary()


def _forget_claims() -> None:
    """Close the claims' files in a forked child; else its parent's claims would last as long as the child lives."""
    for held in _claims.valuerefs():
        claim = held()
        if claim is not None:
            claim.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_claims)


def _lock(file: int) -> bool:
    """Lock a file, unless somebody else has: then False. Where the system has no locks everybody is let through, which
    does no harm (see `Claim`)."""
    try:
        return system.lock(file)
    except OSError:
        return True
