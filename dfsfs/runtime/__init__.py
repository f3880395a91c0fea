"""Floor 1: the doors to time, chance, threads and SQL, and the background worker."""

from dfsfs.runtime.ballast import Ballast
from dfsfs.runtime.checkpoint import Checkpointer
from dfsfs.runtime.database import Database
from dfsfs.runtime.failure import failures_in, ungrouped
from dfsfs.runtime.group_commit import GroupCommit
from dfsfs.runtime.lock import DirectoryLock
from dfsfs.runtime.pace import Pace
from dfsfs.runtime.worker import Worker, WorkerStatus, run_worker
from dfsfs.runtime.world import RealWorld, World

__all__ = [
    "Ballast",
    "Checkpointer",
    "Database",
    "DirectoryLock",
    "GroupCommit",
    "Pace",
    "RealWorld",
    "Worker",
    "WorkerStatus",
    "World",
    "failures_in",
    "run_worker",
    "ungrouped",
]
