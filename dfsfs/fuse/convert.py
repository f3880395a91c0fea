"""pyfuse3's types to the vfs's and back. No decisions here but how long the kernel may remember."""

import stat

import pyfuse3

from dfsfs.base.limits import KERNEL_CACHE_S
from dfsfs.base.types import FileKind
from dfsfs.namespace import Inode
from dfsfs.vfs import Caller, Opened, SetAttributes, Statistics

SECTOR_BYTES = 512  # the unit of st_blocks, whatever the block size
BLOCK_SIZE_HINT = 256 * 1024  # st_blksize: what cp, cat and Python read and write at a time
DIRECTORY_BYTES = 4096  # st_size of a directory: what ext4 shows for all but large ones
FRAGMENT_BYTES = 4096  # the unit of statfs

_FORMATS = {kind: int(kind) << 12 for kind in FileKind}  # S_IFMT is d_type shifted by 12 bits
assert _FORMATS[FileKind.DIRECTORY] == stat.S_IFDIR
assert _FORMATS[FileKind.SOCKET] == stat.S_IFSOCK


def attributes(value: Inode, *, dirty: bool) -> pyfuse3.EntryAttributes:
    """What stat(2) shows. `dirty`: it changes without a call, so the kernel must not keep it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = value.inode
    entry.entry_timeout = KERNEL_CACHE_S
    entry.attr_timeout = 0 if dirty else KERNEL_CACHE_S
    entry.st_mode = _FORMATS[value.kind] | value.mode
    entry.st_nlink = value.nlink
    entry.st_uid = value.uid
    entry.st_gid = value.gid
    entry.st_rdev = value.rdev
    is_directory = value.kind is FileKind.DIRECTORY
    entry.st_size = DIRECTORY_BYTES if is_directory else value.size
    entry.st_blksize = BLOCK_SIZE_HINT
    content = value.content
    # Inline bytes count as stored: tools take a file with size and without blocks for one hole.
    stored = content.stored if content.inline is None else content.size
    entry.st_blocks = (stored + SECTOR_BYTES - 1) // SECTOR_BYTES
    entry.st_atime_ns = value.atime_ns
    entry.st_mtime_ns = value.mtime_ns
    entry.st_ctime_ns = value.ctime_ns
    return entry


def no_entry() -> pyfuse3.EntryAttributes:
    """A name that does not exist: the kernel remembers that, too."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = KERNEL_CACHE_S
    return entry


def caller(context: pyfuse3.RequestContext, *, groups: bool = False) -> Caller:
    """Who calls; supplementary groups cost a look into /proc and are seldom needed."""
    found = frozenset(pyfuse3.get_sup_groups(context.pid)) if groups else frozenset[int]()
    return Caller(context.uid, context.gid, found)


def changes(attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> SetAttributes:
    """What setattr(2) wants; ctime is the filesystem's own business."""
    return SetAttributes(
        mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )


def file_info(opened: Opened) -> pyfuse3.FileInfo:
    """What open(2) gives."""
    return pyfuse3.FileInfo(
        fh=pyfuse3.FileHandleT(opened.number),
        direct_io=opened.direct,
        keep_cache=opened.keep_pages,
    )


def statistics(value: Statistics) -> pyfuse3.StatvfsData:
    """What statfs(2) gives. Inodes are not limited: as many are free as bytes allow."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = BLOCK_SIZE_HINT
    data.f_frsize = FRAGMENT_BYTES
    data.f_blocks = value.capacity_bytes // FRAGMENT_BYTES
    data.f_bfree = data.f_bavail = value.free_bytes // FRAGMENT_BYTES
    data.f_files = value.files + data.f_bfree
    data.f_ffree = data.f_favail = data.f_bfree
    data.f_namemax = value.name_bytes_max
    return data
