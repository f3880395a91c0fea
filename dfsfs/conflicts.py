"""Conflict copies: what two sides of a partition made of one name, listed and resolved.

The namespace keeps every version that was closed and shows the losers of a name beside it, under
names that say so (`report (conflict from desk, 2026-11-22 10-15-03).txt`). A conflict is over when
nobody sees such a name any more; until then nothing of it is lost.

"mine" is what has the name now, "theirs" is the conflict copy. Resolving is one ordinary verb of
the namespace, under leases and published like any other; the kernel of this mount hears of it as of
a change from elsewhere.
"""

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any, Literal

from dfsfs.admin import Key
from dfsfs.base.errors import Exists, Invalid, IsDirectory, NotFound
from dfsfs.base.limits import CONFLICTS_PAGE
from dfsfs.base.types import FileKind, InodeId
from dfsfs.keys import Keys, components
from dfsfs.namespace import CONFLICT_MARK, Conflict, Inode, Namespace
from dfsfs.vfs import Leases, Publication

Keep = Literal["mine", "theirs", "both"]
KEPT_MARK = b" (from "  # in the place of CONFLICT_MARK when both are kept


class Conflicts:
    """Owned by the node."""

    def __init__(
        self, namespace: Namespace, keys: Keys, leases: Leases, publication: Publication
    ) -> None:
        self._namespace = namespace
        self._keys = keys
        self._leases = leases
        self._publication = publication

    async def list(self) -> AsyncGenerator[dict[str, Any], None]:
        """Each conflict copy with what it stands beside; the last report is how many there are."""
        count = 0
        after: tuple[InodeId, bytes] | None = None
        while page := self._namespace.conflicts(after, CONFLICTS_PAGE):
            for conflict in page:
                count += 1
                yield {"conflict": self._described(conflict)}
            after = (page[-1].directory, page[-1].name)
        yield {"result": {"conflicts": count}}

    def _described(self, conflict: Conflict) -> dict[str, Any]:
        directory = self._namespace.path(conflict.directory)
        try:
            mine = self._namespace.lookup(conflict.directory, conflict.original)
        except NotFound:
            mine = None
        return {
            "path": _text(directory, conflict.name),
            "original": _text(directory, conflict.original),
            "writer": self._namespace.writer_name(conflict.writer),
            "time_us": conflict.time,
            "mine": None if mine is None else _version(mine),
            "theirs": _version(self._namespace.get(conflict.inode)),
        }

    async def resolve(self, key: Key, keep: Keep) -> AsyncGenerator[dict[str, Any], None]:
        """Keep one version, or both as ordinary files; reports what is there afterwards.

        `key` is the conflict copy, or the file it stands beside if it has one copy only.

        Raises:
            NotFound: no conflict there. Invalid: several copies, or no such choice.
            IsDirectory: a version that is to go is a directory with entries of its own, or is to
                be replaced by a file; move them by hand.
        """
        if keep not in ("mine", "theirs", "both"):
            raise Invalid(f"keep mine, theirs or both, not {keep!r}")
        *parents, name = components(key, what="a conflict copy")
        directory = self._keys.resolve(b"/".join(parents)).inode
        conflict = self._find(directory, name)
        while True:
            wanted = self._inodes(conflict)
            if self._leases.held(wanted):
                break
            await self._leases.acquire(wanted)
            conflict = self._find(directory, conflict.name)
            if set(self._inodes(conflict)) <= set(wanted):
                break
        kept = self._resolve(conflict, keep)
        await self._publication.visible(self._namespace.position)
        shown = self._namespace.path(directory)
        yield {"result": {"kept": [_text(shown, name) for name in kept]}}

    def _inodes(self, conflict: Conflict) -> tuple[InodeId, ...]:
        inodes = [conflict.directory, conflict.inode]
        with suppress(NotFound):  # nothing has the name by now
            inodes.append(self._namespace.lookup(conflict.directory, conflict.original).inode)
        return tuple(inodes)

    def _find(self, directory: InodeId, name: bytes) -> Conflict:
        found = [c for c in self._in(directory) if name in (c.name, c.original)]
        exact = [conflict for conflict in found if conflict.name == name]
        if len(exact or found) > 1:
            names = ", ".join(repr(os.fsdecode(conflict.name)) for conflict in found)
            raise Invalid(f"there are several conflict copies, name one of them: {names}")
        if not found:
            raise NotFound(f"{os.fsdecode(name)!r} is no conflict copy and has none")
        return (exact or found)[0]

    def _in(self, directory: InodeId) -> Iterator[Conflict]:
        after = (directory, b"")
        while page := self._namespace.conflicts(after, CONFLICTS_PAGE):
            for conflict in page:
                if conflict.directory != directory:
                    return
                yield conflict
            after = (page[-1].directory, page[-1].name)

    def _resolve(self, conflict: Conflict, keep: Keep) -> tuple[bytes, ...]:
        """Do it, in one step; returns the names that are left."""
        namespace = self._namespace
        directory, name, original = conflict.directory, conflict.name, conflict.original
        if keep == "mine":
            if namespace.get(conflict.inode).kind is FileKind.DIRECTORY:
                namespace.rmdir(directory, name)
            else:
                namespace.unlink(directory, name)
            return (original,)
        if keep == "theirs":
            try:
                mine = namespace.lookup(directory, original)
            except NotFound:
                mine = None
            theirs = namespace.get(conflict.inode)
            if mine is not None and (mine.kind is FileKind.DIRECTORY) != (
                theirs.kind is FileKind.DIRECTORY
            ):
                raise IsDirectory("a file and a directory: move one of them by hand")
            namespace.rename(directory, name, directory, original)
            return (original,)
        stem, _, rest = name.partition(CONFLICT_MARK)
        for number in range(1, CONFLICTS_PAGE):
            mark = KEPT_MARK if number == 1 else b" (%d from " % number
            try:
                namespace.rename(directory, name, directory, stem + mark + rest, no_replace=True)
            except Exists:
                continue
            return (original, stem + mark + rest)
        raise Exists("there are too many kept versions of this name already")


def _text(directory: bytes, name: bytes) -> str:
    return os.fsdecode(directory + b"/" + name if directory else name)


def _version(inode: Inode) -> dict[str, Any]:
    return {
        "kind": inode.kind.name.lower(),
        "size": inode.size,
        "mtime_ns": inode.mtime_ns,
        "inode": inode.inode,
    }
