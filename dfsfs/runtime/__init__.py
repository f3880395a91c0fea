"""Floor 1: the doors to time, chance, threads and SQL, and the background worker."""

from dfsfs.runtime.ballast import Ballast
from dfsfs.runtime.checkpoint import Checkpointer
from dfsfs.runtime.database import Database
from dfsfs.runtime.failure import failures_in, ungrouped
from dfsfs.runtime.figures import BUCKETS_S, Bounds, CallTable, Durations
from dfsfs.runtime.group_commit import GroupCommit
from dfsfs.runtime.lock import DirectoryLock
from dfsfs.runtime.pace import Pace
from dfsfs.runtime.reserve import Reserve, reserve_bytes
from dfsfs.runtime.worker import Worker, WorkerStatus, run_worker
from dfsfs.runtime.world import RealWorld, World

__all__ = [
    "BUCKETS_S",
    "Ballast",
    "Bounds",
    "CallTable",
    "Checkpointer",
    "Database",
    "DirectoryLock",
    "Durations",
    "GroupCommit",
    "Pace",
    "RealWorld",
    "Reserve",
    "Worker",
    "WorkerStatus",
    "World",
    "failures_in",
    "reserve_bytes",
    "run_worker",
    "ungrouped",
]
