"""What users may rely on, told as stories. The numbers are those of the promises."""

import os
from contextlib import suppress

import pytest
import trio

from dfsfs.base.errors import Corrupt, DfsError, PeerUnreachable, Unavailable
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    HEDGE_S,
    MEMBERS_MAX,
    SESSION_LEASE_S,
)
from dfsfs.base.types import ROOT_INODE, DigestKind, NodeId, Origin, digest_of
from dfsfs.base.units import KIB, MIB
from dfsfs.cluster import Member
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simnode import PROGRAM, Crashed, SimNode
from dfsfs.testing.simulator import Simulation

# -- together -------------------------------------------------------------------------------------


async def test_what_is_closed_on_one_node_is_read_on_another(sim: Simulation) -> None:
    """Promise 4."""
    a, b, c = await sim.start_nodes(3)
    for size in (0, 10, 4 * KIB, 5 * KIB, 256 * KIB, MIB + 1):
        data = some_bytes(size)
        await a.write(f"/{size}", data)
        assert await b.read(f"/{size}") == data
        assert await c.read(f"/{size}") == data
    await b.write("/10", b"other")
    assert await a.read("/10") == b"other"
    await sim.converge()
    await sim.check()


async def test_names_change_for_everybody_at_once(sim: Simulation) -> None:
    """Promise 4."""
    a, b, c = await sim.start_nodes(3)
    await a.mkdir("/d")
    assert b.names() == c.names() == ["d"]
    await b.write("/d/x", b"1")
    assert a.names("/d") == c.names("/d") == ["x"]
    await c.rename("/d/x", "/y")
    assert a.names() == b.names() == ["d", "y"]
    await a.rmdir("/d")
    assert b.names() == c.names() == ["y"]
    await b.unlink("/y")
    assert a.names() == c.names() == []
    await sim.converge()
    await sim.check()


async def test_appends_of_two_nodes_in_turn_are_all_there(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2)
    for turn in range(6):
        await (a, b)[turn % 2].append("/log", f"{turn}\n".encode())
    assert await a.read("/log") == await b.read("/log") == b"0\n1\n2\n3\n4\n5\n"


async def test_a_node_alone_needs_nobody(sim: Simulation) -> None:
    """Promise 12."""
    (a,) = await sim.start_nodes(1)
    data = some_bytes(MIB)
    await a.write("/x", data)
    assert await a.read("/x") == data
    await sim.converge()


async def test_many_calls_at_once_are_one_history(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    await nodes[0].mkdir("/d")
    async with trio.open_nursery() as nursery:
        for place in range(30):
            node = nodes[place % 3]
            nursery.start_soon(node.write, f"/d/{place}", some_bytes(place * 1000, place))
    assert all(len(node.names("/d")) == 30 for node in nodes)
    await sim.converge()
    await sim.check()


# -- ends -----------------------------------------------------------------------------------------


async def test_the_writer_may_crash_when_close_has_returned(sim: Simulation) -> None:
    """Promises 8 and 11."""
    a, b, c = await sim.start_nodes(3)
    data = some_bytes(3 * MIB)
    await a.write("/x", data)
    sim.crash(a)
    assert await b.read("/x") == data
    assert await c.read("/x") == data
    await sim.restart(a)
    await sim.converge()
    assert await a.read("/x") == data
    await sim.check()


async def test_a_crash_in_the_middle_of_a_write_leaves_a_whole_file(sim: Simulation) -> None:
    """Promise 6: the old bytes or the new, never a mixture."""
    a, b, c = await sim.start_nodes(3)
    old, new = some_bytes(2 * MIB, 1), some_bytes(2 * MIB, 2)
    await a.write("/x", old)
    async with trio.open_nursery() as nursery:

        async def overwrite() -> None:
            with pytest.raises(Crashed):
                await a.write("/x", new)

        nursery.start_soon(overwrite)
        await trio.sleep(0.003)
        sim.crash(a)
    assert await b.read("/x") in (old, new)
    await sim.restart(a)
    await sim.converge()
    assert await a.read("/x") == await c.read("/x")
    await sim.check()


async def test_everything_survives_the_end_of_all_nodes_at_once(sim: Simulation) -> None:
    """Promise 11."""
    nodes = await sim.start_nodes(3)
    data = some_bytes(MIB)
    await nodes[1].write("/x", data)
    await nodes[2].mkdir("/d")
    for node in nodes:
        sim.crash(node)
    for node in nodes:
        await sim.restart(node)
    await sim.converge()
    for node in nodes:
        assert await node.read("/x") == data
        assert node.names() == ["d", "x"]
    await sim.check()


async def test_the_end_of_the_bootstrap_node_does_not_end_the_network(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3)
    sim.crash(a)
    await b.write("/x", b"1")
    assert await c.read("/x") == b"1"
    # One that restarts finds the others although its bootstrap address is dead.
    sim.crash(c)
    await sim.restart(c)
    await sim.until(sim.all_connected, within_s=30)
    await c.write("/y", b"2")
    assert await b.read("/y") == b"2"
    # And one that is new joins through any other.
    d = await sim.start_node()
    assert await d.read("/x") == b"1"


async def test_a_network_of_many_members_tells_all_of_them(sim: Simulation) -> None:
    """Also those that were mounts for an hour: each state directory was a member."""
    a, b = await sim.start_nodes(2)
    long_gone = [
        Member(
            node=NodeId(digest_of(DigestKind.SHA256, b"%d" % number)[1:]),
            name=f"some-name-of-a-machine-{number}",
            origin=Origin(number),
            version=1,
            addresses=(f"sim://machine-{number}:4000", f"sim://other-address-{number}:4000"),
            weight=1000,
            used=10,
            mounts=True,
            removed=True,
            epoch=1,
        )
        for number in range(1, MEMBERS_MAX - 3)
    ]
    a.node.members.merge(long_gone)
    c = await sim.start_node()
    await sim.until(sim.all_connected, within_s=30)
    everybody = len(long_gone) + 3
    await sim.until(
        lambda: len(b.node.members.all()) == len(c.node.members.all()) == everybody, within_s=30
    )


async def test_a_node_that_was_away_catches_up(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3)
    await a.write("/before", b"1")
    sim.crash(c)
    data = some_bytes(MIB)
    await a.mkdir("/d")
    await b.write("/d/x", data)
    await a.unlink("/before")
    await sim.restart(c)
    await sim.converge()
    assert c.names() == ["d"]
    assert await c.read("/d/x") == data
    await sim.check()


async def test_an_orderly_end_loses_nothing(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"1")
    start_s = trio.current_time()
    await sim.stop(a)
    assert trio.current_time() - start_s < SESSION_LEASE_S
    # Its peers were told: nobody waits for its lease to end.
    start_s = trio.current_time()
    await b.write("/y", b"2")
    assert trio.current_time() - start_s < SESSION_LEASE_S
    await sim.restart(a)
    await sim.converge()
    assert await a.read("/y") == b"2"
    assert await c.read("/x") == b"1"


async def test_what_was_written_and_not_closed_goes_out_before_an_orderly_end(
    sim: Simulation,
) -> None:
    """The parts of a node end in reverse order, so that the first can still use the last."""
    a, b, _ = await sim.start_nodes(3)
    data = some_bytes(MIB + 1)
    await a.write("/x", b"old")
    filesystem = a.node.filesystem
    inode = filesystem.lookup(ROOT_INODE, b"x").inode
    opened = await filesystem.open(inode, os.O_WRONLY, PROGRAM)
    await filesystem.write(opened.number, 0, data)
    assert await b.read("/x") == b"old"
    await sim.stop(a)
    assert await b.read("/x") == data


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_call_on_a_connection_that_just_broke_fails_at_once(
    sim: Simulation, cancelled: bool
) -> None:
    a, b = await sim.start_nodes(2)
    session = a.node.endpoint.sessions[b.identity.node_id]
    sim.network.cut("a", "b")
    scope = trio.CancelScope()
    if cancelled:
        scope.cancel()
    with scope, pytest.raises(PeerUnreachable):
        await session.call("members.gossip", [])
    await sim.until(sim.all_connected, within_s=30)


# -- apart ----------------------------------------------------------------------------------------


async def test_both_sides_of_a_partition_keep_what_they_wrote(sim: Simulation) -> None:
    """Promises 12 and 13."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"old")
    await sim.converge()
    sim.partition([a], [b, c])
    await a.write("/x", b"from a")
    await b.write("/x", b"from b")
    await a.write("/only-a", b"1")
    await c.write("/only-c", b"2")
    assert await c.read("/x") == b"from b"
    sim.heal()
    await sim.converge()
    names = a.names()
    assert a.tree() == b.tree() == c.tree()
    assert len(names) == 4
    assert {"x", "only-a", "only-c"} <= set(names)
    (copy,) = set(names) - {"x", "only-a", "only-c"}
    assert {await c.read("/x"), await c.read(f"/{copy}")} == {b"from a", b"from b"}
    await sim.check()


async def test_a_rename_race_across_a_partition_keeps_the_file(sim: Simulation) -> None:
    """Promise 13."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"1")
    await sim.converge()
    sim.partition([a], [b, c])
    await a.rename("/x", "/from-a")
    await b.rename("/x", "/from-b")
    sim.heal()
    await sim.converge()
    assert a.tree() == b.tree() == c.tree()
    (name,) = a.names()
    assert name in ("from-a", "from-b")
    assert await c.read(f"/{name}") == b"1"
    await sim.check()


async def test_renames_of_two_files_to_one_name_keep_both(sim: Simulation) -> None:
    """Promise 13."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/one", b"1")
    await a.write("/two", b"2")
    sim.partition([a], [b, c])
    await a.rename("/one", "/x")
    await b.rename("/two", "/x")
    sim.heal()
    await sim.converge()
    names = c.names()
    assert len(names) == 2
    assert "x" in names
    assert {await c.read(f"/{name}") for name in names} == {b"1", b"2"}
    await sim.check()


async def test_an_edit_beats_a_delete(sim: Simulation) -> None:
    """Promise 13."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"old")
    await a.write("/y", b"old")
    await sim.converge()
    sim.partition([a], [b, c])
    await a.unlink("/x")
    await b.write("/x", b"edited")
    await b.unlink("/y")
    sim.heal()
    await sim.converge()
    assert a.names() == ["x"]
    assert await a.read("/x") == await c.read("/x") == b"edited"
    await sim.check()


async def test_an_edit_of_a_conflict_copy_is_not_undone_by_who_removes_the_original(
    sim: Simulation,
) -> None:
    """Making a copy a file of its own is no edit of it, however late it happens (seed 515)."""
    a, b = await sim.start_nodes(2)
    await a.write("/x", b"old")
    sim.partition([a], [b])
    await a.write("/x", b"from a")
    await b.write("/x", b"from b")
    sim.heal()
    await sim.converge()
    (copy,) = set(a.names()) - {"x"}
    sim.partition([a], [b])
    await a.write(f"/{copy}", b"edited")
    await trio.sleep(1)
    await b.unlink("/x")
    sim.heal()
    await sim.converge()
    assert await b.read(f"/{copy}") == b"edited"
    await sim.check()


async def test_two_directories_made_apart_are_one(sim: Simulation) -> None:
    """Promise 13."""
    a, b = await sim.start_nodes(2)
    sim.partition([a], [b])
    for node in (a, b):
        await node.mkdir("/d")
        await node.write(f"/d/{node.name}", node.name.encode())
    sim.heal()
    await sim.converge()
    assert a.names() == ["d"]
    assert a.names("/d") == ["a", "b"]
    await sim.check()


async def test_a_file_made_in_a_directory_that_is_removed_elsewhere_stays(sim: Simulation) -> None:
    """Promise 13: creating inside beats removing."""
    a, b = await sim.start_nodes(2)
    await a.mkdir("/d")
    await sim.converge()
    sim.partition([a], [b])
    await a.rmdir("/d")
    await b.write("/d/x", b"1")
    sim.heal()
    await sim.converge()
    assert await a.read("/d/x") == b"1"
    await sim.check()


async def test_directories_moved_into_each_other_stay_reachable(sim: Simulation) -> None:
    """Promise 13."""
    a, b = await sim.start_nodes(2)
    await a.mkdir("/p")
    await a.mkdir("/q")
    await a.write("/p/x", b"1")
    await a.write("/q/y", b"2")
    sim.partition([a], [b])
    await a.rename("/p", "/q/p")
    await b.rename("/q", "/p/q")
    sim.heal()
    await sim.converge()
    files = [path for path, what in a.tree().items() if what.startswith("regular")]
    assert {path.rpartition("/")[2] for path in files} == {"x", "y"}
    await sim.check()


async def test_a_wrong_clock_does_not_decide_who_had_seen_what(sim: Simulation) -> None:
    """Promise 14: the later writer had seen the earlier one, whatever their clocks say."""
    a, b = await sim.start_nodes(2)
    a.world.jump(600)
    await a.write("/x", b"first, by a clock that is ahead")
    b.world.jump(-600)
    await b.write("/x", b"second, by a clock that is behind")
    await sim.converge()
    assert await a.read("/x") == await b.read("/x") == b"second, by a clock that is behind"
    assert a.names() == ["x"]
    await sim.check()


@pytest.mark.parametrize("years", [-10, 10])
async def test_a_clock_that_is_ten_years_off_keeps_nobody_apart(
    sim: Simulation, years: int
) -> None:
    """Promises 13 and 14: what is written meanwhile is seen at once, and afterwards."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"before")
    a.world.jump(years * 365 * 86_400)
    await a.write("/x", b"by the wrong clock")
    assert await b.read("/x") == b"by the wrong clock"
    await b.write("/y", b"by the right one")
    assert await a.read("/y") == b"by the right one"
    a.world.jump(-years * 365 * 86_400)
    await c.write("/x", b"last")
    await sim.converge()
    assert await a.read("/x") == b"last"
    assert a.names() == ["x", "y"]
    await sim.check()


async def test_what_cannot_be_fetched_is_an_error_after_a_bounded_wait(sim: Simulation) -> None:
    """Promise 12."""
    a, b = await sim.start_nodes(2, replicas=1, write_concern=1, fetch_timeout_s=5.0)
    data = some_bytes(MIB)
    await a.write("/x", data)
    await b.write("/y", data)
    sim.partition([a], [b])
    await sim.until(lambda: not (a.node.endpoint.sessions or b.node.endpoint.sessions), within_s=9)
    # One of the two holds nothing of a file's blocks, wherever placement put them.
    for node in (a, b):
        for path in ("/x", "/y"):
            start_s = trio.current_time()
            try:
                assert await node.read(path) == data
            except Unavailable:
                assert trio.current_time() - start_s < 6.0


# -- bad peers ------------------------------------------------------------------------------------


class Liar:
    """Changes a byte wherever a part of some data goes over the wire in one piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.lies = 0

    def __call__(self, piece: bytes) -> bytes:
        if len(piece) < KIB or piece[:64] not in self._data:
            return piece
        self.lies += 1
        return bytes([piece[0] ^ 1]) + piece[1:]


@pytest.mark.announce("sent bad bytes")
async def test_a_lying_peer_never_gives_wrong_bytes(sim: Simulation) -> None:
    """Promise 15."""
    a, b, _, _ = await sim.start_nodes(4, replicas=3)
    data = some_bytes(2 * MIB)
    await a.write("/x", data)
    await sim.converge()
    e = await sim.start_node(replicas=3)
    liars = {node.name: Liar(data) for node in (a, b)}  # of every block somebody else has a copy
    for name, liar in liars.items():
        sim.network.tamper(name, liar)
    assert await e.read("/x") == data
    assert sum(liar.lies for liar in liars.values()) > 0
    assert e.node.cluster.fetcher.bad_blocks > 0
    for name in liars:
        sim.network.tamper(name, None)
    await sim.converge()
    await sim.check()


@pytest.mark.announce("sent bad bytes")
async def test_nothing_but_lies_is_an_error(sim: Simulation) -> None:
    """Promise 15."""
    a, b = await sim.start_nodes(2, replicas=1, write_concern=1, fetch_timeout_s=5.0)
    data = some_bytes(MIB)
    await a.write("/x", data)
    await sim.converge()
    sim.network.tamper("a", Liar(data))
    sim.network.tamper("b", Liar(data))
    for node in (a, b):
        with suppress(Corrupt, Unavailable):
            assert await node.read("/x") == data


@pytest.mark.announce("broke the protocol")
async def test_a_writer_that_sends_other_bytes_stores_nothing(sim: Simulation) -> None:
    """Promise 15: what arrives is checked before it is kept, and the session is not."""
    a, b = await sim.start_nodes(2)
    data = some_bytes(MIB)
    liar = Liar(data)
    sim.network.tamper("a", liar)
    await a.write("/x", data)
    sim.network.tamper("a", None)
    assert liar.lies > 0
    assert await a.read("/x") == data
    await sim.converge()
    assert await b.read("/x") == data


async def test_a_full_peer_is_replaced_in_the_write_set(sim: Simulation) -> None:
    """Promises 8 and 16."""
    a, b, c = await sim.start_nodes(3, replicas=2, capacity_bytes=64 * MIB)
    await _fill(b, 64 * MIB)
    for number in range(8):
        data = some_bytes(256 * KIB, number + 1)
        start_s = trio.current_time()
        await a.write(f"/{number}", data)
        assert trio.current_time() - start_s < CALL_TIMEOUT_S
    assert a.node.cluster.replicator.short_blocks == 0
    sim.crash(a)
    for number in range(8):
        assert await c.read(f"/{number}") == some_bytes(256 * KIB, number + 1)


async def _fill(node: SimNode, capacity: int) -> None:
    block = bytearray(some_bytes(MIB))
    for number in range(capacity // MIB + 1):
        block[:8] = number.to_bytes(8, "big")
        data = bytes(block)
        try:
            await node.node.store.put(digest_of(DigestKind.BLAKE3, data), data)
        except DfsError:
            return
    raise AssertionError("the store takes more than its capacity")


async def test_a_slow_peer_delays_a_call_by_a_bounded_time(sim: Simulation) -> None:
    """Promise 16."""
    a, b, c = await sim.start_nodes(3)
    sim.slow(c, 0.5)
    await trio.sleep(1)
    start_s = trio.current_time()
    await a.write("/x", some_bytes(MIB))
    assert trio.current_time() - start_s < SESSION_LEASE_S + CALL_TIMEOUT_S
    start_s = trio.current_time()
    assert await b.read("/x") == some_bytes(MIB)
    assert trio.current_time() - start_s < 4 * (HEDGE_S + 1.0)


async def test_a_silent_peer_delays_the_others_by_one_lease(sim: Simulation) -> None:
    """Promise 16."""
    a, b, c = await sim.start_nodes(3)
    sim.partition([a, b], [c])
    start_s = trio.current_time()
    await a.write("/x", b"1")
    assert trio.current_time() - start_s < 2 * SESSION_LEASE_S
    start_s = trio.current_time()
    await a.write("/y", b"1")
    assert trio.current_time() - start_s < 0.1
    assert await b.read("/y") == b"1"
    assert not c.exists("/y")
