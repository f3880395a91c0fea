"""Asks the members what they hold, and forgets what is dead everywhere. One duty of every node.

    rows.held [cut]  ->  [have, floor, [node, ...], clock, horizon]    on stable storage; the nodes
                                             the peer counts; seconds it has run, and its horizon

`cut` is a floor the asker waits for: who is asked begins a round of its own to reach it.

The rules are in `rounds`; why they are enough is in doc/decisions/0019-purge.md. Here is who
counts: every member that was not removed, if this node has had a session with it within the
horizon. The horizon is counted by a clock of this node's own, which runs while the node runs and is
kept on disk; no wall clock matters. Who does not count and comes back takes a snapshot (`rejoin`),
so two nodes may count differently, and a horizon that is too short costs work, never data.

Concurrency: loop only; the judgement reads the database in a thread.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import trio

from dfsfs.base.errors import DfsError, RemoteProtocolError
from dfsfs.base.limits import (
    HORIZON_CLOCK_S,
    MEMBERS_MAX,
    PURGE_PERIOD_MIN_S,
    PURGE_PERIOD_S,
    PURGE_POLL_MAX_S,
    PURGE_STEP_COUNT,
    SYNC_TIMEOUT_S,
)
from dfsfs.base.types import NodeId, Origin
from dfsfs.cluster.members import NODE_ID_BYTES, MemberTable
from dfsfs.cluster.rejoin import Rejoining
from dfsfs.cluster.rounds import Answer, Round, Rounds
from dfsfs.cluster.rows_messages import checked_positions, wire_positions
from dfsfs.crdt import dominates
from dfsfs.namespace import Judgement, Namespace
from dfsfs.net import Endpoint, Reply, Request, Session
from dfsfs.runtime import Database, WorkerStatus, World

log = logging.getLogger(__name__)

METHOD_HELD = "rows.held"

SCHEMA = """
-- One line: for how many seconds this node has been running, in all.
CREATE TABLE IF NOT EXISTS horizon(now_s INTEGER NOT NULL);
INSERT INTO horizon SELECT 0 WHERE NOT EXISTS(SELECT 1 FROM horizon);
-- When there was a session with a node last, by that clock.
CREATE TABLE IF NOT EXISTS heard(node BLOB PRIMARY KEY, heard_s INTEGER NOT NULL) WITHOUT ROWID;
"""


class Horizon:
    """Whom this node has heard lately. Its database may be lost: then everybody counts anew."""

    def __init__(
        self,
        world: World,
        database: Database,
        members: MemberTable,
        endpoint: Endpoint,
        *,
        horizon_s: float,
    ) -> None:
        self._world = world
        self._database = database
        self._members = members
        self._endpoint = endpoint
        self.horizon_s = horizon_s
        database.execute(SCHEMA)
        self.clock_s = float(database.value("SELECT now_s FROM horizon"))
        self._heard_s: dict[NodeId, float] = {
            node: min(float(heard_s), self.clock_s)
            for node, heard_s in database.rows("SELECT node, heard_s FROM heard")
        }
        self._level_s = dict(self._heard_s)  # when everything it had was here
        self._ticked_at_s = world.now_s()
        self._written_s = self.clock_s

    def away_s(self, is_level: Callable[[NodeId], bool]) -> float:
        """For how long the mount has been away that counts and has been longest; 0.0: none is.

        One that is back is away until `is_level`: everything that it had is here.
        """
        counted = self.counted()
        longest_s = 0.0
        for member in self._members.current():
            if member.node not in counted or not member.mounts:
                continue
            if member.node in self._endpoint.sessions and is_level(member.node):
                self._level_s[member.node] = self.clock_s
            level_s = self._level_s.setdefault(member.node, self.clock_s)
            longest_s = max(longest_s, self.clock_s - level_s)
        return longest_s

    def counted(self) -> frozenset[NodeId]:
        """Everybody who has a session, and every member heard within the horizon."""
        self._tick()
        return frozenset(self._endpoint.sessions) | {
            node for node in self._others() if not self._is_beyond(node)
        }

    def beyond(self) -> list[NodeId]:
        """Members that do not count any more."""
        self._tick()
        return [node for node in self._others() if self._is_beyond(node)]

    @property
    def own(self) -> NodeId:
        """This node."""
        return self._members.own

    def name_of(self, node: NodeId) -> str:
        """What people call a node."""
        member = self._members.get(node)
        return node.hex()[:8] if member is None else member.name

    def _others(self) -> list[NodeId]:
        return [
            member.node for member in self._members.current() if member.node != self._members.own
        ]

    def _is_beyond(self, node: NodeId) -> bool:
        return self.clock_s - self._heard_s[node] > self.horizon_s

    def _tick(self) -> None:
        now_s = self._world.now_s()
        self.clock_s += max(0.0, now_s - self._ticked_at_s)
        self._ticked_at_s = now_s
        for node in self._others():
            self._heard_s.setdefault(node, self.clock_s)
        is_back = False
        for node in self._endpoint.sessions:
            is_back |= node not in self._heard_s or self._is_beyond(node)
            self._heard_s[node] = self.clock_s
        if is_back or self.clock_s - self._written_s >= HORIZON_CLOCK_S:
            self._written_s = self.clock_s
            with self._database.transaction():
                self._database.execute("UPDATE horizon SET now_s=?", (int(self.clock_s),))
                self._database.executemany(
                    "INSERT OR REPLACE INTO heard VALUES(?,?)",
                    [(node, int(heard_s)) for node, heard_s in sorted(self._heard_s.items())],
                )


class Purger:
    """The Worker that does it: one exchange of questions, or one piece of forgetting, a step."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        endpoint: Endpoint,
        horizon: Horizon,
        rejoining: Rejoining,
        sync_local: Callable[[], Awaitable[None]],
        is_level: Callable[[NodeId], bool],
    ) -> None:
        """Answers on `endpoint`.

        `sync_local` flushes this node's blocks and rows. `is_level` tells of a peer whether all it
        held when it connected was applied here.
        """
        self._world = world
        self._namespace = namespace
        self._endpoint = endpoint
        self._horizon = horizon
        self._rejoining = rejoining
        self._sync_local = sync_local
        self._is_level = is_level
        self._out_of_reach: dict[Origin, int] = {}  # of the gaps, when last looked at
        self._period_s = min(PURGE_PERIOD_S, max(PURGE_PERIOD_MIN_S, horizon.horizon_s / 100))
        self._poll_s = min(PURGE_POLL_MAX_S, self._period_s / 4)
        self._rounds = Rounds()
        self._due_at_s = world.now_s() + self._period_s
        self._asked_for: dict[Origin, int] = {}  # a floor that some peer waits for
        self._missing: list[NodeId] = []
        self._dead = 0
        self.forgotten = 0
        endpoint.serve_calls(METHOD_HELD, self._answer)
        self.status = WorkerStatus("purge", figures={"dead": 0, "forgotten": 0})

    # -- what peers ask -------------------------------------------------------------------------

    async def _answer(self, session: Session, request: Request) -> Reply:
        body = request.body
        if not isinstance(body, list) or not body:
            raise RemoteProtocolError("malformed question")
        cut = checked_positions(body[0])
        if not dominates(self._namespace.floor, cut):
            self._asked_for = cut
        have, floor = self._namespace.gaps.sure(), self._namespace.floor
        counted = sorted(self._horizon.counted())
        times = [int(self._horizon.clock_s), int(self._horizon.horizon_s)]
        await self._sync_local()
        return Reply([wire_positions(have), wire_positions(floor), counted, *times])

    # -- the worker -----------------------------------------------------------------------------

    async def step(self) -> float:
        """Ask everybody once and draw the consequences, or rest."""
        space = self._namespace
        counted = self._horizon.counted()
        if self._rejoining.under_way or not space.is_whole:
            self.status.doing = "waiting: this node is catching up"
            return self._poll_s
        if space.gaps.possible:
            self._wait_for_gaps(counted)
            return self._poll_s
        if self._rounds.rising is None and self._is_due():
            await self._begin()
        if self._rounds.rising is None and self._rounds.waiting is None:
            self.status.doing = "idle"
            return self._poll_s
        await self._ask(counted)
        counted = self._horizon.counted()  # nobody may have come between this and what follows
        if (judgement := self._rounds.settled(space.have(), counted)) is not None:
            await self._forget(judgement)
        elif (judgement := self._rounds.risen(space.have(), counted)) is not None:
            await self._rise(judgement)
        self._show()
        return self._poll_s

    def _wait_for_gaps(self, counted: Collection[NodeId]) -> None:
        """What everybody has who counts is here, and it changes nothing: nobody has the rest."""
        self.status.doing = "waiting for rows whose giver went away"
        reach = self._namespace.gaps.reach
        if reach == self._out_of_reach and all(map(self._is_level, counted)):
            log.info("rows may be missing that nobody has who counts: going on without")
            self._namespace.gaps.end()
        self._out_of_reach = reach

    def _is_due(self) -> bool:
        if not dominates(self._namespace.floor, self._asked_for):
            return True
        return self._world.now_s() >= self._due_at_s

    async def _begin(self) -> None:
        """Judge, and begin a round if there is anything to forget or a peer waits for it."""
        self._due_at_s = self._world.now_s() + self._period_s
        self.status.doing = "looking for what is dead"
        judgement = await self._judge()
        self._dead = len(judgement.inodes) + len(judgement.strays)
        if not self._dead and dominates(self._namespace.floor, self._asked_for):
            return
        self._namespace.begin_round()
        judgement = await self._judge()  # with the new stamp, which nobody far away can hold
        self._rounds.rising = Round(self._horizon.own, judgement)

    async def _judge(self) -> Judgement:
        return await self._world.run_blocking(self._namespace.judge)

    async def _ask(self, counted: Collection[NodeId]) -> None:
        waiting = self._rounds.waiting
        cut = {} if waiting is None else wire_positions(dict(waiting.judgement.cut))

        async def ask(node: NodeId, session: Session) -> None:
            try:
                reply = await session.call(METHOD_HELD, [cut], deadline_s=SYNC_TIMEOUT_S)
                self._rounds.answered(node, checked_answer(reply.body))
            except DfsError as error:
                log.debug("%s does not say what it holds: %s", session.peer.name, error)

        async with trio.open_nursery() as nursery:
            for node in sorted(counted):
                session = self._endpoint.sessions.get(node)
                if session is not None:
                    nursery.start_soon(ask, node, session)

    async def _rise(self, judgement: Judgement) -> None:
        await self._sync_local()  # the floor must not be the only thing that survives
        for _ in self._namespace.raise_floor(judgement):
            await trio.lowlevel.checkpoint()

    async def _forget(self, judgement: Judgement) -> None:
        self.status.doing = "forgetting"
        still = set((await self._judge()).inodes)
        cut = judgement.cut
        count = 0
        going = [inode for inode in reversed(judgement.inodes) if inode in still]
        for start in range(0, len(going), PURGE_STEP_COUNT):
            began_s = self._world.now_s()
            count += self._namespace.forget(going[start : start + PURGE_STEP_COUNT], cut)
            await trio.sleep(self._world.now_s() - began_s)
        for start in range(0, len(judgement.strays), PURGE_STEP_COUNT):
            strays = judgement.strays[start : start + PURGE_STEP_COUNT]
            self._namespace.forget_strays(strays, cut)
            await trio.lowlevel.checkpoint()
        self.forgotten += count
        self._dead = max(0, self._dead - count)
        if count:
            log.info("forgot %d removed files and directories", count)

    # -- what is shown --------------------------------------------------------------------------

    def _show(self) -> None:
        one = self._rounds.rising or self._rounds.waiting
        own = self._namespace.have()
        self._missing = [] if one is None else one.missing(own, self._horizon.counted())
        names = ", ".join(map(self._horizon.name_of, self._missing))
        self.status.doing = f"waiting for {names}" if names else "asking what all hold"
        self.status.figures["dead"] = self._dead
        self.status.figures["forgotten"] = self.forgotten

    def report(self) -> dict[str, Any]:
        """What `dfs status` shows."""
        return {
            "dead": self._dead,
            "forgotten": self.forgotten,
            "waiting_for": [self._horizon.name_of(node) for node in self._missing],
            "beyond_horizon": [self._horizon.name_of(node) for node in self._horizon.beyond()],
            "snapshots_taken": self._rejoining.count,
        }


def checked_answer(body: Any) -> Answer:
    """What a peer says it holds.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    if not (
        isinstance(body, list)
        and len(body) >= 5
        and isinstance(body[2], list)
        and len(body[2]) <= MEMBERS_MAX
        and all(isinstance(node, bytes) and len(node) == NODE_ID_BYTES for node in body[2])
        and all(type(seconds) is int and seconds >= 0 for seconds in body[3:5])
    ):
        raise RemoteProtocolError("malformed answer")
    have, floor, counted, clock_s, horizon_s = body[:5]
    return Answer(
        checked_positions(have), checked_positions(floor), frozenset(counted), clock_s, horizon_s
    )
