"""Blocks of our writes that other nodes took, and are not known to have on stable storage.

An fsync has to flush every peer that took a block. If the session with one ends before that, its
blocks are *displaced*: it may come back without them, having lost power, or not at all. So the next
fsync has them put again; a peer that has them still says so when it is offered them.

Bounded by `limits.UNFLUSHED_BLOCKS_MAX`. Peers are asked to flush long before, so more gather only
where one does not; beyond the bound those taken first are left to repair.
Sync, no I/O.
"""

from collections import deque
from collections.abc import Iterable

from dfsfs.base.limits import UNFLUSHED_BLOCKS_MAX
from dfsfs.base.types import Digest


class UnflushedBlocks:
    """Those that one peer took in its present session."""

    def __init__(self) -> None:
        self._digests: deque[Digest] = deque(maxlen=UNFLUSHED_BLOCKS_MAX)
        self._taken = 0
        self._flushed = 0
        self._asked: deque[tuple[int, int]] = deque()  # flush, and blocks taken before it

    def __bool__(self) -> bool:
        return self._flushed < self._taken

    @property
    def digests(self) -> Iterable[Digest]:
        """Oldest first."""
        return self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def took(self, digest: Digest) -> bool:
        """The peer stored a block; whether so many wait now that it should flush unasked."""
        self._digests.append(digest)
        self._taken += 1
        asked = self._asked[-1][1] if self._asked else self._flushed
        return self._taken - asked >= UNFLUSHED_BLOCKS_MAX // 4

    def asked(self, flush: int) -> None:
        """The peer is to flush what it took until now."""
        if self and (not self._asked or self._asked[-1][1] < self._taken):
            self._asked.append((flush, self._taken))

    def ended(self, flush: int, *, good: bool) -> None:
        """It has flushed, or could not: then what comes next asks again."""
        while self._asked and self._asked[0][0] <= flush:
            _, taken = self._asked.popleft()
            if good:
                self._flushed = taken
        while len(self._digests) > self._taken - self._flushed:
            self._digests.popleft()


class DisplacedBlocks:
    """Those that peers took which have gone since."""

    def __init__(self) -> None:
        self._digests: dict[Digest, int] = {}  # with a number that grows, oldest first
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digests: Iterable[Digest]) -> None:
        """Whoever took these has gone."""
        for digest in digests:
            self._count += 1
            self._digests.pop(digest, None)
            self._digests[digest] = self._count
        while len(self._digests) > UNFLUSHED_BLOCKS_MAX:
            del self._digests[next(iter(self._digests))]

    def now(self) -> dict[Digest, int]:
        """What is to be put again; afterwards it is `placed`."""
        return dict(self._digests)

    def placed(self, done: dict[Digest, int]) -> None:
        """Other peers took these; some may have gone as well meanwhile."""
        for digest, number in done.items():
            if self._digests.get(digest) == number:
                del self._digests[digest]
