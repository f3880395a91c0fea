"""Keeps write-ahead logs short: folds them into their databases, off the loop."""

from collections.abc import Sequence

from dfsfs.base.limits import CHECKPOINT_S, WAL_BYTES_MAX
from dfsfs.runtime.database import Database
from dfsfs.runtime.worker import WorkerStatus
from dfsfs.runtime.world import World


class Checkpointer:
    """A Worker that checkpoints every database whose log has grown."""

    def __init__(self, world: World, databases: Sequence[Database]) -> None:
        self._world = world
        self._databases = databases
        self.status = WorkerStatus("checkpoint")

    async def step(self) -> float:
        """Checkpoint what needs it."""
        for database in self._databases:
            if database.wal_bytes() > WAL_BYTES_MAX // 16:
                self.status.doing = f"checkpoint of {database.path}"
                await self._world.run_blocking(database.checkpoint)
        self.status.doing = "idle"
        return CHECKPOINT_S
