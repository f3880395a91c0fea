"""Publication: who waits for whom, and when a wait ends."""

import pytest
import trio

from dfsfs.base.errors import PeerUnreachable, Unavailable
from dfsfs.base.types import NodeId
from dfsfs.cluster.publication import Publication

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))


class Disk:
    """Counts local flushes; peers in `broken` fail theirs."""

    def __init__(self) -> None:
        self.flushes = 0
        self.peer_flushes: list[NodeId] = []
        self.broken: set[NodeId] = set()

    async def sync_local(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1

    async def sync_peer(self, node: NodeId, position: int) -> None:
        await trio.lowlevel.checkpoint()
        if node in self.broken:
            raise PeerUnreachable("gone")
        self.peer_flushes.append(node)


def publication(disk: Disk, concern: int | None = 2, *, strict: bool = False) -> Publication:
    return Publication(
        concern=concern, strict=strict, sync_local=disk.sync_local, sync_peer=disk.sync_peer
    )


async def returns(publication: Publication, position: int) -> bool:
    """Whether `visible(position)` returns without anything else happening."""
    with trio.move_on_after(0.02):
        await publication.visible(position)
        return True
    return False


async def test_alone_nobody_waits() -> None:
    assert await returns(publication(Disk()), 10**9)


async def test_alone_and_strict_is_an_error() -> None:
    with pytest.raises(Unavailable):
        await publication(Disk(), strict=True).visible(1)


async def test_every_mount_is_waited_for() -> None:
    p = publication(Disk())
    p.connected(A, mounts=True, stores=True, acknowledged=0)
    p.connected(B, mounts=True, stores=True, acknowledged=0)
    p.acknowledged(A, 5)
    assert not await returns(p, 5)
    p.acknowledged(B, 5)
    assert await returns(p, 5)
    assert not await returns(p, 6)


async def test_storage_peers_count_for_the_concern_only() -> None:
    p = publication(Disk())
    for node in (A, B, C):
        p.connected(node, mounts=False, stores=True, acknowledged=0)
    assert not await returns(p, 1)
    p.acknowledged(B, 1)
    assert await returns(p, 1)


async def test_concern_all_waits_for_all() -> None:
    p = publication(Disk(), None)
    p.connected(A, mounts=False, stores=True, acknowledged=9)
    p.connected(B, mounts=False, stores=True, acknowledged=0)
    assert not await returns(p, 9)
    p.acknowledged(B, 9)
    assert await returns(p, 9)


async def test_concern_one_does_not_wait_for_storage() -> None:
    p = publication(Disk(), 1)
    p.connected(A, mounts=False, stores=True, acknowledged=0)
    assert await returns(p, 9)


async def test_one_acknowledgement_releases_all_at_or_below_it() -> None:
    p = publication(Disk())
    p.connected(A, mounts=True, stores=True, acknowledged=0)
    done: list[int] = []

    async def call(position: int) -> None:
        await p.visible(position)
        done.append(position)

    async with trio.open_nursery() as nursery:
        for position in (4, 2, 3, 9):
            nursery.start_soon(call, position)
        await trio.testing.wait_all_tasks_blocked()
        p.acknowledged(A, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(done) == [2, 3, 4]
        p.disconnected(A)  # a session that ends releases whoever waited for it
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(done) == [2, 3, 4, 9]


async def test_durable_flushes_here_and_on_one_peer() -> None:
    disk = Disk()
    p = publication(disk)
    for node in (A, B):
        p.connected(node, mounts=False, stores=True, acknowledged=7)
    await p.durable(7)
    assert (disk.flushes, len(disk.peer_flushes)) == (1, 1)


async def test_durable_flushes_every_peer_that_took_blocks() -> None:
    disk = Disk()
    p = publication(disk)
    for node in (A, B, C):
        p.connected(node, mounts=False, stores=True, acknowledged=7)
    p.block_stored(B)
    p.block_stored(C)
    await p.durable(7)
    assert sorted(disk.peer_flushes) == [B, C]
    await p.durable(7)
    assert len(disk.peer_flushes) == 3  # nothing unflushed any more: one peer is enough


async def test_a_failed_peer_is_replaced() -> None:
    disk = Disk()
    p = publication(disk, strict=True)
    for node in (A, B):
        p.connected(node, mounts=False, stores=True, acknowledged=7)
    disk.broken = {A}
    await p.durable(7)
    assert disk.peer_flushes == [B]
    disk.broken = {A, B}
    with pytest.raises(Unavailable):
        await p.durable(7)


async def test_a_storage_peer_is_spare_when_mounts_meet_the_concern() -> None:
    p = publication(Disk())
    p.connected(A, mounts=False, stores=True, acknowledged=0)
    assert not p.is_spare(A)  # the only one that can hold a second copy
    p.connected(B, mounts=True, stores=True, acknowledged=0)
    assert p.is_spare(A)
    assert not p.is_spare(B)
    p.disconnected(B)
    assert not p.is_spare(A)


async def test_durable_does_not_wait_for_rows_at_a_spare_peer() -> None:
    positions: dict[NodeId, int] = {}

    async def sync_peer(node: NodeId, position: int) -> None:
        positions[node] = position
        await trio.lowlevel.checkpoint()

    p = Publication(concern=2, strict=True, sync_local=Disk().sync_local, sync_peer=sync_peer)
    p.connected(A, mounts=False, stores=True, acknowledged=7)
    p.connected(B, mounts=True, stores=True, acknowledged=7)
    await p.durable(7)
    assert positions == {B: 7}
    p.block_stored(A)
    await p.durable(7)
    assert positions == {A: 0, B: 7}  # its blocks count, its rows are safe without it
