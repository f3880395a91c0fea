"""When a file stops being a draft."""

import os

import trio

from dfsfs.base.types import ROOT_INODE, DigestKind
from dfsfs.cluster.drafts import Drafts
from dfsfs.vfs import Filesystem, LocalFacts, SetAttributes, Space
from tests.unit.vfs.conftest import ROOT, SHIFT, Bench


async def test_a_file_whose_creation_was_interrupted_is_no_draft(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """Promises 4 and 8: it is there, and no close will come that waits for what is set of it."""
    fs = Filesystem(
        bench.world,
        bench.namespace,
        bench.storage,
        bench.publication,
        facts=LocalFacts(DigestKind.BLAKE3, lambda: Space(1000, 400)),
        drafts=Drafts(),
        shift=SHIFT,
    )
    await nursery.start(fs.run)
    bench.publication.gate = trio.Event()
    with trio.move_on_after(0.01):
        await fs.create(ROOT_INODE, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.publication.gate.set()
    inode = fs.lookup(ROOT_INODE, b"f").inode
    before = len(bench.publication.visible_calls)
    await fs.setattr(inode, SetAttributes(mode=0o600))
    assert bench.publication.visible_calls[before:] == [bench.namespace.position]
