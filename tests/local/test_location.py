"""`sqlite:` URLs, and telling network disks from local ones."""

from __future__ import annotations

import ntpath
import os
from contextlib import contextmanager

import pytest
from hypothesis import given, strategies as st
from windows import windows_paths

from cycles_lite import CyclesConfig
from cycles_lite.errors import ConfigError
from cycles_lite.local import location
from cycles_lite.local.location import Location
from cycles_lite.runtime import system

from .processes import PATIENCE, start


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


# ---- On Windows ----


@pytest.fixture
def on_windows(monkeypatch):
    with on_windows_now():
        yield


@contextmanager
def on_windows_now():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(system, "WINDOWS", True)
        monkeypatch.setattr(location, "os", windows_paths(ntpath))
        yield


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///C:/data/b.db", "C:\\data\\b.db"),
        ("sqlite:////c:/b.db", "c:\\b.db"),
        ("sqlite:C:/data/../b.db", "C:\\b.db"),
        ("sqlite:///C:\\data\\b.db", "C:\\data\\b.db"),
        ("sqlite:////server/share/b%23.db", "\\\\server\\share\\b#.db"),
        ("sqlite://///server/share/b.db", "\\\\server\\share\\b.db"),
        ("sqlite:///\\\\server\\share\\b.db", "\\\\server\\share\\b.db"),
    ],
)
def test_paths_of_windows(on_windows, url, path):
    """Drives and shares, in the forms that other libraries' URLs have too."""
    found = location.parse(url)
    assert found.path == path
    assert location.parse(found.url) == found


NAMES = st.text(
    st.characters(blacklist_characters='<>:"/\\|?*', blacklist_categories=("Cc",)), min_size=1, max_size=12
).filter(lambda name: name.strip(". ") == name)
ROOTS = st.one_of(
    st.sampled_from("CDz").map("{}:".format),
    st.tuples(NAMES, NAMES).map(lambda names: "\\\\" + "\\".join(names)),
)


@given(ROOTS, st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["normal", "full"]))
def test_every_path_of_windows_survives_its_url(root, names, synchronous):
    """Drives and shares; blanks, signs, half surrogate pairs and other scripts in the names."""
    path = "\\".join([root, *names])
    with on_windows_now():
        made = Location(path, synchronous)
        assert location.parse(made.url) == made
        assert CyclesConfig(base_url=made.url).base_url == made.url
        assert made.url.isascii() if hasattr(str, "isascii") else True


@pytest.mark.parametrize(
    ("folder", "url", "path"),
    [
        ("\\\\server\\share\\my files", "sqlite:b.db", "\\\\server\\share\\my files\\b.db"),
        ("C:\\", "sqlite:data/b.db", "C:\\data\\b.db"),
        ("C:\\work", "sqlite:D:/b.db", "D:\\b.db"),
        ("C:\\work", "sqlite:\\\\server\\share\\b.db", "\\\\server\\share\\b.db"),
    ],
)
def test_relative_urls_of_a_configuration_on_windows(on_windows, monkeypatch, folder, url, path):
    """They are taken from the present folder, unless they begin with a drive or a share."""
    monkeypatch.setattr(os, "getcwd", lambda: folder)
    assert location.parse(CyclesConfig(base_url=url).base_url).path == path


def test_halves_of_surrogate_pairs_name_no_file():
    """But for those that stand for bytes which the locale does not know."""
    with pytest.raises(ConfigError, match="names no file"):
        location.parse("sqlite:///b\ud800.db")
    assert os.fsencode(location.parse("sqlite:///b\udcff.db").path) == b"/b\xff.db"


USE = r"""
import os, sys
from cycles_lite import Amount, CyclesClient, CyclesConfig
from cycles_lite.cli import main
from cycles_lite.errors import ConfigError
from cycles_lite.local import Authority

folder, allocated = os.fsencode(sys.argv[1]), 0

def demand(url):
    client = CyclesClient(CyclesConfig(base_url=url))
    assert client.get_balances(tenant="acme").balances[0].allocated == Amount.tokens(allocated), url
    client.close()

for name, quoted in ((b"b\xc3\xbccher.db", "b%C3%BCcher.db"), (b"b\xff \xfe.db", "b%FF%20%fe.db")):
    given = os.fsdecode(os.path.join(folder, name))
    urls = ["sqlite://" + given, "sqlite:///" + sys.argv[1].lstrip("/") + "/" + quoted]
    urls += ["sqlite://" + sys.argv[1] + "/b\xfccher.db"] * (b"cher" in name)
    os.chdir(folder)
    for db in [given, os.fsdecode(name), *urls]:
        allocated += 1
        assert main(["budget", "set", "--db", db, "tenant:acme", "TOKENS:%d" % allocated]) == 0
        for url in urls:
            demand(url)
    with Authority(urls[0]) as authority:
        demand(authority.url)
        authority.url.encode("ascii")
    try:
        Authority("sqlite:" + os.fsdecode(b"missing-" + name), create=False)
    except ConfigError as e:
        print(e)
        print(e, file=sys.stderr)
    else:
        raise AssertionError("a file was made")
assert sorted(os.listdir(folder)) == [b"b\xc3\xbccher.db", b"b\xff \xfe.db"], os.listdir(folder)
"""

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C, strict streams": {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii:strict",
    },
    "UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
    "UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes where the system is POSIX")
@pytest.mark.parametrize("name", LOCALES)
def test_names_that_the_locale_does_not_know(tmp_path, monkeypatch, name):
    """A URL and `--db` name the same file in every locale, quoted or not; messages can be printed everywhere."""
    for variable, value in LOCALES[name].items():
        monkeypatch.setenv(variable, value)
    process = start(USE, str(tmp_path))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode("utf-8", "replace")
    assert out.count(b"there is no budget file at") == 2
    assert err.count(b"there is no budget file at") == 2


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
    assert location.is_shared(kind) == (kind in ("nfs4", "cifs", "9p"))


@pytest.mark.parametrize(
    ("kinds", "shared"),
    [
        (
            "fuse fuse.grpcfuse fuse.osxfs fuse.shfs fuse.sshfs fuse.rclone fuse.juicefs fuse.davfs2 fuse.some_new_one",
            True,
        ),
        ("fakeowner drvfs wekafs davfs osxfs grpcfuse virtiofs vboxsf 9p nfs cifs smb3 lustre gpfs", True),
        ("ext4 xfs btrfs zfs tmpfs overlay f2fs ntfs3 exfat fuseblk fuse.fuse-overlayfs apfs bcachefs", False),
        ("fusectl fuser", False),
    ],
)
def test_which_file_systems_are_shared(kinds, shared):
    """What a user's own program serves is of all sorts, so that each is, but for the few that are known."""
    assert [kind for kind in kinds.split() if location.is_shared(kind) is not shared] == []


def test_this_machine(tmp_path):
    """A temporary folder is local."""
    assert not location.is_on_network(str(tmp_path / "b.db"))
