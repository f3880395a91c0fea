"""A disk that takes nothing."""

import pytest

from dfsfs.base.errors import DfsError
from dfsfs.base.types import ROOT_INODE
from tests.unit.vfs.conftest import ROOT, Bench


async def test_what_cannot_be_written_can_be_read(bench: Bench) -> None:
    """A disk that is full, or fails: that something was read then is not worth an error."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"bytes")
    link = await fs.symlink(ROOT_INODE, b"link", b"target", ROOT)
    await fs.mkdir(ROOT_INODE, b"d", 0o755, ROOT)
    bench.namespace._database.execute("PRAGMA query_only=1")
    assert await bench.bytes_of(inode) == b"bytes"
    assert fs.readlink(link.inode) == b"target"
    directory = fs.opendir(ROOT_INODE)
    assert {entry.name for entry in fs.readdir(directory, 0)} >= {b"f", b"link", b"d"}
    with pytest.raises(DfsError):
        await fs.unlink(ROOT_INODE, b"f")
    bench.namespace._database.execute("PRAGMA query_only=0")
    await fs.unlink(ROOT_INODE, b"f")
