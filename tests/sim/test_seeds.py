"""Random lives of random networks: the seeds that once failed, then some nobody has tried.

SIM_SEEDS: how many new seeds (default 16). SIM_FIRST: the first of them. SIM_SECONDS: simulated
seconds of faults for each. Equal seeds are other lives after every change of the code; `make seeds`
tries many more.
"""

import os
from pathlib import Path

import pytest

from dfsfs.testing.simulator import Simulation, simulate
from dfsfs.testing.workload import random_life

SEEDS = int(os.environ.get("SIM_SEEDS", "16"))
SECONDS = float(os.environ.get("SIM_SECONDS", "20"))
FIRST = int(os.environ.get("SIM_FIRST", "40000"))
KNOWN = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


async def _live(sim: Simulation) -> str:
    return await random_life(sim, seconds=SECONDS)


# What harm makes a node say: flipped bits, a removed node, a backup put in place, a full disk, lost
# power.
TOLD = pytest.mark.announce(
    "bad block|damaged|no good copy|sent bad bytes|removed|another incarnation|store is full"
    "|is gone with|bytes are gone|torn|was not flushed and no node has it|all copies of block"
)


@TOLD
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_once_failed(seed: int) -> None:
    simulate(seed, _live)


@TOLD
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_new_seeds(seed: int) -> None:
    simulate(seed, _live)
