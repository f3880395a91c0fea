"""All invariants of a namespace database."""

from collections.abc import Callable

from dfsfs.base.types import Origin
from dfsfs.namespace.working import Irregular
from dfsfs.runtime import Database


def check(
    database: Database, irregular: Irregular, node_name: Callable[[Origin], str]
) -> list[str]:
    """Every violated invariant, as a sentence."""
    return []
