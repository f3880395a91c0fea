"""The parts of a peer, joined: what `node` starts, stops and asks.

Builds membership, exchange, publication and the copies from the node's own parts, starts what each
session needs when it comes up, and answers the questions that need more than one part. It holds no
state of its own beyond that.
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from dfsfs.base.errors import DfsError, Unavailable
from dfsfs.base.limits import OFFER_COUNT_MAX, SYNC_TIMEOUT_S
from dfsfs.base.types import ContentRef, Digest, DigestKind, NodeId
from dfsfs.blocks import BlockStore, Pins
from dfsfs.cluster.cache import CacheKeeper
from dfsfs.cluster.exchange import METHOD as METHOD_ROWS
from dfsfs.cluster.exchange import Exchange
from dfsfs.cluster.fetch import Fetcher
from dfsfs.cluster.members import Member, MemberTable
from dfsfs.cluster.membership import Membership
from dfsfs.cluster.publication import METHOD_SYNC, Publication
from dfsfs.cluster.repair import Repairer
from dfsfs.cluster.replicate import Replicator, offer
from dfsfs.cluster.serve import BlockService
from dfsfs.cluster.storage import ClusterStorage
from dfsfs.content import walk
from dfsfs.namespace import Change, Namespace
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import WorkerStatus, World, run_worker

log = logging.getLogger(__name__)

JOIN_POLL_S = 0.1  # how often a join looks whether it was refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What the operator decided about this network and this node's part in it."""

    bootstrap: tuple[str, ...]
    copies: int
    concern: int | None  # None: every holder in reach
    strict: bool
    fetch_timeout_s: float
    cache_bytes_max: int
    kind: DigestKind


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
        settings: ClusterSettings,
        *,
        describe: Callable[[int], Member],
        sync_local: Callable[[], Awaitable[None]],
        applied: Callable[[Sequence[Change]], Awaitable[None]],
    ) -> None:
        """`describe(version)` makes this node's own member record.

        `sync_local` flushes this node's blocks and rows; `applied` is `Exchange`'s.
        """
        self._endpoint = endpoint
        self._store = store
        self.members = members
        self._settings = settings
        self.publication = Publication(
            concern=settings.concern,
            strict=settings.strict,
            sync_local=sync_local,
            sync_peer=self._sync_peer,
        )
        self.exchange = Exchange(namespace, self.publication, applied=applied)
        self.replicator = Replicator(
            world,
            store,
            endpoint,
            members,
            self.publication,
            copies=settings.copies,
            concern=settings.concern,
            strict=settings.strict,
        )
        self.cache = CacheKeeper(
            store,
            pins,
            endpoint,
            members,
            self.replicator,
            copies=settings.copies,
            bytes_max=settings.cache_bytes_max,
        )
        self.fetcher = Fetcher(
            world,
            store,
            endpoint,
            members,
            timeout_s=settings.fetch_timeout_s,
            kept=self.cache.kept,
        )
        self.repairer = Repairer(
            world, store, endpoint, members, self.replicator, copies=settings.copies
        )
        self.storage = ClusterStorage(
            store, pins, self.fetcher, self.replicator, kind=settings.kind
        )
        self.membership = Membership(
            world, members, endpoint, bootstrap=settings.bootstrap, describe=describe
        )
        self._sessions: trio.Nursery | None = None
        BlockService(world, store, self.exchange, sync_local=sync_local).register(endpoint)
        endpoint.serve_streams(METHOD_ROWS, self.exchange.receive)
        endpoint.on_session(up=self._session_up, down=self._session_down)

    # -- life ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._sessions = nursery
            await nursery.start(self.fetcher.run)
            await nursery.start(self.replicator.run)
            self.membership.announce()
            nursery.start_soon(self.membership.run)
            nursery.start_soon(run_worker, self.repairer)
            nursery.start_soon(run_worker, self.cache)
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

    async def _sync_peer(self, node: NodeId, position: int) -> None:
        session = self._endpoint.sessions.get(node)
        if session is None:
            raise Unavailable("the peer has gone")
        await session.call(METHOD_SYNC, [position], deadline_s=SYNC_TIMEOUT_S)

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
            missing = await offer(session, digests)
        except DfsError:
            return  # a node that cannot be asked is not counted
        counts[session.peer.node] += len(digests) - len(missing)

    def worker_statuses(self) -> list[WorkerStatus]:
        """Background duties."""
        return [self.repairer.status, self.cache.status]

    def peers(self) -> list[dict[str, Any]]:
        """What `dfs status` shows of the other members."""
        result = []
        for member in self.members.all():
            if member.node == self.members.own or member.removed:
                continue
            session = self._endpoint.sessions.get(member.node)
            result.append(
                {
                    "id": member.node.hex(),
                    "name": member.name,
                    "addresses": list(member.addresses),
                    "state": self.membership.state_of(member.node),
                    "round_trip_s": None if session is None else session.round_trip_s,
                    "mount": member.mounts,
                }
            )
        return result


def _first(error: BaseException) -> BaseException:
    """The first cause inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
