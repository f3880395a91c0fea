"""The steps of the protocol, as values: what `Connection.next_event` returns.

Named tuples, because one is made for every frame received and they cost a third of a dataclass.
Their shapes have been checked: a field has the type written here, whatever the peer sent.
`body` is any value the codec carries; the part that owns the method checks its shape.
"""

from typing import Any, NamedTuple

from dfsfs.base.types import Buffer, NodeId


class Hello(NamedTuple):
    """Who the other side is. The first frame of each side, sent without waiting for the other's."""

    version_min: int
    version_max: int
    node: NodeId
    network: bytes  # public hash of the network key
    instance: bytes  # random, new for every start of a node
    name: str
    fields: dict[str, Any]  # of the layers above: origin, features, mount, addresses ...


class Accept(NamedTuple):
    """The side with the smaller node id has chosen this connection: it is a session now."""


class Call(NamedTuple):
    """A request; one `Reply` or `Failure` answers it."""

    stream: int
    method: str
    body: Any
    payload: Buffer


class Reply(NamedTuple):
    """The answer to a call."""

    stream: int
    body: Any
    payload: Buffer


class Failure(NamedTuple):
    """A call or message stream ends with an error (see `wire.reasons`)."""

    stream: int
    code: int
    text: str


class Open(NamedTuple):
    """A message stream begins; both sides may send messages on it."""

    stream: int
    method: str
    body: Any


class Message(NamedTuple):
    """One message of a stream."""

    stream: int
    body: Any
    payload: Buffer
    cost: int  # of the stream's credit, given back when the user has taken the message


class End(NamedTuple):
    """The other side sends no more messages on this stream."""

    stream: int


class Credit(NamedTuple):
    """The other side has consumed messages: so many more bytes may be sent on this stream."""

    stream: int
    amount: int


class Cancel(NamedTuple):
    """The other side no longer wants its call or stream: stop working on it."""

    stream: int


class Ping(NamedTuple):
    """To be answered with a `Pong` of the same number."""

    number: int


class Pong(NamedTuple):
    """The answer to a `Ping`."""

    number: int


class Goodbye(NamedTuple):
    """The other side ends the session, and says why."""

    code: int
    text: str


Event = (
    Hello
    | Accept
    | Call
    | Reply
    | Failure
    | Open
    | Message
    | End
    | Credit
    | Cancel
    | Ping
    | Pong
    | Goodbye
)
