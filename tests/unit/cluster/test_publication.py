"""Publication: who waits for whom, and when a wait ends."""

from collections.abc import Collection

import pytest
import trio

from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import SYNC_TIMEOUT_S, UNFLUSHED_BLOCKS_MAX
from dfsfs.base.types import Digest, DigestKind, NodeId, digest_of
from dfsfs.cluster.publication import Publication

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
X = digest_of(DigestKind.BLAKE3, b"x")


class Disk:
    """Counts this node's flushes."""

    def __init__(self) -> None:
        self.flushes = 0

    async def sync_local(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1


class Peer:
    """The way to a peer, which flushes as soon as it is asked; a broken one fails."""

    def __init__(self, publication: Publication, node: NodeId) -> None:
        self.publication = publication
        self.node = node
        self.flushes = self.hurries = 0
        self.broken = self.silent = False

    def hurry(self) -> None:
        self.hurries += 1

    def flush(self) -> int:
        self.flushes += 1
        if not self.silent:
            trio.lowlevel.spawn_system_task(self._flush, self.flushes)
        return self.flushes

    async def _flush(self, number: int) -> None:
        self.publication.flush_ended(self.node, number, good=not self.broken)


class Blocks:
    """Has the peers `takers` take blocks again that had gone with others."""

    def __init__(self) -> None:
        self.takers: list[NodeId] = []
        self.placed: list[Digest] = []
        self.publication: Publication | None = None

    async def place_again(self, digests: Collection[Digest]) -> bool:
        await trio.lowlevel.checkpoint()
        assert self.publication is not None
        for digest in digests if self.takers else ():
            self.placed.append(digest)
            for node in self.takers:
                self.publication.block_stored(node, digest)
        return bool(self.takers)


def publication(
    disk: Disk, concern: int | None = 2, *, strict: bool = False, blocks: Blocks | None = None
) -> Publication:
    blocks = blocks or Blocks()
    blocks.publication = Publication(
        concern=concern, strict=strict, sync_local=disk.sync_local, place_again=blocks.place_again
    )
    return blocks.publication


def digests(count: int) -> list[Digest]:
    return [digest_of(DigestKind.BLAKE3, b"%d" % number) for number in range(count)]


def connect(
    publication: Publication, node: NodeId, *, mounts: bool = False, acknowledged: int = 0
) -> Peer:
    peer = Peer(publication, node)
    publication.connected(node, mounts=mounts, stores=True, acknowledged=acknowledged, channel=peer)
    return peer


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
    connect(p, A, mounts=True)
    connect(p, B, mounts=True)
    p.acknowledged(A, 5)
    assert not await returns(p, 5)
    p.acknowledged(B, 5)
    assert await returns(p, 5)
    assert not await returns(p, 6)


async def test_storage_peers_count_for_the_concern_only() -> None:
    p = publication(Disk())
    for node in (A, B, C):
        connect(p, node)
    assert not await returns(p, 1)
    p.acknowledged(B, 1)
    assert await returns(p, 1)


async def test_concern_all_waits_for_all() -> None:
    p = Publication(
        concern=None,
        copies_possible=lambda: 3,
        strict=True,
        sync_local=Disk().sync_local,
        place_again=Blocks().place_again,
    )
    connect(p, A, acknowledged=9)
    connect(p, B)
    assert not await returns(p, 9)
    p.acknowledged(B, 9)
    assert await returns(p, 9)
    p.disconnected(B)
    assert p.held_by(9) == 3
    p.acknowledged(A, 10)
    with pytest.raises(Unavailable):  # not: all who happen to be there
        await p.visible(10)


async def test_concern_one_does_not_wait_for_storage() -> None:
    p = publication(Disk(), 1)
    connect(p, A)
    assert await returns(p, 9)


async def test_one_acknowledgement_releases_all_at_or_below_it() -> None:
    p = publication(Disk())
    connect(p, A, mounts=True)
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
    peers = [connect(p, node, acknowledged=7) for node in (A, B)]
    await p.durable(7)
    assert (disk.flushes, [peer.flushes for peer in peers]) == (1, [1, 0])


async def test_durable_flushes_every_peer_that_took_blocks() -> None:
    p = publication(Disk())
    peers = [connect(p, node, acknowledged=7) for node in (A, B, C)]
    p.block_stored(B, X)
    p.block_stored(C, X)
    await p.durable(7)
    assert [peer.flushes for peer in peers] == [0, 1, 1]
    await p.durable(7)
    assert sum(peer.flushes for peer in peers) == 3  # nothing unflushed any more: one is enough


@pytest.mark.parametrize("broken", [B, C])
async def test_blocks_that_a_peer_could_not_flush_are_missed_whoever_has_the_rows(
    broken: NodeId,
) -> None:
    """Promise 9."""
    p = publication(Disk(), strict=True)
    peers = {node: connect(p, node, acknowledged=7) for node in (A, B, C)}
    p.block_stored(B, X)
    p.block_stored(C, X)
    peers[broken].broken = True
    with pytest.raises(Unavailable):
        await p.durable(7)
    peers[broken].broken = False
    await p.durable(7)


async def test_what_a_peer_took_before_it_went_is_taken_and_flushed_by_another() -> None:
    """Promise 9."""
    blocks = Blocks()
    p = publication(Disk(), strict=True, blocks=blocks)
    a = connect(p, A, acknowledged=7)
    connect(p, B, acknowledged=7)
    p.block_stored(B, X)
    p.disconnected(B)
    with pytest.raises(Unavailable):  # A has the rows, and nobody the block
        await p.durable(7)
    c = connect(p, C, acknowledged=7)
    blocks.takers = [C]
    await p.durable(7)
    assert (blocks.placed, a.flushes, c.flushes) == ([X], 1, 1)
    await p.durable(7)
    assert (blocks.placed, c.flushes) == ([X], 1)


async def test_what_a_peer_took_is_offered_to_it_again_when_it_is_back() -> None:
    """It may have lost power meanwhile."""
    blocks = Blocks()
    p = publication(Disk(), strict=True, blocks=blocks)
    for _ in range(2):
        connect(p, A, acknowledged=7)
        b = connect(p, B, acknowledged=7)
        p.block_stored(B, X)
    blocks.takers = [B]
    await p.durable(7)
    assert (blocks.placed, b.flushes) == ([X], 1)


async def test_what_a_peer_that_goes_while_it_flushes_took_is_flushed_by_another() -> None:
    blocks = Blocks()
    p = publication(Disk(), strict=True, blocks=blocks)
    a, b = (connect(p, node, acknowledged=7) for node in (A, B))
    b.silent = True
    p.block_stored(B, X)
    blocks.takers = [A]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(p.durable, 7)
        await trio.testing.wait_all_tasks_blocked()
        p.disconnected(B)
    assert (blocks.placed, a.flushes) == ([X], 2)  # of the rows, and of the block


async def test_what_waits_for_a_flush_is_bounded() -> None:
    """Promise 16."""
    p = publication(Disk())
    good, silent = connect(p, A), connect(p, B)
    silent.silent = True
    for digest in digests(2 * UNFLUSHED_BLOCKS_MAX):
        p.block_stored(A, digest)
        p.block_stored(B, digest)
        await trio.lowlevel.checkpoint()
    assert good.flushes == silent.flushes == 8
    assert p.bounded()["unflushed_blocks"] == [UNFLUSHED_BLOCKS_MAX] * 2
    p.disconnected(B)
    assert p.bounded()["unflushed_blocks"] == [UNFLUSHED_BLOCKS_MAX] * 2


async def test_a_failed_peer_is_replaced() -> None:
    p = publication(Disk(), strict=True)
    a, b = (connect(p, node, acknowledged=7) for node in (A, B))
    a.broken = True
    await p.durable(7)
    assert (a.flushes, b.flushes) == (1, 1)
    b.broken = True
    with pytest.raises(Unavailable):
        await p.durable(7)


async def test_a_peer_that_goes_while_it_flushes_is_replaced() -> None:
    p = publication(Disk(), strict=True)
    a, b = (connect(p, node, acknowledged=7) for node in (A, B))
    a.silent = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(p.durable, 7)
        await trio.testing.wait_all_tasks_blocked()
        assert b.flushes == 0
        p.disconnected(A)
    assert b.flushes == 1


async def test_a_peer_that_does_not_flush_is_replaced_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Promise 16."""
    p = publication(Disk(), strict=True)
    a, b = (connect(p, node, acknowledged=7) for node in (A, B))
    a.silent = True
    await p.durable(7)
    assert trio.current_time() < SYNC_TIMEOUT_S + 1
    assert b.flushes == 1


async def test_a_flush_asked_for_before_the_one_reported_is_done() -> None:
    p = publication(Disk(), strict=True)
    a = connect(p, A, acknowledged=7)
    a.silent = True
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(p.durable, 7)
        await trio.testing.wait_all_tasks_blocked()
        p.flush_ended(A, 3, good=True)


async def test_who_is_waited_for_is_told_to_hurry() -> None:
    p = publication(Disk())
    mount, spare = connect(p, A, mounts=True), connect(p, B)
    assert not await returns(p, 1)
    assert (mount.hurries, spare.hurries) == (1, 0)


async def test_a_storage_peer_is_spare_when_mounts_meet_the_concern() -> None:
    p = publication(Disk())
    connect(p, A)
    assert not p.is_spare(A)  # the only one that can hold a second copy
    connect(p, B, mounts=True)
    assert p.is_spare(A)
    assert not p.is_spare(B)
    p.disconnected(B)
    assert not p.is_spare(A)


async def test_durable_does_not_flush_a_spare_peer_without_blocks() -> None:
    p = publication(Disk(), strict=True)
    spare = connect(p, A, acknowledged=7)
    mount = connect(p, B, mounts=True, acknowledged=7)
    await p.durable(7)
    assert (spare.flushes, mount.flushes) == (0, 1)
    p.block_stored(A, X)
    await p.durable(7)
    assert (spare.flushes, mount.flushes) == (1, 2)
