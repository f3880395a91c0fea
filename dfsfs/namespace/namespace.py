"""The namespace of one node: what the vfs calls, and what the cluster exchanges.

A face: verbs live in `verbs` and `edits`, their short way in `quick`, reading in `reading`, batches
and snapshots in `feed`, the rules of the view in `liveness` and `slots`. It does not talk to peers,
knows no bytes of files but inline ones, and checks no permissions.

Invariants: derived columns agree with the rows after every commit (`check`); for each origin all
rows up to its have-vector are here or were overwritten, but for `gaps`; applying twice changes
nothing; the order in which batches of different origins arrive does not matter.
Sync: no method awaits, each is one SQLite transaction at most, hence atomic towards other tasks.
Subscribers are called after the commit, in order; they must not call verbs.
Durable: against the end of the process when a method returns, against power loss after
`Database.sync`.
"""

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import ROWS_BATCH_COUNT_MAX, SETTLED_S
from dfsfs.base.types import ContentRef, FileKind, InodeId, LinkId, Origin, Stamp
from dfsfs.base.units import US_PER_S
from dfsfs.crdt import HybridClock, dominates
from dfsfs.namespace import check as checking
from dfsfs.namespace.again import Again
from dfsfs.namespace.edits import Edits
from dfsfs.namespace.fallbacks import Fallbacks
from dfsfs.namespace.feed import count_rows, decode_batch, decode_page, read_batch, read_page
from dfsfs.namespace.gaps import Gaps
from dfsfs.namespace.local import LocalState, change_of
from dfsfs.namespace.purge import Judgement, Purge, judge
from dfsfs.namespace.quick import Quick
from dfsfs.namespace.reading import Reader
from dfsfs.namespace.rejoin import Rejoin
from dfsfs.namespace.rows import Row
from dfsfs.namespace.slots import rename_aliases
from dfsfs.namespace.types import (
    AttributeChanges,
    Batch,
    Change,
    Conflict,
    ContentsPage,
    Entry,
    Inode,
    Removed,
    SnapshotPage,
    Totals,
)
from dfsfs.namespace.update import join_rows
from dfsfs.namespace.verbs import Verbs
from dfsfs.namespace.whole import read_conflicts, read_contents
from dfsfs.namespace.working import Irregular, WorkingSet
from dfsfs.runtime import Bounds, Database


class Namespace:
    """This node's replica of all rows, and the tree they make."""

    def __init__(
        self,
        database: Database,
        *,
        origin: Origin,
        clock: HybridClock,
        node_name: Callable[[Origin], str],
    ) -> None:
        """Open the replica in `database`, which was made with `SCHEMA` and belongs to this object.

        `node_name` names writers in conflict names; it must say the same on every replica. Call
        `names_changed` when it begins to say something else.
        """
        self._database = database
        self._clock = clock
        self._node_name = node_name
        self.fallbacks = Fallbacks(database)
        self._irregular = Irregular(database)
        self._reader = Reader(database, self._irregular)
        self._local = LocalState(
            database,
            self._reader,
            self._irregular,
            origin=origin,
            clock=clock,
            node_name=node_name,
        )
        quick = Quick(database, self._local, self._reader, self._irregular)
        self._verbs = Verbs(self._local, self._reader, self._irregular, quick)
        self._edits = Edits(database, self._local, self._reader, self._irregular, quick)
        self._purge = Purge(database, self._reader)
        self._again = Again(database, self._reader, self._local, self._irregular)
        self.gaps = Gaps(database, clock, self.have, own=origin)
        self.rejoin = Rejoin(
            database, self._local, self._purge, self._again, self._working_set, self.gaps.sure
        )

    # -- reading ------------------------------------------------------------------------------

    def get(self, inode: InodeId) -> Inode:
        """The inode; nlink 0 if no live link shows it.

        Raises:
            NotFound: nothing is known of it here.
        """
        return self._reader.get(inode)

    def lookup(self, parent: InodeId, name: bytes) -> Inode:
        """The inode behind a name.

        Raises:
            NotFound: no such name, or no such parent. NotDirectory: the parent is something else.
        """
        return self._reader.lookup(parent, name)

    def list(self, directory: InodeId, after: bytes | None, limit: int) -> builtins.list[Entry]:
        """Up to `limit` entries with names greater than `after`, in byte order.

        Raises:
            NotFound, NotDirectory: as they say.
        """
        return self._reader.list(directory, after, limit)

    def names(self, directory: InodeId) -> builtins.list[tuple[bytes, InodeId, FileKind]]:
        """All names of a directory with inode and kind, in byte order.

        Raises:
            NotFound, NotDirectory: as they say.
        """
        return self._reader.names(directory)

    def copies_of(self, inode: InodeId) -> builtins.list[InodeId]:
        """The conflict copies of a file that are versions of it, not files of their own."""
        return self._reader.copies_of(inode)

    def following(self, inode: InodeId, limit: int) -> builtins.list[InodeId]:
        """Up to `limit` inodes behind one, when the tree is gone through in the order of names.

        What a directory has in it comes behind it. Without names in conflict.
        """
        return self._reader.following(inode, limit)

    def parent(self, directory: InodeId) -> InodeId:
        """The directory a directory is shown in; the root is its own.

        Raises:
            NotFound: it is not shown anywhere.
        """
        return self._reader.parent(directory)

    def path(self, inode: InodeId) -> bytes:
        """One path of an inode, without a slash in front; b"" for the root.

        Raises:
            NotFound: it is not shown anywhere.
        """
        return self._reader.path(inode)

    def has_children(self, directory: InodeId) -> bool:
        """Whether anything is shown in a directory."""
        return self._reader.has_children(directory)

    # -- verbs --------------------------------------------------------------------------------

    def create(
        self,
        parent: InodeId,
        name: bytes,
        *,
        kind: FileKind,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """Make an inode of any kind under a new name.

        Raises:
            Exists, NotDirectory, NameTooLong, Invalid: as they say.
            NotFound: the parent has been removed.
        """
        return self._verbs.create(
            parent, name, kind=kind, mode=mode, uid=uid, gid=gid, rdev=rdev, target=target
        )

    def link(self, inode: InodeId, parent: InodeId, name: bytes) -> Inode:
        """Give a file another name.

        Raises:
            Exists, NotDirectory, NameTooLong, Invalid, TooManyLinks: as they say.
            NotPermitted: it is a directory. NotFound: it, or the parent, has been removed.
        """
        return self._verbs.link(inode, parent, name)

    def unlink(self, parent: InodeId, name: bytes) -> Removed:
        """Remove a name that is not a directory's.

        Raises:
            NotFound, NotDirectory, NameTooLong: as they say. IsDirectory: use `rmdir`.
        """
        return self._verbs.unlink(parent, name)

    def rmdir(self, parent: InodeId, name: bytes) -> Removed:
        """Remove an empty directory.

        Raises:
            NotFound, NotDirectory, NotEmpty, NameTooLong: as they say.
        """
        return self._verbs.rmdir(parent, name)

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        *,
        exchange: bool = False,
        no_replace: bool = False,
    ) -> Removed | None:
        """Move a name, maybe over another, which is returned then.

        Raises:
            NotFound, NotDirectory, IsDirectory, NotEmpty, NameTooLong: as they say.
            Exists: `no_replace`, and the new name is taken.
            Invalid: a directory would move into itself, or both flags are given.
        """
        return self._verbs.rename(
            parent, name, new_parent, new_name, exchange=exchange, no_replace=no_replace
        )

    def write(
        self,
        inode: InodeId,
        content: ContentRef,
        *,
        mtime_ns: int,
        seen: ContentRef | None = None,
    ) -> Inode:
        """Give a file other bytes; they supersede every sibling visible here.

        Unless `seen`, of which they were made, is not what the file has now: then they supersede
        that alone, and what came meanwhile stays as a conflict copy.

        Raises:
            NotFound, IsDirectory, Invalid: as they say.
        """
        return self._edits.write(inode, content, mtime_ns=mtime_ns, seen=seen)

    def revive(self, inode: InodeId, content: ContentRef, *, mtime_ns: int) -> InodeId:
        """Give a file bytes that was removed by who had not seen them: so it lives again.

        Returns the inode that has them: another one if this was forgotten elsewhere.
        """
        self._edits.revive(inode, content, mtime_ns=mtime_ns)
        if not self._purge.is_dying(inode):
            return inode
        return self._again.remove(inode, self.have(), make=True)

    def set_attributes(self, inode: InodeId, changes: AttributeChanges) -> Inode:
        """Set the attributes that are not None.

        Raises:
            NotFound: nothing is known of the inode.
        """
        return self._edits.set_attributes(inode, changes)

    def own_root(self, uid: int, gid: int, now_ns: int) -> None:
        """Who founds a network owns its root, made now; nothing if anything is known already."""
        if not self.have():
            self._edits.own_root(uid, gid, now_ns)

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        """The value of an extended attribute.

        Raises:
            NotFound, NoAttribute: as they say.
        """
        return self._edits.get_xattr(inode, name)

    def list_xattrs(self, inode: InodeId) -> builtins.list[bytes]:
        """The names of all extended attributes, in byte order.

        Raises:
            NotFound: nothing is known of the inode.
        """
        return self._edits.list_xattrs(inode)

    def set_xattr(
        self,
        inode: InodeId,
        name: bytes,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
    ) -> None:
        """Set an extended attribute; `create` and `replace` as in setxattr(2).

        Raises:
            Exists, NoAttribute, Invalid, NotFound: as they say.
            Full: beyond `limits.XATTR_INODE_BYTES_MAX`.
        """
        self._edits.set_xattr(inode, name, value, create=create, replace=replace)

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            NotFound, NoAttribute: as they say.
        """
        self._edits.remove_xattr(inode, name)

    def touch_atime(self, inode: InodeId, atime_ns: int) -> None:
        """Note a read; on this node only, never replicated."""
        self._edits.touch_atime(inode, atime_ns)

    def hold_orphan(self, inode: InodeId) -> None:
        """An inode without links is open here: `contents` lists it until `drop_orphan`."""
        self._edits.hold_orphan(inode)

    def drop_orphan(self, inode: InodeId) -> None:
        """The last close of an inode without links: what was private to this node is forgotten."""
        self._edits.drop_orphan(inode)

    # -- exchange -----------------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """Whose verbs these are."""
        return self._local.origin

    @property
    def position(self) -> int:
        """Stamp time of this origin's newest transaction; 0 before the first."""
        return self._local.position

    def have(self) -> dict[Origin, int]:
        """Of each origin the stamp time up to which everything has been joined."""
        have = dict(self._database.rows("SELECT origin, time FROM have"))
        if self._local.position:
            have[self._local.origin] = self._local.position
        return have

    def held(self, origin: Origin) -> int:
        """Of one origin the stamp time up to which everything has been joined; 0: nothing."""
        if origin == self._local.origin:
            return self._local.position
        return self._database.value("SELECT time FROM have WHERE origin=?", (origin,)) or 0

    def feed(self, origin: Origin, after: int, *, bytes_max: int) -> Batch | None:
        """The next whole transactions of an origin, oldest first; None if nothing newer is here.

        A batch has about `bytes_max` bytes, or one transaction that is larger.
        """
        have = self.held(origin)
        if have <= after:
            return None
        return read_batch(self._database, origin, after, have, bytes_max=bytes_max)

    def rows_after(self, positions: Mapping[Origin, int], count_max: int) -> int:
        """How many rows whoever holds `positions` lacks; not counted beyond `count_max`."""
        count = 0
        for origin in self.have():
            if count < count_max:
                after = positions.get(origin, 0)
                count += count_rows(self._database, origin, after, count_max - count)
        return count

    def apply(self, batches: Sequence[Batch]) -> builtins.list[Change]:
        """Join what peers sent, in one transaction; at most one change comes of it.

        A batch that is known already, or that follows a position this replica has not reached, is
        skipped: the caller sees in `have` what to pull.

        Atomic: of all batches or, if it raises, of none.

        Raises:
            RemoteProtocolError: something is malformed. Refused: a stamp too far in the future.
        """
        decoded = []
        for batch in batches:
            rows = decode_batch(batch)
            self._clock.check(batch.upto)
            decoded.append((batch, rows))
        work = self._working_set()
        newest = Stamp(0, Origin(0))
        with self._local.undoing(), self._database.transaction():
            joined: builtins.list[Row] = []
            for batch, rows in decoded:
                have = known = self.held(batch.origin)
                if self.gaps.refilling:
                    known = self.gaps.known(batch.origin, have)
                if batch.origin == self.origin or batch.after > have or batch.upto <= known:
                    continue
                # What is held already may have been forgotten here: it must not come back.
                joined += [row for row in rows if row.stamp.time > known]
                newest = max(newest, Stamp(batch.upto, batch.origin))
                position = (batch.origin, max(have, batch.upto))
                self._database.execute("INSERT OR REPLACE INTO have VALUES(?,?)", position)
            if not newest.time:
                return []
            self._clock.observe(newest.time)
            join_rows(work, joined)
            self._local.save()
        self.gaps.settle()
        change = change_of(work, self._reader, newest, local=False)
        self._local.publish(change)
        if self._purge.dying_possible:
            self._make_again(filter(self._purge.is_dying, work.inodes))
        return [change]

    def snapshot(self, cursor: bytes | None, *, bytes_max: int) -> SnapshotPage:
        """Rows of all origins by kind and key.

        Take `have` before the first page: what changes while pages are read comes again with the
        tail.

        Raises:
            RemoteProtocolError: the cursor is none of ours.
        """
        return read_page(self._database, cursor, bytes_max=bytes_max)

    def snapshot_for_peer(self, cursor: bytes | None, *, bytes_max: int) -> SnapshotPage:
        """The same for who is below the floor: without what is dying.

        Raises:
            RemoteProtocolError: the cursor is none of ours.
            Unavailable: begin anew; this replica has just seen something revived, or is not whole.
        """
        if not self.is_whole:
            raise Unavailable("this node is catching up itself")
        if cursor is None:
            self._again.uncut(self._purge.is_dying)  # a crash came between
        try:
            return read_page(
                self._database, cursor, bytes_max=bytes_max, leave_out=self._purge.leaves_out
            )
        except Unavailable:
            self._make_again(self._purge.come_back())
            raise

    def load(self, page: SnapshotPage) -> None:
        """Join a page of a peer's snapshot. The tree is complete after `finish_load`.

        Raises:
            RemoteProtocolError: something is malformed. Refused: a stamp too far in the future.
        """
        rows = decode_page(page)
        if not rows:
            return
        newest = max(row.stamp.time for row in rows)
        self._clock.check(newest)
        self._clock.observe(newest)
        self._local.update(self._working_set(), lambda work: join_rows(work, rows))

    def finish_load(self, have: Mapping[Origin, int]) -> None:
        """All pages are loaded: this replica holds what the peer had before the first."""
        with self._local.undoing(), self._database.transaction():
            for origin, time in sorted(have.items()):
                if origin != self.origin and time > self.held(origin):
                    self._clock.check(time)
                    self._clock.observe(time)
                    self._database.execute(
                        "INSERT OR REPLACE INTO have VALUES(?,?)", (origin, time)
                    )
        self.gaps.hold(have)

    # -- forgetting ---------------------------------------------------------------------------

    @property
    def floor(self) -> dict[Origin, int]:
        """Whoever holds less than this takes a snapshot of this replica, not its feed."""
        return dict(self._purge.floor)

    @property
    def is_whole(self) -> bool:
        """Whether a snapshot, if one was ever taken, is complete, and so is what followed it.

        If not this replica must not give rows away.
        """
        have = self.have()
        return dominates(have, self._purge.floor) and dominates(have, self._purge.reach)

    def _make_again(self, inodes: Iterable[InodeId]) -> None:
        """What was judged dead, and came back by rows of somebody who did not know."""
        self._again.uncut(self._purge.is_dying)
        live = [inode for inode in inodes if self._again.is_live(inode)]
        for inode in self._again.from_below(live):
            self._again.remove(inode, self.have(), make=True)

    def begin_round(self) -> None:
        """Commit nothing under a new stamp, which only who hears from here from now on can hold."""
        self._local.tick()

    def go_on_without(self) -> None:
        """What followed a snapshot cannot be had now: be whole with what the floor says."""
        self._purge.reach.clear()

    def judge(self) -> Judgement:
        """What is dead, and named by nothing that lives. Reads everything; safe in a thread."""
        return judge(self._database)

    def raise_floor(self, judgement: Judgement) -> Iterator[None]:
        """The floor rises to the cut and what was judged there is dying: a transaction a step.

        Every member that counts holds the cut.
        """
        self._make_again(self._purge.come_back())  # a crash came between
        for start in range(0, len(judgement.inodes), ROWS_BATCH_COUNT_MAX):
            with self._database.transaction():
                self._purge.mark(judgement.inodes[start : start + ROWS_BATCH_COUNT_MAX])
            yield
        self._make_again(())  # a cycle that came since it was judged
        with self._database.transaction():
            self._purge.raise_floor(judgement.cut)

    def forget(self, inodes: Sequence[int], cut: Mapping[Origin, int]) -> int:
        """Delete all rows of those that are dead and as they were at `cut`; how many that were."""
        with self._database.transaction():
            return self._purge.forget(map(InodeId, inodes), cut)

    def forget_strays(self, links: Sequence[int], cut: Mapping[Origin, int]) -> None:
        """Delete tombstones of links that are not here any more, if they were there at `cut`."""
        with self._database.transaction():
            self._purge.forget_strays(map(LinkId, links), cut)

    @property
    def version(self) -> int:
        """Changes when a snapshot that is being read has become worth nothing."""
        return self._purge.version

    def finish_rejoin(self) -> Iterator[builtins.list[Change]]:
        """All pages of a peer are in `rejoin`: join them. A transaction a step.

        Each step yields what came from elsewhere with it.

        When this has ended the replica holds all that the peer held before the first page, and has
        forgotten what the peer had, but for what somebody changed whom the peer had not heard. It
        is whole when it holds what the peer held after the last.
        """
        yield from self.rejoin.apply()
        self.finish_load(self.rejoin.have)
        self._make_again(self._purge.come_back())
        self.rejoin.clear()

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Call back after every commit, local or applied, in order."""
        self._local.subscribe(callback)

    def names_changed(self) -> None:
        """`node_name` says something else now: name all conflict copies again."""
        work = self._working_set()
        with self._local.undoing(), self._database.transaction():
            rename_aliases(work)
        if work.entries:
            stamp = Stamp(self._local.position, self.origin)
            self._local.publish(change_of(work, self._reader, stamp, local=False))

    def _working_set(self) -> WorkingSet:
        work = WorkingSet(self._database, self._irregular, self._node_name)
        work.settled_until = self._clock.last - int(SETTLED_S * US_PER_S)
        return work

    # -- whole tree ---------------------------------------------------------------------------

    def writer_name(self, origin: Origin) -> str:
        """The name of the node that wrote as `origin`, as conflict names have it."""
        return self._node_name(origin)

    def conflicts(self, after: tuple[InodeId, bytes] | None, limit: int) -> builtins.list[Conflict]:
        """Up to `limit` conflict copies after `after`, in order of (directory, name).

        Those the view makes up, and files that somebody has since left under such a name.
        """
        return read_conflicts(self._database, after, limit)

    def contents(
        self, after: InodeId | None, limit: int, *, fallbacks: bool = False
    ) -> ContentsPage:
        """Every content that live or held inodes refer to, siblings included.

        `fallbacks`: and what they had before, as long as that may be needed.
        Of the next `limit` inodes greater than `after`, in order.
        """
        return read_contents(self._database, after, limit, fallbacks=fallbacks)

    def totals(self) -> Totals:
        """What is shown, counted."""
        irregular = self._irregular
        return Totals(irregular.files, irregular.directories, irregular.bytes)

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        parts = self._database.bounded("namespace"), self._reader.bounded(), self.gaps.bounded()
        return {name: filled for part in parts for name, filled in part.items()}

    def check(self) -> builtins.list[str]:
        """Every violated invariant, as a sentence; slow, reads everything."""
        return checking.check(self._database, self._irregular, self._node_name)
