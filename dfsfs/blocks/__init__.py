"""Content-addressed blocks of one node: stores, cache, pins, and `Storage` on a store alone."""

from dfsfs.blocks.budget import ByteBudget
from dfsfs.blocks.interface import BlockSource, BlockStore, Storage, StoreUsage, Upload
from dfsfs.blocks.local import LocalStorage, LocalUpload
from dfsfs.blocks.memory import MemoryStore
from dfsfs.blocks.pins import Pins
from dfsfs.blocks.store import SegmentStore

__all__ = [
    "BlockSource",
    "BlockStore",
    "ByteBudget",
    "LocalStorage",
    "LocalUpload",
    "MemoryStore",
    "Pins",
    "SegmentStore",
    "Storage",
    "StoreUsage",
    "Upload",
]
