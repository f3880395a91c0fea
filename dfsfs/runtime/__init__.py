"""Floor 1: the doors to time, chance, threads and SQL, and the background worker."""

from dfsfs.runtime.database import Database
from dfsfs.runtime.lock import DirectoryLock
from dfsfs.runtime.worker import Worker, WorkerStatus, run_worker
from dfsfs.runtime.world import RealWorld, World

__all__ = ["Database", "DirectoryLock", "RealWorld", "Worker", "WorkerStatus", "World", "run_worker"]
