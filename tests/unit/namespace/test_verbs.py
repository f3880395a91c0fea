"""The verbs on one node: what POSIX says, and what is announced."""

import pytest

from dfsfs.base.errors import (
    DfsError,
    Exists,
    Invalid,
    IsDirectory,
    NameTooLong,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId
from dfsfs.namespace import Removed
from tests.unit.namespace.conftest import START_US, Node

UNKNOWN = InodeId(99 << 40)


def test_create_shows_what_was_asked_for(node: Node) -> None:
    node.wall.us = START_US + 5
    made = node.fs.create(
        ROOT_INODE, b"x", kind=FileKind.CHARACTER, mode=0o20666, uid=3, gid=4, rdev=0x501
    )
    assert (made.mode, made.uid, made.gid, made.rdev) == (0o666, 3, 4, 0x501)
    assert made.kind == FileKind.CHARACTER
    assert made.nlink == 1
    now_ns = (START_US + 5) * 1000
    assert (made.birth_ns, made.atime_ns, made.mtime_ns, made.ctime_ns) == (now_ns,) * 4
    assert made.inode == (1 << 40) | 1
    assert node.fs.lookup(ROOT_INODE, b"x") == made
    assert node.fs.get(ROOT_INODE).mtime_ns == now_ns


def test_symlink_has_the_size_of_its_target(node: Node) -> None:
    made = node.fs.create(
        ROOT_INODE, b"s", kind=FileKind.SYMLINK, mode=0o777, uid=0, gid=0, target=b"a/b"
    )
    assert (made.target, made.size) == (b"a/b", 3)


def test_directories_count_their_subdirectories(node: Node) -> None:
    top = node.directory(b"top")
    node.directory(b"a", top)
    inner = node.directory(b"b", top)
    node.file(b"f", top)
    assert node.fs.get(top).nlink == 4
    assert node.fs.get(ROOT_INODE).nlink == 3
    node.fs.rename(top, b"b", ROOT_INODE, b"b")
    assert (node.fs.get(top).nlink, node.fs.get(ROOT_INODE).nlink) == (3, 4)
    assert node.fs.parent(inner) == ROOT_INODE
    node.fs.rmdir(ROOT_INODE, b"b")
    assert node.fs.get(inner).nlink == 0
    with pytest.raises(NotFound):
        node.fs.parent(inner)
    assert node.fs.totals().directories == 3


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"n" * 256, NameTooLong),
        (b"", Invalid),
        (b".", Invalid),
        (b"..", Invalid),
        (b"a/b", Invalid),
        (b"a\0", Invalid),
    ],
)
def test_names_that_cannot_be(node: Node, name: bytes, error: type[DfsError]) -> None:
    with pytest.raises(error):
        node.file(name)
    assert node.fs.position == 0


def test_create_refuses(node: Node) -> None:
    file = node.file(b"f")
    gone = node.directory(b"d")
    node.fs.rmdir(ROOT_INODE, b"d")
    for parent, name, error in [
        (ROOT_INODE, b"f", Exists),
        (file, b"x", NotDirectory),
        (UNKNOWN, b"x", NotFound),
        (gone, b"x", NotFound),
    ]:
        with pytest.raises(error):
            node.file(name, parent)


def test_links_come_and_go(node: Node) -> None:
    file = node.file(b"a", data=b"abc")
    node.wall.us += 10
    assert node.fs.link(file, ROOT_INODE, b"b").nlink == 2
    assert node.fs.get(file).ctime_ns == (START_US + 10) * 1000
    node.wall.us += 10
    assert node.fs.unlink(ROOT_INODE, b"a") == Removed(file, 1)
    assert node.fs.get(file).ctime_ns == (START_US + 20) * 1000
    assert node.fs.path(file) == b"b"
    assert node.fs.unlink(ROOT_INODE, b"b") == Removed(file, 0)
    assert node.fs.get(file).nlink == 0
    assert node.data(file) == b"abc"  # whoever has it open still reads it
    with pytest.raises(NotFound):
        node.fs.link(file, ROOT_INODE, b"c")
    with pytest.raises(NotFound):
        node.fs.path(file)


def test_a_directory_is_not_linked(node: Node) -> None:
    with pytest.raises(NotPermitted):
        node.fs.link(node.directory(b"d"), ROOT_INODE, b"e")


def test_links_have_a_limit(node: Node) -> None:
    file = node.file(b"a")
    with node.database.transaction():  # as if 65,000 had been made
        node.database.execute("UPDATE inode SET nlink=65000 WHERE inode=?", (file,))
    node.start()
    with pytest.raises(TooManyLinks):
        node.fs.link(file, ROOT_INODE, b"b")
    with node.database.transaction():
        node.database.execute("UPDATE inode SET nlink=1 WHERE inode=?", (file,))


def test_removing_refuses(node: Node) -> None:
    directory = node.directory(b"d")
    node.file(b"f", directory)
    for verb, parent, name, error in [
        (node.fs.unlink, ROOT_INODE, b"d", IsDirectory),
        (node.fs.rmdir, ROOT_INODE, b"d", NotEmpty),
        (node.fs.rmdir, directory, b"f", NotDirectory),
        (node.fs.unlink, ROOT_INODE, b"x", NotFound),
        (node.fs.rmdir, ROOT_INODE, b"x", NotFound),
        (node.fs.unlink, node.fs.lookup(directory, b"f").inode, b"x", NotDirectory),
    ]:
        with pytest.raises(error):
            verb(parent, name)


def test_rename_replaces(node: Node) -> None:
    one, two = node.file(b"one", data=b"1"), node.file(b"two", data=b"22")
    assert node.fs.rename(ROOT_INODE, b"one", ROOT_INODE, b"two") == Removed(two, 0)
    assert node.names() == [b"two"]
    assert node.fs.lookup(ROOT_INODE, b"two").inode == one
    assert node.fs.totals().bytes == 1


def test_rename_between_names_of_one_file_does_nothing(node: Node) -> None:
    file = node.file(b"a")
    node.fs.link(file, ROOT_INODE, b"b")
    before = node.fs.position
    assert node.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b") is None
    assert node.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"a") is None
    assert node.names() == [b"a", b"b"]
    assert node.fs.position == before


def test_rename_of_directories(node: Node) -> None:
    top = node.directory(b"top")
    inner = node.directory(b"inner", top)
    empty = node.directory(b"empty")
    node.file(b"f")
    fs = node.fs
    for old, parent, new, error in [
        (b"top", inner, b"x", Invalid),
        (b"top", top, b"x", Invalid),
        (b"empty", ROOT_INODE, b"top", NotEmpty),
        (b"top", ROOT_INODE, b"f", NotDirectory),
        (b"f", ROOT_INODE, b"empty", IsDirectory),
        (b"none", ROOT_INODE, b"x", NotFound),
    ]:
        with pytest.raises(error):
            fs.rename(ROOT_INODE, old, parent, new)
    assert fs.rename(ROOT_INODE, b"top", ROOT_INODE, b"empty") == Removed(empty, 0)
    assert fs.path(inner) == b"empty/inner"
    assert fs.get(ROOT_INODE).nlink == 3


def test_rename_flags(node: Node) -> None:
    directory = node.directory(b"d")
    inside = node.directory(b"i", directory)
    file = node.file(b"f")
    fs = node.fs
    with pytest.raises(Exists):
        fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"d", no_replace=True)
    with pytest.raises(NotFound):
        fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"x", exchange=True)
    with pytest.raises(Invalid):
        fs.rename(directory, b"i", ROOT_INODE, b"d", exchange=True)
    with pytest.raises(Invalid):
        fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"d", exchange=True, no_replace=True)
    assert fs.rename(ROOT_INODE, b"f", directory, b"i", exchange=True) is None
    assert fs.lookup(directory, b"i").inode == file
    assert fs.lookup(ROOT_INODE, b"f").inode == inside
    assert (fs.get(ROOT_INODE).nlink, fs.get(directory).nlink) == (4, 2)
    fs.rename(directory, b"i", ROOT_INODE, b"g", no_replace=True)
    assert node.names() == [b"d", b"f", b"g"]


def test_lists_in_pages(node: Node) -> None:
    wanted = sorted(b"%d" % number for number in range(25))
    for name in wanted:
        node.file(name)
    found: list[bytes] = []
    while True:
        page = node.fs.list(ROOT_INODE, found[-1] if found else None, 10)
        if not page:
            break
        found += [entry.name for entry in page]
    assert found == wanted == node.names()


def test_a_verb_is_announced_with_its_rows(node: Node) -> None:
    file = node.file(b"f")
    first = node.changes[-1]
    node.write(file, b"abc")
    second = node.changes[-1]
    assert first.local
    assert first.entries == ((ROOT_INODE, b"f"),)
    assert second.contents == {file: ContentRef(3, None, b"abc")}
    assert first.batch is not None
    assert second.batch is not None
    assert (first.batch.after, first.batch.upto) == (0, second.batch.after)
    assert second.batch.upto == node.fs.position == second.stamp.time
    assert node.fs.feed(node.origin, first.batch.upto, bytes_max=1) == second.batch


def test_restart_goes_on(node: Node) -> None:
    file = node.file(b"f", data=b"abc")
    node.wall.us -= 1_000_000  # the clock was set back meanwhile
    before = node.fs.position
    node.start()
    assert node.fs.position == before
    assert node.data(file) == b"abc"
    assert node.file(b"g") == file + 1
    assert node.fs.position > before


def test_another_incarnation_starts_its_own_counter(node: Node) -> None:
    node.file(b"f")
    before = node.fs.position
    node.origin = type(node.origin)(5)
    node.start()
    assert node.fs.position == 0
    assert node.fs.have() == {1: before}
    assert node.file(b"g") == (5 << 40) | 1
    assert node.fs.position > before
