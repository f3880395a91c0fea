"""Names of extended attributes: which are kept, and which are virtual. Pure."""

from dfsfs.base.errors import Invalid, NotPermitted, NotSupported

KEY_XATTR = b"user.dfs.key"
REPLICAS_XATTR = b"user.dfs.replicas"
VIRTUAL_XATTR_PREFIX = b"user.dfs."
_PREFIXES = (b"user.", b"trusted.", b"security.")


def check_name(name: bytes) -> None:
    """Refuse names of no attribute that dfsfs keeps.

    Raises:
        NotSupported, Invalid: so it is.
    """
    if not name.startswith(_PREFIXES):
        raise NotSupported("no such attribute namespace")
    if name in _PREFIXES:
        raise Invalid("an attribute without a name")


def check_writable(name: bytes) -> None:
    """The same, and refuse virtual attributes.

    Raises:
        NotPermitted: it is one.
    """
    check_name(name)
    if name.startswith(VIRTUAL_XATTR_PREFIX):
        raise NotPermitted("a virtual attribute")
