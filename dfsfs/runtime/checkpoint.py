"""Keeps databases short, off the loop: folds logs into them, gives unused pages back.

Folding does not stop writers, and what they write meanwhile keeps the log from beginning anew: one
that writers never leave alone would grow for ever. So a long log is folded again at once, to its
end, while writers wait for the little that is left. On a full disk it is also given back.
"""

from collections.abc import Sequence

from dfsfs.base.limits import (
    CHECKPOINT_S,
    CHECKPOINT_TIGHT_S,
    RECLAIM_KEPT_COUNT,
    RECLAIM_PAGES_COUNT,
    RECLAIM_REST_S,
    WAL_BYTES_MAX,
    WAL_TIGHT_BYTES,
)
from dfsfs.runtime.ballast import Ballast
from dfsfs.runtime.database import Database
from dfsfs.runtime.reserve import Reserve
from dfsfs.runtime.worker import WorkerStatus
from dfsfs.runtime.world import World


class Checkpointer:
    """A Worker that looks after every database whose log has grown, or which has become empty."""

    def __init__(
        self, world: World, databases: Sequence[Database], reserve: Reserve, ballast: Ballast
    ) -> None:
        self._world = world
        self._databases = databases
        self._reserve = reserve
        self._ballast = ballast
        self.status = WorkerStatus("checkpoint")

    async def step(self) -> float:
        """Checkpoint what needs it, and give a few pages back."""
        tight = self._reserve.is_touched
        if tight:
            self._ballast.throw_off_if_full()  # folding takes room before it gives any
        else:
            self._ballast.take_on()
        rest_s = CHECKPOINT_TIGHT_S if tight else CHECKPOINT_S
        for database in self._databases:
            if database.wal_bytes() > (WAL_TIGHT_BYTES if tight else WAL_BYTES_MAX // 16):
                self.status.doing = f"checkpoint of {database.path}"
                await self._world.run_blocking(database.checkpoint)
                if tight:
                    await self._world.run_blocking(database.give_back_log)
            if database.unused_pages() > RECLAIM_KEPT_COUNT:
                await self._world.run_blocking(database.reclaim, RECLAIM_PAGES_COUNT)
                rest_s = RECLAIM_REST_S
        self.status.doing = "idle"
        return rest_s
