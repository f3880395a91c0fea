"""What TLS must refuse, and how the three failures a user can meet are told apart."""

import datetime
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from dfsfs.base.errors import KeyMismatch, KeyMissing, NotDfsNode, PeerUnreachable, Refused
from dfsfs.net import (
    Address,
    Credentials,
    Endpoint,
    NetworkKey,
    NodeIdentity,
    Session,
    insecure_transports,
    network_id,
    standard_transports,
)
from dfsfs.net.tls import TlsStream, TlsTransport
from dfsfs.runtime import RealWorld
from tests.unit.net.conftest import until

OURS, THEIRS = NetworkKey(b"o" * 32), NetworkKey(b"t" * 32)
GENEROUS_S = 20
ANYWHERE = "tls://127.0.0.1:0"


def make_endpoint(key: NetworkKey | None, name: str = "node") -> Endpoint:
    identity = NodeIdentity.generate()
    credentials = None if key is None else Credentials(identity, key)
    return Endpoint(
        RealWorld(),
        identity.node_id,
        name=name,
        network=b"" if key is None else network_id(key),
        transports={**standard_transports(credentials), **insecure_transports()},
    )


async def started(nursery: trio.Nursery, key: NetworkKey | None, name: str = "node") -> Endpoint:
    endpoint = make_endpoint(key, name)
    await nursery.start(endpoint.run)
    return endpoint


async def connect(endpoint: Endpoint, url: str) -> Session:
    with trio.fail_after(GENEROUS_S):
        return await endpoint.connect(url)


async def test_members_meet_and_prove_their_ids(nursery: trio.Nursery) -> None:
    a, b = await started(nursery, OURS), await started(nursery, OURS)
    url = await b.listen(ANYWHERE)
    session = await connect(a, url)
    assert session.peer.node == b.node
    assert session.peer.proved
    await until(lambda: a.node in b.sessions)
    assert b.sessions[a.node].peer.proved


async def test_no_key(nursery: trio.Nursery) -> None:
    member, outsider = await started(nursery, OURS), await started(nursery, None)
    url = await member.listen(ANYWHERE)
    with pytest.raises(KeyMissing, match="needs the network key"):
        await connect(outsider, url)
    with pytest.raises(KeyMissing):
        await outsider.listen(ANYWHERE)


async def test_wrong_key(nursery: trio.Nursery) -> None:
    member, outsider = await started(nursery, OURS), await started(nursery, THEIRS)
    url = await member.listen(ANYWHERE)
    with pytest.raises(KeyMismatch, match="another network"):
        await connect(outsider, url)
    assert member.sessions == outsider.sessions == {}


@asynccontextmanager
async def strange_server(
    behave: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, behave, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def http(stream: trio.SocketStream) -> None:
    await stream.receive_some(1000)
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def ssh(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    await stream.receive_some(1000)


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
@pytest.mark.parametrize("server", [http, ssh])
async def test_not_a_dfs_node(
    nursery: trio.Nursery, scheme: str, server: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    member = await started(nursery, OURS)
    async with strange_server(server) as authority:
        with pytest.raises(NotDfsNode, match="not a dfs node"):
            await connect(member, f"{scheme}://{authority}")


async def test_a_web_server_with_tls_is_not_another_network(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    async def https(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        with suppress(trio.BrokenResourceError):
            await tls.do_handshake()

    member = await started(nursery, OURS)
    async with strange_server(https) as authority:
        with pytest.raises(NotDfsNode, match="speaks TLS but is not a dfs node"):
            await connect(member, f"tls://{authority}")


async def test_a_node_without_tls_is_told_from_one_with(nursery: trio.Nursery) -> None:
    member, insecure = await started(nursery, OURS), await started(nursery, None)
    plain = await insecure.listen("tcp://127.0.0.1:0")
    secret = await member.listen(ANYWHERE)
    with pytest.raises(NotDfsNode):
        await connect(member, plain.replace("tcp:", "tls:"))
    with pytest.raises(PeerUnreachable):  # what it says may be lost when it resets the connection
        await connect(insecure, secret.replace("tls:", "tcp:"))


async def test_nobody_listens(nursery: trio.Nursery) -> None:
    member = await started(nursery, OURS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(PeerUnreachable, match="refused"):
            await connect(member, f"tls://127.0.0.1:{port}")


def self_signed(
    directory: Path,
    *,
    authority: Ed25519PrivateKey | None = None,
    until: datetime.datetime | None = None,
) -> Path:
    """A certificate and its key in one file."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dfsfs network")])
    leaf = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dfsfs node")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name if authority is None else leaf)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(start)
        .not_valid_after(until or datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority or key, None)
    )
    file = directory / f"{os.urandom(4).hex()}.pem"
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


def network_authority(key: NetworkKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.derive(b"certificate authority"))


@pytest.mark.parametrize("flaw", ["no certificate", "self-signed", "expired", "none"])
async def test_a_server_takes_only_certificates_of_its_network(
    nursery: trio.Nursery, tmp_path: Path, flaw: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["dfsfs"])
    if flaw == "self-signed":
        context.load_cert_chain(self_signed(tmp_path))
    elif flaw == "expired":
        past = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
        context.load_cert_chain(
            self_signed(tmp_path, authority=network_authority(OURS), until=past)
        )
    elif flaw == "none":
        context.load_cert_chain(self_signed(tmp_path, authority=network_authority(OURS)))
    listener = await TlsTransport(Credentials(NodeIdentity.generate(), OURS)).listen(
        Address.parse(ANYWHERE)
    )

    async def client() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", Address.parse(listener.url).port)
        tls = trio.SSLStream(stream, context)
        try:
            await tls.receive_some(1)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(tls)

    with trio.fail_after(GENEROUS_S):
        async with trio.open_nursery() as both:
            both.start_soon(client)
            stream = await listener.accept()
            if flaw == "none":
                await stream.handshake()
                assert stream.peer_id is not None
            else:
                with pytest.raises((KeyMismatch, NotDfsNode)):
                    await stream.handshake()
                assert stream.peer_id is None
            stream.close()
            listener.close()


async def pair() -> tuple[TlsStream, TlsStream]:
    transports = [TlsTransport(Credentials(NodeIdentity.generate(), OURS)) for _ in range(2)]
    listener = await transports[0].listen(Address.parse(ANYWHERE))
    near = await transports[1].connect(Address.parse(listener.url))
    far = await listener.accept()
    listener.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.handshake)
        nursery.start_soon(far.handshake)
    return near, far


async def test_a_cut_connection_is_no_end(nursery: trio.Nursery) -> None:
    near, far = await pair()
    # The TCP connection ends in good order, without the notice that TLS demands.
    raw = socket.socket(fileno=os.dup(near._sock.fileno()))
    with raw:
        raw.shutdown(socket.SHUT_WR)
        with trio.fail_after(GENEROUS_S), pytest.raises(PeerUnreachable, match="cut"):
            await far.receive_into(memoryview(bytearray(10)))
    near.close()
    far.close()


async def test_version_and_tickets() -> None:
    near, far = await pair()
    assert near._tls.version() == "TLSv1.3"
    session = near._tls.session
    assert session is None or not session.has_ticket
    near.close()
    far.close()


async def test_an_id_that_is_not_the_keys_is_refused(nursery: trio.Nursery) -> None:
    honest = await started(nursery, OURS)
    honest_saw: list[Session] = []
    honest.on_session(up=honest_saw.append)
    url = await honest.listen(ANYWHERE)
    identity = NodeIdentity.generate()
    liar = Endpoint(
        RealWorld(),
        NodeIdentity.generate().node_id,  # not the one of the key it proves itself with
        name="liar",
        network=network_id(OURS),
        transports=standard_transports(Credentials(identity, OURS)),
    )
    await nursery.start(liar.run)
    with suppress(Refused, PeerUnreachable):
        # With the smaller id it is the one to decide, and believes in a session for a moment.
        session = await connect(liar, url)
        await session.closed.wait()
    await until(lambda: honest._handshakes == 0)
    assert honest.sessions == liar.sessions == {}
    assert honest_saw == []
