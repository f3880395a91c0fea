"""The exceptions of dfsfs, sorted by remedy: the catcher asks "what do I do now?".

    DfsError
    ├─ NotFound           it does not exist                    -> ENOENT, or the next holder
    ├─ Exists, NotEmpty, IsDirectory, NotDirectory, ...         -> their POSIX errno (`errno` below)
    ├─ Unavailable        it exists but cannot be reached now  -> retry elsewhere, later; then EIO
    │   ├─ PeerUnreachable   no session to that peer, or it broke
    │   │   └─ NotDfsNode       something answers at that address, but it is no dfs node
    │   ├─ PeerFailed        the peer failed inside (its log says why)
    │   ├─ DeadlineExceeded  the wait was longer than its bound
    │   └─ Overloaded        a queue is full
    ├─ EndOfStream        the other side sends no more          -> stop reading
    ├─ Corrupt            bytes do not match their digest      -> another holder, and repair
    ├─ Full               no space, or a limit is reached      -> ENOSPC
    ├─ Refused            not allowed: wrong network, bad identity, no rights
    │   ├─ KeyMissing        a network key is needed and there is none here
    │   ├─ KeyMismatch       the other side holds another network key
    │   ├─ NotMember         this node was removed from the network
    │   ├─ OtherNode         not the node that should be at that address
    │   └─ SelfConnection    the address dialled is our own
    ├─ Misconfigured      what the operator asked for makes no sense -> say what to do, do not start
    ├─ LocalProtocolError    we broke the wire protocol: our bug
    └─ RemoteProtocolError   the peer broke it: close that session, nothing else

Every class carries the `errno` a filesystem caller sees; `dfsfs.fuse` has one border that uses it.
"""

import errno as _errno
from typing import ClassVar


class DfsError(Exception):
    """Base of every expected failure. `str(error)` is a sentence for people."""

    errno: ClassVar[int] = _errno.EIO


class NotFound(DfsError):
    """The thing does not exist."""

    errno = _errno.ENOENT


class Exists(DfsError):
    """The name is taken."""

    errno = _errno.EEXIST


class NotEmpty(DfsError):
    """A directory that should be removed or replaced has entries."""

    errno = _errno.ENOTEMPTY


class IsDirectory(DfsError):
    """A directory where something else is needed."""

    errno = _errno.EISDIR


class NotDirectory(DfsError):
    """Something else where a directory is needed."""

    errno = _errno.ENOTDIR


class NotPermitted(DfsError):
    """POSIX forbids the operation on this kind of object, such as a hard link to a directory."""

    errno = _errno.EPERM


class AccessDenied(DfsError):
    """The caller's rights do not suffice."""

    errno = _errno.EACCES


class Invalid(DfsError):
    """An argument makes no sense, such as moving a directory into itself."""

    errno = _errno.EINVAL


class NameTooLong(DfsError):
    """A name longer than `limits.NAME_BYTES_MAX`."""

    errno = _errno.ENAMETOOLONG


class TooManyLinks(DfsError):
    """An inode has `limits.LINKS_MAX` links."""

    errno = _errno.EMLINK


class TooBig(DfsError):
    """A file would grow beyond `limits.FILE_BYTES_MAX`."""

    errno = _errno.EFBIG


class NoAttribute(DfsError):
    """No extended attribute of this name."""

    errno = _errno.ENODATA


class NotSupported(DfsError):
    """dfsfs does not offer this operation."""

    errno = _errno.EOPNOTSUPP


class ReadOnly(DfsError):
    """The mount is read-only."""

    errno = _errno.EROFS


class BadHandle(DfsError):
    """No such open file handle, or not open for this."""

    errno = _errno.EBADF


class Stale(DfsError):
    """The caller's picture of the tree is out of date; the kernel looks again and retries."""

    errno = _errno.ESTALE


class TooManyOpen(DfsError):
    """`limits.OPEN_HANDLES_MAX` files and directories are open."""

    errno = _errno.ENFILE


class Unavailable(DfsError):
    """It exists, but cannot be reached now."""


class PeerUnreachable(Unavailable):
    """There is no session to that peer, or it broke during the call."""


class NotDfsNode(PeerUnreachable):
    """Something listens at that address, but it does not speak our protocol."""


class PeerFailed(Unavailable):
    """The peer failed inside while it answered; its log says why."""


class DeadlineExceeded(Unavailable):
    """The answer did not come within its bound."""


class Overloaded(Unavailable):
    """A bounded queue is full; try later or elsewhere."""

    errno = _errno.EAGAIN


class EndOfStream(DfsError):
    """The other side has sent its last message on this stream."""


class Corrupt(DfsError):
    """Bytes do not match their digest, or a stored structure is malformed."""


class Full(DfsError):
    """No space is left, or a limit of the store is reached."""

    errno = _errno.ENOSPC


class Refused(DfsError):
    """Not allowed: wrong network key, wrong network, or an identity that is not what it claims."""

    errno = _errno.EACCES


class Misconfigured(DfsError):
    """A setting that cannot work; the message says what to do instead."""

    errno = _errno.EINVAL


class KeyMissing(Refused):
    """A network key is needed here and there is none."""


class KeyMismatch(Refused):
    """The other side holds another network key, or belongs to another network."""


class NotMember(Refused):
    """The node was removed from the network, and nobody has taken it back."""


class OtherNode(Refused):
    """Another node of this network answers at the address of the one that was looked for."""


class SelfConnection(Refused):
    """The address dialled leads back to this node."""


class LocalProtocolError(DfsError):
    """This node broke the wire protocol: a bug here."""


class RemoteProtocolError(DfsError):
    """The peer broke the wire protocol: its session ends, nothing else does."""
