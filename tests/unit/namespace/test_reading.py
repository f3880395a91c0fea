"""The cache of decoded inodes: bounded by count and by bytes, whatever is in them."""

from dataclasses import replace

from dfsfs.base.limits import INODE_CACHE_BYTES_MAX, INODE_CACHE_COUNT
from dfsfs.base.types import ROOT_INODE, ContentRef, InodeId
from dfsfs.base.units import KIB
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION
from dfsfs.namespace.reading import Reader
from dfsfs.namespace.working import Irregular
from dfsfs.runtime import Database
from tests.unit.namespace.conftest import Node


def reader() -> Reader:
    database = Database(None, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)
    return Reader(database, Irregular(database))


def test_inodes_with_much_in_them_push_out_others_earlier(node: Node) -> None:
    root = node.fs.get(ROOT_INODE)
    cache = reader()
    size = 64 * KIB
    many = INODE_CACHE_BYTES_MAX // size + 100
    for number in range(1, many):
        content = ContentRef(size=size, inline=bytes(size))
        cache.remember(replace(root, inode=InodeId(number), size=size, content=content))
    bounded = cache.bounded()
    assert bounded["inode_cache"][0] < many - 1
    assert INODE_CACHE_BYTES_MAX - size <= bounded["inode_cache_bytes"][0] <= INODE_CACHE_BYTES_MAX
    assert cache.cached(InodeId(1)) is None
    assert cache.cached(InodeId(many - 1)) is not None
    # What is replaced or forgotten is not counted any more.
    for number in range(1, many, 2):
        cache.remember(replace(root, inode=InodeId(number), target=b"x"))
    cache.forget(InodeId(number) for number in range(2, many, 2))
    assert cache.bounded()["inode_cache_bytes"][0] == cache.bounded()["inode_cache"][0]
    cache.forget_all()
    assert cache.bounded()["inode_cache_bytes"][0] == 0


def test_small_inodes_are_bounded_by_their_number(node: Node) -> None:
    root = node.fs.get(ROOT_INODE)
    cache = reader()
    for number in range(1, INODE_CACHE_COUNT + 100):
        cache.remember(replace(root, inode=InodeId(number)))
    assert cache.bounded()["inode_cache"] == [INODE_CACHE_COUNT, INODE_CACHE_COUNT]


def test_what_follows_an_inode_is_what_a_walk_comes_to_next(node: Node) -> None:
    node.file(b"a")
    b = node.directory(b"b")
    b1 = node.directory(b"1", b)
    x, y = node.file(b"x", b1), node.file(b"y", b1)
    b2 = node.file(b"2", b)
    c, d = node.directory(b"c"), node.file(b"d")
    whole = [b1, x, y, b2, c, d]
    for limit in range(1, 9):
        assert node.fs.following(b, limit) == whole[:limit]
    assert node.fs.following(x, 9) == [y, b2, c, d]
    assert node.fs.following(y, 1) == [b2]
    assert node.fs.following(d, 9) == []
    assert node.fs.following(ROOT_INODE, 3)[1:] == [b, b1]
    node.fs.unlink(b1, b"x")
    assert node.fs.following(x, 9) == []  # it stands nowhere
    assert node.fs.following(b1, 2) == [y, b2]
