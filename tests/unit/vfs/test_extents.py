"""Extents against a bytearray and a mask."""

from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.types import Buffer
from dfsfs.vfs.extents import Extents

SIZE = 40
writes = st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=12))
truncations = st.tuples(st.just("truncate"), st.integers(0, SIZE), st.just(b""))


@given(st.lists(st.one_of(writes, writes, writes, truncations), max_size=30), st.data())
def test_extents_are_what_was_written(
    steps: list[tuple[str, int, bytes]], data: st.DataObject
) -> None:
    extents = Extents()
    model: dict[int, int] = {}
    for verb, at, piece in steps:
        if verb == "write":
            extents.write(at, piece)
            model.update({at + offset: byte for offset, byte in enumerate(piece)})
        else:
            uncut, before = extents, extents.pieces()
            extents = extents.until(at)
            assert uncut.pieces() == before
            model = {offset: byte for offset, byte in model.items() if offset < at}
        assert extents.size == len(model)
        assert extents.end == max(model, default=-1) + 1
        assert bool(extents) == bool(model)
    _check_pieces(extents, model)
    start = data.draw(st.integers(0, SIZE))
    size = data.draw(st.integers(1, SIZE))
    target = bytearray(b"\xff" * size)
    extents.copy_onto(target, start)
    assert list(target) == [model.get(start + offset, 0xFF) for offset in range(size)]
    found = extents.slice(start, size)
    whole = extents.whole(size)
    inside = all(start + offset in model for offset in range(size))
    assert (found is not None) == inside
    if found is not None:
        assert list(found) == [model[start + offset] for offset in range(size)]
    assert (whole is not None) == all(offset in model for offset in range(size))
    if whole is not None:
        assert list(bytes(whole)) == [model[offset] for offset in range(size)]


def _check_pieces(extents: Extents, model: dict[int, int]) -> None:
    last_end = -1
    seen = {}
    for start, piece in extents.pieces():
        assert start > last_end, "extents are in order and do not touch"
        assert len(piece)
        last_end = start + len(piece)
        seen.update({start + offset: byte for offset, byte in enumerate(bytes(piece))})
    assert seen == model


def test_a_block_written_in_one_piece_is_not_copied() -> None:
    extents = Extents()
    data = b"x" * 1000
    extents.write(0, data)
    assert extents.whole(1000) is data


def test_bytes_handed_in_never_change() -> None:
    extents = Extents()
    data: Buffer = b"abcdef"
    extents.write(0, data)
    extents.write(2, b"XY")
    extents.write(6, b"gh")
    assert data == b"abcdef"
    assert extents.slice(0, 8) == b"abXYefgh"
