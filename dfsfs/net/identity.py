"""Who a node is, and which network it belongs to: two secrets, each in a file of its own.

The *network key* is 32 random bytes that all members share; who holds it is a member. The
*node identity* is an Ed25519 key that never leaves its node; its public half names the node.
This module reads and writes the files; `net.tls` makes certificates from them.

`cryptography` costs 40 ms to import and the command line tools need none of it, so the functions
that use it import it. Sync; called at start, off the hot path.

Durability: a file is complete and on stable storage when the call that writes it returns; a crash
leaves the old state or the new one.
"""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfsfs.base.errors import Corrupt, Exists, NotFound, Refused
from dfsfs.base.types import NodeId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32
_FILE_BYTES_MAX = 4096
_TITLE = (
    "dfs network key, version 1. Who has it can read and change the whole network: keep it secret."
)


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """The secret that makes a node a member. Never printed."""

    secret: bytes = field(repr=False)

    def derive(self, purpose: bytes, size: int = KEY_BYTES) -> bytes:
        """Independent bytes for one purpose: HKDF-SHA256 (RFC 5869) for at most one hash."""
        assert size <= KEY_BYTES
        extracted = hmac.digest(b"dfsfs network key", self.secret, hashlib.sha256)
        return hmac.digest(extracted, purpose + b"\x01", hashlib.sha256)[:size]


def network_id(key: NetworkKey) -> bytes:
    """The network's public name, in every hello: tells nothing about the key."""
    return key.derive(b"network id", 16)


def create_network_key(path: Path) -> NetworkKey:
    """Write a new key to `path`, readable by its owner alone.

    Raises:
        Exists: `path` is there already. It is never overwritten: the old key may be the only copy.

    Durable: on return.
    """
    key = NetworkKey(secrets.token_bytes(KEY_BYTES))
    _write_secret(path, key_text(key).encode())
    return key


def load_network_key(path: Path) -> NetworkKey:
    """Read a key file.

    Raises:
        NotFound: no such file. Refused: others than its owner may read it.
        Corrupt: it is no key file, or damaged.
    """
    return key_from_text(_read_secret(path).decode("utf-8", "replace"), str(path))


def key_text(key: NetworkKey) -> str:
    """The content of a key file: a title, the key, and a checksum against typing errors."""
    return f"{_TITLE}\nkey {key.secret.hex()}\ncheck {_checksum(key.secret)}\n"


def key_from_text(text: str, source: str) -> NetworkKey:
    """Read `key_text` back; `source` names the file in errors."""
    values = dict(
        line.split(maxsplit=1) for line in text.splitlines()[1:] if len(line.split()) == 2
    )
    try:
        secret = bytes.fromhex(values["key"].strip())
        check = values["check"].strip()
    except (KeyError, ValueError) as error:
        raise Corrupt(f"{source} is not a dfs network key (make one with: dfs key new)") from error
    if len(secret) != KEY_BYTES or check != _checksum(secret):
        raise Corrupt(
            f"the network key in {source} is damaged: its checksum is wrong; copy it anew"
        )
    return NetworkKey(secret)


def _checksum(secret: bytes) -> str:
    return hashlib.sha256(b"dfsfs key checksum" + secret).hexdigest()[:8]


class NodeIdentity:
    """A node's own key pair. `node_id` is the hash of its public half."""

    def __init__(self, private_key: "Ed25519PrivateKey") -> None:
        self.private_key = private_key
        self.node_id = node_id_of(_public_der(private_key))

    @classmethod
    def generate(cls) -> "NodeIdentity":
        """A new identity, in memory only."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> "NodeIdentity":
        """The identity kept at `path`, made at the first call.

        Raises:
            Refused: others than its owner may read it. Corrupt: it is damaged.

        Durable: on return.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            data = _read_secret(path)
        except NotFound:
            identity = cls.generate()
            _write_secret(path, identity.private_pem())
            return identity
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError) as error:
            raise Corrupt(f"the node identity in {path} is damaged: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Corrupt(f"the node identity in {path} is not an Ed25519 key")
        return cls(key)

    def private_pem(self) -> bytes:
        """The private key as PKCS #8 in PEM."""
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def node_id_of(public_key_der: bytes) -> NodeId:
    """SHA-256 of a SubjectPublicKeyInfo."""
    return NodeId(hashlib.sha256(public_key_der).digest())


def _public_der(private_key: "Ed25519PrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read_secret(path: Path) -> bytes:
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by the with below
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise Refused(f"{path} is not a regular file")
        if mode & 0o077:
            raise Refused(f"{path} can be read by others: run chmod 600 on it")
        return file.read(_FILE_BYTES_MAX)


def _write_secret(path: Path, data: bytes) -> None:
    # A name of its own first, so that nobody ever sees half a file; link() because, unlike
    # rename(), it does not replace what another process has put there meanwhile.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.link(draft, path)
        finally:
            draft.unlink()
    except FileExistsError as error:
        raise Exists(f"{path} exists already and is not overwritten") from error
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from error
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
