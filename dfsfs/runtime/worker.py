"""Background duties: a `Worker` does small steps at its own pace and says what it does."""

import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from dfsfs.base.errors import DfsError

log = logging.getLogger(__name__)

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 60.0


@dataclass(slots=True)
class WorkerStatus:
    """What `dfs status` shows of a worker."""

    name: str
    doing: str = "idle"
    steps: int = 0
    failures: int = 0
    last_failure: str = ""
    rest_s: float = 0.0  # which it took after its last step: its pace
    ended_at_s: float | None = None  # when that was, by trio's clock; None: no step has ended yet
    figures: dict[str, int | float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """In plain values; `since_step_s` is null before the first step."""
        since_step_s = None if self.ended_at_s is None else trio.current_time() - self.ended_at_s
        return {
            "name": self.name,
            "doing": self.doing,
            "steps": self.steps,
            "failures": self.failures,
            "last_failure": self.last_failure,
            "rest_s": self.rest_s,
            "since_step_s": since_step_s,
            **self.figures,
        }


class Worker(Protocol):
    """A background duty. `step` does one bounded piece of work and returns how long to rest."""

    status: WorkerStatus

    async def step(self) -> float:
        """Do one step; return the seconds to rest before the next."""
        ...


async def run_worker(worker: Worker) -> None:
    """Step for ever; a failing step is logged, counted and tried again with backoff."""
    backoff_s = BACKOFF_MIN_S
    while True:
        try:
            rest_s = await worker.step()
            worker.status.steps += 1
            backoff_s = BACKOFF_MIN_S
        except DfsError as error:
            worker.status.failures += 1
            worker.status.last_failure = str(error)
            log.info("%s: %s (again in %.0f s)", worker.status.name, error, backoff_s)
            rest_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_MAX_S)
        worker.status.rest_s, worker.status.ended_at_s = rest_s, trio.current_time()
        await trio.sleep(rest_s)
