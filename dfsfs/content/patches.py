"""A few changed bytes over a tree, kept in the content ref itself.

Making one small change durable should not cost a block of 256 KiB and a path of the tree above it,
stored, hashed and copied. So a commit of little puts the changed ranges into the ref, which travels
in its row; when they have become many they are folded into the tree, where they belong.

Packed form (canonical codec): [size of the tree, [offset, bytes], ...], ranges in order and apart.
Bytes between the end of the tree and the end of the file that no range covers are zeros.
Pure. What a peer packed is checked: `unpack` raises `Corrupt` for anything else.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import Corrupt, RemoteProtocolError
from dfsfs.base.limits import PATCHES_COUNT_MAX, PATCHES_PACKED_BYTES_MAX
from dfsfs.base.types import Buffer, ContentRef


class Range(NamedTuple):
    """Changed bytes at an offset of the file."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset after the last."""
        return self.offset + len(self.data)


class Patches(NamedTuple):
    """What a patched ref is made of: the tree as a ref of its own, and the ranges over it."""

    tree: ContentRef
    ranges: tuple[Range, ...]

    def over(self, target: bytearray, offset: int) -> None:
        """Copy what lies over `target`, which holds the file's bytes from `offset` on."""
        end = offset + len(target)
        first = max(0, bisect_right(self.ranges, offset, key=lambda item: item.offset) - 1)
        for item in self.ranges[first:]:
            if item.offset >= end:
                return
            low, high = max(item.offset, offset), min(item.end, end)
            if low < high:
                piece = memoryview(item.data)[low - item.offset : high - item.offset]
                target[low - offset : high - offset] = piece


def tree_of(ref: ContentRef) -> ContentRef:
    """The part of a ref that names blocks: itself, unless it is patched."""
    return unpack(ref).tree if ref.patched else ref


def unpack(ref: ContentRef) -> Patches:
    """Take a patched ref apart.

    Raises:
        Corrupt: it is malformed.
    """
    assert ref.inline is not None
    try:
        value = decode(ref.inline, size_max=PATCHES_PACKED_BYTES_MAX)
    except RemoteProtocolError as error:
        raise Corrupt(f"malformed patches: {error}") from error
    if not (isinstance(value, list) and value and len(value) <= PATCHES_COUNT_MAX + 1):
        raise Corrupt("malformed patches")
    tree_size, last = value[0], 0
    if type(tree_size) is not int or not 0 < tree_size <= ref.size:
        raise Corrupt("patches over a tree that is larger than the file")
    ranges = []
    for item in value[1:]:
        if not (
            isinstance(item, list)
            and len(item) == 2
            and type(item[0]) is int
            and isinstance(item[1], bytes)
            and item[1]
            and last <= item[0]
            and item[0] + len(item[1]) <= ref.size
        ):
            raise Corrupt("malformed patch")
        ranges.append(Range(item[0], item[1]))
        last = ranges[-1].end
    return Patches(ContentRef(tree_size, ref.root, None, ref.shift, ref.stored), tuple(ranges))


def pack(tree: ContentRef, ranges: Sequence[Range], size: int) -> ContentRef:
    """Content of `size` bytes: `tree`, zeros after its end, and `ranges` over both."""
    assert tree.root is not None
    assert not tree.patched
    packed = encode([tree.size, *([item.offset, item.data] for item in ranges)])
    return ContentRef(size, tree.root, packed, tree.shift, tree.stored)


def extends(new: ContentRef, old: ContentRef) -> bool:
    """Whether `new` is `old`, maybe with bytes appended, as far as the refs alone tell.

    So are small files and what is appended to a large one while it is kept as patches. False means
    that it is something else, or that blocks would have to be read to know.
    """
    if new.size < old.size:
        return False
    if old.root is None:
        return old.size == 0 or (
            old.inline is not None
            and new.root is None
            and new.inline is not None
            and new.inline.startswith(old.inline)
        )
    if new.root != old.root:
        return False
    try:
        before = unpack(old) if old.patched else Patches(old, ())
        after = unpack(new) if new.patched else Patches(new, ())
    except Corrupt:
        return False
    below = [Range(at, data[: old.size - at]) for at, data in after.ranges if at < old.size]
    return before.tree == after.tree and list(before.ranges) == below


def merged(below: Sequence[Range], above: Sequence[tuple[int, Buffer]]) -> list[Range]:
    """Ranges that show `above` over `below`; touching ones become one."""
    pieces: list[tuple[int, bytes]] = []
    covers = sorted((offset, offset + len(data)) for offset, data in above)
    for item in below:
        start = item.offset
        for low, high in covers:
            if high <= start or low >= item.end:
                continue
            if low > start:
                pieces.append((start, item.data[start - item.offset : low - item.offset]))
            start = max(start, high)
        if start < item.end:
            pieces.append((start, item.data[start - item.offset :]))
    pieces += [(offset, bytes(data)) for offset, data in above]
    pieces.sort()
    result: list[Range] = []
    for offset, data in pieces:
        if result and result[-1].end == offset:
            result[-1] = Range(result[-1].offset, result[-1].data + data)
        else:
            result.append(Range(offset, data))
    return result
