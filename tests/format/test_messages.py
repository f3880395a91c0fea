"""Golden vectors: the bodies of the messages between nodes, as their senders write them.

They change only with a version of the protocol (doc/protocol.md): nodes of different releases meet
in one network. Fields may be added at the end of lists: receivers ignore what they do not know.
"""

from pathlib import Path
from typing import Any, cast

from dfsfs.base.codec import decode, encode
from dfsfs.base.types import Buffer, Digest, DigestKind, InodeId, NodeId, Origin, digest_of
from dfsfs.cluster.exchange import METHOD as METHOD_ROWS
from dfsfs.cluster.fetch import METHOD_GET
from dfsfs.cluster.lease import Grant, Request
from dfsfs.cluster.members import Member
from dfsfs.cluster.membership import METHOD_GOSSIP
from dfsfs.cluster.purge import METHOD_HELD, checked_answer
from dfsfs.cluster.rejoin import METHOD_SNAPSHOT, checked_page
from dfsfs.cluster.replicate import METHOD_LACKS, METHOD_OFFER, METHOD_PUT, offer
from dfsfs.cluster.rounds import Answer
from dfsfs.cluster.rows_messages import (
    RowsMessage,
    checked_floor,
    checked_flush,
    checked_refill,
    checked_report,
    checked_rows,
    send_batches,
    wire_positions,
    wire_refill,
)
from dfsfs.namespace import Batch, Refill
from dfsfs.net import MessageStream, Reply, Session

VECTORS = Path(__file__).with_name("messages.txt")
DIGEST = digest_of(DigestKind.BLAKE3, b"block")
OTHER = digest_of(DigestKind.SHA1, b"other")
PEER = NodeId(b"p" * 32)
REFILL = Refill({Origin(7): (10, 12)}, {Origin(8): 5})


class Recorder:
    """Stands where a stream or a session would, and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, bytes]] = []

    async def send(self, body: Any, payload: Buffer = b"") -> None:
        """Of a message stream."""
        self.sent.append((METHOD_ROWS, body, bytes(payload)))

    async def call(
        self, method: str, body: Any, payload: Buffer = b"", *, deadline_s: float
    ) -> Reply:
        """Of a session; the peer has the first digest and not the second."""
        self.sent.append((method, body, bytes(payload)))
        return Reply([OTHER])


async def make() -> dict[str, bytes]:
    """Every message, as this version writes it."""
    recorder = Recorder()
    batches = [Batch(Origin(7), 10, 12, b"rows"), Batch(Origin(1 << 22), 0, 1 << 50, b"more")]
    await send_batches(cast("MessageStream", recorder), batches)
    asking = Recorder()
    await send_batches(cast("MessageStream", asking), batches[:1], 3)
    await send_batches(cast("MessageStream", asking), [], marks=[1 << 41, -(1 << 42)])
    await send_batches(cast("MessageStream", asking), batches[:1], reach={Origin(8): 5})
    assert await offer(cast("Session", recorder), [DIGEST, OTHER]) == [OTHER]
    member = Member(
        node=PEER,
        name="näme",
        origin=Origin(7),
        version=1_700_000_000_000_000,
        addresses=("tls://127.0.0.1:4000", "tls://[::1]:4000"),
        weight=1024,
        used=3,
        mounts=True,
    )
    request, grant = Request(PEER, InodeId(1 << 41), 5), Grant(PEER, InodeId(1))
    bodies: dict[str, Any] = {
        f"{METHOD_GOSSIP} member": member.to_wire(),
        f"{METHOD_ROWS} have": ["have", wire_positions({Origin(7): 12, Origin(2): 1 << 50})],
        f"{METHOD_ROWS} left": ["left", 60_000],
        f"{METHOD_ROWS} have and floor": ["have", {7: 12}, {7: 10}],
        f"{METHOD_HELD}": [wire_positions({Origin(7): 12})],
        f"{METHOD_HELD} answer": [{7: 12}, {7: 10}, [PEER], 90, 86_400],
        f"{METHOD_SNAPSHOT}": [None],
        f"{METHOD_SNAPSHOT} answer": [{7: 12}, {7: 10}, 3, b"next", {7: 13}],
        f"{METHOD_ROWS} ready": ["ready"],
        f"{METHOD_ROWS} level": ["level"],
        f"{METHOD_ROWS} stable": ["stable", 3, 12],
        f"{METHOD_ROWS} lease": ["lease", [[request.inode, request.stamp], [grant.inode]]],
        f"{METHOD_GET}": [DIGEST],
        f"{METHOD_PUT}": [DIGEST],
        f"{METHOD_LACKS}": [DIGEST, OTHER],
        f"{METHOD_ROWS} ask": ["ask", [1 << 41]],
        f"{METHOD_ROWS} ack of no draft": ["ack", wire_positions({Origin(7): 12}), [1 << 41]],
        f"{METHOD_ROWS} flushed": ["flushed", 3],
        f"{METHOD_ROWS} failed": ["failed", 3],
        f"{METHOD_ROWS} have and gaps": ["have", {7: 12}, {}, *wire_refill(REFILL)],
    }
    vectors = {name: encode(body) for name, body in bodies.items()}
    for name, (_, body, payload) in zip(("flush", "marks", "reach"), asking.sent, strict=True):
        vectors[f"{METHOD_ROWS} rows and {name}"] = encode(body) + payload
    for method, body, payload in recorder.sent:
        vectors[f"{method} {body[0]}" if method == METHOD_ROWS else method] = encode(body) + payload
    return vectors


def read() -> dict[str, bytes]:
    """The recorded vectors: a name and hexadecimal a line."""
    lines = VECTORS.read_text().splitlines()
    return {
        name: bytes.fromhex(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


async def test_messages_are_as_recorded() -> None:
    made = await make()
    assert METHOD_OFFER in made
    assert made == read(), "\n".join(f"{name} {data.hex()}" for name, data in made.items())


def test_what_older_nodes_sent_is_understood() -> None:
    assert checked_report(["have", {7: 12}]) == ("have", {7: 12})
    assert checked_report(["ack", {7: 12}, [], "a field of later"]) == ("ack", {7: 12})
    batches = [Batch(Origin(7), 10, 12, b"rows")]
    for body, rest in (
        (["rows", [[7, 10, 12, 4]]], (0, ())),
        (["rows", [[7, 10, 12, 4]], 3], (3, ())),
        (["rows", [[7, 10, 12, 4]], 0, [5, -6]], (0, [5, -6])),
        (["rows", [[7, 10, 12, 4]], 0, [], {8: 5}, "a field of later"], (0, [], {8: 5})),
    ):
        assert checked_rows(body, b"rows") == RowsMessage("rows", batches, *rest)
    assert checked_flush(["flushed", 3, "a field of later"]) == (3, True)
    assert checked_flush(["failed", 3]) == (3, False)
    assert checked_floor(["have", {7: 12}]) is None
    assert checked_floor(["have", {7: 12}, {7: 10}]) == {7: 10}
    assert checked_refill(["have", {7: 12}, {7: 10}]) is None
    assert checked_refill(["have", {7: 12}, {}, {7: 10}, {7: 12}, {8: 5}, "later"]) == REFILL
    answer = checked_answer([{7: 12}, {7: 10}, [PEER], 90, 86_400, "a field of later"])
    assert answer == Answer({Origin(7): 12}, {Origin(7): 10}, frozenset([PEER]), 90, 86_400)
    assert checked_page([{7: 12}, {}, 3, b"next"]) == ({7: 12}, {}, 3, b"next", {7: 12})
    assert checked_page([{7: 12}, {}, 3, None, {7: 13}, "more"])[3:] == (None, {7: 13})
    wire = decode(read()["members.gossip member"], size_max=1 << 16)
    assert Member.from_wire([*wire, "a field of later"]).to_wire() == wire


def test_digests_are_as_recorded() -> None:
    """The names of blocks must never change, on disk and on the wire."""
    assert Digest(bytes.fromhex(DIGESTS["blake3"])) == DIGEST
    assert Digest(bytes.fromhex(DIGESTS["sha1"])) == OTHER


DIGESTS = {
    "blake3": "01a98489a784bbc2177d6cb7324cc042f52f9d5104a6b675e4409b5f227dc68530",
    "sha1": "03d0941e68da8f38151ff86a61fc59f7c5cf9fcaa2",
}
