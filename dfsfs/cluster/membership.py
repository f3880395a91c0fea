"""Who is in the network, and sessions with all of them.

A node joins by any bootstrap address, learns every member by gossip, keeps one session with each
and redials for ever with exponential backoff and full jitter (Brooker, "Exponential backoff and
jitter"). Records are pushed to every peer when they change and compared with a random peer now and
then, so a lost push heals. The table is on disk: the bootstrap node may be gone for good after the
first join.

Liveness is that of the session: *alive* with one, *suspect* for `SUSPECT_S` after it ended, then
*dead*. The session's keepalive is the failure detector; with one session between every two nodes no
indirect probes are needed for the sizes this is built for.

A member that was away for `repair_after_s` is *absent*: placement no longer counts on it, so others
take over its blocks. It counts again when it has been back for a while, so that a node which comes
and goes does not move blocks each time. A member that was *removed* gets no session until somebody
takes it back.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import (
    DfsError,
    NotDfsNode,
    NotFound,
    NotMember,
    OtherNode,
    Refused,
    RemoteProtocolError,
    SelfConnection,
)
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    FRAME_PAYLOAD_BYTES_MAX,
    GOSSIP_S,
    GRADE_S,
    MEMBERS_MAX,
    RECONNECT_MAX_S,
    RECONNECT_MIN_S,
    RETURN_S,
    STABLE_S,
    SUSPECT_S,
)
from dfsfs.base.types import Buffer, NodeId
from dfsfs.cluster.members import Member, MemberTable
from dfsfs.net import Endpoint, Reply, Request, Session
from dfsfs.runtime import World

log = logging.getLogger(__name__)

METHOD_GOSSIP = "members.gossip"


@dataclass(slots=True)
class _Dialing:
    """The attempts to reach one address or member."""

    next_at_s: float = 0.0
    backoff_s: float = RECONNECT_MIN_S
    last_error: str = ""
    refusal: Refused | NotDfsNode | None = None
    busy: bool = False


class Membership:
    """Joins the network and stays in it. Owned by the node; `run` drives it."""

    def __init__(
        self,
        world: World,
        table: MemberTable,
        endpoint: Endpoint,
        *,
        bootstrap: tuple[str, ...],
        describe: Callable[[int], Member],
        repair_after_s: float,
    ) -> None:
        """`bootstrap`: URLs to dial until they lead somewhere.

        `describe(version)` makes this node's own record.
        """
        self._repair_after_s = repair_after_s
        self._return_s = min(RETURN_S, repair_after_s)
        self._up_at_s: dict[NodeId, float] = {}
        self._started_at_s = world.now_s()
        self._world = world
        self._table = table
        self._endpoint = endpoint
        self._describe = describe
        self._bootstrap = {url: _Dialing() for url in bootstrap}
        self._bootstrap_node: dict[str, NodeId] = {}
        self._dialing: dict[NodeId, _Dialing] = {}
        self._lost_at_s: dict[NodeId, float] = {}
        self._leaving: dict[NodeId, Session] = {}
        self._wake = trio.Event()
        self.self_urls: set[str] = set()
        endpoint.serve_calls(METHOD_GOSSIP, self._answer_gossip)
        table.watch(self._record_changed)

    @property
    def table(self) -> MemberTable:
        """What is known of all members."""
        return self._table

    # -- this node ----------------------------------------------------------------------------

    def announce(self) -> list[Member]:
        """Publish this node's record anew; returns it if it differs from the last."""
        own = self._table.get(self._table.own)
        version = self._world.wall_ns() // 1000
        epoch = 0
        if own is not None:
            if own.removed:
                return []  # until somebody takes it back it is not for us to say
            epoch = own.epoch
            if replace(self._describe(0), version=own.version, epoch=epoch) == own:
                return []
            version = max(version, own.version + 1)
        return self._table.merge([replace(self._describe(version), epoch=epoch)])

    # -- coming and going -----------------------------------------------------------------------

    def remove(self, name: str, *, back: bool = False) -> Member:
        """Remove a member (by its name, or the first digits of its id), or take it `back`.

        Raises:
            NotFound: nobody, or more than one, is meant by `name`.
        """
        found = [
            member
            for member in self._table.all()
            if member.removed == back
            and member.node != self._table.own
            and (member.name == name or (len(name) >= 6 and member.node.hex().startswith(name)))
        ]
        if len(found) != 1:
            which = "more than one" if found else "no"
            state = "removed member" if back else "other member"
            raise NotFound(f"{which} {state} is called {name}; see dfs status for names and ids")
        record = replace(found[0], removed=not back, epoch=found[0].epoch + 1)
        self._table.merge([record])
        log.info("member %s was %s", record.name, "taken back" if back else "removed")
        return record

    def check_admitted(self, node: NodeId) -> None:
        """Refuse a node that was removed.

        Raises:
            NotMember: it was.
        """
        member = self._table.get(node)
        if member is not None and member.removed:
            raise NotMember(
                f"{member.name} was removed from the network; on one of its nodes,"
                f" dfs peers add {member.name} takes it back"
            )

    def _record_changed(self, member: Member) -> None:
        self._wake.set()
        session = self._endpoint.sessions.get(member.node)
        if member.removed and session is not None:
            self._leaving[member.node] = session

    async def _grade(self) -> None:
        """Say again and again which members are absent; end sessions with removed ones."""
        while True:
            now_s = self._world.now_s()
            absent = frozenset(
                member.node
                for member in self._table.current()
                if member.node != self._table.own and self._is_absent(member.node, now_s)
            )
            if absent != self._table.absent:
                for node in sorted(absent ^ self._table.absent):
                    name = getattr(self._table.get(node), "name", "?")
                    log.info("%s %s", name, "is absent" if node in absent else "is back")
                self._table.set_absent(absent)
            await trio.sleep(min(GRADE_S, self._repair_after_s / 4))
            leaving, self._leaving = self._leaving, {}
            for node in sorted(leaving):  # by now it was told
                leaving[node].close("removed from the network")

    def _is_absent(self, node: NodeId, now_s: float) -> bool:
        if node not in self._endpoint.sessions:
            lost_s = self._lost_at_s.get(node, self._started_at_s)
            return now_s - lost_s >= self._repair_after_s or node in self._table.absent
        if node not in self._table.absent:
            return False
        return now_s - self._up_at_s.get(node, now_s) < self._return_s

    # -- tasks --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Dial and gossip until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial_all, nursery)
            nursery.start_soon(self._gossip_sometimes)
            nursery.start_soon(self._push_news)
            nursery.start_soon(self._grade)

    async def session_up(self, session: Session) -> None:
        """A session was made, by either side: compare member tables at once."""
        node = session.peer.node
        self._lost_at_s.pop(node, None)
        self._up_at_s[node] = self._world.now_s()
        dialing = self._dialing.get(node)
        if dialing is not None:
            dialing.last_error = ""
        await self._gossip(session)
        try:
            await self._table.flush(self._world)  # a power cut must not make nodes strangers
        except DfsError as error:
            log.error("what is known of other nodes cannot be flushed: %s", error)

    def session_down(self, node: NodeId) -> None:
        """A session ended: redial soon, unless it did not last, such as when a disk is full."""
        now_s = self._world.now_s()
        self._lost_at_s[node] = now_s
        if now_s - self._up_at_s.get(node, now_s) >= STABLE_S:
            self._dialing.pop(node, None)
        else:
            dialing = self._dialing.setdefault(node, _Dialing())
            dialing.next_at_s = now_s + self._world.random.uniform(0.5, 1.0) * dialing.backoff_s
            dialing.backoff_s = min(dialing.backoff_s * 2, RECONNECT_MAX_S)
        self._wake.set()

    def state_of(self, node: NodeId) -> str:
        """`alive`, `suspect` or `dead` (or `removed`), as `dfs status` shows it."""
        member = self._table.get(node)
        if member is not None and member.removed:
            return "removed"
        if node in self._endpoint.sessions:
            return "alive"
        lost = self._lost_at_s.get(node)
        if lost is not None and self._world.now_s() - lost < SUSPECT_S:
            return "suspect"
        return "dead"

    def failures(self) -> dict[str, str]:
        """Why each bootstrap address could not be joined, for the error at start."""
        return {url: dialing.last_error for url, dialing in self._bootstrap.items()}

    def refusal(self) -> Refused | NotDfsNode | None:
        """The refusal of a bootstrap node, if every bootstrap address was tried and none helped."""
        if not self._bootstrap or any(
            not dialing.last_error for dialing in self._bootstrap.values()
        ):
            return None
        return next((d.refusal for d in self._bootstrap.values() if d.refusal is not None), None)

    # -- dialing ------------------------------------------------------------------------------

    async def _dial_all(self, nursery: trio.Nursery) -> None:
        while True:
            now = self._world.now_s()
            wait_s = RECONNECT_MAX_S
            for dialing, urls, node in self._targets():
                if dialing.busy:
                    continue
                if dialing.next_at_s > now:
                    wait_s = min(wait_s, dialing.next_at_s - now)
                    continue
                dialing.busy = True
                nursery.start_soon(self._dial, dialing, urls, node)
            self._wake = trio.Event()
            with trio.move_on_after(wait_s):
                await self._wake.wait()

    def _targets(self) -> Iterable[tuple[_Dialing, tuple[str, ...], NodeId | None]]:
        """What should be dialled: members without a session, addresses that led nowhere yet."""
        sessions = self._endpoint.sessions
        for member in self._table.current():
            if member.node != self._table.own and member.node not in sessions and member.addresses:
                dialing = self._dialing.setdefault(member.node, _Dialing())
                yield dialing, member.addresses, member.node
        for url, dialing in self._bootstrap.items():
            if url not in self.self_urls and self._bootstrap_node.get(url) is None:
                yield dialing, (url,), None

    async def _connect(self, url: str, node: NodeId | None) -> Session:
        """A session with the node at an address; with whoever is there now, if nobody knows them.

        A node that has lost its state directory is another one, at the old address. If it was the
        first of its network it was told of nobody to join: then it is found by those who look for
        the old one.
        """
        try:
            return await self._endpoint.connect(url, expect=node)
        except OtherNode:
            if any(url in member.addresses for member in self._table.all() if member.node != node):
                raise
        log.warning("another node has taken the address %s", url)
        return await self._endpoint.connect(url)

    async def _dial(self, dialing: _Dialing, urls: tuple[str, ...], node: NodeId | None) -> None:
        try:
            for url in urls:
                try:
                    session = await self._connect(url, node)
                except SelfConnection:
                    self.self_urls.add(url)
                    return
                except DfsError as error:
                    if isinstance(error, NotMember) and dialing.last_error != str(error):
                        log.warning("%s", error)
                    dialing.last_error = str(error)
                    dialing.refusal = error if isinstance(error, Refused | NotDfsNode) else None
                    log.debug("cannot reach %s: %s", url, error)
                    continue
                dialing.last_error = ""
                if node is None:
                    self._bootstrap_node[url] = session.peer.node
                return
        finally:
            dialing.busy = False
            # Full jitter: peers that lost a node together do not come back together.
            dialing.next_at_s = self._world.now_s() + self._world.random.uniform(
                RECONNECT_MIN_S / 2, dialing.backoff_s
            )
            dialing.backoff_s = min(dialing.backoff_s * 2, RECONNECT_MAX_S)
            self._wake.set()

    # -- gossip -------------------------------------------------------------------------------

    async def _gossip(self, session: Session) -> None:
        try:
            reply = await session.call(
                METHOD_GOSSIP, payload=self._records(), deadline_s=CALL_TIMEOUT_S
            )
            self._merge(reply.payload)
        except DfsError as error:
            log.debug("gossip with %s: %s", session.peer.name, error)

    async def _answer_gossip(self, session: Session, request: Request) -> Reply:
        self._merge(request.payload)
        return Reply(payload=self._records())

    def _records(self) -> bytes:
        """The whole table: of many members it is more than a message has room for in its head."""
        return encode([member.to_wire() for member in self._table.all()])

    def _merge(self, payload: Buffer) -> None:
        items = decode(bytes(payload), size_max=FRAME_PAYLOAD_BYTES_MAX)
        if not isinstance(items, list) or len(items) > MEMBERS_MAX:
            raise RemoteProtocolError("malformed gossip")
        records = [Member.from_wire(item) for item in items]
        # What others say of us is old, but for whether we belong to the network.
        own = self._table.get(self._table.own)
        self._table.merge(
            record
            for record in records
            if record.node != self._table.own or (own is not None and record.epoch > own.epoch)
        )
        if self._table.get(self._table.own) is not own:
            self.announce()

    async def _gossip_sometimes(self) -> None:
        while True:
            await trio.sleep(GOSSIP_S * self._world.random.uniform(0.5, 1.5))
            nodes = sorted(self._endpoint.sessions)
            if nodes:
                session = self._endpoint.sessions.get(self._world.random.choice(nodes))
                if session is not None:
                    await self._gossip(session)

    async def _push_news(self) -> None:
        """Tell every peer when a record changed, so that all know within a round trip."""
        news = trio.Event()

        def changed(member: Member) -> None:
            news.set()

        self._table.watch(changed)
        while True:
            await news.wait()
            news = trio.Event()
            async with trio.open_nursery() as nursery:
                for node in sorted(self._endpoint.sessions):
                    nursery.start_soon(self._gossip, self._endpoint.sessions[node])
