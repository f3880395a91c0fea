"""A filesystem over a real namespace and a memory store, with a kernel that takes notes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.types import ROOT_INODE, Buffer, Digest, DigestKind, InodeId, Origin
from dfsfs.blocks import LocalStorage, LocalUpload, MemoryStore
from dfsfs.crdt import HybridClock
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION, Change, Namespace
from dfsfs.runtime import Database, RealWorld
from dfsfs.vfs import Caller, Filesystem, LocalFacts, Space

ROOT = Caller(0, 0)
SHIFT = 12
BLOCK = 1 << SHIFT


@dataclass
class NotingInvalidator:
    """Notes what a kernel is asked to forget."""

    notes: list[tuple[object, ...]] = field(default_factory=list)
    settles: int = 0

    def entry(self, directory: InodeId, name: bytes, *, busy: bool) -> None:
        self.notes.append(("entry", directory, name, busy))

    def attributes(self, inode: InodeId) -> bool:
        self.notes.append(("attributes", inode))
        return True

    def pages(self, inode: InodeId, *, busy: bool) -> bool:
        self.notes.append(("pages", inode, busy))
        return True

    def busy(self, inode: InodeId) -> None:
        pass

    def pages_pending(self, inode: InodeId) -> bool:
        return any(note[:2] == ("pages", inode) for note in self.notes)

    @property
    def waiting(self) -> int:
        return 0

    async def settled(self) -> None:
        self.settles += 1

    def take(self) -> list[tuple[object, ...]]:
        """What was noted since the last look."""
        notes, self.notes = self.notes, []
        return notes


class HeldPublication:
    """Counts, and holds up when told to."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.visible_calls: list[int] = []
        self.durable_calls: list[int] = []

    async def visible(self, position: int) -> None:
        self.visible_calls.append(position)
        await self.gate.wait()

    async def durable(self, position: int) -> None:
        self.durable_calls.append(position)
        await self.gate.wait()


class SlowUpload(LocalUpload):
    """An upload that settles when it is told to."""

    def __init__(self, storage: "FailingStorage") -> None:
        super().__init__(storage)
        self._owner = storage

    async def settle(self) -> None:
        self._owner.settling += 1
        if self._owner.settle_gate is not None:
            await self._owner.settle_gate.wait()
        await super().settle()


class FailingStorage(LocalStorage):
    """A storage whose puts fail, and whose uploads settle, on demand."""

    failure: DfsError | None = None
    settle_gate: trio.Event | None = None
    settling = 0

    def upload(self) -> SlowUpload:
        return SlowUpload(self)

    async def put_pinned(self, data: Buffer, pinned: list[Digest]) -> Digest:
        if self.failure is not None:
            raise self.failure
        return await super().put_pinned(data, pinned)


class Bench:
    """Everything a test of the vfs needs."""

    def __init__(self) -> None:
        self.world = RealWorld()
        self.namespace = self._namespace(Origin(1))
        self.elsewhere = self._namespace(Origin(2))
        self.store = MemoryStore()
        self.storage = FailingStorage(self.world, self.store)
        self.publication = HeldPublication()
        self.kernel = NotingInvalidator()
        self.filesystem = Filesystem(
            self.world,
            self.namespace,
            self.storage,
            self.publication,
            facts=LocalFacts(DigestKind.BLAKE3, lambda: Space(1000, 400)),
            shift=SHIFT,
        )
        self.filesystem.attach(self.kernel, atime=True)

    def _namespace(self, origin: Origin) -> Namespace:
        database = Database(None, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)
        return Namespace(
            database,
            origin=origin,
            clock=HybridClock(self.world),
            node_name=lambda number: f"node-{number}",
        )

    def pull(self) -> None:
        """Bring the other replica up to date."""
        self._move(self.namespace, self.elsewhere, Origin(1))

    def push(self) -> list[Change]:
        """Apply what the other replica changed here."""
        return self._move(self.elsewhere, self.namespace, Origin(2))

    def _move(self, source: Namespace, target: Namespace, origin: Origin) -> list[Change]:
        changes: list[Change] = []
        while True:
            batch = source.feed(origin, target.have().get(origin, 0), bytes_max=1 << 20)
            if batch is None:
                return changes
            changes += target.apply([batch])

    async def put(self, name: bytes, data: bytes, *, mode: int = 0o644) -> InodeId:
        """Create, write, close and release; the kernel remembers the inode."""
        opened, value = await self.filesystem.create(ROOT_INODE, name, mode, 1, ROOT)
        self.filesystem.remember(value.inode)
        await self.filesystem.write(opened.number, 0, data)
        await self.filesystem.flush(opened.number)
        await self.filesystem.release(opened.number)
        return value.inode

    async def bytes_of(self, inode: InodeId) -> bytes:
        """All bytes, through a handle of its own."""
        opened = await self.filesystem.open(inode, 0, ROOT)
        size = self.filesystem.getattr(inode).size
        data = bytes(await self.filesystem.read(opened.number, 0, size + 1))
        await self.filesystem.release(opened.number)
        return data


@pytest.fixture
async def bench(nursery: trio.Nursery) -> AsyncIterator[Bench]:
    made = Bench()
    await nursery.start(made.filesystem.run)
    yield made
    assert made.namespace.check() == []
