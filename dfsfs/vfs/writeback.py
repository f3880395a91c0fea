"""The way of what is written to an open file into its row, and to whoever must know.

    write_back     blocks are in the store, content ref made     under the buffer's lock
    settle         blocks are on as many nodes as promised       writing goes on meanwhile
    namespace      one transaction names the new content         sync
    publication    every connected mount has seen it             writing goes on meanwhile

A file that lost its last name is not committed any more: its bytes stay here until it is released.
Unless somebody removed it who cannot have seen what was written here, after a partition: then it
comes back with that (promise 13, an edit beats a delete).
"""

from dfsfs.base.limits import PATCHES_BYTES_MAX, PATCHES_CLOSED_BYTES_MAX
from dfsfs.namespace import Namespace
from dfsfs.vfs.buffer import WriteBuffer
from dfsfs.vfs.handles import OpenFile
from dfsfs.vfs.interface import Publication
from dfsfs.vfs.kernel import KernelView


class WriteBack:
    """Owned by `Files`."""

    def __init__(self, namespace: Namespace, publication: Publication, kernel: KernelView) -> None:
        self._namespace = namespace
        self._publication = publication
        self._kernel = kernel

    async def commit(self, file: OpenFile, *, durable: bool = False) -> None:
        """Everything written until now is committed and visible, or `durable` as well.

        Raises:
            DfsError: it is not; what could not be stored stays dirty.
        """
        busy = (file.inode,)
        self._kernel.begin(busy)
        try:
            buffer = file.buffer
            # What is closed would carry its patches for long: fewer of them.
            await self.store(file, PATCHES_BYTES_MAX if durable else PATCHES_CLOSED_BYTES_MAX)
            reached = self._publication.durable if durable else self._publication.visible
            await reached(position := self._namespace.position)
            file.unseen = file.unseen if file.unseen > position else 0
        finally:
            self._kernel.end(busy)
        if buffer is not None:
            self.drop_clean(file, buffer)

    async def store(self, file: OpenFile, patches_bytes_max: int) -> None:
        """Have the namespace name what is written until now."""
        buffer = file.buffer
        if buffer is None or file.committed >= buffer.sequence:
            return
        written = await buffer.write_back(patches_bytes_max=patches_bytes_max)
        if buffer.upload is not None:
            await buffer.upload.settle()
        if file.buffer is not buffer or file.committed >= written.sequence or file.unlinked:
            return
        space, content, mtime_ns = self._namespace, written.content, file.mtime_ns
        if file.bereft:
            file.heir = space.revive(file.inode, content, mtime_ns=mtime_ns)
            file.bereft = file.unlinked = False
            space.drop_orphan(file.inode)
        else:
            # What came from elsewhere meanwhile came without the lease: after a partition.
            space.write(file.heir, content, mtime_ns=mtime_ns, seen=file.base)
        file.replace(content)
        file.committed, file.unseen = written.sequence, space.position

    def drop_clean(self, file: OpenFile, buffer: WriteBuffer) -> None:
        """A buffer of which everything is committed is not needed any more."""
        if file.buffer is buffer and file.committed == buffer.sequence:
            buffer.close()
            file.buffer = None
            file.atime_due = True
