"""How bytes reach a peer: the interfaces a transport implements, and the addresses people write.

A transport is one module and one line in `net.transports`; tests/contract/test_transport.py says
in code what is written here in words. Nothing here knows frames, peers or sessions.

Errors: a transport raises `PeerUnreachable` (or a subclass) for whatever the network or the other
side does, `Refused` (or a subclass) where rights or identity are at fault, never OSError,
ssl.SSLError or a trio exception.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from dfsfs.base.errors import Invalid
from dfsfs.base.limits import LISTEN_PORT_DEFAULT
from dfsfs.base.types import NodeId


class Stream(Protocol):
    """One connection: bytes in order, both ways, until one side closes or the network breaks it.

    One task receives and one sends at a time. `send_nowait` may be called from any task.
    """

    @property
    def remote(self) -> str:
        """The other end, for people and logs."""
        ...

    @property
    def peer_id(self) -> NodeId | None:
        """Who the transport has proved the peer to be; None if it proves nothing."""
        ...

    @property
    def local(self) -> bool:
        """Whether the kernel vouches that the peer is this user (or root) on this machine."""
        ...

    async def handshake(self) -> None:
        """Prove the peer. Called once, before anything else; the caller bounds the time."""
        ...

    def send_nowait(self, parts: deque[memoryview]) -> None:
        """Take from the front of `parts` what can be sent without waiting, perhaps nothing.

        What stays may have been cut anew, and must come first in the next call. Memory of parts
        taken is free again; that of parts left is in use.
        """
        ...

    async def wait_sendable(self) -> None:
        """Return when `send_nowait` may take something (or nothing: call it again then)."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from its start with what is here, waiting for at least one byte.

        Returns 0 when the other side has closed in good order. Always a checkpoint; cancelled, it
        has taken nothing.
        """
        ...

    def close(self) -> None:
        """Close both directions. Idempotent; whoever waits here gets `PeerUnreachable`.

        What `send_nowait` has taken is still delivered if the peer keeps reading and sends nothing.
        """
        ...


class Listener(Protocol):
    """Waits for peers at one address."""

    @property
    def url(self) -> str:
        """Where it listens; a port 0 asked for is the real port here."""
        ...

    async def accept(self) -> Stream:
        """The next connection, its handshake still to be done.

        Raises:
            Unavailable: this one failed (too many open files, ...); call again after a pause.
        """
        ...

    def close(self) -> None:
        """Accept no more. Streams accepted stay. Idempotent."""
        ...


class Transport(Protocol):
    """One way to make streams."""

    async def connect(self, address: "Address") -> Stream:
        """Dial; the handshake is still to be done. The caller bounds the time."""
        ...

    async def listen(self, address: "Address") -> Listener:
        """Bind, and take connections from now on."""
        ...


Transports = Mapping[str, Transport]
"""By URL scheme."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL that can be dialled or listened at: `tls://host:4000`, `unix:///run/dfs.sock`."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL; a missing port is `LISTEN_PORT_DEFAULT`.

        Raises:
            Invalid: it is not one.
        """
        scheme, _, path = url.partition("://")
        if scheme == "unix":  # whatever the path is: a file may be called `a?b#c`
            if not path.startswith("/"):
                raise Invalid(f"{url!r} is not an address: write unix:///absolute/path")
            return cls(scheme=scheme, path=path)
        try:
            split = urlsplit(url)
            port = split.port
        except ValueError as error:
            raise Invalid(f"{url!r} is not an address: {error}") from error
        if not split.scheme or "://" not in url:
            raise Invalid(f"{url!r} is not an address: it has no scheme, such as tls://")
        if split.path not in ("", "/") or split.query or split.fragment or split.username:
            raise Invalid(f"{url!r} is not an address: write {split.scheme}://host:port")
        port = LISTEN_PORT_DEFAULT if port is None else port
        return cls(scheme=split.scheme, host=split.hostname or "", port=port)

    @property
    def url(self) -> str:
        """The same address as text."""
        if self.path:
            return f"{self.scheme}://{self.path}"
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def transport_of(transports: Transports, address: Address) -> Transport:
    """The transport for an address.

    Raises:
        Invalid: there is none for its scheme.
    """
    transport = transports.get(address.scheme)
    if transport is None:
        known = ", ".join(sorted(transports))
        raise Invalid(f"no transport for {address.url!r}; this node knows: {known}")
    return transport


async def send_all(stream: Stream, *parts: bytes) -> None:
    """Send small parts in order; for the greeting, before a session's outbox exists."""
    waiting = deque(memoryview(part) for part in parts if part)
    stream.send_nowait(waiting)
    while waiting:
        await stream.wait_sendable()
        stream.send_nowait(waiting)
