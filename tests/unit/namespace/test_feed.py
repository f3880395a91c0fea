"""Batches and snapshots: bounds, gaps, repeats, and everything a peer may send instead."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dfsfs.base.codec import encode
from dfsfs.base.errors import Refused, RemoteProtocolError
from dfsfs.base.types import ROOT_INODE, Origin
from dfsfs.namespace import Batch, SnapshotPage
from dfsfs.namespace.rows import FORMAT, decode_rows
from tests.unit.namespace.conftest import START_US, Node


def batches(node: Node, bytes_max: int) -> list[Batch]:
    found: list[Batch] = []
    after = 0
    while batch := node.fs.feed(node.origin, after, bytes_max=bytes_max):
        found.append(batch)
        after = batch.upto
    return found


def test_batches_follow_each_other_and_are_bounded(node: Node) -> None:
    for number in range(50):
        node.file(b"%d" % number, data=b"x" * 100)
    found = batches(node, 2000)
    assert len(found) > 5
    assert [batch.after for batch in found] == [0] + [batch.upto for batch in found[:-1]]
    assert found[-1].upto == node.fs.position
    assert all(len(batch.rows) < 4000 for batch in found)
    assert len(batches(node, 1)) == 100  # a transaction each, whole
    assert node.fs.feed(node.origin, node.fs.position, bytes_max=1000) is None
    assert node.fs.feed(Origin(9), 0, bytes_max=1000) is None


def test_rows_that_are_still_to_send_are_counted(node: Node) -> None:
    for number in range(5):
        node.file(b"%d" % number, data=b"x")
    total = 5 * 3 + 1  # an inode, a link, a content each; the root was touched
    first = batches(node, 1)[0]
    assert node.fs.rows_after({}, 1000) == total
    assert node.fs.rows_after({node.origin: first.upto}, 1000) == total - 2
    assert node.fs.rows_after({node.origin: node.fs.position}, 1000) == 0
    assert node.fs.rows_after({}, 7) == 7


def test_what_was_overwritten_is_not_sent(node: Node) -> None:
    file = node.file(b"f")
    for number in range(20):
        node.write(file, b"%d" % number)
    (batch,) = batches(node, 100_000)
    assert len(decode_rows(batch.rows, batch.origin, batch.after, batch.upto)) == 4


def test_gaps_and_repeats_are_skipped(pair: tuple[Node, Node]) -> None:
    one, two = pair
    for name in (b"a", b"b", b"c"):
        one.file(name)
    first, second, third = batches(one, 1)
    assert two.fs.apply([second]) == []
    assert two.fs.have() == {}
    (change,) = two.fs.apply([first, third])
    assert not change.local
    assert two.names() == [b"a"]
    assert two.fs.have() == {1: first.upto}
    assert two.fs.apply([first]) == []
    two.fs.apply([second, third])
    assert two.names() == [b"a", b"b", b"c"]
    assert len(two.changes) == 2


def test_a_batch_that_overlaps_is_joined(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.file(b"a")
    two.pull(one)
    one.file(b"b")
    (both,) = batches(one, 100_000)
    two.fs.apply([both])
    assert two.names() == [b"a", b"b"]


def test_own_rows_do_not_come_back(node: Node) -> None:
    node.file(b"a")
    (batch,) = batches(node, 100_000)
    assert node.fs.apply([replace(batch, upto=batch.upto + 5)]) == []


def rows(*listed: object) -> bytes:
    return encode([FORMAT, list(listed)])


NOW = START_US
INODE = 2 << 40 | 1
GOOD_NODE = [1, NOW, INODE, 8, 0o644, 0, 0, 0, b""]
GOOD_LINK = [2, NOW, INODE, INODE, 1, b"f", 1, 0]


def changed(row: list[object], at: int, value: object) -> list[object]:
    return [*row[:at], value, *row[at + 1 :]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode([]),
        encode([2, []]),
        encode([FORMAT, {}]),
        rows(1),
        rows([]),
        rows([9, NOW]),
        rows([True, NOW, INODE]),
        rows(changed(GOOD_NODE, 1, NOW + 9)),  # beyond the batch
        rows(changed(GOOD_NODE, 1, 5)),  # before it
        rows(changed(GOOD_NODE, 2, 1)),  # the root
        rows(changed(GOOD_NODE, 2, -1)),
        rows(changed(GOOD_NODE, 2, 1 << 63)),
        rows(changed(GOOD_NODE, 3, 3)),
        rows(changed(GOOD_NODE, 4, 0o10000)),
        rows(changed(GOOD_NODE, 8, b"target")),
        rows(changed(GOOD_NODE, 8, "text")),
        rows(GOOD_NODE[:-1]),
        *[rows(changed(GOOD_LINK, 5, name)) for name in (b"", b".", b"..", b"a/b", b"\0", "f")],
        rows(changed(GOOD_LINK, 5, b"n" * 256)),
        rows(changed(GOOD_LINK, 3, 1)),
        rows(changed(GOOD_LINK, 4, 0)),
        rows([3, NOW, INODE, NOW, 0, None]),
        rows([3, NOW, INODE, NOW, 2, {1 << 23: 5}]),
        rows([4, NOW, INODE, 3, b"\1short", None, 18, 0, 0, {}, None]),
        rows([4, NOW, INODE, 3, None, b"four", 18, 0, 0, {}, None]),
        rows([4, NOW, INODE, 3, None, None, 99, 0, 0, {}, None]),
        rows([4, NOW, INODE, 3, None, None, 18, 0, 0, {}, [1]]),
        rows([4, NOW, INODE, -1, None, None, 18, 0, 0, {}, None]),
        rows([5, NOW, INODE, 99, 1]),
        rows([5, NOW, INODE, 1, b"mode"]),
        rows([5, NOW, INODE, 2, b"owner"]),
        rows([5, NOW, INODE, b"", b""]),
        rows([5, NOW, INODE, b"user.a", 5]),
        rows([6, NOW, 0]),
    ],
)
def test_malformed_batches_change_nothing(node: Node, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        node.fs.apply([Batch(Origin(2), 10, NOW, data)])
    assert node.fs.have() == {}
    node.fs.apply([Batch(Origin(2), 0, NOW, rows(GOOD_NODE, GOOD_LINK))])  # the rest of them is
    assert node.names() == [b"f"]


@pytest.mark.parametrize(
    ("origin", "after", "upto"),
    [(0, 0, 5), (1 << 23, 0, 5), (2, -1, 5), (2, 5, 5), (2, 0, 1 << 63)],
)
def test_batches_that_go_nowhere_are_refused(
    node: Node, origin: int, after: int, upto: int
) -> None:
    with pytest.raises(RemoteProtocolError):
        node.fs.apply([Batch(Origin(origin), after, upto, rows())])


def test_contradictions_are_refused_whole(node: Node) -> None:
    node.fs.apply([Batch(Origin(2), 0, NOW, rows(GOOD_NODE, GOOD_LINK))])
    other = 2 << 40 | 7
    for bad in (
        changed(changed(GOOD_NODE, 1, NOW + 1), 3, 4),
        [2, NOW + 1, INODE, other, 1, b"g", 1, 0],
    ):
        with pytest.raises(RemoteProtocolError):
            node.fs.apply([Batch(Origin(2), NOW, NOW + 1, rows([6, NOW + 1, 1], bad))])
        assert node.fs.have() == {2: NOW}
        assert node.fs.check() == []


def test_the_future_is_refused(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.wall.us += 2 * 3600 * 1_000_000
    one.file(b"f")
    found = batches(one, 1000)
    one.wall.us -= 2 * 3600 * 1_000_000
    with pytest.raises(Refused):
        two.fs.apply(found)
    assert two.names() == []


def test_what_is_applied_moves_the_clock_on(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.wall.us += 1_000_000
    one.file(b"f")
    one.wall.us -= 1_000_000
    two.pull(one)
    two.file(b"g")
    assert two.fs.position > one.fs.position


@pytest.mark.parametrize(
    "cursor", [b"x", encode([99, []]), encode([0, [1, 2]]), encode([0, [None]]), encode(5)]
)
def test_a_bad_cursor_is_refused(node: Node, cursor: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        node.fs.snapshot(cursor, bytes_max=100)


def test_a_snapshot_while_the_source_changes(make: Callable[[int], Node]) -> None:
    one, two = make(1), make(2)
    for number in range(30):
        one.file(b"%d" % number, data=b"x")
    have = one.fs.have()
    cursor, page_count = None, 0
    while True:
        page = one.fs.snapshot(cursor, bytes_max=500)
        two.fs.load(page)
        page_count += 1
        if page_count < 30:
            one.fs.rename(ROOT_INODE, b"%d" % page_count, ROOT_INODE, b"moved%d" % page_count)
        cursor = page.next
        if cursor is None:
            break
    two.fs.finish_load(have)
    assert page_count > 5
    two.pull(one)
    assert two.names() == one.names()
    assert two.fs.totals() == one.fs.totals()
    with pytest.raises(RemoteProtocolError):
        two.fs.load(SnapshotPage(b"junk", None))
