"""What a peer is sent, and when it is sent again."""

from typing import cast

import pytest

from dfsfs.base.types import Origin
from dfsfs.cluster.sender import Sender
from dfsfs.net import MessageStream
from tests.unit.namespace.conftest import Node, Wall

PEER = Origin(9)


@pytest.fixture
def node() -> Node:
    return Node(1, Wall())


@pytest.fixture
def sender(node: Node) -> Sender:
    """Of a peer that is counted and holds everything."""
    made = Sender(node.fs, cast("MessageStream", None), PEER)
    made.ready = made.level = True
    made.held = node.fs.have()
    made.restart()
    node.fs.subscribe(lambda change: made.push(change.batch) if change.batch else None)
    return made


def positions(sender: Sender) -> dict[Origin, int]:
    """How far everything goes that is given out now."""
    reached: dict[Origin, int] = {}
    while batches := sender.next_batches():
        reached.update({batch.origin: batch.upto for batch in batches})
    return reached


def test_all_that_waits_goes_in_one_message(node: Node, sender: Sender) -> None:
    for name in (b"a", b"b", b"c"):
        node.file(name)
    assert len(sender.next_batches()) == 3
    assert sender.next_batches() == []


def test_commits_as_they_were_rest_on_nothing(node: Node, sender: Sender) -> None:
    node.file(b"a")
    assert sender.next_batches()
    assert sender.reach == {}


def test_what_is_read_from_the_database_rests_on_all_that_is_here(
    node: Node, sender: Sender
) -> None:
    node.file(b"a")
    sender.rewind({node.origin: 0})
    assert sender.next_batches()
    assert sender.reach == node.fs.have()
    sender.rewind({node.origin: 0})
    assert sender.next_batches()
    assert sender.reach == {}, "the peer knows"


def test_who_may_lack_rows_gets_them_again_once(node: Node, sender: Sender) -> None:
    other = Node(2, node.wall)
    other.file(b"x")
    node.pull(other)
    sender.held = node.fs.have()
    sender.restart()
    assert positions(sender) == {}
    report = ["have", sender.held, {}, {}, sender.held, {Origin(3): 5}]
    sender.refill(report)
    assert positions(sender) == node.fs.have() == {other.origin: other.fs.position}
    sender.refill(report)
    assert positions(sender) == {}
    sender.refill(report[:3])  # it lacks nothing any more
    sender.refill(report)
    assert positions(sender) == node.fs.have()


def test_who_is_about_to_hold_all_gets_nothing_again(node: Node, sender: Sender) -> None:
    node.file(b"a")
    assert sender.next_batches()
    sender.refill(["have", {}, {}, {}, node.fs.have(), node.fs.have()])
    assert positions(sender) == {}


def test_rows_from_afar_go_before_the_next_commit(node: Node, sender: Sender) -> None:
    """Promise 4: it may build on them."""
    other = Node(2, node.wall)
    other.file(b"x")
    node.pull(other)
    sender.loose(node.fs.have())
    assert sender.next_batches() == []
    node.file(b"a")
    assert [batch.origin for batch in sender.next_batches()] == [other.origin]
    assert [batch.origin for batch in sender.next_batches()] == [node.origin]
