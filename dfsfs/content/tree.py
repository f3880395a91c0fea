"""The shape of a file's bytes as a Merkle tree, and the encoding of its interior nodes. Pure.

Leaves hold 2**shift bytes each, trailing zeros dropped; a leaf of zeros alone is a hole, no block.
An interior node of level n names up to `fanout` children of level n - 1 (leaves are level 0) with
the bytes stored below each; trailing holes are dropped, a node of holes alone is a hole. The root
is of the least level that covers the size. So equal bytes have equal trees, hence equal digests.

    offset  size  field of an interior node
         0     4  magic "dfsT"
         4     1  version
         5     1  level, from 1
         6     1  shift
         7     1  bytes of each child's digest
         8     2  children, big-endian; the last one is no hole
        10     2  zero
        12        for each child: digest, then 8 bytes stored below it, big-endian; a hole is zeros

A node may come from a peer who made it up, so `decode_node` checks all that can be seen in it, and
`Node.check` that it fits its place in the tree: whatever passes can be read, walked and patched
within the bounds of the size that the content ref states.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from dfsfs.base.errors import Corrupt
from dfsfs.base.limits import BLOCK_SHIFT_MAX, BLOCK_SHIFT_MIN, FILE_BYTES_MAX, TREE_FANOUT
from dfsfs.base.types import Buffer, ContentRef, Digest, is_digest

MAGIC = b"dfsT"
VERSION = 1
LEVEL_MAX = 63  # far above what any size needs

_HEADER = struct.Struct(">4sBBBBH2x")
_STORED_BYTES = 8


class Leaf(NamedTuple):
    """A stored subtree, most often a leaf: its block, and the sum of the sizes of its leaves."""

    digest: Digest
    stored: int


class Shape(NamedTuple):
    """What decides the form of a tree, given the number of bytes."""

    shift: int
    fanout: int = TREE_FANOUT

    def leaf_count(self, size: int) -> int:
        """Leaves of `size` bytes, holes counted."""
        return -(-size >> self.shift)

    def depth(self, size: int) -> int:
        """Level of the root: 0 when one leaf is enough."""
        leaves, depth = self.leaf_count(size), 0
        while leaves > 1:
            leaves = -(-leaves // self.fanout)
            depth += 1
        return depth

    def leaves_below(self, level: int) -> int:
        """Leaves that a subtree whose top is of `level` can hold."""
        return int(self.fanout**level)

    def span(self, level: int) -> int:
        """Bytes that such a subtree covers."""
        return self.leaves_below(level) << self.shift


def shape_of(
    ref: ContentRef, *, fanout: int = TREE_FANOUT, shift_min: int = BLOCK_SHIFT_MIN
) -> Shape:
    """The shape of the tree of a content ref, which may come from a peer.

    Raises:
        Corrupt: a block size that cannot be.
    """
    if not shift_min <= ref.shift <= BLOCK_SHIFT_MAX:
        raise Corrupt(f"content with blocks of 2**{ref.shift} bytes")
    if ref.size > FILE_BYTES_MAX:
        raise Corrupt(f"content of {ref.size} bytes")
    if ref.root is None and ref.inline is None and ref.stored:
        raise Corrupt("a hole that stores bytes")
    return Shape(ref.shift, fanout)


class Node:
    """A decoded interior node. Children are decoded when asked for."""

    __slots__ = ("_data", "_digest_bytes", "_entry_bytes", "count", "level", "shift", "stored")

    def __init__(
        self, data: bytes, *, level: int, shift: int, count: int, digest_bytes: int, stored: int
    ) -> None:
        """Use `decode_node`."""
        self._data = data
        self._digest_bytes = digest_bytes
        self._entry_bytes = digest_bytes + _STORED_BYTES
        self.level = level
        self.shift = shift
        self.count = count
        self.stored = stored

    def __len__(self) -> int:
        return len(self._data)

    def child(self, index: int) -> Leaf | None:
        """The child, or None for a hole."""
        if index >= self.count:
            return None
        start = _HEADER.size + index * self._entry_bytes
        middle = start + self._digest_bytes
        if not self._data[start]:
            return None
        stored = int.from_bytes(self._data[middle : middle + _STORED_BYTES], "big")
        return Leaf(Digest(self._data[start:middle]), stored)

    def children(self) -> list[Leaf | None]:
        """All children, trailing holes dropped."""
        return [self.child(index) for index in range(self.count)]

    def check(self, shape: Shape, *, level: int, size: int, stored: int) -> None:
        """Check that the node belongs where it was found.

        `size` is the number of bytes from the start of the node to the end of the file.

        Raises:
            Corrupt: it does not.
        """
        span = shape.span(level - 1)
        last = self.count - 1
        last_child = self.child(last)
        assert last_child is not None  # decode_node saw to it
        if (
            self.level != level
            or self.shift != shape.shift
            or self.count > shape.fanout
            or self.stored != stored
            or last_child.stored > min(span, size - last * span)
        ):
            raise Corrupt("an interior node does not fit its place in the tree")


def encode_node(level: int, shift: int, children: Sequence[Leaf | None]) -> bytes | None:
    """An interior node, or None if all children are holes."""
    count = len(children)
    while count and children[count - 1] is None:
        count -= 1
    if not count:
        return None
    last = children[count - 1]
    assert last is not None
    digest_bytes = len(last.digest)
    hole = bytes(digest_bytes + _STORED_BYTES)
    parts = [_HEADER.pack(MAGIC, VERSION, level, shift, digest_bytes, count)]
    for child in children[:count]:
        if child is None:
            parts.append(hole)
        else:
            assert len(child.digest) == digest_bytes, "one tree, one kind of digest"
            parts.append(child.digest + child.stored.to_bytes(_STORED_BYTES, "big"))
    return b"".join(parts)


def decode_node(data: Buffer) -> Node:
    """Decode an interior node.

    Raises:
        Corrupt: anything about it is not as `encode_node` makes it.
    """
    raw = bytes(data)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise Corrupt("not an interior node")
    _, version, level, shift, digest_bytes, count = _HEADER.unpack_from(raw)
    entry_bytes = digest_bytes + _STORED_BYTES
    if (
        version != VERSION
        or not 1 <= level <= LEVEL_MAX
        or raw[10:12] != b"\0\0"
        or not count
        or len(raw) != _HEADER.size + count * entry_bytes
    ):
        raise Corrupt("malformed interior node")
    stored = _check_children(raw, count, digest_bytes, 1 << shift if level == 1 else None)
    return Node(
        raw, level=level, shift=shift, count=count, digest_bytes=digest_bytes, stored=stored
    )


def _check_children(raw: bytes, count: int, digest_bytes: int, stored_max: int | None) -> int:
    """Check each child's entry; the sum of what they store.

    `stored_max` bounds leaves; what a node stores is compared with its children when it is read.
    """
    last = _HEADER.size + (count - 1) * (digest_bytes + _STORED_BYTES)
    kind = raw[last]
    if not is_digest(raw[last : last + digest_bytes]):
        raise Corrupt("an interior node ends in no digest")
    hole = bytes(digest_bytes)
    total = 0
    entries = struct.Struct(f">{digest_bytes}sQ").iter_unpack(memoryview(raw)[_HEADER.size :])
    for digest, stored in entries:
        # A digest starts with its kind; the last child's says the kind, so the length fits too.
        if (digest[0] != kind) if stored else (digest != hole):
            raise Corrupt("malformed child of an interior node")
        if stored_max is not None and stored > stored_max:
            raise Corrupt(f"a leaf of {stored} bytes, {stored_max} are the most")
        total += stored
    return total


def trimmed(data: Buffer) -> Buffer:
    """`data` without its trailing zeros: what a leaf stores. No copy."""
    if not data or data[-1]:
        return data
    return memoryview(data)[: len(bytes(data).rstrip(b"\0"))]


def inline_ref(data: bytes) -> ContentRef:
    """Content that needs no block because it lives in the ref (up to `limits.INLINE_BYTES_MAX`)."""
    if not len(trimmed(data)):
        return ContentRef(size=len(data))
    return ContentRef(size=len(data), inline=data)
