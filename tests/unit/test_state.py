"""What a start believes of the past of its state directory."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from dfsfs.base.types import NodeId
from dfsfs.config import Config
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION
from dfsfs.runtime import Database, RealWorld
from dfsfs.state import NODE_KEY, State, open_state

OWN = NodeId(b"n" * 32)


def run(directory: Path) -> tuple[str, str]:
    """One start and orderly end; what was uncertain, and why names are lost."""
    with ExitStack() as stack:
        state: State = open_state(Config(state=directory), RealWorld(), OWN, stack)
        uncertain, lost = state.uncertain, state.names_lost
        state.begin()
        state.end()
    return uncertain, lost


@pytest.mark.announce("names of all files are lost")
def test_names_stay_lost_if_a_start_is_killed_before_it_has_said_so(tmp_path: Path) -> None:
    """It has made a new database of names, and nothing more: an empty tree, which nobody wrote.

    Garbage collection would believe it (promise 18).
    """
    (tmp_path / NODE_KEY).touch()
    assert run(tmp_path) == ("", "")
    assert run(tmp_path) == ("", "")
    path = tmp_path / "namespace.db"
    Database.set_aside(path)
    Database(path, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20).close()
    for _ in range(2):
        _, lost = run(tmp_path)
        assert lost
