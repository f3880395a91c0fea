"""The replicated rows, how two of them join, and how they travel.

Six kinds, each a register named by its key; `order` says which of two values of one key stays.
Joining is commutative, associative and idempotent, because it is a maximum.

Encoding (canonical msgpack): `[FORMAT, [row, ...]]`, a row being `[kind, time, field, ...]`; the
origin of a batch's rows is that of the batch. Rows of a snapshot carry their origin after the time.
What comes from a peer is checked here completely: lengths, kinds, names, ids, digests.
Pure: no SQL, no clock.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import (
    BLOCK_SHIFT_MAX,
    BLOCK_SHIFT_MIN,
    FILE_BYTES_MAX,
    INLINE_BYTES_MAX,
    NAME_BYTES_MAX,
    PATCHES_PACKED_BYTES_MAX,
    ROWS_MESSAGE_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    VECTOR_ENTRIES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from dfsfs.base.types import (
    ORIGIN_MAX,
    ROOT_INODE,
    ContentRef,
    FileKind,
    InodeId,
    LinkId,
    Origin,
    Stamp,
    is_digest,
)

FORMAT = 1
_INT_MAX = (1 << 63) - 1
_ID_MAX = (1 << 32) - 1  # of users and groups
_KINDS = frozenset(FileKind)

CLASS_MOVED = 0  # merges with nothing
CLASS_MADE = 1  # directories made under one name at the same time are one


class RowKind(enum.IntEnum):
    """First element of an encoded row."""

    NODE = 1
    LINK = 2
    TOMBSTONE = 3
    CONTENT = 4
    ATTRIBUTE = 5
    TOUCH = 6


class Field(enum.IntEnum):
    """Attributes that are not extended attributes."""

    MODE = 1
    OWNER = 2  # (uid << 32 | gid) as 8 bytes: two nodes that chown never mix their owners
    ATIME = 3
    MTIME = 4


class NodeRow(NamedTuple):
    """An inode as it was made; never changes."""

    stamp: Stamp
    inode: InodeId
    kind: int
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes


class LinkRow(NamedTuple):
    """A directory entry: `inode` is called `name` in `parent`."""

    stamp: Stamp
    link: LinkId
    inode: InodeId
    parent: InodeId
    name: bytes
    previous: InodeId
    merge_class: int


class TombstoneRow(NamedTuple):
    """A directory entry was removed by somebody who had seen its link row of stamp `seen`."""

    stamp: Stamp
    link: LinkId
    seen: Stamp
    vector: Mapping[Origin, int] | None  # the contents it saw, if it was a file's last link


class ContentRow(NamedTuple):
    """What `stamp.origin` last wrote into a file."""

    stamp: Stamp
    inode: InodeId
    content: ContentRef
    mtime_ns: int
    vector: Mapping[Origin, int]  # what it replaced, of other writers
    dot: Stamp  # when this content was first written; `stamp`, unless a pin wrote it again


class AttributeRow(NamedTuple):
    """One attribute: a `Field`, or an extended attribute by name (value None: removed)."""

    stamp: Stamp
    inode: InodeId
    field: int | bytes
    value: int | bytes | None


class TouchRow(NamedTuple):
    """A directory's names changed, or a file lost one of several links."""

    stamp: Stamp
    inode: InodeId


Row = NodeRow | LinkRow | TombstoneRow | ContentRow | AttributeRow | TouchRow


def order(row: Row) -> tuple[Stamp, Stamp]:
    """Of two rows with one key the one with the greater order stays."""
    if isinstance(row, TombstoneRow):  # who saw more of the link decides, then who came later
        return (row.seen, row.stamp)
    return (row.stamp, row.stamp)


def key(row: Row) -> tuple[int, int, int | bytes]:
    """What a row is about: kind, id, and for slots and attributes the writer or field."""
    match row:
        case NodeRow():
            return (RowKind.NODE, row.inode, 0)
        case LinkRow():
            return (RowKind.LINK, row.link, 0)
        case TombstoneRow():
            return (RowKind.TOMBSTONE, row.link, 0)
        case ContentRow():
            return (RowKind.CONTENT, row.inode, row.stamp.origin)
        case AttributeRow():
            return (RowKind.ATTRIBUTE, row.inode, row.field)
        case TouchRow():
            return (RowKind.TOUCH, row.inode, 0)


def pack_owner(uid: int, gid: int) -> bytes:
    """The value of `Field.OWNER`."""
    return (uid << 32 | gid).to_bytes(8, "big")


def unpack_owner(value: bytes) -> tuple[int, int]:
    """The uid and gid in a value of `Field.OWNER`."""
    both = int.from_bytes(value, "big")
    return both >> 32, both & _ID_MAX


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Rows of one origin, for a batch."""
    return encode([FORMAT, [_fields(row) for row in rows]])


def encode_snapshot(rows: Iterable[Row]) -> bytes:
    """Rows of any origin, for a page of a snapshot."""
    listed = []
    for row in rows:
        fields = _fields(row)
        fields.insert(2, row.stamp.origin)
        listed.append(fields)
    return encode([FORMAT, listed])


def encode_vector(vector: Mapping[Origin, int]) -> bytes:
    """A vector as it is stored; the empty one is empty."""
    return encode(dict(vector)) if vector else b""


def decode_vector(data: bytes) -> dict[Origin, int]:
    """A vector this node has stored."""
    return decode(data, size_max=len(data)) if data else {}


def _fields(row: Row) -> list[Any]:
    time = row.stamp.time
    match row:
        case LinkRow():
            return [RowKind.LINK.value, time, row.link, row.inode, row.parent, row.name,
                    row.previous, row.merge_class]  # fmt: skip
        case NodeRow():
            return [RowKind.NODE.value, time, row.inode, int(row.kind), row.mode, row.uid, row.gid,
                    row.rdev, row.target]  # fmt: skip
        case TombstoneRow():
            vector = None if row.vector is None else dict(row.vector)
            return [RowKind.TOMBSTONE.value, time, row.link, row.seen.time, row.seen.origin, vector]
        case ContentRow():
            content = row.content
            dot = None if row.dot == row.stamp else [row.dot.time, row.dot.origin]
            return [RowKind.CONTENT.value, time, row.inode, content.size, content.root,
                    content.inline, content.shift, content.stored, row.mtime_ns, dict(row.vector),
                    dot]  # fmt: skip
        case AttributeRow():
            return [RowKind.ATTRIBUTE.value, time, row.inode, _plain(row.field), row.value]
        case TouchRow():
            return [RowKind.TOUCH.value, time, row.inode]


def _plain(field: int | bytes) -> int | bytes:
    return int(field) if isinstance(field, int) else field


# -- from peers -----------------------------------------------------------------------------------


def decode_rows(data: bytes, origin: Origin, after: int, upto: int) -> list[Row]:
    """Rows of a batch of `origin`, each stamped within (after, upto].

    Raises:
        RemoteProtocolError: anything is not as it must be.
    """
    rows = [_row(fields, origin) for fields in _row_lists(data)]
    for row in rows:
        _require(after < row.stamp.time <= upto, "a row outside its batch")
    return rows


def decode_snapshot(data: bytes) -> list[Row]:
    """Rows of a page of a snapshot.

    Raises:
        RemoteProtocolError: anything is not as it must be.
    """
    rows = []
    for fields in _row_lists(data):
        _require(len(fields) > 2, "a row without an origin")
        origin = _origin(fields[2])
        rows.append(_row([*fields[:2], *fields[3:]], origin))
    return rows


def _row_lists(data: bytes) -> list[list[Any]]:
    value = decode(data, size_max=ROWS_MESSAGE_BYTES_MAX)
    _require(isinstance(value, list) and len(value) == 2, "rows without a format")
    _require(value[0] == FORMAT and not isinstance(value[0], bool), "rows of an unknown format")
    _require(isinstance(value[1], list), "rows that are not a list")
    for fields in value[1]:
        _require(isinstance(fields, list) and len(fields) > 1, "a row that is not a list")
    return value[1]  # type: ignore[no-any-return]  # checked one line above


def _row(fields: list[Any], origin: Origin) -> Row:
    stamp = Stamp(_int(fields[1], 1), origin)
    reader = _READERS.get(fields[0]) if type(fields[0]) is int else None
    if reader is None:
        _refuse("a row of unknown kind")
    count, read = reader
    _require(len(fields) == count, "a row of the wrong length")
    return read(stamp, fields)  # type: ignore[no-any-return]  # each reader returns its row


def _node(stamp: Stamp, fields: list[Any]) -> NodeRow:
    _, _, inode, kind, mode, uid, gid, rdev, target = fields
    _require(type(kind) is int and kind in _KINDS, "an inode of unknown kind")
    _require(isinstance(target, bytes) and len(target) <= SYMLINK_BYTES_MAX, "a bad target")
    _require((kind == FileKind.SYMLINK) == bool(target), "a target without a symlink, or none")
    _require(b"\0" not in target, "a target with a NUL")
    return NodeRow(stamp, _inode(inode), kind, _int(mode, 0, 0o7777), _int(uid, 0, _ID_MAX),
                   _int(gid, 0, _ID_MAX), _int(rdev, 0), target)  # fmt: skip


def _link(stamp: Stamp, fields: list[Any]) -> LinkRow:
    _, _, link, inode, parent, name, previous, merge_class = fields
    _require(is_name(name), "a bad name")
    return LinkRow(stamp, LinkId(_inode(link)), _inode(inode), InodeId(_int(parent, 1)), name,
                   InodeId(_int(previous, 1)), _int(merge_class, 0))  # fmt: skip


def _tombstone(stamp: Stamp, fields: list[Any]) -> TombstoneRow:
    _, _, link, seen_time, seen_origin, vector = fields
    seen = Stamp(_int(seen_time, 1), _origin(seen_origin))
    return TombstoneRow(
        stamp, LinkId(_inode(link)), seen, None if vector is None else _vector(vector)
    )


def _content(stamp: Stamp, fields: list[Any]) -> ContentRow:
    _, _, inode, size, root, inline, shift, stored, mtime_ns, vector, dot = fields
    size = _int(size, 0, FILE_BYTES_MAX)
    _require(root is None or is_digest(root), "a content ref with a bad digest")
    if inline is not None:
        _require(isinstance(inline, bytes), "inline bytes that are none")
        if root is None:
            _require(len(inline) == size <= INLINE_BYTES_MAX, "inline bytes of the wrong size")
        else:  # patches over a tree: content.patches knows their form
            _require(len(inline) <= PATCHES_PACKED_BYTES_MAX, "too many patches")
    shift = _int(shift, BLOCK_SHIFT_MIN, BLOCK_SHIFT_MAX)
    content = ContentRef(size, root, inline, shift, _int(stored, 0, FILE_BYTES_MAX))
    first = stamp
    if dot is not None:
        _require(isinstance(dot, list) and len(dot) == 2, "a bad dot")
        first = Stamp(_int(dot[0], 1), _origin(dot[1]))
    return ContentRow(
        stamp, _inode(inode), content, _int(mtime_ns, -_INT_MAX), _vector(vector), first
    )


def _attribute(stamp: Stamp, fields: list[Any]) -> AttributeRow:
    _, _, inode, field, value = fields
    inode = InodeId(_int(inode, ROOT_INODE))
    if isinstance(field, bytes):
        _require(0 < len(field) <= XATTR_NAME_BYTES_MAX and b"\0" not in field, "a bad xattr name")
        fits = value is None or (isinstance(value, bytes) and len(value) <= XATTR_VALUE_BYTES_MAX)
        _require(fits, "a bad xattr value")
        return AttributeRow(stamp, inode, field, value)
    match _int(field, 0):
        case Field.MODE:
            _int(value, 0, 0o7777)
        case Field.OWNER:
            _require(isinstance(value, bytes) and len(value) == 8, "a bad owner")
        case Field.ATIME | Field.MTIME:
            _int(value, -_INT_MAX)
        case _:
            _refuse("an unknown attribute")
    return AttributeRow(stamp, inode, field, value)


def _touch(stamp: Stamp, fields: list[Any]) -> TouchRow:
    return TouchRow(stamp, InodeId(_int(fields[2], ROOT_INODE)))


_READERS: dict[int, tuple[int, Any]] = {
    RowKind.NODE: (9, _node),
    RowKind.LINK: (8, _link),
    RowKind.TOMBSTONE: (6, _tombstone),
    RowKind.CONTENT: (11, _content),
    RowKind.ATTRIBUTE: (5, _attribute),
    RowKind.TOUCH: (3, _touch),
}


def is_name(name: object) -> bool:
    """Whether `name` can name a directory entry."""
    return (
        isinstance(name, bytes)
        and 0 < len(name) <= NAME_BYTES_MAX
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )


def _vector(value: object) -> dict[Origin, int]:
    if not isinstance(value, dict):
        _refuse("a vector that is not a map")
    _require(len(value) <= VECTOR_ENTRIES_MAX, "a vector with too many entries")
    return {_origin(origin): _int(time, 1) for origin, time in value.items()}


def _inode(value: object) -> InodeId:
    return InodeId(_int(value, ROOT_INODE + 1))  # the root has no rows of these kinds


def _origin(value: object) -> Origin:
    return Origin(_int(value, 1, ORIGIN_MAX))


def _int(value: object, low: int, high: int = _INT_MAX) -> int:
    if type(value) is not int or not low <= value <= high:
        _refuse("a number out of its range")
    return value


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RemoteProtocolError(problem)


def _refuse(problem: str) -> NoReturn:
    raise RemoteProtocolError(problem)
