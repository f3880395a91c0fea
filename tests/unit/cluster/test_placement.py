"""Placement: same answer everywhere, balanced, and little moves when members change."""

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.types import Digest, NodeId
from dfsfs.cluster.placement import Candidate, ranked, replica_set


def nodes(count: int, weight: float = 1.0) -> list[Candidate]:
    return [Candidate(NodeId(hashlib.sha256(b"%d" % n).digest()), weight) for n in range(count)]


def digests(count: int) -> list[Digest]:
    return [Digest(b"\x01" + hashlib.sha256(b"block %d" % n).digest()) for n in range(count)]


@given(st.permutations(nodes(6)), st.binary(min_size=33, max_size=33))
def test_order_of_members_does_not_matter(members: list[Candidate], digest: bytes) -> None:
    assert ranked(Digest(digest), members) == ranked(Digest(digest), sorted(members))


def test_all_members_are_ranked_once() -> None:
    members = nodes(5)
    for digest in digests(20):
        assert sorted(ranked(digest, members)) == sorted(member.node for member in members)


def test_a_member_without_weight_holds_nothing() -> None:
    members = [*nodes(3), Candidate(NodeId(b"\xff" * 32), 0.0)]
    assert all(NodeId(b"\xff" * 32) not in ranked(digest, members) for digest in digests(50))
    assert ranked(digests(1)[0], [Candidate(NodeId(b"\xff" * 32), 0.0)]) == []


def test_shares_follow_the_weights() -> None:
    members = [
        Candidate(member.node, weight)
        for member, weight in zip(nodes(4), [1.0, 1.0, 2.0, 4.0], strict=True)
    ]
    held = Counter(replica_set(digest, members, 1)[0] for digest in digests(8000))
    for member in members:
        assert abs(held[member.node] / 8000 - member.weight / 8) < 0.03


def test_a_new_member_takes_its_share_and_nothing_else_moves() -> None:
    before, after = nodes(4), nodes(5)
    new = after[-1].node
    moved = 0
    for digest in digests(2000):
        old, now = replica_set(digest, before, 2), replica_set(digest, after, 2)
        if old != now:
            moved += 1
            assert new in now
            assert [node for node in now if node != new] == [node for node in old if node in now]
    assert abs(moved / 2000 - 2 / 5) < 0.05
