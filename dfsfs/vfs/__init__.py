"""Floor 3: POSIX semantics over namespace and blocks. No kernel, no sockets.

`Filesystem` has the verbs; what it needs from above is stated in `vfs.interface`.
"""

from dfsfs.vfs.attributes import Caller, SetAttributes
from dfsfs.vfs.files import Opened
from dfsfs.vfs.filesystem import Filesystem
from dfsfs.vfs.handles import DirectoryEntry
from dfsfs.vfs.interface import (
    Drafts,
    FileFacts,
    Invalidator,
    Leases,
    Publication,
    Space,
    Statistics,
)
from dfsfs.vfs.local import LocalFacts, LocalPublication, NoKernel, NoLeases
from dfsfs.vfs.xattrs import VIRTUAL_XATTR_PREFIX

__all__ = [
    "VIRTUAL_XATTR_PREFIX",
    "Caller",
    "DirectoryEntry",
    "Drafts",
    "FileFacts",
    "Filesystem",
    "Invalidator",
    "Leases",
    "LocalFacts",
    "LocalPublication",
    "NoKernel",
    "NoLeases",
    "Opened",
    "Publication",
    "SetAttributes",
    "Space",
    "Statistics",
]
