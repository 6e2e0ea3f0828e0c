"""Where a ledger lives: `sqlite:` URLs, and whether a file's disk is this machine's own."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Iterable, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ..errors import ConfigError
from ..protocol.checks import is_a, shown

#: What may stand behind the question mark of a URL.
_PARAMETER = re.compile(r"(?:synchronous=((?i:normal|full)))?\Z")

_FORMS = "sqlite:///absolute/path, sqlite:relative/path or sqlite:// (memory)"


class Location(NamedTuple):
    """What a `sqlite:` URL says."""

    #: An absolute path, or None for memory.
    path: str | None
    #: `normal` survives a killed process; `full` also a power cut.
    synchronous: str = "normal"

    @property
    def url(self) -> str:
        """A URL that names the same place from any folder."""
        if self.path is None:
            return "sqlite://"
        path = self.path if self.path.startswith("/") else "/" + self.path.replace(os.sep, "/")
        url = "sqlite://" + quote(os.fsencode(path))
        return url + "?synchronous=" + self.synchronous if self.synchronous != "normal" else url


def parse(url: Any) -> Location:
    """The location in a `sqlite:` URL. Raises `ConfigError`. Relative paths are taken from the present folder."""
    if not is_a(url, str) or url[:7].lower() != "sqlite:":
        raise ConfigError(f"{shown(url)} is not a budget file's URL: {_FORMS}")
    rest, _, query = url[7:].partition("?")
    parameter = _PARAMETER.match(query)
    if parameter is None:
        raise ConfigError(f"{shown(url)}: the one parameter is synchronous=normal or synchronous=full")
    synchronous = (parameter.group(1) or "normal").lower()
    if rest == "//":
        return Location(None, synchronous)
    if rest.startswith("//") and not rest.startswith("///"):
        raise ConfigError(f"{shown(url)}: an absolute path has three slashes: {_FORMS}")
    # More slashes, as other libraries' URLs have them, mean the same as three. They must not stay, because a path that
    # begins with `//` means something else to POSIX.
    path = _decoded(url, "/" + rest.lstrip("/") if rest.startswith("///") else rest)
    if os.name == "nt" and re.match(r"/[A-Za-z]:", path):
        path = path[1:]
    try:
        return Location(os.path.abspath(path), synchronous)
    except OSError as e:
        raise ConfigError(f"{shown(url)}: the current folder, which it is taken from, is gone: {e.strerror}") from e


def _decoded(url: str, quoted: str) -> str:
    try:
        # A file's name is bytes, whatever the locale makes of them. A URL is UTF-8, in which Python has escaped what it
        # could not decode.
        path = os.fsdecode(unquote_to_bytes(quoted.encode("utf-8", "surrogateescape")))
    except UnicodeError:
        path = ""
    if not path or "\0" in path:
        raise ConfigError(f"{shown(url)} names no file: {_FORMS}")
    return path


def printable(path: str) -> str:
    """A path as messages show it: bytes that the locale does not know are escaped, so that every stream takes them."""
    return os.fsencode(path).decode(sys.getfilesystemencoding(), "backslashreplace")


#: File systems that other machines may write too, or whose memory maps are not shared: WAL must not be used there.
NETWORK_FILE_SYSTEMS = frozenset(
    "9p afs beegfs ceph cifs coda fuse.ceph fuse.glusterfs fuse.gcsfuse fuse.rclone fuse.s3fs fuse.sshfs"
    " fuse.vmhgfs-fuse gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs smb2 smb3 smbfs vboxsf"
    " virtiofs".split()
)


def is_on_network(path: str) -> bool:
    """Whether a file's disk is shared with other machines. Where the system does not tell, it is taken for local."""
    if path.startswith("\\\\"):
        return True
    try:
        with open("/proc/mounts", "rb") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return False
    return file_system(os.path.realpath(path), lines) in NETWORK_FILE_SYSTEMS


def file_system(path: str, mounts: Iterable[bytes]) -> str:
    """The type of the file system that a path is on, from the lines of /proc/mounts: the deepest mount wins."""
    depth, kind = -1, ""
    for fields in [line.split() for line in mounts]:
        if len(fields) > 2:
            point = os.fsdecode(
                re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal.group(1), 8) & 255]), fields[1])
            )
            is_inside = path == point or path.startswith(point.rstrip("/") + "/")
            if is_inside and len(point) >= depth:  # a later mount on the same point hides the earlier
                depth, kind = len(point), fields[2].decode("ascii", "replace")
    return kind
