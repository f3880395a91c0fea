"""Failures as numbers: one table between the exceptions of `base.errors` and codes on the wire.

A code never changes its meaning and is never used again. A class without a code of its own travels
as its nearest base class that has one; a code from a newer version reads as `PeerFailed`.
"""

from dfsfs.base import errors
from dfsfs.base.errors import DfsError, PeerFailed
from dfsfs.base.limits import FAILURE_TEXT_BYTES_MAX

_CODES: dict[type[DfsError], int] = {
    errors.PeerFailed: 1,
    errors.NotFound: 2,
    errors.Exists: 3,
    errors.NotEmpty: 4,
    errors.IsDirectory: 5,
    errors.NotDirectory: 6,
    errors.NotPermitted: 7,
    errors.AccessDenied: 8,
    errors.Invalid: 9,
    errors.NameTooLong: 10,
    errors.TooManyLinks: 11,
    errors.TooBig: 12,
    errors.NoAttribute: 13,
    errors.NotSupported: 14,
    errors.ReadOnly: 15,
    errors.BadHandle: 16,
    errors.Unavailable: 17,
    errors.PeerUnreachable: 18,
    errors.DeadlineExceeded: 19,
    errors.Overloaded: 20,
    errors.Corrupt: 21,
    errors.Full: 22,
    errors.Refused: 23,
    errors.KeyMismatch: 24,
    errors.SelfConnection: 25,
    errors.RemoteProtocolError: 26,
    errors.EndOfStream: 27,
    errors.NotMember: 28,
    errors.OtherNode: 29,
}
_CLASSES = {code: cls for cls, code in _CODES.items()}

DUPLICATE = 100
"""Goodbye only: the two nodes have a session already; this connection is not needed."""

CLOSED = 101
"""Goodbye only: the node is stopping, or has no more use for the session."""


def code_of(error: DfsError) -> int:
    """The code of the error's class, or of its nearest base class in the table."""
    for cls in type(error).__mro__:
        code = _CODES.get(cls)
        if code is not None:
            return code
    return _CODES[PeerFailed]


def text_of(error: DfsError) -> str:
    """The error's sentence, cut to `FAILURE_TEXT_BYTES_MAX`."""
    encoded = str(error).encode("utf-8", "replace")[:FAILURE_TEXT_BYTES_MAX]
    return encoded.decode("utf-8", "ignore")


def error_of(code: int, text: str) -> DfsError:
    """The exception that `code` stands for. The text is the peer's: made safe for a terminal."""
    safe = "".join(c if c.isprintable() else "�" for c in text)
    return _CLASSES.get(code, PeerFailed)(safe)
