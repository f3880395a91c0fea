"""Transactions of this node: stamps, counters, the position, and telling the subscribers.

A local transaction joins its rows like any other, under one stamp, or two if pins came first; both
travel in one batch. Commit writes the position and counters in the same SQLite transaction, so a
crash leaves either all of it or nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from dfsfs.base.types import ORIGIN_SHIFT, ContentRef, FileKind, InodeId, Origin, Stamp
from dfsfs.crdt import HybridClock
from dfsfs.namespace.reading import Reader
from dfsfs.namespace.rows import Row, encode_rows
from dfsfs.namespace.types import Batch, Change
from dfsfs.namespace.update import join_rows
from dfsfs.namespace.working import Irregular, WorkingSet, pack_total
from dfsfs.runtime import Database

_NOTHING: Mapping[InodeId, ContentRef] = {}


class Transaction:
    """A change under way: join rows in steps, each seeing the view the step before left."""

    def __init__(self, work: WorkingSet, clock: HybridClock, origin: Origin) -> None:
        self.work = work
        self.rows: list[Row] = []
        self._clock = clock
        self._origin = origin

    def stamp(self) -> Stamp:
        """A new stamp of this node."""
        return Stamp(self._clock.tick(), self._origin)

    def join(self, rows: list[Row]) -> None:
        """Join rows and settle the view."""
        self.rows += rows
        join_rows(self.work, rows)


class LocalState:
    """What this node alone decides: its origin, position and counter. Owned by the namespace."""

    def __init__(
        self,
        database: Database,
        reader: Reader,
        irregular: Irregular,
        *,
        origin: Origin,
        clock: HybridClock,
        node_name: Callable[[Origin], str],
    ) -> None:
        self.origin = origin
        self.clock = clock
        self._database = database
        self._reader = reader
        self._irregular = irregular
        self._node_name = node_name
        self._subscribers: list[Callable[[Change], None]] = []
        found, position, counter = database.row(  # type: ignore[misc]  # the table has one line
            "SELECT origin, position, counter FROM state"
        )
        if found != origin:  # another incarnation: what the former one wrote is somebody else's now
            with database.transaction():
                if found and position:
                    database.execute("INSERT OR REPLACE INTO have VALUES(?,?)", (found, position))
                position = database.value("SELECT time FROM have WHERE origin=?", (origin,)) or 0
                counter = 0
                database.execute("DELETE FROM have WHERE origin=?", (origin,))
                database.execute(
                    "UPDATE state SET origin=?, position=?, counter=0", (origin, position)
                )
        self.position: int = position
        self._counter: int = counter
        self._before: int = position  # the position before the newest transaction
        clock.observe(max(position, database.value("SELECT max(time) FROM have") or 0))

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Call back after every commit."""
        self._subscribers.append(callback)

    def name_of(self, origin: Origin) -> str:
        """What conflict names call a writer."""
        return self._node_name(origin)

    def new_id(self) -> InodeId:
        """A number no inode and no link ever had."""
        self._counter += 1
        return InodeId(self.origin << ORIGIN_SHIFT | self._counter)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A verb of this node; without rows nothing happens."""
        work = WorkingSet(self._database, self._irregular, self._node_name)
        transaction = Transaction(work, self.clock, self.origin)
        with self.undoing(), self._database.transaction():
            yield transaction
            if not transaction.rows:
                return
            before, last = self.position, transaction.rows[-1].stamp
            self.position = last.time
            self.save()
        batch = Batch(self.origin, before, last.time, encode_rows(transaction.rows))
        self.publish(change_of(work, self._reader, last, local=True, batch=batch))

    def update(self, work: WorkingSet, change: Callable[[WorkingSet], None]) -> Change:
        """A change of the replica that is nobody's verb: rows of others, or forgetting."""
        with self.undoing(), self._database.transaction():
            change(work)
            self.save()
        stamp = Stamp(self.position, self.origin)
        made = change_of(work, self._reader, stamp, local=False)
        self.publish(made)
        return made

    def tick(self) -> None:
        """A transaction without rows: a position that nobody can hold yet."""
        with self.undoing(), self._database.transaction():
            self.advance(Stamp(self.clock.tick(), self.origin))
        self.announce(Stamp(self.position, self.origin), [])

    def advance(self, stamp: Stamp) -> None:
        """A transaction of one stamp is about to commit."""
        self._before = self.position
        self.position = stamp.time
        self.save()

    def announce(
        self,
        stamp: Stamp,
        rows: list[Row],
        *,
        entries: tuple[tuple[InodeId, bytes], ...] = (),
        attributes: tuple[InodeId, ...] = (),
        contents: Mapping[InodeId, ContentRef] = _NOTHING,
    ) -> None:
        """Tell everybody about the transaction that `advance` was called in."""
        if self._subscribers:
            batch = Batch(self.origin, self._before, stamp.time, encode_rows(rows))
            self.publish(
                Change(
                    stamp=stamp,
                    local=True,
                    entries=entries,
                    attributes=attributes,
                    contents=contents,
                    batch=batch,
                )
            )

    @contextlib.contextmanager
    def undoing(self) -> Iterator[None]:
        """Around a database transaction: memory follows a rollback."""
        position, counter = self.position, self._counter
        try:
            yield
        except BaseException:
            self.position, self._counter = position, counter
            self._irregular.reload()
            self._reader.forget_all()
            raise

    def save(self) -> None:
        """Store position, counter and totals; part of every transaction that changes them."""
        irregular = self._irregular
        self._database.execute(
            "UPDATE state SET position=?, counter=?, files=?, directories=?, bytes=?",
            (
                self.position, self._counter, irregular.files, irregular.directories,
                pack_total(irregular.bytes),
            ),
        )  # fmt: skip

    def publish(self, change: Change) -> None:
        """Tell everybody what was committed."""
        for callback in self._subscribers:
            callback(change)


def change_of(
    work: WorkingSet, reader: Reader, stamp: Stamp, *, local: bool, batch: Batch | None = None
) -> Change:
    """What an update changed in the view, as committed; empties the cache accordingly."""
    for inode in list(work.attributes):
        line = work.inodes.get(inode)
        if line is not None and line.siblings > 1:
            work.attributes.update(dict.fromkeys(reader.copies_of(inode)))
    changed = sorted(work.attributes)
    reader.forget(changed)
    contents: dict[InodeId, ContentRef] = {}
    for inode in sorted(work.contents):
        line = work.inodes.get(inode)
        if line is None or line.kind == FileKind.REGULAR:
            contents[inode] = reader.get(inode).content
    return Change(
        stamp=stamp,
        local=local,
        entries=tuple(sorted(work.entries)),
        attributes=tuple(changed),
        contents=contents,
        directories=tuple(sorted(work.directories)),
        batch=batch,
    )
