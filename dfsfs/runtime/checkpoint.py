"""Keeps write-ahead logs short: folds them into their databases, off the loop.

Folding does not stop writers, and what they write meanwhile keeps the log from beginning anew: one
that writers never leave alone would grow for ever. So a long log is folded again at once, to its
end, while writers wait for the little that is left. On a full disk it is also given back.
"""

from collections.abc import Sequence

from dfsfs.base.limits import (
    CHECKPOINT_S,
    CHECKPOINT_TIGHT_S,
    WAL_BYTES_MAX,
    WAL_TIGHT_BYTES,
)
from dfsfs.runtime.ballast import Ballast
from dfsfs.runtime.database import Database
from dfsfs.runtime.reserve import Reserve
from dfsfs.runtime.worker import WorkerStatus
from dfsfs.runtime.world import World


class Checkpointer:
    """A Worker that checkpoints every database whose log has grown."""

    def __init__(
        self, world: World, databases: Sequence[Database], reserve: Reserve, ballast: Ballast
    ) -> None:
        self._world = world
        self._databases = databases
        self._reserve = reserve
        self._ballast = ballast
        self.status = WorkerStatus("checkpoint")

    async def step(self) -> float:
        """Checkpoint what needs it."""
        tight = self._reserve.is_touched
        if tight:
            self._ballast.throw_off_if_full()  # folding takes room before it gives any
        else:
            self._ballast.take_on()
        for database in self._databases:
            if database.wal_bytes() > (WAL_TIGHT_BYTES if tight else WAL_BYTES_MAX // 16):
                self.status.doing = f"checkpoint of {database.path}"
                await self._world.run_blocking(database.checkpoint)
                if tight:
                    await self._world.run_blocking(database.give_back_log)
        self.status.doing = "idle"
        return CHECKPOINT_TIGHT_S if tight else CHECKPOINT_S
