"""Random histories in which replicas forget what is dead, and some are away for too long.

Replicas are in groups that hear nothing of each other for a while; whom one has not heard within
the horizon it does not count. As in a network, a replica below another's floor takes a snapshot
before rows pass in either direction, and what a member says it holds is on its disk.
In the end all trees are equal and valid, nothing written is lost, nothing removed came back, and
when all have been asked nothing dead is left.
"""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfsfs.base.errors import Unavailable
from dfsfs.base.types import ROOT_INODE, NodeId
from dfsfs.cluster.rounds import Answer, Round, Rounds
from dfsfs.crdt import dominates
from dfsfs.namespace.rows import Row, TombstoneRow
from tests.property.test_namespace_histories import History, Replica, Tree, name_of

PAGE_BYTES = [1, 400, 20_000]


def is_below(one: Replica, other: Replica) -> bool:
    """Whether the one holds less than the other's floor."""
    return not dominates(one.namespace.have(), other.namespace.floor)


def rows_of_the_living(replica: Replica) -> list[Row]:
    """Not of directories that are dead and somebody's previous parent: no two need be equal."""
    view = replica.view()
    live = {view.links[link].inode for link in view.live}
    return [
        row
        for row in replica.rows()
        if not isinstance(row, TombstoneRow) and (row.inode in live or row.inode == ROOT_INODE)
    ]


class PurgeHistory(History):
    """One random run."""

    def __init__(self, seed: int, tmp_path: Path | None = None) -> None:
        super().__init__(seed, tmp_path)
        self.purge_share = self.random.choice([0.3, 0.5])
        self.regroup_share = self.random.choice([0.008, 0.015, 0.04])
        self.crash_share = self.random.choice([0.002, 0.1])  # of the steps of a snapshot
        self.horizon = self.random.choice([12, 24, 40])  # steps
        self.steps = 0
        self.heard: dict[tuple[int, int], int] = {}  # both -> the step
        self.groups: dict[int, int] = {}
        self.rounds = {replica.number: Rounds() for replica in self.replicas}
        self.forgotten = self.rejoined = 0
        self.ending = False

    def step(self, replica: Replica) -> None:
        self.steps += 1
        if self.random.random() < self.regroup_share:
            self.groups = {one.number: self.random.choice([0, 0, 1]) for one in self.replicas}
        if self.random.random() < self.purge_share:
            self.purge(replica)
        else:
            super().step(replica)

    def reaches(self, one: Replica, other: Replica) -> bool:
        """Whether they can talk now; if so they have heard each other."""
        if self.groups.get(one.number) != self.groups.get(other.number):
            return False
        self.heard[one.number, other.number] = self.heard[other.number, one.number] = self.steps
        return True

    def counted(self, replica: Replica) -> frozenset[NodeId]:
        """Whom it has heard within the horizon."""
        return frozenset(
            name_of(other)
            for other in self.replicas
            if other is not replica
            and self.steps - self.heard.get((replica.number, other.number), 0) <= self.horizon
        )

    # -- forgetting ---------------------------------------------------------------------------

    def purge(self, replica: Replica) -> None:
        """One look of a replica at the others it can reach."""
        space = replica.namespace
        if not space.is_whole or space.gaps.possible:
            return
        tree = replica.tree()
        rounds = self.rounds[replica.number]
        if rounds.rising is None and (self.has_dead(replica) or self.is_wanted(replica)):
            space.begin_round()
            rounds.rising = Round(name_of(replica), space.judge())
        for other in self.replicas:
            if other is not replica and self.reaches(replica, other):
                if self.on_disk:
                    other.save()
                there = other.namespace
                times = self.steps, self.horizon
                answer = Answer(there.gaps.sure(), there.floor, self.counted(other), *times)
                rounds.answered(name_of(other), answer)
        counted = self.counted(replica)
        judgement = rounds.settled(space.have(), counted)
        if judgement is not None:
            still = set(space.judge().inodes)
            going = [inode for inode in judgement.inodes if inode in still]
            self.forgotten += space.forget(going, judgement.cut)
            space.forget_strays(judgement.strays, judgement.cut)
        judgement = rounds.risen(space.have(), counted)
        if judgement is not None:
            if self.on_disk:
                replica.save()
            for _ in replica.namespace.raise_floor(judgement):
                pass
        assert replica.check() == tree
        replica.changes.clear()

    def has_dead(self, replica: Replica) -> bool:
        judgement = replica.namespace.judge()
        return bool(judgement.inodes or judgement.strays)

    def is_wanted(self, replica: Replica) -> bool:
        """Whether somebody waits for this floor to rise."""
        return any(
            rounds.waiting is not None
            and not dominates(replica.namespace.floor, rounds.waiting.judgement.cut)
            for rounds in self.rounds.values()
        )

    def lose_tail(self, replica: Replica) -> None:
        super().lose_tail(replica)
        self.rounds[replica.number] = Rounds()
        for other in self.replicas:  # it knows no better
            self.heard[replica.number, other.number] = self.steps

    # -- exchange -----------------------------------------------------------------------------

    def exchange(self, to: Replica, source: Replica, *, everything: bool = False) -> None:
        if to is source or not self.reaches(to, source):
            return
        for one in (to, source):
            while one.namespace.rejoin.is_complete:  # it crashed
                self.finish(one)
        for one, other in ((to, source), (source, to)):
            if is_below(one, other) or (is_below(other, one) and not one.namespace.is_whole):
                self.rejoin(one, other)
                if not everything:
                    return
        if source.namespace.is_whole and not is_below(to, source) and not is_below(source, to):
            super().exchange(to, source, everything=everything)

    def rejoin(self, one: Replica, source: Replica) -> None:
        """A snapshot, page by page, with verbs on both sides between; sometimes cut short."""
        if not source.namespace.is_whole:
            return
        space = one.namespace
        have, floor = source.namespace.gaps.sure(), source.namespace.floor
        space.rejoin.begin(have)
        cursor = None
        while True:
            try:
                page = source.namespace.snapshot_for_peer(
                    cursor, bytes_max=self.random.choice(PAGE_BYTES)
                )
            except Unavailable:
                return
            space.rejoin.stage(page)
            cursor = page.next
            if cursor is None:
                break
            self.meanwhile(one, source)
        self.rejoined += 1
        space.rejoin.complete(floor, source.namespace.have())
        self.finish(one)

    def finish(self, one: Replica) -> None:
        """Apply a snapshot; sometimes that ends in the middle."""
        before = one.tree()
        for _ in one.namespace.finish_rejoin():
            after = one.check()
            one.check_changes(before, after)
            self.meanwhile(one)
            before = one.tree()
            if self.random.random() < self.crash_share:
                one.restart()
                return
        one.check_changes(before, one.check())

    def meanwhile(self, *replicas: Replica) -> None:
        """Others go on."""
        if not self.ending and self.random.random() < 0.1:
            History.step(self, self.random.choice(replicas))

    def converge(self) -> None:
        self.ending = True
        self.groups.clear()
        trees = self.meet()
        for _ in range(40):  # everybody asks everybody
            for replica in self.replicas:
                self.purge(replica)
            self.spread()
            if not any(map(self.has_dead, self.replicas)):
                break
        assert self.meet() == trees
        for replica in self.replicas:
            assert not self.has_dead(replica), "something dead is left"
        rows = [sorted(map(repr, rows_of_the_living(replica))) for replica in self.replicas]
        assert all(others == rows[0] for others in rows)

    def spread(self) -> None:
        """All feed all, as nodes in reach of each other do all the time."""
        for to, source in itertools.permutations(self.replicas, 2):
            for origin, position in source.namespace.have().items():
                held = to.namespace.have().get(origin, 0)
                while held < position:
                    batch = source.namespace.feed(origin, held, bytes_max=100_000)
                    assert batch is not None
                    to.namespace.apply([batch])
                    held = batch.upto

    def meet(self) -> Tree:
        """All exchange everything with all; the one tree."""
        for _ in range(3):
            for to in self.replicas:
                for source in self.replicas:
                    if to is not source:
                        self.exchange(to, source, everything=True)
        for replica in self.replicas:
            assert replica.namespace.is_whole
            replica.namespace.gaps.end()  # all have met: what is missing still, nobody has
        trees = [replica.check() for replica in self.replicas]
        assert all(tree == trees[0] for tree in trees)
        shown = {what[3] for what in trees[0].values()}
        assert not self.owed - shown, "lost"
        return trees[0]


def run(seed: int, steps: int, tmp_path: Path | None = None) -> PurgeHistory:
    history = PurgeHistory(seed, tmp_path)
    history.run(steps)
    for replica in history.replicas:
        replica.close()
    return history


@settings(
    max_examples=int(os.environ.get("NAMESPACE_EXAMPLES", "4")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 1 << 40))
def test_forgetting_changes_no_tree_and_loses_nothing(seed: int) -> None:
    run(seed, 100)


def test_histories_forget_and_rejoin() -> None:
    histories = [run(seed, 200) for seed in (20, 22)]
    assert sum(history.forgotten for history in histories) > 10
    assert sum(history.rejoined for history in histories) > 4


@pytest.mark.parametrize(
    ("seed", "steps"), [(5124, 160), (6009, 160), (6535, 160), (2276, 120), (100214, 120)]
)
def test_histories_that_failed_once(seed: int, steps: int) -> None:
    run(seed, steps)


@pytest.mark.parametrize("seed", range(2))
def test_forgetting_survives_restarts_and_power_loss(tmp_path: Path, seed: int) -> None:
    run(seed, 60, tmp_path)
