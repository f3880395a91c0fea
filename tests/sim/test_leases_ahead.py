"""Work in a tree that another mount has made: leases come before they are asked for."""

import os

import trio

from dfsfs.base.types import ROOT_INODE
from dfsfs.testing.simnode import PROGRAM, SimNode
from dfsfs.testing.simulator import Simulation
from dfsfs.vfs import SetAttributes

FILES = 120


def requests(*nodes: SimNode) -> int:
    """Lease requests sent so far."""
    return sum(node.node.cluster.leases.statistics.requests for node in nodes)


async def fill(node: SimNode, directories: int, files: int) -> None:
    await node.mkdir("/tree")
    for directory in range(directories):
        await node.mkdir(f"/tree/{directory:03}")
        for file in range(files):
            await node.write(f"/tree/{directory:03}/{file:03}", b"1")


async def remove(node: SimNode, path: str) -> None:
    """As rm -r does it."""
    for name in node.names(path):
        below = f"{path}/{name}"
        if path == "/tree":
            await remove(node, below)
        else:
            await node.unlink(below)
    await node.rmdir(path)


async def test_removing_a_foreign_directory_asks_for_few_of_its_files(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    await fill(nodes[0], 1, FILES)
    await trio.sleep(5)
    before = requests(*nodes)
    await remove(nodes[1], "/tree")
    assert requests(*nodes) - before < FILES / 4
    await sim.converge()
    assert nodes[2].names() == []


async def test_small_directories_come_with_what_is_in_them(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    await fill(nodes[0], FILES // 4, 3)
    await trio.sleep(5)
    before = requests(*nodes)
    await remove(nodes[1], "/tree")
    assert requests(*nodes) - before < FILES / 4
    await sim.converge()
    assert nodes[2].names() == []


async def test_changing_modes_of_a_foreign_tree_asks_for_few_of_its_files(
    sim: Simulation,
) -> None:
    nodes = await sim.start_nodes(2)
    await fill(nodes[0], 1, FILES)
    await trio.sleep(5)
    filesystem = nodes[1].node.filesystem
    directory = filesystem.lookup(filesystem.lookup(ROOT_INODE, b"tree").inode, b"000").inode
    before = requests(*nodes)
    for file in range(FILES):
        inode = filesystem.lookup(directory, b"%03d" % file).inode
        await filesystem.setattr(inode, SetAttributes(mode=0o640))
    assert requests(*nodes) - before < FILES / 8
    await sim.converge()


async def test_who_changes_one_file_is_given_no_other(sim: Simulation) -> None:
    nodes = await sim.start_nodes(2)
    await fill(nodes[0], 1, 10)
    for _ in range(4):
        await trio.sleep(5)
        await nodes[1].write("/tree/000/003", b"2")
        await trio.sleep(5)
        await nodes[0].write("/tree/000/003", b"3")
    assert all(node.node.cluster.leases.statistics.given_ahead == 0 for node in nodes)


async def test_what_is_being_written_is_not_given_ahead(sim: Simulation) -> None:
    """A write-back that nobody needs would cost its writer its buffer and its lease."""
    nodes = await sim.start_nodes(2)
    await fill(nodes[0], 1, 20)
    filesystem = nodes[0].node.filesystem
    directory = filesystem.lookup(filesystem.lookup(ROOT_INODE, b"tree").inode, b"000").inode
    inode = filesystem.lookup(directory, b"015").inode
    opened = await filesystem.open(inode, os.O_WRONLY, PROGRAM)
    await filesystem.write(opened.number, 0, b"2")
    await trio.sleep(5)
    for file in range(12):
        await nodes[1].unlink(f"/tree/000/{file:03}")
    assert nodes[1].node.cluster.leases.held([filesystem.lookup(directory, b"016").inode])
    assert nodes[0].node.cluster.leases.held([inode])
    assert nodes[0].node.cluster.leases.statistics.written_back == 0
    await filesystem.flush(opened.number)
    await filesystem.release(opened.number)
    await sim.converge()
