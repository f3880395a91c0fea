"""The records by which nodes know each other, and the table that keeps them.

Each node publishes one `Member` record about itself; records spread by gossip and the one with the
greatest (epoch, version) wins, so the table is a last-writer-wins map. The node itself raises the
version. The epoch is raised by whoever removes the node from the network or takes it back: it wins
over anything the node says of itself meanwhile, in whatever partition. The table is kept on disk,
so that a node finds its peers again without its bootstrap address.

*Absent* members are those this node has not reached for `--repair-after`: they are members, but no
candidates for placement. That is a view of this node alone, kept in memory. Two nodes may differ
for a while; then some blocks have a copy too many, never one too few.

Sync; no network here: `membership` dials and gossips.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import Full, RemoteProtocolError
from dfsfs.base.limits import ADDRESSES_PER_MEMBER_MAX, MEMBERS_MAX, NODE_NAME_BYTES_MAX
from dfsfs.base.types import ORIGIN_MAX, NodeId, Origin
from dfsfs.base.units import KIB
from dfsfs.cluster.placement import Candidate
from dfsfs.runtime import Database, World

log = logging.getLogger(__name__)

MEMBER_BYTES_MAX = 8 * KIB
NODE_ID_BYTES = 32
WEIGHT_MAX = 1 << 40
FIELDS = 14

SCHEMA = """
-- What this node knows of every node of the network, itself included.
CREATE TABLE member (
    node BLOB PRIMARY KEY,   -- node id, 32 bytes
    record BLOB NOT NULL     -- Member, in the canonical codec
) WITHOUT ROWID;
-- Single values about this node (such as its incarnation), by name.
CREATE TABLE fact (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
"""
SCHEMA_VERSION = 1
NAMES_LOST = "names_lost"  # fact: why the names of files must come from peers; empty: they need not


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a node says of itself. `version` only grows; `removed` ends its membership.

    The last three are what its last look at its blocks found to be short: see `repair`.
    """

    node: NodeId
    name: str
    origin: Origin
    version: int
    addresses: tuple[str, ...]
    weight: int  # share of blocks it should hold, in MiB of capacity; 0: it stores none
    used: int  # MiB of blocks it holds, as of this version
    mounts: bool
    removed: bool = False
    epoch: int = 0  # removals and returns so far
    full: bool = False  # takes no more blocks for now
    missing_copies: int = 0
    missing_bytes: int = 0
    single_blocks: int = 0  # blocks that are on this node alone

    @property
    def age(self) -> tuple[int, int]:
        """Of two records of a node the one of greater age holds."""
        return self.epoch, self.version

    def to_wire(self) -> list[Any]:
        """The fields as a list for the codec."""
        return [
            self.node,
            self.name,
            self.origin,
            self.version,
            list(self.addresses),
            self.weight,
            self.used,
            self.mounts,
            self.removed,
            self.epoch,
            self.full,
            self.missing_copies,
            self.missing_bytes,
            self.single_blocks,
        ]

    @classmethod
    def from_wire(cls, value: object) -> "Member":
        """Check and build a record that came from outside.

        Raises:
            RemoteProtocolError: any field is not what it should be.
        """
        if not isinstance(value, list) or len(value) < FIELDS:
            raise RemoteProtocolError("malformed member record")
        node, name, origin, version, addresses, weight, used, mounts, removed = value[:9]
        epoch, full, *short = value[9:FIELDS]
        if not (
            isinstance(node, bytes)
            and len(node) == NODE_ID_BYTES
            and isinstance(name, str)
            and 0 < len(name.encode()) <= NODE_NAME_BYTES_MAX
            and name.isprintable()
            and "/" not in name
            and type(origin) is int
            and 0 < origin <= ORIGIN_MAX
            and type(version) is int
            and 0 <= version < 1 << 63
            and isinstance(addresses, list)
            and len(addresses) <= ADDRESSES_PER_MEMBER_MAX
            and all(isinstance(item, str) and len(item) <= 256 for item in addresses)
            and type(weight) is int
            and 0 <= weight <= WEIGHT_MAX
            and type(used) is int
            and 0 <= used <= WEIGHT_MAX
            and type(mounts) is bool
            and type(removed) is bool
            and type(epoch) is int
            and 0 <= epoch < 1 << 32
            and type(full) is bool
            and all(type(item) is int and 0 <= item < 1 << 62 for item in short)
        ):
            raise RemoteProtocolError("malformed member record")
        return cls(
            node=NodeId(node),
            name=name,
            origin=Origin(origin),
            version=version,
            addresses=tuple(addresses),
            weight=weight,
            used=used,
            mounts=mounts,
            removed=removed,
            epoch=epoch,
            full=full,
            missing_copies=short[0],
            missing_bytes=short[1],
            single_blocks=short[2],
        )


class MemberTable:
    """All known members. Owned by the node; changed by `membership` and by this node itself."""

    def __init__(self, database: Database, own: NodeId) -> None:
        self._database = database
        self.own = own
        self._is_flushed = False
        self._members: dict[NodeId, Member] = {}
        self._candidates: list[Candidate] = []
        self._absent: frozenset[NodeId] = frozenset()
        self._name_watchers: list[Callable[[], None]] = []
        self._watchers: list[Callable[[Member], None]] = []
        self._placement_watchers: list[Callable[[], None]] = []
        for (record,) in database.rows("SELECT record FROM member"):
            member = Member.from_wire(decode(record, size_max=MEMBER_BYTES_MAX))
            self._members[member.node] = member
        self._names = self._names_by_origin()
        self._rebuild()

    def watch(self, callback: Callable[[Member], None]) -> None:
        """Call back, synchronously, for every record that is new or newer."""
        self._watchers.append(callback)

    def watch_placement(self, callback: Callable[[], None]) -> None:
        """Call back, synchronously, when `candidates` has become another list."""
        self._placement_watchers.append(callback)

    def watch_names(self, callback: Callable[[], None]) -> None:
        """Call back, synchronously, when `name_of_origin` may answer differently than before."""
        self._name_watchers.append(callback)

    def get(self, node: NodeId) -> Member | None:
        """The record of a node, or None if it was never heard of."""
        return self._members.get(node)

    def all(self) -> list[Member]:
        """Every record, removed members included, in node-id order."""
        return [self._members[node] for node in sorted(self._members)]

    def current(self) -> list[Member]:
        """Every member that was not removed, in node-id order."""
        return [member for member in self.all() if not member.removed]

    @property
    def candidates(self) -> list[Candidate]:
        """The members that store blocks and are not absent, for placement."""
        return self._candidates

    @property
    def absent(self) -> frozenset[NodeId]:
        """Members that do not count for placement."""
        return self._absent

    def set_absent(self, nodes: frozenset[NodeId]) -> None:
        """These members have been away for too long; all others have not."""
        self._absent = nodes
        self._rebuild()

    @property
    def copies_possible(self) -> int:
        """Nodes that would hold blocks if none were absent."""
        return sum(member.weight > 0 for member in self.current())

    def name_of_origin(self, origin: Origin) -> str:
        """The name of the node that wrote as `origin`; the number if nobody did that is known."""
        for node in sorted(self._members):
            if self._members[node].origin == origin:
                return self._members[node].name
        return f"node {origin}"

    def merge(self, records: Iterable[Member]) -> list[Member]:
        """Keep what is newer than ours; returns it."""
        news = []
        for record in records:
            known = self._members.get(record.node)
            if known is not None and known.age >= record.age:
                continue
            if known is None and len(self._members) >= MEMBERS_MAX:
                log.warning("member %s is over the limit of %d, ignored", record.name, MEMBERS_MAX)
                continue
            self._members[record.node] = record
            news.append(record)
            self._is_flushed = False
            try:
                self._database.execute(
                    "INSERT OR REPLACE INTO member(node, record) VALUES(?, ?)",
                    (record.node, encode(record.to_wire())),
                )
            except Full as error:  # after a restart its own node tells it again
                log.info("the record of %s is kept in memory only: %s", record.name, error)
        if news:
            self._rebuild()
            for record in news:
                for callback in self._watchers:
                    callback(record)
            names = self._names_by_origin()
            if names != self._names:
                self._names = names
                for name_callback in self._name_watchers:
                    name_callback()
        return news

    def _names_by_origin(self) -> dict[Origin, str]:
        return {member.origin: member.name for member in self.all()}

    def fact(self, name: str) -> bytes | None:
        """A stored value about this node."""
        value: bytes | None = self._database.value("SELECT value FROM fact WHERE name=?", (name,))
        return value

    def set_fact(self, name: str, value: bytes) -> None:
        """Store a value about this node."""
        self._is_flushed = False
        self._database.execute(
            "INSERT OR REPLACE INTO fact(name, value) VALUES(?, ?)", (name, value)
        )

    async def flush(self, world: World) -> None:
        """Return when all of it is on stable storage; at once if it is already.

        Raises:
            DfsError: the disk failed.
        """
        if self._is_flushed:
            return
        self._is_flushed = True
        try:
            await world.run_blocking(self._database.sync)
        except BaseException:
            self._is_flushed = False
            raise

    def _rebuild(self) -> None:
        candidates = [
            Candidate(member.node, float(member.weight))
            for member in self.current()
            if member.weight > 0 and member.node not in self._absent
        ]
        if candidates != self._candidates:
            self._candidates = candidates
            for callback in self._placement_watchers:
                callback()
