"""What an operator may ask of a node: the same calls as the library API, by key.

A key is a file's path below the root of the filesystem. As `str` it is turned into bytes as Python
does for file names (`os.fsencode`); a leading slash and empty components are ignored, and `..` is
refused, so a key never means something outside.
"""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dfsfs.base.types import Buffer, FileKind

Key = str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One line of `dfs ls`: a name and what lstat(2) would show."""

    name: bytes
    kind: FileKind
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes = b""


class Operator(Protocol):
    """A running node, as commands and library users see it. Safe for concurrent calls."""

    async def put(self, key: Key, source: AsyncIterable[Buffer]) -> None:
        """Store what `source` yields as the file `key`; missing parent directories are made.

        Atomic: readers see the old content or the new, whole; on an error or cancellation the old.
        Durable: as after close(2) on the mount. Memory is bounded for any size.

        Raises:
            IsDirectory: the key names a directory. NotDirectory: a parent is none.
        """
        ...

    def get(self, key: Key) -> AbstractAsyncContextManager[AsyncIterable[Buffer]]:
        """The content of a file as it is at the start, piece by piece, each verified.

        Raises:
            NotFound: no such file. IsDirectory: a directory.
            Unavailable: nobody who has its blocks answers.
        """
        ...

    async def stat(self, key: Key) -> Listing:
        """One entry, symlinks not followed; `name` is the last component."""
        ...

    async def list(self, key: Key, after: bytes | None, limit: int) -> list[Listing]:
        """Up to `limit` entries of a directory with names greater than `after`, by name in bytes.

        Raises:
            NotFound: no such directory. NotDirectory: something else.
        """
        ...

    async def remove(self, key: Key) -> None:
        """Remove a file's name, or an empty directory.

        Raises:
            NotFound: no such name. NotEmpty: a directory with entries.
        """
        ...

    def status(self) -> dict[str, Any]:
        """This node and what it knows of the network, in plain values: they become JSON.

        `node`: id, name, version, addresses, insecure, pid
        `network`: id, digest, replicas, write_concern, members
        `peers`: list of id, name, addresses, state (alive, suspect, dead), round_trip_s, mount,
        connected, queued_bytes, and since the start sent_bytes, received_bytes and calls
        `storage`: block_count, block_bytes, disk_bytes, capacity_bytes
        `files`: files, directories, bytes, names_lost (why the names are not here; "": they are)
        `replication`: of the network, as its nodes found when they last looked at every block:
        queued_copies (about to be sent from here), missing_copies and missing_bytes, single_blocks
        (on one node only), on_two_nodes and at_factor (true or false), remaining_s (until copied;
        null: not known yet), away, absent and full (names), draining, lost_blocks (block -> paths),
        short_writes (closes that reached fewer nodes than the write concern), short_files (path and
        nodes of those that still are on too few; short_count: of all, short_why), looks,
        looked_s_ago (age of the figures of this node), restored (blocks, bytes and seconds of the
        last time that copies were missing). on_two_nodes and at_factor are null before the first
        look
        `coherence`: policy, state (whole, majority, minority), mounts_connected, mounts_known,
        read_only, changes (of the mounts connected), visibility, joining, and counts of leases
        `bounded`: every queue and cache (see doc/operations.md), as [now, most]; 0: bounded by
        what it belongs to
        `calls`: of the kernel, by verb: total_s, counts by bucket of `runtime.BUCKETS_S`, failures
        `traffic`: blocks and rows sent, fetched and mended since the start
        `flushes`: asked (fsync and the like), done (they share them)
        `workers`: list of name, doing, steps, failures, last_failure, rest_s, since_step_s (null:
        no step yet), and figures of their own
        """
        ...

    def upkeep(self, task: str, arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Start a task; reports in plain values, the last one with `result`.

        `gc` (dry_run): what was unreferenced and removed. `scrub` (key, or none for all blocks
        here): blocks good, mended, lost, absent. `fsck` (repair): reports have `finding` and
        `mended`, the result counts them. `drain` (stay): `drained`, `nobody` or `stays`. `peers`
        (name, back): removes a member or takes it back.

        `conflicts`: reports have `conflict` (path, original, writer, time_us, mine, theirs);
        the result counts them. `resolve` (key, keep: mine, theirs or both): `kept`, the names left.

        Raises:
            NotFound: no such member or file. NotSupported: no such task.
        """
        ...

    async def info(self, key: Key) -> dict[str, Any]:
        """Where a file is.

        key, path, size, blocks, stored_bytes, inline, holders (list of id, name, blocks), and
        replicas: how many nodes in reach hold all of it.
        """
        ...
