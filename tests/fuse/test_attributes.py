"""Attributes: modes and owners, times, sizes on disk, extended attributes, statfs."""

import errno
import os
import stat
import struct
import time
from pathlib import Path

import pytest

from dfsfs.base.types import DigestKind, digest_of
from dfsfs.testing.mountpoint import MountedNode

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user, which only root can")


def as_nobody(function: "object", *arguments: object) -> int:
    """Run a call as another user, in a child process; its errno, or 0."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function(*arguments)  # type: ignore[operator]
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def reachable(directory: Path) -> Path:
    """The directory, if another user can reach it: pytest keeps its own to itself."""
    for parent in directory.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    return directory


def test_modes_and_owners(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    for mode in (0o000, 0o777, 0o6755, 0o1644, 0o640):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
        path.chmod(0o6755)
        os.chown(path, 0, -1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        (directory / "link").symlink_to("nowhere")
        os.lchown(directory / "link", 5, 6)
        assert (directory / "link").lstat().st_uid == 5


def test_umask(directory: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(directory / "inner", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((directory / "inner").stat().st_mode) == 0o750


@needs_root
def test_permissions_hold(reachable: Path) -> None:
    path = reachable / "file"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    assert as_nobody(path.read_bytes) == errno.EACCES
    assert as_nobody((reachable / "new").touch) == errno.EACCES
    assert as_nobody(path.chmod, 0o777) == errno.EPERM
    path.chmod(0o644)
    assert as_nobody(path.read_bytes) == 0
    reachable.chmod(0o1777)
    assert as_nobody((reachable / "new").touch) == 0
    assert (reachable / "new").stat().st_uid == NOBODY
    assert as_nobody(path.unlink) == errno.EPERM
    assert as_nobody((reachable / "new").unlink) == 0


@needs_root
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_a_write_by_others_ends_suid_and_sgid(reachable: Path, flags: int) -> None:
    path = reachable / "file"
    path.write_bytes(b"program")
    path.chmod(0o6777)

    def write() -> None:
        handle = os.open(path, flags)
        if not flags & os.O_TRUNC:
            os.write(handle, b"changed")
        os.close(handle)

    assert as_nobody(write) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    path.chmod(0o6777)
    with path.open("r+b") as file:
        file.write(b"by root")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777


@needs_root
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_a_write_ends_file_capabilities(directory: Path, flags: int) -> None:
    path = directory / "file"
    path.write_bytes(b"program")
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability
    handle = os.open(path, flags)
    os.write(handle, b"changed")
    os.close(handle)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
        os.getxattr(path, "security.capability")


def test_times_are_kept_to_the_nanosecond(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    times = (1_600_000_000_123_456_789, 1_500_000_000_987_654_321)
    os.utime(path, ns=times)
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == times
    for early in (0, -1_000_000_001):
        os.utime(path, ns=(early, early))
        assert path.stat().st_mtime_ns == early


def test_times_set_before_the_close_stay(directory: Path) -> None:
    with (directory / "file").open("wb", buffering=0) as file:
        file.write(b"data")
        os.utime(file.fileno(), ns=(10**18, 10**18 + 5))
    assert (directory / "file").stat().st_mtime_ns == 10**18 + 5
    assert (directory / "file").read_bytes() == b"data"
    with (directory / "file").open("ab", buffering=0) as file:
        os.utime(file.fileno(), ns=(10**18, 10**18 + 5))
        file.write(b"later")
    assert (directory / "file").stat().st_mtime_ns > 10**18 + 5


def test_changes_move_times(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**18, 10**18))
    first = path.stat()
    path.chmod(0o600)
    second = path.stat()
    assert second.st_ctime_ns > first.st_ctime_ns
    assert second.st_mtime_ns == first.st_mtime_ns
    with path.open("ab") as file:
        file.write(b"y")
    third = path.stat()
    assert third.st_mtime_ns > second.st_mtime_ns
    assert third.st_ctime_ns > second.st_ctime_ns
    before = directory.stat()
    (directory / "other").touch()
    after = directory.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_reading_moves_atime_as_relatime_does(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x" * 10_000)
    now = time.time_ns()
    os.utime(path, ns=(now - 10**12, now - 10**11))
    path.read_bytes()
    moved = path.stat().st_atime_ns
    assert moved > now - 10**11
    path.read_bytes()
    assert path.stat().st_atime_ns == moved


def test_space_taken(directory: Path) -> None:
    (directory / "empty").touch()
    assert (directory / "empty").stat().st_blocks == 0
    (directory / "small").write_bytes(b"x" * 1000)
    assert (directory / "small").stat().st_blocks == 2
    (directory / "large").write_bytes(b"x" * 1_000_000)
    assert (directory / "large").stat().st_blocks * 512 >= 1_000_000
    assert (directory / "large").stat().st_blksize >= 128 * 1024


def test_statfs(node: MountedNode) -> None:
    status = os.statvfs(node.path)
    assert status.f_namemax == 255
    assert 0 < status.f_bavail <= status.f_blocks
    assert 0 < status.f_ffree < status.f_files


def test_extended_attributes(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.large", b"v" * 65536)
    os.setxattr(path, "user.empty", b"")
    assert sorted(os.listxattr(path)) == ["user.empty", "user.large", "user.one"]
    assert os.getxattr(path, "user.large") == b"v" * 65536
    assert os.getxattr(path, "user.empty") == b""
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.one", b"3", os.XATTR_REPLACE)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
        os.setxattr(path, "user.none", b"2", os.XATTR_REPLACE)
    os.removexattr(path, "user.one")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
        os.getxattr(path, "user.one")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
        os.removexattr(path, "user.one")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.E2BIG):
        os.setxattr(path, "user.one", b"v" * 65537)
    os.setxattr(directory, "user.on-a-directory", b"yes")
    assert os.listxattr(directory) == ["user.on-a-directory"]


def test_access_control_lists_are_refused_not_ignored(directory: Path) -> None:
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EOPNOTSUPP):
        os.setxattr(directory, "system.posix_acl_access", struct.pack("<I", 2))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EOPNOTSUPP):
        os.getxattr(directory, "system.posix_acl_access")


def test_virtual_attributes(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"content")
    assert os.listxattr(path) == []
    digest = digest_of(DigestKind.BLAKE3, b"content")[1:].hex()
    assert os.getxattr(path, "user.dfs.key") == f"blake3:{digest}:7".encode()
    assert os.getxattr(path, "user.dfs.replicas") == b"1"
    with pytest.raises(PermissionError):
        os.setxattr(path, "user.dfs.key", b"x")
    with pytest.raises(PermissionError):
        os.removexattr(path, "user.dfs.key")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
        os.getxattr(directory, "user.dfs.key")
    (directory / "same").write_bytes(b"x" * 600_000)
    (directory / "twin").write_bytes(b"x" * 600_000)
    keys = {os.getxattr(directory / name, "user.dfs.key") for name in ("same", "twin")}
    assert len(keys) == 1
