"""A snapshot is taken step by step, and users go on meanwhile."""

from collections.abc import Callable

import pytest

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import ROWS_SLICE_BYTES, SNAPSHOT_BYTES_MAX
from dfsfs.base.types import ROOT_INODE
from tests.unit.namespace.conftest import Node


def test_a_snapshot_without_an_end_is_refused(make: Callable[[int], Node]) -> None:
    """Promise 16: a lying peer does not fill the disk."""
    here, peer = make(1), make(2)
    rejoin, page = here.fs.rejoin, peer.fs.snapshot(None, bytes_max=1 << 20)
    rejoin.begin({})
    for number in range(1, 3):
        rejoin.stage(page)
        assert rejoin.staged_bytes == number * ROWS_SLICE_BYTES
    rejoin.staged_bytes = SNAPSHOT_BYTES_MAX - ROWS_SLICE_BYTES
    rejoin.stage(page)
    with pytest.raises(RemoteProtocolError):
        rejoin.stage(page)
    rejoin.begin({})
    assert rejoin.staged_bytes == 0


def test_what_is_written_while_a_snapshot_is_taken_is_not_forgotten(
    make: Callable[[int], Node],
) -> None:
    """Promise 13: an edit beats a delete, whatever the step at which it comes."""
    for at in range(8):
        here, peer = make(1), make(2)
        files = [here.file(name, data=b"old") for name in (b"1", b"2", b"3")]
        have = here.fs.have()  # all of this the peer has held, and forgotten
        here.write(files[1], b"news")
        rejoin = here.fs.rejoin
        rejoin.begin(have)
        rejoin.stage(peer.fs.snapshot(None, bytes_max=1 << 20))
        rejoin.complete({}, have)
        expected = {b"2": b"news"}
        for step, _ in enumerate(here.fs.finish_rejoin()):
            if step == at and (b"1", files[0]) in [(n, i) for n, i, _ in here.fs.names(ROOT_INODE)]:
                here.write(files[0], b"edited")
                expected[b"1"] = b"edited"
        left = {name: here.data(inode) for name, inode, _ in here.fs.names(ROOT_INODE)}
        assert left == expected, f"written after step {at}"
        assert at > 1 or len(expected) == 2, "nothing has been removed yet"
