"""Patched content as the plain tree it stands for. See `patches`."""

from collections.abc import Iterable

from dfsfs.base.types import Buffer, ContentRef, Digest, DigestKind, digest_of
from dfsfs.blocks import BlockSource, Upload
from dfsfs.content.patch import patch
from dfsfs.content.patches import unpack
from dfsfs.content.reader import ContentReader
from dfsfs.content.tree import Leaf
from dfsfs.content.writer import put_leaf


async def fold(source: BlockSource, upload: Upload, ref: ContentRef) -> ContentRef:
    """The ref without patches; changed leaves and the paths above them go to `upload`.

    Raises:
        Corrupt: the ref is malformed. And what `source` and `upload` raise.
    """
    if not ref.patched:
        return ref
    patches = unpack(ref)
    reader = ContentReader(source, ref)
    block = 1 << ref.shift
    indices = {
        index
        for item in patches.ranges
        for index in range(item.offset >> ref.shift, ((item.end - 1) >> ref.shift) + 1)
    }
    leaves: dict[int, Leaf | None] = {}
    for index in sorted(indices):
        leaves[index] = await put_leaf(upload, await reader.read(index << ref.shift, block))
    return await patch(source, upload, patches.tree, leaves, ref.size, ref.shift)


class HashingUpload:
    """An `Upload` that stores nothing: to learn what a digest would be."""

    def __init__(self, kind: DigestKind) -> None:
        self._kind = kind

    async def put(self, data: Buffer) -> Digest:
        """The digest."""
        return digest_of(self._kind, data)

    async def settle(self) -> None:
        """Nothing is on its way."""

    def keep(self, digests: Iterable[Digest]) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""
