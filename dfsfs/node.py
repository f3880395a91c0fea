"""A node: the composition root, and the library API.

    async with Node(config) as node:
        await node.put("key", stream)
        async with node.get("key") as reader: ...

Builds the parts from a `Config`, from the lowest floor up, starts them in that order and ends them
in reverse. It has no face: `cli` puts a mount (`fuse.serve(node.filesystem, ...)`) and the control
socket in front of it. Crash-only: what was acknowledged is durable, and starting is recovering.
"""

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, suppress
from types import TracebackType
from typing import Any, Self

import trio

from dfsfs import __version__
from dfsfs.admin import Key, Listing
from dfsfs.base.errors import Full, NotSupported, Unavailable
from dfsfs.base.limits import (
    JOIN_TIMEOUT_S,
    OVERTAKEN_WAIT_S,
    STORE_FULL_BYTES,
)
from dfsfs.base.types import Buffer, ContentRef, DigestKind, InodeId, NodeId
from dfsfs.base.units import MIB
from dfsfs.blocks import SegmentStore
from dfsfs.cluster import Cluster, ClusterSettings, Member
from dfsfs.cluster.drain import is_draining
from dfsfs.cluster.incarnation import present_origin, take_another
from dfsfs.config import Config
from dfsfs.conflicts import Conflicts
from dfsfs.content import HashingUpload, content_key, fold
from dfsfs.crdt import HybridClock, SteadyWall
from dfsfs.keys import Keys
from dfsfs.namespace import Namespace
from dfsfs.net import (
    Credentials,
    Endpoint,
    NetworkKey,
    NodeIdentity,
    Transports,
    create_network_key,
    insecure_transports,
    load_network_key,
    local_addresses,
    network_id,
    standard_transports,
)
from dfsfs.runtime import (
    Ballast,
    CallTable,
    Checkpointer,
    DirectoryLock,
    GroupCommit,
    RealWorld,
    Reserve,
    World,
    run_worker,
)
from dfsfs.state import NODE_KEY, open_state
from dfsfs.status import Figures
from dfsfs.vfs import Filesystem, Space

log = logging.getLogger(__name__)

INSECURE_NETWORK = b"insecure"  # network id of nodes without a key
STOP_TIMEOUT_S = 10.0  # an orderly end does not take longer than this
ANNOUNCE_S = 30.0  # how often the space a node uses is told to the others
FULL_WATCH_S = 2.0  # how often it looks whether it has become full
INCARNATIONS_MAX = 16  # tried at one start
WEIGHT_STEP = 0.25  # a weight is announced anew when the capacity has changed by this part of it


class Node:
    """One peer of a network, running between `__aenter__` and `__aexit__`."""

    def __init__(
        self,
        config: Config,
        *,
        world: World | None = None,
        transports: Transports | None = None,
    ) -> None:
        """Nothing is opened yet.

        `world`: time, chance and threads; the machine's own by default. `transports`: how peers are
        reached; by default TLS with the network's key.
        """
        self.config = config
        self._transports = transports
        self.world: World = world or RealWorld()
        self.calls = CallTable()  # what a face was asked to do
        self._stack = AsyncExitStack()
        self._outdated = False  # the next start will be another incarnation

    # -- life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the state, start every part, and join the network if told to.

        Raises:
            Misconfigured, Refused: what was asked for cannot be; the message says what to do.
            Unavailable: the network could not be joined within `limits.JOIN_TIMEOUT_S`.
        """
        for _ in range(INCARNATIONS_MAX):
            if await self._try_start():
                return self
        raise Unavailable("peers know every incarnation of this node that was tried")

    async def _try_start(self) -> bool:
        """Start as the incarnation the state directory says; False if it has to be another."""
        async with AsyncExitStack() as stack:
            await self._open_state(stack)
            self._build()
            if self._state.uncertain:
                log.warning("this node goes on as another incarnation: %s", self._state.uncertain)
                self._next_incarnation()
                await self.world.run_blocking(self._state.begin)
                return False
            await self.world.run_blocking(self._state.begin)
            await _start(stack, self.endpoint.run)
            await self._listen()
            await _start(stack, self.cluster.run)
            if await self._went_back():
                return False
            await _start(stack, self.filesystem.run)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(run_worker, self._checkpointer)
            nursery.start_soon(self._announce_space)
            if self.config.bootstrap or (self._state.names_lost and self._others()):
                await self.cluster.join(JOIN_TIMEOUT_S)
                self._state.names_are_back()
            self._adopt_digest()
            nursery.start_soon(run_worker, self.cluster.upkeep.settler)
            self._stack = stack.pop_all()
        return True

    async def _went_back(self) -> bool:
        """Whether peers hold more of this node's rows than it does: a backup, or a power cut.

        Asked before the first write. Who is away cannot be asked; if the node learns it later, it
        stays apart from that peer until it is started again.
        """
        exchange = self.cluster.exchange
        with trio.move_on_after(OVERTAKEN_WAIT_S):
            await exchange.wait_heard(self._others())
        if not exchange.used_origins:
            return False
        log.warning("this node's state went back in time: it goes on as another incarnation")
        self._next_incarnation()
        return True

    def _next_incarnation(self) -> None:
        used = self.cluster.exchange.used_origins | set(self.namespace.have())
        take_another(self.members, used, self.world.random)

    def _others(self) -> set[NodeId]:
        return {member.node for member in self.members.current()} - {self.identity.node_id}

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop every part. What was acknowledged is durable already."""
        try:
            with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                await self.filesystem.commit_all()  # what was written but not closed
        finally:
            # Not inside a scope: the nursery on the stack is older than any scope opened here.
            await self._stack.aclose()

    async def _close_store(self) -> None:
        """Blocks first: the mark of an orderly end must not survive without them."""
        with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await self.store.close()
            await self.world.run_blocking(self._state.end)

    async def _open_state(self, stack: AsyncExitStack) -> None:
        config = self.config
        stack.enter_context(DirectoryLock(config.state))
        self._reserve = Reserve(config.state, config.reserve_bytes)
        self._ballast = Ballast(config.state)
        self._ballast.throw_off_if_full()
        self.key = self._network_key()
        self.identity = NodeIdentity.load_or_create(config.state / NODE_KEY)
        databases = stack.enter_context(ExitStack())
        self._state = await self.world.run_blocking(
            open_state, config, self.world, self.identity.node_id, databases
        )
        self.members = self._state.members
        self.store = await SegmentStore.open(
            self.world,
            config.state / "blocks",
            capacity_bytes=config.capacity_bytes,
            reserve_bytes=config.reserve_bytes,
        )
        stack.push_async_callback(self._close_store)

    def _network_key(self) -> NetworkKey | None:
        config = self.config
        if config.insecure:
            return None
        if config.founds_network:
            key = create_network_key(config.key_path)
            log.info("founded a network; its key is %s", config.key_path)
            return key
        return load_network_key(config.key_path)

    def _own_transports(self) -> Transports:
        if self.key is None:
            return insecure_transports()
        return standard_transports(Credentials(identity=self.identity, key=self.key))

    def _build(self) -> None:
        config = self.config
        self.origin = present_origin(self.members)
        self.network = network_id(self.key) if self.key else INSECURE_NETWORK
        self.endpoint = Endpoint(
            self.world,
            self.identity.node_id,
            name=config.name,
            network=self.network,
            transports=self._transports or self._own_transports(),
            hello=self._hello_fields,
            admit=lambda node: self.cluster.membership.check_admitted(node),
        )
        wall = SteadyWall(self.world)
        clock = HybridClock(wall, latest_ns=wall.latest_ns)
        self.namespace = Namespace(
            self._state.namespace,
            origin=self.origin,
            clock=clock,
            node_name=self.members.name_of_origin,
        )
        self.members.watch_names(self.namespace.names_changed)
        kind = self._known_digest() or config.digest
        if not config.bootstrap and self._known_digest() is None:
            self._remember_digest(kind)
            self.namespace.own_root(os.geteuid(), os.getegid(), self.world.wall_ns())
        self._sync = GroupCommit(self._flush)
        self.cluster = Cluster(
            self.world,
            self.endpoint,
            self.namespace,
            self.store,
            self.store.pins,
            self.members,
            self._state.gc,
            ClusterSettings(
                bootstrap=config.bootstrap_urls,
                copies=config.replicas,
                concern=None if config.write_concern == "all" else config.write_concern,
                strict=config.strict_write_concern,
                on_partition=config.on_partition,
                waits_for_mounts=config.visibility == "sync",
                fetch_timeout_s=config.fetch_timeout_s,
                cache_bytes_max=config.cache_bytes,
                kind=kind,
                repair_after_s=config.repair_after_s,
                repair_rate=config.repair_rate,
                gc_grace_s=config.gc_grace_s,
                scrub_period_s=config.scrub_period_s,
                horizon_s=config.horizon_s,
            ),
            describe=self._describe,
            sync_local=self._sync,
            applied=lambda changes: self.filesystem.invalidated(changes),
            contents_in_use=self._contents_in_use,
            check_namespace=self._state.check,
            mounts=config.mount,
            is_dirty=lambda inode: self.filesystem.has_uncommitted(inode),
            write_back=lambda inode: self.filesystem.hand_over(inode),
        )
        self.filesystem = Filesystem(
            self.world,
            self.namespace,
            self.cluster.storage,
            self.cluster.publication,
            facts=self,
            leases=self.cluster.leases,
            drafts=self.cluster.drafts,
        )
        self._keys = Keys(
            self.world,
            self.namespace,
            self.cluster.storage,
            self.cluster.publication,
            self.cluster.leases,
            self.cluster.drafts,
            has_room=self.has_room,
        )
        self._conflicts = Conflicts(
            self.namespace, self._keys, self.cluster.leases, self.cluster.publication
        )
        self._checkpointer = Checkpointer(
            self.world, self._state.databases, self._reserve, self._ballast
        )
        self._figures = Figures(
            world=self.world,
            state=self._state,
            store=self.store,
            namespace=self.namespace,
            endpoint=self.endpoint,
            cluster=self.cluster,
            filesystem=self.filesystem,
            calls=self.calls,
            sync=self._sync,
            checkpointer=self._checkpointer,
        )

    async def _listen(self) -> None:
        """Listen; without --listen any free port does when the usual one is taken.

        Where any does, that of last time goes first: nodes that were all started again look for
        each other where they were.
        """
        own = self.members.get(self.identity.node_id)
        before = [] if own is None else [url.rpartition(":")[2] for url in own.addresses]
        self.urls = []
        for url in self.config.listen_urls:
            host, _, port = url.rpartition(":")
            if self.config.listen is None:
                ports = [*before, port, "0"]
            else:
                ports = [*before, port] if port == "0" else [port]
            self.urls.append(await self._listen_on([f"{host}:{port}" for port in ports]))

    async def _listen_on(self, urls: Sequence[str]) -> str:
        """The first that is free."""
        for url in urls[:-1]:
            with suppress(Unavailable):
                return await self.endpoint.listen(url)
        return await self.endpoint.listen(urls[-1])

    # -- what the parts ask of the whole --------------------------------------------------------

    def _known_digest(self) -> DigestKind | None:
        raw = self.members.fact("digest")
        return None if raw is None else DigestKind(int(raw))

    def _remember_digest(self, kind: DigestKind) -> None:
        self.members.set_fact("digest", b"%d" % kind)

    def _adopt_digest(self) -> None:
        """A joining node hashes as the network was founded to."""
        if self._known_digest() is not None:
            return
        for session in self.endpoint.sessions.values():
            kind = session.peer.fields.get("digest")
            if kind in list(DigestKind):
                self._remember_digest(DigestKind(kind))
                self.cluster.storage.kind = DigestKind(kind)
                return

    def _hello_fields(self) -> dict[str, Any]:
        kind = self._known_digest()
        return {
            "origin": int(self.origin),
            "mounts": self.config.mount,
            "stores": True,
            "digest": None if kind is None else int(kind),
            "program": __version__,
        }

    def _describe(self, version: int) -> Member:
        usage = self.store.usage()
        shortage = self.cluster.upkeep.repairer.shortage
        return Member(
            node=self.identity.node_id,
            name=self.config.name,
            origin=self.origin,
            version=version,
            addresses=tuple(self._advertised()),
            weight=self._weight(),
            used=usage.block_bytes // MIB,
            mounts=self.config.mount,
            full=self._is_full(),
            missing_copies=shortage.missing_copies,
            missing_bytes=shortage.missing_bytes,
            single_blocks=shortage.single_blocks,
        )

    def _weight(self) -> int:
        """MiB of capacity; stays as it is while that changes little, because blocks would move."""
        if is_draining(self.members):
            return 0
        capacity = max(1, self.store.usage().capacity_bytes // MIB)
        known = self.members.get(self.identity.node_id)
        if known is not None and abs(capacity - known.weight) < WEIGHT_STEP * known.weight:
            return known.weight
        return capacity

    def _is_full(self) -> bool:
        """Whether peers should give their blocks to others; the cache would make room."""
        usage = self.store.usage()
        room = usage.capacity_bytes - usage.block_bytes
        return room + self.cluster.cache.bytes < STORE_FULL_BYTES

    def _advertised(self) -> list[str]:
        """Where others can dial this node: what it listens on, with real addresses for "any"."""
        result = []
        for url in self.urls:
            scheme, _, rest = url.partition("://")
            host, _, port = rest.rpartition(":")
            if host in ("", "0.0.0.0", "[::]"):
                result += [f"{scheme}://{address}:{port}" for address in local_addresses()]
            else:
                result.append(url)
        return result

    async def _announce_space(self) -> None:
        told_s = self.world.now_s()
        while True:
            await trio.sleep(FULL_WATCH_S)
            if self.cluster.exchange.used_origins and not self._outdated:
                log.error("this node's state went back in time: start it again")
                self._outdated = True
                self._next_incarnation()
            own = self.members.get(self.identity.node_id)
            changed = own is not None and own.full != self._is_full()
            if changed or self.world.now_s() - told_s >= ANNOUNCE_S:
                try:
                    self.cluster.membership.announce()
                except Full as error:
                    log.info("the others cannot be told: %s", error)
                told_s = self.world.now_s()

    def _contents_in_use(self) -> Iterable[tuple[InodeId, ContentRef]]:
        yield from self.filesystem.contents_in_use()
        yield from self._keys.contents_in_use()

    async def _flush(self) -> None:
        """Blocks first: rows that refer to them must not be the only thing that survives."""
        position = self.namespace.position
        await self.store.sync()
        await self.world.run_blocking(self._state.namespace.sync)
        await self.members.flush(self.world)
        self.cluster.exchange.flushed(position)

    # -- facts for the vfs (vfs.FileFacts) ------------------------------------------------------

    async def key_of(self, content: ContentRef) -> str:
        """`user.dfs.key`."""
        kind = self.cluster.storage.kind
        return content_key(kind, await fold(self.cluster.storage, HashingUpload(kind), content))

    async def replicas(self, content: ContentRef) -> str:
        """`user.dfs.replicas`: nodes in reach that hold all of it."""
        return str(await self._replicas(content))

    async def _replicas(self, content: ContentRef) -> int:
        total, counts = await self.cluster.holders(content)
        if total == 0:
            return 1 + len(self.endpoint.sessions)  # in the rows, which every node holds
        return sum(count == total for count in counts.values())

    def has_room(self) -> bool:
        """Whether this node's disk takes more names and bytes."""
        return self._reserve.has_room()

    def space(self) -> Space:
        """Capacity of the network at the replication factor (promise 3)."""
        members = [member for member in self.members.current() if member.weight > 0]
        copies = max(1, min(self.config.replicas, len(members)))
        capacity = used = 0
        for member in members:
            if member.node == self.identity.node_id:  # what members tell of themselves is older
                usage = self.store.usage()
                capacity += usage.capacity_bytes
                used += usage.block_bytes
            else:
                capacity += member.weight * MIB
                used += min(member.used, member.weight) * MIB
        return Space(capacity_bytes=capacity // copies, free_bytes=(capacity - used) // copies)

    # -- the library (admin.Operator) -----------------------------------------------------------

    async def put(self, key: Key, source: AsyncIterable[Buffer]) -> None:
        """Store a stream as the file `key`. See `admin.Operator.put`."""
        await self._keys.put(key, source)

    def get(self, key: Key) -> AbstractAsyncContextManager[AsyncIterable[Buffer]]:
        """The content of a file, piece by piece. See `admin.Operator.get`."""
        return self._keys.get(key)

    async def stat(self, key: Key) -> Listing:
        """One entry, symlinks not followed."""
        return await self._keys.stat(key)

    async def list(self, key: Key, after: bytes | None, limit: int) -> "list[Listing]":
        """A page of a directory."""
        return await self._keys.list(key, after, limit)

    async def remove(self, key: Key) -> None:
        """Remove a file's name, or an empty directory."""
        await self._keys.remove(key)

    def status(self) -> dict[str, Any]:
        """What `dfs status` shows. See `admin.Operator.status`."""
        return {
            "node": {
                "id": self.identity.node_id.hex(),
                "name": self.config.name,
                "version": __version__,
                "addresses": self._advertised(),
                "insecure": self.config.insecure,
                "pid": os.getpid(),
            },
            "network": {
                "id": self.network.hex(),
                "digest": self.cluster.storage.kind.name.lower(),
                "replicas": self.config.replicas,
                "write_concern": self.config.write_concern,
                "members": len(self.members.current()),
            },
            **self._figures.report(),
        }

    def warn_of_stop(self) -> None:
        """Say in the log what goes out of reach with this node, if it is the last holder."""
        if count := self.cluster.upkeep.last_holder_of:
            log.warning("this node is the only one in reach that holds %d blocks", count)

    def upkeep(self, task: str, arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Start a task of the operator. See `admin.Operator.upkeep`."""
        upkeep = self.cluster.upkeep
        if task == "gc":
            return upkeep.collect(dry_run=bool(arguments.get("dry_run")))
        if task == "scrub":
            key = arguments.get("key")
            return upkeep.scrub(None if key is None else self._keys.resolve(key).content)
        if task == "fsck":
            return upkeep.check(repair=bool(arguments.get("repair")))
        if task == "drain":
            return upkeep.drain(stay=bool(arguments.get("stay")))
        if task == "conflicts":
            return self._conflicts.list()
        if task == "resolve":
            return self._conflicts.resolve(arguments["key"], arguments["keep"])
        if task == "peers":
            return upkeep.change_member(str(arguments["name"]), back=bool(arguments.get("back")))
        raise NotSupported(f"no task is called {task}")

    async def info(self, key: Key) -> dict[str, Any]:
        """Where a file is. See `admin.Operator.info`."""
        inode = await self._keys.shown(key)
        content = inode.content
        total, counts = await self.cluster.holders(content)
        names = {member.node: member.name for member in self.members.all()}
        return {
            "key": await self.key_of(content),
            "path": os.fsdecode(self.namespace.path(inode.inode)),
            "size": inode.size,
            "blocks": total,
            "stored_bytes": content.stored,
            "inline": content.inline is not None and not content.patched,
            "holders": [
                {"id": node.hex(), "name": names.get(node, ""), "blocks": count}
                for node, count in sorted(counts.items())
            ],
            "replicas": await self._replicas(content),
        }


async def _start(stack: AsyncExitStack, run: Callable[..., Awaitable[None]]) -> None:
    """Run a part until the stack is unwound to here, whatever is cancelled around it.

    So parts end in reverse order, and one that still has to write back when a node is cancelled
    can use those below it.
    """
    scope = trio.CancelScope(shield=True)

    async def shielded(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await run(task_status=task_status)

    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(scope.cancel)
    await nursery.start(shielded)
