"""`sqlite:` URLs, and telling network disks from local ones."""

from __future__ import annotations

import os

import pytest

from cycles_lite.errors import ConfigError
from cycles_lite.local import location
from cycles_lite.local.location import Location


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///var/lib/b.db", Location("/var/lib/b.db")),
        ("SQLITE:///var/b.db", Location("/var/b.db")),
        ("sqlite:/var/b.db", Location("/var/b.db")),
        ("sqlite:///a%20b%3F%25.db", Location("/a b?%.db")),
        ("sqlite:///a#b.db", Location("/a#b.db")),
        ("sqlite:///a/../b.db", Location("/b.db")),
        ("sqlite:///b.db?synchronous=full", Location("/b.db", "full")),
        ("sqlite:///b.db?synchronous=FULL", Location("/b.db", "full")),
        ("sqlite:///b.db?", Location("/b.db")),
        ("sqlite://", Location(None)),
        ("sqlite://?synchronous=normal", Location(None)),
    ],
)
def test_parse(url, expected):
    """What each form says."""
    assert location.parse(url) == expected


def test_relative_paths_are_of_the_present_folder(tmp_path, monkeypatch):
    """A relative path stays where it was when the URL was read."""
    monkeypatch.chdir(tmp_path)
    assert location.parse("sqlite:data/b.db").path == str(tmp_path / "data" / "b.db")
    assert location.parse("sqlite::memory:").path == str(tmp_path / ":memory:")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite:?synchronous=full",
        "sqlite://host/b.db",
        "sqlite://b.db",
        "sqlite:///b%00.db",
        "sqlite:///b.db?mode=ro",
        "sqlite:///b.db?synchronous=off",
        "sqlite:///b.db?synchronous=full&synchronous=full",
        "sqlite:///b.db?synchronous",
        "http://localhost",
        "b.db",
        "",
        None,
        b"sqlite:///b.db",
    ],
)
def test_refused(url):
    """Anything else is a configuration error, unknown parameters included."""
    with pytest.raises(ConfigError):
        location.parse(url)


@pytest.mark.parametrize("path", ["/b.db", "/a b?%é#.db", os.fsdecode(b"/\xff.db")])
def test_url_round_trip(path):
    """The URL of a location names the same place."""
    assert location.parse(Location(path, "full").url) == Location(path, "full")
    assert location.parse(Location(None).url) == Location(None)


MOUNTS = rb"""/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local xfs rw 0 0
share /mnt/with\040blank cifs rw 0 0
old /mnt/over ext4 rw 0 0
new /mnt/over 9p rw 0 0
short
""".splitlines()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/b.db", "ext4"),
        ("/home/me/b.db", "nfs4"),
        ("/homework/b.db", "ext4"),
        ("/home/local/b.db", "xfs"),
        ("/mnt/with blank/b.db", "cifs"),
        ("/mnt/over/b.db", "9p"),
    ],
)
def test_file_system(path, kind):
    """The deepest mount decides, the latest on one point."""
    assert location.file_system(path, MOUNTS) == kind
    assert (kind in location.NETWORK_FILE_SYSTEMS) == (kind in ("nfs4", "cifs", "9p"))


def test_this_machine(tmp_path):
    """A temporary folder is local, a Windows share is not."""
    assert not location.is_on_network(str(tmp_path / "b.db"))
    assert location.is_on_network("\\\\server\\share\\b.db")
