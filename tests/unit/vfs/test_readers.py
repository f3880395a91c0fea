"""Readers of files that change elsewhere, when changes overlap or come another way."""

import os

import trio
import trio.testing

from dfsfs.base.limits import READER_PATIENCE_S
from dfsfs.content import inline_ref
from tests.unit.vfs.conftest import ROOT, Bench


async def test_a_change_goes_on_when_another_one_has_seen_its_readers_off(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Two mounts publish at a time: one changes two files, the other one of them."""
    fs = bench.filesystem
    files = [await bench.put(name, b"o" * 100) for name in (b"x", b"y")]
    bench.pull()
    readers = []
    for inode in files:
        readers.append((await fs.open(inode, os.O_RDONLY, ROOT)).number)
        await fs.read(readers[-1], 0, 5)
    for inode in files:
        bench.elsewhere.write(inode, inline_ref(b"n" * 100), mtime_ns=1)
    both = bench.push()
    bench.elsewhere.write(files[1], inline_ref(b"m" * 100), mtime_ns=1)
    one = bench.push()
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.invalidated, both)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fs.invalidated, one)
        await trio.testing.wait_all_tasks_blocked()
        await fs.release(readers[1])
        await trio.testing.wait_all_tasks_blocked()
        await fs.release(readers[0])
    assert trio.current_time() - start_s < READER_PATIENCE_S


async def test_growth_that_comes_with_a_snapshot_is_shown(bench: Bench) -> None:
    """As after being away beyond the horizon. The old size would cut off what is read for good."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"one\n")
    bench.pull()
    reader = (await fs.open(inode, os.O_RDONLY, ROOT)).number
    await fs.read(reader, 0, 100)
    bench.elsewhere.write(inode, inline_ref(b"one\ntwo\n"), mtime_ns=1)
    rejoin = bench.namespace.rejoin
    rejoin.begin(bench.elsewhere.have())
    rejoin.stage(bench.elsewhere.snapshot(None, bytes_max=1 << 20))
    rejoin.complete({}, bench.elsewhere.have())
    for changes in bench.namespace.finish_rejoin():
        await fs.invalidated(changes)
    assert fs.getattr(inode).size == 8
    await fs.release(reader)
    assert await bench.bytes_of(inode) == b"one\ntwo\n"
