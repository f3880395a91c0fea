"""Rows: joining is a least upper bound in any order, encodings round-trip, junk is refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfsfs.base.errors import DfsError, RemoteProtocolError
from dfsfs.base.types import ContentRef, FileKind, InodeId, LinkId, Origin, Stamp
from dfsfs.crdt import HybridClock
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION, Namespace, SnapshotPage
from dfsfs.namespace.rows import (
    AttributeRow,
    ContentRow,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    decode_rows,
    decode_snapshot,
    encode_snapshot,
    key,
    pack_owner,
)
from dfsfs.runtime import Database
from tests.namespace_model import View, join_all

# Few inodes, stamps and names, so that everything meets everything.
directories = st.integers(2, 4).map(InodeId)
files = st.integers(5, 7).map(InodeId)
inodes = directories | files
parents = st.integers(1, 8).map(InodeId)  # the root, files, and one that never comes
stamps = st.builds(Stamp, st.integers(1, 30), st.integers(1, 3).map(Origin))
vectors = st.dictionaries(st.integers(1, 3).map(Origin), st.integers(1, 30), max_size=3)
names = st.sampled_from([b"a", b"b.txt", b"c"])
contents = st.sampled_from([ContentRef(0), ContentRef(1, None, b"x"), ContentRef(1, None, b"y")])


def node(stamp: Stamp, inode: InodeId) -> NodeRow:
    kind = FileKind.DIRECTORY if inode < 5 else FileKind.REGULAR
    return NodeRow(Stamp(inode, stamp.origin), inode, kind, 0o644, 0, 0, 0, b"")


def link(
    stamp: Stamp,
    inode: InodeId,
    second: bool,
    parent: InodeId,
    name: bytes,
    before: InodeId,
    c: int,
) -> LinkRow:
    number = LinkId(inode + 20) if second and inode >= 5 else LinkId(inode)
    return LinkRow(stamp, number, inode, parent, name, before, c if inode < 5 else 0)


links = st.builds(link, stamps, inodes, st.booleans(), parents, names, parents, st.integers(0, 2))
link_ids = st.sampled_from([*range(2, 8), *range(25, 28)]).map(LinkId)
rows = st.one_of(
    st.builds(node, stamps, inodes),
    links,
    links,
    st.builds(TombstoneRow, stamps, link_ids, stamps, st.none() | vectors),
    st.builds(ContentRow, stamps, files, contents, st.integers(-5, 5), vectors, stamps),
    st.builds(AttributeRow, stamps, inodes, st.sampled_from([1, 4, 3]), st.integers(0, 0o777)),
    st.builds(
        AttributeRow, stamps, inodes, st.just(2), st.integers(0, 9).map(lambda n: pack_owner(n, n))
    ),
    st.builds(AttributeRow, stamps, inodes, st.just(b"user.a"), st.none() | st.just(b"v")),
    st.builds(TouchRow, stamps, inodes | st.just(InodeId(1))),
)


def without_twins(listed: list[Row]) -> list[Row]:
    """A stamp is given once: two different rows of one key never have the same."""
    found: dict[object, Row] = {}
    for row in listed:
        found.setdefault((key(row), row.stamp), row)
    return list(found.values())


row_lists = st.lists(rows, max_size=40).map(without_twins)


class Still:
    def wall_ns(self) -> int:
        return 10**15


def node_name(origin: Origin) -> str:
    return f"n{origin}"


def replica() -> tuple[Namespace, Database]:
    database = Database(None, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)
    clock = HybridClock(Still())
    return Namespace(database, origin=Origin(9), clock=clock, node_name=node_name), database


def dump(namespace: Namespace) -> list[Row]:
    found: list[Row] = []
    cursor = None
    while True:
        page = namespace.snapshot(cursor, bytes_max=1000)
        found += decode_snapshot(page.rows)
        cursor = page.next
        if cursor is None:
            return found


@settings(max_examples=150, deadline=None)
@given(listed=row_lists, seed=st.integers(0, 999))
def test_any_rows_in_any_order_make_the_tree_of_the_model(listed: list[Row], seed: int) -> None:
    """Rows no history of honest replicas would produce, in pages cut anywhere, some twice."""
    dice = random.Random(seed)
    shuffled = listed + dice.sample(listed, len(listed) // 3)
    dice.shuffle(shuffled)
    namespace, database = replica()
    while shuffled:
        count = dice.randint(1, 8)
        namespace.load(SnapshotPage(encode_snapshot(shuffled[:count]), None))
        del shuffled[:count]
    namespace.finish_load({Origin(number): 30 for number in range(1, 4)})
    assert {key(row): row for row in dump(namespace)} == join_all(listed)
    assert namespace.check() == []
    view = View(listed, node_name)
    for directory, entries in view.directories.items():
        if view.is_directory(directory):
            shown = {(name, inode) for name, inode, _ in namespace.names(InodeId(directory))}
            assert shown == {(name, entry.inode) for name, entry in entries.items()}
    database.close()


@given(row_lists, row_lists, row_lists)
def test_join_laws(one: list[Row], two: list[Row], three: list[Row]) -> None:
    def joined(*parts: list[Row]) -> dict[object, Row]:
        return join_all(without_twins([row for part in parts for row in part]))

    def twice(first: dict[object, Row], *rest: list[Row]) -> dict[object, Row]:
        return joined(list(first.values()), *rest)

    everything = without_twins(one + two + three)
    a, b, c = ([row for row in part if row in everything] for part in (one, two, three))
    assert joined(a, b) == joined(b, a)
    assert twice(joined(a, b), c) == twice(joined(b, c), a)
    assert twice(joined(a), a) == joined(a)


@given(row_lists)
def test_round_trip(listed: list[Row]) -> None:
    assert decode_snapshot(encode_snapshot(listed)) == listed


@given(st.binary(max_size=80) | row_lists.map(encode_snapshot), st.data())
def test_hostile_bytes_are_refused_or_rows(data: bytes, dice: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(dice.draw(st.integers(0, 4))):
        if mutated:
            mutated[dice.draw(st.integers(0, len(mutated) - 1))] = dice.draw(st.integers(0, 255))
    for reader in (decode_snapshot, lambda data: decode_rows(data, Origin(1), 0, 1 << 62)):
        try:
            reader(bytes(mutated))
        except RemoteProtocolError:
            continue
        except DfsError:
            pytest.fail("only RemoteProtocolError may come of a peer's bytes")
