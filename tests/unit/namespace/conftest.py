"""Namespaces for tests: in memory, on a wall clock that the test moves, checked at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, Origin
from dfsfs.crdt import HybridClock
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION, Change, Namespace
from dfsfs.runtime import Database

START_US = 1_700_000_000_000_000  # 2023-11-14 22:13:20


class Wall:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.us = START_US

    def wall_ns(self) -> int:
        return self.us * 1000


class Node:
    """A namespace with what belongs to it, and short words for tests."""

    def __init__(self, origin: int, wall: Wall, path: Path | None = None) -> None:
        self.origin = Origin(origin)
        self.wall = wall
        self.database = Database(path, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)
        self.changes: list[Change] = []
        self.node_names: dict[int, str] = {}
        self.start()

    def start(self) -> None:
        self.fs = Namespace(
            self.database,
            origin=self.origin,
            clock=HybridClock(self.wall),
            node_name=lambda origin: self.node_names.get(origin, f"node{origin}"),
        )
        self.fs.subscribe(self.changes.append)

    def file(self, name: bytes, parent: InodeId = ROOT_INODE, data: bytes = b"") -> InodeId:
        inode = self.fs.create(parent, name, kind=FileKind.REGULAR, mode=0o644, uid=1, gid=2).inode
        if data:
            self.write(inode, data)
        return inode

    def directory(self, name: bytes, parent: InodeId = ROOT_INODE) -> InodeId:
        return self.fs.create(parent, name, kind=FileKind.DIRECTORY, mode=0o755, uid=1, gid=2).inode

    def write(self, inode: InodeId, data: bytes, mtime_ns: int = 1) -> None:
        self.fs.write(inode, ContentRef(len(data), None, data), mtime_ns=mtime_ns)

    def data(self, inode: InodeId) -> bytes:
        return self.fs.get(inode).content.inline or b""

    def names(self, directory: InodeId = ROOT_INODE) -> list[bytes]:
        return [name for name, _, _ in self.fs.names(directory)]

    def pull(self, other: "Node") -> None:
        """Take everything the other has."""
        for origin in other.fs.have():
            while True:
                after = self.fs.have().get(origin, 0)
                batch = other.fs.feed(origin, after, bytes_max=1000)
                if batch is None:
                    break
                self.fs.apply([batch])
        assert self.fs.check() == []


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def make(wall: Wall) -> Iterator[Callable[[int], Node]]:
    made: list[Node] = []

    def factory(origin: int) -> Node:
        made.append(Node(origin, wall))
        return made[-1]

    yield factory
    for node in made:
        assert node.fs.check() == []
        node.database.close()


@pytest.fixture
def node(make: Callable[[int], Node]) -> Node:
    return make(1)


@pytest.fixture
def pair(make: Callable[[int], Node]) -> tuple[Node, Node]:
    return make(1), make(2)
