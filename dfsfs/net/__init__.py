"""Floor 2: peers as sessions. Transports, identity, one session per peer; see doc/protocol.md."""

from dfsfs.net.addresses import local_addresses
from dfsfs.net.endpoint import Endpoint
from dfsfs.net.handlers import CallHandler, Peer, Reply, Request, StreamHandler
from dfsfs.net.identity import (
    NetworkKey,
    NodeIdentity,
    create_network_key,
    load_network_key,
    network_id,
)
from dfsfs.net.message_stream import Message, MessageStream
from dfsfs.net.session import Session
from dfsfs.net.statistics import SessionStatistics
from dfsfs.net.tls import Credentials
from dfsfs.net.transport import Address, Listener, Stream, Transport, Transports
from dfsfs.net.transports import control_transports, insecure_transports, standard_transports

__all__ = [
    "Address",
    "CallHandler",
    "Credentials",
    "Endpoint",
    "Listener",
    "Message",
    "MessageStream",
    "NetworkKey",
    "NodeIdentity",
    "Peer",
    "Reply",
    "Request",
    "Session",
    "SessionStatistics",
    "Stream",
    "StreamHandler",
    "Transport",
    "Transports",
    "control_transports",
    "create_network_key",
    "insecure_transports",
    "load_network_key",
    "local_addresses",
    "network_id",
    "standard_transports",
]
