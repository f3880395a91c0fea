"""Sockets in the filesystem: how the command line tools talk to the node of their state directory.

No encryption: bytes do not leave the kernel. The socket file has mode 0600, and each side asks the
kernel who the other is (SO_PEERCRED): this user or root, or nothing.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from dfsfs.base.errors import PeerUnreachable, Refused, Unavailable
from dfsfs.net.tcp import SocketStream, accept_socket, close_listening
from dfsfs.net.transport import Address

_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of <sys/socket.h>
_PATH_BYTES_MAX = 107  # sun_path less its zero byte
_BACKLOG = 128


class UnixStream(SocketStream):
    """A stream between two processes of one machine."""

    @property
    def local(self) -> bool:
        """True once the handshake has asked the kernel."""
        return self._trusted

    def __init__(self, sock: socket.socket, remote: str) -> None:
        super().__init__(sock, remote)
        self._trusted = False

    async def handshake(self) -> None:
        """Check that the peer is this user, or root.

        Raises:
            Refused: it is somebody else.
        """
        await trio.lowlevel.checkpoint()
        try:
            data = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError as error:
            raise self._broken(error) from error
        _, uid, _ = _UCRED.unpack(data)
        if uid not in (0, os.geteuid()):
            raise Refused(f"user {uid} may not talk to a node of user {os.geteuid()}")
        self._trusted = True


class UnixTransport:
    """`unix:///absolute/path`."""

    async def connect(self, address: Address) -> UnixStream:
        """Connect to the socket file."""
        sock = _new_socket()
        try:
            with _short_path(address.path) as path:
                # Does not wait: a local listener takes it, or its backlog is full.
                sock.connect(path)
        except OSError as error:
            sock.close()
            raise PeerUnreachable(f"no node answers at {address.path}: {error.strerror}") from error
        await trio.lowlevel.checkpoint()
        return UnixStream(sock, address.url)

    async def listen(self, address: Address) -> "UnixListener":
        """Bind, taking the place of a socket file whose process is dead.

        Raises:
            Unavailable: a living process listens there, or the path cannot be used.
        """
        await trio.lowlevel.checkpoint()
        return UnixListener(_bind(address.path), address)


class UnixListener:
    """Listens at a socket file, which it removes at the end."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._sock = sock
        self._address = address
        self._inode = os.stat(address.path).st_ino

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._address.url

    async def accept(self) -> UnixStream:
        """The next connection."""
        sock, _ = await accept_socket(self._sock)
        return UnixStream(sock, self._address.url)

    def close(self) -> None:
        """Accept no more; remove the file unless another process has put its own there."""
        if self._sock.fileno() < 0:
            return
        close_listening(self._sock)
        try:
            if os.stat(self._address.path).st_ino == self._inode:
                os.unlink(self._address.path)
        except OSError:
            pass  # gone already: nothing to tidy up


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def _bind(path: str) -> socket.socket:
    sock = _new_socket()
    try:
        # The mode of a socket before bind() becomes the mode of its file: never open to others.
        os.fchmod(sock.fileno(), 0o600)
        with _short_path(path) as short:
            _remove_stale(short)
            sock.bind(short)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot listen at {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() reports that the name is taken
    except FileNotFoundError:
        return
    with _new_socket() as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # alive, with a full backlog
    raise Unavailable(f"another process listens at {path}")


@contextmanager
def _short_path(path: str) -> Iterator[str]:
    """A name for `path` that fits into a socket address, by way of its open directory."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield path
        return
    directory = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{Path(path).name}"
    finally:
        os.close(directory)
