"""Who calls, and what setattr(2) may change: the vfs's own value types.

What stat(2) shows is `dfsfs.namespace.Inode`; open flags and access masks are those of `os`.
"""

import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from dfsfs.base.errors import Invalid
from dfsfs.base.limits import RELATIME_S
from dfsfs.base.types import FileKind
from dfsfs.base.units import NS_PER_S
from dfsfs.namespace import Inode

SUID_SGID = stat.S_ISUID | stat.S_ISGID
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
MODE_MASK = 0o7777
_RELATIME_NS = int(RELATIME_S) * NS_PER_S


class Caller(NamedTuple):
    """The process behind a call, as the kernel tells."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAttributes:
    """Fields to change; None leaves one alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


_KINDS = {
    0: FileKind.REGULAR,  # mknod(2): zero means a regular file
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFBLK: FileKind.BLOCK,
    stat.S_IFSOCK: FileKind.SOCKET,
}


def kind_of_mode(mode: int) -> FileKind:
    """The kind mknod(2) is asked for.

    Raises:
        Invalid: not one that mknod makes.
    """
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None:
        raise Invalid(f"mknod cannot make mode {mode:o}")
    return kind


def without_privileges(mode: int) -> int:
    """`mode` as a write by an unprivileged user leaves it (Linux: setattr_should_drop_suidgid)."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def may_access(mode: int, uid: int, gid: int, mask: int, caller: Caller) -> bool:
    """Whether permission bits grant `mask` (R_OK, W_OK, X_OK) to `caller`."""
    if caller.uid == 0:
        return not mask & os.X_OK or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if caller.uid == uid:
        granted = mode >> 6
    elif gid == caller.gid or gid in caller.groups:
        granted = mode >> 3
    else:
        granted = mode
    return mask & granted & 7 == mask & 7


def atime_is_due(inode: Inode, now_ns: int) -> bool:
    """Whether who reads this now should set its atime: mount(8), `relatime`."""
    return (
        inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns)
        or now_ns - inode.atime_ns >= _RELATIME_NS
    )
