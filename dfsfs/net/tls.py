"""Mutual TLS 1.3 between members of one network, from nothing but the network key.

The network's certificate authority is an Ed25519 key derived from the network key, so every member
makes the same one and can sign a certificate for its own key; a certificate from another authority
is another network's. The chain proves membership; who the peer is, is the hash of its public key.

Rules that were measured, not guessed (doc/decisions/0006-transports.md):
- no session tickets: a resumed session skips the check of the certificate;
- OP_IGNORE_UNEXPECTED_EOF off, ragged ends not suppressed: a cut connection is an error, no end;
- a non-blocking `ssl.SSLSocket` that reads into the frame's own buffer: trio.SSLStream takes twice
  the time;
- certificates valid from 1970 until 9999, since clocks of members are wrong in both directions;
- a client's handshake succeeds before the server has judged its certificate: the first read tells.
"""

import datetime
import os
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dfsfs.base.errors import (
    DfsError,
    KeyMismatch,
    KeyMissing,
    NotDfsNode,
    PeerUnreachable,
)
from dfsfs.base.types import NodeId
from dfsfs.net.identity import NetworkKey, NodeIdentity, node_id_of
from dfsfs.net.tcp import (
    SocketStream,
    accept_socket,
    bind_tcp,
    bound_address,
    close_listening,
    dial_tcp,
    set_tcp_options,
)
from dfsfs.net.transport import Address

if TYPE_CHECKING:
    from cryptography import x509

_PROTOCOL = "dfsfs"  # ALPN: tells a dfs node of another network from any other TLS server
_RECORD_BYTES = 16 * 1024  # the most one TLS record carries
_RECORD_TYPES = range(20, 24)  # the first byte of everything that anybody who speaks TLS sends
_VALID_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280: no end

_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Alerts by which the other side says that our certificate is not of its network.
_KEY_ALERTS = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE",
    "ALERT_DECRYPT_ERROR",
    "ALERT_ACCESS_DENIED",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a member proves itself with."""

    identity: NodeIdentity
    key: NetworkKey


class TlsTransport:
    """`tls://host:port`. Without credentials it can say why it cannot be used, and nothing else."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._client: ssl.SSLContext | None = None
        self._server: ssl.SSLContext | None = None
        if credentials is not None:
            self._client, self._server = _contexts(credentials)

    async def connect(self, address: Address) -> "TlsStream":
        """Dial; proof follows in the handshake.

        Raises:
            KeyMissing: this node has no network key.
        """
        if self._client is None:
            raise KeyMissing(
                f"joining {address.authority} needs the network key: copy it from a member"
                " (<state>/network.key there) and name it with --key"
            )
        sock = await dial_tcp(address)
        return TlsStream(_wrap(self._client, sock, server=False), address.url, server=False)

    async def listen(self, address: Address) -> "TlsListener":
        """Bind; an empty host means every interface."""
        if self._server is None:
            raise KeyMissing("a node without a network key cannot listen for others")
        return TlsListener(bind_tcp(address), address, self._server)


class TlsListener:
    """Listens at a `tls://` address."""

    def __init__(self, sock: socket.socket, address: Address, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._address = bound_address(sock, address)
        self._context = context

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._address.url

    async def accept(self) -> "TlsStream":
        """The next connection; nothing is proved before its handshake."""
        sock, remote = await accept_socket(self._sock)
        set_tcp_options(sock)
        return TlsStream(_wrap(self._context, sock, server=True), f"tls://{remote}", server=True)

    def close(self) -> None:
        """Accept no more."""
        close_listening(self._sock)


class TlsStream(SocketStream):
    """A stream over a non-blocking `ssl.SSLSocket`."""

    def __init__(self, sock: ssl.SSLSocket, remote: str, *, server: bool) -> None:
        super().__init__(sock, remote)
        self._tls = sock
        self._server = server
        self._peer_id: NodeId | None = None

    @property
    def peer_id(self) -> NodeId | None:
        """Hash of the public key in the peer's certificate; known after the handshake."""
        return self._peer_id

    async def handshake(self) -> None:
        """Prove both sides.

        Raises:
            KeyMismatch: a member of another network. NotDfsNode: something else.
        """
        heard = False
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._wait_readable()
                if not heard:
                    heard = True
                    self._check_first_bytes()
            except ssl.SSLWantWriteError:
                await self.wait_sendable()
            except (ssl.SSLError, OSError, ValueError) as error:
                raise self._broken(error) from error
        certificate = self._tls.getpeercert(binary_form=True)
        assert certificate is not None  # CERT_REQUIRED, both ways
        if self._tls.selected_alpn_protocol() != _PROTOCOL:
            raise NotDfsNode(f"{self._remote} speaks TLS but is not a dfs node")
        self._peer_id = _subject_id(certificate)
        await trio.lowlevel.checkpoint()

    def _check_first_bytes(self) -> None:
        # Seen before OpenSSL eats them: its error texts for plain text vary between versions.
        try:
            first = socket.socket.recv(self._tls, 1, socket.MSG_PEEK)
        except OSError:
            return  # do_handshake meets the same error, and reports it
        if first and first[0] not in _RECORD_TYPES:
            raise NotDfsNode(f"{self._remote} does not speak TLS: it is not a dfs node")

    def send_nowait(self, parts: deque[memoryview]) -> None:
        """Take from the front of `parts` what can be sent without waiting."""
        while parts:
            part = parts[0]
            if len(part) < _RECORD_BYTES and len(parts) > 1:
                # A small head and the start of its payload share one record, hence one system
                # call and one wake-up of the peer. The new cut stays if this has to be tried
                # again: OpenSSL insists on the same bytes.
                parts.popleft()
                fill = _RECORD_BYTES - len(part)
                parts[0], part = parts[0][fill:], memoryview(bytes(part) + bytes(parts[0][:fill]))
                if not parts[0]:
                    parts.popleft()
                parts.appendleft(part)
            try:
                sent = self._tls.send(part)
            except _NOT_NOW:
                return
            except (ssl.SSLError, OSError, ValueError) as error:
                raise self._broken(error) from error
            if sent < len(part):
                parts[0] = part[sent:]
            else:
                parts.popleft()

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from its start with what is here, waiting for at least one byte."""
        await trio.lowlevel.checkpoint_if_cancelled()
        count = self._read(buffer)
        if count >= 0:
            # Shielded: a cancellation here would lose the bytes.
            await trio.lowlevel.cancel_shielded_checkpoint()
            return count
        while count < 0:
            await self._wait_readable()
            count = self._read(buffer)
        return count

    def _read(self, buffer: memoryview) -> int:
        """As many records as are here; -1 if there is none. One read never yields two records."""
        count = 0
        wanted = len(buffer)
        read = self._tls.recv_into
        try:
            while count < wanted:
                taken = read(buffer[count:] if count else buffer)
                if not taken:
                    return count
                count += taken
        except _NOT_NOW:
            return count or -1
        except (ssl.SSLError, OSError, ValueError) as error:
            if count:
                return count  # the next read meets the error again
            raise self._broken(error) from error
        return count

    def close(self) -> None:
        """Tell the peer that this is the end and not a cut, and close."""
        if not self._closed:
            # The notice is out when unwrap() wants to read the peer's. Or it cannot be sent: then
            # the peer sees a broken connection, which it is.
            with suppress(ssl.SSLError, OSError, ValueError):
                self._tls.unwrap()
        super().close()

    def _broken(self, error: Exception) -> DfsError:  # type: ignore[override]
        if isinstance(error, ssl.SSLError) and not self._closed:
            return self._judge(error)
        return super()._broken(error)

    def _judge(self, error: ssl.SSLError) -> DfsError:
        reason = error.reason or ""
        if isinstance(error, ssl.SSLCertVerificationError):
            if not self._server and self._tls.selected_alpn_protocol() != _PROTOCOL:
                return NotDfsNode(f"{self._remote} speaks TLS but is not a dfs node")
            return KeyMismatch(
                f"{self._remote} is a node of another network: its key is not the one used here"
            )
        if any(alert in reason for alert in _KEY_ALERTS):
            return KeyMismatch(f"{self._remote} refuses the network key of this node")
        if isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF" in reason:
            return PeerUnreachable(f"connection to {self._remote} was cut")
        if self._peer_id is None:
            return NotDfsNode(f"{self._remote} is not a dfs node ({reason or error})")
        return PeerUnreachable(f"connection to {self._remote} broke: {reason or error}")


def _wrap(context: ssl.SSLContext, sock: socket.socket, *, server: bool) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(
            sock,
            server_side=server,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except (OSError, ValueError) as error:  # the peer is gone already
        sock.close()
        raise PeerUnreachable(f"connection broke before its handshake: {error}") from error


def _contexts(credentials: Credentials) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority, certificate_pem = _certificates(credentials)
    chain = certificate_pem + credentials.identity.private_pem()
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # names prove nothing here, the authority does
        context.verify_mode = ssl.CERT_REQUIRED
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        context.load_verify_locations(cadata=authority)
        context.set_alpn_protocols([_PROTOCOL])
        _load_chain(context, chain)
        contexts.append(context)
    client, server = contexts
    server.num_tickets = 0
    return client, server


def _load_chain(context: ssl.SSLContext, chain: bytes) -> None:
    # The ssl module reads certificates from files only; this file is memory without a name.
    fd = os.memfd_create("certificate")
    try:
        os.write(fd, chain)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _certificates(credentials: Credentials) -> tuple[bytes, bytes]:
    """The authority's certificate (DER, the same on every member) and our own (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    seed = credentials.key.derive(b"certificate authority")
    authority_key = Ed25519PrivateKey.from_private_bytes(seed)
    issuer = _name("dfsfs network")
    authority = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(authority_key.public_key())
        .serial_number(1)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, None)
    )
    own = (
        x509.CertificateBuilder()
        .subject_name(_name("dfsfs node"))
        .issuer_name(issuer)
        .public_key(credentials.identity.private_key.public_key())
        .serial_number(int.from_bytes(credentials.identity.node_id[:8], "big") + 2)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority_key, None)
    )
    return authority.public_bytes(Encoding.DER), own.public_bytes(Encoding.PEM)


def _name(common_name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _subject_id(certificate_der: bytes) -> NodeId:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public_key = x509.load_der_x509_certificate(certificate_der).public_key()
    return node_id_of(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
