"""Which records were verified since start: one bit for each slot of 16 KiB of a segment.

Exact, not a filter: a record in a segment is longer than a slot, so no two begin in the same one.
8 KiB of memory for each GiB of store. Sync; loop only.
"""

from dfsfs.base.limits import SMALL_BLOCK_BYTES_MAX
from dfsfs.blocks.records import HEADER_BYTES

_SLOT_SHIFT = 14
assert 1 << _SLOT_SHIFT < HEADER_BYTES + SMALL_BLOCK_BYTES_MAX + 1  # the shortest record


class VerifiedMap:
    """Bitmaps by segment; they grow with what is marked."""

    def __init__(self) -> None:
        self._maps: dict[int, bytearray] = {}

    def has(self, segment: int, position: int) -> bool:
        """Whether the record at `position` is marked."""
        bits = self._maps.get(segment)
        slot = position >> _SLOT_SHIFT
        return (
            bits is not None and slot >> 3 < len(bits) and bool(bits[slot >> 3] >> (slot & 7) & 1)
        )

    def mark(self, segment: int, position: int) -> None:
        """Mark the record at `position`."""
        bits = self._maps.setdefault(segment, bytearray())
        slot = position >> _SLOT_SHIFT
        if slot >> 3 >= len(bits):
            bits.extend(bytes((slot >> 3) + 1 - len(bits)))
        bits[slot >> 3] |= 1 << (slot & 7)

    def clear(self, segment: int, position: int) -> None:
        """Take back the mark of the record at `position`."""
        bits = self._maps.get(segment)
        slot = position >> _SLOT_SHIFT
        if bits is not None and slot >> 3 < len(bits):
            bits[slot >> 3] &= ~(1 << (slot & 7)) & 0xFF

    @property
    def bytes(self) -> int:
        """Memory of the bitmaps."""
        return sum(map(len, self._maps.values()))

    def forget(self, segment: int) -> None:
        """A segment is gone."""
        self._maps.pop(segment, None)
