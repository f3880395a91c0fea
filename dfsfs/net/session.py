"""One authenticated connection to one peer, in use: calls, message streams, keepalive.

A session drives a `wire.Connection` over a transport's `Stream` and gives the layers above calls
that return and handlers that are called. It knows no method by name, and neither dials nor redials.

Life: `net.endpoint` makes it when the peer has been greeted and admitted, runs `run` in its
nursery, and is told the end by `closed`. A session never comes back.

Concurrency: one task receives and handles events in order; it never waits for anything but the
peer's bytes, so a slow handler or a full queue cannot delay a reply or a pong. Handlers that are
coroutines run in tasks of their own; a handler may also be a plain function that returns its
`Reply` at once, which costs no task. Whoever waits for an answer is woken directly.

Errors: what the peer does wrong ends the session with a goodbye that says so. What a handler raises
is answered: a `DfsError` by its code, anything else as `PeerFailed`, logged here and counted.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio

from dfsfs.base.errors import (
    DeadlineExceeded,
    DfsError,
    EndOfStream,
    LocalProtocolError,
    NotSupported,
    Overloaded,
    PeerFailed,
    PeerUnreachable,
    RemoteProtocolError,
)
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    GOODBYE_TIMEOUT_S,
    INBOUND_BYTES_MAX,
    KEEPALIVE_S,
    MESSAGE_STREAMS_PER_SESSION_MAX,
    SESSION_LEASE_S,
    STREAMS_PER_SESSION_MAX,
)
from dfsfs.base.types import Buffer
from dfsfs.net.handlers import Handlers, Peer, Reply, Request, StreamHandler
from dfsfs.net.message_stream import MessageStream
from dfsfs.net.outbox import Outbox
from dfsfs.net.statistics import SessionStatistics
from dfsfs.net.transport import Stream
from dfsfs.runtime import World
from dfsfs.wire import (
    CLOSED,
    Call,
    Cancel,
    Connection,
    Credit,
    End,
    Failure,
    Goodbye,
    Open,
    Ping,
    Pong,
    code_of,
    error_of,
    text_of,
)
from dfsfs.wire import Message as WireMessage
from dfsfs.wire import Reply as WireReply

log = logging.getLogger(__name__)

_PINGS_MAX = 1000  # unanswered; the lease ends most sessions long before
_ROUND_TRIP_WEIGHT = 1 / 8  # of a new measurement, as TCP does (RFC 6298)


class Session:
    """A connection in use. `closed` is set when nothing of it is left."""

    def __init__(
        self, world: World, stream: Stream, connection: Connection, peer: Peer, handlers: Handlers
    ) -> None:
        self.peer = peer
        self.connection = connection
        self.statistics = SessionStatistics()
        self.outbox = Outbox(stream, self.statistics, self._end)
        self.closed = trio.Event()
        self.round_trip_s: float | None = None  # smoothed
        self.received_at = world.now_s()
        # Both sides count as connected on the word of the other, which ends by itself: we until
        # SESSION_LEASE_S after `assured_at`, the peer until then after `answered_at` at the latest.
        self.assured_at = world.now_s()  # when we sent the last ping that was answered
        self.answered_at = world.now_s()  # when we answered the peer's last ping
        self.peer_ended = False  # it has said goodbye
        self._world = world
        self._stream = stream
        self._handlers = handlers
        self._error: DfsError | None = None  # why it ends
        self._ending = trio.Event()
        self._goodbye: tuple[int, str] | None = None
        self._calls: dict[int, trio.lowlevel.Task] = {}
        self._streams: dict[int, MessageStream] = {}
        self._running: dict[int, trio.CancelScope] = {}  # handlers, by the peer's stream
        self._inbound_bytes = 0  # payloads that `_running` holds
        self._slots = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        self._ping_sent = 0
        self._ping_sent_at: dict[int, float] = {}
        self._pong_received = 0
        self._pongs = trio.lowlevel.ParkingLot()
        self._on_event: Mapping[type, Callable[[Any], None]] = {
            WireReply: self._on_reply,
            Call: self._on_call,
            WireMessage: self._on_message,
            Credit: self._on_credit,
            Failure: self._on_failure,
            Ping: self._on_ping,
            Pong: self._on_pong,
            Open: self._on_open,
            End: self._on_end,
            Cancel: self._on_cancel,
            Goodbye: self._on_goodbye,
        }

    @property
    def inbound_bytes(self) -> int:
        """Payloads that what it runs for the peer holds."""
        return self._inbound_bytes

    # -- for the layers above -----------------------------------------------------------------

    async def call(
        self,
        method: str,
        body: Any = None,
        payload: Buffer = b"",
        *,
        deadline_s: float = CALL_TIMEOUT_S,
    ) -> Reply:
        """Ask the peer; returns its answer. `payload` must not change until then.

        Cancelling gives the call up on both sides.

        Raises:
            DeadlineExceeded: no answer in time.
            PeerUnreachable: the session has ended, or ended before the answer came. The peer may
                have done what was asked.
            DfsError: whatever the peer's handler raised.
        """
        with trio.move_on_after(deadline_s):
            await self._wait_slot(len(payload))
            stream, head = self.connection.send_call(method, body, len(payload))
            self.statistics.calls_sent += 1
            self.outbox.put(stream, head, payload)
            # The put may have found the stream broken: then nobody would wake this task.
            self._check()
            self._calls[stream] = trio.lowlevel.current_task()

            def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
                # Forgotten at once, or an answer that comes before this task runs wakes it twice.
                del self._calls[stream]
                self._cancel_call(stream)
                return trio.lowlevel.Abort.SUCCEEDED

            try:
                reply: Reply = await trio.lowlevel.wait_task_rescheduled(give_up)
                return reply
            finally:
                if self._slots:
                    self._slots.unpark()
        raise DeadlineExceeded(f"{self.peer.name} did not answer {method} within {deadline_s:g} s")

    @asynccontextmanager
    async def open_stream(self, method: str, body: Any = None) -> AsyncIterator[MessageStream]:
        """Open a message stream; leaving the block ends it.

        If the peer has not ended its side by then, its handler is cancelled: who needs to know
        that all was taken receives until `EndOfStream`, or an answer, before leaving.

        Raises:
            PeerUnreachable: the session has ended. Overloaded: too many streams are open.
        """
        self._check()
        if len(self._streams) >= MESSAGE_STREAMS_PER_SESSION_MAX:
            raise Overloaded(f"too many message streams to {self.peer.name}")
        stream_id, head = self.connection.send_open(method, body)
        stream = MessageStream(self, stream_id, method, body)
        self._streams[stream_id] = stream
        self.outbox.put(stream_id, head)
        try:
            yield stream
            stream.end()
        finally:
            self._streams.pop(stream_id, None)
            head = self.connection.send_cancel(stream_id)
            if head:
                self.outbox.put(stream_id, head)

    async def ping(self) -> bool:
        """Ask for a sign of life; False if the session ended instead."""
        number = self._send_ping()
        while self._pong_received < number:
            if self._error is not None:
                return False
            await self._pongs.park()
        return True

    def close(self, reason: str = "the session is no longer needed") -> None:
        """Begin to end the session; the peer is told. Idempotent; wait for `closed` if you must."""
        self._end(
            PeerUnreachable(f"session with {self.peer.name} closed: {reason}"), CLOSED, reason
        )

    def peer_connected_until_s(self) -> float:
        """Until when the peer may believe, after this side's end, that it is connected.

        The word we gave it lasts `SESSION_LEASE_S` from its ping; a quarter more, for clocks that
        do not run alike.
        """
        if self.peer_ended:
            return self._world.now_s()
        return self.answered_at + 1.25 * SESSION_LEASE_S

    @property
    def close_reason(self) -> str:
        """Why the session ended, or is about to; empty while it is in use."""
        return "" if self._error is None else str(self._error)

    # -- running ------------------------------------------------------------------------------

    async def run(self, ended: Callable[["Session"], None] = lambda session: None) -> None:
        """Serve until the session ends or is cancelled. Raises only cancellation and bugs.

        `ended` is called as soon as the session is of no more use, before the goodbyes.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._guard, self._receive)
                nursery.start_soon(self._guard, self.outbox.run)
                nursery.start_soon(self._guard, self._keep_alive)
                if self._error is not None:
                    self._end(self._error)  # closed before it ran
                await self._ending.wait()
                nursery.cancel_scope.cancel()
            ended(self)
            await self._say_goodbye()
        finally:
            if self._error is None:
                self._end(PeerUnreachable(f"session with {self.peer.name} was stopped"))
            ended(self)
            self._stream.close()
            self.closed.set()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except RemoteProtocolError as error:
            log.warning("%s broke the protocol: %s", self.peer.name, error)
            self._end(error, code_of(error), text_of(error))
        except Overloaded as error:
            self._end(error, code_of(error), text_of(error))
        except DfsError as error:
            self._end(error)

    async def _receive(self) -> None:
        stream, connection, outbox, on_event = (
            self._stream,
            self.connection,
            self.outbox,
            self._on_event,
        )
        while True:
            count = await stream.receive_into(connection.buffer())
            if not count:
                raise PeerUnreachable(f"{self.peer.name} closed the connection")
            self.received_at = self._world.now_s()
            self.statistics.bytes_received += count
            connection.received(count)
            outbox.hold()
            try:
                while (event := connection.next_event()) is not None:
                    on_event[type(event)](event)
            finally:
                outbox.release()

    async def _keep_alive(self) -> None:
        while True:
            self._send_ping()
            await trio.sleep(KEEPALIVE_S)
            if self._world.now_s() - self.assured_at < SESSION_LEASE_S:
                continue
            # If it was this process that slept, what the peer sent meanwhile lies in the socket:
            # let the receiving task look before the peer is called dead.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            if self._world.now_s() - self.assured_at >= SESSION_LEASE_S:
                raise PeerUnreachable(f"{self.peer.name} is silent for {SESSION_LEASE_S:g} s")

    def _end(self, error: DfsError, code: int | None = None, text: str = "") -> None:
        """Fail everything that waits for the peer, and let `run` end. The first reason counts."""
        if self._error is not None:
            self._ending.set()
            return
        self._error = error
        if code is not None:
            self._goodbye = (code, text)
        broken = error
        if not isinstance(error, PeerUnreachable):
            broken = PeerUnreachable(f"session with {self.peer.name} ended: {error}")
            self._error = broken
        calls, self._calls = self._calls, {}
        for task in calls.values():
            trio.lowlevel.reschedule(task, outcome.Error(_copy(broken)))
        for stream in self._streams.values():
            stream.fail(broken)
        self._streams.clear()
        self._slots.unpark_all()
        self._pongs.unpark_all()
        self.outbox.close()
        self._ending.set()

    async def _say_goodbye(self) -> None:
        if self._goodbye is None:
            return
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            try:
                await self.outbox.finish(self.connection.send_goodbye(*self._goodbye))
                # Closing with unread bytes in the socket would reset the connection, and the
                # goodbye with it: read until the peer has
                # closed, or says goodbye itself.
                while count := await self._stream.receive_into(self.connection.buffer()):
                    self.connection.received(count)
                    while (event := self.connection.next_event()) is not None:
                        if isinstance(event, Goodbye):
                            return
            except DfsError:
                pass  # the peer is gone without waiting for it

    # -- calls of ours ------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise _copy(self._error)

    async def _wait_slot(self, payload_bytes: int) -> None:
        self._check()
        while True:
            if self.connection.calls_out >= STREAMS_PER_SESSION_MAX:
                await self._slots.park()
            elif not self.outbox.has_room(payload_bytes):
                await self.outbox.wait_room(payload_bytes)
            else:
                return
            self._check()

    def _cancel_call(self, stream: int) -> None:
        head = self.connection.send_cancel(stream)
        if head and not self.outbox.withdraw(stream):
            self.outbox.put(stream, head)

    def _on_reply(self, event: WireReply) -> None:
        task = self._calls.pop(event.stream, None)
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(Reply(event.body, event.payload)))

    def _on_failure(self, event: Failure) -> None:
        error = error_of(event.code, event.text)
        task = self._calls.pop(event.stream, None)
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Error(error))
            return
        stream = self._streams.pop(event.stream, None)
        if stream is not None:
            stream.fail(error)

    # -- calls of the peer --------------------------------------------------------------------

    def _on_call(self, event: Call) -> None:
        self._check_unused(event.stream)
        handler = self._handlers.calls.get(event.method)
        size = len(event.payload)
        try:
            if handler is None:
                raise NotSupported(f"there is no method {event.method!r}")
            self._check_load(size)
            result = handler(self, Request(event.body, event.payload))
            if isinstance(result, Reply):
                self._reply_nowait(event.stream, result)
                return
        except Exception as error:
            self._fail(event.stream, event.method, error)
            return
        self._start(event.stream, self._serve_call, event.stream, event.method, result, size)
        self._inbound_bytes += size

    def _check_unused(self, stream: int) -> None:
        """A handler that was cancelled may still be ending."""
        if stream in self._running:
            raise RemoteProtocolError(f"stream {stream} is used twice")

    def _check_load(self, size: int) -> None:
        if len(self._running) >= STREAMS_PER_SESSION_MAX + MESSAGE_STREAMS_PER_SESSION_MAX:
            raise Overloaded("too many calls at a time")
        if self._inbound_bytes + size > INBOUND_BYTES_MAX:
            raise Overloaded("too much to do at a time")

    def _start(self, stream: int, serve: Callable[..., Awaitable[None]], *args: Any) -> None:
        assert self._nursery is not None
        scope = self._running[stream] = trio.CancelScope()
        self._nursery.start_soon(serve, scope, *args)

    async def _serve_call(
        self,
        scope: trio.CancelScope,
        stream: int,
        method: str,
        result: Awaitable[Reply],
        size: int,
    ) -> None:
        try:
            with scope:
                reply = await result
                self._inbound_bytes -= size
                size = len(reply.payload)
                self._inbound_bytes += size
                if not self.outbox.has_room(size):
                    self._check_load(0)
                    await self.outbox.wait_room(size)
                self._reply(stream, reply)
        except Exception as error:
            self._fail(stream, method, error)
        except BaseExceptionGroup as group:
            self._fail_cancelled(stream, method, group)
        finally:
            self._inbound_bytes -= size
            del self._running[stream]

    def _reply_nowait(self, stream: int, reply: Reply) -> None:
        size = len(reply.payload)
        if self.outbox.has_room(size):
            self._reply(stream, reply)
            return
        self._check_load(size)
        self._start(stream, self._serve_call, stream, "", _ready(reply), 0)

    def _reply(self, stream: int, reply: Reply) -> None:
        if self._error is not None:
            return  # it ended while the handler could not be cancelled: nobody to answer
        head = self.connection.send_reply(stream, reply.body, len(reply.payload))
        if head:
            self.outbox.put(stream, head, reply.payload)
        self.statistics.calls_served += 1

    def _fail(self, stream: int, method: str, error: Exception) -> None:
        """Answer with the reason."""
        expected = _expected(error)
        if expected is not None:
            answer = expected
            self.statistics.calls_refused += 1
        else:
            log.error("handler of %s failed", method, exc_info=error)
            self.statistics.handler_failures += 1
            answer = PeerFailed(f"{method} failed inside: {type(error).__name__}")
        head = self.connection.send_failure(stream, code_of(answer), text_of(answer))
        if head:
            self.outbox.put(stream, head)

    def _fail_cancelled(self, stream: int, method: str, group: BaseExceptionGroup[Any]) -> None:
        """A nursery of a handler failed while it was cancelled: answer, and stay cancelled."""
        failed, cancelled = group.split(Exception)
        if failed is not None:
            self._fail(stream, method, failed)
        if cancelled is not None:
            raise cancelled

    # -- message streams ----------------------------------------------------------------------

    def _on_open(self, event: Open) -> None:
        self._check_unused(event.stream)
        handler = self._handlers.streams.get(event.method)
        if handler is None:
            reason = NotSupported(f"there is no stream method {event.method!r}")
            self._fail(event.stream, event.method, reason)
            return
        stream = MessageStream(self, event.stream, event.method, event.body)
        self._streams[event.stream] = stream
        self._start(event.stream, self._serve_stream, event.stream, handler, stream)

    async def _serve_stream(
        self,
        scope: trio.CancelScope,
        stream_id: int,
        handler: StreamHandler,
        stream: MessageStream,
    ) -> None:
        try:
            with scope:
                await handler(self, stream)
                stream.end()
                # The handler is done: what the peer may still send is refused, not kept.
                head = self.connection.send_failure(stream_id, *_DONE)
                if head:
                    self.outbox.put(stream_id, head)
        except Exception as error:
            self._fail(stream_id, stream.method, error)
        except BaseExceptionGroup as group:
            self._fail_cancelled(stream_id, stream.method, group)
        finally:
            self._streams.pop(stream_id, None)
            del self._running[stream_id]

    def _on_message(self, event: WireMessage) -> None:
        stream = self._streams.get(event.stream)
        if stream is not None:
            stream.deliver(event)

    def _on_credit(self, event: Credit) -> None:
        stream = self._streams.get(event.stream)
        if stream is not None:
            stream.credited()

    def _on_end(self, event: End) -> None:
        stream = self._streams.get(event.stream)
        if stream is not None:
            stream.finished()

    def _on_cancel(self, event: Cancel) -> None:
        scope = self._running.get(event.stream)
        if scope is not None:
            scope.cancel()

    # -- signs of life ------------------------------------------------------------------------

    def _send_ping(self) -> int:
        if len(self._ping_sent_at) >= _PINGS_MAX:
            raise RemoteProtocolError("the peer answers no pings")
        self._ping_sent += 1
        self._ping_sent_at[self._ping_sent] = self._world.now_s()
        self.outbox.put(0, self.connection.send_ping(self._ping_sent))
        return self._ping_sent

    def _on_ping(self, event: Ping) -> None:
        self.answered_at = self._world.now_s()
        self.outbox.put(0, self.connection.send_pong(event.number))

    def _on_pong(self, event: Pong) -> None:
        if not self._pong_received < event.number <= self._ping_sent:
            raise RemoteProtocolError("a pong nobody asked for")
        for number in range(self._pong_received + 1, event.number):
            self._ping_sent_at.pop(number, None)
        self._pong_received = event.number
        self.assured_at = self._ping_sent_at.pop(event.number)
        sample_s = self._world.now_s() - self.assured_at
        if self.round_trip_s is None:
            self.round_trip_s = sample_s
        else:
            self.round_trip_s += (sample_s - self.round_trip_s) * _ROUND_TRIP_WEIGHT
        self._pongs.unpark_all()

    def _on_goodbye(self, event: Goodbye) -> None:
        self.peer_ended = True
        reason = event.text if event.code == CLOSED else str(error_of(event.code, event.text))
        raise PeerUnreachable(f"{self.peer.name} ended the session: {reason}")


_DONE = (code_of(EndOfStream("")), "the handler has finished")


async def _ready(reply: Reply) -> Reply:
    return reply


def _copy(error: DfsError) -> DfsError:
    """The same error for another task: each needs a traceback of its own."""
    return type(error)(*error.args)


def _expected(error: BaseException) -> DfsError | None:
    """The failure that a handler reports; None if it is a bug. Nurseries wrap what they raise."""
    if isinstance(error, BaseExceptionGroup):
        causes = [_expected(cause) for cause in error.exceptions]
        return causes[0] if all(causes) else None
    if isinstance(error, DfsError) and not isinstance(error, LocalProtocolError):
        return error
    return None
