"""Stories get a network of their own, seeded by their name, in simulated time."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest
import trio

from dfsfs.testing.determinism import JumpingClock, deterministic
from dfsfs.testing.simulator import Simulation


def run_in_simulated_time(
    main: Callable[[], Coroutine[Any, Any, None]],
    *,
    clock: trio.abc.Clock | None,
    instruments: Sequence[trio.abc.Instrument],
) -> None:
    """`trio.run` for the tests that ask for `sim`."""
    assert clock is None
    trio.run(main, clock=JumpingClock(), instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "sim" in getattr(item, "fixturenames", ()):
            # Before the mark that trio_mode gives everything: the first one counts.
            item.add_marker(pytest.mark.trio(run=run_in_simulated_time), append=False)


@pytest.fixture
async def sim(request: pytest.FixtureRequest) -> AsyncIterator[Simulation]:
    seed = request.node.name
    with deterministic(seed):
        async with Simulation(seed) as simulation:
            yield simulation
