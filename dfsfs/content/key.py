"""The key of a file's content as people see it."""

from dfsfs.base.types import ContentRef, DigestKind, digest_of, digest_text


def content_key(kind: DigestKind, content: ContentRef) -> str:
    """`<digest kind>:<hex>:<size>`: the digest of the tree's root block, and the length.

    Inline bytes have the digest they would have as a block, with trailing zeros dropped as in every
    leaf; so has a file that is one hole (the digest of nothing). Equal files have equal keys.
    """
    assert not content.patched, "fold it first: the key is that of the bytes"
    root = content.root
    if root is None:
        root = digest_of(kind, (content.inline or b"").rstrip(b"\0"))
    return f"{digest_text(root)}:{content.size}"
