"""A mount for each module, a fresh directory in it for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedNode]:
    """A mounted node; its tree must be valid in the end, and nothing unforeseen have happened."""
    base = tmp_path_factory.mktemp("node")
    with MountedNode(base / "mount", base / "state") as mounted:
        yield mounted
        assert mounted.ask("check") == []
    assert "a bug in dfsfs" not in mounted.log.replace("made for a test", ""), mounted.log


@pytest.fixture
def directory(node: MountedNode, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    path = node.path / name
    path.mkdir()
    return path
