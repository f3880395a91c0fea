"""A snapshot is taken step by step, and users go on meanwhile."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import ROWS_SLICE_BYTES, SNAPSHOT_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, InodeId
from dfsfs.namespace import Change
from tests.unit.namespace.conftest import Node


def test_a_snapshot_without_an_end_is_refused(make: Callable[[int], Node]) -> None:
    """Promise 16: a lying peer does not fill the disk."""
    here, peer = make(1), make(2)
    rejoin, page = here.fs.rejoin, peer.fs.snapshot(None, bytes_max=1 << 20)
    rejoin.begin({})
    for number in range(1, 3):
        rejoin.stage(page)
        assert rejoin.staged_bytes == number * ROWS_SLICE_BYTES
    rejoin.staged_bytes = SNAPSHOT_BYTES_MAX - ROWS_SLICE_BYTES
    rejoin.stage(page)
    with pytest.raises(RemoteProtocolError):
        rejoin.stage(page)
    rejoin.begin({})
    assert rejoin.staged_bytes == 0


def test_what_is_written_while_a_snapshot_is_taken_is_not_forgotten(
    make: Callable[[int], Node],
) -> None:
    """Promise 13: an edit beats a delete, whatever the step at which it comes."""
    for at in range(8):
        here, peer = make(1), make(2)
        files = [here.file(name, data=b"old") for name in (b"1", b"2", b"3")]
        have = here.fs.have()  # all of this the peer has held, and forgotten
        here.write(files[1], b"news")
        rejoin = here.fs.rejoin
        rejoin.begin(have)
        rejoin.stage(peer.fs.snapshot(None, bytes_max=1 << 20))
        rejoin.complete({}, have)
        expected = {b"2": b"news"}
        for step, _ in enumerate(here.fs.finish_rejoin()):
            if step == at and (b"1", files[0]) in [(n, i) for n, i, _ in here.fs.names(ROOT_INODE)]:
                here.write(files[0], b"edited")
                expected[b"1"] = b"edited"
        left = {name: here.data(inode) for name, inode, _ in here.fs.names(ROOT_INODE)}
        assert left == expected, f"written after step {at}"
        assert at > 1 or len(expected) == 2, "nothing has been removed yet"


def test_what_is_written_while_a_snapshot_is_given_is_made_again_once(
    make: Callable[[int], Node],
) -> None:
    here, peer = make(1), make(2)
    file = here.file(b"f", data=b"old")
    peer.pull(here)
    here.fs.unlink(ROOT_INODE, b"f")
    doom(here, forget=True)

    def write() -> Iterator[None]:
        peer.write(file, b"news")
        yield

    rejoin(here, peer, meanwhile=write())
    assert here.names() == [b"f"]
    assert here.data(here.fs.lookup(ROOT_INODE, b"f").inode) == b"news"


def test_what_is_below_a_cut_cycle_outlives_the_rest_of_it(make: Callable[[int], Node]) -> None:
    """Promise 13: though its row names a directory that the peer has forgotten."""
    for has_news in (True, False):  # of what was forgotten
        here, peer = make(1), make(2)
        gone, kept = make_cycle(here, peer)
        if not has_news:
            peer.file(b"g", gone)
            peer.fs.unlink(gone, b"g")
            here.pull(peer)
        peer.fs.rmdir(kept, b"gone")
        doom(peer, forget=True)
        rejoin(here, peer)
        peer.pull(here)
        here.pull(peer)
        for node in (here, peer):
            assert node.fs.path(kept) == b"kept"
            assert node.names(kept) == []


def test_what_was_removed_and_cut_from_a_cycle_can_be_revived(make: Callable[[int], Node]) -> None:
    """Promise 13: creating inside beats removing."""
    here, peer = make(1), make(2)
    _, kept = make_cycle(here, peer, is_removed=True)
    peer.fs.rmdir(kept, b"gone")
    here.pull(peer)
    assert here.names() == []
    doom(peer, forget=True)
    rejoin(here, peer)
    file = peer.file(b"f", kept)
    peer.pull(here)
    here.pull(peer)
    for node in (here, peer):
        assert node.fs.path(file) == b"kept/f"


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_snapshot_without_what_is_dying_has_what_was_cut_from_it(
    make: Callable[[int], Node], is_killed: bool
) -> None:
    here, peer, newcomer = make(1), make(2), make(3)
    _, kept = make_cycle(here, peer)
    peer.fs.rmdir(kept, b"gone")
    doom(peer, forget=False)
    here.pull(peer)
    if is_killed:
        peer.fs.subscribe(die)
        with pytest.raises(Killed):
            peer.pull(here)
        peer.start()
    peer.pull(here)  # what it had done before it heard of the removal
    rejoin(newcomer, peer)
    assert newcomer.fs.path(kept) == b"kept"


def test_a_cycle_may_come_between_judgement_and_floor(make: Callable[[int], Node]) -> None:
    here, peer, newcomer = make(1), make(2), make(3)
    _, kept = make_cycle(here, peer)
    peer.fs.rmdir(kept, b"gone")
    peer.fs.begin_round()
    judgement = peer.fs.judge()
    peer.pull(here)
    rejoin(newcomer, peer, meanwhile=peer.fs.raise_floor(judgement))
    newcomer.pull(peer)
    assert newcomer.fs.path(kept) == b"kept"


class Killed(Exception):
    """The process ended."""


def die(_: Change) -> None:
    """End the process when something has been committed."""
    raise Killed


def make_cycle(here: Node, peer: Node, *, is_removed: bool = False) -> tuple[InodeId, InodeId]:
    """Two directories moved into each other: the second one last, and maybe removed then."""
    first, second = peer.directory(b"gone"), peer.directory(b"kept")
    here.pull(peer)
    peer.fs.rename(ROOT_INODE, b"gone", second, b"gone")
    here.wall.us += 1000
    here.fs.rename(ROOT_INODE, b"kept", first, b"kept")
    if is_removed:
        here.fs.rmdir(first, b"kept")
    here.pull(peer)
    assert here.fs.path(first) == b"kept/gone"
    return first, second


def doom(node: Node, *, forget: bool) -> None:
    """What is dead never lives again, or is forgotten at once."""
    node.fs.begin_round()
    judgement = node.fs.judge()
    assert judgement.inodes
    for _ in node.fs.raise_floor(judgement):
        pass
    if forget:
        assert node.fs.forget(judgement.inodes, judgement.cut) == len(judgement.inodes)


def rejoin(here: Node, peer: Node, *, meanwhile: Iterable[None] = ()) -> None:
    """Take a snapshot of a peer; there is a valid tree at every step."""
    here.fs.rejoin.begin(peer.fs.have())
    cursor = None
    while True:
        page = peer.fs.snapshot_for_peer(cursor, bytes_max=1)
        here.fs.rejoin.stage(page)
        for _ in meanwhile:
            pass
        cursor = page.next
        if cursor is None:
            break
    here.fs.rejoin.complete(peer.fs.floor, peer.fs.have())
    for step, _ in enumerate(here.fs.finish_rejoin()):
        assert step < 100, "it does not end"
        assert here.fs.check() == []
