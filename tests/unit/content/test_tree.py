"""Interior nodes: golden bytes, and everything a lying peer could put into one."""

import random

import pytest

from dfsfs.base.errors import Corrupt
from dfsfs.base.limits import SMALL_BLOCK_BYTES_MAX, TREE_FANOUT
from dfsfs.base.types import ContentRef, DigestKind, digest_of
from dfsfs.content import Leaf, inline_ref
from dfsfs.content.tree import Shape, decode_node, encode_node, shape_of, trimmed

A = Leaf(digest_of(DigestKind.SHA1, b"a"), 1)
B = Leaf(digest_of(DigestKind.SHA1, b"bb"), 2)


def test_a_node_has_these_bytes() -> None:
    data = encode_node(1, 18, [A, None, B, None])
    assert data is not None
    assert data.hex() == (
        "64667354" "01" "01" "12" "15" "0003" "0000"
        "0386f7e437faa5a7fce15d1ddcb9eaeaea377667b8" "0000000000000001"
        "000000000000000000000000000000000000000000" "0000000000000000"
        "039a900f538965a426994e1e90600920aff0b4e8d2" "0000000000000002"
    )  # fmt: skip
    node = decode_node(data)
    assert node.children() == [A, None, B]
    assert (node.level, node.shift, node.count, node.stored) == (1, 18, 3, 3)
    assert node.child(3) is None
    assert encode_node(1, 18, [None, None]) is None


def test_a_full_node_is_a_small_block() -> None:
    leaf = Leaf(digest_of(DigestKind.BLAKE3, b"a"), 1)
    assert len(encode_node(1, 18, [leaf] * TREE_FANOUT) or b"") <= SMALL_BLOCK_BYTES_MAX


def test_every_flipped_bit_decodes_or_is_corrupt() -> None:
    data = encode_node(1, 18, [A, None, B]) or b""
    size, stored = 3 << 18, 3
    for position in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            try:
                node = decode_node(bytes(bad))
                node.check(Shape(18), level=1, size=size, stored=stored)
            except Corrupt:
                continue
            # What is left is another digest of the same form.
            assert [child and child.stored for child in node.children()] == [1, None, 2]


def test_noise_and_torn_nodes_are_corrupt() -> None:
    data = encode_node(2, 18, [A, B]) or b""
    dice = random.Random(1)
    bad = [data[:size] for size in range(len(data))]
    bad += [data + b"\0", b"", *(b"dfsT" + dice.randbytes(dice.randrange(60)) for _ in range(500))]
    for each in bad:
        with pytest.raises(Corrupt):
            decode_node(each)


def test_a_node_must_fit_its_place() -> None:
    node = decode_node(encode_node(1, 4, [Leaf(A.digest, 16), Leaf(B.digest, 5)]) or b"")
    shape = Shape(4, fanout=4)
    for size in (21, 30, 64, 1000):
        node.check(shape, level=1, size=size, stored=21)
    bad = [
        (Shape(5, 4), 1, 21, 21),  # another block size
        (shape, 2, 21, 21),  # another level
        (shape, 1, 21, 20),  # stores something else than its parent says
        (shape, 1, 20, 21),  # the last leaf is longer than the file
        (shape, 1, 16, 21),  # more leaves than the file has
        (Shape(4, 1), 1, 21, 21),  # more children than a node may have
    ]
    for place, level, size, stored in bad:
        with pytest.raises(Corrupt):
            node.check(place, level=level, size=size, stored=stored)


def test_depths() -> None:
    shape = Shape(18)
    depths = {0: 0, 1: 0, 1 << 18: 0, (1 << 18) + 1: 1, 1 << 26: 1, (1 << 26) + 1: 2, 1 << 34: 2}
    assert {size: shape.depth(size) for size in depths} == depths
    assert shape.depth((1 << 63) - 1) == 6


def test_refs_of_peers_are_checked() -> None:
    for ref in (
        ContentRef(size=1, shift=1000),
        ContentRef(size=1, shift=-1),
        ContentRef(size=1 << 80),
        ContentRef(size=1, stored=1),
    ):
        with pytest.raises(Corrupt):
            shape_of(ref)


def test_small_contents() -> None:
    assert inline_ref(b"abc") == ContentRef(size=3, inline=b"abc")
    assert inline_ref(bytes(9)) == ContentRef(size=9)  # equal bytes, equal refs: a hole
    assert inline_ref(b"") == ContentRef(size=0)
    assert bytes(trimmed(b"a\0b\0\0")) == b"a\0b"
    assert bytes(trimmed(bytes(5))) == b""
    assert bytes(trimmed(b"")) == b""
