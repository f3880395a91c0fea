"""The parts of a peer, joined: what `node` starts, stops and asks.

Builds membership, exchange, publication and the copies from the node's own parts, starts what each
session needs when it comes up, and answers the questions that need more than one part. It holds no
state of its own beyond that.
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from dfsfs.base.errors import DfsError, Unavailable
from dfsfs.base.limits import OFFER_COUNT_MAX, PENDING_COPIES_MAX
from dfsfs.base.types import ContentRef, Digest, InodeId, NodeId
from dfsfs.base.units import MIB
from dfsfs.blocks import BlockStore, Pins
from dfsfs.cluster.drafts import Drafts
from dfsfs.cluster.exchange import METHOD as METHOD_ROWS
from dfsfs.cluster.exchange import Exchange
from dfsfs.cluster.gc import ContentsInUse
from dfsfs.cluster.leases import Leases
from dfsfs.cluster.members import Member, MemberTable
from dfsfs.cluster.membership import Membership
from dfsfs.cluster.partition import PartitionWatch
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.purge import Horizon, Purger
from dfsfs.cluster.rejoin import Rejoining
from dfsfs.cluster.replicate import lacks
from dfsfs.cluster.serve import BlockService
from dfsfs.cluster.settings import ClusterSettings
from dfsfs.cluster.storage import assemble_storage
from dfsfs.cluster.upkeep import Upkeep
from dfsfs.content import walk
from dfsfs.namespace import Change, Namespace
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import Bounds, Database, Worker, WorkerStatus, World, run_worker

log = logging.getLogger(__name__)

JOIN_POLL_S = 0.1  # how often a join looks whether it was refused


class Cluster:
    """This node among its peers. Owned by the node; `run` drives it."""

    def __init__(
        self,
        world: World,
        endpoint: Endpoint,
        namespace: Namespace,
        store: BlockStore,
        pins: Pins,
        members: MemberTable,
        gc_database: Database,
        settings: ClusterSettings,
        *,
        describe: Callable[[int], Member],
        sync_local: Callable[[], Awaitable[None]],
        applied: Callable[[Sequence[Change]], Awaitable[None]],
        contents_in_use: ContentsInUse,
        check_namespace: Callable[[], Awaitable[list[str]]],
        mounts: bool,
        is_dirty: Callable[[InodeId], bool],
        write_back: Callable[[InodeId], Awaitable[None]],
    ) -> None:
        """`describe(version)` makes this node's own member record.

        `sync_local` flushes blocks, then rows; `applied` is `Exchange`'s, the last two `Leases`'.
        """
        self._world = world
        self._endpoint = endpoint
        self._store = store
        self.members = members
        self._settings = settings
        self.publication = Publication(
            concern=settings.concern,
            copies_possible=lambda: min(settings.copies, members.copies_possible),
            strict=settings.strict,
            waits_for_mounts=settings.waits_for_mounts,
            sync_local=sync_local,
            place_again=lambda digests: self.replicator.place_again(digests),
        )
        self.leases = Leases(
            world,
            members.own,
            namespace.origin,
            mounts=mounts,
            is_dirty=is_dirty,
            write_back=write_back,
            peers_changed=self._peers_changed,
            following=namespace.following,
        )
        connected, policy = lambda: self.leases.connected_nodes, settings.on_partition
        self.partition = PartitionWatch(members, connected, policy=policy, mounts=mounts)
        members.watch(self._member_changed)
        rejoining = self.rejoining = Rejoining(namespace, endpoint, applied=applied)
        self.drafts = Drafts()
        self.exchange = Exchange(
            namespace, self.publication, self.leases, rejoining, applied=applied, drafts=self.drafts
        )
        horizon = Horizon(world, gc_database, members, endpoint, horizon_s=settings.horizon_s)
        is_level = self.exchange.is_level
        self.purger = Purger(world, namespace, endpoint, horizon, rejoining, sync_local, is_level)
        self._lost: dict[NodeId, Session] = {}  # the last session that ended with each node
        self.replicator, self.cache, self.fetcher, self.storage = assemble_storage(
            world,
            store,
            pins,
            endpoint,
            members,
            self.publication,
            settings,
            is_unreferenced=self._is_unreferenced,
        )
        self.membership = Membership(
            world,
            members,
            endpoint,
            bootstrap=settings.bootstrap,
            describe=describe,
            repair_after_s=settings.repair_after_s,
        )
        self.upkeep = Upkeep(
            world,
            gc_database,
            namespace,
            self.storage,
            store,
            endpoint,
            self.membership,
            self.replicator,
            self.publication,
            self.leases,
            settings,
            contents_in_use=contents_in_use,
            away_s=lambda: horizon.away_s(self.exchange.is_level),
            check_namespace=check_namespace,
        )
        self._sessions: trio.Nursery | None = None
        BlockService(world, store, self.cache).register(endpoint)
        endpoint.serve_streams(METHOD_ROWS, self.exchange.receive)
        endpoint.on_session(up=self._session_up, down=self._session_down)

    # -- life ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._sessions = nursery
            await nursery.start(self.fetcher.run)
            await nursery.start(self.replicator.run)
            await nursery.start(self.leases.run)
            self.membership.announce()
            nursery.start_soon(self.membership.run)
            nursery.start_soon(self.rejoining.run)
            for worker in (self.cache, *self.upkeep.workers, self.purger):
                nursery.start_soon(run_worker, worker)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._sessions = None

    async def join(self, timeout_s: float) -> None:
        """Return when a peer was reached and everything connected peers held was applied here.

        Raises:
            KeyMismatch: a bootstrap address belongs to another network.
            Unavailable: nobody could be reached in time; the message says why.
        """
        deadline_s = trio.current_time() + timeout_s
        while trio.current_time() < deadline_s:
            with trio.move_on_after(JOIN_POLL_S):
                await self.exchange.wait_level(lambda: set(self._endpoint.sessions))
                return
            refusal = self.membership.refusal()
            if refusal is not None:
                raise refusal  # a wrong key will not become right: do not wait out the time
        reasons = [f"{url}: {why}" for url, why in self.membership.failures().items() if why]
        raise Unavailable(
            "could not join the network: "
            + ("; ".join(reasons) or f"no answer within {timeout_s:.0f} s")
            + ". Is the node there running, is its port open, and is this its network's key?"
        )

    def _session_up(self, session: Session) -> None:
        if self._sessions is None:
            session.close("this node does not take part")  # not yet, or no longer
            return
        self._sessions.start_soon(self._serve_session, session)
        self.replicator.scan_wanted = True

    async def _serve_session(self, session: Session) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.membership.session_up, session)
                nursery.start_soon(self.exchange.send, session)
        except* DfsError as errors:
            reason = str(_first(errors))
            log.info("session with %s: %s", session.peer.name, reason)
            session.close(reason)

    def _session_down(self, session: Session) -> None:
        self.membership.session_down(session.peer.node)
        self.replicator.scan_wanted = True  # what is on one node only is known anew
        self._lost[session.peer.node] = session
        if self._sessions is not None:  # else this node ends, and nobody waits any more
            self._sessions.start_soon(self._wait_until_peer_knows, session)

    def _member_changed(self, member: Member) -> None:
        if member.removed:
            self.publication.forget(member.node)
        self._peers_changed()

    def _peers_changed(self) -> None:
        self.partition.update()
        self.leases.read_only = self.partition.read_only

    async def _wait_until_peer_knows(self, session: Session) -> None:
        """Calls go on without a peer when it cannot believe any more that it is connected."""
        await trio.sleep(max(0.0, session.peer_connected_until_s() - self._world.now_s()))
        if self._lost.get(session.peer.node) is session:
            del self._lost[session.peer.node]
            self.exchange.disconnected(session.peer.node)

    def _is_unreferenced(self, digest: Digest) -> bool:
        return self.upkeep.collector.is_unreferenced(digest)

    # -- questions ----------------------------------------------------------------------------

    async def holders(self, content: ContentRef) -> tuple[int, dict[NodeId, int]]:
        """Blocks of a file, and how many of them each node in reach holds.

        A file without blocks (inline, or one hole) is in the rows, which every node holds.
        """
        counts: dict[NodeId, int] = defaultdict(int)
        total = 0
        after: int | None = None
        while content.root is not None:
            page = await walk(self.storage, content, after, OFFER_COUNT_MAX)
            digests = sorted(set(page.digests))
            total += len(digests)
            counts[self.members.own] += sum(map(self._store.has, digests))
            async with trio.open_nursery() as nursery:
                for session in list(self._endpoint.sessions.values()):
                    nursery.start_soon(self._count_held, session, digests, counts)
            after = page.next
            if after is None:
                break
        return total, dict(counts)

    async def _count_held(
        self, session: Session, digests: list[Digest], counts: dict[NodeId, int]
    ) -> None:
        try:
            missing = await lacks(session, digests)
        except DfsError:
            return  # a node that cannot be asked is not counted
        counts[session.peer.node] += len(digests) - len(missing)

    def worker_statuses(self) -> list[WorkerStatus]:
        """Background duties."""
        workers: list[Worker] = [self.cache, self.upkeep.settler, *self.upkeep.workers, self.purger]
        return [worker.status for worker in workers]

    def coherence(self) -> dict[str, Any]:
        """What `dfs status` shows of this mount among the others."""
        counts = self.leases.statistics
        return {
            **self.partition.status(),
            "visibility": "sync" if self._settings.waits_for_mounts else "async",
            "joining": self.leases.joining,
            "leases": self.leases.count,
            "lease_waits": counts.waits,
            "lease_timeouts": counts.timeouts,
            "lease_requests": counts.requests,
            "lease_grants": counts.grants,
            "leases_given_ahead": counts.given_ahead,
            "written_back": counts.written_back,
            "visibility_waits": self.publication.waits,
            "draft_questions": self.drafts.questions,
        }

    def traffic(self) -> dict[str, int]:
        """What has gone to and come from peers since the start."""
        return {
            "copied_blocks": self.replicator.copied_blocks,
            "copied_bytes": self.replicator.copied_bytes,
            "short_blocks": self.replicator.short_blocks,
            "repaired_blocks": self.upkeep.repairer.copied_blocks,
            "repaired_bytes": self.upkeep.repairer.copied_bytes,
            "fetched_blocks": self.fetcher.fetched_blocks,
            "fetched_bytes": self.fetcher.fetched_bytes,
            "bad_fetched_blocks": self.fetcher.bad_blocks,
            "bad_stored_blocks": self.storage.bad_blocks,
            "mended_blocks": self.storage.mended_blocks,
            "rows_sent_bytes": self.exchange.rows_bytes_sent,
            "rows_applied_bytes": self.exchange.rows_bytes_applied,
        }

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        uploads = self.replicator.budget
        return {
            "upload_bytes": [uploads.in_use, uploads.bytes_max],
            **self.fetcher.bounded(),
            "pending_copies": [self.replicator.pending, PENDING_COPIES_MAX],
            **self.publication.bounded(),
            **self.exchange.bounded(),
            **self.rejoining.bounded(),
            **self.cache.bounded(),
            **self.leases.bounded(),
            **self.drafts.bounded(),
        }

    def peers(self) -> list[dict[str, Any]]:
        """What `dfs status` shows of the other members."""
        result = []
        for member in self.members.all():
            if member.node == self.members.own or member.removed:
                continue
            session = self._endpoint.sessions.get(member.node)
            to_come, to_send = self.exchange.lacking(member.node)
            traffic = self._endpoint.traffic(member.node)
            result.append(
                {
                    "id": member.node.hex(),
                    "name": member.name,
                    "addresses": list(member.addresses),
                    "state": self.membership.state_of(member.node),
                    "round_trip_s": None if session is None else session.round_trip_s,
                    "mount": member.mounts,
                    "rows_to_come": to_come,
                    "rows_to_send": to_send,
                    "absent": member.node in self.members.absent,
                    "full": member.full,
                    "capacity_bytes": member.weight * MIB,
                    "used_bytes": member.used * MIB,
                    "connected": session is not None,
                    "queued_bytes": 0 if session is None else session.outbox.queued_bytes,
                    "sent_bytes": traffic.bytes_sent,
                    "received_bytes": traffic.bytes_received,
                    "calls_sent": traffic.calls_sent,
                    "calls_served": traffic.calls_served,
                }
            )
        return result


def _first(error: BaseException) -> BaseException:
    """The first cause inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
