"""Blocks that garbage collection must leave alone because somebody is about to refer to them.

An upload pins what it puts until its content is in the namespace. Pins live in memory: after a
restart nobody is in the middle of anything. Sync; loop only.
"""

from collections.abc import Callable

from dfsfs.base.types import Digest


class Pins:
    """Counts by digest; shared by every `Storage` on one store and by its gc.

    A collector asks and removes in one step without a checkpoint between (`BlockStore.remove`);
    an upload pins before it looks whether the block is here.
    """

    def __init__(self) -> None:
        self._counts: dict[Digest, int] = {}
        self._watchers: list[Callable[[Digest], None]] = []
        # Set by a collection that is looking: what it was told is in use must not change under it,
        # so nothing is to be unpinned because a tree in use refers to it by now.
        self.looked_at = False

    def watch(self, callback: Callable[[Digest], None]) -> None:
        """Call back, synchronously, for every pin: somebody is about to refer to the block."""
        self._watchers.append(callback)

    def is_pinned(self, digest: Digest) -> bool:
        """Whether somebody needs the block."""
        return digest in self._counts

    def all(self) -> list[Digest]:
        """Everything that is pinned now."""
        return list(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def pin(self, digest: Digest) -> None:
        """Keep a block until as many `unpin`."""
        self._counts[digest] = self._counts.get(digest, 0) + 1
        for callback in self._watchers:
            callback(digest)

    def promise(self, digest: Digest) -> None:
        """Somebody counts on the block being here: its grace period begins anew."""
        for callback in self._watchers:
            callback(digest)

    def unpin(self, digest: Digest) -> None:
        """Take back one `pin`."""
        left = self._counts[digest] - 1
        if left:
            self._counts[digest] = left
        else:
            del self._counts[digest]
