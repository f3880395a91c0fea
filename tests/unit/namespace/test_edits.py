"""Content, attributes, extended attributes, and inodes that nothing links to any more."""

import pytest

from dfsfs.base.errors import Exists, Full, Invalid, IsDirectory, NoAttribute, NotFound
from dfsfs.base.limits import INLINE_BYTES_MAX, XATTR_INODE_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, Stamp
from dfsfs.namespace import AttributeChanges
from tests.unit.namespace.conftest import START_US, Node


def test_write_shows_content_and_times(node: Node) -> None:
    file = node.file(b"f")
    node.wall.us += 7
    written = node.fs.write(file, ContentRef(3, None, b"abc"), mtime_ns=42)
    assert written == node.fs.get(file)
    assert (written.size, written.mtime_ns) == (3, 42)
    assert written.ctime_ns == (START_US + 7) * 1000
    assert node.fs.totals().bytes == 3
    node.write(file, b"x")
    assert node.fs.totals().bytes == 1


def test_write_refuses(node: Node) -> None:
    link = node.fs.create(
        ROOT_INODE, b"s", kind=FileKind.SYMLINK, mode=0, uid=0, gid=0, target=b"t"
    )
    long = b"x" * (INLINE_BYTES_MAX + 1)
    for inode, content, error in [
        (ROOT_INODE, ContentRef(0), IsDirectory),
        (link.inode, ContentRef(0), Invalid),
        (InodeId(77 << 40), ContentRef(0), NotFound),
        (node.file(b"f"), ContentRef(len(long), None, long), Invalid),
    ]:
        with pytest.raises(error):
            node.fs.write(inode, content, mtime_ns=1)


def test_set_attributes_leaves_the_rest_alone(node: Node) -> None:
    file = node.file(b"f")
    changed = node.fs.set_attributes(file, AttributeChanges(gid=9, mtime_ns=5, atime_ns=6))
    assert (changed.mode, changed.uid, changed.gid) == (0o644, 1, 9)
    assert (changed.atime_ns, changed.mtime_ns) == (6, 5)
    node.start()
    assert node.fs.get(file) == changed
    node.fs.set_attributes(file, AttributeChanges(mode=0o4755, uid=8))
    assert (node.fs.get(file).mode, node.fs.get(file).uid, node.fs.get(file).gid) == (0o4755, 8, 9)
    before = node.fs.position
    node.fs.set_attributes(file, AttributeChanges())
    assert node.fs.position == before


def test_atime_is_nobody_elses_business(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f")
    before = one.fs.position
    one.fs.touch_atime(file, 1234)
    assert one.fs.get(file).atime_ns == 1234
    assert one.fs.position == before
    two.pull(one)
    assert two.fs.get(file).atime_ns == START_US * 1000


def test_xattrs(node: Node) -> None:
    file = node.file(b"f")
    fs = node.fs
    with pytest.raises(NoAttribute):
        fs.get_xattr(file, b"user.a")
    with pytest.raises(NoAttribute):
        fs.set_xattr(file, b"user.a", b"1", replace=True)
    fs.set_xattr(file, b"user.b", b"2", create=True)
    fs.set_xattr(file, b"user.a", b"1")
    with pytest.raises(Exists):
        fs.set_xattr(file, b"user.a", b"1", create=True)
    fs.set_attributes(file, AttributeChanges(mode=0o600))
    assert fs.list_xattrs(file) == [b"user.a", b"user.b"]
    assert fs.get_xattr(file, b"user.b") == b"2"
    fs.remove_xattr(file, b"user.b")
    assert fs.list_xattrs(file) == [b"user.a"]
    with pytest.raises(NoAttribute):
        fs.remove_xattr(file, b"user.b")
    with pytest.raises(Full):
        fs.set_xattr(file, b"user.a", b"x" * (XATTR_VALUE_BYTES_MAX + 1))
    for number in range(XATTR_INODE_BYTES_MAX // XATTR_VALUE_BYTES_MAX - 1):
        fs.set_xattr(file, b"user.%d" % number, b"x" * XATTR_VALUE_BYTES_MAX)
    with pytest.raises(Full):
        fs.set_xattr(file, b"user.more", b"x" * XATTR_VALUE_BYTES_MAX)


def test_an_open_removed_file_is_private(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"abc")
    one.fs.set_xattr(file, b"user.a", b"1")
    two.pull(one)
    one.fs.unlink(ROOT_INODE, b"f")
    one.fs.hold_orphan(file)
    before = one.fs.position
    assert one.fs.contents(None, 10).contents == [(file, ContentRef(3, None, b"abc"))]
    one.write(file, b"private")
    one.fs.set_attributes(file, AttributeChanges(mode=0o600, uid=5))
    one.fs.set_xattr(file, b"user.b", b"2")
    one.fs.remove_xattr(file, b"user.a")
    one.fs.touch_atime(file, 77)
    shown = one.fs.get(file)
    assert (one.data(file), shown.size, shown.nlink) == (b"private", 7, 0)
    assert (shown.mode, shown.uid, shown.gid, shown.atime_ns) == (0o600, 5, 2, 77)
    assert one.fs.list_xattrs(file) == [b"user.b"]
    assert one.fs.get_xattr(file, b"user.b") == b"2"
    assert ContentRef(7, None, b"private") in [ref for _, ref in one.fs.contents(None, 10).contents]
    assert one.fs.position == before
    two.pull(one)
    assert two.names() == []
    assert two.data(file) == b"abc"
    one.fs.drop_orphan(file)
    assert one.data(file) == b"abc"
    assert one.fs.contents(None, 10).contents == []


def test_a_file_removed_elsewhere_while_open_stays_removed(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"abc")
    two.pull(one)
    two.fs.unlink(ROOT_INODE, b"f")
    one.pull(two)
    one.write(file, b"late")
    assert one.data(file) == b"late"
    two.pull(one)
    assert one.names() == two.names() == []


def test_orphans_end_with_the_process(node: Node) -> None:
    file = node.file(b"f", data=b"abc")
    node.fs.unlink(ROOT_INODE, b"f")
    node.fs.hold_orphan(file)
    node.write(file, b"x")
    node.start()
    assert node.data(file) == b"abc"
    assert node.fs.contents(None, 10).contents == []


def test_contents_lists_siblings_and_pages(pair: tuple[Node, Node]) -> None:
    one, two = pair
    files = [one.file(b"%d" % number, data=b"old") for number in range(3)]
    two.pull(one)
    one.write(files[1], b"one")
    two.write(files[1], b"two")
    one.pull(two)
    found: list[tuple[InodeId, ContentRef]] = []
    after: InodeId | None = None
    while True:
        page = one.fs.contents(after, 1)
        found += page.contents
        if (after := page.next) is None:
            break
    assert [inode for inode, _ in found] == [files[0], files[1], files[1], files[2]]
    assert {ref.inline for inode, ref in found if inode == files[1]} == {b"one", b"two"}


def test_a_directory_shows_the_newest_of_touch_and_explicit_time(pair: tuple[Node, Node]) -> None:
    one, two = pair
    directory = one.directory(b"d")
    one.file(b"f", directory)
    one.fs.set_attributes(directory, AttributeChanges(mtime_ns=5))
    assert one.fs.get(directory).mtime_ns == 5
    two.pull(one)
    assert two.fs.get(directory).mtime_ns == 5
    one.wall.us += 100
    one.fs.unlink(directory, b"f")
    assert one.fs.get(directory).mtime_ns == (START_US + 100) * 1000
    two.pull(one)
    assert two.fs.get(directory) == one.fs.get(directory)
    assert Stamp(one.fs.position, one.origin) == one.changes[-1].stamp


def test_a_founder_owns_the_root_until_somebody_says_otherwise(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.fs.own_root(1000, 100, 5_000_000)
    root = one.fs.get(ROOT_INODE)
    assert (root.uid, root.gid, root.mode) == (1000, 100, 0o755)
    assert (root.atime_ns, root.mtime_ns) == (5_000_000, 5_000_000)
    two.fs.set_attributes(ROOT_INODE, AttributeChanges(uid=7))
    one.wall.us += 5_000_000
    two.pull(one)
    one.pull(two)
    for node in pair:
        node.fs.own_root(8, 8, 1)  # not new any more
        assert node.fs.get(ROOT_INODE).uid == 7
        assert node.fs.get(ROOT_INODE).mtime_ns == 5_000_000
    one.file(b"f")
    assert one.fs.get(ROOT_INODE).mtime_ns > 5_000_000


def test_contents_come_after_any_number_of_files_without(node: Node) -> None:
    """Promise 18: an empty page was the end for gc, which then collected what was needed."""
    for number in range(3):
        node.file(b"%d" % number)
    file = node.file(b"f", data=b"needed")
    page = node.fs.contents(None, 2)
    assert (page.contents, page.next is None) == ([], False)
    assert node.fs.contents(page.next, 2).contents == [(file, ContentRef(6, None, b"needed"))]
