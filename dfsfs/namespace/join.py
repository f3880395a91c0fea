"""Join replicated rows with those that are here, and note what that touches.

A row that is older than ours changes nothing. Joining never fails on order or duplicates; it
refuses a row that contradicts an immutable part of what is known. The view is stale afterwards,
until `liveness` and `slots` have settled it in the same transaction.
"""

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.types import ZERO_STAMP, InodeId, Stamp
from dfsfs.namespace.fallbacks import note_written
from dfsfs.namespace.rows import (
    AttributeRow,
    ContentRow,
    Field,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    encode_vector,
    unpack_owner,
)
from dfsfs.namespace.working import UNKNOWN_KIND, InodeState, WorkingSet


def join_row(work: WorkingSet, row: Row) -> None:
    """Keep the greater of `row` and what is here."""
    match row:
        case LinkRow():
            _join_link(work, row)
        case NodeRow():
            _join_node(work, row)
        case ContentRow():
            _join_content(work, row)
        case AttributeRow():
            _join_attribute(work, row)
        case TombstoneRow():
            _join_tombstone(work, row)
        case TouchRow():
            _join_touch(work, row)


def _join_node(work: WorkingSet, row: NodeRow) -> None:
    state = work.inode(row.inode)
    if state.kind != UNKNOWN_KIND:
        if state.kind != row.kind:
            raise RemoteProtocolError(f"inode {row.inode} of two kinds")
        if row.stamp <= (state.time, state.origin):
            return
    state.kind, state.mode, state.uid, state.gid = row.kind, row.mode, row.uid, row.gid
    state.rdev, state.target = row.rdev, row.target
    state.time, state.origin = row.stamp
    _note_change(state, row.stamp)
    work.arrived[row.inode] = None
    work.times[row.inode] = None


def _join_link(work: WorkingSet, row: LinkRow) -> None:
    state = work.link(row.link)
    if state is None:
        state = work.new_link(row.link)
        state.inode = row.inode
    elif state.inode != row.inode:
        raise RemoteProtocolError(f"link {row.link} of two inodes")
    elif row.stamp <= (state.time, state.origin):
        return
    state.parent, state.name, state.previous = row.parent, row.name, row.previous
    state.merge_class = row.merge_class
    state.time, state.origin = row.stamp
    work.touched[row.link] = None
    _note_change(work.inode(row.inode), row.stamp)


def _join_tombstone(work: WorkingSet, row: TombstoneRow) -> None:
    found = work.database.row(
        "SELECT seen_time, seen_origin, time, origin FROM tombstone WHERE link=?", (row.link,)
    )
    if found is not None and (row.seen, row.stamp) <= ((found[0], found[1]), (found[2], found[3])):
        return
    vector = None if row.vector is None else encode_vector(row.vector)
    work.database.execute(
        "INSERT OR REPLACE INTO tombstone(link, seen_time, seen_origin, vector, time, origin)"
        " VALUES(?,?,?,?,?,?)",
        (row.link, *row.seen, vector, *row.stamp),
    )
    state = work.link(row.link)
    if state is not None:
        state.seen = row.seen
        work.touched[row.link] = None


def _join_content(work: WorkingSet, row: ContentRow) -> None:
    writer = row.stamp.origin
    time = work.database.value(
        "SELECT time FROM content WHERE inode=? AND writer=?", (row.inode, writer)
    )
    if time is not None and row.stamp.time <= time:
        return
    content = row.content
    if row.stamp.time > work.settled_until:
        note_written(work.database, row.inode, row.stamp, content)
    work.database.execute(
        "INSERT OR REPLACE INTO content(inode, writer, time, size, root, inline, shift, stored,"
        " mtime_ns, vector, dot_time, dot_origin) VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            row.inode, writer, row.stamp.time, content.size, content.root, content.inline,
            content.shift, content.stored, row.mtime_ns, encode_vector(row.vector), *row.dot,
        ),
    )  # fmt: skip
    work.written[row.inode] = None
    work.times[row.inode] = None
    _note_change(work.inode(row.inode), row.stamp)


def _join_attribute(work: WorkingSet, row: AttributeRow) -> None:
    found = work.database.row(
        "SELECT time, origin FROM attribute WHERE inode=? AND field=?", (row.inode, row.field)
    )
    if found is not None and row.stamp <= found:
        return
    work.database.execute(
        "INSERT OR REPLACE INTO attribute(inode, field, value, time, origin) VALUES(?,?,?,?,?)",
        (row.inode, row.field, row.value, *row.stamp),
    )
    state = work.inode(row.inode)
    _note_change(state, row.stamp)
    value = row.value
    if row.field == Field.MODE:
        assert isinstance(value, int)
        state.set_mode = value
    elif row.field == Field.OWNER:
        assert isinstance(value, bytes)
        state.set_uid, state.set_gid = unpack_owner(value)
    elif row.field == Field.ATIME:
        assert isinstance(value, int)
        state.atime_ns = value
    elif row.field == Field.MTIME:
        work.times[row.inode] = None


def _join_touch(work: WorkingSet, row: TouchRow) -> None:
    state = work.inode(row.inode)
    if row.stamp <= (state.touch_time, state.touch_origin):
        return
    state.touch_time, state.touch_origin = row.stamp
    _note_change(state, row.stamp)
    work.times[row.inode] = None


def _note_change(state: InodeState, stamp: Stamp) -> None:
    if stamp.time > state.changed:
        state.changed = stamp.time


def birth_ns(state: InodeState) -> int:
    """When the inode was made."""
    return state.time * 1000


def settle_times(work: WorkingSet) -> None:
    """Bring the mtime of everything in `work.times` up to date: the newest of what sets it."""
    for inode in work.times:
        state = work.inode(inode)
        newest = (Stamp(state.time, state.origin), birth_ns(state))
        if state.is_directory:
            touch = Stamp(state.touch_time, state.touch_origin)
            newest = max(newest, (touch, touch.time * 1000))
        elif state.writer is not None:
            row = work.database.row(
                "SELECT dot_time, dot_origin, mtime_ns FROM content WHERE inode=? AND writer=?",
                (inode, state.writer),
            )
            assert row is not None
            newest = max(newest, (Stamp(row[0], row[1]), row[2]))
        newest = max(newest, _explicit_mtime(work, inode))
        state.mtime_ns = newest[1]


def _explicit_mtime(work: WorkingSet, inode: InodeId) -> tuple[Stamp, int]:
    row = work.database.row(
        "SELECT time, origin, value FROM attribute WHERE inode=? AND field=?",
        (inode, int(Field.MTIME)),
    )
    return (ZERO_STAMP, 0) if row is None else (Stamp(row[0], row[1]), row[2])
