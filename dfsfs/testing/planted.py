"""Nodes with a bug, each of which breaks a promise: a simulation must notice every one.

One that does not see them proves nothing by being green. `BUGS` has them by name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import trio

from dfsfs.base.types import Buffer, Digest, InodeId, Stamp
from dfsfs.blocks.index import SMALL
from dfsfs.blocks.records import HEADER_BYTES
from dfsfs.namespace import Batch, Change
from dfsfs.namespace.rows import ContentRow, Row, decode_rows, encode_rows
from dfsfs.net import Reply, Request, Session
from dfsfs.node import Node


class Hasty(Node):
    """Its calls return before anybody else has seen what they changed."""

    def _build(self) -> None:
        super()._build()

        async def at_once(position: int) -> None:
            await trio.lowlevel.checkpoint()

        self.cluster.publication.visible = at_once  # type: ignore[method-assign]


class Forgetful(Node):
    """It loses one in thirty of the changes it hears of, and says nothing."""

    def _build(self) -> None:
        super()._build()
        apply = self.namespace.apply

        def lossy(batches: Sequence[Batch]) -> list[Change]:
            lost = self.world.random.random() < 1 / 30
            empty = encode_rows([])
            return apply([replace(batch, rows=empty) if lost else batch for batch in batches])

        self.namespace.apply = lossy  # type: ignore[method-assign]


class Leaky(Node):
    """Its store acknowledges blocks and keeps two of three."""

    def _build(self) -> None:
        super()._build()
        put = self.store.put

        async def leak(digest: Digest, data: Buffer) -> bool:
            return digest[-1] % 3 == 0 or await put(digest, data)

        self.store.put = leak  # type: ignore[method-assign]


class Rash(Node):
    """It acknowledges a write before another node has stored it."""

    def _build(self) -> None:
        super()._build()
        self.cluster.replicator._concern = 1


class Eager(Node):
    """It collects what it finds unreferenced at once."""

    def _build(self) -> None:
        super()._build()
        self.cluster.upkeep.collector._grace_s = 0.0
        self.cluster.upkeep.collector._away_s = lambda: 0.0


class Blind(Node):
    """It collects what nothing refers to yet, because it is still being written."""

    def _build(self) -> None:
        super()._build()
        pins = self.store.pins
        pins.is_pinned = lambda digest: False  # type: ignore[method-assign]
        pins.all = list  # type: ignore[method-assign]


class Gullible(Node):
    """It copies blocks without a look at their bytes, and stores what it is sent."""

    def _build(self) -> None:
        super()._build()
        verified = self.store.get

        async def get(digest: Digest) -> Buffer:
            where = self.store._index.find(digest)
            if where is None or where.segment == SMALL:
                return await verified(digest)
            with self.store._files.using(where.segment) as file:
                return file.read(where.position + HEADER_BYTES, where.length)

        async def put(session: Session, request: Request) -> Reply:
            return Reply([await self.store.put(Digest(request.body[0]), request.payload)])

        self.store.get = get  # type: ignore[method-assign]
        self.endpoint._handlers.calls["blocks.put"] = put


class Greedy(Node):
    """It believes that every lease is its own."""

    def _build(self) -> None:
        super()._build()
        self.cluster.leases.held = lambda inodes: True  # type: ignore[method-assign]


class LastWriterWins(Node):
    """Of two edits made apart it keeps the later one, on every node the same."""

    def _build(self) -> None:
        super()._build()
        apply = self.namespace.apply
        newest: dict[InodeId, Stamp] = {}

        def note(change: Change) -> None:
            for inode in change.contents:
                newest[inode] = max(change.stamp, newest.get(inode, change.stamp))

        def judged(rows: Iterable[Row]) -> Iterable[Row]:
            seen = self.namespace.have()
            for row in rows:
                if not isinstance(row, ContentRow):
                    yield row
                elif row.stamp > newest.get(row.inode, row.stamp._replace(time=0)):
                    others = {o: time for o, time in seen.items() if o != row.stamp.origin}
                    yield row._replace(vector={**row.vector, **others})

        def merge(batches: Sequence[Batch]) -> list[Change]:
            changes: list[Change] = []
            for batch in batches:
                rows = decode_rows(batch.rows, batch.origin, batch.after, batch.upto)
                changes += apply([replace(batch, rows=encode_rows(judged(rows)))])
            return changes

        self.namespace.subscribe(note)
        self.namespace.apply = merge  # type: ignore[method-assign]


BUGS: dict[str, type[Node]] = {
    bug.__name__: bug
    for bug in (Hasty, Forgetful, Leaky, Rash, Eager, Blind, Gullible, Greedy, LastWriterWins)
}
