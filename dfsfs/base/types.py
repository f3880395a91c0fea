"""The words every part shares: digests, content refs, inode ids, stamps, node ids.

Nothing here does I/O or knows a part. Integers and byte strings that must not be mixed up are
`NewType`s; composite values are frozen dataclasses or named tuples (cheap, ordered, hashable).
"""

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NewType

from blake3 import blake3

from dfsfs.base.errors import Invalid
from dfsfs.base.limits import BLOCK_SHIFT_DEFAULT

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes. A function that keeps one says so; otherwise it is the caller's on return."""

InodeId = NewType("InodeId", int)
"""63 bits: `(origin number << 40) | counter`. It is the inode number users see, on every mount."""

LinkId = NewType("LinkId", int)
"""Names one directory entry; the first link of an inode has the inode's own number."""

Origin = NewType("Origin", int)
"""23 bits: one incarnation of one node's state directory."""

NodeId = NewType("NodeId", bytes)
"""32 bytes: SHA-256 of a node's public key (SubjectPublicKeyInfo, DER)."""

Digest = NewType("Digest", bytes)
"""One byte of `DigestKind`, then the raw hash. Names a block on disk and on the wire."""

ROOT_INODE = InodeId(1)
TREE_SHAPE = InodeId(2)
"""No inode: its write lease is that of moving directories from one parent to another."""

ORIGIN_SHIFT = 40
ORIGIN_MAX = (1 << 23) - 1


class DigestKind(enum.IntEnum):
    """Hash functions a network can be founded with."""

    BLAKE3 = 1
    SHA256 = 2
    SHA1 = 3


_HASHERS: dict[int, Callable[[Buffer], bytes]] = {
    DigestKind.BLAKE3: lambda data: bytes(blake3(data).digest()),
    DigestKind.SHA256: lambda data: hashlib.sha256(data).digest(),
    DigestKind.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
}
_DIGEST_BYTES = {DigestKind.BLAKE3: 33, DigestKind.SHA256: 33, DigestKind.SHA1: 21}


def digest_of(kind: DigestKind, data: Buffer) -> Digest:
    """Hash `data`; large inputs release the GIL, so callers may use a thread."""
    return Digest(bytes((kind,)) + _HASHERS[kind](data))


def digest_matches(digest: Digest, data: Buffer) -> bool:
    """Whether `data` hashes to `digest`."""
    return _HASHERS[digest[0]](data) == digest[1:]


def is_digest(value: object) -> bool:
    """Whether `value` from outside is a well-formed digest."""
    return (
        isinstance(value, bytes)
        and len(value) > 1
        and value[0] in _HASHERS
        and len(value) == _DIGEST_BYTES[DigestKind(value[0])]
    )


def digest_text(digest: Digest) -> str:
    """The form people see: `blake3:6f1c...`."""
    return f"{DigestKind(digest[0]).name.lower()}:{digest[1:].hex()}"


class Stamp(NamedTuple):
    """Total order of transactions: hybrid time (µs), then origin (Kulkarni et al. 2014)."""

    time: int
    origin: Origin


ZERO_STAMP = Stamp(0, Origin(0))


@dataclass(frozen=True, slots=True)
class ContentRef:
    """The name of a file's bytes.

    One of four shapes: `inline` holds all bytes (`size == len(inline)`, root None); `root` names
    the Merkle tree's root block; both None: `size` zero bytes (one hole, or empty); both given: a
    tree and, packed in `inline`, a few changed bytes that lie over it (see `content.patches`).

    `shift` is the log2 of the block size of the tree. `stored` is the sum of the sizes of its
    leaves (what `du` shows: holes cost nothing). Equal bytes with equal shift and digest kind have
    equal refs, patched ones apart: leaves drop trailing zeros, an all-zero subtree is a hole.
    """

    size: int
    root: Digest | None = None
    inline: bytes | None = None
    shift: int = BLOCK_SHIFT_DEFAULT
    stored: int = 0

    def __post_init__(self) -> None:
        if self.inline is not None and self.root is None and len(self.inline) != self.size:
            raise Invalid("the size of inline content is that of its bytes")
        if self.size < 0:
            raise Invalid("negative size")

    @property
    def patched(self) -> bool:
        """Whether changed bytes lie over the tree."""
        return self.root is not None and self.inline is not None


EMPTY_CONTENT = ContentRef(size=0)


class FileKind(enum.IntEnum):
    """Kinds of inode, with the numbers of `d_type` in <dirent.h>."""

    FIFO = 1
    CHARACTER = 2
    DIRECTORY = 4
    BLOCK = 6
    REGULAR = 8
    SYMLINK = 10
    SOCKET = 12
