"""What Windows and macOS do otherwise. Nothing here was run on them: they are played by `windows`."""

from __future__ import annotations

import ctypes
import errno
import ntpath
import os
import sys
from types import SimpleNamespace

import pytest
from windows import Held, be_windows, windows_paths

from cycles_lite.local import location
from cycles_lite.runtime import system
from cycles_lite.settlement.journal import COMMIT, Journal, Record

# ---- Files ----


@pytest.mark.parametrize(("windows", "tries"), [(True, 3), (False, 0)])
def test_what_somebody_reads_is_replaced_when_he_is_done(tmp_path, monkeypatch, windows, tries):
    monkeypatch.setattr(system, "WINDOWS", windows)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    held = Held(monkeypatch)
    held.tries["target"] = tries
    system.insist(os.replace, str(source), str(target))
    assert target.read_bytes() == b"new"
    held.tries["target"] = tries
    system.insist(os.unlink, str(target))
    assert not target.exists()


@pytest.mark.parametrize(("windows", "tries"), [(True, len(system._PAUSES) + 1), (False, 1)])
def test_a_refusal_that_stays_is_told(tmp_path, monkeypatch, windows, tries):
    """After about half a second on Windows, where it may pass, and at once elsewhere."""
    monkeypatch.setattr(system, "WINDOWS", windows)
    held = Held(monkeypatch)
    held.tries["file"] = 1000
    with pytest.raises(PermissionError):
        system.insist(os.unlink, str(tmp_path / "file"))
    assert held.tries["file"] == 1000 - tries
    assert sum(system._PAUSES) < 0.6


def test_without_any_locks_it_says_so(tmp_path, monkeypatch):
    """The journal then takes records up all the same."""
    monkeypatch.setattr(system, "fcntl", None)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        system.lock(file.fileno())


class Disk:
    """The module `fcntl` of macOS."""

    F_FULLFSYNC = 51

    def __init__(self, works):
        self.works, self.synced = works, []

    def fcntl(self, file, command):
        assert command == self.F_FULLFSYNC
        if not self.works:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        self.synced.append(os.readlink(f"/proc/self/fd/{file}"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells which file a descriptor is of")
@pytest.mark.parametrize("works", [True, False])
def test_macos_is_asked_to_empty_the_disks_cache(tmp_path, monkeypatch, works):
    """With `journal_fsync`, for the record and for the folder that names it; else `fsync` must do."""
    journal, disk, plain = Journal(str(tmp_path), fsync=True), Disk(works), []
    monkeypatch.setattr(system, "fcntl", disk)
    monkeypatch.setattr(os, "fsync", lambda file: plain.append(os.readlink(f"/proc/self/fd/{file}")))
    journal.write(Record("rsv_1", "http://h", COMMIT, {"a": 1}, None, 1000))
    record, folder = disk.synced or plain
    assert folder == str(tmp_path)
    assert record.startswith(journal.path_of("rsv_1"))
    assert bool(disk.synced) == works != bool(plain)


def test_a_junction_is_no_folder(tmp_path, monkeypatch):
    found = os.lstat(str(tmp_path))
    be_windows(monkeypatch)
    junction = SimpleNamespace(st_mode=found.st_mode, st_uid=0, st_reparse_tag=0xA0000003)
    assert system.is_private(found)
    assert not system.is_private(junction)


# ---- Disks of other machines ----


@pytest.fixture
def no_mounts(monkeypatch):
    """A system that has no /proc/mounts."""

    def missing(path, mode):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(location, "open", missing, raising=False)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Z:\\budgets.db", True),
        ("C:\\budgets.db", False),
        ("\\\\server\\share\\budgets.db", True),
        ("\\\\?\\UNC\\server\\share\\budgets.db", True),
    ],
)
def test_drives_of_windows(monkeypatch, no_mounts, path, expected):
    """A mapped drive looks as any other: only the system knows."""
    kernel = SimpleNamespace(GetDriveTypeW=lambda drive: {"Z:\\": 4, "C:\\": 3}[drive])
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "os", windows_paths(ntpath))
    assert location.is_on_network(path) is expected


class Statfs(ctypes.Structure):
    """As <sys/mount.h> of macOS has it, with inodes of 64 bits."""

    _fields_ = (
        [("f_bsize", ctypes.c_uint32), ("f_iosize", ctypes.c_int32)]
        + [(name, ctypes.c_uint64) for name in ("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")]
        + [("f_fsid", ctypes.c_int32 * 2)]
        + [(name, ctypes.c_uint32) for name in ("f_owner", "f_type", "f_flags", "f_fssubtype")]
        + [("f_fstypename", ctypes.c_char * 16)]
        + [("f_mntonname", ctypes.c_char * 1024), ("f_mntfromname", ctypes.c_char * 1024)]
        + [("f_flags_ext", ctypes.c_uint32), ("f_reserved", ctypes.c_uint32 * 7)]
    )


@pytest.mark.parametrize("name", ["statfs", "statfs$INODE64"])
@pytest.mark.parametrize(
    ("kind", "flags", "result", "expected"),
    [
        (b"apfs", 0x04909000, 0, False),
        (b"smbfs", 0x00000018, 0, True),
        (b"macfuse", 0x00200010, 0, True),
        (b"apfs", 0, -1, False),  # the call has failed, and nothing is known
    ],
)
def test_disks_of_macos(monkeypatch, no_mounts, tmp_path, name, kind, flags, result, expected):
    def statfs(path, buffer):
        assert path.value == os.fsencode(str(tmp_path))
        found = Statfs(f_type=26, f_flags=flags, f_fstypename=kind, f_blocks=2**60, f_owner=0x1000)
        ctypes.memmove(buffer, ctypes.byref(found), ctypes.sizeof(found))
        return result

    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(**{name: statfs}))
    assert location.is_on_network(str(tmp_path / "b.db")) is expected


def test_where_nobody_tells_a_disk_is_local(monkeypatch, no_mounts, tmp_path):
    for name in ("WINDOWS", "MACOS"):
        monkeypatch.setattr(system, name, False)
    assert not location.is_on_network(str(tmp_path / "b.db"))
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.delattr(ctypes, "windll", raising=False)
    assert not location.is_on_network(str(tmp_path / "b.db"))


# ---- Commands ----


@pytest.mark.parametrize(
    ("windows", "path", "typed"),
    [
        (True, "C:\\my budgets\\b.db", '"C:\\my budgets\\b.db"'),
        (True, "C:\\b.db", "C:\\b.db"),
        (False, "/my budgets/b.db", "'/my budgets/b.db'"),
    ],
)
def test_a_word_is_quoted_for_the_shell_that_is_there(monkeypatch, windows, path, typed):
    monkeypatch.setattr(system, "WINDOWS", windows)
    assert system.quoted(path) == typed


@pytest.mark.parametrize(("status", "passed"), [(0, 0), (255, 255), (0xC000013A, -1073741510), (2**32 - 1, -1)])
def test_exit_statuses_fit(status, passed):
    """0xC000013A is how Windows says Ctrl-C. A number past 2**31 would become -1 in `sys.exit` there."""
    assert system.exit_status(status) == passed
    assert passed % 2**32 == status


def test_the_modules_are_those_of_this_system():
    assert (sys.platform == "win32") == system.WINDOWS
    assert (system.fcntl is None) == system.WINDOWS
    assert (system.msvcrt is None) != system.WINDOWS


def test_keys_of_a_console_of_windows(monkeypatch):
    """They are looked for until the time is up."""
    pressed = ["q"]
    console = SimpleNamespace(kbhit=lambda: bool(pressed), getwch=lambda: pressed.pop())
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "msvcrt", console)
    with system.keys(0) as wait:
        assert wait(60.0) == "q"
        assert wait(0.06) == ""


def test_keys_of_what_is_no_keyboard():
    assert system.no_keys(0.0) == ""
