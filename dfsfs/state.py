"""The databases in a node's state directory, opened, and what is to be believed of their past.

A directory may be a copy, a backup that was put back, what a power cut left, or damaged. Rows of
this node that peers hold may be missing then, and going on where it seems to have stopped would
give out their stamps and inode numbers a second time: two histories under one name, which no
exchange of rows can ever join. So every run leaves a mark that says in which directory, on which
start of the machine it ran, and whether it flushed its rows at the end. A start that does not find
the mark it should has an uncertain past: the node goes on as another incarnation, which needs
nobody's consent and loses nothing. That this state is older than what peers hold, they say as well
(`exchange`); but they need not be there.

Damage: a database that cannot be read is set aside, never deleted. The names of all files are with
every peer and come back from there. A node without peers does not start then: an empty tree in
their place would be believed by whoever copies it.

Sync: a few statements and one flush a start. Durable when `open_state` returns.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import Corrupt, DfsError, Misconfigured
from dfsfs.base.types import NodeId
from dfsfs.base.units import KIB, MIB
from dfsfs.cluster import (
    GC_SCHEMA,
    GC_SCHEMA_VERSION,
    MEMBERS_SCHEMA,
    MEMBERS_SCHEMA_VERSION,
    NAMES_LOST,
    MemberTable,
)
from dfsfs.config import Config
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION, check_snapshot
from dfsfs.runtime import Bounds, Database, Reserve, World

log = logging.getLogger(__name__)

RUN = "run"  # a `_Mark` as a list

NODE_KEY = "node.key"

NAMESPACE_CACHE_BYTES = 64 * MIB
MEMBERS_CACHE_BYTES = MIB
GC_CACHE_BYTES = 16 * MIB


class _Mark(NamedTuple):
    """Where and when a run was; the names are those of `World.place`."""

    directory: str
    machine: str
    names: int = 0  # drawn by the run, and noted in the database of names as well
    ended: bool = False  # in good order, with everything flushed


@dataclass(slots=True)
class State:
    """The open databases. Owned by the node, which closes them."""

    world: World
    members: MemberTable
    members_database: Database
    namespace: Database
    gc: Database
    mark: "_Mark"
    uncertain: str  # why rows of this node may be missing here; "": they are not
    names_lost: str  # why there are no names but those that peers send; "": there are

    def begin(self) -> None:
        """From now on this run writes: leave its mark, flushed. Blocks."""
        drawn = self.world.random.getrandbits(31)
        self.namespace.execute(f"PRAGMA application_id={drawn}")
        self.namespace.sync()
        self.mark = self.mark._replace(names=drawn)
        self._note(ended=False)

    def end(self) -> None:
        """Nothing writes any more: flush the rows and say so. Blocks."""
        try:
            self.namespace.sync()
            self._note(ended=True)
        except DfsError as error:  # then the next start is another incarnation, if it must be
            log.info("the end of this run was not noted: %s", error)

    def bounded(self) -> Bounds:
        """What of the databases is bounded, and how full that is; the namespace has its own."""
        return {**self.members_database.bounded("members"), **self.gc.bounded("gc")}

    @property
    def databases(self) -> list[Database]:
        """All of them."""
        return [self.namespace, self.members_database, self.gc]

    async def check(self) -> list[str]:
        """Every violated invariant of the namespace; reads a snapshot, in a thread."""
        members = self.members
        names = {member.origin: members.name_of_origin(member.origin) for member in members.all()}
        return await self.world.run_blocking(
            check_snapshot, self.namespace, lambda origin: names.get(origin, f"node {origin}")
        )

    def names_are_back(self) -> None:
        """Everything that peers hold was applied here."""
        if self.names_lost:
            log.warning("the names of all files have come back from other nodes")
            self.members.set_fact(NAMES_LOST, b"")
            self.names_lost = ""

    def _note(self, *, ended: bool) -> None:
        self.members.set_fact(RUN, encode([*self.mark._replace(ended=ended)]))
        self.members_database.sync()


def open_state(config: Config, world: World, own: NodeId, stack: ExitStack) -> State:
    """Open the databases of node `own`; `stack` closes them. Blocks.

    Raises:
        Misconfigured: names are damaged and nobody is known who has them; or they are a newer
            program's. Full, DfsError: the disk fails.
    """
    members_path = config.state / "members.db"
    namespace_path = config.state / "namespace.db"
    is_first = not members_path.exists() and not namespace_path.exists()

    reserve = Reserve(config.state, config.reserve_bytes)

    def opened(
        name: str, schema: str, version: int, cache_bytes: int, *, replaceable: bool = True
    ) -> Database:
        database = Database(
            config.state / name,
            schema=schema,
            version=version,
            cache_bytes=cache_bytes,
            reserve=reserve,
            remembers_damage=replaceable,
        )
        stack.callback(database.close)
        return database

    def opened_or_new(name: str, schema: str, version: int, cache_bytes: int) -> Database:
        try:
            return opened(name, schema, version, cache_bytes)
        except Corrupt as error:
            aside = Database.set_aside(config.state / name)
            log.error("%s; it is %s now, and this node goes on with a new one", error, aside)
            return opened(name, schema, version, cache_bytes)

    members_database = opened_or_new(
        "members.db", MEMBERS_SCHEMA, MEMBERS_SCHEMA_VERSION, MEMBERS_CACHE_BYTES
    )
    members = MemberTable(members_database, own)
    others = [member.name for member in members.current() if member.node != own]
    noted = _noted(members)
    lost = ""
    if noted is not None and not namespace_path.exists():
        lost = f"{namespace_path} is gone"
    # Nobody else to have names from: what can still be read of a damaged file is better than none.
    alone = not others and not config.bootstrap
    try:
        namespace = opened(
            "namespace.db", SCHEMA, SCHEMA_VERSION, NAMESPACE_CACHE_BYTES, replaceable=not alone
        )
    except Corrupt as error:
        if alone:
            raise Misconfigured(
                f"the names of all files are damaged ({error}), and no other node is known that"
                " has them. Put back a backup of the state directory. To begin with an empty tree"
                f" instead, move {namespace_path} away: files that no other node has are lost then"
            ) from error
        lost = f"it was damaged and is {Database.set_aside(namespace_path)} now"
        namespace = opened("namespace.db", SCHEMA, SCHEMA_VERSION, NAMESPACE_CACHE_BYTES)
    gc = opened_or_new("gc.db", GC_SCHEMA, GC_SCHEMA_VERSION, GC_CACHE_BYTES)
    directory, machine = world.place(config.state / NODE_KEY)
    mark = _Mark(directory, machine, namespace.value("PRAGMA application_id"))
    uncertain = "" if is_first else lost or _why_uncertain(noted, mark)
    if noted is not None and not mark.names:  # no run has begun with these names
        lost = lost or f"{namespace_path} is new"
    if lost or (noted is not None and noted.names != mark.names):  # gone, or put back
        members.set_fact(NAMES_LOST, lost.encode())
    lost = (members.fact(NAMES_LOST) or b"").decode()
    if lost:
        log.error("the names of all files are lost here, other nodes may have them: %s", lost)
    return State(world, members, members_database, namespace, gc, mark, uncertain, lost)


def _noted(members: MemberTable) -> _Mark | None:
    """The mark of the last run; None if there is none that makes sense."""
    try:
        return _Mark(*decode(members.fact(RUN) or b"", size_max=KIB))
    except (DfsError, TypeError):
        return None


def _why_uncertain(noted: _Mark | None, mark: _Mark) -> str:
    """Why rows that this node has written may be missing here; "" if they cannot be."""
    if noted is None:
        return "it does not say when it ran last"
    if noted.directory != mark.directory or noted.names != mark.names:
        return "its state is a copy, or was put back from a backup"
    if noted.machine != mark.machine and not noted.ended:
        return "the machine stopped before the last rows were flushed"
    return ""
