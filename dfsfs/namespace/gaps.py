"""Rows that may be missing below the have-vector, because who was sending them went away.

A batch leaves out rows of which the sender has newer ones, for those come with the batches of their
own origins (`feed`). If it goes away before, this replica holds neither the old row nor the new,
and its have-vector says that it needs neither. So a sender, the *giver*, says what everything it
sends rests on, its *reach*, and this replica keeps for each giver until it holds that:

- *sure*, up to where nothing is missing: the have-vector from before the first such batch;
- *until*, once the giver is lost or has no more to give: the have-vector of that moment. Between
  the two others have to send again what they have (`refilling`), and it is joined although it seems
  to be here already.

When the reach is held nothing is missing: whatever was left out has come as something newer. Until
then what is here is given away with all reaches, so who gets it knows the same.

What this replica knows of itself. Empty, and costs nothing, when catching up has ended.
Sync: each method that writes is a transaction. Durable: not later than the rows it speaks of.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import REACH_ORIGINS_MAX
from dfsfs.base.types import NodeId, Origin
from dfsfs.crdt import HybridClock, dominates, join
from dfsfs.runtime import Bounds, Database

SCHEMA = """
-- Of each giver whose reach is not held, per origin; `until` is NULL while it is giving.
CREATE TABLE IF NOT EXISTS gap(
  giver BLOB NOT NULL,
  origin INTEGER NOT NULL,
  sure INTEGER NOT NULL,
  until INTEGER,
  reach INTEGER NOT NULL,
  PRIMARY KEY(giver, origin)
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _Gap:
    """What one giver may have left out."""

    sure: dict[Origin, int] = field(default_factory=dict)
    reach: dict[Origin, int] = field(default_factory=dict)
    until: dict[Origin, int] | None = None  # None: it is giving


@dataclass(frozen=True, slots=True)
class Refill:
    """What others are to send again, unless they hold `reach`: then they give all that is left."""

    ranges: Mapping[Origin, tuple[int, int]]  # after the one position, up to the other
    reach: Mapping[Origin, int]


class Gaps:
    """The gaps that one replica may have. Owned by the namespace."""

    def __init__(
        self,
        database: Database,
        clock: HybridClock,
        have: Callable[[], dict[Origin, int]],
        *,
        own: Origin,
    ) -> None:
        """`have`: of each origin the stamp time up to which everything seems to be here."""
        self._database = database
        self._clock = clock
        self._own = own
        self._have = have
        database.execute(SCHEMA)
        self._gaps: dict[NodeId, _Gap] = {}
        for giver, origin, sure, until, reach in database.rows("SELECT * FROM gap"):
            gap = self._gaps.setdefault(giver, _Gap())
            gap.sure[origin], gap.reach[origin] = sure, reach
            if until is not None:
                gap.until = {**(gap.until or {}), origin: until}
        for giver, gap in self._gaps.items():
            if gap.until is None:  # it was giving when this node ended
                self.lost(giver)
        self.settle()

    @property
    def possible(self) -> bool:
        """Whether anything may be missing."""
        return bool(self._gaps)

    @property
    def reach(self) -> dict[Origin, int]:
        """What to hold before nothing is missing for certain; empty: nothing is."""
        reach: dict[Origin, int] = {}
        for gap in self._gaps.values():
            join(reach, gap.reach)
        return reach

    def told(self) -> dict[Origin, int]:
        """What rows rest on that are read here for a peer."""
        told = self._have()
        join(told, self.reach)
        return told

    def sure(self) -> dict[Origin, int]:
        """Of each origin the stamp time up to which everything is here for certain."""
        return {
            origin: sure
            for origin, time in self._have().items()
            if (sure := self._least(self._gaps.values(), origin, time))
        }

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        most = max((len(gap.reach) for gap in self._gaps.values()), default=0)
        return {"reach_origins": [most, REACH_ORIGINS_MAX]}

    # -- what comes ---------------------------------------------------------------------------

    def note(self, giver: NodeId, reach: Mapping[Origin, int]) -> None:
        """Rows are about to be applied that rest on `reach`.

        Raises:
            Refused: a stamp too far in the future. RemoteProtocolError: of too many origins.
        """
        for time in reach.values():
            self._clock.check(time)
        gap = self._gaps.get(giver)
        if len(reach.keys() | (gap.reach.keys() if gap else set())) > REACH_ORIGINS_MAX:
            raise RemoteProtocolError("rows that rest on too many incarnations")
        if gap is None:
            have = self._have()
            if dominates(have, reach):
                return
            gap = self._gaps[giver] = _Gap(sure=have, reach=dict(have))
            changed: Iterable[Origin] = gap.reach
        elif gap.until is not None:
            gap.until = None
            changed = gap.reach
        else:
            changed = reach
        join(gap.reach, reach)
        self._store(giver, changed)

    def hold(self, positions: Mapping[Origin, int]) -> None:
        """Everything up to `positions` has come, as a snapshot."""
        for giver, gap in self._gaps.items():
            join(gap.sure, positions)
            join(gap.reach, positions)
            self._store(giver, positions)

    def settle(self) -> None:
        """Rows have come: maybe nothing is missing now of what some giver has left out."""
        if self._gaps:
            have = self._have()
            self._drop([one for one, gap in self._gaps.items() if dominates(have, gap.reach)])

    def lost(self, giver: NodeId) -> None:
        """It is gone, or has given all it has: others have to fill what is missing."""
        gap = self._gaps.get(giver)
        if gap is not None:
            have = self._have()
            gap.until = {origin: have.get(origin, 0) for origin in gap.reach}
            self._store(giver, gap.reach)

    def end(self) -> None:
        """What is missing nobody has any more."""
        self._drop(list(self._gaps))

    # -- what is to come again ----------------------------------------------------------------

    @property
    def refilling(self) -> bool:
        """Whether others have to send again what seems to be here."""
        return any(gap.until is not None for gap in self._gaps.values())

    def refill(self) -> Refill:
        """What they are to send."""
        ranges: dict[Origin, tuple[int, int]] = {}
        reach: dict[Origin, int] = {}
        for gap in self._gaps.values():
            if gap.until is None:
                continue
            join(reach, gap.reach)
            for origin, until in gap.until.items():
                sure = gap.sure.get(origin, 0)
                if sure < until and origin != self._own:
                    known = ranges.get(origin, (sure, until))
                    ranges[origin] = (min(sure, known[0]), max(until, known[1]))
        return Refill(ranges, reach)

    def known(self, origin: Origin, have: int) -> int:
        """Of one origin the stamp time up to which what comes again is here already."""
        lost = (gap for gap in self._gaps.values() if gap.until is not None)
        return self._least(lost, origin, have)

    # -- shared -------------------------------------------------------------------------------

    def _least(self, gaps: Iterable[_Gap], origin: Origin, time: int) -> int:
        """The least that all of these are sure of, or `time` if that is less."""
        if origin == self._own:
            return time
        return min([time, *(gap.sure.get(origin, 0) for gap in gaps)])

    def _store(self, giver: NodeId, origins: Iterable[Origin]) -> None:
        gap = self._gaps[giver]
        until = gap.until or {}
        with self._database.transaction():
            self._database.executemany(
                "INSERT OR REPLACE INTO gap VALUES(?,?,?,?,?)",
                [
                    (giver, one, gap.sure.get(one, 0), until.get(one), gap.reach[one])
                    for one in sorted(origins)
                ],
            )

    def _drop(self, givers: Collection[NodeId]) -> None:
        if givers:
            with self._database.transaction():
                self._database.executemany(
                    "DELETE FROM gap WHERE giver=?", [(giver,) for giver in givers]
                )
        for giver in givers:
            del self._gaps[giver]
