"""What a file had before is kept until its content is known to be on stable storage."""

from dfsfs.base.limits import SETTLED_S
from dfsfs.base.types import ContentRef, Digest, DigestKind, InodeId, digest_of
from dfsfs.base.units import US_PER_S
from tests.unit.namespace.conftest import Node, Wall


def tree(data: bytes) -> ContentRef:
    return ContentRef(len(data), Digest(digest_of(DigestKind.BLAKE3, data)), stored=len(data))


OLD, MIDDLE, NEW = tree(b"old"), tree(b"middle"), tree(b"new")


def write(node: Node, inode: InodeId, content: ContentRef) -> None:
    node.fs.write(inode, content, mtime_ns=5)


def flushed(*nodes: Node, writer: Node) -> None:
    for node in nodes:
        node.fs.fallbacks.flushed(writer.origin, 0, writer.fs.position)


def kept(node: Node, inode: InodeId) -> list[ContentRef]:
    return [fallback.content for fallback in node.fs.fallbacks.of(inode)]


def test_the_chain_goes_when_the_writer_has_flushed(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file = one.file(b"f")
    write(one, file, OLD)
    two.pull(one)
    assert kept(one, file) == kept(two, file) == [ContentRef(0)]
    flushed(one, two, writer=one)
    assert kept(one, file) == kept(two, file) == []
    write(one, file, MIDDLE)
    two.pull(one)
    write(two, file, NEW)
    one.pull(two)
    assert kept(one, file) == kept(two, file) == [MIDDLE, OLD]
    # The later of two writers has flushed; the first has not, and part of its bytes may be needed.
    flushed(one, two, writer=two)
    assert kept(one, file) == kept(two, file) == [OLD]
    assert one.fs.fallbacks.count(one.origin) == 1
    flushed(one, two, writer=one)
    assert one.fs.fallbacks.count() == two.fs.fallbacks.count() == 0


def test_what_needs_no_new_blocks_needs_no_fallback(node: Node) -> None:
    file = node.file(b"f", data=b"inline")
    assert kept(node, file) == []
    write(node, file, OLD)
    flushed(node, writer=node)
    patched = ContentRef(3, OLD.root, b"a patch", OLD.shift, 3)
    write(node, file, patched)
    node.write(file, b"inline again")
    assert kept(node, file) == []


def test_what_may_be_needed_is_not_collected(node: Node) -> None:
    file = node.file(b"f")
    write(node, file, OLD)
    flushed(node, writer=node)
    write(node, file, NEW)
    assert node.fs.contents(None, 10, fallbacks=True).contents == [(file, NEW), (file, OLD)]
    flushed(node, writer=node)
    assert node.fs.contents(None, 10, fallbacks=True).contents == [(file, NEW)]


def test_a_name_that_goes_to_a_new_file_takes_the_old_content_along(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    file = one.file(b"f")
    write(one, file, OLD)
    two.pull(one)
    flushed(one, two, writer=one)
    for number, content in enumerate((MIDDLE, NEW)):
        draft = one.file(b"draft")
        write(one, draft, content)
        if number == 0:
            two.pull(one)  # else it hears of all at once
        one.fs.rename(InodeId(1), b"draft", InodeId(1), b"f")
        two.pull(one)
        assert kept(one, draft)[-1] == kept(two, draft)[-1] == OLD
    assert kept(one, draft)[0] == kept(two, draft)[0] == MIDDLE
    assert (draft, OLD) in two.fs.contents(None, 10, fallbacks=True).contents
    flushed(one, two, writer=one)
    assert one.fs.fallbacks.count() == two.fs.fallbacks.count() == 0


def test_names_that_only_move_change_nothing(pair: tuple[Node, Node]) -> None:
    one, two = pair
    file, other = one.file(b"f"), one.file(b"other")
    write(one, file, OLD)
    write(one, other, MIDDLE)
    one.fs.rename(InodeId(1), b"f", InodeId(1), b"g")
    one.fs.unlink(InodeId(1), b"other")
    two.pull(one)
    assert kept(one, file) == kept(two, file) == [ContentRef(0)]


def test_files_are_listed_with_their_newest_row(node: Node) -> None:
    files = [node.file(b"%d" % number) for number in range(5)]
    for file in files:
        write(node, file, OLD)
        write(node, file, NEW)
    page = node.fs.fallbacks.inodes(InodeId(0), 3)
    assert [inode for inode, _ in page] == files[:3]
    rest = node.fs.fallbacks.inodes(page[-1][0], 3)
    assert [inode for inode, _ in rest] == files[3:]
    assert rest[-1][1].time == node.fs.position
    node.fs.fallbacks.forget(*rest[-1])
    assert kept(node, files[-1]) == []
    # Rows that came after somebody looked stay.
    before = page[0][1]
    write(node, files[0], MIDDLE)
    node.fs.fallbacks.forget(files[0], before)
    assert kept(node, files[0]) == [NEW]


def test_who_catches_up_keeps_nothing_for_what_is_long_flushed(
    pair: tuple[Node, Node], wall: Wall
) -> None:
    one, two = pair
    old = one.file(b"old")
    write(one, old, OLD)
    wall.us += int(SETTLED_S * US_PER_S) + 1_000_000
    recent = one.file(b"recent")
    write(one, recent, NEW)
    two.file(b"says what time it is")
    two.pull(one)
    assert two.fs.get(old).content == OLD
    assert kept(two, old) == []
    assert kept(two, recent) == [ContentRef(0)]
