"""The messages on a stream of rows: how they are written, and what of a peer's is believed.

What each means: `dfsfs/cluster/exchange.py`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.types import ORIGIN_MAX, Origin
from dfsfs.namespace import Batch, Refill
from dfsfs.net import MessageStream, Session

NOTHING: Mapping[Origin, int] = MappingProxyType({})


async def send_batches(
    stream: MessageStream,
    batches: list[Batch],
    flush: int = 0,
    marks: Sequence[int] = (),
    reach: Mapping[Origin, int] = NOTHING,
) -> int:
    """Send whole batches, with marks of drafts, and ask for a flush behind them; bytes of rows.

    `reach`: what the batches rest on, and the peer was not told yet.
    """
    heads = [[batch.origin, batch.after, batch.upto, len(batch.rows)] for batch in batches]
    payload = batches[0].rows if len(batches) == 1 else b"".join(batch.rows for batch in batches)
    body: list[Any] = ["rows", heads]
    if flush or marks or reach:
        body.append(flush)
    if marks or reach:
        body.append(list(marks))
    if reach:
        body.append(wire_positions(reach))
    await stream.send(body, payload)
    return len(payload)


def wire_positions(positions: Mapping[Origin, int]) -> dict[int, int]:
    """Positions as the codec writes them."""
    return {int(origin): position for origin, position in positions.items()}


def checked_report(body: Any) -> tuple[str, dict[Origin, int]]:
    """What a report of positions is, and the positions."""
    if not (isinstance(body, list) and len(body) >= 2 and body[0] in ("have", "ack", "pull")):
        raise RemoteProtocolError("malformed report of positions")
    return body[0], checked_positions(body[1])


def checked_floor(body: Any) -> dict[Origin, int] | None:
    """The floor in a `have`; None if this report has none."""
    if body[0] != "have" or len(body) < 3:
        return None
    return checked_positions(body[2])


def wire_refill(refill: Refill) -> list[dict[int, int]]:
    """The end of a `have` of who may lack rows."""
    after = {int(origin): one for origin, (one, _) in refill.ranges.items()}
    until = {int(origin): other for origin, (_, other) in refill.ranges.items()}
    return [after, until, wire_positions(refill.reach)]


def checked_refill(body: Any) -> Refill | None:
    """What a `have` asks to be sent again; None: nothing."""
    if body[0] != "have" or len(body) < 6:
        return None
    after, until, reach = map(checked_positions, body[3:6])
    return Refill({one: (after.get(one, 0), until[one]) for one in until}, reach)


def checked_positions(value: Any) -> dict[Origin, int]:
    """Positions by origin."""
    if not isinstance(value, dict):
        raise RemoteProtocolError("malformed positions")
    for origin, position in value.items():
        if not (_is_origin(origin) and _is_position(position)):
            raise RemoteProtocolError("malformed position")
    return value


def checked_flush(body: Any) -> tuple[int, bool] | None:
    """The number of the flush a peer reports on, and whether it went well; None: another report."""
    if not (isinstance(body, list) and len(body) >= 2 and body[0] in ("flushed", "failed")):
        return None
    if not _is_position(body[1]):
        raise RemoteProtocolError("malformed report of a flush")
    return body[1], body[0] == "flushed"


class RowsMessage(NamedTuple):
    """A message of a sender, checked; what it does not have is empty."""

    kind: str
    batches: list[Batch]
    flush: int = 0
    marks: Sequence[int] = ()
    reach: Mapping[Origin, int] = NOTHING


def checked_marks(value: Any) -> list[int]:
    """Marks of drafts: inodes, negative for those that end."""
    if not (
        isinstance(value, list)
        and all(type(mark) is int and 0 < abs(mark) < 1 << 63 for mark in value)
    ):
        raise RemoteProtocolError("malformed marks of drafts")
    return value


def checked_rows(body: Any, payload: bytes | bytearray | memoryview) -> RowsMessage:
    """What a sender tells."""
    if body in (["level"], ["ready"]):
        return RowsMessage(body[0], [])
    if isinstance(body, list) and len(body) == 2 and body[0] == "left":
        if not _is_position(body[1]):
            raise RemoteProtocolError("malformed count of rows")
        return RowsMessage("left", [])
    if isinstance(body, list) and len(body) >= 3 and body[0] == "stable":
        if not all(map(_is_position, body[1:3])):
            raise RemoteProtocolError("malformed positions of what is stable")
        return RowsMessage("stable", [])
    if isinstance(body, list) and len(body) == 2 and body[0] == "lease":
        return RowsMessage("lease", [])
    if isinstance(body, list) and len(body) >= 2 and body[0] == "ask":
        return RowsMessage("ask", [], marks=checked_marks(body[1]))
    if not (
        isinstance(body, list)
        and len(body) >= 2
        and body[0] == "rows"
        and isinstance(body[1], list)
        and (len(body) == 2 or _is_position(body[2]))
    ):
        raise RemoteProtocolError("malformed rows message")
    batches = []
    view = memoryview(payload)
    start = 0
    for head in body[1]:
        if not (isinstance(head, list) and len(head) == 4):
            raise RemoteProtocolError("malformed batch")
        origin, after, upto, size = head
        if not (
            _is_origin(origin)
            and _is_position(after)
            and _is_position(upto)
            and after < upto
            and type(size) is int
            and 0 <= size <= len(view) - start
        ):
            raise RemoteProtocolError("malformed batch")
        rows = bytes(view[start : start + size])
        batches.append(Batch(Origin(origin), after, upto, rows))
        start += size
    if start != len(view):
        raise RemoteProtocolError("rows message with bytes of no batch")
    return RowsMessage(
        "rows",
        batches,
        body[2] if len(body) > 2 else 0,
        checked_marks(body[3]) if len(body) > 3 else (),
        checked_positions(body[4]) if len(body) > 4 else NOTHING,
    )


def origin_of(session: Session) -> Origin:
    """As what the peer of a session writes."""
    origin = session.peer.fields.get("origin")
    if type(origin) is not int or not _is_origin(origin):
        raise RemoteProtocolError("a hello without an origin")
    return Origin(origin)


def _is_origin(value: object) -> bool:
    return type(value) is int and 0 < value <= ORIGIN_MAX


def _is_position(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
