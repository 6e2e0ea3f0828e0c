"""What Windows and macOS do otherwise, in one place. All else in this package is the same everywhere.

No test runs on these two. The tests put other values and functions into this module's names, and then run the code that
asks it. `WINDOWS` is read at each call, so that this is possible.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from contextlib import contextmanager, suppress
from typing import Any, Callable, Iterator

#: Windows, and macOS.
WINDOWS = os.name == "nt"
MACOS = sys.platform == "darwin"

#: The module with the locks of POSIX, and that with those of Windows; None where the system has no such module.
fcntl: Any = None
msvcrt: Any = None
if WINDOWS:
    import msvcrt
else:
    try:
        import fcntl
    except ImportError:  # such as Python in a browser
        pass

#: Seconds between the tries of `insist`: about half a second in all.
_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)

#: What GetDriveTypeW says of a drive of another machine.
_DRIVE_REMOTE = 4

#: The flag that the statfs of macOS gives for a disk of this machine, and where its flags are in the structure.
_MNT_LOCAL = 0x1000
_STATFS_FLAGS = slice(64, 68)


# ---- Files ----


def insist(action: Callable[..., None], *paths: str) -> None:
    """Rename, replace or remove a file: `action(*paths)`.

    Windows refuses that with a `PermissionError` while any process has the file open, be it one that reads a record or
    a virus scanner. They are soon done, so it is tried for half a second. Elsewhere a refusal is final.
    """
    for pause in _PAUSES if WINDOWS else ():
        try:
            return action(*paths)
        except PermissionError:
            time.sleep(pause)
    return action(*paths)


def lock(file: int) -> bool:
    """Lock an open file until it is closed. False if somebody else has; an `OSError` where there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # the first byte, which need not be there
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except (BlockingIOError, PermissionError):
        return False
    return True


def sync(file: int) -> None:
    """Have the disk store what was written. On macOS `fsync` leaves it in the cache of the disk, which a power cut
    empties."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
        except OSError:  # not every file system has it
            pass
    os.fsync(file)


def user_id() -> int:
    """The number of this user; 0 on Windows, where users have none."""
    return os.getuid() if hasattr(os, "getuid") else 0


def is_private(found: os.stat_result) -> bool:
    """Whether what `lstat` tells of is a folder of this user alone.

    On Windows every folder has the mode 0777 and the owner 0, and says nothing by that: its access list rules, which a
    folder in the user's own temporary one inherits. A junction is a kind of link there.
    """
    if not stat.S_ISDIR(found.st_mode) or getattr(found, "st_reparse_tag", False):
        return False
    # Not exactly 0700: below a folder with the set-group-ID bit, a new one has that bit too.
    return WINDOWS or (found.st_uid == user_id() and not stat.S_IMODE(found.st_mode) & 0o077)


# ---- Paths ----


def url_path(path: str) -> str:
    """An absolute path as it stands in a URL, not yet quoted: `/var/b.db`, `/C:/b.db`, `//server/share/b.db`."""
    if WINDOWS:
        path = path.replace("\\", "/")
        if path.startswith("//"):
            return "//" + path.lstrip("/")
    return "/" + path.lstrip("/")


def path_of_url(text: str) -> str:
    """The path in a URL, as `url_path` and other libraries write it; there may be more slashes in front.

    On POSIX they mean the same as one. They must not stay, because a path that begins with `//` means something else.
    On Windows two or more stand before the server of a share.
    """
    if not WINDOWS:
        return "/" + text.lstrip("/")
    text = text.replace("\\", "/")
    bare = text.lstrip("/")
    if is_absolute(bare):
        return bare
    return ("//" if text.startswith("//") else "/") + bare


def is_absolute(path: str) -> bool:
    """Whether a path that begins with no slash is absolute all the same, as `C:/b.db` is on Windows."""
    return WINDOWS and (path[1:2] == ":" or path[:1] == "\\")


def is_remote(path: str) -> bool | None:
    """Whether a file's disk is another machine's, where Windows or macOS tell; None where nobody does."""
    import ctypes  # costly, and needed on these two alone

    library: Any = ctypes
    real = os.path.realpath(path)
    try:
        if WINDOWS:
            if path.startswith("\\\\") or real.startswith("\\\\"):
                return True
            drive = os.path.splitdrive(real)[0] + "\\"
            return bool(library.windll.kernel32.GetDriveTypeW(drive) == _DRIVE_REMOTE)
        if MACOS:
            system = library.CDLL(None)
            # The old Intel machines have another structure under the plain name.
            statfs = getattr(system, "statfs$INODE64", None) or system.statfs
            found = library.create_string_buffer(4096)  # the structure has about 2200 bytes
            if statfs(library.c_char_p(os.fsencode(os.path.dirname(real))), found) == 0:
                return not int.from_bytes(found.raw[_STATFS_FLAGS], sys.byteorder) & _MNT_LOCAL
    except (AttributeError, OSError):  # this Python comes without these functions
        pass
    return None


# ---- Commands ----


def quoted(word: str) -> str:
    """A word as it is typed into a shell. The shells of Windows take single quotes for a part of the word."""
    if WINDOWS:
        import subprocess

        return subprocess.list2cmdline([word])
    import shlex

    return shlex.quote(word)


def exit_status(status: int) -> int:
    """An exit status as `sys.exit` takes it. Windows has numbers up to 2**32, and `sys.exit` signed ones with the same
    bits."""
    return status - 2**32 if status >= 2**31 else status


# ---- Terminals ----

#: Waits for so many seconds, and returns what was pressed meanwhile; an empty text where nothing was, and the character
#: of Ctrl-D where the terminal is gone.
Keys = Callable[[float], str]

#: Seconds from one look at the keyboard to the next, where the system tells nothing by itself.
_KEY_LOOK = 0.05


def no_keys(seconds: float) -> str:
    """`Keys` of what has none."""
    time.sleep(seconds)
    return ""


@contextmanager
def keys(file: int) -> Iterator[Keys]:
    """Keys from a terminal as they are pressed, without an echo, for as long as the context lasts. Ctrl-C is a signal
    as ever; Ctrl-Z, which would leave a drawn screen behind, is none."""
    if WINDOWS:
        yield _console_keys
        return
    try:
        import select
        import termios
    except ImportError:  # such as Python in a browser
        yield no_keys
        return

    def pressed(seconds: float) -> str:
        try:
            there = select.select([file], [], [], seconds)[0]
            return (os.read(file, 64).decode("latin-1") or "\x04") if there else ""
        except OSError:
            return "\x04"

    before, now = termios.tcgetattr(file), termios.tcgetattr(file)
    now[3] &= ~(termios.ICANON | termios.ECHO)
    now[6][termios.VSUSP] = b"\x00"
    try:
        termios.tcsetattr(file, termios.TCSANOW, now)
        yield pressed
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(file, termios.TCSANOW, before)


def _console_keys(seconds: float) -> str:
    end = time.monotonic() + seconds
    while not msvcrt.kbhit():
        if time.monotonic() >= end:
            return ""
        time.sleep(_KEY_LOOK)
    return str(msvcrt.getwch())
