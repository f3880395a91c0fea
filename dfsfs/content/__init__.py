"""A file's bytes as a Merkle tree of blocks: read, write, patch, walk."""

from dfsfs.content.fold import HashingUpload, fold
from dfsfs.content.key import content_key
from dfsfs.content.nodes import NodeCache
from dfsfs.content.patch import patch
from dfsfs.content.patches import Range, extends, merged, pack, tree_of, unpack
from dfsfs.content.reader import ContentReader, starts_with
from dfsfs.content.tree import Leaf, inline_ref
from dfsfs.content.walk import Page, walk
from dfsfs.content.writer import ContentWriter, put_leaf

__all__ = [
    "ContentReader",
    "ContentWriter",
    "HashingUpload",
    "Leaf",
    "NodeCache",
    "Page",
    "Range",
    "content_key",
    "extends",
    "fold",
    "inline_ref",
    "merged",
    "pack",
    "patch",
    "put_leaf",
    "starts_with",
    "tree_of",
    "unpack",
    "walk",
]
