"""A whole network in one process, in simulated time, the same for the same seed.

    async def test_something(sim: Simulation) -> None:
        a, b, c = await sim.start_nodes(3)
        await a.write("/x", b"1")
        sim.partition([a], [b, c])
        ...
        sim.heal()
        await sim.converge(within_s=60)

The nodes are real: `dfsfs.node.Node` with its databases and segment files, in a directory in memory
where there is one. Simulated are time, chance, threads (`SimWorld`) and the network (`SimNetwork`).

A crash is what `kill -9` leaves: at that instant the network of the node is dead and its directory
is copied, and only then its tasks are cancelled; what they still do, nobody sees. A restart uses
the copy. A power cut is a crash whose copy is what a disk may hold then (`dfsfs/testing/disk.py`).

Runs inside `trio.run` with a `JumpingClock` and within `deterministic(seed)`: see
tests/sim/conftest.py for stories, and `simulate` for everything else.
"""

import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dfsfs.base.units import MIB
from dfsfs.config import Address, Config
from dfsfs.net import NetworkKey, NodeIdentity
from dfsfs.net.identity import key_text
from dfsfs.node import Node
from dfsfs.testing import checkers, copies
from dfsfs.testing.determinism import JumpingClock, deterministic
from dfsfs.testing.disk import Disk, watched_flushes
from dfsfs.testing.history import History
from dfsfs.testing.network import LinkProfile, SimNetwork
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.world import SimWorld

T = TypeVar("T")

NAMES = "abcdefghijklmnop"
PORT = 4000
CAPACITY_BYTES = 256 * MIB
POLL_S = 0.25
LOCAL_NETWORK = LinkProfile(latency_min_s=0.0001, latency_max_s=0.002)


class Simulation:
    """Nodes, network and faults of one run. An async context manager."""

    def __init__(
        self,
        seed: int | str = 0,
        *,
        profile: LinkProfile = LOCAL_NETWORK,
        node_type: type[Node] = Node,
    ) -> None:
        """`node_type`: something else than `Node` to see whether its bugs are noticed."""
        self.seed = seed
        self.dice = random.Random(f"{seed}/faults")
        self.history = History()
        self.loses_power = True  # False: no power cut will come, so nothing is kept for one
        self.reorder_s = 0.0  # answers to calls of peers overtake each other by up to so much
        self._node_type = node_type
        self.network = SimNetwork(random.Random(f"{seed}/network"), profile, scheme="tls")
        self.nodes: list[SimNode] = []
        self._epochs: dict[frozenset[str], int] = {}
        self.needs = copies.Needs()
        self._disks: dict[str, Disk] = {}  # by node
        self._fuses: dict[str, int] = {}  # flushes left until a node's power is cut in one
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        self._directory = _new_directory()
        self._stack.enter_context(watched_flushes(self._flushed))
        self._key = self._directory / "network.key"
        key = NetworkKey(random.Random(f"{self.seed}/key").randbytes(32))
        _write_secret(self._key, key_text(key).encode())
        self._nursery_context = trio.open_nursery()
        self._nursery = await self._nursery_context.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._nursery.cancel_scope.cancel()
            await self._nursery_context.__aexit__(kind, error, trace)
        finally:
            self._stack.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    # -- nodes --------------------------------------------------------------------------------

    async def start_nodes(
        self, count: int, *, mounts: int | None = None, skew_s: float = 0.0, **settings: Any
    ) -> list[SimNode]:
        """Start nodes one after the other; the first founds, the others join through it.

        The first `mounts` of them are mounts (all, if None). Wall clocks are wrong by up to
        `skew_s`. `settings` go into each `Config`. When this returns, all know all.
        """
        mounting = count if mounts is None else mounts
        started = [
            await self.start_node(
                mount=place < mounting, skew_s=self.dice.uniform(-skew_s, skew_s), **settings
            )
            for place in range(count)
        ]
        await self.until(self.all_connected, within_s=60, what="all nodes are connected")
        return started

    async def start_node(
        self, *, mount: bool = True, skew_s: float = 0.0, **settings: Any
    ) -> SimNode:
        """Start one more node; it joins through the first that is up."""
        name = NAMES[len(self.nodes)]
        up = self.up()
        config = Config(
            **{
                "state": self._directory / f"{name}.0",
                "listen": (Address(name, PORT),),
                "bootstrap": (Address(up[0].name, PORT),) if up else (),
                "key_file": self._key,
                "name": name,
                "mount": mount,
                "capacity_bytes": CAPACITY_BYTES,
                **settings,
            }
        )
        secret = random.Random(f"{self.seed}/{name}").randbytes(32)
        identity = NodeIdentity(Ed25519PrivateKey.from_private_bytes(secret))
        config.state.mkdir()
        _write_secret(config.state / "node.key", identity.private_pem())
        self._disks[name] = Disk(config.state)
        node = SimNode(config, identity, self.history, self._node_type)
        node.epochs = self.epochs
        self.nodes.append(node)
        await self._start(node, config, skew_s)
        return node

    async def _start(self, node: SimNode, config: Config, skew_s: float) -> None:
        world = SimWorld(f"{self.seed}/{node.name}/{node.incarnation}", skew_s=skew_s)
        world.machine = f"{node.boot}"
        transport = self.network.transport(node.name, node.identity.node_id)
        await self._nursery.start(node.live, config, world, transport)
        if self.reorder_s:
            node.reorder(self.reorder_s, random.Random(f"{self.seed}/{node.name}/answers"))
        node.node.endpoint.on_session(
            up=lambda session: self._session_changed(node.name, session.peer.name),
            down=lambda session: self._session_ended(node.name, session.peer.name),
        )

    def crash(self, node: SimNode) -> None:
        """`kill -9`, at this instant."""
        assert node.up, f"{node.name} is down already"
        self._take_down(node, self._disks[node.name].move)

    def power_cut(self, *nodes: SimNode) -> None:
        """The machines of these nodes lose power, at this instant; of all nodes if none is named.

        What was not flushed is lost, torn or kept, as the dice of the run say.
        """
        assert self.loses_power
        cut = nodes or tuple(self.nodes)
        self.history.power_cut(node.name for node in cut)
        for node in cut:
            node.boot += 1
            self._take_down(node, partial(self._disks[node.name].power_cut, dice=self.dice))

    def power_cut_in_flush(self, node: SimNode, flushes: int = 1) -> None:
        """Cut the power of a node when it is about to flush something for the nth time from now."""
        self._fuses[node.name] = flushes

    def _take_down(self, node: SimNode, leave: Callable[[Path], None]) -> None:
        """End a node as it is now; `leave` makes the directory of its next life."""
        self._fuses.pop(node.name, None)
        self.network.crash(node.name)
        node.incarnation += 1
        state = self._directory / f"{node.name}.{node.incarnation}"
        leave(state)
        node.config = replace(node.config, state=state)
        if node.up:
            node.end()
        for other in self.nodes:
            self._session_changed(node.name, other.name)

    def _flushed(self, path: str, is_directory: bool) -> None:
        """Something is about to be flushed: by a node, by one that is dead, or by somebody else."""
        if not self.loses_power:
            return
        where = Path(path)
        for node in self.nodes:
            disk = self._disks[node.name]
            if not where.is_relative_to(disk.directory):
                continue
            if node.name in self._fuses:
                self._fuses[node.name] -= 1
                if not self._fuses[node.name]:
                    self.power_cut(node)
                    return
            disk.flushed(where, is_directory=is_directory)

    async def put_back(self, node: SimNode, backup: Path) -> None:
        """Kill a node and start it from a copy of an older state of its directory."""
        self.history.lost_states.append((node.name, self.history.event()))
        self.crash(node)
        await node.ended.wait()
        shutil.rmtree(node.state)
        shutil.copytree(backup, node.state)
        self._disks[node.name] = Disk(node.state)
        await self.restart(node)

    async def stop(self, node: SimNode) -> None:
        """An orderly end."""
        node.end()
        await node.ended.wait()
        self.network.crash(node.name)

    async def restart(self, node: SimNode) -> None:
        """Start a node that is down from what its directory holds; its peers it knows itself."""
        assert not node.up, f"{node.name} is up"
        assert not node.gone, f"{node.name} is gone for good"
        skew_s = node.world.skew_s
        await self._start(node, replace(node.config, bootstrap=()), skew_s)

    def up(self) -> list[SimNode]:
        """The nodes that run."""
        return [node for node in self.nodes if node.up]

    # -- faults -------------------------------------------------------------------------------

    def partition(self, *groups: Sequence[SimNode]) -> None:
        """Nodes of different groups no longer reach each other."""
        self.network.partition(*([node.name for node in group] for group in groups))

    def heal(self) -> None:
        """All nodes reach each other again."""
        self.network.heal()

    def slow(self, node: SimNode, latency_s: float) -> None:
        """What goes from and to a node takes so long; 0: as fast as the others again."""
        profile = LinkProfile(latency_min_s=latency_s / 2, latency_max_s=latency_s)
        self.network.slow(node.name, profile if latency_s else None)

    # -- who sees whom ------------------------------------------------------------------------

    def _session_ended(self, one: str, other: str) -> None:
        self.history.separations += 1
        self._session_changed(one, other)

    def _session_changed(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        self._epochs[pair] = self._epochs.get(pair, 0) + 1

    def epochs(self, node: SimNode) -> dict[str, int]:
        """The nodes this one is connected with now, both ways and caught up, as promise 4 means.

        With each a number: the same at two times if the connection did not end between them.
        """
        found = {}
        for other in self.up():
            if other is not node and _connected(node, other):
                found[other.name] = self._epochs.get(frozenset((node.name, other.name)), 0)
        return found

    def all_connected(self) -> bool:
        """Whether every two nodes that run are connected and caught up."""
        up = self.up()
        return all(_connected(one, other) for one in up for other in up if one is not other)

    # -- waiting and checking -----------------------------------------------------------------

    async def until(
        self, condition: Callable[[], bool], *, within_s: float, what: str = "the condition holds"
    ) -> float:
        """Wait for something in simulated time; returns how long it took.

        Raises:
            AssertionError: it did not happen.
        """
        start_s = trio.current_time()
        while not condition():
            waited_s = trio.current_time() - start_s
            assert waited_s < within_s, f"seed {self.seed}: not within {within_s} s: {what}"
            await trio.sleep(POLL_S)
        return trio.current_time() - start_s

    async def converge(self, within_s: float = 60.0, *, restored: bool = False) -> float:
        """Wait until all nodes that run hold the same, and see that it is sound.

        Same rows, same valid tree, every block on the nodes that run and should have it. With
        `restored` the others do not count: it is on as many as the factor asks. Returns how long
        that took.

        Raises:
            AssertionError: it did not happen, or the tree is broken; the message says how.
        """
        start_s = trio.current_time()
        while problems := await self._unsettled(restored):
            waited_s = trio.current_time() - start_s
            assert waited_s < within_s, f"seed {self.seed}: after {within_s} s: {problems[:5]}"
            await trio.sleep(POLL_S)
        broken = checkers.broken_trees(self.up())
        assert not broken, f"seed {self.seed}: {broken[:5]}"
        return trio.current_time() - start_s

    async def _unsettled(self, restored: bool) -> list[str]:
        if not self.all_connected():
            return ["not all nodes are connected"]
        return (
            checkers.different_rows(self.up())
            or checkers.different_trees(self.up())
            or await copies.missing_copies(self.up(), self.needs, restored=restored)
        )

    def no_acknowledged_write_lost(self) -> bool:
        """Every closed write is shown, or somebody who had seen it put something else there.

        Raises:
            AssertionError: the message says which is lost.
        """
        lost = checkers.lost_writes(self.history, self.up())
        assert not lost, f"seed {self.seed}: {lost[:5]}"
        return True

    async def check(self) -> None:
        """Everything that must hold after `converge`.

        Raises:
            AssertionError: the message says what does not.
        """
        self.no_acknowledged_write_lost()
        problems = checkers.stale_reads(self.history) + self.history.broken
        problems += checkers.older_than_synced(self.history, self.up())
        problems += checkers.shared_wins(self.history)
        problems += checkers.wrong_conflicts(self.history, self.up())
        problems += await checkers.unreadable(self.up())
        assert not problems, f"seed {self.seed}: {problems[:5]}"

    @property
    def trace(self) -> str:
        """A hash of every byte on the network and when it was sent: equal for equal runs."""
        return self.network.trace


def _connected(one: SimNode, other: SimNode) -> bool:
    """Whether what either commits now is waited for by the other's rules too."""
    return all(
        any(peer.node == far.identity.node_id for peer in near.node.cluster.publication.peers)
        and near.node.cluster.exchange.is_level(far.identity.node_id)
        for near, far in ((one, other), (other, one))
    )


def _new_directory() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="dfsfs-sim-", dir=memory if memory.is_dir() else None))


def _write_secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def simulate(
    seed: int | str,
    scenario: Callable[[Simulation], Awaitable[T]],
    *,
    node_type: type[Node] = Node,
) -> T:
    """Run a scenario from beginning to end, by itself; whatever it returns."""

    async def run() -> T:
        async with Simulation(seed, node_type=node_type) as simulation:
            return await scenario(simulation)

    with deterministic(f"{seed}/scheduling"):
        return trio.run(run, clock=JumpingClock())
