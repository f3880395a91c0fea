"""What is given ahead: to who asks for one after the other, and to nobody else."""

from dfsfs.base.limits import LEASE_RUN_S, LEASES_AHEAD_MAX
from dfsfs.base.types import InodeId, NodeId
from dfsfs.cluster.ahead import RunsOfRequests

A, B = (NodeId(bytes([n]) * 32) for n in (1, 2))


def ask(runs: RunsOfRequests, *inodes: int, node: NodeId = A, now_s: float = 0.0) -> list[int]:
    return [runs.requested(node, InodeId(inode), now_s) for inode in inodes]


def test_a_run_is_given_twice_as_many_each_time() -> None:
    runs = RunsOfRequests()
    assert ask(runs, 1, 2, 3, 4) == [0, 2, 4, 8]
    assert max(ask(runs, *range(5, 1000))) == LEASES_AHEAD_MAX


def test_one_request_alone_gives_nothing_ahead() -> None:
    runs = RunsOfRequests()
    for number in range(5):
        assert ask(runs, number, now_s=number * 2 * LEASE_RUN_S) == [0]


def test_who_asks_for_one_inode_again_and_again_only_takes_turns() -> None:
    assert sum(ask(RunsOfRequests(), *[7] * 50)) == 0


def test_a_pause_ends_a_run() -> None:
    runs = RunsOfRequests()
    ask(runs, 1, 2, 3)
    assert ask(runs, 4, 5, now_s=2 * LEASE_RUN_S) == [0, 2]


def test_who_was_given_many_has_time_to_use_them() -> None:
    runs = RunsOfRequests()
    ask(runs, *range(20))
    assert ask(runs, 20, now_s=10 * LEASE_RUN_S) == [LEASES_AHEAD_MAX]
    assert ask(runs, 21, now_s=100 * LEASE_RUN_S) == [0]


def test_each_peer_has_a_run_of_its_own() -> None:
    runs = RunsOfRequests()
    ask(runs, 1, 2, 3)
    assert ask(runs, 4, node=B) == [0]
    runs.disconnected(A)
    assert ask(runs, 5) == [0]
