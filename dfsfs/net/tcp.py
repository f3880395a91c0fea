"""Plain TCP: no encryption, no proof of who the peer is. For `--insecure`, loopback and tests.

Also the home of what tls and unix share with it: dialling, listening, and a stream over a
non-blocking socket driven by trio.lowlevel. trio's own SocketStream is not used because it has no
`recv_into` and no vectored send: measured, half the speed for blocks (doc/decisions/0006).
"""

import errno
import os
import socket
from collections import deque

import trio

from dfsfs.base.errors import PeerUnreachable, Unavailable
from dfsfs.base.limits import SOCKET_UNSENT_BYTES
from dfsfs.base.types import NodeId
from dfsfs.net.transport import Address

_PARTS_MAX = 64  # of one sendmsg; IOV_MAX is 1024
_BACKLOG = 128
_NOT_NOW = (BlockingIOError, InterruptedError)


class SocketStream:
    """A stream over a connected, non-blocking socket, which it owns."""

    def __init__(self, sock: socket.socket, remote: str) -> None:
        self._sock = sock
        self._remote = remote
        self._closed = False

    @property
    def remote(self) -> str:
        """The other end, for people and logs."""
        return self._remote

    @property
    def peer_id(self) -> NodeId | None:
        """Nobody: a plain socket proves nothing."""
        return None

    @property
    def local(self) -> bool:
        """False: anybody on the machine, or in the network, can connect."""
        return False

    async def handshake(self) -> None:
        """Nothing to prove."""
        await trio.lowlevel.checkpoint()

    def send_nowait(self, parts: deque[memoryview]) -> None:
        """Take from the front of `parts` what can be sent without waiting."""
        while parts:
            try:
                # islice would be no cheaper: `parts` rarely holds more than two.
                sent = self._sock.sendmsg(list(parts)[:_PARTS_MAX])
            except _NOT_NOW:
                return
            except OSError as error:
                raise self._broken(error) from error
            while parts and sent >= len(parts[0]):
                sent -= len(parts.popleft())
            if sent:
                parts[0] = parts[0][sent:]
                return  # a short write: the socket is full

    async def wait_sendable(self) -> None:
        """Return when the socket has room."""
        try:
            await trio.lowlevel.wait_writable(self._sock.fileno())
        except (trio.ClosedResourceError, ValueError, OSError) as error:
            raise self._broken(error) from error

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from its start with what is here, waiting for at least one byte."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            count = self._sock.recv_into(buffer)
        except _NOT_NOW:
            pass
        except OSError as error:
            raise self._broken(error) from error
        else:
            # Shielded: a cancellation here would lose the bytes.
            await trio.lowlevel.cancel_shielded_checkpoint()
            return count
        while True:
            await self._wait_readable()
            try:
                return self._sock.recv_into(buffer)
            except _NOT_NOW:
                continue
            except OSError as error:
                raise self._broken(error) from error

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._sock.fileno())
        except (trio.ClosedResourceError, ValueError, OSError) as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """Close both directions, and wake whoever waits."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()

    def _broken(self, error: Exception) -> PeerUnreachable:
        if self._closed:
            return PeerUnreachable(f"connection to {self._remote} is closed")
        return PeerUnreachable(f"connection to {self._remote} broke: {error}")


class TcpTransport:
    """`tcp://host:port`."""

    async def connect(self, address: Address) -> SocketStream:
        """Dial, trying all addresses of a name."""
        return SocketStream(await dial_tcp(address), address.url)

    async def listen(self, address: Address) -> "TcpListener":
        """Bind; an empty host means every interface."""
        return TcpListener(bind_tcp(address), address)


class TcpListener:
    """Listens at a `tcp://` address."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._sock = sock
        self._address = bound_address(sock, address)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._address.url

    async def accept(self) -> SocketStream:
        """The next connection."""
        sock, remote = await accept_socket(self._sock)
        set_tcp_options(sock)
        return SocketStream(sock, f"{self._address.scheme}://{remote}")

    def close(self) -> None:
        """Accept no more."""
        close_listening(self._sock)


async def dial_tcp(address: Address) -> socket.socket:
    """A connected, non-blocking socket.

    Raises:
        PeerUnreachable: no such host, nothing listens there, no route.
    """
    try:
        stream = await trio.open_tcp_stream(address.host or "localhost", address.port)
    except OSError as error:
        causes = error.__cause__
        reason = causes.exceptions[0] if isinstance(causes, BaseExceptionGroup) else error
        text = getattr(reason, "strerror", None) or str(reason)
        raise PeerUnreachable(f"cannot reach {address.url}: {text}") from error
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    set_tcp_options(sock)
    return sock


def bind_tcp(address: Address) -> socket.socket:
    """A listening, non-blocking socket; an empty host is every interface, IPv6 and IPv4.

    Numeric addresses and `localhost` are what people listen at, so the resolver does not block.

    Raises:
        Unavailable: the address is taken, or not one of this machine.
    """
    try:
        if not address.host and socket.has_dualstack_ipv6():
            sock = socket.create_server(
                ("", address.port),
                family=socket.AF_INET6,
                dualstack_ipv6=True,
                backlog=_BACKLOG,
            )
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            sock = socket.create_server(
                (address.host, address.port), family=family, backlog=_BACKLOG
            )
    except OSError as error:
        text = os.strerror(error.errno) if error.errno else str(error)
        raise Unavailable(f"cannot listen at {address.url}: {text}") from error
    sock.setblocking(False)
    return sock


def bound_address(sock: socket.socket, address: Address) -> Address:
    """`address` with the port that the kernel has chosen."""
    return Address(scheme=address.scheme, host=address.host, port=sock.getsockname()[1])


async def accept_socket(listening: socket.socket) -> tuple[socket.socket, str]:
    """The next connection, non-blocking, and where it comes from.

    Raises:
        Unavailable: this one failed.
        PeerUnreachable: the listener was closed.
    """
    await trio.lowlevel.checkpoint()
    while True:
        try:
            sock, source = listening.accept()
        except _NOT_NOW:
            pass
        except OSError as error:
            if error.errno == errno.EBADF:
                raise PeerUnreachable("the listener is closed") from error
            raise Unavailable(f"cannot accept a connection: {error}") from error
        else:
            sock.setblocking(False)
            host, port = source[:2] if isinstance(source, tuple) else ("", 0)
            remote = Address(scheme="", host=host.removeprefix("::ffff:"), port=port).authority
            return sock, remote
        try:
            await trio.lowlevel.wait_readable(listening.fileno())
        except (trio.ClosedResourceError, ValueError, OSError) as error:
            raise PeerUnreachable("the listener is closed") from error


def close_listening(sock: socket.socket) -> None:
    """Close a listening socket and wake its accepter."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock.fileno())
        sock.close()


def set_tcp_options(sock: socket.socket) -> None:
    """No delay for small frames, and no megabytes in the kernel for them to wait behind."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SOCKET_UNSENT_BYTES)
