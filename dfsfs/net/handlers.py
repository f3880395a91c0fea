"""What a session is given and gives: the peer it leads to, requests, replies, and who answers them.

Values and protocols only. An endpoint collects handlers before it runs; its sessions share them.
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dfsfs.base.types import Buffer, NodeId
from dfsfs.net.message_stream import MessageStream

if TYPE_CHECKING:
    from dfsfs.net.session import Session


class Request(NamedTuple):
    """What a call handler is asked."""

    body: Any
    payload: Buffer


class Reply(NamedTuple):
    """The answer to a call. `payload` must not change after it has been returned."""

    body: Any = None
    payload: Buffer = b""


class CallHandler(Protocol):
    """Answers calls of one method: an async function, or a plain one that never waits."""

    def __call__(self, session: "Session", request: Request, /) -> Reply | Awaitable[Reply]:
        """Answer, or raise a `DfsError` that the caller will see."""
        ...


class StreamHandler(Protocol):
    """Serves message streams of one method; the stream ends when it returns."""

    def __call__(self, session: "Session", stream: MessageStream, /) -> Awaitable[None]:
        """Receive and send; a `DfsError` raised is what the peer sees."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other node, as its hello and the transport describe it."""

    node: NodeId
    name: str
    fields: dict[str, Any]  # of the hello; the layer that reads one checks it
    instance: bytes  # another one after every start
    address: str  # where the connection leads to or comes from
    dialled: bool  # by us
    proved: bool  # the transport has proved `node`
    local: bool  # this user or root, on this machine


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a node serves, by method. Shared by the sessions of an endpoint."""

    calls: dict[str, CallHandler] = field(default_factory=dict)
    streams: dict[str, StreamHandler] = field(default_factory=dict)
