"""The same random calls on a mount and on a local directory: results, errno, and the tree, equal.

`DFS_NAMES_STEPS` (4,000) and `DFS_NAMES_SEED` choose another run; a failure prints the seed and the
last calls. Left out is what the two may do differently: access times, sizes of directories, inode
numbers (but which names share one is compared), xattrs larger than an ext4 block.
"""

import ctypes
import errno
import os
import random
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfsfs.testing.mountpoint import MountedNode

STEPS = int(os.environ.get("DFS_NAMES_STEPS", "4000"))
SEED = int(os.environ.get("DFS_NAMES_SEED", "2026"))
LOOK_STEPS = 250  # the whole tree is compared so often
HANDLES = 5
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SET_TIME_S = 1_000_000_000  # times that were set are before it, all others after
User = tuple[int, int, list[int]]
USERS: tuple[User, ...] = ((0, 0, []), (1000, 1000, [2000]), (1001, 1001, [1000]))
NAMES = [b"a", b"b", b"c", b"d", b"\xff\x01", b"n" * 255]

libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Side:
    """One of the two trees, and what is open in it."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.handles: list[int | None] = [None] * HANDLES
        self.users = [0] * HANDLES  # who opened them

    def path(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    def _handle(self, number: int) -> int:
        handle = self.handles[number]
        if handle is None:
            raise OSError(errno.EBADF, "not open")
        return handle

    # -- what stat shows ----------------------------------------------------------------------

    def describe(self, result: os.stat_result) -> tuple[Any, ...]:
        return (
            oct(result.st_mode),
            result.st_nlink,
            result.st_uid,
            result.st_gid,
            "-" if stat.S_ISDIR(result.st_mode) else result.st_size,
            result.st_rdev,
            self.set_time(result.st_mtime_ns),
        )

    def set_time(self, time_ns: int) -> int | str:
        return time_ns if time_ns < SET_TIME_S * 10**9 else "now"

    def times(self, path: bytes) -> tuple[int, int, int] | None:
        try:
            result = os.lstat(self.path(path))
        except OSError:
            return None
        return result.st_ino, result.st_mtime_ns, result.st_ctime_ns

    def tree(self) -> dict[bytes, Any]:
        """Everything below the root, read as root."""
        found: dict[bytes, Any] = {}
        first: dict[int, bytes] = {}
        for directory, directories, files in os.walk(self.root):
            directories.sort()
            for name in sorted(directories + files):
                path = os.path.join(directory, name)
                result = os.lstat(path)
                short = path[len(self.root) + 1 :]
                content: bytes | None = None
                if stat.S_ISREG(result.st_mode):
                    with open(path, "rb") as file:
                        content = file.read()
                elif stat.S_ISLNK(result.st_mode):
                    content = os.readlink(path)
                attributes = {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                }
                same = first.setdefault(result.st_ino, short)
                found[short] = (self.describe(result), content, attributes, same)
        return found

    def numbers(self) -> dict[bytes, int]:
        return {path: os.lstat(self.path(path)).st_ino for path in self.tree()}

    # -- calls --------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int, mode: int, number: int, data: bytes) -> Any:
        if self.handles[number] is not None:
            raise OSError(errno.EMFILE, "the slot is taken")
        if os.path.exists(self.path(path)):
            kind = stat.S_IFMT(os.stat(self.path(path)).st_mode)
            if kind in (stat.S_IFCHR, stat.S_IFIFO):
                return "special"  # the mount has `nodev`
        handle = os.open(self.path(path), flags, mode)
        self.handles[number] = handle
        self.users[number] = os.geteuid()
        return os.write(handle, data) if data else 0

    def close(self, number: int) -> None:
        handle = self._handle(number)
        self.handles[number] = None
        os.close(handle)

    def write(self, number: int, data: bytes, offset: int) -> int:
        handle = self._handle(number)
        # A FUSE server is not told who writes: that a write ends suid and sgid hangs on who opened.
        become(next(user for user in USERS if user[0] == self.users[number]))
        return os.pwrite(handle, data, offset)

    def read(self, number: int) -> bytes:
        return os.pread(self._handle(number), 100_000, 0)

    def fstat(self, number: int) -> Any:
        return self.describe(os.fstat(self._handle(number)))

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self._handle(number), size)

    def fchmod(self, number: int, mode: int) -> None:
        os.fchmod(self._handle(number), mode)

    def fchown(self, number: int, uid: int, gid: int) -> None:
        os.fchown(self._handle(number), uid, gid)

    def futimens(self, number: int, atime: int, mtime: int) -> None:
        os.utime(self._handle(number), ns=(atime, mtime))

    def fsync(self, number: int) -> None:
        os.fsync(self._handle(number))

    def flist(self, number: int) -> list[str]:
        return sorted(os.listdir(self._handle(number)))

    def create_at(self, number: int, name: bytes) -> None:
        handle = self._handle(number)
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=handle))

    def unlink_at(self, number: int, name: bytes) -> None:
        os.unlink(name, dir_fd=self._handle(number))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.path(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.path(path))

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.path(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.path(path))

    def link(self, path: bytes, other: bytes, follow: bool) -> None:
        os.link(self.path(path), self.path(other), follow_symlinks=follow)

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self.path(path), mode, device)

    def rename(self, path: bytes, other: bytes, flags: int) -> None:
        checked(libc.renameat2(-100, self.path(path), -100, self.path(other), flags))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.path(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.path(path), size)

    def utimens(self, path: bytes, times: tuple[tuple[int, int], tuple[int, int]]) -> Any:
        pair = (Timespec * 2)(Timespec(*times[0]), Timespec(*times[1]))
        nofollow = 0x100
        checked(libc.utimensat(-100, self.path(path), pair, nofollow))
        result = os.lstat(self.path(path))
        atime = self.set_time(result.st_atime_ns)
        return self.describe(result), "-" if times[0][1] == UTIME_OMIT else atime

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=follow)

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(os.listxattr(self.path(path), follow_symlinks=False))

    def removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=follow)

    def stat(self, path: bytes, follow: bool) -> Any:
        return self.describe(os.stat(self.path(path), follow_symlinks=follow))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.path(path), mode, effective_ids=True)

    def list(self, path: bytes) -> Any:
        with os.scandir(self.path(path)) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)


class Calls:
    """Draws calls: a name of `Side`'s methods and its arguments."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds: list[Callable[[], tuple[Any, ...]]] = []
        usual = [
            (self._open, 12), (self._handle_call, 14), (self._directory_handle, 3),
            (self._mkdir, 6), (self._rmdir, 4), (self._unlink, 6), (self._symlink, 4),
            (self._link, 5), (self._mknod, 3), (self._rename, 12), (self._chmod, 5),
            (self._chown, 5), (self._truncate, 3), (self._times, 4), (self._set_xattr, 4),
            (self._other_xattr, 4), (self._look, 8),
        ]  # fmt: skip
        for kind, weight in usual:
            self.kinds += [kind] * weight

    def draw(self) -> tuple[Any, ...]:
        return self.random.choice(self.kinds)()

    def path(self) -> bytes:
        choose = self.random
        parts = [choose.choice(NAMES) for _ in range(choose.choice([1, 1, 2, 2, 3]))]
        if choose.random() < 0.06:
            parts.insert(choose.randrange(len(parts) + 1), choose.choice([b".", b".."]))
        if choose.random() < 0.02:
            parts[-1] = b"x" * 256
        if parts.count(b"..") and parts[0] == b"..":
            parts[0] = b"a"  # not above the root
        return b"/".join(parts) + (b"/" if choose.random() < 0.04 else b"")

    def mode(self) -> int:
        return self.random.choice([0o644, 0o777, 0o755, 0o700, 0o600, 0o2775, 0o1777, 0o6777, 0])

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 10, 300, 5000, 20_000]))

    def number(self) -> int:
        return self.random.randrange(HANDLES)

    def owner(self) -> int:
        return self.random.choice([-1, 0, 1000, 1001, 2000])

    def _open(self) -> tuple[Any, ...]:
        flags = self.random.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
        for flag, odds in (
            (os.O_CREAT, 0.7), (os.O_EXCL, 0.2), (os.O_TRUNC, 0.2), (os.O_APPEND, 0.2),
            (os.O_NOFOLLOW, 0.1), (os.O_DIRECTORY, 0.15), (os.O_SYNC, 0.05),
        ):  # fmt: skip
            if self.random.random() < odds:
                flags |= flag
        if flags & os.O_CREAT:
            flags &= ~os.O_DIRECTORY  # what that means has changed between kernels
        data = b"" if flags & os.O_ACCMODE == os.O_RDONLY else self.data()
        return "open", self.path(), flags, self.mode(), self.number(), data

    def _handle_call(self) -> tuple[Any, ...]:
        number = self.number()
        return self.random.choice(
            [
                ("close", number),
                ("close", number),
                ("write", number, self.data() or b"x", self.random.randrange(30_000)),
                ("read", number),
                ("fstat", number),
                ("ftruncate", number, self.random.choice([0, 5, 4096, 40_000])),
                ("fchmod", number, self.mode()),
                ("fchown", number, self.owner(), self.owner()),
                ("futimens", number, 5 * 10**17 + 1, 5 * 10**17 + 2),
                ("fsync", number),
            ]
        )

    def _directory_handle(self) -> tuple[Any, ...]:
        number = self.number()
        name = self.random.choice(NAMES)
        return self.random.choice(
            [
                ("open", self.path(), os.O_RDONLY | os.O_DIRECTORY, 0, number, b""),
                ("flist", number),
                ("create_at", number, name),
                ("unlink_at", number, name),
            ]
        )

    def _mkdir(self) -> tuple[Any, ...]:
        return "mkdir", self.path(), self.mode()

    def _rmdir(self) -> tuple[Any, ...]:
        return "rmdir", self.path()

    def _unlink(self) -> tuple[Any, ...]:
        return "unlink", self.path()

    def _symlink(self) -> tuple[Any, ...]:
        target = self.random.choice([*NAMES, b"../a", b"a/b", b"nowhere", b".", b"", b"t" * 3000])
        return "symlink", target, self.path()

    def _link(self) -> tuple[Any, ...]:
        return "link", self.path(), self.path(), self.random.random() < 0.5

    def _mknod(self) -> tuple[Any, ...]:
        kind = self.random.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG, 0])
        # The null device: opening it does nothing, if anybody could.
        device = os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        return "mknod", self.path(), kind | self.mode() & 0o777, device

    def _rename(self) -> tuple[Any, ...]:
        return "rename", self.path(), self.path(), self.random.choice([0, 0, 0, 1, 2, 2, 3, 8])

    def _chmod(self) -> tuple[Any, ...]:
        return "chmod", self.path(), self.mode()

    def _chown(self) -> tuple[Any, ...]:
        return "chown", self.path(), self.owner(), self.owner(), self.random.random() < 0.5

    def _truncate(self) -> tuple[Any, ...]:
        return "truncate", self.path(), self.random.choice([-1, 0, 7, 5000, 100_000])

    def _times(self) -> tuple[Any, ...]:
        times = tuple(
            (self.random.randrange(SET_TIME_S), self.random.choice(
                [0, 999_999_999, 123_456_789, UTIME_NOW, UTIME_OMIT, 1_000_000_000]
            ))
            for _ in range(2)
        )  # fmt: skip
        return "utimens", self.path(), times

    def _xattr_name(self) -> bytes:
        return self.random.choice([
            b"user.one", b"user.two", b"trusted.one", b"security.one", b"nothing.one", b"user.",
            b"user." + b"x" * 250, b"user." + b"x" * 251, b"none",
        ])  # fmt: skip

    def _set_xattr(self) -> tuple[Any, ...]:
        flags = self.random.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
        value = self.random.randbytes(self.random.choice([9, 100]))  # another each time
        return (
            "setxattr", self.path(), self._xattr_name(), value, flags, self.random.random() < 0.5,
        )  # fmt: skip

    def _other_xattr(self) -> tuple[Any, ...]:
        follow = self.random.random() < 0.5
        return self.random.choice(
            [
                ("getxattr", self.path(), self._xattr_name(), follow),
                ("removexattr", self.path(), self._xattr_name(), follow),
                ("listxattr", self.path()),
            ]
        )

    def _look(self) -> tuple[Any, ...]:
        return self.random.choice(
            [
                ("stat", self.path(), self.random.random() < 0.5),
                ("readlink", self.path()),
                ("access", self.path(), self.random.choice([os.R_OK, os.W_OK, os.X_OK])),
                ("list", self.path()),
            ]
        )


def become(user: User) -> None:
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(user[2])
    os.setegid(user[1])
    os.seteuid(user[0])


def outcome(side: Side, call: tuple[Any, ...], user: User) -> Any:
    """What a call returns or fails with, and which times of what it names it changed."""
    paths = [path for path in call[1 : PATHS.get(call[0], 2)] if isinstance(path, bytes)]
    paths += [os.path.dirname(path.rstrip(b"/")) for path in paths]
    before = [side.times(path) for path in paths]
    become(user)
    try:
        result = getattr(side, call[0])(*call[1:])
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    finally:
        become(USERS[0])
    moved = []
    for path, old in zip(paths, before, strict=True):
        new = side.times(path)
        if old is None or new is None or old[0] != new[0]:
            moved.append((old is None, new is None))
        else:
            moved.append((old[1] != new[1], old[2] != new[2]))
    return result, moved


PATHS = {"link": 3, "rename": 3, "symlink": 3}  # the end of the arguments that are paths


def brief(call: object) -> str:
    """A call for people: long names and data are cut short."""
    return re.sub(r"(n{8})n+|(x{8})x+|(t{8})t+|(b[\"\'].{60})[^,)]*", r"\1\2\3\4~", repr(call))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedNode]:
    """A mount that other users can reach."""
    base = tmp_path_factory.mktemp("node")
    for directory in (base, *base.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    with MountedNode(base / "mount", base / "state") as mounted:
        yield mounted
        assert mounted.ask("check") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="changes user, which only root can")
@pytest.mark.timeout(max(300, STEPS // 20))
def test_every_call_does_what_it_does_on_a_local_directory(node: MountedNode) -> None:
    local = node.state.parent / "local"
    local.mkdir()
    sides = Side(local), Side(node.path / "root")
    (node.path / "root").mkdir()
    for side in sides:
        os.chmod(side.root, 0o1777)
    calls = Calls(SEED)
    last: deque[str] = deque(maxlen=80)
    umask = os.umask(0o022)
    groups = os.getgroups()
    try:
        for number in range(STEPS):
            call = calls.draw()
            user = calls.random.choice([USERS[0], *USERS])
            expected, found = (outcome(side, call, user) for side in sides)
            last.append(brief((user[0], call, expected)))
            history = "\n".join(last)
            assert found == expected, f"seed {SEED}, step {number}: {found}\n{history}"
            if number % LOOK_STEPS == LOOK_STEPS - 1:
                assert sides[1].tree() == sides[0].tree(), f"seed {SEED}, step {number}\n{history}"
    finally:
        os.umask(umask)
        os.setgroups(groups)
        for side in sides:
            for handle in side.handles:
                if handle is not None:
                    os.close(handle)
    tree, numbers = sides[1].tree(), sides[1].numbers()
    assert tree == sides[0].tree()
    node.stop()
    node.start()
    assert sides[1].tree() == tree
    assert sides[1].numbers() == numbers
