"""Stories: what two people see who worked apart. Promise 13, one sentence a test."""

from collections.abc import Callable

import pytest

from dfsfs.base.errors import Exists
from dfsfs.base.limits import NAME_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind
from dfsfs.namespace import AttributeChanges
from tests.unit.namespace.conftest import Node


def meet(one: Node, two: Node) -> None:
    one.pull(two)
    two.pull(one)
    assert tree(one) == tree(two)


def tree(node: Node) -> list[object]:
    found: list[object] = []
    work = [ROOT_INODE]
    while work:
        for entry in node.fs.list(work.pop(), None, 1000):
            found.append(entry)
            if entry.inode.kind == FileKind.DIRECTORY:
                work.append(entry.inode.inode)
    return found


def test_two_versions_of_a_file_both_survive(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"report.txt", data=b"draft")
    two.pull(one)
    one.write(file, b"first")
    one.wall.us += 5_000_000
    two.write(file, b"second")
    meet(one, two)
    copy = b"report (conflict from node1, 2023-11-14 22-13-20).txt"
    assert one.names() == [copy, b"report.txt"]
    assert one.data(file) == b"second"
    assert one.data(one.fs.lookup(ROOT_INODE, copy).inode) == b"first"
    (conflict,) = one.fs.conflicts(None, 10)
    assert (conflict.name, conflict.original, conflict.writer) == (copy, b"report.txt", 1)
    one.fs.set_attributes(file, AttributeChanges(mode=0o600))
    assert one.fs.lookup(ROOT_INODE, copy).mode == 0o600
    # Working on the file makes the copy a file of its own, which `conflicts` still lists.
    two.write(file, b"third")
    meet(one, two)
    assert one.names() == [copy, b"report.txt"]
    assert [found.name for found in one.fs.conflicts(None, 10)] == [copy]
    assert one.fs.conflicts(None, 10)[0].original == b"report.txt"
    one.fs.unlink(ROOT_INODE, copy)
    assert one.fs.conflicts(None, 10) == []


def test_a_conflict_copy_keeps_the_extended_attributes_of_its_file(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"draft")
    one.fs.set_xattr(file, b"user.tag", b"red")
    one.fs.set_xattr(file, b"user.gone", b"x")
    one.fs.remove_xattr(file, b"user.gone")
    two.pull(one)
    one.write(file, b"first")
    two.write(file, b"second")
    meet(one, two)
    ((_, copy, _),) = [entry for entry in one.fs.names(ROOT_INODE) if entry[1] != file]
    for _ in range(2):
        for node in pair:
            assert node.fs.list_xattrs(copy) == [b"user.tag"]
            assert node.fs.get_xattr(copy, b"user.tag") == b"red"
        two.write(file, b"third")  # the copy becomes a file of its own
        meet(one, two)
    one.fs.set_xattr(file, b"user.tag", b"blue")
    assert one.fs.get_xattr(copy, b"user.tag") == b"red"


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_version_made_from_an_old_one_replaces_no_other_of_its_writer(
    pair: tuple[Node, Node], is_shown: bool
) -> None:
    one, two = pair
    file = one.file(b"f.txt", data=b"draft")
    draft = one.fs.get(file).content
    two.pull(one)
    one.write(file, b"by one")
    if not is_shown:  # another's version wins, and that of `one` is a conflict copy
        one.wall.us += 5_000_000
        two.write(file, b"by two")
        meet(one, two)
        assert one.data(file) == b"by two"
    for text in (b"late", b"later"):
        late = ContentRef(size=len(text), root=None, inline=text)
        one.fs.write(file, late, mtime_ns=1, seen=draft)
        draft = late
    meet(one, two)
    assert one.data(file) == b"later"
    kept = {one.data(inode) for _, inode, _ in one.fs.names(ROOT_INODE)}
    assert kept == {b"later", b"by one"} | (set() if is_shown else {b"by two"})
    assert len(one.fs.conflicts(None, 10)) == len(kept) - 1


def test_equal_versions_are_one(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"draft")
    two.pull(one)
    one.write(file, b"same")
    two.write(file, b"same")
    meet(one, two)
    assert one.names() == [b"f"]


def test_an_edit_beats_a_delete(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"old")
    two.pull(one)
    one.fs.unlink(ROOT_INODE, b"f")
    two.write(file, b"new")
    meet(one, two)
    assert one.data(one.fs.lookup(ROOT_INODE, b"f").inode) == b"new"
    one.fs.unlink(ROOT_INODE, b"f")  # by somebody who has seen it
    meet(one, two)
    assert one.names() == []


def test_a_rename_unseen_by_the_remover_keeps_the_file(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.file(b"f", data=b"x")
    two.pull(one)
    one.fs.unlink(ROOT_INODE, b"f")
    two.fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"g")
    meet(one, two)
    assert one.names() == [b"g"]


def test_two_files_of_one_name_both_survive(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.file(b"f", data=b"1")
    one.wall.us += 2_000_000
    second = two.file(b"f", data=b"2")
    meet(one, two)
    assert one.names() == [b"f", b"f (conflict from node1, 2023-11-14 22-13-20)"]
    assert one.fs.lookup(ROOT_INODE, b"f").inode == second


def test_identical_files_of_one_name_are_shown_once(pair: tuple[Node, Node]) -> None:
    one, two = pair
    first, second = one.file(b"f", data=b"same"), two.file(b"f", data=b"same")
    meet(one, two)
    assert one.names() == [b"f"]
    assert one.fs.totals().files == 1
    shown = one.fs.lookup(ROOT_INODE, b"f").inode
    hidden = first if shown == second else second
    assert one.fs.get(hidden).nlink == 0
    # Who had the hidden one open writes into it: nothing is lost, it comes into sight.
    one.write(hidden, b"more")
    meet(one, two)
    assert {one.data(inode) for _, inode, _ in one.fs.names(ROOT_INODE)} == {b"same", b"more"}


def test_directories_of_one_name_merge(pair: tuple[Node, Node]) -> None:
    one, two = pair
    first = one.directory(b"d")
    second = two.directory(b"d")
    one.file(b"a", first, b"1")
    two.file(b"b", second, b"2")
    one.directory(b"sub", first)
    two.file(b"c", two.directory(b"sub", second), b"3")
    meet(one, two)
    assert one.names() == [b"d"]
    assert one.names(first) == one.names(second) == [b"a", b"b", b"sub"]
    assert one.fs.get(first).nlink == 3
    assert one.fs.get(ROOT_INODE).nlink == 3
    assert one.fs.totals().directories == 3
    with pytest.raises(Exists):
        one.file(b"b", second)
    one.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e")
    meet(one, two)
    assert two.names() == [b"e"]
    assert two.names(first) == [b"a", b"b", b"sub"]


def test_a_merged_directory_moves_into_one_that_merges_at_the_same_time(
    make: Callable[[int], Node],
) -> None:
    early, keeper, mover = make(1), make(2), make(3)
    early.directory(b"new")
    keeper.directory(b"old")
    keeper.wall.us += 1
    new, old = mover.directory(b"new"), mover.directory(b"old")
    keeper.pull(mover)
    assert keeper.fs.parent(old) == ROOT_INODE
    mover.fs.rename(ROOT_INODE, b"old", new, b"moved")
    news = [
        node.fs.feed(node.origin, keeper.fs.held(node.origin), bytes_max=1000)
        for node in (early, mover)
    ]
    keeper.fs.apply([batch for batch in news if batch is not None])
    assert keeper.names() == [b"new", b"old"]
    assert keeper.fs.path(old) == b"new/moved"


def test_creating_inside_beats_removing(pair: tuple[Node, Node]) -> None:
    one, two = pair
    outer = one.directory(b"outer")
    inner = one.directory(b"inner", outer)
    two.pull(one)
    one.fs.rmdir(outer, b"inner")
    one.fs.rmdir(ROOT_INODE, b"outer")
    file = two.file(b"f", inner)
    meet(one, two)
    assert one.fs.path(file) == b"outer/inner/f"
    one.file(b"g", outer)  # pins what was only implied
    one.fs.unlink(inner, b"f")
    meet(one, two)
    assert one.names(outer) == [b"g", b"inner"]


def test_a_cycle_of_moves_is_cut(pair: tuple[Node, Node]) -> None:
    one, two = pair
    a, b = one.directory(b"a"), one.directory(b"b")
    two.pull(one)
    one.fs.rename(ROOT_INODE, b"a", b, b"a")
    two.fs.rename(ROOT_INODE, b"b", a, b"b")
    meet(one, two)
    assert sorted([one.fs.path(a), one.fs.path(b)]) in ([b"a", b"a/b"], [b"b", b"b/a"])
    one.file(b"f", a)
    meet(one, two)
    one.fs.rename(one.fs.parent(b), b"b", ROOT_INODE, b"elsewhere")
    meet(one, two)
    assert one.fs.path(b) == b"elsewhere"


def test_conflict_names_fit_and_do_not_collide(pair: tuple[Node, Node]) -> None:
    one, two = pair
    long = b"n" * (NAME_BYTES_MAX - 4) + b".txt"
    one.file(b"f", data=b"1")
    one.file(long, data=b"1")
    taken = one.file(b"f (conflict from node1, 2023-11-14 22-13-20)", data=b"mine")
    one.wall.us += 100
    two.file(b"f", data=b"2")
    two.file(long, data=b"2")
    meet(one, two)
    names = one.names()
    assert len(names) == 5
    assert all(len(name) <= NAME_BYTES_MAX for name in names)
    assert b"f (conflict from node1, 2023-11-14 22-13-20 2)" in names
    assert sum(name.endswith(b".txt") for name in names) == 2
    one.fs.unlink(ROOT_INODE, b"f (conflict from node1, 2023-11-14 22-13-20)")
    assert one.fs.get(taken).nlink == 0
    # The copy takes the free name, the same everywhere.
    meet(one, two)
    assert len(one.names()) == 4


def test_a_copy_can_be_worked_on(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f", data=b"old")
    two.pull(one)
    one.write(file, b"1")
    two.write(file, b"2")
    meet(one, two)
    copy = next(entry for entry in one.fs.list(ROOT_INODE, None, 9) if entry.inode.inode != file)
    one.fs.set_xattr(copy.inode.inode, b"user.a", b"1")
    one.write(copy.inode.inode, b"edited")
    one.fs.rename(ROOT_INODE, copy.name, ROOT_INODE, b"mine")
    meet(one, two)
    assert two.names() == [b"f", b"mine"]
    assert two.data(copy.inode.inode) == b"edited"
    assert two.fs.get_xattr(copy.inode.inode, b"user.a") == b"1"


def test_two_removers_of_two_links_do_not_remove_the_file(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"a", data=b"x")
    one.fs.link(file, ROOT_INODE, b"b")
    two.pull(one)
    one.fs.unlink(ROOT_INODE, b"a")
    two.fs.unlink(ROOT_INODE, b"b")
    meet(one, two)
    assert one.fs.get(file).nlink == 1  # neither meant the last one


def test_nodes_that_are_renamed_rename_their_conflict_names(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.file(b"f", data=b"1")
    one.wall.us += 100
    two.file(b"f", data=b"2")
    one.pull(two)
    one.node_names[1] = "paris"
    one.fs.names_changed()
    assert one.names() == [b"f", b"f (conflict from paris, 2023-11-14 22-13-20)"]
    assert one.changes[-1].entries
