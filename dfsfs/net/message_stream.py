"""A message stream as its users see it: send, receive, end.

Backed by a `Session`, which feeds it from its receiving task. Messages of each direction keep their
order; at most `STREAM_CREDIT_BYTES` and one message wait here unread. One task receives, one sends.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from dfsfs.base.errors import DfsError, EndOfStream
from dfsfs.base.types import Buffer
from dfsfs.wire import Message as WireMessage
from dfsfs.wire import StreamCredit

if TYPE_CHECKING:
    from dfsfs.net.session import Session


class Message(NamedTuple):
    """One message received."""

    body: Any
    payload: Buffer


class MessageStream:
    """One end of an open stream. Made by `Session.open_stream`, or given to a stream handler."""

    def __init__(self, session: "Session", stream_id: int, method: str, body: Any) -> None:
        self.method = method
        self.body = body  # with which it was opened
        self._session = session
        self._id = stream_id
        self._inbox: deque[WireMessage] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = False  # the peer has sent its last
        self._error: DfsError | None = None

    async def send(self, body: Any, payload: Buffer = b"") -> None:
        """Send one message; waits for credit and for room in the send queue.

        `payload` must not change until the peer has acted on it. A checkpoint only if it waits.

        Raises:
            PeerUnreachable: the session ended. Otherwise what the peer's handler failed with.
        """
        connection, outbox = self._session.connection, self._session.outbox
        while True:
            credit = self._check()
            if credit.send_left <= 0:
                await self._changed.park()
            elif not outbox.has_room(len(payload)):
                await outbox.wait_room(len(payload))
            else:
                break
        outbox.put(self._id, connection.send_message(self._id, body, len(payload)), payload)

    async def receive(self) -> Message:
        """The next message.

        Raises:
            EndOfStream: the peer sends no more.
            PeerUnreachable: the session ended. Otherwise what the peer's handler failed with.
        """
        while not self._inbox:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise EndOfStream("the peer sends no more")
            await self._changed.park()
        message = self._inbox.popleft()
        head = self._session.connection.send_consumed(self._id, message.cost)
        if head:
            self._session.outbox.put(self._id, head)
        return Message(message.body, message.payload)

    def __aiter__(self) -> "MessageStream":
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    def end(self) -> None:
        """Send no more; the peer's `receive` raises `EndOfStream` after the last. Idempotent."""
        head = self._session.connection.send_end(self._id)
        if head:
            self._session.outbox.put(self._id, head)

    def _check(self) -> StreamCredit:
        if self._error is not None:
            raise self._error
        credit = self._session.connection.credit(self._id)
        if credit is None or not credit.sending:
            raise EndOfStream("this stream has ended")
        return credit

    # -- called by the session ----------------------------------------------------------------

    def deliver(self, message: WireMessage) -> None:
        """A message arrived."""
        self._inbox.append(message)
        self._changed.unpark_all()

    def credited(self) -> None:
        """The peer gave credit."""
        self._changed.unpark_all()

    def finished(self) -> None:
        """The peer sends no more."""
        self._ended = True
        self._changed.unpark_all()

    def fail(self, error: DfsError) -> None:
        """The stream broke. Messages that arrived before can still be received."""
        if self._error is None:
            self._error = error
        self._changed.unpark_all()
