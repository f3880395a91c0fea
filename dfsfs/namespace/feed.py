"""What peers are sent, and what they sent: batches by origin, snapshots by table.

A batch is all rows of one origin within a range of its stamps that are still current here; rows
that were overwritten since are not sent, because whoever needs the newer ones gets them from their
own origin's batches. Whole transactions only.
Applying is idempotent, refuses gaps silently (the caller pulls), and checks everything first.
"""

from collections.abc import Callable, Iterator
from typing import Any

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import ROWS_BATCH_COUNT_MAX
from dfsfs.base.types import ORIGIN_MAX, ContentRef, Origin, Stamp
from dfsfs.namespace.rows import (
    AttributeRow,
    ContentRow,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    decode_rows,
    decode_snapshot,
    decode_vector,
    encode_rows,
    encode_snapshot,
)
from dfsfs.namespace.types import Batch, SnapshotPage
from dfsfs.runtime import Database

STAMP_TIME_MAX = (1 << 63) - 1  # as SQLite stores it
_ROW_BYTES = 64  # of a row besides names, targets, inline bytes and values, roughly
_SNAPSHOT_LINES = 256  # read at a time
_LINES_MIN = 16  # of one table, for the smallest batch


def _node(line: tuple[Any, ...]) -> Row:
    time, origin, inode, kind, mode, uid, gid, rdev, target = line
    return NodeRow(Stamp(time, origin), inode, kind, mode, uid, gid, rdev, target)


def _touch(line: tuple[Any, ...]) -> Row:
    return TouchRow(Stamp(line[0], line[1]), line[2])


def _link(line: tuple[Any, ...]) -> Row:
    time, origin, *rest = line
    return LinkRow(Stamp(time, origin), *rest)


def _tombstone(line: tuple[Any, ...]) -> Row:
    time, origin, link, seen_time, seen_origin, vector = line
    seen = Stamp(seen_time, seen_origin)
    return TombstoneRow(
        Stamp(time, origin), link, seen, None if vector is None else decode_vector(vector)
    )


def _content(line: tuple[Any, ...]) -> Row:
    (
        time, writer, inode, size, root, inline, shift, stored, mtime_ns, vector, dot_time,
        dot_origin,
    ) = line  # fmt: skip
    return ContentRow(
        Stamp(time, writer),
        inode,
        ContentRef(size, root, inline, shift, stored),
        mtime_ns,
        decode_vector(vector),
        Stamp(dot_time, dot_origin),
    )


def _attribute(line: tuple[Any, ...]) -> Row:
    time, origin, inode, field, value = line
    return AttributeRow(Stamp(time, origin), inode, field, value)


class _Source:
    """How rows of one kind are read: by stamp for batches, by key for snapshots."""

    def __init__(
        self,
        table: str,
        columns: str,
        stamp: tuple[str, str],
        key: tuple[str, ...],
        read: Callable[[tuple[Any, ...]], Row],
    ) -> None:
        time, origin = stamp
        keys = ", ".join(key)
        # Lines without this row have origin 0. The condition must not be one on the time: of two
        # such, SQLite may search the index by the useless one.
        select = f"SELECT {time}, {origin}, {columns} FROM {table} WHERE {origin}>0"
        self.by_stamp = f"{select} AND {origin}=? AND {time}>? ORDER BY {time} LIMIT ?"
        self.count = (
            f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {origin}=? AND {time}>? LIMIT ?)"
        )
        self.first = f"{select} ORDER BY {keys} LIMIT ?"
        self.next = f"{select} AND ({keys})>({','.join('?' * len(key))}) ORDER BY {keys} LIMIT ?"
        names = ("time", "origin", *columns.split(", "))
        lookup = {time: 0, origin: 1} | {name: at for at, name in enumerate(names) if at > 1}
        self.key_at = [lookup[name] for name in key]
        self.read = read


# Nodes first, then what refers to them: a replica filled up page by page has less to wait for.
_SOURCES = (
    _Source(
        "inode",
        "inode, kind, mode, uid, gid, rdev, target",
        ("time", "origin"),
        ("inode",),
        _node,
    ),
    _Source(
        "content",
        "inode, size, root, inline, shift, stored, mtime_ns, vector, dot_time, dot_origin",
        ("time", "writer"),
        ("inode", "writer"),
        _content,
    ),
    _Source(
        "link",
        "link, inode, parent, name, previous, class",
        ("time", "origin"),
        ("link",),
        _link,
    ),
    _Source(
        "tombstone",
        "link, seen_time, seen_origin, vector",
        ("time", "origin"),
        ("link",),
        _tombstone,
    ),
    _Source(
        "attribute",
        "inode, field, value",
        ("time", "origin"),
        ("inode", "field"),
        _attribute,
    ),
    _Source("inode", "inode", ("touch_time", "touch_origin"), ("inode",), _touch),
)


def read_batch(
    database: Database, origin: Origin, after: int, have: int, *, bytes_max: int
) -> Batch:
    """The next whole transactions of `origin` after `after`, of at most all up to `have`."""
    # What is read and does not fit is read again for the next batch, so no more than may fit.
    limit = min(ROWS_BATCH_COUNT_MAX, max(_LINES_MIN, bytes_max // (2 * _ROW_BYTES)))
    rows: list[Row] = []
    complete = have  # up to here `rows` holds everything
    for source in _SOURCES:
        lines = database.rows(source.by_stamp, (origin, after, limit))
        rows += map(source.read, lines)
        if len(lines) == limit:  # its last transaction may go on
            complete = min(complete, lines[-1][0] - 1)
    rows.sort(key=lambda row: row.stamp.time)
    if complete <= after or (rows and rows[0].stamp.time > complete):
        complete = rows[0].stamp.time  # one transaction larger than a batch: all of it, by itself
        rows = [
            row
            for source in _SOURCES
            for row in _one_transaction(database, source, origin, complete)
        ]
        return Batch(origin, after, complete, encode_rows(rows))
    taken: list[Row] = []
    size = 0
    upto = complete
    for at, row in enumerate(rows):
        time = row.stamp.time
        begins = not taken or taken[-1].stamp.time != time
        if begins and (time > complete or (taken and (size > bytes_max or at >= limit))):
            upto = time - 1 if time <= complete else complete
            break
        size += size_of(row)
        taken.append(row)
    return Batch(origin, after, upto, encode_rows(taken))


def count_rows(database: Database, origin: Origin, after: int, count_max: int) -> int:
    """How many rows `read_batch` has to give after `after`; not counted beyond `count_max`."""
    count = 0
    for source in _SOURCES:
        if count < count_max:
            count += database.value(source.count, (origin, after, count_max - count))
    return count


def _one_transaction(
    database: Database, source: _Source, origin: Origin, time: int
) -> Iterator[Row]:
    for line in database.rows(source.by_stamp, (origin, time - 1, -1)):
        if line[0] > time:
            break
        yield source.read(line)


def size_of(row: Row) -> int:
    """About how many bytes a row takes in a batch."""
    match row:
        case LinkRow():
            return _ROW_BYTES + len(row.name)
        case NodeRow():
            return _ROW_BYTES + len(row.target)
        case ContentRow():
            return 2 * _ROW_BYTES + len(row.content.inline or b"") + 12 * len(row.vector)
        case AttributeRow():
            value = row.value if isinstance(row.value, bytes) else b""
            name = row.field if isinstance(row.field, bytes) else b""
            return _ROW_BYTES + len(value) + len(name)
        case TombstoneRow():
            return _ROW_BYTES + 12 * len(row.vector or ())
        case _:
            return _ROW_BYTES


def decode_batch(batch: Batch) -> list[Row]:
    """The rows of a peer's batch.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    for number in (batch.origin, batch.after, batch.upto):
        if type(number) is not int:
            raise RemoteProtocolError("a batch without numbers")
    if not 0 < batch.origin <= ORIGIN_MAX or not 0 <= batch.after < batch.upto <= STAMP_TIME_MAX:
        raise RemoteProtocolError("a batch that goes nowhere")
    return decode_rows(batch.rows, batch.origin, batch.after, batch.upto)


# -- snapshots ------------------------------------------------------------------------------------


def read_page(
    database: Database,
    cursor: bytes | None,
    *,
    bytes_max: int,
    leave_out: Callable[[Row], bool] = lambda _: False,
) -> SnapshotPage:
    """Rows after a cursor, kind by kind in the order of their keys, without those to leave out.

    Raises:
        RemoteProtocolError: the cursor is none of ours.
    """
    at, after = _decode_cursor(cursor)
    rows: list[Row] = []
    size = looked_at = 0
    while at < len(_SOURCES):
        source = _SOURCES[at]
        lines = (
            database.rows(source.first, (_SNAPSHOT_LINES,))
            if after is None
            else database.rows(source.next, (*after, _SNAPSHOT_LINES))
        )
        for line in lines:
            row = source.read(line)
            after = [line[index] for index in source.key_at]
            looked_at += 1
            if not leave_out(row):
                rows.append(row)
                size += size_of(row)
            if size > bytes_max or looked_at >= ROWS_BATCH_COUNT_MAX:
                return SnapshotPage(encode_snapshot(rows), encode([at, after]))
        if len(lines) < _SNAPSHOT_LINES:
            at, after = at + 1, None
    return SnapshotPage(encode_snapshot(rows), None)


def _decode_cursor(cursor: bytes | None) -> tuple[int, list[Any] | None]:
    if cursor is None:
        return 0, None
    value = decode(cursor, size_max=1024)
    if not isinstance(value, list) or len(value) != 2:
        raise RemoteProtocolError("a bad cursor")
    at, after = value
    if type(at) is not int or not 0 <= at < len(_SOURCES) or not isinstance(after, list):
        raise RemoteProtocolError("a bad cursor")
    if len(after) != len(_SOURCES[at].key_at):
        raise RemoteProtocolError("a bad cursor")
    for part in after:
        if type(part) is not int and not isinstance(part, bytes):
            raise RemoteProtocolError("a bad cursor")
    return at, after


def decode_page(page: SnapshotPage) -> list[Row]:
    """The rows of a page.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    return decode_snapshot(page.rows)
