"""Nothing that is needed goes, nothing that is not stays for ever: stories of the duties."""

from typing import Any

import pytest
import trio

from dfsfs.base.limits import (
    BLOCK_BYTES_MAX,
    FETCH_BYTES_MAX,
    GC_PAGE_COUNT,
    REPAIR_LEFT_S,
    RETURN_S,
)
from dfsfs.base.types import ROOT_INODE, Digest
from dfsfs.base.units import KIB, MIB
from dfsfs.cluster import fsck
from dfsfs.cluster.placement import ranked
from dfsfs.cluster.references import paths_of
from dfsfs.testing import faults
from dfsfs.testing.faults import run_task
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation
from dfsfs.vfs import Caller

GRACE_S = 600.0


def stored(node: SimNode) -> set[Digest]:
    found: set[Digest] = set()
    after: Digest | None = None
    while page := node.node.store.page(after, 512):
        found.update(page)
        after = page[-1]
    return found


async def test_what_nobody_refers_to_goes_after_its_grace_period(sim: Simulation) -> None:
    """Promise 18."""
    a, b, c = await sim.start_nodes(3, gc_grace_s=GRACE_S)
    await a.write("/kept", some_bytes(MIB, 1))
    await a.write("/shares", some_bytes(MIB, 1))
    await sim.converge()
    kept = stored(a)
    await b.write("/gone", some_bytes(MIB, 2))
    await b.write("/replaced", some_bytes(MIB, 3))
    await sim.converge()
    await c.unlink("/gone")
    await c.unlink("/shares")
    await c.write("/replaced", b"small now")
    gone_at_s = trio.current_time()
    while stored(a) != kept:
        assert stored(a) >= kept
        assert trio.current_time() - gone_at_s < 4 * GRACE_S
        await trio.sleep(10)
    assert trio.current_time() - gone_at_s >= GRACE_S
    await sim.until(lambda: stored(b) == stored(c) == kept, within_s=2 * GRACE_S)
    assert await c.read("/kept") == some_bytes(MIB, 1)
    await sim.converge()
    await sim.check()


async def test_the_cache_forgets_what_was_collected(sim: Simulation) -> None:
    """Promise 16. Else its size would grow with every block that ever came by."""
    nodes = await sim.start_nodes(5, gc_grace_s=GRACE_S)
    for number, node in enumerate(nodes):
        await node.write(f"/{number}", some_bytes(256 * KIB, number))
    await sim.converge()
    for node in nodes:
        for number in range(5):
            await node.read(f"/{number}")
    assert any(node.node.cluster.cache.bytes for node in nodes)
    for number, node in enumerate(nodes):
        await node.unlink(f"/{number}")
    await sim.until(lambda: not any(map(stored, nodes)), within_s=4 * GRACE_S)
    for node in nodes:
        bounded = node.node.status()["bounded"]
        assert bounded["cache_blocks"][0] == bounded["cache_bytes"][0] == 0


async def test_fetches_are_bounded_in_bytes(sim: Simulation) -> None:
    """Promise 16. Small blocks came first: how large the next are shows when they are here."""
    a, b = await sim.start_nodes(2, replicas=1, write_concern=1)
    upload = a.node.cluster.storage.upload()
    pieces = [some_bytes(BLOCK_BYTES_MAX, seed) for seed in range(24)]
    digests = [await upload.put(piece) for piece in pieces]
    await upload.settle()
    wanted = [digest for digest in digests if not b.node.store.has(digest)]
    assert len(wanted) > 6
    most = 0
    fetcher = b.node.cluster.fetcher

    async def watch(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal most
        task_status.started()
        while True:
            most = max(most, fetcher.bounded()["fetch_bytes"][0])
            await trio.sleep(0.001)

    assert await fetcher.fetch(wanted[0]) == pieces[digests.index(wanted[0])]
    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        async with trio.open_nursery() as readers:
            for digest in wanted[1:]:
                readers.start_soon(fetcher.fetch, digest)
        nursery.cancel_scope.cancel()
    assert BLOCK_BYTES_MAX <= most <= FETCH_BYTES_MAX
    assert all(map(b.node.store.has, wanted))
    assert fetcher.bounded()["fetch_bytes"][0] == 0
    upload.close()


async def test_an_upload_gives_up_what_is_in_use_otherwise(sim: Simulation) -> None:
    """Promise 16: its memory does not grow with its length. Not while a look is under way."""
    a, _ = await sim.start_nodes(2, gc_grace_s=GRACE_S)
    pins = a.node.store.pins
    upload = a.node.cluster.storage.upload()
    digests = [await upload.put(some_bytes(20 * KIB, seed)) for seed in range(3)]
    upload.keep(digests[:2])
    assert set(pins.all()) == set(digests[:2])
    looks: list[bool] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_task, a, "gc")
        while pins.all() == digests[:2] and a.node.cluster.upkeep.collector.looks == 0:
            if pins.looked_at:
                upload.keep(digests[:1])
                looks.append(set(pins.all()) == set(digests[:2]))
            await trio.sleep(0.001)
    assert looks
    assert all(looks)
    assert not pins.looked_at
    upload.keep(digests[:1])
    assert pins.all() == digests[:1]
    upload.close()
    assert not pins.all()


async def test_a_restart_neither_shortens_nor_resets_the_grace_period(sim: Simulation) -> None:
    """Promise 18. However wrong the clock on the wall is."""
    (a,) = await sim.start_nodes(1, gc_grace_s=GRACE_S)
    await a.write("/gone", some_bytes(MIB))
    await a.unlink("/gone")
    begin_s = trio.current_time()
    for _ in range(6):
        await trio.sleep(GRACE_S / 8)
        assert stored(a)
        a.world.jump(10 * 365 * 86_400)
        sim.crash(a)
        await sim.restart(a)
    await sim.until(lambda: not stored(a), within_s=2 * GRACE_S)
    assert GRACE_S <= trio.current_time() - begin_s < 1.6 * GRACE_S


async def test_a_block_that_is_written_again_begins_its_grace_anew(sim: Simulation) -> None:
    """Promise 18: a write may find its block here already, noted as garbage long ago."""
    a, b = await sim.start_nodes(2, gc_grace_s=GRACE_S)
    data = some_bytes(MIB)
    for turn in range(5):
        await a.write(f"/{turn}", data)
        await b.unlink(f"/{turn}")
        await trio.sleep(0.8 * GRACE_S)
        assert stored(a) == stored(b) != set()
    await a.write("/last", data)
    await trio.sleep(3 * GRACE_S)
    assert await b.read("/last") == data
    await sim.converge()
    await sim.check()


async def test_files_after_many_empty_ones_are_needed(sim: Simulation) -> None:
    """Promise 18. A page of the walk without any content was taken for the end of the walk."""
    (a,) = await sim.start_nodes(1, gc_grace_s=GRACE_S)
    for number in range(GC_PAGE_COUNT + 1):
        await a.write(f"/{number}", b"")
    data = some_bytes(2 * MIB)
    await a.write("/file", data)
    before = stored(a)
    await trio.sleep(5 * GRACE_S)
    assert stored(a) == before
    assert await a.read("/file") == data


async def test_a_node_apart_collects_nothing(sim: Simulation) -> None:
    """Promise 18: what it knows is old; who edits the file meanwhile needs the blocks."""
    a, b, c = await sim.start_nodes(3, gc_grace_s=GRACE_S)
    data = some_bytes(2 * MIB)
    await a.write("/file", data)
    await sim.converge()
    sim.partition([a], [b, c])
    await a.unlink("/file")
    await b.append("/file", b"more")
    before = stored(a)
    await trio.sleep(5 * GRACE_S)
    assert stored(a) == before
    sim.heal()
    await sim.converge(within_s=120)
    assert await a.read("/file") == data + b"more"
    await sim.check()


async def test_a_node_apart_looks_for_garbage_now_and_then(sim: Simulation) -> None:
    """Promise 16. Its clock of collection stands still; seed 600680 looked without a pause."""
    a, b = await sim.start_nodes(2, mounts=1, gc_grace_s=GRACE_S)
    await a.write("/gone", some_bytes(MIB, 1))
    await sim.converge()
    sim.partition([a], [b])
    await sim.until(lambda: not a.node.endpoint.sessions, within_s=10)
    await a.unlink("/gone")
    collector = a.node.cluster.upkeep.collector
    looks = collector.looks
    await trio.sleep(GRACE_S)
    assert 2 <= collector.looks - looks < 20
    sim.heal()


async def test_an_open_file_keeps_its_blocks_everywhere(sim: Simulation) -> None:
    """Promise 18: also those that the reader has not fetched yet."""
    a, b, c = await sim.start_nodes(3, gc_grace_s=GRACE_S, replicas=2)
    data = some_bytes(4 * MIB)
    await a.write("/file", data)
    await sim.converge()
    filesystem = c.node.filesystem
    inode = c.node.namespace.lookup(ROOT_INODE, b"file").inode
    opened = await filesystem.open(inode, 0, Caller(uid=1000, gid=1000))
    assert bytes(await filesystem.read(opened.number, 0, KIB)) == data[:KIB]
    await a.unlink("/file")
    await trio.sleep(5 * GRACE_S)
    for offset in range(0, len(data), 128 * KIB):
        piece = await filesystem.read(opened.number, offset, 128 * KIB)
        assert bytes(piece) == data[offset : offset + 128 * KIB]
    await filesystem.release(opened.number)
    await sim.until(lambda: not (stored(a) | stored(b) | stored(c)), within_s=6 * GRACE_S)


async def test_a_lost_node_is_replaced_and_a_returning_one_moves_little(sim: Simulation) -> None:
    """Promise 10."""
    nodes = await sim.start_nodes(4, replicas=2, repair_after_s=60.0, cache_bytes=0)
    a, b, c, d = nodes
    for number in range(6):
        await a.write(f"/{number}", some_bytes(MIB, number))
    await sim.converge()
    held = stored(d)
    sim.crash(d)
    await trio.sleep(30)
    assert a.node.members.absent == frozenset()  # not yet
    await sim.until(
        lambda: all(len([n for n in (a, b, c) if block in stored(n)]) >= 2 for block in held),
        within_s=300,
        what="two survivors hold every block of the lost node",
    )
    await sim.restart(d)
    await sim.converge(within_s=300)
    await trio.sleep(RETURN_S + 120)
    # Placement is what it was: d keeps what it had, and surplus copies have gone again.
    assert stored(d) == held
    counts = [sum(block in stored(n) for n in nodes) for block in held]
    assert set(counts) == {2}
    await sim.converge()
    await sim.check()


async def test_a_node_that_was_full_gets_what_it_missed(sim: Simulation) -> None:
    """Promise 10: at once when it has room again, not with the next look at everything."""
    a, b, c = await sim.start_nodes(3, replicas=3)
    store = c.node.store
    reserve, store._reserve_bytes = store._reserve_bytes, 1 << 60  # something else fills its disk
    await a.write("/file", some_bytes(MIB))
    await trio.sleep(30)
    assert not stored(c)
    store._reserve_bytes = reserve
    await sim.until(lambda: stored(a) == stored(b) == stored(c), within_s=60)
    store._reserve_bytes = 1 << 60  # so short that nobody hears of it
    await a.write("/other", some_bytes(MIB, 1))
    store._reserve_bytes = reserve
    await sim.until(lambda: stored(a) == stored(b) == stored(c), within_s=60)


@pytest.mark.announce("bad block|is damaged on this disk")
async def test_a_bad_copy_does_not_hold_up_the_repair_of_others(sim: Simulation) -> None:
    """Promises 10 and 15: the node that should copy a block finds that its own copy is bad."""
    nodes = await sim.start_nodes(4, replicas=3, repair_after_s=20.0)
    await nodes[0].write("/file", some_bytes(200 * KIB))
    await sim.converge()
    (block,) = nodes[0].node.store.page(None, 10)
    order = ranked(block, nodes[0].node.members.candidates)
    first, second, third, other = sorted(nodes, key=lambda n: order.index(n.identity.node_id))
    await other.node.store.remove(block)  # it may be the one that wrote it
    ((segment, position, _),) = faults.place_of(first, block)
    await sim.stop(first)
    faults.flip(first, segment, position, 1)
    await sim.restart(first)
    await sim.until(sim.all_connected, within_s=30)
    faults.lose(sim, third)
    await sim.until(
        lambda: all(n.node.store.has(block) for n in (first, second, other)),
        within_s=60,
        what="three nodes have a good copy again",
    )
    await sim.check()


@pytest.mark.announce("bad block|is damaged on this disk")
async def test_what_was_collected_while_fsck_ran_is_no_finding_that_is_left(
    sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await sim.start_nodes(1)
    await a.write("/gone", some_bytes(256 * KIB, 1))
    bad = stored(a)
    await a.unlink("/gone")
    for digest in bad:
        ((segment, start, _),) = faults.place_of(a, digest)
        faults.flip(a, segment, start, 1)

    async def slow(*arguments: Any) -> dict[Digest, list[str]]:
        for digest in bad:
            await a.node.store.remove(digest)
        return await paths_of(*arguments)

    monkeypatch.setattr(fsck, "paths_of", slow)
    found = await run_task(a, "fsck", repair=True)
    assert found["result"] == {"mended": len(bad), "left": 0}


async def test_a_node_that_flaps_moves_nothing(sim: Simulation) -> None:
    """Promise 10."""
    a, b, c, d = await sim.start_nodes(4, replicas=2, repair_after_s=300.0)
    for number in range(4):
        await a.write(f"/{number}", some_bytes(MIB, number))
    await sim.converge()
    before = [stored(node) for node in (a, b, c)]
    for _ in range(5):
        sim.crash(d)
        await trio.sleep(60)
        await sim.restart(d)
        await trio.sleep(30)
    assert [stored(node) for node in (a, b, c)] == before
    await sim.converge()


async def test_a_full_node_is_passed_over_at_once(sim: Simulation) -> None:
    """Promises 8 and 16."""
    a, b, c = await sim.start_nodes(3, mounts=2, replicas=2)
    d = await sim.start_node(mount=False, replicas=2, capacity_bytes=64 * MIB, reserve_bytes=0)
    await sim.until(sim.all_connected, within_s=60)
    # Its share of blocks is more than it takes: the rest goes elsewhere, and every write returns.
    filler = some_bytes(MIB)
    for number in range(60):
        await d.node.put(f"own{number}", _stream(filler + bytes([number])))
    await sim.converge(within_s=600)
    for number in range(40):
        await a.write(f"/{number}", some_bytes(2 * MIB, number))
    assert a.node.cluster.publication.short_writes == 0
    assert d.node.store.usage().block_bytes <= 64 * MIB
    for number in range(40):
        assert await b.read(f"/{number}") == some_bytes(2 * MIB, number)
    assert c.up


async def _stream(data: bytes) -> Any:
    yield data


async def test_drained_means_everything_is_elsewhere(sim: Simulation) -> None:
    a, b, c, d = await sim.start_nodes(4, replicas=2)
    for number in range(4):
        await a.write(f"/{number}", some_bytes(MIB, number))
    await sim.converge()
    assert await run_task(a, "drain") == {"result": "drained"}
    everything = stored(a)
    sim.crash(a)
    assert everything <= stored(b) | stored(c) | stored(d)
    for number in range(4):
        assert await b.read(f"/{number}") == some_bytes(MIB, number)


@pytest.mark.announce("was removed from the network")
async def test_a_removed_member_stays_out_whatever_it_says_elsewhere(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3, replicas=2)
    sim.partition([a], [b, c])
    await run_task(a, "peers", name="c")
    await trio.sleep(60)
    c.node.cluster.membership.announce()  # in its own part of the world it is a good member
    sim.heal()
    member = c.identity.node_id
    await sim.until(
        lambda: member not in a.node.endpoint.sessions and member not in b.node.endpoint.sessions,
        within_s=60,
    )
    await trio.sleep(60)
    assert member not in a.node.endpoint.sessions
    await run_task(b, "peers", name="c", back=True)
    await sim.until(sim.all_connected, within_s=120)
    await sim.converge()


async def test_many_fsyncs_share_the_flushes_of_a_disk(sim: Simulation) -> None:
    """Promise 9: group commit, here and on the other holder."""
    a, b = await sim.start_nodes(2)
    await a.fsynced("/warm", some_bytes(5 * KIB))
    before = [node.node.status()["flushes"] for node in (a, b)]
    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(a.fsynced, f"/{number}", some_bytes(5 * KIB, number))
    for node, earlier in zip((a, b), before, strict=True):
        now = node.node.status()["flushes"]
        assert now["done"] - earlier["done"] <= 16
        if node is a:
            assert now["asked"] - earlier["asked"] >= 64  # of b asks who knows how many it serves
    for number in range(64):
        assert await b.read(f"/{number}") == some_bytes(5 * KIB, number)


async def test_blocks_whose_rows_came_late_are_copied_at_once(sim: Simulation) -> None:
    """After a power cut a node may have blocks before it hears again what they are for."""
    a, b = await sim.start_nodes(2, gc_grace_s=20.0)
    await a.write("/x", bytes(range(256)) * 3000)
    await sim.converge()
    wanted = b.node.store.page(None, 10)
    collector = b.node.cluster.upkeep.collector
    for digest in wanted:  # as a look has left it that came before the rows
        collector._database.execute("INSERT INTO unreferenced VALUES (?, 0)", (digest,))
        collector._noted += 1
        await a.node.store.remove(digest)
    await sim.until(lambda: all(map(a.node.store.has, wanted)), within_s=60, what="they are copied")


async def test_what_everybody_leaves_to_others_is_copied_in_the_end(sim: Simulation) -> None:
    """Promise 10. Whose turn it is depends on who is believed to be there, and beliefs differ."""
    nodes = await sim.start_nodes(3)
    await nodes[0].write("/file", some_bytes(64 * KIB))
    await sim.converge()
    (digest,) = nodes[0].node.store.page(None, 2)
    by_rank = {node.identity.node_id: node for node in nodes}
    _, second, third = (by_rank[node] for node in ranked(digest, nodes[0].node.members.candidates))
    await trio.sleep(60)
    await third.node.store.remove(digest)  # and the first, whose turn it is, does not look
    second.node.cluster.upkeep.repairer.look_now()
    await sim.until(lambda: third.node.store.has(digest), within_s=3 * REPAIR_LEFT_S)
