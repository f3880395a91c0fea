"""What `dfs fsck` says and does, told as stories."""

from typing import Any

import pytest

from dfsfs.base.types import Digest, DigestKind, digest_of
from dfsfs.base.units import KIB
from dfsfs.testing import faults
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation

BLOCK = 256 * KIB


def spoil(node: SimNode, data: bytes) -> Digest:
    """Flip a bit of the one block of a file."""
    digest = digest_of(DigestKind.BLAKE3, data)
    ((segment, start, _),) = faults.place_of(node, digest)
    faults.flip(node, segment, start, 1)
    return digest


@pytest.mark.announce("bad block|is damaged on this disk")
async def test_a_bad_block_is_left_unless_it_is_to_be_mended(sim: Simulation) -> None:
    """That another node has a good copy is no reason to say that all is well here."""
    a, _ = await sim.start_nodes(2)
    data = some_bytes(BLOCK)
    await a.write("/x", data)
    await sim.converge()
    spoil(a, data)
    last: dict[str, Any] = {}
    for repair, result in (
        (False, {"mended": 0, "left": 1}),
        (True, {"mended": 1, "left": 0}),
        (False, {"mended": 0, "left": 0}),
    ):
        async for report in a.node.upkeep("fsck", {"repair": repair}):
            last = report
        assert last["result"] == result


@pytest.mark.announce("bad block|is damaged on this disk")
async def test_a_bad_block_that_was_written_again_meanwhile_is_not_dropped(
    sim: Simulation,
) -> None:
    """No file needed it when fsck looked; by now one does, and the bytes are good (promise 18)."""
    (a,) = await sim.start_nodes(1)
    contents = {}
    for number in range(3):
        data = some_bytes(BLOCK, number)
        await a.write(f"/{number}", data)
        contents[spoil(a, data)] = data
        await a.unlink(f"/{number}")
    last_digest = max(contents)  # fsck goes through them in this order
    written = False
    async for report in a.node.upkeep("fsck", {"repair": True}):
        if "finding" in report and not written:
            await a.write("/again", contents[last_digest])
            written = True
    assert written
    assert await a.read("/again") == contents[last_digest]
