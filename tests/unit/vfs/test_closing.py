"""What a close(2) waits for when somebody else has committed what was written."""

import os

import pytest

from dfsfs.base.types import ROOT_INODE
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
