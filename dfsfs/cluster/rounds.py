"""When what is dead may be forgotten: what every member must have said first.

A round follows one judgement of this replica (`Namespace.judge`) through three phases. In each one
all members that count are asked anew, and answer with what they hold on stable storage:

1. *hold*: all hold the cut, so all know of the removals. Then the floor of this node may rise.
2. *floor*: the floors of all have reached the cut, so nothing that was written by somebody who did
   not know the removals gets in any more, by nobody. What got in before is here now.
3. *settle*: all hold that as well, and what they wrote until then is here.

The cut has a stamp of this node that was new when the round began. So a member that has not been
heard since by anybody who counts does not hold it, and is below the floors of all when it returns.
If one that counted ceases to, the round is void.

What is then judged dead once more, and has not changed since the first time, is dead everywhere and
for good. A phase ends only when this node holds what all answers said. Why it takes three is in
doc/decisions/0019-purge.md.

One round may wait for the floors of others while the next one raises the floor that others wait
for; so no circle of nodes waits for each other.
Pure: no clock, no I/O, no database.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dfsfs.base.types import NodeId, Origin
from dfsfs.crdt import dominates
from dfsfs.namespace import Judgement


class Phase(enum.Enum):
    """What the members are asked for."""

    HOLD = "hold"
    FLOOR = "floor"
    SETTLE = "settle"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a member holds on stable storage, and its floor when it said so."""

    have: Mapping[Origin, int]
    floor: Mapping[Origin, int]
    counted: frozenset[NodeId]  # whom it has heard within its horizon
    clock_s: float  # how long it has been running when it answered
    horizon_s: float  # its own


class Round:
    """One judgement on its way. Owned by the `Purger`."""

    def __init__(self, node: NodeId, judgement: Judgement) -> None:
        """`node`: this one."""
        self._node = node
        self.judgement = judgement
        self.phase = Phase.HOLD
        self.is_void = False  # somebody may hold the cut who does not count: begin anew
        self._wanted = judgement.cut  # what all must hold
        self._answers: dict[NodeId, Answer] = {}  # in this phase
        self._latest: dict[NodeId, Answer] = {}
        self._everybody: set[NodeId] = set()  # who has counted since it began

    def answered(self, node: NodeId, answer: Answer) -> None:
        """A member answered; only what it says in the present phase counts.

        Had it been silent for long, it could have heard somebody and not count him any more.
        """
        latest = self._latest.get(node)
        if latest and not 0 <= answer.clock_s - latest.clock_s <= answer.horizon_s / 2:
            self.is_void = True
        self._answers[node] = self._latest[node] = answer

    def missing(self, own: Mapping[Origin, int], counted: Collection[NodeId]) -> list[NodeId]:
        """The members that hold the phase up; `own` is what this node holds."""
        return [
            node
            for node in sorted(self._all_counted(counted))
            if not self._is_met(own, self._answers.get(node))
        ]

    def _all_counted(self, counted: Collection[NodeId]) -> set[NodeId]:
        """Whoever is counted here, or by somebody who is counted.

        What he has not heard of yet may come in through the one that listens to him.
        """
        everybody: set[NodeId] = set()
        found = set(counted)
        while found:
            everybody |= found
            answers = [self._latest[node] for node in sorted(found) if node in self._latest]
            found = {node for answer in answers for node in answer.counted} - everybody
        everybody.discard(self._node)
        return everybody

    def _is_met(self, own: Mapping[Origin, int], answer: Answer | None) -> bool:
        if answer is None or not dominates(own, answer.have):
            return False
        if self.phase is Phase.FLOOR and not dominates(answer.floor, self.judgement.cut):
            return False
        return dominates(answer.have, self._wanted)

    def advance(self, own: Mapping[Origin, int], counted: Collection[NodeId]) -> bool:
        """Enter the next phase if nobody is missing; whether that was so.

        With leaving `HOLD` the caller raises its own floor.
        """
        everybody = self._all_counted(counted)
        if self._everybody - everybody:
            self.is_void = True  # he may have the cut, and rows that nobody has
        self._everybody |= everybody
        if self.is_void or self.phase is Phase.DONE or self.missing(own, counted):
            return False
        if self.phase is Phase.HOLD:
            self.phase = Phase.FLOOR
        elif self.phase is Phase.FLOOR:
            self.phase, self._wanted = Phase.SETTLE, dict(own)
        else:
            self.phase = Phase.DONE
        self._answers.clear()
        return True


class Rounds:
    """The round that raises the floor, and the one that waits for the floors of others."""

    def __init__(self) -> None:
        self.rising: Round | None = None
        self.waiting: Round | None = None

    def answered(self, node: NodeId, answer: Answer) -> None:
        """A member answered."""
        for one in (self.rising, self.waiting):
            if one is not None:
                one.answered(node, answer)

    def risen(self, own: Mapping[Origin, int], counted: Collection[NodeId]) -> Judgement | None:
        """The judgement to whose cut the floor of this node may rise now, once.

        The caller makes that durable before it tells anybody.
        """
        rising = self.rising
        if rising is None or not rising.advance(own, counted):
            self._drop_void()
            return None
        self.rising = None
        if self.waiting is None:
            self.waiting = rising
        return rising.judgement

    def settled(self, own: Mapping[Origin, int], counted: Collection[NodeId]) -> Judgement | None:
        """The judgement of which may be forgotten what a new one finds too, once."""
        waiting = self.waiting
        if waiting is None or not waiting.advance(own, counted):
            self._drop_void()
            return None
        if waiting.phase is not Phase.DONE:
            return None
        self.waiting = None
        return waiting.judgement

    def _drop_void(self) -> None:
        if self.rising is not None and self.rising.is_void:
            self.rising = None
        if self.waiting is not None and self.waiting.is_void:
            self.waiting = None
