"""Patches over a tree: merged as they lie, read as plain bytes, refused when malformed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.codec import encode
from dfsfs.base.errors import Corrupt
from dfsfs.base.limits import PATCHES_COUNT_MAX
from dfsfs.base.types import ContentRef, Digest, DigestKind, digest_of
from dfsfs.content import Range, extends, inline_ref, merged, pack, tree_of, unpack

TREE = ContentRef(100, digest_of(DigestKind.BLAKE3, b"x"), None, 12, 100)
WRITES = st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=30)), max_size=8)


def applied(writes: list[tuple[int, bytes]], size: int = 100) -> bytearray:
    target = bytearray(size)
    for offset, data in writes:
        target[offset : offset + len(data)] = data
    return target


def disjoint(writes: list[tuple[int, bytes]]) -> list[Range]:
    ranges: list[Range] = []
    for write in writes:
        ranges = merged(ranges, [write])
    return ranges


@given(WRITES, st.integers(0, 99), st.integers(1, 100))
def test_merged_ranges_read_as_the_writes_in_order(
    writes: list[tuple[int, bytes]], offset: int, size: int
) -> None:
    ranges = disjoint(writes)
    assert all(left.end < right.offset for left, right in pairwise(ranges))
    size = min(size, 100 - offset)
    target = bytearray(size)
    ref = pack(TREE, ranges, 100)
    unpack(ref).over(target, offset)
    assert target == applied(writes)[offset : offset + size]


@given(WRITES, WRITES)
def test_several_ranges_lie_over_several(
    below: list[tuple[int, bytes]], above: list[tuple[int, bytes]]
) -> None:
    upper = disjoint(above)
    ranges = merged(disjoint(below), [(item.offset, item.data) for item in upper])
    target = bytearray(100)
    unpack(pack(TREE, ranges, 100)).over(target, 0)
    assert target == applied([*below, *above])


def test_the_tree_of_a_patched_ref_is_the_tree() -> None:
    patched = pack(TREE, [Range(90, b"y" * 30)], 120)
    assert patched.patched
    assert tree_of(patched) == TREE
    assert tree_of(TREE) == TREE


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        encode(None),
        encode([]),
        encode([0]),
        encode([121]),
        encode([-1]),
        encode(["x"]),
        encode([100, 7]),
        encode([100, [0, b""]]),
        encode([100, [0, "text"]]),
        encode([100, [-1, b"x"]]),
        encode([100, [120, b"x"]]),
        encode([100, [5, b"xx"], [6, b"y"]]),
        encode([100, [5, b"x"], [1, b"y"]]),
        encode([100, *([n, b"x"] for n in range(PATCHES_COUNT_MAX + 1))]),
        encode([100, [0, b"x", 1]]),
    ],
)
def test_malformed_patches_are_corrupt(packed: bytes) -> None:
    with pytest.raises(Corrupt):
        unpack(ContentRef(120, Digest(TREE.root or b""), packed, 12, 100))


OTHER = ContentRef(100, digest_of(DigestKind.BLAKE3, b"y"), None, 12, 100)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (inline_ref(b"abc"), inline_ref(b"ab"), True),
        (inline_ref(b"ab"), inline_ref(b"ab"), True),
        (inline_ref(b"ab"), inline_ref(b"abc"), False),
        (inline_ref(b"xbc"), inline_ref(b"ab"), False),
        (inline_ref(b"ab"), ContentRef(size=0), True),
        (TREE, ContentRef(size=0), True),
        (TREE, inline_ref(b"ab"), False),
        (TREE, ContentRef(size=7), False),  # a hole
        (TREE, TREE, True),
        (OTHER, TREE, False),
        (pack(TREE, [Range(100, b"more")], 104), TREE, True),
        (pack(TREE, [Range(99, b"more")], 103), TREE, False),
        (pack(TREE, [Range(5, b"x"), Range(100, b"more")], 104), TREE, False),
        (
            pack(TREE, [Range(5, b"x"), Range(100, b"more")], 104),
            pack(TREE, [Range(5, b"x")], 100),
            True,
        ),
        (
            pack(TREE, [Range(5, b"y"), Range(100, b"more")], 104),
            pack(TREE, [Range(5, b"x")], 100),
            False,
        ),
        (pack(TREE, [Range(100, b"more")], 104), pack(TREE, [Range(100, b"mo")], 102), True),
        (pack(TREE, [Range(100, b"More")], 104), pack(TREE, [Range(100, b"mo")], 102), False),
        (pack(TREE, [Range(100, b"mo")], 200), pack(TREE, [Range(100, b"mo")], 102), True),
        (TREE, pack(TREE, [Range(5, b"x")], 100), False),
        (ContentRef(104, TREE.root, b"nonsense", 12, 100), TREE, False),
    ],
)
def test_what_is_known_to_be_an_old_content_and_more(
    new: ContentRef, old: ContentRef, expected: bool
) -> None:
    assert extends(new, old) == expected
