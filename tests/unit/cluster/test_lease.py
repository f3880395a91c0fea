"""Leases alone: several tables, channels that keep order, and every order of events."""

from collections import deque
from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import LEASE_PEACE_S, LEASES_GIVEN_MAX
from dfsfs.base.types import ORIGIN_SHIFT, InodeId, NodeId, Origin
from dfsfs.cluster.lease import Grant, HandOver, LeaseTable, Ready, Request

NODES = [NodeId(bytes([number]) * 32) for number in (1, 2, 3, 4)]
INODES = [InodeId(1), *(InodeId(number << ORIGIN_SHIFT | 7) for number in (1, 2, 3))]


class Side:
    """One node: its table, who waits and works there, what is written and not yet in rows."""

    def __init__(self, number: int, *, mounts: bool = True) -> None:
        self.node = NODES[number - 1]
        self.origin = Origin(number)
        self.mounts = mounts
        self.table = LeaseTable(self.node, self.origin, mounts=mounts)
        self.waiting: dict[InodeId, int] = {}
        self.users: dict[InodeId, int] = {}
        self.handing_over: set[InodeId] = set()
        self.dirty: set[InodeId] = set()  # of those: what was held, so it may have been written

    def works_on(self, inode: InodeId) -> bool:
        """Whether something here may change it, or has and is not yet in rows."""
        return inode in self.users or inode in self.dirty


class Network:
    """Sides, the channels between them, and a clock."""

    def __init__(self, count: int, *, storing: int = 0) -> None:
        self.sides = [Side(n + 1, mounts=n < count - storing) for n in range(count)]
        self.channels: dict[tuple[int, int], deque[Request | Grant | str]] = {}
        self.met_using: dict[tuple[int, int], set[InodeId]] = {}  # at work when they met
        self.now_s = 0.0
        self.sent = 0

    def connect(self, a: int, b: int) -> None:
        """Both send "level": from then on they count the other."""
        self.met_using[min(a, b), max(a, b)] = {
            inode for n in (a, b) for inode in INODES if self.sides[n].works_on(inode)
        }
        for one, other in ((a, b), (b, a)):
            self.channels[one, other] = deque(["level"])
            peer = self.sides[other]
            self.sides[one].table.connect(
                peer.node, peer.origin, mounts=peer.mounts, active=False, now_s=self.now_s
            )
        self.act(a)
        self.act(b)

    def cut(self, a: int, b: int) -> None:
        for one, other in ((a, b), (b, a)):
            del self.channels[one, other]
            self.sides[one].table.disconnect(self.sides[other].node, self.now_s)
        self.act(a)
        self.act(b)

    def connected(self, a: int, b: int) -> bool:
        return (a, b) in self.channels

    def deliver(self, a: int, b: int) -> None:
        message = self.channels[a, b].popleft()
        table, sender = self.sides[b].table, self.sides[a].node
        if isinstance(message, Request):
            table.requested(sender, message.inode, message.stamp, self.now_s)
        elif isinstance(message, Grant):
            table.granted(sender, message.inode, self.now_s)
        else:
            table.activate(sender, self.now_s)
        self.act(b)

    def act(self, number: int) -> None:
        """Carry out what the table of one side asks for; writing back takes its time."""
        side = self.sides[number]
        actions, side.table.actions = side.table.actions, []
        for action in actions:
            if isinstance(action, Ready):
                assert side.waiting[action.inode] > 0
                side.users[action.inode] = side.users.get(action.inode, 0) + side.waiting.pop(
                    action.inode
                )
            elif isinstance(action, HandOver):
                assert action.inode not in side.handing_over
                side.handing_over.add(action.inode)
                if side.table.complete(action.inode):
                    side.dirty.add(action.inode)
            else:
                peer = NODES.index(action.peer)
                self.sent += 1
                self.channels[number, peer].append(action)

    def use(self, number: int, inode: InodeId) -> None:
        side = self.sides[number]
        if side.table.enter(inode, self.now_s):
            side.users[inode] = side.users.get(inode, 0) + 1
        else:
            side.waiting[inode] = side.waiting.get(inode, 0) + 1
            side.table.wait(inode, self.now_s)
        self.act(number)

    def leave(self, number: int, inode: InodeId) -> None:
        side = self.sides[number]
        side.users[inode] -= 1
        if not side.users[inode]:
            del side.users[inode]
        side.table.leave(inode, self.now_s)
        self.act(number)

    def give_up(self, number: int, inode: InodeId) -> None:
        side = self.sides[number]
        side.waiting[inode] -= 1
        if not side.waiting[inode]:
            del side.waiting[inode]
        side.table.give_up(inode, self.now_s)
        self.act(number)

    def hand_over(self, number: int, inode: InodeId) -> None:
        self.sides[number].handing_over.remove(inode)
        self.sides[number].dirty.discard(inode)
        self.sides[number].table.handed_over(inode, self.now_s)
        self.act(number)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        for number, side in enumerate(self.sides):
            side.table.tick(self.now_s)
            self.act(number)

    def settle(self) -> None:
        """Deliver, hand over and use until nothing is left to do."""
        for _ in range(10_000):
            busy = False
            for (a, b), channel in list(self.channels.items()):
                if channel:
                    self.deliver(a, b)
                    busy = True
            for number, side in enumerate(self.sides):
                for inode in sorted(side.handing_over):
                    self.hand_over(number, inode)
                    busy = True
                for inode in sorted(side.users):
                    self.leave(number, inode)
                    busy = True
            resting = [t for side in self.sides if (t := side.table.rest_until_s()) is not None]
            if not busy and resting:
                self.advance(max(0.0, min(resting) - self.now_s))
            elif not busy:
                return
        raise AssertionError("it never comes to rest")

    def check(self) -> None:
        for a, b in combinations(range(len(self.sides)), 2):
            if not self.connected(a, b):
                continue
            one, other = self.sides[a], self.sides[b]
            for inode in INODES:
                both = one.table.held(inode) and other.table.held(inode)
                assert not both, f"{a} and {b} both hold {inode}"
                # Who entered before they met is looked at again by `Leases.acquire`.
                if inode not in self.met_using.get((a, b), ()):
                    both = one.works_on(inode) and other.works_on(inode)
                    assert not both, f"{a} and {b} both work on {inode}"


def pair(*, storing: int = 0) -> Network:
    network = Network(2, storing=storing)
    network.connect(0, 1)
    network.settle()
    return network


def test_alone_everything_is_held() -> None:
    table = LeaseTable(NODES[0], Origin(1), mounts=True)
    assert all(table.held(inode) for inode in INODES)
    assert table.enter(INODES[0], 0.0)
    table.leave(INODES[0], 0.0)
    assert len(table) == 0
    assert table.actions == []


def test_by_default_it_is_the_makers_else_the_smaller_nodes() -> None:
    network = pair()
    held = [[side.table.held(inode) for inode in INODES] for side in network.sides]
    assert held == [[True, True, False, True], [False, False, True, False]]


def test_by_default_it_is_a_mounts_rather_than_a_storing_nodes() -> None:
    network = Network(2, storing=1)
    network.connect(0, 1)
    network.settle()
    assert all(network.sides[0].table.held(inode) for inode in INODES)
    assert not any(network.sides[1].table.held(inode) for inode in INODES)


def test_nothing_is_held_before_the_peer_is_level() -> None:
    network = Network(2)
    network.connect(0, 1)
    assert not any(side.table.held(inode) for side in network.sides for inode in INODES)
    network.use(0, INODES[0])
    assert network.sent == 0
    network.deliver(1, 0)
    assert network.sides[0].users == {INODES[0]: 1}


def test_one_request_and_one_grant_move_it_and_it_stays() -> None:
    network = pair()
    network.use(1, INODES[0])
    network.settle()
    assert network.sent == 2
    for _ in range(5):
        network.use(1, INODES[0])
        network.settle()
    assert network.sent == 2
    assert network.sides[1].table.held(INODES[0])
    assert not network.sides[0].table.held(INODES[0])


def test_a_holder_keeps_what_it_uses() -> None:
    network = pair()
    network.use(0, INODES[0])
    network.use(1, INODES[0])
    for _ in range(3):
        for channel in list(network.channels):
            while network.channels[channel]:
                network.deliver(*channel)
        network.advance(1.0)
        assert network.sides[1].waiting
    network.leave(0, INODES[0])
    network.settle()
    assert network.sides[1].table.held(INODES[0])


def test_who_waited_is_left_in_peace_and_then_gives() -> None:
    network = pair()
    network.use(1, INODES[0])
    network.deliver(1, 0)
    network.hand_over(0, INODES[0])
    network.deliver(0, 1)
    network.leave(1, INODES[0])
    network.use(0, INODES[0])
    network.deliver(0, 1)
    assert network.sides[1].table.held(INODES[0])
    assert not network.sides[1].handing_over
    network.advance(LEASE_PEACE_S)
    assert not network.sides[1].table.held(INODES[0])
    assert network.sides[1].handing_over == {INODES[0]}


def test_while_it_is_handed_over_nobody_enters() -> None:
    network = pair()
    network.use(1, INODES[0])
    network.deliver(1, 0)
    network.use(0, INODES[0])
    assert network.sides[0].waiting == {INODES[0]: 1}
    network.settle()
    assert not network.sides[0].waiting
    assert not network.sides[1].waiting


def test_a_dead_peer_frees_what_it_had() -> None:
    network = pair()
    network.use(1, INODES[0])
    network.settle()
    network.use(0, INODES[0])
    network.cut(0, 1)
    assert network.sides[0].users == {INODES[0]: 1}
    network.leave(0, INODES[0])
    network.connect(0, 1)
    network.settle()
    assert network.sides[0].table.held(INODES[0])
    assert not network.sides[1].table.held(INODES[0])


def test_who_does_not_answer_is_not_waited_for_again() -> None:
    network = pair()
    table = network.sides[1].table
    table.wait(INODES[0], 0.0)
    table.give_up(INODES[0], 10.0, overdue=True)
    assert table.enter(INODES[0], 10.0)
    table.leave(INODES[0], 10.0)
    network.act(1)
    network.settle()  # the late grant is taken
    assert table.held(INODES[0])
    assert not network.sides[0].table.held(INODES[0])


def test_what_a_peer_may_not_say() -> None:
    table = LeaseTable(NODES[0], Origin(1), mounts=True)
    with pytest.raises(RemoteProtocolError):
        table.requested(NODES[1], INODES[0], 1, 0.0)
    table.connect(NODES[1], Origin(2), mounts=True, active=True, now_s=0.0)
    with pytest.raises(RemoteProtocolError):
        table.requested(NODES[1], INODES[0], 1 << 62, 0.0)
    with pytest.raises(RemoteProtocolError):
        table.granted(NODES[1], INODES[1], 0.0)


def test_of_three_in_a_circle_the_earliest_goes_first() -> None:
    """Each has what the next wants, and wants what the one before has."""
    network = Network(3)
    for a, b in combinations(range(3), 2):
        network.connect(a, b)
    network.settle()
    inode = INODES[0]
    for number in (2, 1):
        network.use(number, inode)
        network.settle()
    network.use(2, inode)
    network.use(0, inode)
    network.use(1, inode)
    order = []
    for _ in range(200):
        for channel in sorted(network.channels):
            if network.channels[channel]:
                network.deliver(*channel)
        for number, side in enumerate(network.sides):
            if inode in side.handing_over:
                network.hand_over(number, inode)
            if inode in side.users:
                order.append(number)
                network.leave(number, inode)
        network.check()
        network.advance(LEASE_PEACE_S)
    assert sorted(order) == [0, 1, 2], "everybody once"
    assert network.sent <= 30


def test_a_holder_that_wants_it_again_waits_for_who_asked_before() -> None:
    network = pair()
    network.use(0, INODES[0])
    network.use(1, INODES[0])
    network.deliver(1, 0)
    network.use(0, INODES[0])
    assert network.sides[0].waiting, "new users queue behind the other's request"
    network.leave(0, INODES[0])
    network.hand_over(0, INODES[0])
    network.deliver(0, 1)
    assert network.sides[1].users
    network.settle()
    assert not network.sides[0].waiting


def test_a_request_that_crosses_what_was_given_back_is_answered_by_that() -> None:
    network = pair()
    network.use(1, INODES[0])
    network.settle()
    network.sides[1].table._give_back(network.now_s)
    network.advance(LEASE_PEACE_S)
    network.act(1)
    network.hand_over(1, INODES[0])
    network.use(0, INODES[0])
    network.deliver(0, 1)
    network.deliver(1, 0)
    assert network.sides[0].users == {INODES[0]: 1}
    network.settle()
    assert network.sides[0].table.held(INODES[0])
    assert len(network.sides[0].table) == len(network.sides[1].table) == 0


def test_what_nobody_needs_is_given_without_being_asked_for() -> None:
    network = pair()
    network.sides[0].table.give(NODES[1], INODES[0], network.now_s)
    network.act(0)
    network.settle()
    assert network.sent == 1
    assert network.sides[1].table.held(INODES[0])
    network.sides[0].table.give(NODES[1], INODES[0], network.now_s)  # it is there already
    network.act(0)
    assert network.sent == 1


def test_what_is_used_is_not_given_without_being_asked_for() -> None:
    network = pair()
    network.use(0, INODES[0])
    network.sides[0].table.give(NODES[1], INODES[0], network.now_s)
    network.leave(0, INODES[0])
    network.settle()
    assert network.sent == 0
    assert network.sides[0].table.held(INODES[0])


class LeaseMachine(RuleBasedStateMachine):
    """Three nodes, cut and joined at any time, in any order of deliveries."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(3)
        for a, b in combinations(range(3), 2):
            self.network.connect(a, b)
        self.network.settle()
        self.uses = self.given = 0

    def _sides(self) -> list[Side]:
        return self.network.sides

    @rule(a=st.integers(0, 2), b=st.integers(0, 2), often=st.integers(0, 9))
    def connect_or_cut(self, a: int, b: int, often: int) -> None:
        if a == b or often:  # seldom: most is about nodes that stay connected
            return
        if self.network.connected(a, b):
            self.network.cut(a, b)
        else:
            self.network.connect(a, b)

    @rule(number=st.integers(0, 2), inode=st.sampled_from(INODES[:2]))
    def use(self, number: int, inode: InodeId) -> None:
        self.uses += 1
        self.network.use(number, inode)

    @rule(data=st.data())
    @precondition(lambda self: any(self.network.channels.values()))
    def deliver(self, data: st.DataObject) -> None:
        ready = sorted(key for key, channel in self.network.channels.items() if channel)
        self.network.deliver(*data.draw(st.sampled_from(ready)))

    @rule(data=st.data())
    @precondition(lambda self: any(side.users for side in self.network.sides))
    def leave(self, data: st.DataObject) -> None:
        using = [(n, i) for n, side in enumerate(self._sides()) for i in sorted(side.users)]
        self.network.leave(*data.draw(st.sampled_from(using)))

    @rule(data=st.data())
    @precondition(lambda self: any(side.waiting for side in self.network.sides))
    def give_up(self, data: st.DataObject) -> None:
        waiting = [(n, i) for n, side in enumerate(self._sides()) for i in sorted(side.waiting)]
        self.network.give_up(*data.draw(st.sampled_from(waiting)))

    @rule(data=st.data())
    @precondition(lambda self: any(side.handing_over for side in self.network.sides))
    def hand_over(self, data: st.DataObject) -> None:
        going = [(n, i) for n, side in enumerate(self._sides()) for i in sorted(side.handing_over)]
        self.network.hand_over(*data.draw(st.sampled_from(going)))

    @rule(number=st.integers(0, 2), inode=st.sampled_from(INODES))
    def give_back(self, number: int, inode: InodeId) -> None:
        """What a full table does."""
        side = self._sides()[number]
        taken = side.table._taken
        if inode in taken:
            taken.pop(inode)
            side.table._taken = {inode: None, **taken}
            side.table._give_back(self.network.now_s)
            self.network.act(number)

    @rule(a=st.integers(0, 2), b=st.integers(0, 2), inode=st.sampled_from(INODES))
    def give(self, a: int, b: int, inode: InodeId) -> None:
        """What who sees requests come one after the other does."""
        self.given += 1
        self._sides()[a].table.give(NODES[b], inode, self.network.now_s)
        self.network.act(a)

    @rule(seconds=st.sampled_from([0.001, LEASE_PEACE_S, 1.0]))
    def advance(self, seconds: float) -> None:
        self.network.advance(seconds)

    @invariant()
    def exclusive(self) -> None:
        self.network.check()

    @rule()
    def nobody_starves(self) -> None:
        self.network.settle()
        for side in self._sides():
            assert not side.waiting
            assert not side.users
        assert self.network.sent <= 12 * (self.uses + self.given + 30)

    def teardown(self) -> None:
        self.nobody_starves()


LeaseMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, derandomize=True
)
TestLeases = LeaseMachine.TestCase


def test_what_a_lying_peer_can_make_a_table_remember_is_bounded() -> None:
    """It is refused when it asks, in its own session: not later, where nobody is to blame."""
    table = LeaseTable(NODES[0], Origin(1), mounts=True)
    table.connect(NODES[1], Origin(2), mounts=True, active=True, now_s=0.0)

    def asks(number: int) -> None:
        # Of as many origins as there are requests: whose they are is remembered, too.
        table.requested(NODES[1], InodeId((number + 3 << ORIGIN_SHIFT) + 1), 1, 0.0)
        for action in table.actions:
            if isinstance(action, HandOver):
                table.handed_over(action.inode, 0.0)
        table.actions.clear()

    for number in range(LEASES_GIVEN_MAX):
        asks(number)
    with pytest.raises(RemoteProtocolError):
        asks(LEASES_GIVEN_MAX)
    assert all(used <= most for used, most in table.bounded().values())
