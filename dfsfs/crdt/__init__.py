"""Floor 1: order and causality. Pure values and one clock; no I/O, no rows."""

from dfsfs.crdt.clock import HybridClock, WallClock
from dfsfs.crdt.vector import Vector, covers, dominates, join

__all__ = ["HybridClock", "Vector", "WallClock", "covers", "dominates", "join"]
