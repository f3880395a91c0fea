"""A mount for each module, a fresh directory in it for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no /dev/fuse on this machine"))


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
