"""The operator's face: what commands may ask a running node, and how they reach it.

A node serves `Operator` on a socket in its state directory; commands of the same user (or root)
connect to it. Neither prints; neither knows `Node`.
"""

from dfsfs.admin.client import ControlClient, connect_control
from dfsfs.admin.control import serve_control
from dfsfs.admin.operator import Key, Listing, Operator

__all__ = ["ControlClient", "Key", "Listing", "Operator", "connect_control", "serve_control"]
