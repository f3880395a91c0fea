"""The background duties of a node that keep what is stored safe, and what an operator asks of them.

Repair, collection, scrub, check and drain, built and started together. Each command of an operator
is a task: an iterator of reports in plain values, of which the last has `result`. Giving up a task
stops nothing that was decided, and breaks nothing.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict
from typing import Any

from dfsfs.base.types import ContentRef
from dfsfs.blocks import BlockStore
from dfsfs.cluster.drain import Drain, is_draining
from dfsfs.cluster.fsck import Checker
from dfsfs.cluster.gc import Collector, ContentsInUse
from dfsfs.cluster.leases import Leases
from dfsfs.cluster.members import Member
from dfsfs.cluster.membership import Membership
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.repair import Repairer
from dfsfs.cluster.replicate import Replicator
from dfsfs.cluster.scrub import Scrubber
from dfsfs.cluster.settings import ClusterSettings
from dfsfs.cluster.settle import Settler
from dfsfs.cluster.short import ShortFiles
from dfsfs.cluster.storage import ClusterStorage
from dfsfs.namespace import Namespace
from dfsfs.net import Endpoint
from dfsfs.runtime import Database, Worker, World

Report = dict[str, Any]


class Upkeep:
    """Owned by the cluster, which runs `workers`."""

    def __init__(
        self,
        world: World,
        database: Database,
        namespace: Namespace,
        storage: ClusterStorage,
        store: BlockStore,
        endpoint: Endpoint,
        membership: Membership,
        replicator: Replicator,
        publication: Publication,
        leases: Leases,
        settings: ClusterSettings,
        *,
        contents_in_use: ContentsInUse,
        away_s: Callable[[], float],
        check_namespace: Callable[[], Awaitable[list[str]]],
    ) -> None:
        """`database` is the collector's; the callables are those of `Collector` and `Checker`."""
        members = membership.table
        self._namespace = namespace
        self._storage = storage
        self._store = store
        self._endpoint = endpoint
        self._membership = membership
        self._members = members
        self._replicator = replicator
        self._publication = publication
        self._copies = settings.copies
        self._repair_rate = settings.repair_rate
        self._check_namespace = check_namespace
        self.collector = Collector(
            world,
            database,
            namespace,
            storage,
            store,
            endpoint,
            members,
            grace_s=settings.gc_grace_s,
            contents_in_use=contents_in_use,
            away_s=away_s,
            removed=storage.removed,
            found_again=self._want_scan,
        )
        self.repairer = Repairer(
            world,
            store,
            storage,
            endpoint,
            members,
            replicator,
            copies=settings.copies,
            rate=settings.repair_rate,
            is_unreferenced=self.collector.is_unreferenced,
            looked=self._looked,
        )
        self.scrubber = Scrubber(
            world, namespace, store, storage, members, period_s=settings.scrub_period_s
        )
        self._short = ShortFiles(
            world,
            namespace,
            store,
            endpoint,
            members,
            publication,
            replicator,
            storage,
            is_whole=lambda: self.repairer.looks > 0 and not self.repairer.shortage.short_blocks,
        )
        self.settler = Settler(
            world, namespace, storage, store, endpoint, members, leases, publication
        )
        self._drain = Drain(
            members,
            namespace,
            publication,
            self.repairer,
            copies=settings.copies,
            announce=membership.announce,
        )

    @property
    def workers(self) -> list[Worker]:
        """What runs in the background from the start; `settler` is for later, since it writes."""
        return [self.repairer, self.collector, self.scrubber, self._short]

    def _want_scan(self) -> None:
        """Blocks may lack copies that no queue knows of."""
        self._replicator.scan_wanted = True

    def _looked(self) -> None:
        """What this node's blocks lack is known anew: tell the others."""
        self._membership.announce()

    # -- what an operator asks ------------------------------------------------------------------

    async def collect(self, *, dry_run: bool) -> AsyncGenerator[Report, None]:
        """`dfs gc`: one look; the result is a `gc.Look`."""
        yield {"doing": "looking for blocks that nothing refers to"}
        look = await self.collector.look_now(dry_run=dry_run)
        yield {"result": asdict(look)}

    def scrub(self, content: ContentRef | None) -> AsyncGenerator[Report, None]:
        """`dfs scrub`: see `Scrubber.scrub_now`."""
        return self.scrubber.scrub_now(content)

    def check(self, *, repair: bool) -> AsyncGenerator[Report, None]:
        """`dfs fsck`: see `Checker.run`."""
        checker = Checker(
            self._namespace,
            self._store,
            self._storage,
            self._endpoint,
            self._members,
            self._check_namespace,
            repair=repair,
        )
        return checker.run()

    async def drain(self, *, stay: bool) -> AsyncGenerator[Report, None]:
        """`dfs drain`: see `Drain.run`; with `stay` the node takes blocks again."""
        if stay:
            self._drain.set(False)
            yield {"result": "stays"}
            return
        async for report in self._drain.run():
            yield report

    async def change_member(self, name: str, *, back: bool) -> AsyncGenerator[Report, None]:
        """`dfs peers remove` and `add`: see `Membership.remove`."""
        member = self._membership.remove(name, back=back)
        yield {"result": {"name": member.name, "id": member.node.hex()}}

    @property
    def last_holder_of(self) -> int:
        """Blocks that go out of reach with this node, as of the last look."""
        others = [m for m in self._members.current() if m.node != self._members.own]
        return self.repairer.shortage.single_blocks if others else 0

    def _remaining_s(self, told: list[Member]) -> float | None:
        """Until all nodes have copied what they should; of others their pace is not known."""
        own_s = self.repairer.remaining_s
        theirs_s = max((member.missing_bytes / self._repair_rate for member in told), default=0.0)
        return None if own_s is None else max(own_s, theirs_s)

    def replication(self) -> Report:
        """What `dfs status` says of copies: of the whole network, as its nodes last told."""
        own = self.repairer.shortage
        others = [m for m in self._members.current() if m.node != self._members.own]
        # What a node that is away has told last is not true any more; the others look after it.
        told = [m for m in others if m.node in self._endpoint.sessions]
        missing = own.missing_copies + sum(member.missing_copies for member in told)
        single = own.single_blocks + sum(member.single_blocks for member in told)
        away = [m.name for m in others if m not in told]
        looked = self.repairer.looks > 0
        short = self._short.report()
        queued = self._replicator.pending
        absent = [m.name for m in others if m.node in self._members.absent]
        enough = len(self._members.candidates) >= min(self._copies, self._members.copies_possible)
        return {
            "queued_copies": queued,
            "missing_copies": missing,
            "missing_bytes": own.missing_bytes + sum(m.missing_bytes for m in told),
            "single_blocks": single,
            "on_two_nodes": bool(others) and not single and not short["short_count"]
            if looked
            else None,
            "at_factor": not missing and not queued and enough and not set(away) - set(absent)
            if looked
            else None,
            "remaining_s": self._remaining_s(told),
            "looked_s_ago": self.repairer.looked_s_ago,
            "restored": self.repairer.restored,
            "away": away,
            "absent": absent,
            "full": [member.name for member in others if member.full],
            "draining": is_draining(self._members),
            "lost_blocks": self.scrubber.lost,
            "short_writes": self._publication.short_writes,
            **short,
            "looks": self.repairer.looks,
        }
