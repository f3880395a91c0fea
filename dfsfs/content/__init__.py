"""A file's bytes as a Merkle tree of blocks: read, write, patch, walk."""

from dfsfs.content.key import content_key
from dfsfs.content.nodes import NodeCache
from dfsfs.content.patch import patch
from dfsfs.content.reader import ContentReader
from dfsfs.content.tree import Leaf, inline_ref
from dfsfs.content.walk import Page, walk
from dfsfs.content.writer import ContentWriter, put_leaf

__all__ = [
    "ContentReader",
    "ContentWriter",
    "Leaf",
    "NodeCache",
    "Page",
    "content_key",
    "inline_ref",
    "patch",
    "put_leaf",
    "walk",
]
