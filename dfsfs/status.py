"""The figures of a node, gathered from its parts: the one source of `dfs status` and of metrics.

Every part counts for itself; here is who is asked. Loop only; a few short queries.
"""

from dataclasses import dataclass
from typing import Any

from dfsfs.base.limits import FINDINGS_MAX, HANDLERS_MAX
from dfsfs.blocks import SegmentStore
from dfsfs.cluster import Cluster
from dfsfs.namespace import Namespace
from dfsfs.net import Endpoint
from dfsfs.runtime import Bounds, CallTable, Checkpointer, GroupCommit, World
from dfsfs.state import State
from dfsfs.vfs import Filesystem


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one node; made when its parts are there."""

    world: World
    state: State
    store: SegmentStore
    namespace: Namespace
    endpoint: Endpoint
    cluster: Cluster
    filesystem: Filesystem
    calls: CallTable
    sync: GroupCommit
    checkpointer: Checkpointer

    def report(self) -> dict[str, Any]:
        """The sections of `admin.Operator.status`, but for what the node itself is."""
        cluster, usage, totals = self.cluster, self.store.usage(), self.namespace.totals()
        return {
            "peers": cluster.peers(),
            "storage": {
                "block_count": usage.block_count,
                "block_bytes": usage.block_bytes,
                "disk_bytes": usage.disk_bytes,
                "capacity_bytes": usage.capacity_bytes,
            },
            "files": {
                "files": totals.files,
                "directories": totals.directories,
                "bytes": totals.bytes,
                "conflicts": len(self.namespace.conflicts(None, FINDINGS_MAX)),
                "names_lost": self.state.names_lost,
            },
            "replication": cluster.upkeep.replication(),
            "bounded": self.bounded(),
            "calls": self.calls.figures(),
            "traffic": cluster.traffic(),
            "flushes": {"asked": self.sync.calls, "done": self.sync.flushes},
            "coherence": cluster.coherence(),
            "forgetting": cluster.purger.report(),
            "workers": [
                status.describe()
                for status in [*cluster.worker_statuses(), self.checkpointer.status]
            ],
        }

    def bounded(self) -> Bounds:
        """Every queue and cache of the node: doc/operations.md has a line for each."""
        return {
            **self.world.bounded(),
            **self.store.bounded(),
            **self.namespace.bounded(),
            **self.state.bounded(),
            **self.endpoint.bounded(),
            **self.cluster.bounded(),
            **self.filesystem.bounded(),
            "handlers": [self.calls.under_way, HANDLERS_MAX],
        }
