"""A network in memory: latency, partitions, cuts, hung dials. A `Transport` like any other.

    network = SimNetwork(random.Random(7))
    a = Endpoint(world, id_a, ..., transports={"sim": network.transport("a", id_a)})
    await a.listen("sim://a")
    network.partition({"a"}, {"b", "c"})

Each host is a name. What is sent arrives after a latency drawn from the seeded dice, in order
within a connection and in any order between connections; while two hosts are apart nothing arrives
and dials hang, and after `heal` what was sent arrives, as TCP would do it. `cut` and `crash` break
connections instead. It passes the same contract as the real transports
(tests/contract/test_transport.py), and proves the peer's node id as tls does.

Deterministic: it starts no tasks and asks no clock but trio's, so a seeded run with a mock clock
repeats itself: `trace` is a hash of every byte sent and when.
"""

import hashlib
import itertools
import math
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

    def __init__(
        self, dice: random.Random, profile: LinkProfile | None = None, *, scheme: str = SCHEME
    ) -> None:
        """`scheme`: that of its addresses, for nodes that believe to use another transport."""
        self.profile = profile or LinkProfile()
        self.scheme = scheme
        self.bytes_sent = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._slow: dict[str, LinkProfile] = {}
        self._liars: dict[str, Callable[[bytes], bytes]] = {}
        self._alive: dict[str, list[SimTransport]] = {}
        self._dice = dice
        self._listeners: dict[str, SimListener] = {}
        # In the order they were made: faults must not depend on the order of a set.
        self._pipes: list[_Pipe] = []
        self._apart: set[frozenset[str]] = set()
        self._healed = trio.lowlevel.ParkingLot()
        self._ports = itertools.count(_FIRST_PORT)

    def transport(self, host: str, node: NodeId | None = None) -> "SimTransport":
        """What `host` dials and listens with; `node` is who it is proved to be."""
        transport = SimTransport(self, host, node)
        self._alive.setdefault(host, []).append(transport)
        return transport

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

    def cut(self, one: str, other: str, *, noticed_by: str | None = None) -> int:
        """Break the connections between two hosts; returns how many.

        Both sides notice at once, or only `noticed_by`: then the other side hears nothing more.
        """
        return self._break(lambda pipe: {pipe.source, pipe.target} == {one, other}, noticed_by)

    def crash(self, host: str, *, noticed: bool = True) -> int:
        """Break all connections of a host, which loses its listeners and its transports.

        `noticed`: its peers' connections are reset, as when a process dies; otherwise they hear
        nothing more, as when a machine does.
        """
        for transport in self._alive.pop(host, []):
            transport.dead = True
        for listener in list(self._listeners.values()):
            if listener.host == host:
                listener.close()
        chosen = host if not noticed else None
        return self._break(lambda pipe: host in (pipe.source, pipe.target), chosen)

    def reaches(self, one: str, other: str) -> bool:
        """Whether bytes can go from one host to the other now."""
        return frozenset((one, other)) not in self._apart

    def slow(self, host: str, profile: LinkProfile | None) -> None:
        """Give what goes from and to a host another latency; None: that of all again."""
        if profile is None:
            self._slow.pop(host, None)
        else:
            self._slow[host] = profile

    def tamper(self, host: str, change: Callable[[bytes], bytes] | None) -> None:
        """Let `change` see and alter every piece a host sends (keeping its length); None: stop."""
        if change is None:
            self._liars.pop(host, None)
        else:
            self._liars[host] = change

    @property
    def trace(self) -> str:
        """A hash of everything sent so far: who to whom, when, what."""
        return self._trace.hexdigest()

    def _break(self, chosen: Callable[["_Pipe"], bool], noticed_by: str | None) -> int:
        broken = [pipe for pipe in self._pipes if chosen(pipe)]
        for pipe in broken:
            pipe.break_off(noticed_by)
            self._pipes.remove(pipe)
        return len(broken) // 2

    # -- for the transport --------------------------------------------------------------------

    def latency_s(self, source: str, target: str) -> float:
        """The way of one piece, now."""
        profile = self._slow.get(source) or self._slow.get(target) or self.profile
        return self._dice.uniform(profile.latency_min_s, profile.latency_max_s)

    def sent(self, source: str, target: str, piece: bytes) -> bytes:
        """Note a piece on its way; returns it as it will arrive."""
        liar = self._liars.get(source)
        if liar is not None:
            told = liar(piece)
            assert len(told) == len(piece), "a liar keeps the length"
            piece = told
        self._trace.update(f"{trio.current_time():.9f} {source} {target} {len(piece)} ".encode())
        self._trace.update(piece)
        self.bytes_sent += len(piece)
        return piece

    def bind(self, listener: "SimListener") -> Address:
        """Register a listener; port 0 becomes a free one."""
        wanted = listener.address
        port = wanted.port or next(self._ports)
        address = Address(scheme=self.scheme, host=listener.host, port=port)
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
        await trio.sleep(self.latency_s(transport.host, address.host))
        while not self.reaches(transport.host, address.host):
            await self._healed.park()
        transport.check()
        listener = self._listeners.get(address.url)
        if listener is None or len(listener.waiting) >= _BACKLOG:
            raise PeerUnreachable(f"cannot reach {address.url}: connection refused")
        there = _Pipe(self, transport.host, address.host)
        back = _Pipe(self, address.host, transport.host)
        self._pipes += (there, back)
        far = SimStream(back, there, f"{self.scheme}://{transport.host}", transport.node)
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
        self.broken_for: frozenset[str] = frozenset()  # hosts whose use of it fails
        self.reset = False  # the end is no good one
        self.lost = False  # what is sent goes nowhere
        self.changed = trio.lowlevel.ParkingLot()  # whoever waits for an arrival, or for room
        self.reading: trio.CancelScope | None = None  # ends when what is on its way arrives
        self._last_s = 0.0

    def arrival_s(self) -> float:
        """When something sent now arrives: never before what was sent earlier."""
        way_s = self.network.latency_s(self.source, self.target)
        self._last_s = max(self._last_s, trio.current_time() + way_s)
        return self._last_s

    def push(self, data: memoryview) -> int:
        """Take what fits."""
        taken = min(len(data), self.network.profile.window_bytes - self.bytes)
        if taken > 0 and self.lost:
            self.bytes += taken
        elif taken > 0:
            piece = self.network.sent(self.source, self.target, bytes(data[:taken]))
            self.pieces.append((self.arrival_s(), piece))
            self.bytes += taken
            if self.reading is not None:
                # Not woken only to see that it has to wait: that is half of what a run costs.
                arrives_s = self.next_arrival_s()
                if arrives_s is not None:
                    self.reading.deadline = arrives_s
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

    def break_off(self, noticed_by: str | None = None) -> None:
        """Lose what is on its way, and fail both ends, or that of one host."""
        both = frozenset((self.source, self.target))
        self.broken_for |= both if noticed_by is None else {noticed_by}
        self.end_at = None
        self.drop()

    def drop(self) -> None:
        """Lose what is on its way, and all that will be sent."""
        self.lost = True
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
        await trio.sleep(self._out.network.latency_s(self._out.source, self._out.target))

    def send_nowait(self, parts: deque[memoryview]) -> None:
        """Take from the front of `parts` what fits into the window."""
        self._check(self._out, self._out.source)
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
            self._check(self._out, self._out.source)
            if self._out.bytes < self._out.network.profile.window_bytes:
                return
            await self._wait(self._out, self._into.next_arrival_s() if self._out.lost else None)

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with what has arrived, waiting for at least one byte."""
        pipe = self._into
        waited = False
        while True:
            self._check(pipe, pipe.target)
            at_s = pipe.next_arrival_s()
            if at_s is not None and at_s <= trio.current_time():
                if not waited:
                    await trio.lowlevel.checkpoint()
                    waited = True
                    continue  # much may have happened
                if not pipe.pieces and pipe.reset:
                    raise PeerUnreachable(f"connection to {self._remote} was reset")
                return pipe.pull(buffer)
            waited = True
            await self._wait(pipe, at_s, reading=True)

    async def _wait(self, pipe: _Pipe, until_s: float | None, *, reading: bool = False) -> None:
        with trio.move_on_at(math.inf if until_s is None else until_s) as scope:
            if reading:
                pipe.reading = scope
            try:
                await pipe.changed.park()
            finally:
                if reading:
                    pipe.reading = None

    def close(self) -> None:
        """Close both directions; what was sent still arrives."""
        if self._closed:
            return
        self._closed = True
        if not self._out.lost:
            self._out.end_at = self._out.arrival_s()
            # As TCP resets a connection that is closed with bytes unread.
            self._out.reset = bool(self._into.pieces)
            self._out.changed.unpark_all()
        self._into.drop()
        self._out.network.forget(self._into)

    def _ended(self) -> bool:
        """Whether the peer's close has arrived: it takes nothing more."""
        at_s = self._into.next_arrival_s()
        return at_s is not None and not self._into.pieces and at_s <= trio.current_time()

    def _check(self, pipe: _Pipe, host: str) -> None:
        if self._closed:
            raise PeerUnreachable(f"connection to {self._remote} is closed")
        gone = pipe is self._out and pipe.lost and self._ended()
        if gone or host in pipe.broken_for:
            raise PeerUnreachable(f"connection to {self._remote} broke")


class SimTransport:
    """`sim://host:port`, as seen from one host."""

    def __init__(self, network: SimNetwork, host: str, node: NodeId | None) -> None:
        self._network = network
        self.host = host
        self.node = node
        self.dead = False  # the machine crashed: whoever still uses it is a ghost

    def check(self) -> None:
        """Fail if the host has crashed since this was made."""
        if self.dead:
            raise PeerUnreachable(f"{self.host} has crashed")

    async def connect(self, address: Address) -> SimStream:
        """Dial."""
        self.check()
        return await self._network.dial(self, address)

    async def listen(self, address: Address) -> "SimListener":
        """Bind; the host must be this transport's own, or empty."""
        await trio.lowlevel.checkpoint()
        self.check()
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
