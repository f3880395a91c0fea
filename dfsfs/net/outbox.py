"""What one session has to send: two queues in front of one stream.

Urgent frames (small) overtake bulk frames (blocks), except frames of the same stream, whose order
is kept. When the outbox is idle, whoever puts a frame sends it at once, without waking a task; the
task `run` takes over when the socket is full. Bounded: who puts bulk frames waits while
`SEND_QUEUE_BYTES_MAX` are queued, small ones while `URGENT_QUEUE_BYTES_MAX` are; nothing is
dropped.

Invariant: `_sending` holds the parts of frames already begun; nothing gets between them. Either
`_sending` and both queues are empty, or the task is awake, or `_held` is set.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from dfsfs.base.errors import DfsError, Overloaded, PeerUnreachable
from dfsfs.base.limits import (
    SEND_QUEUE_BYTES_MAX,
    SEND_STALL_S,
    URGENT_BURST_MAX,
    URGENT_FRAME_BYTES_MAX,
    URGENT_QUEUE_BYTES_MAX,
)
from dfsfs.base.types import Buffer
from dfsfs.net.statistics import SessionStatistics
from dfsfs.net.transport import Stream

_CONTROL_BYTES_MAX = 2 * URGENT_QUEUE_BYTES_MAX  # with the answers that must not wait


class _Frame(NamedTuple):
    stream: int
    head: bytes
    payload: Buffer

    @property
    def size(self) -> int:
        return len(self.head) + len(self.payload)


class Outbox:
    """The sending half of a session."""

    def __init__(
        self,
        stream: Stream,
        statistics: SessionStatistics,
        failed: Callable[[DfsError], None],
    ) -> None:
        """`failed` is told once that the stream broke while sending."""
        self._stream = stream
        self._failed = failed
        self._statistics = statistics
        self._urgent: deque[_Frame] = deque()
        self._bulk: deque[_Frame] = deque()
        self._urgent_bytes = 0
        self._bulk_bytes = 0
        self._bulk_streams: dict[int, int] = {}  # streams with frames in `_bulk`, and how many
        self._burst = 0  # urgent frames sent since the last bulk frame
        self._sending: deque[memoryview] = deque()
        self._task: trio.lowlevel.Task | None = None  # of `run`, while it sleeps
        self._held = False
        self._room = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def queued_bytes(self) -> int:
        """Bytes of frames that wait."""
        return self._urgent_bytes + self._bulk_bytes

    # -- putting ------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether a frame of `size` bytes may be put without waiting."""
        if size > URGENT_FRAME_BYTES_MAX:
            return self._bulk_bytes < SEND_QUEUE_BYTES_MAX
        return self._urgent_bytes < URGENT_QUEUE_BYTES_MAX

    async def wait_room(self, size: int) -> None:
        """Wait until a frame of `size` bytes may be put. A checkpoint only if it waits.

        Raises:
            PeerUnreachable: the outbox was closed.
        """
        while not self._closed and not self.has_room(size):
            await self._room.park()
        if self._closed:
            raise PeerUnreachable("the session has ended")

    def put(self, stream: int, head: bytes, payload: Buffer = b"") -> None:
        """Queue one frame, or send it now. `payload` must not change until it is sent.

        Never fails: trouble ends the session, and that is how everybody learns.
        """
        if self._closed:
            return
        frame = _Frame(stream, head, payload)
        size = len(head) + len(payload)
        if size > URGENT_FRAME_BYTES_MAX or stream in self._bulk_streams:
            self._bulk.append(frame)
            self._bulk_bytes += size
            self._bulk_streams[stream] = self._bulk_streams.get(stream, 0) + 1
        else:
            if self._urgent_bytes > _CONTROL_BYTES_MAX:
                self.close()
                self._failed(Overloaded("the peer does not read what it asks for"))
                return
            self._urgent.append(frame)
            self._urgent_bytes += size
        if self._task is not None and not self._held:
            self._pump()

    def withdraw(self, stream: int) -> bool:
        """Take back the only frame of a call's stream if nothing of it has been sent."""
        if stream in self._bulk_streams:
            queue = self._bulk
        elif any(frame.stream == stream for frame in self._urgent):
            queue = self._urgent
        else:
            return False
        frame = next(frame for frame in queue if frame.stream == stream)
        queue.remove(frame)
        self._forget(frame, bulk=queue is self._bulk)
        return True

    def hold(self) -> None:
        """Only queue until `release`: answers to what arrived together leave together."""
        self._held = True

    def release(self) -> None:
        """Send what has been put since `hold`."""
        self._held = False
        if self._task is not None and (self._urgent or self._bulk):
            self._pump()

    # -- sending ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what does not fit into the socket at once, until cancelled.

        Raises:
            PeerUnreachable: the stream broke, or took nothing for `SEND_STALL_S`.
        """
        while True:
            while self._sending or self._load():
                self._stream.send_nowait(self._sending)
                if self._sending:
                    with trio.move_on_after(SEND_STALL_S) as scope:
                        await self._stream.wait_sendable()
                    if scope.cancelled_caught:
                        raise PeerUnreachable(
                            f"{self._stream.remote} takes nothing for {SEND_STALL_S:g} s"
                        )
                else:
                    await (
                        trio.lowlevel.checkpoint()
                    )  # the kernel may take gigabytes: let others run
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort_sleep)

    def _abort_sleep(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _pump(self) -> None:
        """Send in the putter's own task while the socket takes it."""
        try:
            while self._sending or self._load():
                self._stream.send_nowait(self._sending)
                if self._sending:
                    self._wake()
                    return
        except DfsError as error:
            self.close()
            self._failed(error)

    def _wake(self) -> None:
        task, self._task = self._task, None
        assert task is not None
        trio.lowlevel.reschedule(task)

    def _load(self) -> bool:
        """Begin the next frames; False if there are none."""
        if self._urgent and (self._burst < URGENT_BURST_MAX or not self._bulk):
            self._load_urgent()
            return True
        if not self._bulk:
            return False
        self._burst = 0
        frame = self._bulk.popleft()
        self._forget(frame, bulk=True)
        self._sending.append(memoryview(frame.head))
        if len(frame.payload):
            self._sending.append(memoryview(frame.payload).cast("B"))
        self._statistics.bytes_sent += frame.size
        return True

    def _load_urgent(self) -> None:
        """Join small frames up to the size of one TLS record: one system call for all."""
        joined = bytearray()
        while self._urgent:
            frame = self._urgent[0]
            if joined and len(joined) + frame.size > URGENT_FRAME_BYTES_MAX:
                break
            self._urgent.popleft()
            self._forget(frame, bulk=False)
            joined += frame.head
            joined += frame.payload
            self._burst += 1
        if not self._bulk:
            self._burst = 0
        self._statistics.bytes_sent += len(joined)
        self._sending.append(memoryview(joined))

    def _forget(self, frame: _Frame, *, bulk: bool) -> None:
        if bulk:
            self._bulk_bytes -= frame.size
            left = self._bulk_streams.pop(frame.stream) - 1
            if left:
                self._bulk_streams[frame.stream] = left
        else:
            self._urgent_bytes -= frame.size
        if self._room:
            self._room.unpark_all()

    # -- ending -------------------------------------------------------------------------------

    async def finish(self, head: bytes) -> None:
        """Send what is begun, then `head`, then nothing more. `run` must have ended."""
        self.close()
        self._sending.append(memoryview(head))
        self._statistics.bytes_sent += len(head)
        self._stream.send_nowait(self._sending)
        while self._sending:
            await self._stream.wait_sendable()
            self._stream.send_nowait(self._sending)

    def close(self) -> None:
        """Forget both queues and refuse whoever waits for room. Idempotent."""
        self._closed = True
        self._urgent.clear()
        self._bulk.clear()
        self._bulk_streams.clear()
        self._urgent_bytes = self._bulk_bytes = 0
        self._room.unpark_all()
