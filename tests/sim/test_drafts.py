"""Files being made: what is set of them is not waited for, and nobody sees the difference."""

import os
from functools import partial

import trio

from dfsfs.base.limits import ROWS_SPARE_S
from dfsfs.base.types import ROOT_INODE, InodeId
from dfsfs.testing.simnode import PROGRAM, SimNode
from dfsfs.testing.simulator import Simulation
from dfsfs.vfs import SetAttributes

NAME = b"made"


async def make(node: SimNode) -> tuple[int, InodeId]:
    """A file that stays open; its handle and inode."""
    opened, value = await node.node.filesystem.create(ROOT_INODE, NAME, 0o600, os.O_WRONLY, PROGRAM)
    return opened.number, value.inode


async def chmod(node: SimNode, inode: InodeId, mode: int) -> None:
    await node.node.filesystem.setattr(inode, SetAttributes(mode=mode))


async def mode_at(node: SimNode) -> int:
    """What stat(2) of a process on this mount says, as `fuse.Operations.lookup` finds it."""
    filesystem = node.node.filesystem
    return (await filesystem.drafts.lookup(filesystem.lookup, ROOT_INODE, NAME)).mode


def waits(node: SimNode) -> int:
    return node.node.cluster.publication.waits


def questions(*nodes: SimNode) -> int:
    return sum(node.node.cluster.drafts.questions for node in nodes)


async def test_what_is_set_before_the_close_costs_no_round_trip(sim: Simulation) -> None:
    """Promises 4 and 8: one wait for the name, one for the close; then all is everywhere."""
    a, b, c = await sim.start_nodes(3)
    before = waits(a)
    number, inode = await make(a)
    filesystem = a.node.filesystem
    for mode in (0o644, 0o755, 0o711):
        await chmod(a, inode, mode)
    await filesystem.setattr(inode, SetAttributes(uid=5, gid=6))
    await filesystem.setxattr(inode, b"user.k", b"v")
    assert waits(a) - before == 1
    await filesystem.flush(number)
    assert waits(a) - before == 2
    for other in (b, c):
        value = other.node.namespace.get(inode)
        assert (value.mode, value.uid, value.gid) == (0o711, 5, 6)
        assert other.node.namespace.get_xattr(inode, b"user.k") == b"v"
        assert await mode_at(other) == 0o711
    assert questions(a, b, c) == 0
    await filesystem.release(number)
    await chmod(a, inode, 0o600)
    assert waits(a) - before == 3  # it is closed: everybody is waited for


async def test_the_library_sees_what_was_set_before_the_close(sim: Simulation) -> None:
    """Promise 4: also who asks for a file by its key."""
    a, b, c = await sim.start_nodes(3)
    _, inode = await make(a)
    await chmod(a, inode, 0o711)
    assert (await b.node.stat(NAME)).mode == 0o711
    assert [entry.mode for entry in await c.node.list(b"", None, 9)] == [0o711]


async def test_who_looks_before_the_close_sees_what_was_set(sim: Simulation) -> None:
    """Promise 4: exactly what was set last, and from then on its maker waits for everybody."""
    a, b, c = await sim.start_nodes(3)
    number, inode = await make(a)
    await chmod(a, inode, 0o711)
    assert await mode_at(b) == 0o711
    assert questions(a, b, c) == 1
    for mode in (0o700, 0o640):
        await chmod(a, inode, mode)
        assert b.node.namespace.get(inode).mode == mode
        assert await mode_at(c) == mode
    assert questions(a, b, c) <= 2
    await a.node.filesystem.flush(number)
    await a.node.filesystem.release(number)
    await sim.converge()


async def test_a_listing_shows_what_was_set(sim: Simulation) -> None:
    """Promise 4 for readdir(3), which gives attributes, too."""
    a, b, _ = await sim.start_nodes(3)
    _, inode = await make(a)
    await chmod(a, inode, 0o711)
    filesystem = b.node.filesystem
    number = filesystem.opendir(ROOT_INODE)
    await filesystem.drafts.settle_directory(number)
    modes = {entry.name: entry.inode.mode for entry in filesystem.readdir(number, 0)}
    filesystem.releasedir(number)
    assert modes[NAME] == 0o711


async def test_a_file_made_without_a_byte_is_complete_after_its_close(sim: Simulation) -> None:
    """Nothing was written, so the close has nothing to commit; what was set is visible still."""
    a, b, _ = await sim.start_nodes(3)
    number, inode = await make(a)
    await chmod(a, inode, 0o711)
    assert not a.node.filesystem.is_clean(number)
    await a.node.filesystem.flush(number)
    assert a.node.filesystem.is_clean(number)
    assert b.node.namespace.get(inode).mode == 0o711


async def test_a_mount_that_joins_sees_what_was_set(sim: Simulation) -> None:
    """It has no mark of the draft, so its maker waits for it from the moment it is counted."""
    a, b = await sim.start_nodes(2)
    _, inode = await make(a)
    await chmod(a, inode, 0o711)
    (c,) = await sim.start_nodes(1)
    await chmod(a, inode, 0o640)
    assert await mode_at(c) == 0o640
    assert await mode_at(b) == 0o640


async def test_nobody_waits_for_a_maker_that_is_gone(sim: Simulation) -> None:
    """Promise 16; and what was set comes when it is back (promise 11)."""
    a, b, _ = await sim.start_nodes(3)
    _, inode = await make(a)
    await trio.sleep(1.0)
    await chmod(a, inode, 0o711)
    sim.crash(a)
    begun_s = trio.current_time()
    assert await mode_at(b) in (0o600, 0o711)
    assert trio.current_time() - begun_s < 10
    await sim.restart(a)
    await sim.converge()
    assert await mode_at(b) == 0o711


async def test_looking_and_setting_at_a_time(sim: Simulation) -> None:
    """Promise 4: who starts to look after a change has returned never sees an older one."""
    a, b, c = await sim.start_nodes(3)
    done = [0o400]

    async def look(node: SimNode, wait_s: float) -> None:
        for _ in range(20):
            await trio.sleep(wait_s)
            least = done[0]
            assert await mode_at(node) >= least

    for _ in range(5):
        number, inode = await make(a)
        done[0] = 0o400
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, b, 0.003)
            nursery.start_soon(look, c, 0.002)
            for mode in range(0o600, 0o640):
                await chmod(a, inode, mode)
                done[0] = mode
                await trio.sleep(0.001)
        await a.node.filesystem.flush(number)
        await a.node.filesystem.release(number)
        await a.unlink(f"/{NAME.decode()}")
    await sim.converge()


async def test_a_draft_can_be_removed_and_moved(sim: Simulation) -> None:
    a, b, _ = await sim.start_nodes(3)
    for act in (partial(a.unlink, "/made"), partial(a.rename, "/made", "/elsewhere")):
        number, inode = await make(a)
        await chmod(a, inode, 0o711)
        await act()
        assert b.names() == a.names()
        await a.node.filesystem.flush(number)
        await a.node.filesystem.release(number)
    await sim.converge()
    await trio.sleep(2 * ROWS_SPARE_S)
    assert not any(node.node.cluster.drafts.elsewhere for node in (a, b))


async def test_a_file_with_two_names_is_no_draft(sim: Simulation) -> None:
    """Promise 4: a listing of either directory is right."""
    a, b, _ = await sim.start_nodes(3)
    await a.mkdir("/d")
    number, inode = await make(a)
    await a.link("/made", "/d/also")
    await chmod(a, inode, 0o711)
    assert b.node.namespace.get(inode).mode == 0o711
    assert questions(b) == 0
    await a.node.filesystem.flush(number)
    await a.node.filesystem.release(number)
    await sim.converge()
