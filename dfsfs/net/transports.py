"""The registry: which transports there are, by URL scheme. A new one adds its line here."""

from dfsfs.net.tcp import TcpTransport
from dfsfs.net.tls import Credentials, TlsTransport
from dfsfs.net.transport import Transports
from dfsfs.net.unix import UnixTransport


def standard_transports(credentials: Credentials | None) -> Transports:
    """Transports between nodes. `tcp` is left to `insecure_transports`: it must be asked for."""
    return {"tls": TlsTransport(credentials)}


def insecure_transports() -> Transports:
    """Without encryption and identity, for `--insecure` on loopback."""
    return {"tcp": TcpTransport()}


def control_transports() -> Transports:
    """Between the command line tools and their node."""
    return {"unix": UnixTransport()}
