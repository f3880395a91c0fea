"""A giver that goes away half-way: what may be missing is known, and filled by others."""

from collections.abc import Callable

import pytest

from dfsfs.base.errors import Refused, RemoteProtocolError
from dfsfs.base.limits import REACH_ORIGINS_MAX
from dfsfs.base.types import ROOT_INODE, NodeId, Origin
from tests.unit.namespace.conftest import Node

Three = tuple[Node, Node, Node]


def name_of(node: Node) -> NodeId:
    return NodeId(b"%d" % node.origin)


@pytest.fixture
def half_given(make: Callable[[int], Node]) -> Three:
    """The third has rows of the first by way of the second, but not what replaced one of them."""
    author, giver, taker = make(1), make(2), make(3)
    author.file(b"old", data=b"1")
    giver.pull(author)
    giver.wall.us += 1_000_000
    giver.fs.rename(ROOT_INODE, b"old", ROOT_INODE, b"new")
    batch = giver.fs.feed(author.origin, 0, bytes_max=1000)
    assert batch is not None
    taker.fs.gaps.note(name_of(giver), giver.fs.gaps.told())
    taker.fs.apply([batch])
    assert taker.fs.held(author.origin) == author.fs.position
    assert taker.names() == []
    return author, giver, taker


def fill(taker: Node, source: Node) -> None:
    """As `Sender.refill` does."""
    taker.fs.gaps.note(name_of(source), source.fs.gaps.told())
    for origin in source.fs.have():
        after, _ = taker.fs.gaps.refill().ranges.get(origin, (0, 0))
        while batch := source.fs.feed(origin, after, bytes_max=300):
            taker.fs.apply([batch])
            after = batch.upto


def test_what_the_giver_left_out_comes_from_somebody_else(half_given: Three) -> None:
    """Promise 13: it is not lost to who has it while the giver is away."""
    author, giver, taker = half_given
    fill(taker, author)
    assert taker.names() == [], "while the giver is there, what others send is known already"
    taker.fs.gaps.lost(name_of(giver))
    fill(taker, author)
    assert taker.names() == author.names() == [b"old"]
    assert taker.fs.gaps.possible, "something else may still be missing"
    taker.pull(giver)
    assert taker.names() == [b"new"]
    assert not taker.fs.gaps.possible


def test_nothing_is_missing_when_all_has_come(half_given: Three) -> None:
    _, giver, taker = half_given
    assert taker.fs.gaps.sure() == {}
    taker.pull(giver)
    assert not taker.fs.gaps.possible
    assert taker.fs.gaps.sure() == taker.fs.have() == giver.fs.have()


def test_a_start_remembers_that_rows_may_be_missing(half_given: Three) -> None:
    author, _, taker = half_given
    reach = taker.fs.gaps.reach
    taker.start()
    assert taker.fs.gaps.refilling
    assert (taker.fs.gaps.reach, taker.fs.gaps.sure()) == (reach, {})
    fill(taker, author)
    assert taker.names() == [b"old"]


def test_who_gets_rows_from_there_knows_that_some_may_be_missing(
    half_given: Three, make: Callable[[int], Node]
) -> None:
    author, giver, taker = half_given
    last = make(4)
    fill(last, taker)
    assert last.fs.gaps.reach == giver.fs.have()
    last.fs.gaps.lost(name_of(taker))
    fill(last, author)
    assert last.names() == [b"old"]


def test_own_rows_are_never_missing(half_given: Three) -> None:
    _, _, taker = half_given
    taker.file(b"own")
    assert taker.fs.gaps.sure() == {taker.origin: taker.fs.position}


def test_what_nobody_has_is_not_waited_for(half_given: Three) -> None:
    _, _, taker = half_given
    taker.fs.gaps.end()
    assert taker.fs.gaps.sure() == taker.fs.have()
    taker.start()
    assert not taker.fs.gaps.possible


def test_nobody_makes_it_wait_for_the_far_future(half_given: Three) -> None:
    author, _, taker = half_given
    before = taker.fs.gaps.reach
    with pytest.raises(Refused):
        taker.fs.gaps.note(name_of(author), {author.origin: author.fs.position + 10**12})
    assert taker.fs.gaps.reach == before


def test_what_a_giver_makes_it_remember_is_bounded(half_given: Three) -> None:
    """Promise 16."""
    author, _, taker = half_given
    many = {Origin(number): 5 for number in range(1, REACH_ORIGINS_MAX)}
    taker.fs.gaps.note(name_of(author), many)
    with pytest.raises(RemoteProtocolError):
        taker.fs.gaps.note(
            name_of(author), {Origin(REACH_ORIGINS_MAX + number): 5 for number in (0, 1)}
        )
    filled, limit = taker.fs.bounded()["reach_origins"]
    assert filled < limit == REACH_ORIGINS_MAX
