"""Golden encodings of rows. They change only with an ADR and a new format number."""

import pytest

from dfsfs.base.types import ContentRef, Digest, FileKind, InodeId, LinkId, Origin, Stamp
from dfsfs.namespace.rows import (
    AttributeRow,
    ContentRow,
    Field,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    decode_rows,
    decode_snapshot,
    encode_rows,
    encode_snapshot,
    pack_owner,
)

ONE, TWO = Origin(1), Origin(2)
STAMP = Stamp(1_700_000_000_000_000, ONE)
INODE = InodeId(1 << 40 | 5)
DIGEST = Digest(b"\1" + bytes(range(32)))
TREE = ContentRef(300_000, DIGEST, None, 18, 299_000)
GOLDEN: list[tuple[Row, str]] = [
    (
        NodeRow(STAMP, INODE, FileKind.SYMLINK, 0o777, 1000, 100, 0, b"to"),
        "9901cf00060a24181e4000cf00000100000000050acd01ffcd03e86400c402746f",
    ),
    (
        LinkRow(STAMP, LinkId(INODE), INODE, InodeId(1), b"a", InodeId(1), 1),
        "9802cf00060a24181e4000cf0000010000000005cf000001000000000501c401610101",
    ),
    (
        TombstoneRow(STAMP, LinkId(INODE), Stamp(STAMP.time - 1, TWO), {TWO: 9, ONE: 5}),
        "9603cf00060a24181e4000cf0000010000000005cf00060a24181e3fff0282010502 09",
    ),
    (
        TombstoneRow(STAMP, LinkId(INODE), Stamp(STAMP.time - 1, TWO), None),
        "9603cf00060a24181e4000cf0000010000000005cf00060a24181e3fff02c0",
    ),
    (
        ContentRow(STAMP, INODE, TREE, -1, {TWO: 9}, STAMP),
        "9b04cf00060a24181e4000cf0000010000000005ce000493e0c42101"
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "c012ce00048ff8ff810209c0",
    ),
    (
        ContentRow(STAMP, INODE, ContentRef(2, None, b"hi"), 7, {}, Stamp(3, TWO)),
        "9b04cf00060a24181e4000cf000001000000000502c0c4026869120007 80920302",
    ),
    (
        AttributeRow(STAMP, INODE, Field.OWNER, pack_owner(1000, 100)),
        "9505cf00060a24181e4000cf000001000000000502c408000003e800000064",
    ),
    (
        AttributeRow(STAMP, INODE, b"user.a", None),
        "9505cf00060a24181e4000cf0000010000000005c406757365722e61c0",
    ),
    (TouchRow(STAMP, INODE), "9306cf00060a24181e4000cf0000010000000005"),
]


@pytest.mark.parametrize(("row", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_rows_of_a_batch(row: Row, golden: str) -> None:
    data = encode_rows([row])
    assert data.hex() == "920191" + golden.replace(" ", "")
    assert decode_rows(data, ONE, 0, STAMP.time) == [row]


def test_rows_of_a_snapshot_carry_their_origin() -> None:
    rows = [row for row, _ in GOLDEN] + [TouchRow(Stamp(5, TWO), INODE)]
    data = encode_snapshot(rows)
    assert decode_snapshot(data) == rows
    assert encode_snapshot(rows[-1:]).hex() == "9201919406050 2cf0000010000000005".replace(" ", "")
