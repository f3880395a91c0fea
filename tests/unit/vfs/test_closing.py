"""What a close(2) waits for, and what becomes of what was written meanwhile."""

import os
from collections.abc import Callable

import pytest
import trio

from dfsfs.base.types import ROOT_INODE, InodeId
from dfsfs.namespace import Namespace
from tests.unit.vfs.conftest import ROOT, Bench


@pytest.mark.parametrize("durable", [False, True])
async def test_a_close_waits_for_what_was_committed_when_its_lease_went(
    bench: Bench, durable: bool
) -> None:
    """Promises 4 and 8: who asked for the lease has it, other mounts may not."""
    fs, calls = bench.filesystem, bench.publication.visible_calls
    inode = await bench.put(b"f", b"old")
    opened = await fs.open(inode, os.O_WRONLY, ROOT)
    await fs.write(opened.number, 0, b"new")
    await fs.hand_over(inode)
    before = len(calls)
    assert not fs.is_clean(opened.number)
    if durable:
        await fs.fsync(opened.number)
    else:
        await fs.flush(opened.number)
        assert calls[before:] == [bench.namespace.position]
    before = len(calls)
    assert fs.is_clean(opened.number), "once is enough"
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert len(calls) == before
    assert bench.namespace.lookup(ROOT_INODE, b"f").size == 3


def removed(bench: Bench, inode: InodeId) -> None:
    """Elsewhere, and here as soon as that is heard."""
    bench.pull()
    bench.elsewhere.unlink(ROOT_INODE, b"f")
    bench.push()


def forgotten(bench: Bench, inode: InodeId) -> None:
    """Everywhere else: this node was away for so long that it takes a snapshot."""
    bench.pull()
    bench.elsewhere.unlink(ROOT_INODE, b"f")
    held = bench.elsewhere.have()
    for _ in bench.elsewhere.raise_floor(bench.elsewhere.judge()):
        pass
    assert bench.elsewhere.forget([inode], held) == 1
    rejoin = bench.namespace.rejoin
    rejoin.begin(held)
    rejoin.stage(bench.elsewhere.snapshot(None, bytes_max=1 << 20))
    rejoin.complete({}, held)
    for _ in bench.namespace.finish_rejoin():
        pass


def shown(namespace: Namespace) -> list[tuple[bytes, bytes | None]]:
    return [
        (entry.name, entry.inode.content.inline) for entry in namespace.list(ROOT_INODE, None, 9)
    ]


@pytest.mark.parametrize("loses", [removed, forgotten])
async def test_what_is_written_when_its_file_goes_elsewhere_is_kept(
    bench: Bench, loses: Callable[[Bench, InodeId], None]
) -> None:
    """Promise 13: an edit beats a delete, which cannot have seen it."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"old")
    opened = await fs.open(inode, os.O_WRONLY, ROOT)
    await fs.write(opened.number, 0, b"new")
    loses(bench, inode)
    assert shown(bench.namespace) == []
    await fs.flush(opened.number)
    assert shown(bench.namespace) == [(b"f", b"new")]
    # The program goes on writing what it has open.
    await fs.write(opened.number, 3, b"er")
    await fs.flush(opened.number)
    await fs.release(opened.number)
    bench.pull()
    assert shown(bench.elsewhere) == shown(bench.namespace) == [(b"f", b"newer")]
    assert not list(fs.contents_in_use())


async def test_what_is_written_after_its_file_went_elsewhere_goes_with_it(bench: Bench) -> None:
    """As on a local filesystem: the program has it open, and it has no name."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"old")
    opened = await fs.open(inode, os.O_WRONLY, ROOT)
    removed(bench, inode)
    await fs.write(opened.number, 0, b"new")
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert shown(bench.namespace) == []


async def test_a_release_that_takes_too_long_ends_later(bench: Bench) -> None:
    """Promise 16: its caller, the kernel, is answered in time, and nothing stays in memory."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"old")
    opened = await fs.open(inode, os.O_RDWR, ROOT)
    await fs.write(opened.number, 0, b"new")
    bench.publication.gate = trio.Event()
    with trio.move_on_after(0.01):
        await fs.release(opened.number)
    assert fs.has_uncommitted(inode)
    bench.publication.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not fs.has_uncommitted(inode)
    assert not list(fs.contents_in_use())
    assert shown(bench.namespace) == [(b"f", b"new")]
