"""The dirty bytes of one block: sorted, disjoint, never touching byte ranges.

Pure. Bytes that are handed in are kept as they are until something adjoins them, so that a block
written in one piece is never copied; data that grows piece by piece is collected in one bytearray.

Invariant: extents are in order, do not overlap and do not touch (`start + len < next start`), so a
block is whole exactly when one extent spans it.
"""

from bisect import bisect_left, bisect_right

from dfsfs.base.types import Buffer

_BLOCK_COST_BYTES = 350  # this object, its lists, its entry in the map of a buffer
_EXTENT_COST_BYTES = 80  # two entries in lists, a number, an object for the bytes


class Extents:
    """Byte ranges with their data; later writes win. Owned by one write buffer."""

    __slots__ = ("_pieces", "_starts", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Buffer] = []
        self.size = 0  # bytes held

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def end(self) -> int:
        """One past the last dirty byte."""
        return self._starts[-1] + len(self._pieces[-1]) if self._starts else 0

    @property
    def cost(self) -> int:
        """Memory it holds, about: of small extents the objects around them are the most."""
        if not self._starts:
            return 0
        return self.size + _BLOCK_COST_BYTES + _EXTENT_COST_BYTES * len(self._starts)

    def pieces(self) -> list[tuple[int, Buffer]]:
        """Each extent's start and bytes, in order."""
        return list(zip(self._starts, self._pieces, strict=True))

    def slice(self, start: int, size: int) -> Buffer | None:
        """Bytes [start, start + size) if one extent has them all."""
        at = bisect_right(self._starts, start) - 1
        if at < 0:
            return None
        begin = start - self._starts[at]
        piece = self._pieces[at]
        if begin + size > len(piece):
            return None
        return bytes(memoryview(piece)[begin : begin + size])

    def write(self, start: int, data: Buffer) -> None:
        """Put `data` at `start`. `data` may be kept: it must not change afterwards."""
        starts, pieces = self._starts, self._pieces
        end = start + len(data)
        if starts and start == self.end:  # the usual case: a file written from front to back
            last = pieces[-1]
            if not isinstance(last, bytearray):
                last = pieces[-1] = bytearray(last)
            last += data
            self.size += len(data)
            return
        # Extents first..beyond-1 overlap or touch [start, end).
        first = bisect_left(starts, start)
        if first and starts[first - 1] + len(pieces[first - 1]) >= start:
            first -= 1
        beyond = bisect_right(starts, end)
        if first == beyond:
            starts.insert(first, start)
            pieces.insert(first, data)
            self.size += len(data)
            return
        old_start, old = starts[first], pieces[first]
        if (
            beyond - first == 1
            and isinstance(old, bytearray)
            and old_start <= start
            and end <= old_start + len(old)
        ):
            old[start - old_start : end - old_start] = data
            return
        merged_start = min(start, old_start)
        merged_end = max(end, starts[beyond - 1] + len(pieces[beyond - 1]))
        if merged_start == start and merged_end == end:
            merged: Buffer = data
        else:
            merged = bytearray(merged_end - merged_start)
            for at in range(first, beyond):
                offset = starts[at] - merged_start
                merged[offset : offset + len(pieces[at])] = pieces[at]
            merged[start - merged_start : end - merged_start] = data
        self.size += len(merged) - sum(len(piece) for piece in pieces[first:beyond])
        starts[first:beyond] = [merged_start]
        pieces[first:beyond] = [merged]

    def until(self, end: int) -> "Extents":
        """What lies before `end`, as extents of its own; these stay as they are."""
        kept = Extents()
        for start, piece in self.pieces():
            if start >= end:
                break
            cut = start + len(piece) > end
            kept.write(start, bytes(memoryview(piece)[: end - start]) if cut else piece)
        return kept

    def whole(self, size: int) -> Buffer | None:
        """Bytes [0, size) as one piece if all of them are dirty (no copy when that is all)."""
        if size == 0:
            return b""
        if not self._starts or self._starts[0] != 0:
            return None
        piece = self._pieces[0]
        if len(piece) < size:
            return None
        return piece if len(piece) == size else memoryview(piece)[:size]

    def copy_onto(self, target: bytearray | memoryview, offset: int) -> None:
        """Overlay `target`, whose first byte is byte `offset` of the block, with what is dirty."""
        limit = offset + len(target)
        for start, piece in zip(self._starts, self._pieces, strict=True):
            if start >= limit:
                break
            end = start + len(piece)
            if end <= offset:
                continue
            low, high = max(start, offset), min(end, limit)
            target[low - offset : high - offset] = memoryview(piece)[low - start : high - start]
