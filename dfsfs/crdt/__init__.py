"""Floor 1: order and causality. Pure values and one clock; no I/O, no rows."""

from dfsfs.crdt.clock import HybridClock, WallClock

__all__ = ["HybridClock", "WallClock"]
