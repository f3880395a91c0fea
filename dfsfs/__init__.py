"""dfsfs: a peer-to-peer distributed filesystem you mount.

`Node` is a peer of a network: it stores, replicates and serves content, and keeps a full replica of
the namespace. A mount is a `Node` with a kernel face (`dfsfs.fuse`); the library API is the same
node without one. Names are resolved lazily so that `import dfsfs` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfsfs.config import Config
    from dfsfs.node import Node

__version__ = "0.1.0"
__all__ = ["Config", "Node", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes on first use (PEP 562)."""
    if name == "Config":
        from dfsfs.config import Config

        return Config
    if name == "Node":
        from dfsfs.node import Node

        return Node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
