"""What tests of real processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.testing.processes import ProcessNetwork


@pytest.fixture
def network(tmp_path: Path) -> Iterator[ProcessNetwork]:
    """A network without nodes, in the directory of the test."""
    with ProcessNetwork(tmp_path) as made:
        yield made
