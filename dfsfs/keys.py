"""Streams by key: the library face of a node, as the ancestor had it, on top of the same tree.

A key is a file's path below the root of the filesystem, so `put("a/b", ...)` and the file `a/b` of
every mount are one thing. What is put becomes visible whole, in one transaction, after its blocks
are where the write concern wants them; memory is bounded for any size.
"""

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from dfsfs.admin import Key, Listing
from dfsfs.base.errors import Exists, Full, Invalid, IsDirectory, NotDirectory, NotFound
from dfsfs.base.limits import CONTROL_PIECE_BYTES
from dfsfs.base.types import ROOT_INODE, Buffer, ContentRef, FileKind, InodeId
from dfsfs.blocks import Storage
from dfsfs.content import ContentReader, ContentWriter
from dfsfs.namespace import Inode, Namespace
from dfsfs.runtime import World
from dfsfs.vfs import Drafts, Leases, Publication

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644


class Keys:
    """put, get, list and remove by key. Owned by the node; safe for concurrent calls."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        storage: Storage,
        publication: Publication,
        leases: Leases,
        drafts: Drafts,
        *,
        has_room: Callable[[], bool],
    ) -> None:
        """`has_room` tells whether this node's disk takes more names and bytes."""
        self._world = world
        self._namespace = namespace
        self._storage = storage
        self._publication = publication
        self._leases = leases
        self._drafts = drafts
        self._has_room = has_room
        self._being_read: dict[object, tuple[InodeId, ContentRef]] = {}

    def contents_in_use(self) -> Iterable[tuple[InodeId, ContentRef]]:
        """What streams that are being read may still need: for gc, as open files are."""
        return self._being_read.values()

    async def put(self, key: Key, source: AsyncIterable[Buffer]) -> None:
        """Store a stream as the file `key`. See `admin.Operator.put`."""
        *parents, name = components(key, what="a file")
        self._refuse_directory(parents, name)
        self._check_room()
        upload = self._storage.upload()
        try:
            writer = ContentWriter(upload)
            async for piece in source:
                await writer.write(piece)
            content = await writer.finish()
            await upload.settle()
            await self._lease([*parents, name])
            self._check_room()
            self._bind(parents, name, content)
            await self._publication.visible(self._namespace.position)
        finally:
            upload.close()

    def _check_room(self) -> None:
        if not self._has_room():
            raise Full("the disk of this node is full")

    def _refuse_directory(self, parents: list[bytes], name: bytes) -> None:
        """Say so before the stream is read, not after."""
        directory = ROOT_INODE
        for component in [*parents, name]:
            try:
                inode = self._namespace.lookup(directory, component)
            except NotFound:
                return
            directory = inode.inode
        if inode.kind == FileKind.DIRECTORY:
            raise IsDirectory(f"{os.fsdecode(b'/'.join([*parents, name]))} is a directory")

    def _bind(self, parents: list[bytes], name: bytes, content: ContentRef) -> None:
        """Give the content its name. Sync: the file appears with its content or not at all."""
        directory = ROOT_INODE
        for component in parents:
            directory = self._descend(directory, component).inode
        try:
            inode = self._namespace.lookup(directory, name)
        except NotFound:
            inode = self._namespace.create(
                directory,
                name,
                kind=FileKind.REGULAR,
                mode=FILE_MODE,
                uid=os.getuid(),
                gid=os.getgid(),
            )
        if inode.kind == FileKind.DIRECTORY:
            raise IsDirectory(f"{os.fsdecode(name)} is a directory")
        if inode.kind != FileKind.REGULAR:
            raise Exists(f"{os.fsdecode(name)} is not a regular file")
        self._namespace.write(inode.inode, content, mtime_ns=self._world.wall_ns())

    def _descend(self, directory: InodeId, name: bytes) -> Inode:
        try:
            inode = self._namespace.lookup(directory, name)
        except NotFound:
            return self._namespace.create(
                directory,
                name,
                kind=FileKind.DIRECTORY,
                mode=DIRECTORY_MODE,
                uid=os.getuid(),
                gid=os.getgid(),
            )
        if inode.kind != FileKind.DIRECTORY:
            raise NotDirectory(f"{os.fsdecode(name)} is not a directory")
        return inode

    @asynccontextmanager
    async def get(self, key: Key) -> AsyncIterator[AsyncIterable[Buffer]]:
        """The content of a file, piece by piece. See `admin.Operator.get`."""
        inode = await self.shown(key)
        if inode.kind == FileKind.DIRECTORY:
            raise IsDirectory(f"{_text(key)} is a directory")
        if inode.kind != FileKind.REGULAR:
            raise Invalid(f"{_text(key)} is not a regular file")
        reading = object()
        self._being_read[reading] = inode.inode, inode.content
        try:
            yield self._pieces(inode.content)
        finally:
            del self._being_read[reading]

    async def _pieces(self, content: ContentRef) -> AsyncIterator[Buffer]:
        reader = ContentReader(self._storage, content)
        offset = 0
        while offset < content.size:
            piece = await reader.read(offset, CONTROL_PIECE_BYTES)
            yield piece
            offset += len(piece)

    async def stat(self, key: Key) -> Listing:
        """One entry, symlinks not followed."""
        names = components(key)
        return _listing(names[-1] if names else b"", await self.shown(key))

    async def list(self, key: Key, after: bytes | None, limit: int) -> "list[Listing]":
        """A page of a directory."""
        directory = self.resolve(key)
        if directory.kind != FileKind.DIRECTORY:
            raise NotDirectory(f"{_text(key)} is not a directory")
        while True:
            entries = self._namespace.list(directory.inode, after, limit)
            drafts = [e.inode.inode for e in entries if self._drafts.is_elsewhere(e.inode.inode)]
            if not drafts:
                break
            await self._drafts.settled(drafts)
        return [_listing(entry.name, entry.inode) for entry in entries]

    async def remove(self, key: Key) -> None:
        """Remove a file's name, or an empty directory."""
        *parents, name = components(key, what="a file or directory")
        await self._lease([*parents, name])
        directory = self._resolve(parents).inode
        if self._namespace.lookup(directory, name).kind == FileKind.DIRECTORY:
            self._namespace.rmdir(directory, name)
        else:
            self._namespace.unlink(directory, name)
        await self._publication.visible(self._namespace.position)

    async def _lease(self, names: Sequence[bytes]) -> None:
        """Return when what is there of a path may be changed, in this step."""
        inodes = self._on_the_way(names)
        while not self._leases.held(inodes):
            await self._leases.acquire(inodes)
            again = self._on_the_way(names)
            if set(again) <= set(inodes):
                return
            inodes = again

    def _on_the_way(self, names: Sequence[bytes]) -> tuple[InodeId, ...]:
        """The last two inodes of a path, as far as it exists: what a change of it changes."""
        found = [ROOT_INODE]
        for name in names:
            try:
                found.append(self._namespace.lookup(found[-1], name).inode)
            except (NotFound, NotDirectory):
                break
        return tuple(found[-2:])

    async def shown(self, key: Key) -> Inode:
        """The inode of a key, with all that was set of it elsewhere (promise 4).

        Raises:
            NotFound: no such key.
        """
        while self._drafts.is_elsewhere((found := self.resolve(key)).inode):
            await self._drafts.settled([found.inode])
        return found

    def resolve(self, key: Key) -> Inode:
        """The inode of a key.

        Raises:
            NotFound: no such key.
        """
        return self._resolve(components(key))

    def _resolve(self, names: Sequence[bytes]) -> Inode:
        inode = self._namespace.get(ROOT_INODE)
        for name in names:
            inode = self._namespace.lookup(inode.inode, name)
        return inode


def components(key: Key, *, what: str = "") -> list[bytes]:
    """The names of a key; `what` says what an empty key should have named.

    Raises:
        Invalid: `..`, or an empty key where a name is needed.
    """
    raw = os.fsencode(key) if isinstance(key, str) else key
    names = [name for name in raw.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise Invalid("a key may not contain '..'")
    if b"\0" in raw:
        raise Invalid("a key may not contain NUL")
    if what and not names:
        raise Invalid(f"an empty key does not name {what}")
    return names


def _text(key: Key) -> str:
    return key if isinstance(key, str) else os.fsdecode(key)


def _listing(name: bytes, inode: Inode) -> Listing:
    return Listing(
        name=name,
        kind=inode.kind,
        mode=inode.mode,
        nlink=inode.nlink,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        mtime_ns=inode.mtime_ns,
        target=inode.target,
    )
