"""What goes over the control socket: method names, and values to and from their encoded form.

Both ends are on one machine and of one version, but the node still checks what it is sent: a
command is a peer like any other. Answers that may be long travel as payload, not as body, which the
wire keeps small.
"""

import json
import os
from typing import Any

from dfsfs.admin.operator import Key, Listing
from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import CONTROL_ANSWER_BYTES_MAX, CONTROL_LIST_COUNT_MAX
from dfsfs.base.types import Buffer, FileKind

STATUS = "control.status"
INFO = "control.info"
STAT = "control.stat"
LIST = "control.list"
REMOVE = "control.remove"
PUT = "control.put"
GET = "control.get"
UPKEEP = "control.upkeep"

KEY_BYTES_MAX = 16 * 1024  # several times PATH_MAX: a tree may be deeper than one path can say


def key_bytes(key: Key) -> bytes:
    """The form a key travels in."""
    return os.fsencode(key) if isinstance(key, str) else key


def check_key(value: object) -> bytes:
    """A key from the other side.

    Raises:
        RemoteProtocolError: it is none.
    """
    if not isinstance(value, bytes) or len(value) > KEY_BYTES_MAX:
        raise RemoteProtocolError("a key is bytes, and not very long")
    return value


def check_list_request(value: object) -> tuple[bytes, bytes | None, int]:
    """Key, name to go on after, and limit of a listing.

    Raises:
        RemoteProtocolError: malformed.
    """
    if not isinstance(value, list) or len(value) != 3:
        raise RemoteProtocolError("a listing is asked for with three values")
    key, after, limit = value
    if after is not None and not isinstance(after, bytes):
        raise RemoteProtocolError("a listing goes on after a name")
    if type(limit) is not int or not 1 <= limit <= CONTROL_LIST_COUNT_MAX:
        raise RemoteProtocolError(f"a page has 1 to {CONTROL_LIST_COUNT_MAX} entries")
    return check_key(key), after, limit


def check_task(value: object) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of an operator's task.

    Raises:
        RemoteProtocolError: malformed.
    """
    if not (isinstance(value, list) and len(value) == 2):
        raise RemoteProtocolError("a task is a name and arguments")
    task, arguments = value
    if not (isinstance(task, str) and isinstance(arguments, dict)):
        raise RemoteProtocolError("a task is a name and arguments")
    if (key := arguments.get("key")) is not None:
        check_key(key)
    return task, arguments


def listings_to_payload(entries: list[Listing]) -> bytes:
    """As many entries, from the first, as fit into an answer."""
    rows: list[list[Any]] = []
    left = CONTROL_ANSWER_BYTES_MAX // 2
    for entry in entries:
        left -= len(entry.name) + len(entry.target) + 128
        if left < 0 and rows:
            break
        rows.append(_row(entry))
    return encode(rows)


def _row(entry: Listing) -> list[Any]:
    return [
        entry.name,
        int(entry.kind),
        entry.mode,
        entry.nlink,
        entry.uid,
        entry.gid,
        entry.size,
        entry.mtime_ns,
        entry.target,
    ]


def listings_from_payload(payload: Buffer) -> list[Listing]:
    """The entries back.

    Raises:
        RemoteProtocolError: malformed.
    """
    rows = decode(bytes(payload), size_max=CONTROL_ANSWER_BYTES_MAX)
    try:
        return [
            Listing(
                name=bytes(name),
                kind=FileKind(kind),
                mode=int(mode),
                nlink=int(nlink),
                uid=int(uid),
                gid=int(gid),
                size=int(size),
                mtime_ns=int(mtime_ns),
                target=bytes(target),
            )
            for name, kind, mode, nlink, uid, gid, size, mtime_ns, target in rows
        ]
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"malformed listing: {error}") from error


def facts_to_payload(facts: dict[str, Any]) -> bytes:
    """A status or info. JSON, since that is what it may become, and since it carries any `str`."""
    return json.dumps(facts).encode("ascii")


def facts_from_payload(payload: Buffer) -> dict[str, Any]:
    """The facts back.

    Raises:
        RemoteProtocolError: malformed.
    """
    try:
        facts = json.loads(bytes(payload))
    except ValueError as error:
        raise RemoteProtocolError("malformed facts") from error
    if not isinstance(facts, dict):
        raise RemoteProtocolError("facts are a map")
    return facts
