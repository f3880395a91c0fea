"""A network in memory: latency, partitions, cuts, hung dials. A `Transport` like any other.

    network = SimNetwork(random.Random(7))
    a = Endpoint(world, id_a, ..., transports={"sim": network.transport("a", id_a)})
    await a.listen("sim://a")
    network.partition({"a"}, {"b", "c"})

Each host is a name. What is sent arrives after a latency drawn from the seeded dice, in order
within a connection and in any order between connections; while two hosts are apart nothing arrives
and dials hang, and after `heal` what was sent arrives, as TCP would do it. `cut` breaks the
connections of two hosts instead. It passes the same contract as the real transports
(tests/contract/test_transport.py), and proves the peer's node id as tls does.

Deterministic: it starts no tasks and asks no clock but trio's, so a seeded run with a mock clock
repeats itself.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from dfsfs.base.errors import PeerUnreachable, Unavailable
from dfsfs.base.types import NodeId
from dfsfs.net import Address

SCHEME = "sim"
_BACKLOG = 128
_FIRST_PORT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """How connections behave. Latency is drawn anew for every piece sent."""

    latency_min_s: float = 0.0
    latency_max_s: float = 0.0
    window_bytes: int = 256 * 1024  # sent and not yet received, per direction


class SimNetwork:
    """The hosts of one simulation and what lies between them."""

    def __init__(self, dice: random.Random, profile: LinkProfile | None = None) -> None:
        self.profile = profile or LinkProfile()
        self._dice = dice
        self._listeners: dict[str, SimListener] = {}
        self._pipes: list[_Pipe] = []
        self._apart: set[frozenset[str]] = set()
        self._healed = trio.lowlevel.ParkingLot()
        self._ports = itertools.count(_FIRST_PORT)

    def transport(self, host: str, node: NodeId | None = None) -> "SimTransport":
        """What `host` dials and listens with; `node` is who it is proved to be."""
        return SimTransport(self, host, node)

    # -- faults -------------------------------------------------------------------------------

    def partition(self, *groups: Collection[str]) -> None:
        """Hosts of different groups no longer reach each other; connections stay, silent."""
        for one, other in itertools.combinations(groups, 2):
            self._apart |= {frozenset((a, b)) for a in one for b in other}

    def heal(self) -> None:
        """All hosts reach each other again; what was sent meanwhile arrives now."""
        self._apart.clear()
        self._healed.unpark_all()
        for pipe in self._pipes:
            pipe.changed.unpark_all()

    def cut(self, one: str, other: str) -> int:
        """Break the connections between two hosts, on both sides at once; returns how many."""
        return self._break(lambda pipe: {pipe.source, pipe.target} == {one, other})

    def crash(self, host: str) -> int:
        """Break all connections of a host and forget where it listens."""
        for url, listener in sorted(self._listeners.items()):
            if listener.host == host:
                listener.close()
                self._listeners.pop(url, None)
        return self._break(lambda pipe: host in (pipe.source, pipe.target))

    def reaches(self, one: str, other: str) -> bool:
        """Whether bytes can go from one host to the other now."""
        return frozenset((one, other)) not in self._apart

    def _break(self, chosen: Callable[["_Pipe"], bool]) -> int:
        broken = [pipe for pipe in self._pipes if chosen(pipe)]
        for pipe in broken:
            pipe.break_off()
        return len(broken) // 2

    # -- for the transport --------------------------------------------------------------------

    def latency_s(self) -> float:
        """The way of one piece, now."""
        return self._dice.uniform(self.profile.latency_min_s, self.profile.latency_max_s)

    def bind(self, listener: "SimListener") -> Address:
        """Register a listener; port 0 becomes a free one."""
        wanted = listener.address
        port = wanted.port or next(self._ports)
        address = Address(scheme=SCHEME, host=listener.host, port=port)
        if address.url in self._listeners:
            raise Unavailable(f"cannot listen at {address.url}: address already in use")
        self._listeners[address.url] = listener
        return address

    def unbind(self, listener: "SimListener") -> None:
        """Forget a listener."""
        if self._listeners.get(listener.url) is listener:
            del self._listeners[listener.url]

    async def dial(self, transport: "SimTransport", address: Address) -> "SimStream":
        """A connection from the transport's host. Hangs while the hosts are apart."""
        await trio.sleep(self.latency_s())
        while not self.reaches(transport.host, address.host):
            await self._healed.park()
        listener = self._listeners.get(address.url)
        if listener is None or len(listener.waiting) >= _BACKLOG:
            raise PeerUnreachable(f"cannot reach {address.url}: connection refused")
        there = _Pipe(self, transport.host, address.host)
        back = _Pipe(self, address.host, transport.host)
        there.other, back.other = back, there
        self._pipes += (there, back)
        far = SimStream(back, there, f"{SCHEME}://{transport.host}", transport.node)
        listener.waiting.append(far)
        listener.arrived.unpark_all()
        return SimStream(there, back, address.url, listener.node)

    def forget(self, pipe: "_Pipe") -> None:
        """Both ends of a pipe are done with it."""
        if pipe in self._pipes:
            self._pipes.remove(pipe)


class _Pipe:
    """One direction of a connection: pieces on their way, in order."""

    def __init__(self, network: SimNetwork, source: str, target: str) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.pieces: deque[tuple[float, bytes]] = deque()  # when each arrives
        self.bytes = 0
        self.end_at: float | None = None  # when the sender's close arrives
        self.broken = False
        self.changed = trio.lowlevel.ParkingLot()
        self.other: _Pipe | None = None
        self._last_s = 0.0

    def arrival_s(self) -> float:
        """When something sent now arrives: never before what was sent earlier."""
        self._last_s = max(self._last_s, trio.current_time() + self.network.latency_s())
        return self._last_s

    def push(self, data: memoryview) -> int:
        """Take what fits."""
        taken = min(len(data), self.network.profile.window_bytes - self.bytes)
        if taken > 0:
            self.pieces.append((self.arrival_s(), bytes(data[:taken])))
            self.bytes += taken
            self.changed.unpark_all()
        return max(taken, 0)

    def pull(self, buffer: memoryview) -> int:
        """Take what has arrived."""
        count = 0
        now_s = trio.current_time()
        while self.pieces and count < len(buffer) and self.pieces[0][0] <= now_s:
            arrives_s, piece = self.pieces.popleft()
            taken = min(len(piece), len(buffer) - count)
            buffer[count : count + taken] = piece[:taken]
            count += taken
            if taken < len(piece):
                self.pieces.appendleft((arrives_s, piece[taken:]))
        self.bytes -= count
        if count:
            self.changed.unpark_all()
        return count

    def next_arrival_s(self) -> float | None:
        """When the next piece, or the end, arrives; None if nothing is on its way."""
        if not self.network.reaches(self.source, self.target):
            return None
        return self.pieces[0][0] if self.pieces else self.end_at

    def break_off(self) -> None:
        """Lose what is on its way, and fail both ends."""
        self.broken = True
        self.pieces.clear()
        self.bytes = 0
        self.changed.unpark_all()


class SimStream:
    """One end of a connection."""

    def __init__(self, out: _Pipe, into: _Pipe, remote: str, peer: NodeId | None) -> None:
        self._out = out
        self._into = into
        self._remote = remote
        self._peer = peer
        self._closed = False

    @property
    def remote(self) -> str:
        """The other end, for people and logs."""
        return self._remote

    @property
    def peer_id(self) -> NodeId | None:
        """Who the simulation says the peer is."""
        return self._peer

    @property
    def local(self) -> bool:
        """Never: hosts are machines."""
        return False

    async def handshake(self) -> None:
        """One latency, as a handshake costs."""
        await trio.sleep(self._out.network.latency_s())

    def send_nowait(self, parts: deque[memoryview]) -> None:
        """Take from the front of `parts` what fits into the window."""
        self._check(self._out)
        while parts:
            taken = self._out.push(parts[0])
            if taken < len(parts[0]):
                parts[0] = parts[0][taken:]
                return
            parts.popleft()

    async def wait_sendable(self) -> None:
        """Return when the window has room."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check(self._out)
            if self._out.bytes < self._out.network.profile.window_bytes:
                return
            await self._out.changed.park()

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with what has arrived, waiting for at least one byte."""
        await trio.lowlevel.checkpoint()
        pipe = self._into
        while True:
            self._check(pipe)
            at_s = pipe.next_arrival_s()
            if at_s is None:
                await pipe.changed.park()
                continue
            if at_s > trio.current_time():
                with trio.move_on_at(at_s):
                    await pipe.changed.park()
                continue
            return pipe.pull(buffer)

    def close(self) -> None:
        """Close both directions; what was sent still arrives."""
        if self._closed:
            return
        self._closed = True
        self._out.end_at = self._out.arrival_s()
        self._out.changed.unpark_all()
        if self._into.pieces:
            self._out.break_off()  # as TCP resets a connection closed with bytes unread
        self._into.break_off()
        self._out.network.forget(self._into)

    def _check(self, pipe: _Pipe) -> None:
        if self._closed:
            raise PeerUnreachable(f"connection to {self._remote} is closed")
        if pipe.broken:
            raise PeerUnreachable(f"connection to {self._remote} broke")


class SimTransport:
    """`sim://host:port`, as seen from one host."""

    def __init__(self, network: SimNetwork, host: str, node: NodeId | None) -> None:
        self._network = network
        self.host = host
        self.node = node

    async def connect(self, address: Address) -> SimStream:
        """Dial."""
        return await self._network.dial(self, address)

    async def listen(self, address: Address) -> "SimListener":
        """Bind; the host must be this transport's own, or empty."""
        await trio.lowlevel.checkpoint()
        if address.host not in ("", self.host):
            raise Unavailable(f"cannot listen at {address.url}: not an address of {self.host}")
        return SimListener(self._network, self, address)


class SimListener:
    """Listens on one host."""

    def __init__(self, network: SimNetwork, transport: SimTransport, address: Address) -> None:
        self.host = transport.host
        self.node = transport.node
        self.address = address
        self.waiting: deque[SimStream] = deque()
        self.arrived = trio.lowlevel.ParkingLot()
        self._network = network
        self._closed = False
        self.address = network.bind(self)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.address.url

    async def accept(self) -> SimStream:
        """The next connection."""
        await trio.lowlevel.checkpoint()
        while not self.waiting:
            if self._closed:
                raise PeerUnreachable("the listener is closed")
            await self.arrived.park()
        return self.waiting.popleft()

    def close(self) -> None:
        """Accept no more."""
        if not self._closed:
            self._closed = True
            self._network.unbind(self)
            self.arrived.unpark_all()
