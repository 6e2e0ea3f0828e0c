"""Where a ledger lives: `sqlite:` URLs, and whether a file's disk is this machine's own."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Iterable, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ..errors import ConfigError
from ..protocol.checks import is_a, shown
from ..runtime import system

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
        url = "sqlite://" + quote(os.fsencode(system.url_path(self.path)))
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
    path = _decoded(url, rest)
    if rest.startswith("///"):
        path = system.path_of_url(path[2:])
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
#: Among them are those through which a virtual machine, WSL or a container sees the files of its host.
NETWORK_FILE_SYSTEMS = frozenset(
    "9p acfs afpfs afs beegfs beegfs_nodev ceph cifs coda cvfs cxfs davfs davfs2 drvfs exafs fakeowner fhgfs"
    " ftpfs gfs gfs2 glusterfs gpfs grpcfuse hgfs lustre mmfs ncp ncpfs nfs nfs3 nfs4 ocfs2 orangefs osxfs panfs"
    " prl_fs pvfs2 shfs smb2 smb3 smbfs snfs vboxsf vmhgfs virtiofs webdav wekafs".split()
)

#: The kinds of FUSE that are known for a local disk with memory maps. The others are of all sorts, and new ones come.
_LOCAL_FUSE = frozenset("fuse.encfs fuse.fuse-overlayfs fuse.gocryptfs".split())


def is_on_network(path: str) -> bool:
    """Whether a file's disk is shared with other machines. Where the system does not tell, it is taken for local."""
    try:
        with open("/proc/mounts", "rb") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return bool(system.is_remote(path))
    return is_shared(file_system(os.path.realpath(path), lines))


def is_shared(kind: str) -> bool:
    """Whether a type of file system is, or may be, shared with other machines."""
    is_fuse = kind == "fuse" or kind.startswith("fuse.")  # but not `fuseblk`, which is a disk
    return kind in NETWORK_FILE_SYSTEMS or (is_fuse and kind not in _LOCAL_FUSE)


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
