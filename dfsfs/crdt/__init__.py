"""Floor 1: order and causality. Pure values and one clock; no I/O, no rows."""

from dfsfs.crdt.clock import HybridClock, SteadyWall, WallClock
from dfsfs.crdt.vector import Vector, covers, dominates, join

__all__ = ["HybridClock", "SteadyWall", "Vector", "WallClock", "covers", "dominates", "join"]
